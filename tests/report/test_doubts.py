import math

import pytest

from kdml_med.report.doubts import ALIKE, UNDERFIT, WEAK_TEACHER, training_warnings

GOOD = {"teacher": 0.95, "student_0": 0.92, "student_1": 0.94}
LEARNED = {"student_0": (0.10, 0.30), "student_1": (0.12, 0.28)}


def warnings(scores=GOOD, *, correlation=0.9, losses=LEARNED):
    return training_warnings(scores, figure="tile AUROC", correlation=correlation, losses=losses)


def test_nothing_is_said_of_a_training_that_nothing_is_wrong_with():
    assert warnings() == {}
    assert warnings({"student_0": 0.9}, correlation=math.nan, losses={}) == {}


@pytest.mark.parametrize(("teacher", "weak"), [(0.812, True), (0.8125, True), (0.813, False), (math.nan, False)])
def test_a_teacher_has_to_be_better_than_its_students_are_on_average(teacher, weak):
    found = warnings({"teacher": teacher, "student_0": 0.75, "student_1": 0.875})
    assert list(found) == [WEAK_TEACHER] * weak
    if weak:
        assert f"tile AUROC {teacher:.3f}, students 0.812 on average" in found[WEAK_TEACHER]


@pytest.mark.parametrize(("correlation", "alike"), [(0.98, False), (0.981, True), (1.0, True), (math.nan, False)])
def test_students_that_err_alike_are_told_of(correlation, alike):
    found = warnings(correlation=correlation)
    assert list(found) == [ALIKE] * alike
    if alike:
        assert f"correlation of their errors {correlation:.3f}" in found[ALIKE]


@pytest.mark.parametrize(
    ("losses", "underfit"),
    [
        ({"student_0": (0.40, 0.41), "student_1": (0.40, 0.42)}, True),  # 0.42 would be 1.05 times 0.40
        ({"student_0": (0.40, 0.41), "student_1": (0.40, 0.44)}, False),
        ({"student_0": (0.50, 0.30)}, True),
    ],
    ids=str,
)
def test_losses_that_coincide_mean_that_more_can_be_learned(losses, underfit):
    assert list(warnings(losses=losses)) == [UNDERFIT] * underfit


def test_losses_of_an_easy_task_may_coincide():
    easy = {"teacher": 1.0, "student_0": 0.99, "student_1": 0.99}
    assert warnings(easy, losses={"student_0": (0.02, 0.02)}) == {}
    assert set(warnings(easy | {"student_1": 0.98}, losses={"student_0": (0.02, 0.02)})) == {UNDERFIT}


def test_no_stronger_teacher_is_asked_for_where_the_students_are_at_the_ceiling():
    found = warnings({"teacher": 1.0, "student_0": 1.0, "student_1": 1.0})
    assert list(found) == [WEAK_TEACHER]
    assert "too easy" in found[WEAK_TEACHER]
    assert "stronger" not in found[WEAK_TEACHER]
    assert "take a stronger one" in warnings({"teacher": 0.9, "student_0": 0.98, "student_1": 0.99})[WEAK_TEACHER]


def test_every_sentence_is_one_line():
    found = warnings(
        {"teacher": 0.5, "student_0": 0.6, "student_1": 0.6}, correlation=0.99, losses={"student_0": (0.7, 0.6)}
    )
    assert list(found) == [WEAK_TEACHER, ALIKE, UNDERFIT]
    assert not any("\n" in sentence for sentence in found.values())
