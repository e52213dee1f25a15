"""From what detectors say about anchors to detections in frames, for every network and for the ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdml_med.engines.evaluator import CohortEvaluator
from kdml_med.keys import BatchKey, NetworkName, OutputKey
from kdml_med.networks.anchors import AnchorPredictions
from kdml_med.networks.boxes import (
    IOU_THRESHOLD,
    MAX_DETECTIONS,
    SCORE_THRESHOLD,
    Candidates,
    Detections,
    average_anchors,
    decode_anchors,
    fuse,
    suppress,
)

FUSIONS = ("anchors", "boxes")
FUSION_OVERLAP = 0.3
"""Boxes of one student that overlap more than this are not fused with each other, see ``DetectionEvaluator``."""


class DetectionEvaluator(CohortEvaluator):
    """Evaluator of detectors: adds the detections of every network and of the ensemble of students to its output.

    Detections are in pixels of the stored frame where the batch tells the placement (``BatchKey.SCALE`` and
    ``FRAME_SIZE``), else in pixels of the network's input.

    Args:
        fusion: "anchors" averages the students' probabilities and boxes anchor by anchor before one suppression,
            "boxes" fuses their detections (weighted box fusion).
        score_threshold: see ``suppress``.
        iou_threshold: likewise.
        max_detections: likewise.
        **kwargs: see ``monai.engines.SupervisedEvaluator``.

    Raises:
        ValueError: fusion is neither of the two.
    """

    def __init__(
        self,
        *,
        fusion: str = "anchors",
        score_threshold: float = SCORE_THRESHOLD,
        iou_threshold: float = IOU_THRESHOLD,
        max_detections: int = MAX_DETECTIONS,
        **kwargs: Any,
    ) -> None:
        if fusion not in FUSIONS:
            raise ValueError(f"fusion must be one of {', '.join(FUSIONS)}, got {fusion!r}.")
        self.fusion = fusion
        self.score_threshold, self.iou_threshold, self.max_detections = score_threshold, iou_threshold, max_detections
        super().__init__(**kwargs)

    def answer(self, predictions: Mapping[str, AnchorPredictions], batch: Mapping[str, Any]) -> dict[str, Any]:
        """Detections by network name, one entry for each image.

        Raises:
            FloatingPointError: a network answers with NaN, which would be no detection, without a word.
        """
        height, width = batch[BatchKey.IMAGE].shape[-2:]
        candidates = {name: decode_anchors(value, height, width) for name, value in predictions.items()}
        _refuse_nan(candidates)
        students = [name for name in predictions if name != NetworkName.TEACHER]
        device = candidates[students[0]].boxes.device
        images = len(batch[BatchKey.IMAGE])
        scales = torch.as_tensor(batch.get(BatchKey.SCALE, torch.ones(images)), device=device)
        sizes = batch.get(BatchKey.FRAME_SIZE, torch.tensor([[width, height]] * images))
        limits = torch.as_tensor(sizes, device=device) * scales[:, None]
        if self.fusion == "anchors":
            candidates[NetworkName.ENSEMBLE] = average_anchors([candidates[name] for name in students])
        found = self._suppress(candidates, limits, scales, self.iou_threshold)
        if self.fusion == "boxes":
            # Fusion averages the scores of all boxes that overlap: of each student only its best may be among them.
            alone = min(self.iou_threshold, FUSION_OVERLAP)
            members = self._suppress({name: candidates[name] for name in students}, limits, scales, alone)
            found[NetworkName.ENSEMBLE] = [
                fuse(list(each), max_detections=self.max_detections) for each in zip(*members.values(), strict=True)
            ]
        return {OutputKey.DETECTIONS: found}

    def _suppress(
        self, candidates: Mapping[str, Candidates], limits: Tensor, scales: Tensor, iou_threshold: float
    ) -> dict[str, list[Detections]]:
        """Detections of the images of every network, in pixels of the stored frames."""
        together = Candidates(*(torch.cat(parts) for parts in zip(*candidates.values(), strict=True)))
        found = suppress(
            together,
            limits=limits.repeat(len(candidates), 1),
            scales=scales.repeat(len(candidates)),
            score_threshold=self.score_threshold,
            iou_threshold=iou_threshold,
            max_detections=self.max_detections,
        )
        images = len(scales)
        return {name: found[place * images : (place + 1) * images] for place, name in enumerate(candidates)}


def _refuse_nan(candidates: Mapping[str, Candidates]) -> None:
    # One answer for all networks, as a GPU has to be waited for.
    broken = [one.scores.isnan().any() | one.boxes.isnan().any() for one in candidates.values()]
    for name, found in zip(candidates, torch.stack(broken).tolist(), strict=True):
        if found:
            raise FloatingPointError(
                f"{name} gives boxes or scores that are no numbers: its weights are too large. Train again with a "
                "lower --learning_rate."
            )
