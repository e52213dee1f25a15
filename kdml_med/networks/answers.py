"""What networks say in training, where more is learned from than what they say in use."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class ClassifierAnswer(NamedTuple):
    """Logits of one classifier and the maps that led to them, where feature maps are learned from as well."""

    logits: Tensor
    """float, [batch, classes]; before the softmax."""
    features: tuple[Tensor, ...]
    """float, [batch, channels, height, width], from the finest to the coarsest; the strides are those of the cohort. Of
    a committee those of its first member, then those of the next one, and so on."""


class CommitteeAnswer(NamedTuple):
    """What a committee says while it learns, see ``kdml_med.networks.committee``.

    Or a teacher whose average answers to students, see ``Cohort.spokesman``: then ``mean`` is what that says.
    """

    mean: Any
    """What others learn from, as one network would say it: no gradient flows."""
    members: tuple[Any, ...]
    """What its members say, each of which learns by itself."""


class ViewsAnswer(NamedTuple):
    """What a teacher says where every student sees the samples of a batch in a view of its own."""

    views: tuple[Any, ...]
    """Its answer to the view of each student, in their order."""


def common_answer(answer: Any, student: int = 0) -> Any:
    """What others learn from: the answer of one network, or that of a committee as a whole.

    Args:
        answer: of a network in training.
        student: number of the one that learns, whose view counts.
    """
    if isinstance(answer, ViewsAnswer):
        return common_answer(answer.views[student])
    return answer.mean if isinstance(answer, CommitteeAnswer) else answer


def own_answers(answer: Any) -> tuple[Any, ...]:
    """What learns: the answer of one network, or those of the members of a committee; to every view."""
    if isinstance(answer, ViewsAnswer):
        return tuple(own for view in answer.views for own in own_answers(view))
    return answer.members if isinstance(answer, CommitteeAnswer) else (answer,)
