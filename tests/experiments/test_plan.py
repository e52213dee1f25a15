"""Plan files: what they expand to, and that every refusal says what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdml_med.errors import InputError
from kdml_med.experiments.arms import ARMS, PAPER_ARMS, TEACHER_ONLY
from kdml_med.experiments.plan import Cell, Plan, expand, make_plan, named_arms, plan_content, read_plan

BASE: dict[str, Any] = {
    "name": "a plan",
    "bundle": "bundles/msi_kdml",
    "dataset_dir": "data/tiles",
    "versions": ["edge"],
    "seeds": [0],
}


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[2])


def plan(**content: Any) -> Plan:
    return make_plan(BASE | content)


def test_bundles_of_the_package_go_by_their_name_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert plan(bundle="msi_kdml").task == "classification"
    assert plan(bundle="polyp_kdml").task == "detection"
    with pytest.raises(InputError, match=r"bundle 'msi_kdlm' has no configs/train\.json"):
        plan(bundle="msi_kdlm")


def test_a_stored_plan_knows_a_bundle_of_the_package_by_its_name_in_every_environment(tmp_path: Path) -> None:
    content = plan_content(plan(bundle="msi_kdml"))
    assert content["bundle"] == "msi_kdml"
    # What earlier versions stored, of an environment that is gone.
    gone = tmp_path / "lib/python3.11/site-packages/kdml_med/bundles/msi_kdml"
    again = make_plan(content | {"bundle": str(gone)}, stored=True)
    assert again == make_plan(content)
    assert again.bundle_folder == Path.cwd() / "bundles/msi_kdml"
    for other in ("mine/msi_kdml", "bundles/mine"):
        with pytest.raises(InputError, match=r"has no configs/train\.json"):
            make_plan(content | {"bundle": str(tmp_path / other)}, stored=True)


def test_a_stored_plan_of_a_clone_can_be_read_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = plan_content(plan(bundle="bundles/msi_kdml"))
    assert content["bundle"] == "bundles/msi_kdml"
    monkeypatch.chdir(tmp_path)
    assert make_plan(content, stored=True).task == "classification"
    with pytest.raises(InputError, match=r"has no configs/train\.json"):
        make_plan(content)


def test_a_stored_plan_with_arms_that_failed_can_be_read() -> None:
    content = {"arms": ["kdml", "kdml_own_start"], "folds": [1], "evaluations": {"test": {"fold": 0, "split": "val"}}}
    again = make_plan(BASE | content, stored=True)
    assert [cell.arm for cell in expand(again)] == ["kdml", "kdml_own_start"]
    assert again.evaluations == {"test": {"split": "val"}}, "each training is tested on its own fold"


def cells_of(**content: Any) -> dict[str, Cell]:
    """Cells by arm of a plan with one version, seed and fold."""
    return {cell.arm: cell for cell in expand(plan(**content))}


REFUSALS: list[tuple[dict[str, Any], list[str]]] = [
    ({"verions": ["edge"]}, ["unknown key 'verions'", "Did you mean 'versions'?", "Known: name, bundle"]),
    ({"name": 5}, ["name is 5, expected a text"]),
    ({"bundle": None}, ["bundle is None, expected a text"]),
    ({"bundle": "bundles/msi"}, ["bundle 'bundles/msi' has no configs/train.json", f"start at {Path.cwd()}"]),
    ({"settings": [1]}, ["settings is [1], expected an object"]),
    ({"threads": 0}, ["threads is 0, expected a whole number from 1"]),
    ({"threads": True}, ["threads is True"]),
    ({"keep_checkpoints": "no"}, ["keep_checkpoints is 'no', expected true or false"]),
    ({"metric": 1}, ["metric is 1, expected a text"]),
    ({"metric": "ap50"}, ["metric 'ap50'", "auroc, tile_auroc"]),
    ({"versions": "edge"}, ["versions is 'edge', expected a list"]),
    ({"versions": []}, ["versions is [], expected a list that is not empty"]),
    ({"versions": ["edge", "edge"]}, ["expected names that are all different"]),
    ({"settings": {"experiment_name": "mine"}}, ["'experiment_name' is no setting of a plan"]),
    ({"versions": [["edge"]]}, ["expected names that are all different"]),
    ({"versions": ["egde"]}, ["the plan: unknown version 'egde'", "Did you mean 'edge'?"]),
    ({"arms": {}}, ["arms is {}, expected a list"]),
    ({"arms": ["kdlm"]}, ["unknown arm 'kdlm'", "Did you mean 'kdml'?", "Known: teacher_only"]),
    ({"arms": ["kdml", "kdml"]}, ["arm 'kdml' occurs twice"]),
    ({"arms": ["kdml", {"name": "kdml"}]}, ["arm 'kdml' occurs twice"]),
    ({"arms": [5]}, ["arm 5: expected a name, or an object with name, like and settings"]),
    ({"arms": [{"like": "ml"}]}, ["expected a name, or an object"]),
    ({"arms": [{"name": "x", "lik": "ml"}]}, ["expected a name, or an object"]),
    ({"arms": [{"name": 5}]}, ["expected a name, or an object"]),
    ({"arms": [{"name": "x", "settings": 5}]}, ["expected a name, or an object"]),
    ({"arms": [{"name": "x", "like": "mll"}]}, ["unknown arm 'mll'", "Did you mean 'ml'?"]),
    ({"arms": [{"name": "a/b"}]}, ["arm name 'a/b'", "it becomes a folder"]),
    ({"arms": [{"name": ".."}]}, ["arm name '..'", "no dot in front"]),
    ({"arms": [{"name": "x" * 101}]}, ["at most 100 letters"]),
    ({"arms": [{"name": "teacher_only", "like": "kdml"}]}, ["'teacher_only' is built in"]),
    (
        {"arms": ["kdml", {"name": "x", "like": "kd_offline", "settings": {"teacher": "resnet34"}}]},
        ["arm 'x' takes the teacher of teacher_only"],
    ),
    ({"reference": "kd_onlin", "arms": PAPER_ARMS}, ["reference 'kd_onlin' is none of", "Did you mean 'kd_online'?"]),
    ({"arms": ["ml"]}, ["reference 'kdml' is none of the arms ml"]),
    ({"seeds": []}, ["seeds is []"]),
    ({"seeds": 3}, ["seeds is 3, expected a list"]),
    ({"seeds": [0, 0]}, ["all different"]),
    ({"seeds": [True]}, ["expected whole numbers from 0"]),
    ({"seeds": [-1]}, ["expected whole numbers from 0"]),
    ({"seeds": ["0"]}, ["expected whole numbers from 0"]),
    ({"folds": []}, ["folds is [], expected a list"]),
    ({"folds": [0.0]}, ["folds is [0.0], expected whole numbers"]),
    ({"settings": {"learning_rat": 0.1}}, ["unknown setting 'learning_rat'", "Did you mean 'learning_rate'?"]),
    ({"settings": {"number_of_student": 3}}, ["Did you mean 'number_of_students'?"]),
    ({"settings": {"fold": 1}}, ["'fold' is no setting of a plan; it is set for each training"]),
    ({"settings": {"seed": 1}}, ["'seed' is no setting of a plan"]),
    ({"settings": {"config_file": "x"}}, ["'config_file' is no setting of a plan"]),
    ({"settings": {"balance": "false"}}, ["setting 'balance' is the text 'false': write false without quotes"]),
    ({"settings": {"students": 5}}, ["students is 5, expected"]),
    ({"settings": {"students": "resnet18"}}, ["students is 'resnet18', expected"]),
    ({"settings": {"teacher": 5}}, ["teacher is 5, expected"]),
    ({"settings": {"teacher": ["a"]}}, ["teacher is ['a'], expected"]),
    ({"settings": {"learning_rate": "0.1"}}, ["setting 'learning_rate' is the text '0.1': write 0.1 without quotes"]),
    ({"arms": ["kdml", {"name": "x", "settings": {"batch_size": 0}}]}, ["the plan: batch_size is 0, expected"]),
    ({"evaluations": {"test": {"split": "tets"}}}, ["the plan: split is 'tets', expected"]),
    ({"evaluations": {"test": {"batch_size": 0}}}, ["the plan: batch_size is 0, expected"]),
    ({"settings": {"number_of_students": 0}}, ["the plan: number_of_students is 0, expected a whole number from 1"]),
    ({"settings": {"number_of_students": True}}, ["number_of_students is True"]),
    ({"settings": {"number_of_students": 1.5}}, ["number_of_students is 1.5"]),
    ({"settings": {"students": []}}, ["the plan: students is [], expected a list of networks"]),
    ({"arms": ["kdml", {"name": "x", "settings": {"bta": 1}}]}, ["unknown setting 'bta'", "Did you mean 'beta'?"]),
    ({"sweeps": {"beta": [1]}}, ["sweeps is {'beta': [1]}, expected a list"]),
    ({"sweeps": ["beta"]}, ["sweep 'beta': expected such as"]),
    ({"sweeps": [{"arm": ["kdml"], "beta": [1]}]}, ["expected such as"]),
    ({"sweeps": [{"arm": "kdml"}]}, ["a sweep without a setting"]),
    ({"sweeps": [{"beta": []}]}, ["sweep over 'beta': [], expected a list of values"]),
    ({"sweeps": [{"beta": 2}]}, ["sweep over 'beta': 2, expected a list of values"]),
    ({"sweeps": [{"arm": "ml_", "beta": [1]}]}, ["unknown arm 'ml_'", "Did you mean 'ml'?"]),
    ({"sweeps": [{"bta": [1]}]}, ["unknown setting 'bta'", "Did you mean 'beta'?"]),
    ({"sweeps": [{"beta": [1, 1]}]}, ["arm 'kdml_beta=1' occurs twice"]),
    ({"sweeps": [{"initial_weights": ["weights/a.pt"]}]}, ["gives no name for a folder", "Write it as an arm"]),
    ({"sweeps": [{"students": [[{"name": "resnet18"}]]}]}, ["gives no name for a folder", '"settings": {"students"']),
    ({"endpoints": []}, ["endpoints is [], expected a list"]),
    ({"endpoints": "ensemble"}, ["endpoints is 'ensemble', expected a list"]),
    ({"endpoints": ["ensembel"]}, ["unknown endpoint 'ensembel'", "Did you mean 'ensemble'?", "students_tile_brier"]),
    ({"endpoints": [["ensemble"]]}, ["unknown endpoint ['ensemble']"]),
    ({"endpoints": ["ensemble", "ensemble_auroc"]}, ["endpoint 'ensemble_auroc' is there twice"]),
    ({"bundle": "bundles/polyp_kdml", "endpoints": ["ensemble_brier"]}, ["unknown endpoint 'ensemble_brier'"]),
    ({"contrasts": "ml"}, ["contrasts is 'ml', expected a list"]),
    ({"contrasts": [["ml"]]}, ["contrast ['ml']: expected two arms"]),
    ({"contrasts": [["ml", "kd"]]}, ["contrast ['ml', 'kd']: 'kd' is none of the arms teacher_only"]),
    ({"contrasts": [["ml", "ml"]]}, ["expected two different arms"]),
    ({"contrasts": [["ml", "independent"], ["independent", "ml"]]}, ["each pair once"]),
    ({"contrasts": [["ml", "kdml"]]}, ["'kdml' is compared with all arms anyhow"]),
    ({"evaluations": {}}, ["evaluations is empty"]),
    ({"evaluations": ["test"]}, ["evaluations is ['test'], expected an object"]),
    ({"evaluations": {"test": "test"}}, ["evaluation 'test' is 'test', expected such as"]),
    ({"evaluations": {"a/b": {}}}, ["evaluation name 'a/b'", "it becomes a folder"]),
    ({"evaluations": {"test": {"splt": "test"}}}, ["unknown setting 'splt'", "Did you mean 'split'?"]),
    ({"evaluations": {"test": {"output_dir": "x"}}}, ["'output_dir' is no setting of a plan"]),
    ({"folds": [0, 1], "evaluations": {"test": {"fold": 0}}}, ["evaluation 'test' names fold 0", "leave 'fold' out"]),
]


@pytest.mark.parametrize(("content", "words"), REFUSALS, ids=lambda value: json.dumps(value)[:60])
def test_what_is_wrong_in_a_plan_is_said(content: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        plan(**content)
    message = str(caught.value)
    assert message.startswith("the plan")
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize("key", ["name", "bundle", "dataset_dir", "versions"])
def test_what_a_plan_lacks_is_named(key: str) -> None:
    with pytest.raises(InputError, match=f"the plan lacks {key}"):
        make_plan({name: value for name, value in BASE.items() if name != key})


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "is not JSON"), ("[1]", "holds a list, expected an object"), ('{"nam": 1}', "Did you mean 'name'?")],
)
def test_a_broken_plan_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_plan(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


def test_a_missing_plan_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"plan file .*nothing\.json does not exist"):
        read_plan(tmp_path / "nothing.json")


def test_a_plan_started_elsewhere_says_where_paths_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(BASE))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"relative paths start at {tmp_path}"):
        read_plan(path)


def test_a_bundle_that_trains_no_cohort_is_refused(tmp_path: Path) -> None:
    configs = tmp_path / "other" / "configs"
    configs.mkdir(parents=True)
    for name in ("train.json", "evaluate.json", "metadata.json"):
        (configs / name).write_text("{}")
    with pytest.raises(InputError, match="has no network_def"):
        plan(bundle=str(tmp_path / "other"))
    (configs / "train.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        plan(bundle=str(tmp_path / "other"))


def test_every_plan_of_the_project_is_sound() -> None:
    for path in Path("docs/plans").glob("*.json"):
        assert expand(read_plan(path)), path


def test_a_plan_survives_being_stored() -> None:
    made = plan(arms=[*PAPER_ARMS, {"name": "soft", "settings": {"temperature": 8}}], sweeps=[{"beta": [0.5, 2]}])
    assert expand(make_plan(json.loads(json.dumps(plan_content(made))))) == expand(made)


def test_endpoints_are_a_role_and_a_metric_of_their_own_or_of_the_plan() -> None:
    made = plan(metric="tile_auroc", endpoints=["ensemble", "students_auroc", "ensemble_tile_brier"])
    assert [(one.role, one.metric) for one in made.compared] == [
        ("ensemble", "tile_auroc"),
        ("students", "auroc"),
        ("ensemble", "tile_brier"),
    ]
    assert [(one.role, one.metric) for one in plan().compared] == [("ensemble", "auroc"), ("students", "auroc")]


def test_own_starts_are_those_of_students_in_turns_and_of_no_teacher() -> None:
    cells = cells_of(
        arms=["teacher_only", "kdml", "kdml_head_start"],
        settings={"own_start": ["none", "last_stage"], "number_of_students": 3, "initial_weights": "w.pt"},
    )
    assert cells["kdml"].settings["own_start"] == ["none", "last_stage", "none"]
    assert "own_start" not in cells["teacher_only"].settings
    assert cells["kdml_head_start"].settings["teacher_warmup_epochs"] == 2


def test_seeds_folds_versions_and_arms_are_crossed_in_whole_repetitions() -> None:
    cells = expand(plan(seeds=[3, 1], folds=[0, 2], versions=["v1", "edge"], arms=["independent", "kdml"]))
    assert len(cells) == len({cell.path for cell in cells}) == 16
    repetitions = [(cell.seed, cell.fold) for cell in cells[::4]]
    assert repetitions == [(3, 0), (3, 2), (1, 0), (1, 2)]
    assert [cell.path for cell in cells[:2]] == [
        "cells/v1/independent/seed3-fold0",
        "cells/v1/kdml/seed3-fold0",
    ]


def test_arms_share_all_settings_but_their_own() -> None:
    shared = {"max_epochs": 3, "temperature": 2.0, "batch_size": 8, "initial_weights": "w.pt"}
    cells = cells_of(arms=list(ARMS), settings=shared)
    for name, cell in cells.items():
        own = {*ARMS[name].settings, *(["beta"] if ARMS[name].peers_to_teacher else [])}
        own |= {"students", "use_teacher"} if cell.teacher_alone else set()
        assert {key: value for key, value in cell.settings.items() if key not in own} == shared, name
    assert cells["independent"].settings == shared | {"beta": 0.0, "gamma": 0.0}
    assert cells["kd_online"].settings == shared | {"gamma": 0.0}
    assert cells["ml"].settings == shared | {"beta": 0.0}
    assert cells["kdml"].settings == shared
    assert cells["kdml_offline"].settings == shared
    assert cells["kdml_offline"].needs == cells["kd_offline"].needs == "cells/edge/teacher_only/seed0"
    strong = shared | {"beta": 2.0, "gamma": 0.0}
    assert cells["kd_strong"].settings == cells["kd_offline_strong"].settings == strong
    assert cells["kd_strong"].needs is None
    assert cells["kd_offline_strong"].needs == cells["kdml_offline"].needs


def test_an_arms_own_settings_win_over_those_of_the_plan() -> None:
    cells = cells_of(arms=["kd_online", "kdml"], settings={"gamma": 2.0, "beta": 3.0})
    assert cells["kd_online"].settings == {"gamma": 0.0, "beta": 3.0}
    assert cells["kdml"].settings == {"gamma": 2.0, "beta": 3.0}


def test_the_teacher_alone_is_the_only_student_and_starts_like_a_teacher() -> None:
    cell = cells_of(settings={"teacher": "resnet34", "teacher_link": ["features", "predictions"]})[TEACHER_ONLY]
    assert cell.teacher_alone
    assert cell.settings["students"] == [{"name": "resnet34", "stream": "teacher"}]
    assert cell.settings["use_teacher"] is False
    assert "teacher" not in cell.settings
    assert cell.settings["teacher_link"] == ["features"]


def test_offline_distillation_brings_its_teacher_first() -> None:
    cells = expand(plan(arms=["kdml", "kd_offline"], seeds=[0, 1], folds=[2]))
    assert [cell.arm for cell in cells] == [TEACHER_ONLY, "kdml", "kd_offline"] * 2
    needs = {cell.path: cell.needs for cell in cells if cell.needs}
    assert needs == {
        f"cells/edge/kd_offline/seed{seed}-fold2": f"cells/edge/teacher_only/seed{seed}-fold2" for seed in (0, 1)
    }


def test_a_named_teacher_comes_first_with_its_own_settings() -> None:
    longer = {"name": "teacher_only", "settings": {"max_epochs": 20}}
    cells = cells_of(arms=["kdml", "kd_offline", longer])
    assert list(cells) == [TEACHER_ONLY, "kdml", "kd_offline"]
    assert cells[TEACHER_ONLY].teacher_alone
    assert cells[TEACHER_ONLY].settings["max_epochs"] == 20


def test_a_named_arm_is_like_kdml_or_like_the_built_in_one_of_its_name() -> None:
    arms: list[Any] = [
        "kdml",
        {"name": "ml", "settings": {"gamma": 3.0}},
        {"name": "soft", "settings": {"temperature": 8}},
        {"name": "soft_online", "like": "kd_online", "settings": {"temperature": 8}},
    ]
    cells = cells_of(arms=arms)
    assert cells["ml"].settings == {"beta": 0.0, "gamma": 3.0}
    assert cells["soft"].settings == {"temperature": 8}
    assert cells["soft_online"].settings == {"gamma": 0.0, "temperature": 8}


def test_sweeps_are_grids_of_arms_with_names_for_folders() -> None:
    sweeps = [{"beta": [0.5, 2], "temperature": [1, 1e-05]}, {"arm": "kd_online", "temperature": [2.0]}]
    cells = cells_of(arms=["kdml"], sweeps=sweeps)
    assert list(cells) == [
        "kdml",
        "kdml_beta=0.5_temperature=1",
        "kdml_beta=0.5_temperature=1e-05",
        "kdml_beta=2_temperature=1",
        "kdml_beta=2_temperature=1e-05",
        "kd_online_temperature=2.0",
    ]
    assert cells["kdml_beta=2_temperature=1"].settings == {"beta": 2, "temperature": 1}
    assert cells["kd_online_temperature=2.0"].settings == {"gamma": 0.0, "temperature": 2.0}
    assert named_arms(plan(arms=["kdml"], sweeps=sweeps))["kd_online_temperature=2.0"][1] == {"temperature": 2.0}


def test_a_sweep_wins_over_the_weight_that_makes_its_arm() -> None:
    assert cells_of(sweeps=[{"arm": "ml", "beta": [0.1]}])["ml_beta=0.1"].settings == {"beta": 0.1}


def test_switches_nothing_and_lists_of_words_can_be_swept() -> None:
    sweeps = [{"balance": [True, False]}, {"level": [None]}, {"teacher_link": [["predictions", "features"]]}]
    names = [name for name in cells_of(arms=["kdml"], sweeps=sweeps) if name != "kdml"]
    assert names == [
        "kdml_balance=True",
        "kdml_balance=False",
        "kdml_level=None",
        "kdml_teacher_link=predictions+features",
    ]


def test_averages_and_stopping_are_settings_of_arms() -> None:
    sweeps = [{"arm": "kdml", "average": ["none", "ema", "swa"]}]
    cells = cells_of(arms=["kdml", TEACHER_ONLY], sweeps=sweeps, settings={"early_stopping": 3})
    assert cells["kdml_average=ema"].settings == {"early_stopping": 3, "average": "ema"}
    assert cells[TEACHER_ONLY].settings["early_stopping"] == 3


def test_a_sweep_of_the_teacher_alone_trains_teachers_alone() -> None:
    cells = cells_of(sweeps=[{"arm": TEACHER_ONLY, "learning_rate": [0.1]}])
    assert cells["teacher_only_learning_rate=0.1"].teacher_alone
    assert not any(cells[name].teacher_alone for name in PAPER_ARMS if name != TEACHER_ONLY)


def test_the_number_of_students_can_be_swept_and_leaves_the_teacher_alone() -> None:
    cells = cells_of(sweeps=[{"arm": "ml", "number_of_students": [1, 3]}], settings={"number_of_students": 2})
    assert len(cells["ml_number_of_students=1"].settings["students"]) == 1
    assert len(cells["ml_number_of_students=3"].settings["students"]) == 3
    assert len(cells["kdml"].settings["students"]) == 2
    assert len(cells[TEACHER_ONLY].settings["students"]) == 1
    assert not any("number_of_students" in cell.settings for cell in cells.values())


def test_evaluations_may_name_other_datasets_and_folds() -> None:
    evaluations = {"home": {"split": "test"}, "away": {"dataset_dir": "data/other", "split": "test", "fold": 0}}
    assert plan(evaluations=evaluations).evaluations == evaluations


def test_a_stored_plan_names_its_sweeps_as_before() -> None:
    made = plan(sweeps=[{"gamma": [1], "beta": [2]}])
    stored = json.loads(json.dumps(plan_content(made), sort_keys=True))
    assert [cell.path for cell in expand(make_plan(stored))] == [cell.path for cell in expand(made)]
