"""From what detectors say about anchors to boxes: decoding, suppression, and fusion of several detectors' boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdml_med.errors import InputError
from kdml_med.networks.anchors import AnchorPredictions, anchor_grid, decode_boxes, overlaps

Floats = npt.NDArray[np.float64]

SCORE_THRESHOLD, IOU_THRESHOLD, MAX_CANDIDATES, MAX_DETECTIONS = 0.02, 0.6, 200, 50
"""How detections are chosen among candidates in evaluation, inference and exported files, see ``suppress``."""
_IMAGES = 32
"""Images whose boxes are compared together: pairs of more do not fit into the cache of a CPU."""


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
    anchors, _ = anchor_grid(height, width, prediction.deltas.device)
    return Candidates(decode_boxes(prediction.deltas, anchors), torch.sigmoid(prediction.logits.float()).amax(dim=-1))


def average_anchors(candidates: list[Candidates]) -> Candidates:
    """Mean of probabilities and of boxes, anchor by anchor."""
    boxes = torch.stack([one.boxes for one in candidates]).mean(dim=0)
    return Candidates(boxes, torch.stack([one.scores for one in candidates]).mean(dim=0))


def suppress(
    candidates: Candidates,
    *,
    limits: Tensor,
    scales: Tensor | None = None,
    score_threshold: float = SCORE_THRESHOLD,
    iou_threshold: float = IOU_THRESHOLD,
    max_candidates: int = MAX_CANDIDATES,
    max_detections: int = MAX_DETECTIONS,
) -> list[Detections]:
    """Non-maximum suppression within each image, all images at once.

    Args:
        candidates: of a batch.
        limits: [batch, 2], (width, height) that boxes are cut to, pixels of the input.
        scales: [batch], pixels of the input per pixel of what detections are given in; None: they stay as they are.
        score_threshold: what scores less is dropped.
        iou_threshold: of two boxes that overlap more, the one with the lower score goes.
        max_candidates: best anchors of an image that take part.
        max_detections: best detections of an image that are kept.
    """
    order = torch.argsort(candidates.scores, dim=1, descending=True, stable=True)[:, :max_candidates]
    scores = candidates.scores.gather(1, order)
    boxes = candidates.boxes.gather(1, order[:, :, None].expand(-1, -1, 4))
    boxes = torch.minimum(boxes.clamp(min=0), limits.repeat(1, 2)[:, None])
    usable = (scores >= score_threshold) & ((boxes[:, :, 2:] - boxes[:, :, :2]) > 1).all(dim=2)
    most = int((usable * torch.arange(1, 1 + usable.shape[1], device=usable.device)).amax())
    scores, boxes = scores[:, :most], boxes[:, :most]
    parts = zip(boxes.split(_IMAGES), usable[:, :most].split(_IMAGES), strict=True)
    kept = torch.cat([_unsuppressed(*part, iou_threshold) for part in parts])
    kept &= kept.cumsum(dim=1) <= max_detections
    if scales is not None:
        boxes = boxes * (1 / scales)[:, None, None]
    counts = kept.sum(dim=1).tolist()
    return [Detections(*one) for one in zip(boxes[kept].split(counts), scores[kept].split(counts), strict=True)]


def _unsuppressed(boxes: Tensor, usable: Tensor, iou_threshold: float) -> Tensor:
    """Which boxes no better one that is kept overlaps too much: bool, [batch, boxes].

    In each round a box stays unless a better one that stayed in the round before overlaps it. The best box is right at
    once, the second one after one round at most, and so on: what no round changes is what is found by going through
    the boxes one by one. A few rounds do.

    Args:
        boxes: float32, [batch, boxes, 4], best first.
        usable: bool, [batch, boxes]; others neither stay nor suppress.
        iou_threshold: see ``suppress``.

    Source:
        Cluster-NMS: Zheng et al. 2022, IEEE Transactions on Cybernetics 52(8), arXiv:2005.03572, algorithm 2.
    """
    better = (overlaps(boxes[:, :, None], boxes[:, None]) > iou_threshold).triu(diagonal=1).float()
    kept = usable
    while True:
        # A product of matrices counts much faster than a logical one looks.
        following = usable & (torch.bmm(kept[:, None].float(), better)[:, 0] == 0)
        if torch.equal(following, kept):
            return kept
        kept = following


def fuse(detections: list[Detections], *, max_detections: int = MAX_DETECTIONS) -> Detections:
    """Weighted box fusion of what several networks found in one image; the best ``max_detections`` are kept."""
    boxes = [one.boxes.cpu().numpy().astype(np.float64) for one in detections]
    scores = [one.scores.cpu().numpy().astype(np.float64) for one in detections]
    fused_boxes, fused_scores = weighted_box_fusion(boxes, scores)
    device = detections[0].boxes.device
    return Detections(
        torch.as_tensor(fused_boxes[:max_detections], dtype=torch.float32, device=device),
        torch.as_tensor(fused_scores[:max_detections], dtype=torch.float32, device=device),
    )


@dataclass
class _Cluster:
    """Boxes that were fused so far.

    Attributes:
        corners: [4], sum of the boxes, each times its weighted score.
        score: sum of the weighted scores.
        weight: sum of the models' weights.
    """

    corners: Floats
    score: float
    weight: float

    @property
    def box(self) -> Floats:
        return self.corners / self.score


def weighted_box_fusion(
    boxes: Sequence[npt.ArrayLike],
    scores: Sequence[npt.ArrayLike],
    *,
    iou_threshold: float = 0.55,
    weights: Sequence[float] | None = None,
    score_threshold: float = 0.0,
) -> tuple[Floats, Floats]:
    """Fuse the boxes that several models give for one image and one class.

    Boxes of all models are taken by falling score. Each joins the fused box that it overlaps most, when that is by more
    than the threshold, else it starts a new one. A fused box is the mean of its boxes weighted by their scores, and its
    score their mean, times min(T, N)/N for T boxes of N models: what few models see is lowered. Boxes of equal score
    are taken by their corners (xmin first), so that the result does not depend on the order of the models.

    With weights, T and N are sums of weights and the mean of the scores is weighted. The authors' program multiplies
    scores by weights and divides by T, which is the same but where a model with a large weight gives several boxes
    of one cluster: there its scores can pass 1, and these cannot.

    Args:
        boxes: for each model [n, 4], xmin, ymin, xmax, ymax, in any unit.
        scores: for each model [n], 0..1. Boxes with score 0 have no weight and are left out.
        iou_threshold: overlap above which boxes are of one object.
        weights: of the models, positive; None for equal ones.
        score_threshold: boxes with a lower score are left out before the fusion.

    Returns:
        Fused boxes, float64 [m, 4], and scores, float64 [m], highest first.

    Raises:
        InputError: no model, shapes differ, a weight is not positive, or a score is not in 0..1.

    Source:
        Solovyev, Wang & Gabruseva 2021, arXiv:1910.13302, section 3; the authors' program ensemble-boxes for weights.
    """
    corners, ranks, models = _all_boxes(boxes, scores, weights, score_threshold)
    clusters: list[_Cluster] = []
    fused = np.empty((len(ranks), 4))  # box of each cluster, rows beyond the last cluster unused
    for box, score, weight in zip(corners, ranks, models, strict=True):
        overlap = _overlaps(box, fused[: len(clusters)])
        best = int(overlap.argmax()) if len(overlap) else -1
        if best >= 0 and overlap[best] > iou_threshold:
            cluster = clusters[best]
            cluster.corners = cluster.corners + score * box
            cluster.score += score
            cluster.weight += weight
        else:
            best = len(clusters)
            clusters.append(_Cluster(score * box, score, weight))
        fused[best] = clusters[best].box
    everyone = float(len(boxes) if weights is None else math.fsum(weights))
    # Mean score · min(T, N) / N; the mean is Σ score / T, so T cancels where it is the smaller.
    result = np.array([cluster.score / max(cluster.weight, everyone) for cluster in clusters], dtype=np.float64)
    order = _falling(result, fused[: len(clusters)])
    return fused[: len(clusters)][order], result[order]


def _all_boxes(
    boxes: Sequence[npt.ArrayLike],
    scores: Sequence[npt.ArrayLike],
    weights: Sequence[float] | None,
    score_threshold: float,
) -> tuple[Floats, Floats, Floats]:
    """Boxes [n, 4], weighted scores [n] and weights of their models [n]; highest weighted score first."""
    used = [1.0] * len(boxes) if weights is None else [float(weight) for weight in weights]
    if not boxes or len(boxes) != len(scores) or len(boxes) != len(used):
        raise InputError(
            f"box fusion got boxes of {len(boxes)} models, scores of {len(scores)} and {len(used)} weights; "
            "expected the same number, at least one."
        )
    if not all(0 < weight < np.inf for weight in used):
        raise InputError(f"box fusion got the weights {used}, expected positive ones.")
    parts: list[tuple[Any, ...]] = []
    for model, (own, own_scores, weight) in enumerate(zip(boxes, scores, used, strict=True)):
        corners, values = np.asarray(own, dtype=np.float64), np.asarray(own_scores, dtype=np.float64)
        corners = corners.reshape(0, 4) if corners.size == 0 else corners
        if values.ndim != 1 or corners.shape != (len(values), 4):
            raise InputError(f"model {model} has boxes {corners.shape} and scores {values.shape}, not [n, 4] and [n].")
        if not ((values >= 0) & (values <= 1)).all():
            raise InputError(f"model {model} has a score outside of 0..1.")
        kept = (values > 0) & (values >= score_threshold)
        parts.append((corners[kept], weight * values[kept], np.full(int(kept.sum()), weight)))
    corners, ranks, models = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = _falling(ranks, corners, models)
    return corners[order], ranks[order], models[order]


def _falling(scores: Floats, corners: Floats, *further: Floats) -> npt.NDArray[np.intp]:
    """Order by falling score; equal ones by box and then by what is further, so that no order of models matters."""
    order: npt.NDArray[np.intp] = np.lexsort((*reversed(further), *corners.T[::-1], -scores))
    return order


def _overlaps(box: Floats, others: Floats) -> Floats:
    """IoU of one box with others, [n]; 0 for boxes without an area."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.clip(sides, 0, None).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - shared
    result: Floats = np.divide(shared, union, out=np.zeros(len(others)), where=shared > 0)
    return result
