"""Settings that a plan cannot train with, said before anything begins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kdml_med.errors import InputError
from kdml_med.experiments.arms import TEACHER_ONLY
from kdml_med.experiments.plan import Plan, expand, make_plan
from tests.experiments.fakes import REPOSITORY

FILES = {"resnet50": "a.pt", "resnet18": "b.pt"}
MISSPELT = {"resnet50": "a.pt", "resnet81": "b.pt"}


def plan(**content: Any) -> Plan:
    base = {"name": "a plan", "bundle": "msi_kdml", "dataset_dir": "data/tiles", "versions": ["edge"], "seeds": [0]}
    return make_plan(base | content)


def arm(settings: dict[str, Any], name: str = "own", **more: Any) -> dict[str, Any]:
    return {"name": name, "settings": settings, **more}


@pytest.mark.parametrize(
    ("settings", "arms", "words"),
    [
        (MISSPELT, ["kdml"], "the plan: initial_weights names 'resnet81'"),
        ({}, ["kdml", arm({"initial_weights": MISSPELT})], "arm 'own': initial_weights names 'resnet81'"),
        (FILES, ["kdml", arm({"initial_weights": MISSPELT})], "arm 'own': initial_weights names 'resnet81'"),
        # The other arm's file is no excuse.
        ({"resnet34": "c.pt"}, ["kdml", arm({"students": ["resnet34"], "initial_weights": {}})], "names 'resnet34'"),
        ({}, ["kdml", arm({"initial_weights": {"student_0": "a.pt"}}, TEACHER_ONLY)], "names 'student_0'"),
        ({}, ["kdml", arm({"initial_weights": {"teacher": "a.pt"}}, like="ml")], "names 'teacher'"),
    ],
)
def test_a_misspelt_name_of_weights_is_refused_wherever_it_stands(
    settings: dict[str, str], arms: list[Any], words: str
) -> None:
    with pytest.raises(InputError) as caught:
        plan(versions=["v1"], settings={"initial_weights": settings}, arms=arms)
    assert words in str(caught.value)
    assert "Known: resnet" in str(caught.value)


def test_arms_may_start_from_files_of_their_own_from_those_of_pip_or_from_nothing() -> None:
    arms = [
        "kdml",
        arm({"initial_weights": None}, "scratch"),
        arm({"initial_weights": "imagenet"}, "other"),
        arm({"initial_weights": {"teacher": "t.pt"}}, TEACHER_ONLY),
        arm({"initial_weights": {"student_1": "s.pt"}}, "half"),
    ]
    cells = expand(plan(versions=["v1"], settings={"initial_weights": FILES}, arms=arms))
    weights = {cell.arm: cell.settings["initial_weights"] for cell in cells}
    assert weights == {
        TEACHER_ONLY: {"student_0": "t.pt"},
        "kdml": FILES,
        "scratch": None,
        "other": "imagenet",
        "half": {"student_1": "s.pt"},
    }


def test_a_file_for_one_of_several_versions_is_enough() -> None:
    assert plan(versions=["v1", "edge"], settings={"initial_weights": FILES | {"mobilenet_v2": "c.pt"}})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"arms": ["kdml", "kdml_own_start"]}, "arm 'kdml_own_start', version 'edge': own_start says what"),
        ({"arms": ["kdml", "kdml_head_start"], "settings": {"max_epochs": 2}}, "teacher_warmup_epochs 2 of max_epochs"),
        ({"settings": {"alpha": 0}, "arms": ["kdml", "ml"]}, "arm 'ml', version 'edge': alpha and beta are 0"),
        ({"arms": ["kdml", arm({"cache_teacher": "disk"})]}, "arm 'own', version 'edge': cache_teacher keeps"),
        ({"arms": ["kdml", arm({"use_teacher": False})]}, "arm 'own', version 'edge': beta is above 0"),
        ({"settings": {"student_views": True}, "arms": ["kdml", "kdml_diverse"]}, "arm 'kdml_diverse'"),
    ],
)
def test_an_arm_that_no_machine_can_train_is_refused(content: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        plan(**content)
    assert str(caught.value).startswith("the plan: arm ")
    assert words in str(caught.value)
    assert "--" not in str(caught.value)


def test_defaults_are_those_of_the_bundle_and_what_it_works_out_is_left_to_it(tmp_path: Path) -> None:
    bundle = tmp_path / "mine"
    shutil.copytree(REPOSITORY / "bundles/msi_kdml/configs", bundle / "configs")
    config = json.loads((bundle / "configs/train.json").read_text())

    def head_start(epochs: Any) -> Any:
        (bundle / "configs/train.json").write_text(json.dumps(config | {"max_epochs": epochs}))
        return plan(bundle=str(bundle), arms=["kdml", "kdml_head_start"])

    assert head_start(3)
    assert head_start("$2 * 5")
    with pytest.raises(InputError, match="teacher_warmup_epochs 2 of max_epochs 2"):
        head_start(2)
