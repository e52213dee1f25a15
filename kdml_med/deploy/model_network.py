"""What the configs of a bundle that was written from a run refer to: its network, its samples, its results."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from ignite.engine import Engine, Events
from monai.transforms import Transform
from torch import Tensor, nn

from kdml_med.data.frames import FrameDataset, PlaceFrame, input_size
from kdml_med.data.images import decode_image, image_to_tensor
from kdml_med.data.tiles import TileDataset
from kdml_med.data.transforms import NormalizeColourd
from kdml_med.engines.evaluator import ensemble_probabilities
from kdml_med.keys import BatchKey, NetworkName, Task
from kdml_med.networks.anchors import anchor_grid, decode_boxes
from kdml_med.networks.boxes import Candidates, average_anchors, suppress
from kdml_med.networks.registry import NetworkSpec, build_network
from kdml_med.storage.files import write_table

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_FILE, _SCALE, _SIZE = "file", BatchKey.SCALE.value, BatchKey.FRAME_SIZE.value


class AnswerNetwork(nn.Module):
    """One network, or the ensemble of several, from normalised images to one tensor.

    Args:
        networks: specs by name, see ``kdml_med.networks.registry``.
        task: "classification" or "detection".
        num_classes: outputs; detectors do not count background.
        image_size: (height, width) of the input, or the side of a square one.
        average: classification: see ``kdml_med.engines.ensemble_probabilities``.
    """

    anchors: Tensor

    def __init__(
        self,
        networks: Mapping[str, NetworkSpec],
        *,
        task: str,
        num_classes: int,
        image_size: int | Sequence[int],
        average: str = "probabilities",
    ) -> None:
        super().__init__()
        built = {name: build_network(spec, num_classes=num_classes) for name, spec in networks.items()}
        self.networks = nn.ModuleDict(built)
        self.task, self.average = Task(task), average
        if self.task is Task.DETECTION:
            self.register_buffer("anchors", anchor_grid(*input_size(image_size))[0].clone())
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """Answer.

        Args:
            image: float32, [batch, 3, height, width], normalised.

        Returns:
            float32. Classifiers: probabilities [batch, classes]. Detectors: [batch, 5, anchors], box (xmin, ymin, xmax,
            ymax, pixels of the input) and probability of every anchor, before suppression.
        """
        answers = {name: network(image) for name, network in self.networks.items()}
        if self.task is Task.CLASSIFICATION:
            if len(answers) == 1:
                return torch.softmax(next(iter(answers.values())).float(), dim=1)
            return ensemble_probabilities(answers, average=self.average)[NetworkName.ENSEMBLE]
        boxes, scores = average_anchors(
            [
                Candidates(decode_boxes(answer[1], self.anchors), torch.sigmoid(answer[0].float()).amax(dim=-1))
                for answer in answers.values()
            ]
        )
        return torch.cat([boxes, scores[..., None]], dim=2).transpose(1, 2)


def traced_network(image_size: int | Sequence[int], **settings: Any) -> nn.Module:
    """``AnswerNetwork`` with random weights, as TorchScript.

    Already traced, because MONAI's export compiles what it is given, which not every network takes.

    Args:
        image_size: see ``AnswerNetwork``.
        **settings: likewise.
    """
    network = AnswerNetwork(image_size=image_size, **settings)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced: nn.Module = torch.jit.trace(network, torch.zeros(2, 3, *input_size(image_size)), check_trace=False)
    return traced


class ReadImaged(Transform):
    """Read the image file of a sample and bring it into the network's input as training did.

    Adds the file's name, and for frames what ``PlaceFrame`` adds.

    Args:
        task: "classification" or "detection".
        image_size: (height, width) of the input, or the side of a square one.
    """

    def __init__(self, task: str, image_size: int | Sequence[int]) -> None:
        self.task, self.size = Task(task), image_size
        self.normalize = NormalizeColourd(BatchKey.IMAGE)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read one sample."""
        path = Path(data[BatchKey.IMAGE])
        pixels = decode_image(path.read_bytes(), where=str(path))
        if self.task is Task.DETECTION:
            sample = PlaceFrame(self.size)({BatchKey.IMAGE: pixels, BatchKey.LABEL: np.zeros((0, 4), np.float32)})
            del sample[BatchKey.LABEL]
        else:
            sample = {BatchKey.IMAGE: image_to_tensor(pixels, input_size(self.size)[0])}
        return {**self.normalize(sample), _FILE: str(path)}


class AnswerTable:
    """Handler that writes what an evaluator's network answers as a table, one row for each image or box.

    Args:
        path: CSV file.
        task: "classification" or "detection".
        classes: names; columns of a classifier.
        threshold: score from which a box counts, as ``above_threshold`` says; None leaves that column out.
    """

    def __init__(self, path: str, task: str, classes: Sequence[str], threshold: float | None = None) -> None:
        self.path, self.task, self.classes = Path(path), Task(task), list(classes)
        self.threshold = threshold
        self.rows: list[tuple[Any, ...]] = []

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator that does not decollate."""
        engine.add_event_handler(Events.EPOCH_STARTED, lambda: self.rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def collect(self, engine: Engine) -> None:
        """Take one batch."""
        batch, answers = engine.state.batch, engine.state.output["pred"].cpu()
        if self.task is Task.CLASSIFICATION:
            self.rows += [(file, *row) for file, row in zip(batch[_FILE], answers.tolist(), strict=True)]
            return
        scales, sizes = batch[_SCALE].cpu(), batch[_SIZE].cpu()
        candidates = Candidates(answers[:, :4].transpose(1, 2), answers[:, 4])
        for file, scale, one in zip(
            batch[_FILE], scales.tolist(), suppress(candidates, limits=sizes * scales[:, None]), strict=True
        ):
            boxes = (one.boxes * (1 / scale)).tolist()
            self.rows += [(file, score, *box) for score, box in zip(one.scores.tolist(), boxes, strict=True)]

    def write(self) -> None:
        """Write the table."""
        own = self.classes if self.task is Task.CLASSIFICATION else ["score", "xmin", "ymin", "xmax", "ymax"]
        table = pd.DataFrame(self.rows, columns=[_FILE, *own])
        if self.threshold is not None:
            table["above_threshold"] = table["score"] >= self.threshold
        write_table(self.path, table)


def image_files(folder: str) -> list[dict[str, str]]:
    """Samples of all images of a folder and those below it."""
    paths = [path for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    return [{BatchKey.IMAGE.value: str(path)} for path in paths]


def tiles(data: str, **settings: Any) -> TileDataset:
    """``TileDataset`` of a dataset folder, under the name that MONAI has for the source of a dataset."""
    return TileDataset(data, **settings)


def frames(data: str, **settings: Any) -> FrameDataset:
    """``FrameDataset``, likewise."""
    return FrameDataset(data, **settings)
