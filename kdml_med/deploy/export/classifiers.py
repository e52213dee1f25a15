"""A classifier of a run as a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdml_med.data import NormalizeColourd, TileDataset
from kdml_med.data.frames import input_size
from kdml_med.data.images import resize_square
from kdml_med.deploy.export.drawing import Drawn, draw
from kdml_med.deploy.export.exports import Export
from kdml_med.deploy.export.metadata import describe_classifier
from kdml_med.deploy.export.modules import ExportedClassifier
from kdml_med.deploy.export.parity import TOLERANCE, compare_classifier, compare_on_noise
from kdml_med.deploy.export.parity_text import classifier_text
from kdml_med.deploy.export.runtimes import Answer, eager_answer
from kdml_med.keys import BatchKey


@dataclass(frozen=True)
class ClassifierExport(Export):
    """See ``Export``."""

    unit: ClassVar[str] = "tile"
    figure: ClassVar[str] = "tile AUROC"
    quantization: ClassVar[Mapping[str, Any]] = {}

    @property
    def side(self) -> int:
        """Side of the input, pixels."""
        return input_size(self.run.image_size)[0]

    def module(self) -> ExportedClassifier:
        """From pixels to probabilities."""
        return ExportedClassifier(self.networks(), average=self.run.ensemble_average or "probabilities")

    def example(self) -> Tensor:
        """See ``Export``."""
        return torch.zeros(2, self.side, self.side, 3, dtype=torch.uint8)

    def describe(self) -> dict[str, Any]:
        """See ``Export``."""
        described = describe_classifier(self.run, self.run_dir, network=self.network, parts=self.parts)
        return described | {"format": self.format}

    def draw(
        self, dataset_dir: Path, split: str, *, limit: int, seed: int, only_seen: bool = False
    ) -> Drawn[TileDataset]:
        """See ``Export``."""
        settings = {
            "transform": NormalizeColourd(BatchKey.IMAGE.value), "image_size": self.side, "stain": self.run.stain,
        }  # fmt: skip
        return draw(TileDataset, self.run, dataset_dir, split, limit=limit, seed=seed, only_seen=only_seen, **settings)

    def pixels(self, images: Drawn[TileDataset]) -> list[npt.NDArray[np.uint8]]:
        """Stored tiles, resized as in training."""
        return [resize_square(images.dataset.read(row), self.side) for row in range(len(images))]

    def compare(self, images: Drawn[TileDataset], answers: Mapping[str, Answer]) -> dict[str, Any]:
        """See ``Export``."""
        pixels = np.stack(self.pixels(images))
        return compare_classifier(
            self.run_dir, self.run, images, pixels, answers, network=self.network, parts=self.parts
        )

    def compare_on_noise(self, answer: Answer) -> dict[str, Any]:
        """See ``Export``."""
        return compare_on_noise(eager_answer(self.module()), answer, self.side)

    def alike(self, parity: Mapping[str, Any]) -> bool:
        """See ``Export``."""
        return bool(parity["largest_difference"] <= TOLERANCE)

    def differences_text(self, parity: Mapping[str, Any]) -> str:
        """See ``Export``."""
        found = parity["largest_difference"]
        return f"other probabilities than the network: the largest difference is {found:.2g}, allowed are {TOLERANCE:g}"

    def parity_text(self, parity: Mapping[str, Any]) -> str:
        """See ``Export``."""
        return classifier_text(parity, network=self.network, format=self.format)

    def figures(self, parity: Mapping[str, Any]) -> tuple[float | None, Mapping[str, float | None]]:
        """See ``Export``."""
        by_runtime = {name: found["tile_auroc"] for name, found in parity["runtimes"].items()}
        return parity["auroc"]["tile"]["evaluated"], by_runtime

    def recorded_figure(self, metrics: Mapping[str, Any]) -> float | None:
        """See ``Export``."""
        found: float | None = metrics["tile"]["auroc"]
        return found

    def timed_images(self, images: Drawn[TileDataset] | None) -> list[npt.NDArray[np.uint8]]:
        """Random pixels: what a tile shows does not matter to the speed."""
        return [np.random.default_rng(0).integers(0, 256, (self.side, self.side, 3), dtype=np.uint8)]
