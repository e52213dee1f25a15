"""Several networks that answer as one, such as a teacher that no single network equals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdml_med.networks.anchors import AnchorPredictions
from kdml_med.networks.answers import ClassifierAnswer, CommitteeAnswer


class Committee(nn.Module):
    """Networks that see the same image, and say the mean of what they find.

    In evaluation mode, in which a frozen teacher is too, it answers as one network does, see ``mean_answer``, and can
    stand wherever one can. In training mode it says what each of its members says as well, as each learns by itself:
    members that minimised the loss of their mean would leave to each other what they get wrong, and the mean of
    networks that err differently is what a committee is for.

    Args:
        members: two or more, all classifiers or all detectors with the anchors of ``kdml_med.networks.anchors``.

    Raises:
        ValueError: there are fewer, or one of them is a committee.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if len(members) < 2 or any(isinstance(member, Committee) for member in members):
            raise ValueError("a committee consists of two or more networks, none of which is a committee.")
        self.members = nn.ModuleList(members)

    def forward(self, image: Tensor) -> Any:
        """Run each member once on images [batch, channels, height, width]; see ``combine``."""
        return self.combine([member(image) for member in self.members])

    def combine(self, answers: Sequence[Any]) -> Any:
        """The committee's answer, from those of its members in their order.

        Returns:
            In evaluation mode what ``mean_answer`` gives, in training mode a ``CommitteeAnswer`` with it.
        """
        if not self.training:
            return mean_answer(answers)
        with torch.no_grad():  # others learn from it, nobody through it
            return CommitteeAnswer(mean_answer(answers), tuple(answers))


def mean_answer(answers: Sequence[Any]) -> Any:
    """The mean of what networks say, as if one network had said it.

    Args:
        answers: logits [batch, classes], ``ClassifierAnswer`` or ``AnchorPredictions``, all of one kind.

    Returns:
        The same kind, float32. Logits are those of the mean probability, so that whatever takes logits gets the mean by
        its own softmax, or, anchor by anchor, sigmoid. Deltas of boxes are means anchor by anchor. Feature maps, which
        have no mean, follow each other.
    """
    first = answers[0]
    if isinstance(first, AnchorPredictions):
        deltas = torch.stack([answer.deltas.float() for answer in answers]).mean(dim=0)
        return AnchorPredictions(_mean_sigmoid([answer.logits for answer in answers]), deltas, _all_features(answers))
    if isinstance(first, ClassifierAnswer):
        return ClassifierAnswer(_mean_softmax([answer.logits for answer in answers]), _all_features(answers))
    return _mean_softmax(answers)


def _mean_softmax(logits: Sequence[Tensor]) -> Tensor:
    """Logits whose softmax is the mean of those of others: the logarithm of that mean."""
    return _log_mean([torch.softmax(own.float(), dim=1) for own in logits])


def _mean_sigmoid(logits: Sequence[Tensor]) -> Tensor:
    """Logits whose sigmoid is the mean of those of others, also where that is next to 0 or 1."""
    every = [own.float() for own in logits]
    return _log_mean([torch.sigmoid(own) for own in every]) - _log_mean([torch.sigmoid(-own) for own in every])


def _log_mean(values: Sequence[Tensor]) -> Tensor:
    # Not logsumexp of logarithms, which OpenVINO does not read; of numbers that small nothing is lost.
    return torch.stack(list(values)).mean(dim=0).clamp_min(torch.finfo(torch.float32).tiny).log()


def _all_features(answers: Sequence[Any]) -> tuple[Tensor, ...]:
    return tuple(level for answer in answers for level in answer.features)
