"""A detector of a run as a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdml_med.data.frames import FrameDataset, input_size
from kdml_med.deploy.export.detector import ExportedDetector
from kdml_med.deploy.export.detector_parity import (
    BOX_TOLERANCE_PX,
    FIGURES,
    SCORE_TOLERANCE,
    compare_boxes_on_noise,
    compare_detector,
    may_be_chance,
)
from kdml_med.deploy.export.drawing import Drawn, draw
from kdml_med.deploy.export.exports import Export
from kdml_med.deploy.export.metadata import describe_detector
from kdml_med.deploy.export.parity_text import boxes_apart, detector_text
from kdml_med.deploy.export.runtimes import Answer, eager_answer
from kdml_med.errors import InputError
from kdml_med.runs import read_thresholds

INT8_OPERATIONS = ("Conv", "Clip", "Relu")
"""What is computed in integers: convolutions with their activations. Boxes and scores need more than 8 bits."""
FLOATING_CONVOLUTIONS = 3
"""The first ones of each network stay as they are: their few filters differ much in size, and on real validation frames
int8 lost two to five points of AP with them and at most 1.4 without."""
_TIMED_FRAMES = 8


@dataclass(frozen=True)
class DetectorExport(Export):
    """See ``Export``."""

    unit: ClassVar[str] = "frame"
    figure: ClassVar[str] = "AP"
    quantization: ClassVar[Mapping[str, Any]] = {
        "operations": INT8_OPERATIONS, "floating_convolutions": FLOATING_CONVOLUTIONS,
    }  # fmt: skip

    def check(self) -> None:
        """Refuse what no file can hold.

        Raises:
            InputError: the ensemble fuses boxes instead of averaging anchors.
        """
        if len(self.parts) > 1 and self.run.fusion != "anchors":
            raise InputError(
                f"the ensemble of {self.run_dir} joins the boxes of its students by weighted box fusion (--fusion "
                f"{self.run.fusion}), which no file format has: export its students one by one, or train with --fusion "
                "anchors."
            )

    def module(self) -> ExportedDetector:
        """From stored frames to boxes."""
        return ExportedDetector(self.networks(), self.run.image_size)

    def example(self) -> Tensor:
        """Neither side is that of the input, so that nothing is taken for a number that is the frame's."""
        height, width = input_size(self.run.image_size)
        return torch.zeros(2, 2 * height + 10, 2 * width + 30, 3, dtype=torch.uint8)

    def describe(self) -> dict[str, Any]:
        """See ``Export``."""
        threshold = read_thresholds(self.run_dir).get(self.network)
        described = describe_detector(self.run, self.run_dir, network=self.network, parts=self.parts)
        return described | {"threshold": threshold, "format": self.format}

    def draw(
        self, dataset_dir: Path, split: str, *, limit: int, seed: int, only_seen: bool = False
    ) -> Drawn[FrameDataset]:
        """See ``Export``."""
        return draw(FrameDataset, self.run, dataset_dir, split, limit=limit, seed=seed, only_seen=only_seen)

    def pixels(self, images: Drawn[FrameDataset]) -> Sequence[npt.NDArray[np.uint8]]:
        """Frames as they are stored."""
        return [images.dataset.read(position) for position in range(len(images))]

    def compare(self, images: Drawn[FrameDataset], answers: Mapping[str, Answer]) -> dict[str, Any]:
        """See ``Export``."""
        return compare_detector(self.run_dir, self.run, images, answers, network=self.network)

    def compare_on_noise(self, answer: Answer) -> dict[str, Any]:
        """See ``Export``."""
        return compare_boxes_on_noise(eager_answer(self.module()), answer)

    def alike(self, parity: Mapping[str, Any]) -> bool:
        """See ``Export``; a box that only one has is one of two that overlap by the threshold, and moves no figure.

        So is one of the few that differ, see ``may_be_chance``.
        """
        changes = [parity["precision"][name]["change"] for name in FIGURES] if "precision" in parity else []
        return may_be_chance(parity["boxes_beyond_tolerance"], parity["boxes_of_both"]) and all(
            change is None or abs(change) <= SCORE_TOLERANCE for change in changes
        )

    def differences_text(self, parity: Mapping[str, Any]) -> str:
        """See ``Export``."""
        return (
            f"other boxes than the network: they differ by {boxes_apart(parity)}, allowed are {BOX_TOLERANCE_PX:g} px "
            f"and {SCORE_TOLERANCE:g} in all but very few"
        )

    def parity_text(self, parity: Mapping[str, Any]) -> str:
        """See ``Export``."""
        return detector_text(parity, network=self.network, format=self.format)

    def figures(self, parity: Mapping[str, Any]) -> tuple[float | None, Mapping[str, float | None]]:
        """See ``Export``."""
        by_runtime = {name: found["ap"] for name, found in parity["runtimes"].items()}
        return parity["precision"]["ap"]["evaluated"]["value"], by_runtime

    def recorded_figure(self, metrics: Mapping[str, Any]) -> float | None:
        """See ``Export``."""
        found: float | None = metrics["ap"]
        return found

    def timed_images(self, images: Drawn[FrameDataset] | None) -> list[npt.NDArray[np.uint8]]:
        """Real frames, whose size and boxes matter to the speed; else a black one of twice the input."""
        if images is None:
            height, width = input_size(self.run.image_size)
            return [np.zeros((2 * height, 2 * width, 3), np.uint8)]
        chosen = np.sort(np.random.default_rng(0).permutation(len(images))[:_TIMED_FRAMES])
        return [images.dataset.read(int(position)) for position in chosen]
