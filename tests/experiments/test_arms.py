"""What makes an arm, and what it takes of the settings of a plan."""

from __future__ import annotations

from typing import Any

import pytest

from kdml_med.errors import InputError
from kdml_med.experiments.arms import ARMS, TEACHER_ONLY, arm_settings
from kdml_med.experiments.plan import Cell, expand, make_plan
from kdml_med.networks.registry import CohortSpec

STRONG = ("kd_strong", "kd_offline_strong")


def cells_of(arms: list[Any], settings: dict[str, Any]) -> dict[str, Cell]:
    """Cells by arm of a plan with one version and seed."""
    content = {"name": "a plan", "bundle": "msi_kdml", "dataset_dir": "data/tiles", "versions": ["edge"], "seeds": [0]}
    return {cell.arm: cell for cell in expand(make_plan(content | {"arms": arms, "settings": settings}))}


def test_a_head_start_is_of_teachers_that_learn_along() -> None:
    spec, head = CohortSpec("t", ("a", "b")), {"teacher_warmup_epochs": 3}
    assert arm_settings(ARMS["kdml"], spec, head)["teacher_warmup_epochs"] == 3
    assert "teacher_warmup_epochs" not in arm_settings(ARMS["kd_offline"], spec, head)


@pytest.mark.parametrize(("count", "expected"), [(1, "a"), (2, "ab"), (3, "aba"), (5, "ababa")])
def test_students_of_the_version_take_turns(count: int, expected: str) -> None:
    settings = arm_settings(ARMS["kdml"], CohortSpec("t", ("a", "b")), {"number_of_students": count})
    assert settings == {"students": list(expected)}


@pytest.mark.parametrize("name", ["teacher_link", "peer_link"])
def test_links_take_turns_over_the_students(name: str) -> None:
    links = {name: ["predictions", "features"], "number_of_students": 3}
    settings = arm_settings(ARMS["kdml"], CohortSpec("t", ("a", "b")), links)
    assert settings[name] == ["predictions", "features", "predictions"]


def test_a_version_without_a_teacher_trains_none_alone() -> None:
    peers = CohortSpec(None, ("a", "b"))
    assert arm_settings(ARMS["ml"], peers, {}) == {"beta": 0.0}
    with pytest.raises(InputError, match="no teacher that could be trained"):
        arm_settings(ARMS[TEACHER_ONLY], peers, {})


def test_a_committee_alone_starts_from_the_weights_that_its_members_have_in_a_cohort():
    spec = CohortSpec({"name": "committee", "members": ["mobilenet_v2", "resnet18"]}, ("resnet10",))
    weights = {"teacher_0": "a.pt", "resnet18": "b.pt", "student_0": "c.pt", "resnet34": "d.pt"}
    alone = arm_settings(ARMS[TEACHER_ONLY], spec, {"initial_weights": weights})
    assert alone["students"] == [{**spec.teacher, "stream": "teacher"}]
    assert alone["initial_weights"] == {"student_0_0": "a.pt", "resnet18": "b.pt"}
    together = arm_settings(ARMS["kdml"], spec, {"initial_weights": weights})
    assert together["initial_weights"] == {"teacher_0": "a.pt", "resnet18": "b.pt", "student_0": "c.pt"}
    peers = arm_settings(ARMS["ml"], spec, {"initial_weights": weights})
    assert peers["initial_weights"] == {"student_0": "c.pt"}


@pytest.mark.parametrize(
    ("weights", "beta"),
    [({}, 2.0), ({"beta": 0.5}, 1.5), ({"gamma": 3}, 4.0), ({"beta": 0.1, "gamma": 0.2}, 0.3), ({"gamma": 0}, 1.0)],
)
def test_what_peers_weigh_in_the_plan_goes_to_the_teacher_of_a_strong_arm(
    weights: dict[str, float], beta: float
) -> None:
    cells = cells_of(["kdml", *STRONG], weights)
    for arm in STRONG:
        assert cells[arm].settings == {"beta": beta, "gamma": 0.0}


def test_the_weight_that_a_strong_arm_is_given_is_its_own() -> None:
    cells = cells_of(["kdml", {"name": "kd_strong", "settings": {"beta": 5}}], {"beta": 0.5})
    assert cells["kd_strong"].settings["beta"] == 5


def test_answers_are_kept_of_frozen_teachers_alone() -> None:
    arms = ["kdml", "kd_offline", TEACHER_ONLY, "ml"]
    cells = cells_of(arms, {"cache_teacher": "disk"})
    assert [arm for arm, cell in cells.items() if "cache_teacher" in cell.settings] == ["kd_offline"]
    # Finished cells have a setting that says the default in their records.
    cells = cells_of(arms, {"cache_teacher": "none"})
    assert all(cell.settings["cache_teacher"] == "none" for cell in cells.values())
