"""Forms of learning from peers that are tried against the usual one; none of them is part of the library.

    PYTHONPATH=. kdml-med compare docs/plans/peer_variants.json --out DIR --jobs 2

at the top of a clone is the search: each arm of the plan names one of the builders below as its loss, or settings that
the library has (labels or views of its own). It is judged on validation crops alone. A form that does better than
distillation without peers there is confirmed once on the test sets, at most one; see docs/results.md.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdml_med.bundle.settings import Settings
from kdml_med.keys import NetworkName
from kdml_med.losses import ClassificationCohortLoss
from kdml_med.losses.distillation import kl_divergence


class _TaughtLoss(ClassificationCohortLoss):
    """A loss whose peers count for some samples more than for others, which the teacher's logits [batch, classes] say.

    The mean is over all samples of the batch, so that what does not count makes the term smaller.
    """

    teacher: Tensor

    def prepare_target(self, predictions: Mapping[str, Any], target: Any) -> Any:
        """Remember the teacher's answer to this batch."""
        self.teacher = predictions[NetworkName.TEACHER].detach()
        return target

    @abstractmethod
    def sample_weights(self, student: Tensor, peer: Tensor, target: Tensor) -> Tensor:
        """How much a peer counts for each sample, [batch], 0 to 1."""

    def peer_loss(self, student: Tensor, peers: Sequence[Tensor], target: Tensor) -> Tensor:
        """The usual divergence, its samples weighed."""
        weights = [self.sample_weights(student.detach(), peer.detach(), target) for peer in peers]
        terms = [(weight * _divergences(peer, student)).mean() for weight, peer in zip(weights, peers, strict=True)]
        return torch.stack(terms).mean()


class WhereTheTeacherIsWrong(_TaughtLoss):
    """Peers count for samples whose class the teacher does not find."""

    def sample_weights(self, student: Tensor, peer: Tensor, target: Tensor) -> Tensor:
        """1 where the most probable class is not the label."""
        return (self.teacher.argmax(dim=1) != target).float()


class WhereTheTeacherIsUnsure(_TaughtLoss):
    """Peers count for a sample as much as the teacher is unsure of it."""

    def sample_weights(self, student: Tensor, peer: Tensor, target: Tensor) -> Tensor:
        """Entropy of the teacher's probabilities, as a share of the largest possible."""
        probabilities = F.softmax(self.teacher.float(), dim=1)
        entropy = -(probabilities * probabilities.clamp(min=1e-12).log()).sum(dim=1)
        return entropy / torch.log(torch.tensor(float(probabilities.shape[1])))


class WhereThePeerPointsAsTheTeacher(_TaughtLoss):
    """A peer counts for samples on which it would move a student the same way as the teacher does.

    With two classes there is no direction beside the teacher's: a peer points along with it or away from it.
    """

    def sample_weights(self, student: Tensor, peer: Tensor, target: Tensor) -> Tensor:
        """1 where the angle between both ways, in log-probabilities, is below 90 degrees."""
        own, said, taught = (F.log_softmax(logits.float(), dim=1) for logits in (student, peer, self.teacher))
        return (((said - own) * (taught - own)).sum(dim=1) > 0).float()


class ErringApart(ClassificationCohortLoss):
    """Students are rewarded for errors that those of the others do not share, in place of agreeing with them.

    Source:
        Negative correlation learning: Liu and Yao 1999, doi:10.1016/S0893-6080(99)00073-8, equation 3, on the
        probability of each class.
    """

    def peer_loss(self, student: Tensor, peers: Sequence[Tensor], target: Tensor) -> Tensor:
        """(p_k − p̄) · Σ (p_j − p̄) over the other students, mean over the batch; gradient for the student only."""
        own = F.softmax(student.float(), dim=1)
        others = [F.softmax(peer.detach().float(), dim=1) for peer in peers]
        mean = (own.detach() + torch.stack(others).sum(dim=0)) / (len(others) + 1)
        return ((own - mean) * (torch.stack(others) - mean).sum(dim=0)).sum(dim=1).mean()


class EnsembleTeaches(ClassificationCohortLoss):
    """The mean of all students' probabilities is a second teacher, at the temperature of the first."""

    def peer_loss(self, student: Tensor, peers: Sequence[Tensor], target: Tensor) -> Tensor:
        """As ``distillation_loss``, from the logarithm of the mean."""
        said = [F.softmax(answer.detach().float(), dim=1) for answer in (student, *peers)]
        together = torch.stack(said).mean(dim=0).clamp(min=1e-12).log()
        return kl_divergence(together, student, temperature=self.temperature)


class PeersLate(ClassificationCohortLoss):
    """Peers count in the second half of the epochs.

    Args:
        epochs: of the training.
        **settings: see ``ClassificationCohortLoss``.
    """

    def __init__(self, epochs: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.first_half = epochs // 2

    def weights(self) -> dict[str, float]:
        """Those of every cohort, gamma in the second half alone."""
        weights = super().weights()
        return weights if self.epoch > self.first_half else weights | {"gamma": 0.0}


def _divergences(target: Tensor, logits: Tensor) -> Tensor:
    """KL of each sample at temperature 1, nats, [batch]."""
    wanted, said = F.log_softmax(target.detach().float(), dim=1), F.log_softmax(logits.float(), dim=1)
    return F.kl_div(said, wanted, reduction="none", log_target=True).sum(dim=1)


def _built(kind: type[ClassificationCohortLoss], settings: Settings, **more: Any) -> ClassificationCohortLoss:
    return kind(train_teacher=not settings["teacher_checkpoint"], **more, **settings.part("loss"))


def where_the_teacher_is_wrong(settings: Settings) -> ClassificationCohortLoss:
    """See ``WhereTheTeacherIsWrong``."""
    return _built(WhereTheTeacherIsWrong, settings)


def where_the_teacher_is_unsure(settings: Settings) -> ClassificationCohortLoss:
    """See ``WhereTheTeacherIsUnsure``."""
    return _built(WhereTheTeacherIsUnsure, settings)


def where_the_peer_points_as_the_teacher(settings: Settings) -> ClassificationCohortLoss:
    """See ``WhereThePeerPointsAsTheTeacher``."""
    return _built(WhereThePeerPointsAsTheTeacher, settings)


def erring_apart(settings: Settings) -> ClassificationCohortLoss:
    """See ``ErringApart``."""
    return _built(ErringApart, settings)


def ensemble_teaches(settings: Settings) -> ClassificationCohortLoss:
    """See ``EnsembleTeaches``."""
    return _built(EnsembleTeaches, settings)


def peers_late(settings: Settings) -> ClassificationCohortLoss:
    """See ``PeersLate``."""
    return _built(PeersLate, settings, epochs=settings["max_epochs"])
