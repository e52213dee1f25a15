"""Forms of learning from peers, against values worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from kdml_med.bundle.settings import check_settings
from kdml_med.experiments.plan import expand, read_plan
from kdml_med.losses import ClassificationCohortLoss
from tests.benchmarks import peer_variants as variants
from tests.benchmarks.check_precision import PLANS

HALF, SURE = [0.0, 0.0], [0.0, math.log(3.0)]
"""Logits of probabilities 1/2 and 1/2, and 1/4 and 3/4."""
FROM_HALF_TO_SURE = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
"""KL(sure ‖ half), nats."""


def terms_of(loss: ClassificationCohortLoss, **logits: list[list[float]]) -> dict[str, Tensor]:
    said = {name: torch.tensor(values) for name, values in logits.items()}
    return loss(said, torch.tensor([1, 1]))


def test_peers_count_where_the_teacher_is_wrong() -> None:
    loss = variants.WhereTheTeacherIsWrong()
    teacher = [[1.0, 0.0], [0.0, 1.0]]  # wrong, right
    terms = terms_of(loss, teacher=teacher, student_0=[HALF, HALF], student_1=[SURE, SURE])
    assert terms["student_0_ml"].item() == pytest.approx(FROM_HALF_TO_SURE / 2)


def test_peers_count_as_much_as_the_teacher_is_unsure() -> None:
    loss = variants.WhereTheTeacherIsUnsure()
    terms = terms_of(loss, teacher=[HALF, [0.0, 50.0]], student_0=[HALF, HALF], student_1=[SURE, SURE])
    assert terms["student_0_ml"].item() == pytest.approx(FROM_HALF_TO_SURE / 2)


def test_a_peer_counts_where_it_points_as_the_teacher_does() -> None:
    loss = variants.WhereThePeerPointsAsTheTeacher()
    teacher = [[0.0, 2.0], [2.0, 0.0]]  # of a student in the middle the first points up with the peer, the second away
    terms = terms_of(loss, teacher=teacher, student_0=[HALF, HALF], student_1=[SURE, SURE])
    assert terms["student_0_ml"].item() == pytest.approx(FROM_HALF_TO_SURE / 2)


def test_errors_apart_are_rewarded() -> None:
    """Of two students p and q the penalty is (p − m) · (q − m) with their mean m: −2 · (1/8)² for 1/2 and 3/4."""
    said = {"student_0": torch.tensor([HALF]).requires_grad_(), "student_1": torch.tensor([SURE])}
    terms = variants.ErringApart(beta=0)(said, torch.tensor([1]))
    assert terms["student_0_ml"].item() == pytest.approx(-2 / 64)
    terms["student_0_ml"].backward()
    gradient = said["student_0"].grad
    assert gradient is not None
    assert gradient[0, 1] > 0, "a step down goes away from the other student, which is surer of the second class"


def test_the_ensemble_teaches_at_the_temperature_of_the_teacher() -> None:
    """At T = 1 the mean of 1/2 and 3/4 is 5/8."""
    terms = terms_of(variants.EnsembleTeaches(beta=0, temperature=1), student_0=[HALF] * 2, student_1=[SURE] * 2)
    wanted = 0.375 * math.log(0.375 / 0.5) + 0.625 * math.log(0.625 / 0.5)
    assert terms["student_0_ml"].item() == pytest.approx(wanted)


@pytest.mark.parametrize(("epoch", "gamma"), [(1, 0.0), (2, 0.0), (3, 0.5), (4, 0.5)])
def test_peers_come_late(epoch: int, gamma: float) -> None:
    loss = variants.PeersLate(4, gamma=0.5)
    loss.set_epoch(epoch)
    assert loss.weights() == {"alpha": 1.0, "beta": 1.0, "gamma": gamma}


def test_the_plan_tries_eight_forms_on_validation_alone() -> None:
    plan = read_plan(PLANS / "peer_variants.json")
    tried = [arm["name"] for arm in plan.arms if not isinstance(arm, str)]
    assert len(tried) == 8
    assert [dict(settings) for settings in plan.evaluations.values()] == [{"split": "val"}]
    named = {
        cell.settings["loss#_target_"].rpartition(".")[2] for cell in expand(plan) if "loss#_target_" in cell.settings
    }
    place = {"dataset_dir": "data", "run_dir": "run", "device": "cpu", "max_epochs": 3}
    settings = check_settings("classification", "train", place)
    built = [getattr(variants, name)(settings) for name in sorted(named)]
    assert len({type(loss) for loss in built}) == 6
    assert all(isinstance(loss, ClassificationCohortLoss) for loss in built)
