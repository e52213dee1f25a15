"""The loss of a cohort of classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from kdml_med.keys import NetworkName
from kdml_med.losses.cohort import LABELS, CohortLoss, DealtLabels, Joint, OwnLabels
from kdml_med.losses.distillation import distillation_loss
from kdml_med.losses.mutual import mutual_loss
from kdml_med.networks.answers import ClassifierAnswer


class ClassificationCohortLoss(CohortLoss):
    """Cohort loss for classifiers.

        task(z, y) = CE(z, y)
        kd(z_k, z_t) = T² · KL(σ(z_t / T) ‖ σ(z_k / T))
        ml(z_k, z_j) = T_p² / (K - 1) · Σ_{j≠k} KL(σ(z_j / T_p) ‖ σ(z_k / T_p))

    kd and ml are those of links by predictions, in nats. Predictions are logits [batch, classes], or a
    ``ClassifierAnswer`` where a link needs its feature maps; the target is int64 [batch], or ``DealtLabels``.

    Args:
        class_weights: weight of each class in the cross-entropy, for uneven classes; None for equal weights.
        **settings: see ``CohortLoss``.
    """

    least_weight: ClassVar[float] = 1e-6
    """Of the samples of a batch together, so that one in which a student reads no label is divided by something."""

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        *,
        class_weights: list[float] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(alpha, beta, gamma, **settings)
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights)
        self.class_weights: Tensor | None

    def task_loss(self, prediction: Tensor | ClassifierAnswer, target: Tensor | OwnLabels) -> Tensor:
        """Cross-entropy, mean over the batch; of ``OwnLabels`` over the samples whose labels are read."""
        logits = _logits(prediction)
        labels = target.labels if isinstance(target, OwnLabels) else target
        with torch.autocast(logits.device.type, enabled=False):
            weights = self._sample_weights(target) if self.joint is not None or labels is not target else None
            if weights is None:
                return F.cross_entropy(logits.float(), labels, weight=self.class_weights)
            # By hand, as torch's mean of samples without any weight is no number.
            loss = F.cross_entropy(logits.float(), labels, reduction="none")
            return (loss * weights).sum() / weights.sum().clamp(min=self.least_weight)

    def task_share(self, target: Tensor | OwnLabels, joint: Joint) -> Tensor:
        """That of the samples' weights."""
        weights = self._sample_weights(target)
        if weights is None:
            return joint.share
        weight = weights.sum()
        name = target.reader if isinstance(target, OwnLabels) else LABELS
        return weight / joint.divisor(weight, self.least_weight, name)

    def task_weight(self, target: Tensor | OwnLabels, samples: int) -> Tensor:
        """Weights of the samples' classes together; without weights their number."""
        weights = self._sample_weights(target)
        return super().task_weight(target, samples) if weights is None else weights.sum()

    def label_sums(self, target: Tensor | DealtLabels) -> dict[str, Tensor]:
        """Weights of the samples: of all of them, and of those that each student reads."""
        if not isinstance(target, DealtLabels):
            weights = self._sample_weights(target)
            return {} if weights is None else {LABELS: weights.sum()}
        sums = self.label_sums(target.labels)
        for number in range(int(target.learners.max()) + 1):
            own = OwnLabels(target.labels, target.learners == number, NetworkName.student(number))
            sums[own.reader] = self.task_weight(own, len(own.labels))
        return sums

    def _sample_weights(self, target: Tensor | OwnLabels) -> Tensor | None:
        """What each sample counts, float32 [batch]; None where all count the same."""
        if isinstance(target, OwnLabels):
            weights = self._sample_weights(target.labels)
            return target.read.float() if weights is None else weights * target.read
        return None if self.class_weights is None else self.class_weights.to(target.device)[target]

    def teacher_loss(
        self, student: Tensor | ClassifierAnswer, teacher: Tensor | ClassifierAnswer, target: Tensor
    ) -> Tensor:
        """See ``distillation_loss``."""
        return distillation_loss(_logits(student), _logits(teacher), temperature=self.temperature)

    def peer_loss(
        self, student: Tensor | ClassifierAnswer, peers: Sequence[Tensor | ClassifierAnswer], target: Tensor
    ) -> Tensor:
        """See ``mutual_loss``."""
        return mutual_loss(_logits(student), [_logits(peer) for peer in peers], temperature=self.peer_temperature)

    def feature_maps(self, prediction: Tensor | ClassifierAnswer) -> Sequence[Tensor]:
        """Those of the strides that all networks of the cohort have."""
        return prediction.features if isinstance(prediction, ClassifierAnswer) else ()


def _logits(prediction: Tensor | ClassifierAnswer) -> Tensor:
    return prediction.logits if isinstance(prediction, ClassifierAnswer) else prediction
