"""Students that read labels of their own patients only, against the loss of those samples alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kdml_med.losses import ClassificationCohortLoss
from kdml_med.losses.cohort import DealtLabels
from kdml_med.losses.distillation import distillation_loss
from kdml_med.losses.mutual import mutual_loss
from tests.examples import examples

NAMES = ("teacher", "student_0", "student_1")


def answers(samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(samples, 2, generator=generator).requires_grad_() for name in NAMES}


def test_a_student_learns_labels_of_its_own_and_the_rest_from_teacher_and_peers():
    said, labels, learners = answers(5), torch.tensor([0, 1, 1, 0, 1]), torch.tensor([0, 1, 0, 0, 1])
    terms = ClassificationCohortLoss(temperature=3.0)(said, DealtLabels(labels, learners))
    assert torch.allclose(terms["teacher_task"], F.cross_entropy(said["teacher"], labels))
    for number in range(2):
        own, peer = said[f"student_{number}"], said[f"student_{1 - number}"]
        mine = learners == number
        assert torch.allclose(terms[f"student_{number}_task"], F.cross_entropy(own[mine], labels[mine]))
        assert torch.allclose(terms[f"student_{number}_kd"], distillation_loss(own, said["teacher"], temperature=3.0))
        assert torch.allclose(terms[f"student_{number}_ml"], mutual_loss(own, [peer], temperature=1.0))


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=8), st.booleans())
@settings(max_examples=examples(50))
def test_labels_of_others_change_nothing(samples, weighted):
    """With weights of classes, too; the gradient of a sample that is not read is that of no label at all."""
    labels, learners = (torch.tensor(column) for column in zip(*samples, strict=True))
    loss = ClassificationCohortLoss(beta=0, gamma=0, class_weights=[1.0, 3.0] if weighted else None)
    said, other = answers(len(samples)), torch.where(learners == 0, labels, 1 - labels)
    terms, again = loss(said, DealtLabels(labels, learners)), loss(said, DealtLabels(other, learners))
    assert terms["student_0_task"] == again["student_0_task"]
    terms["student_0_task"].backward()
    gradient = said["student_0"].grad
    assert bool((gradient[learners == 1] == 0).all())
    mine = learners == 0
    if mine.any():
        weight = torch.tensor([1.0, 3.0]) if weighted else None
        wanted = F.cross_entropy(said["student_0"][mine], labels[mine], weight=weight)
        assert torch.allclose(terms["student_0_task"], wanted)
    else:
        assert terms["student_0_task"] == 0


@pytest.mark.parametrize("class_weights", [None, [0.5, 2.0]])
def test_where_every_label_is_read_nothing_changes(class_weights):
    said, labels = answers(4), torch.tensor([0, 1, 1, 1])
    loss = ClassificationCohortLoss(class_weights=class_weights)
    plain, dealt = loss(said, labels), loss(said, DealtLabels(labels, torch.zeros(4, dtype=torch.int64)))
    assert torch.allclose(plain["student_0_task"], dealt["student_0_task"])
    assert torch.equal(plain["teacher_task"], dealt["teacher_task"])
