"""Losses of one-stage detectors: labels, and knowledge of a teacher or of peers, anchor by anchor.

Every function works on all anchors of a batch at once, takes images without boxes, and computes in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kdml_med.losses.cohort import LABELS, CohortLoss, Joint
from kdml_med.networks.anchors import (
    AnchorPredictions,
    MatchedAnchors,
    anchor_grid,
    decode_boxes,
    match_anchors,
    overlaps,
)

FOCUS = 2.0
"""Exponent that makes easy anchors count little; gamma of the focal loss, beta of the quality focal loss."""


_TINY_AREA = 1e-9
_TINY_WEIGHT = 1e-6


class PositiveAnchors(NamedTuple):
    """The anchors of a batch that stand for boxes, image by image."""

    place: Tensor
    """int64, [positives]; among all anchors of all images, image by image."""
    anchors: Tensor
    """float32, [positives, 4]."""
    boxes: Tensor
    """float32, [positives, 4]; what they stand for."""


@dataclass(frozen=True)
class DetectionTarget:
    """Ground truth of a batch as all networks see it.

    Attributes:
        matched: what it says about every anchor.
        anchors: float32, [anchors, 4].
        joint: of processes that share the batch, see ``CohortLoss``.
        shared_positives: what they divide a sum over positive anchors by, a scalar; with ``joint`` only.
        unseen_positives: by how much the positive anchors of this batch are fewer than those of a mean batch of its
            update, or more where below 0, a scalar of the mean process; None where it makes an update by itself.
    """

    matched: MatchedAnchors
    anchors: Tensor
    joint: Joint | None = None
    shared_positives: Tensor | None = None
    unseen_positives: Tensor | None = None

    @cached_property
    def positives(self) -> PositiveAnchors:
        """Looked for once for all networks and terms, as a GPU has to be waited for to know how many there are."""
        image, anchor = self.matched.positive.nonzero(as_tuple=True)
        place = image * len(self.anchors) + anchor
        return PositiveAnchors(place, self.anchors[anchor], self.matched.boxes.flatten(0, 1)[place])

    @property
    def divisor(self) -> Tensor | int:
        """Of means over the positive anchors of the batch, at least 1."""
        return max(len(self.positives.place), 1) if self.shared_positives is None else self.shared_positives


def pair_giou(boxes: Tensor, others: Tensor) -> Tensor:
    """Generalised IoU of boxes [n, 4] with their partners [n, 4]: [n], between -1 and 1.

    Source:
        Rezatofighi et al. 2019, arXiv:1902.09630, algorithm 1. MONAI's function stops at NaN, before anyone can say
        which network it comes from.
    """
    shared, union = _shared_and_union(boxes, others)
    low, high = torch.minimum(boxes[:, :2], others[:, :2]), torch.maximum(boxes[:, 2:], others[:, 2:])
    hull = (high - low).prod(dim=1).clamp(min=_TINY_AREA)
    return shared / union.clamp(min=_TINY_AREA) - (hull - union) / hull


def positive_boxes(prediction: AnchorPredictions, target: DetectionTarget) -> Tensor:
    """Decoded boxes of the positive anchors of a batch: [positives, 4]."""
    positives = target.positives
    return decode_boxes(prediction.deltas.flatten(0, 1).index_select(0, positives.place), positives.anchors)


def quality_focal_loss(prediction: AnchorPredictions, target: DetectionTarget) -> Tensor:
    """Classification of anchors, where a positive one should score as high as its box is good.

    The target of a positive anchor is the IoU of its decoded box with the ground truth (detached), so that scores rank
    boxes by how well they lie; that of all others is 0.

    Returns:
        Scalar, nats, sum over anchors divided by the number of positive ones (at least 1).

    Source:
        Li et al. 2020, Generalized Focal Loss, arXiv:2006.04388, equation 1.
    """
    positives = target.positives
    logits = prediction.logits.float().flatten()
    with torch.no_grad():
        overlap = overlaps(positive_boxes(prediction, target), positives.boxes)
        quality = torch.zeros_like(logits).index_copy(0, positives.place, overlap)
    entropy = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    distance = (torch.sigmoid(logits) - quality).abs().pow(FOCUS)
    return (distance * entropy).sum() / target.divisor


def box_loss(prediction: AnchorPredictions, target: DetectionTarget) -> Tensor:
    """Mean of 1 - GIoU over positive anchors, between 0 and 2; 0 without any.

    Source:
        Rezatofighi et al. 2019, arXiv:1902.09630.
    """
    return _mean(1 - _giou(positive_boxes(prediction, target), target), target)


def anchor_divergence(
    student: AnchorPredictions, source: AnchorPredictions, target: DetectionTarget, *, temperature: float
) -> Tensor:
    """KL between the foreground probabilities of anchors, averaged over the anchors that matter.

    KL(Bernoulli(σ(s / T)) ‖ Bernoulli(σ(z / T))) · T², s the logit to learn from and z the student's. An anchor weighs
    1 where it is positive, elsewhere as much as the higher one of the two probabilities of foreground: thousands of
    anchors on which both see background would otherwise drown the few that tell something.

    Where batches make an update together, positive anchors are counted in all of them, while those that are not
    positive are taken to weigh as much in the others as in this one: the others' answers are not there yet.

    Args:
        student: gradient flows to its logits.
        source: teacher or peer; detached here.
        target: says which anchors are positive.
        temperature: softening T > 0, dimensionless.

    Returns:
        Scalar, nats.

    Raises:
        ValueError: temperature is not positive, or the shapes differ.

    Source:
        The weighting is ours; Chen et al. 2017 (NIPS, Learning Efficient Object Detection Models with Knowledge
        Distillation) weight classes for the same reason.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}.")
    if student.logits.shape != source.logits.shape:
        raise ValueError(f"shapes differ: source {tuple(source.logits.shape)}, student {tuple(student.logits.shape)}.")
    logits, wanted = student.logits.float(), source.logits.detach().float()
    probability = torch.sigmoid(wanted / temperature)
    divergence = probability * (F.logsigmoid(wanted / temperature) - F.logsigmoid(logits / temperature))
    divergence = divergence + (1 - probability) * (
        F.logsigmoid(-wanted / temperature) - F.logsigmoid(-logits / temperature)
    )
    weight = torch.maximum(torch.sigmoid(wanted), torch.sigmoid(logits.detach()))
    weight = torch.where(target.matched.positive.unsqueeze(-1), torch.ones_like(weight), weight)
    whole = weight.sum()
    divisor = whole.clamp(min=_TINY_WEIGHT) if target.joint is None else target.joint.divisor(whole, _TINY_WEIGHT)
    if target.unseen_positives is not None:
        divisor = (divisor + target.unseen_positives).clamp(min=_TINY_WEIGHT)
    return (weight * divergence).sum() / divisor * temperature**2


