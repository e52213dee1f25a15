"""Students that see a batch in a view each: who answers to which view, and what is learned from it."""

import pytest
import torch
from torch.nn import functional as F

from kdml_med.losses import ClassificationCohortLoss
from kdml_med.losses.distillation import distillation_loss
from kdml_med.losses.mutual import mutual_loss
from kdml_med.networks import build_cohort
from kdml_med.networks.answers import CommitteeAnswer, ViewsAnswer
from tests.networks.tiny import PLAIN, STAGED, TINY

LABELS = torch.tensor([0, 1, 1, 0])
PAIR = {"name": "committee", "members": [PLAIN, TINY]}


def views(count=2, side=16):
    return torch.randn(4, count, 3, side, side, generator=torch.Generator().manual_seed(0))


def cohort(teacher=PLAIN, students=(PLAIN, PLAIN), **settings):
    return build_cohort(teacher=teacher, students=list(students), **settings)


def test_every_student_answers_to_its_view_and_the_teacher_to_all():
    network, image = cohort(), views()
    answers = network(image)
    assert list(answers) == ["teacher", "student_0", "student_1"]
    for number in range(2):
        assert torch.equal(answers[f"student_{number}"], network.networks[f"student_{number}"](image[:, number]))
        assert torch.equal(answers["teacher"].views[number], network.networks["teacher"](image[:, number]))


def test_views_that_are_all_the_same_teach_what_one_view_does():
    network, image = cohort(), views(1)
    alike, one = network(image.expand(-1, 2, -1, -1, -1)), network(image[:, 0])
    terms, wanted = ClassificationCohortLoss()(alike, LABELS), ClassificationCohortLoss()(one, LABELS)
    assert terms.keys() == wanted.keys()
    for name, value in terms.items():
        assert torch.allclose(value, wanted[name]), name


def test_a_student_learns_from_what_the_teacher_says_of_its_own_view():
    network, image = cohort(), views()
    answers = network(image)
    terms = ClassificationCohortLoss(temperature=3.0)(answers, LABELS)
    teacher = network.networks["teacher"]
    said = [teacher(image[:, number]) for number in range(2)]
    tasks = [F.cross_entropy(own, LABELS) for own in said]
    assert torch.allclose(terms["teacher_task"], sum(tasks) / 2)
    for number in range(2):
        own, peer = answers[f"student_{number}"], answers[f"student_{1 - number}"]
        assert torch.allclose(terms[f"student_{number}_kd"], distillation_loss(own, said[number], temperature=3.0))
        assert torch.allclose(terms[f"student_{number}_ml"], mutual_loss(own, [peer], temperature=1.0))
        assert torch.allclose(terms[f"student_{number}_task"], F.cross_entropy(own, LABELS))


def test_a_committee_that_sees_views_learns_from_all_of_them():
    network = cohort(PAIR)
    answers = network(views())
    assert isinstance(answers["teacher"], ViewsAnswer)
    assert all(isinstance(view, CommitteeAnswer) for view in answers["teacher"].views)
    terms = ClassificationCohortLoss()(answers, LABELS)
    tasks = [F.cross_entropy(own, LABELS) for view in answers["teacher"].views for own in view.members]
    assert len(tasks) == 4
    assert torch.allclose(terms["teacher_task"], sum(tasks) / 4)


def test_a_frozen_teacher_answers_to_every_view(tmp_path):
    file = tmp_path / "teacher.pt"
    torch.save(cohort(STAGED).networks["teacher"].state_dict(), file)
    network = cohort(STAGED, (STAGED, STAGED), features=True, teacher_checkpoint=str(file))
    loss = ClassificationCohortLoss(gamma=0.0, teacher_link="both", train_teacher=False)
    terms = loss(network(views()), LABELS)
    assert "teacher_task" not in terms
    terms["loss"].backward()
    assert all(parameter.grad is None for parameter in network.networks["teacher"].parameters())


def test_peers_without_a_teacher_see_views_too():
    network, image = cohort(use_teacher=False), views()
    answers = network(image)
    assert list(answers) == ["student_0", "student_1"]
    assert torch.equal(answers["student_1"], network.networks["student_1"](image[:, 1]))


def test_there_are_as_many_views_as_students():
    with pytest.raises(ValueError, match="zip"):
        cohort()(views(3))
