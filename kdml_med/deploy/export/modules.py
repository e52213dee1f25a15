"""Trained classifiers with everything inside that the pixels of a tile go through on the way to a probability."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from kdml_med.engines.evaluator import check_average, ensemble_probabilities
from kdml_med.keys import NetworkName
from kdml_med.pixels import IMAGENET_MEAN, IMAGENET_STD

INPUT_NAME = "image"
BATCH_AXIS = "batch"

Axes = Mapping[int, str]
"""Names of the axes of an output whose length is not known before, by their place."""


class Exportable(Protocol):
    """What a module tells the file formats, beside being called with ``image``: uint8 [batch, height, width, 3], RGB.

    Attributes:
        output_axes: of each output by its name, in the order in which the module returns them.

    A module that takes images of any height and width has ``input_axes`` too, {1: "height", 2: "width"}.
    """

    output_axes: Mapping[str, Axes]


class NormalizedImage(nn.Module):
    """Pixels as they are stored to what networks are trained on, see ``kdml_med.data.NormalizeColourd``."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD, dtype=torch.float32), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Map uint8 [batch, height, width, 3], RGB, to float32 [batch, 3, height, width]."""
        # Numbers, not parts of the graph: a file takes images of one size.
        height, width = int(image.shape[1]), int(image.shape[2])
        # The same operations in the same order as in training: the bits are the same. On whole rows of pixels, because
        # runtimes are slow at operations on three colours that come last, where the pixels of a file have them.
        rows = image.reshape(-1, height, width * 3).to(torch.float32) / 255.0
        normalized = (rows - self.mean.repeat(width)) / self.std.repeat(width)
        return normalized.reshape(-1, height, width, 3).permute(0, 3, 1, 2).contiguous()


class ExportedClassifier(nn.Module):
    """One classifier, or the ensemble of several, from pixels to class probabilities.

    Args:
        networks: by name; one, or the students of a cohort. They are put into evaluation mode.
        average: how several become one, see ``kdml_med.engines.ensemble_probabilities``.

    Raises:
        ValueError: there is no network, several with a teacher among them, or ``average`` is unknown.
    """

    output_axes: ClassVar[Mapping[str, Axes]] = {"probability": {0: BATCH_AXIS}}

    def __init__(self, networks: Mapping[str, nn.Module], *, average: str = "probabilities") -> None:
        super().__init__()
        check_average(average)
        if not networks or (len(networks) > 1 and NetworkName.TEACHER in networks):
            raise ValueError(f"expected one network or several students, got {sorted(networks)}.")
        self.networks = nn.ModuleDict(networks)
        self.normalize = NormalizedImage()
        self.average = average
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """Map uint8 [batch, height, width, 3], RGB, to float32 probabilities [batch, classes]."""
        normalized = self.normalize(image)
        logits = {name: network(normalized) for name, network in self.networks.items()}
        if len(logits) == 1:
            return torch.softmax(next(iter(logits.values())).float(), dim=1)
        return ensemble_probabilities(logits, average=self.average)[NetworkName.ENSEMBLE]