def bounded_box_loss(
    student: AnchorPredictions, source: AnchorPredictions, target: DetectionTarget, *, margin: float = 0.0
) -> Tensor:
    """Box error of the student on the positive anchors where it is worse than its teacher or peer.

    The error is 1 - GIoU to the ground truth. Where the student's plus ``margin`` is not above the other's, it has
    nothing to learn there and the term is 0.

    Returns:
        Scalar, mean over all positive anchors of the batch; 0 without any.

    Source:
        Teacher-bounded regression: Chen et al. 2017 (NIPS, Learning Efficient Object Detection Models with Knowledge
        Distillation), equation 4, with GIoU in place of the squared distance.
    """
    error = 1 - _giou(positive_boxes(student, target), target)
    with torch.no_grad():
        bound = 1 - _giou(positive_boxes(source, target), target)
    return _mean(torch.where(error.detach() + margin > bound, error, torch.zeros_like(error)), target)


class DetectionCohortLoss(CohortLoss):
    """Cohort loss for detectors that share their anchors.

        task(z, y) = quality focal loss + box_weight · (1 - GIoU)
        kd(z_k, z_t) = anchor divergence at T + box_weight · teacher-bounded box loss
        ml(z_k, z_j) = the same at T_p, mean over the peers

    kd and ml are those of links by predictions. Predictions are ``AnchorPredictions``, whose pyramids are the feature
    maps; the target is the image size and one tensor of boxes [n, 4] for each image, which are matched to anchors once
    for all networks.

    Args:
        box_weight: of box terms against classification terms.
        margin: see ``bounded_box_loss``.
        **settings: see ``CohortLoss``.

    Raises:
        ValueError: a weight is negative, or see ``CohortLoss``.
    """

    terms_are_joint: ClassVar[bool] = True

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        *,
        box_weight: float = 2.0,
        margin: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(alpha, beta, gamma, **settings)
        for name, value in {"box_weight": box_weight, "margin": margin}.items():
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}.")
        self.box_weight, self.margin = box_weight, margin

    def prepare_target(self, predictions: Mapping[str, AnchorPredictions], target: Any) -> DetectionTarget:
        """Match the boxes to anchors, once for all networks.

        Raises:
            ValueError: a network has more than one class.
        """
        for name, prediction in predictions.items():
            if prediction.logits.shape[-1] != 1:
                raise ValueError(
                    f"{name} has {prediction.logits.shape[-1]} classes; detectors are trained for one class against "
                    "background: set num_classes to 1."
                )
        boxes, (height, width) = target
        anchors, _ = anchor_grid(height, width, boxes[0].device)
        matched = match_anchors(boxes, height, width)
        if self.joint is None:
            return DetectionTarget(matched, anchors)
        positives = matched.positive.sum().float()
        shared, unseen = self.joint.divisor(positives, self.least_weight, LABELS), None
        if self.joint.foresees:
            unseen = self.joint.divisor(positives, 0.0, LABELS) - self.joint.divisor(positives, 0.0)
        return DetectionTarget(matched, anchors, self.joint, shared, unseen)

    def task_weight(self, target: DetectionTarget, samples: int) -> Tensor:
        """Number of positive anchors."""
        return target.matched.positive.sum().float()

    def label_sums(self, target: Any) -> dict[str, Tensor]:
        """Number of positive anchors."""
        boxes, (height, width) = target
        return {LABELS: match_anchors(boxes, height, width).positive.sum()}

    def task_loss(self, prediction: AnchorPredictions, target: DetectionTarget) -> Tensor:
        """Classification and boxes against the labels."""
        with torch.autocast(prediction.logits.device.type, enabled=False):
            return quality_focal_loss(prediction, target) + self.box_weight * box_loss(prediction, target)

    def teacher_loss(self, student: AnchorPredictions, teacher: AnchorPredictions, target: DetectionTarget) -> Tensor:
        """What a student can learn from the teacher's scores and boxes."""
        return self._imitation(student, teacher, target, self.temperature)

    def peer_loss(
        self, student: AnchorPredictions, peers: Sequence[AnchorPredictions], target: DetectionTarget
    ) -> Tensor:
        """What a student can learn from its peers' scores and boxes."""
        terms = [self._imitation(student, peer, target, self.peer_temperature) for peer in peers]
        return torch.stack(terms).mean()

    def feature_maps(self, prediction: AnchorPredictions) -> Sequence[Tensor]:
        """Levels of the pyramid."""
        return prediction.features

    def _imitation(
        self, student: AnchorPredictions, source: AnchorPredictions, target: DetectionTarget, temperature: float
    ) -> Tensor:
        with torch.autocast(student.logits.device.type, enabled=False):
            loss = anchor_divergence(student, source, target, temperature=temperature)
            return loss + self.box_weight * bounded_box_loss(student, source, target, margin=self.margin)


def _giou(boxes: Tensor, target: DetectionTarget) -> Tensor:
    return pair_giou(boxes, target.positives.boxes)


def _shared_and_union(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    low, high = torch.maximum(boxes[:, :2], others[:, :2]), torch.minimum(boxes[:, 2:], others[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=1)
    areas = [(part[:, 2:] - part[:, :2]).prod(dim=1) for part in (boxes, others)]
    return shared, areas[0] + areas[1] - shared


def _mean(values: Tensor, target: DetectionTarget) -> Tensor:
    """Mean over the positive anchors of the batch; 0 without any, with a gradient, for which DDP waits."""
    return values.sum() / target.divisor
