"""From what detectors say about anchors to detections in frames, for every network and for the ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data.box_utils import box_iou
from torch import Tensor

from kdml_med.anchors import AnchorPredictions, anchor_grid, decode_boxes
from kdml_med.box_fusion import weighted_box_fusion
from kdml_med.engines.evaluator import CohortEvaluator
from kdml_med.keys import BatchKey, NetworkName, OutputKey

FUSIONS = ("anchors", "boxes")
FUSION_OVERLAP = 0.3
"""Boxes of one student that overlap more than this are not fused with each other, see ``DetectionEvaluator``."""


class Detections(NamedTuple):
    """What one network found in one image, best first."""

    boxes: Tensor
    """float32, [detections, 4]: xmin, ymin, xmax, ymax, pixels."""
    scores: Tensor
    """float32, [detections], 0 to 1."""


class Candidates(NamedTuple):
    """All anchors of a batch as boxes."""

    boxes: Tensor
    """float32, [batch, anchors, 4]."""
    scores: Tensor
    """float32, [batch, anchors], 0 to 1."""


def decode_anchors(prediction: AnchorPredictions, height: int, width: int) -> Candidates:
    """Boxes and foreground probabilities of all anchors.

    Args:
        prediction: of one network; its best class counts.
        height: of the network's input, pixels.
        width: likewise.
    """
    anchors = anchor_grid(height, width)[0].to(prediction.deltas.device)
    batch, count = prediction.deltas.shape[:2]
    boxes = decode_boxes(prediction.deltas.reshape(-1, 4), anchors.repeat(batch, 1)).view(batch, count, 4)
    return Candidates(boxes, torch.sigmoid(prediction.logits.float()).amax(dim=-1))


def average_anchors(candidates: list[Candidates]) -> Candidates:
    """Mean of probabilities and of boxes, anchor by anchor."""
    boxes = torch.stack([one.boxes for one in candidates]).mean(dim=0)
    return Candidates(boxes, torch.stack([one.scores for one in candidates]).mean(dim=0))


def suppress(
    candidates: Candidates,
    *,
    limits: Tensor,
    score_threshold: float = 0.02,
    iou_threshold: float = 0.6,
    max_candidates: int = 200,
    max_detections: int = 50,
) -> list[Detections]:
    """Non-maximum suppression, image by image.

    Args:
        candidates: of a batch.
        limits: [batch, 2], (width, height) that boxes are cut to, pixels of the input.
        score_threshold: what scores less is dropped.
        iou_threshold: of two boxes that overlap more, the one with the lower score goes.
        max_candidates: best anchors of an image that take part.
        max_detections: best detections of an image that are kept.
    """
    results = []
    for boxes, scores, limit in zip(candidates.boxes, candidates.scores, limits, strict=True):
        order = torch.argsort(scores, descending=True, stable=True)[:max_candidates]
        order = order[scores[order] >= score_threshold]
        cut = torch.minimum(boxes[order].clamp(min=0), limit.repeat(2))
        whole = ((cut[:, 2:] - cut[:, :2]) > 1).all(dim=1)
        cut, kept_scores = cut[whole], scores[order][whole]
        keep = _keep(cut, iou_threshold)[:max_detections]
        results.append(Detections(cut[keep], kept_scores[keep]))
    return results


def _keep(boxes: Tensor, iou_threshold: float) -> Tensor:
    """Indices of boxes [n, 4], best first, that no better kept one overlaps too much.

    Not MONAI's function, which works out the overlaps anew for every box that it keeps: most of the time of an
    evaluation went there.
    """
    if len(boxes) == 0:
        return torch.zeros(0, dtype=torch.long, device=boxes.device)
    overlaps = (box_iou(boxes, boxes) > iou_threshold).cpu().numpy()
    dropped = np.zeros(len(boxes), dtype=bool)
    kept = []
    for index in range(len(boxes)):
        if not dropped[index]:
            kept.append(index)
            dropped |= overlaps[index]
    return torch.tensor(kept, device=boxes.device)


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
        score_threshold: float = 0.02,
        iou_threshold: float = 0.6,
        max_detections: int = 50,
        **kwargs: Any,
    ) -> None:
        if fusion not in FUSIONS:
            raise ValueError(f"fusion must be one of {', '.join(FUSIONS)}, got {fusion!r}.")
        self.fusion = fusion
        self.score_threshold, self.iou_threshold, self.max_detections = score_threshold, iou_threshold, max_detections
        super().__init__(**kwargs)

    def answer(self, predictions: Mapping[str, AnchorPredictions], batch: Mapping[str, Any]) -> dict[str, Any]:
        """Detections by network name, one entry for each image."""
        height, width = batch[BatchKey.IMAGE].shape[-2:]
        candidates = {name: decode_anchors(value, height, width) for name, value in predictions.items()}
        students = [name for name in predictions if name != NetworkName.TEACHER]
        device = candidates[students[0]].boxes.device
        images = len(batch[BatchKey.IMAGE])
        scales = torch.as_tensor(batch.get(BatchKey.SCALE, torch.ones(images)), device=device)
        sizes = batch.get(BatchKey.FRAME_SIZE, torch.tensor([[width, height]] * images))
        limits = torch.as_tensor(sizes, device=device) * scales[:, None]
        if self.fusion == "anchors":
            candidates[NetworkName.ENSEMBLE] = average_anchors([candidates[name] for name in students])
        found = {name: self._suppress(one, limits, self.iou_threshold) for name, one in candidates.items()}
        if self.fusion == "boxes":
            # Fusion averages the scores of all boxes that overlap: of each student only its best may be among them.
            alone = min(self.iou_threshold, FUSION_OVERLAP)
            members = [self._suppress(candidates[name], limits, alone) for name in students]
            found[NetworkName.ENSEMBLE] = [
                fuse(list(each), max_detections=self.max_detections) for each in zip(*members, strict=True)
            ]
        back = [1 / float(scale) for scale in scales]
        return {
            OutputKey.DETECTIONS: {
                name: [Detections(one.boxes * factor, one.scores) for one, factor in zip(each, back, strict=True)]
                for name, each in found.items()
            }
        }

    def _suppress(self, candidates: Candidates, limits: Tensor, iou_threshold: float) -> list[Detections]:
        return suppress(
            candidates,
            limits=limits,
            score_threshold=self.score_threshold,
            iou_threshold=iou_threshold,
            max_detections=self.max_detections,
        )


def fuse(detections: list[Detections], *, max_detections: int = 50) -> Detections:
    """Weighted box fusion of what several networks found in one image; the best ``max_detections`` are kept."""
    boxes = [one.boxes.cpu().numpy().astype(np.float64) for one in detections]
    scores = [one.scores.cpu().numpy().astype(np.float64) for one in detections]
    fused_boxes, fused_scores = weighted_box_fusion(boxes, scores)
    device = detections[0].boxes.device
    return Detections(
        torch.as_tensor(fused_boxes[:max_detections], dtype=torch.float32, device=device),
        torch.as_tensor(fused_scores[:max_detections], dtype=torch.float32, device=device),
    )
