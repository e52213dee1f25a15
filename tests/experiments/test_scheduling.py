"""Order, failures and crashes of a plan whose trainings are fakes."""

from __future__ import annotations

import json
import logging
import multiprocessing
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from kdml_med.errors import InputError
from kdml_med.experiments import scheduling, training
from kdml_med.experiments.plan import Plan, expand, plan_content
from kdml_med.experiments.results import collect
from kdml_med.experiments.scheduling import Outcome, run_plan
from kdml_med.experiments.training import CELL_FILE, cell_record, is_done, train_cell
from kdml_med.runs import checkpoint_path
from kdml_med.storage.files import write_json
from kdml_med.storage.locks import sole_user
from kdml_med.workers import local
from tests.experiments.fakes import REPOSITORY, calls, fake_train, processes, small_plan

PREFIX = "cells/edge"


@pytest.fixture(autouse=True)
def _quick_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes begin as copies of one that has imported everything; how they begin is not what is tested."""
    multiprocessing.set_forkserver_preload(["tests.experiments.fakes"])
    monkeypatch.setattr(local, "_START_METHOD", "forkserver")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def run(plan: Plan, out: Path, *, jobs: int = 1, **script: str) -> Outcome:
    return run_plan(plan, expand(plan), out, jobs=jobs, train=partial(fake_train, script=script))


def failures(out: Path) -> dict[str, str]:
    table = pd.read_csv(out / "failures.csv")
    assert list(table.columns) == ["cell", "reason"]
    return dict(zip(table["cell"], table["reason"], strict=True))


def test_every_cell_is_done_once_in_the_order_of_the_plan(tmp_path: Path, out: Path) -> None:
    outcome = run(small_plan(tmp_path), out)
    assert outcome == Outcome(done=3)
    assert calls(out) == ["begin independent", "end independent", "begin ml", "end ml", "begin kdml", "end kdml"]
    assert len(processes(out)) == 1, "imports are paid once"
    assert failures(out) == {}
    assert json.loads((out / "plan.json").read_text())["name"] == "a plan"


def test_a_cell_waits_for_the_teacher_that_it_needs(tmp_path: Path, out: Path) -> None:
    run(small_plan(tmp_path, arms=["kd_offline", "kdml"]), out, jobs=3, teacher_only="meet")
    noted = calls(out)
    assert noted.index("end teacher_only") < noted.index("begin kd_offline")
    assert noted.index("begin kdml") < noted.index("end teacher_only")


def test_two_jobs_work_at_the_same_time(tmp_path: Path, out: Path) -> None:
    assert run(small_plan(tmp_path), out, jobs=2, independent="meet", ml="meet").done == 3
    assert sorted(calls(out)[:2]) == ["begin independent", "begin ml"]
    assert len(processes(out)) == 2


def test_failures_are_listed_and_passed_on_to_what_depends_on_them(tmp_path: Path, out: Path) -> None:
    plan = small_plan(tmp_path, arms=["teacher_only", "kd_offline", "ml", "kdml"])
    outcome = run(plan, out, teacher_only="fail", ml="raise", kdml="refuse")
    assert (outcome.done, outcome.skipped) == (0, 0)
    teacher = f"{PREFIX}/teacher_only/seed0"
    expected = {
        teacher: "it was to fail",
        f"{PREFIX}/kd_offline/seed0": f"its teacher, {teacher}, could not be trained",
        f"{PREFIX}/ml/seed0": "unexpected ValueError: it was to raise",
        f"{PREFIX}/kdml/seed0": "it was refused.",
    }
    assert outcome.failures == failures(out) == expected
    assert "kd_offline" not in calls(out, "begin")


def test_cells_after_a_failed_teacher_are_named_when_nothing_else_is_left(tmp_path: Path, out: Path) -> None:
    outcome = run(small_plan(tmp_path, arms=["kd_offline"], reference="kd_offline"), out, teacher_only="fail")
    assert len(outcome.failures) == 2


def test_a_crash_gets_one_more_try_and_takes_no_other_work_with_it(tmp_path: Path, out: Path) -> None:
    # "outlive" ends only when the other's failure is in failures.csv, which does not wait for the end of the run.
    outcome = run(small_plan(tmp_path), out, jobs=2, independent="crash", ml="outlive")
    assert outcome.done == 2
    begun = calls(out, "begin")
    assert begun.count("independent") == 2
    assert begun.count("ml") == begun.count("kdml") == 1
    assert "want of memory" in outcome.failures[f"{PREFIX}/independent/seed0"]


def test_a_cell_that_crashed_once_is_done_the_second_time(
    tmp_path: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert run(small_plan(tmp_path), out, ml="crash once") == Outcome(done=3)
    assert calls(out, "begin") == ["independent", "ml", "ml", "kdml"]
    assert "edge/ml/seed0: its process ended at once, probably for want of memory; once more" in caplog.text


def test_done_cells_are_skipped_and_old_failures_forgotten(
    tmp_path: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    plan = small_plan(tmp_path)
    assert len(run(plan, out, ml="fail").failures) == 1
    assert run(plan, out) == Outcome(done=1, skipped=2)
    assert "2 of 3 trainings are done already" in caplog.text
    assert failures(out) == {}
    assert calls(out, "begin") == ["independent", "ml", "kdml", "ml"]
    assert run(plan, out) == Outcome(skipped=3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"settings": {"max_epochs": 7}}, "max_epochs was None, now 7"),
        ({"threads": 2}, "another threads: was 1, now 2"),
        ({"evaluations": {"test": {"split": "val"}}}, "another evaluations: test.split was 'test', now 'val'"),
    ],
)
def test_cells_done_with_other_settings_are_refused_and_nothing_is_written(
    tmp_path: Path, out: Path, change: dict[str, Any], words: str
) -> None:
    before = small_plan(tmp_path)
    run(before, out, ml="fail")
    kept = {name: (out / name).read_bytes() for name in ("plan.json", "failures.csv")}
    settings = {**before.settings, **change.pop("settings", {})}
    with pytest.raises(InputError) as caught:
        run(small_plan(tmp_path, settings=settings, **change), out)
    assert words in str(caught.value)
    assert "Take the plan as it was, or another --out." in str(caught.value)
    assert {name: (out / name).read_bytes() for name in kept} == kept


def test_cells_done_with_other_data_are_refused(tmp_path: Path, out: Path) -> None:
    plan = small_plan(tmp_path)
    run(plan, out)
    info = tmp_path / "tiles" / "dataset.json"
    content = json.loads(info.read_text())
    write_json(info, content | {"splits": content["splits"] | {"seed": 5}})
    with pytest.raises(InputError, match=r"another datasets: \.?splits\.seed was None, now 5"):
        run(plan, out)
    write_json(info, content | {"classes": content["classes"][::-1]})
    with pytest.raises(InputError, match=r"another datasets: \.?classes was \['MSS', 'MSI'\], now \['MSI', 'MSS'\]"):
        run(plan, out)


def test_a_dataset_of_an_evaluation_may_move(tmp_path: Path, out: Path) -> None:
    plan = small_plan(tmp_path)
    shutil.copytree(tmp_path / "tiles", tmp_path / "away")
    evaluations = {"away": {"dataset_dir": str(tmp_path / "away"), "split": "test"}}
    before = replace(plan, evaluations=evaluations)
    run(before, out)
    (tmp_path / "away").rename(tmp_path / "moved")
    evaluations = {"away": {"dataset_dir": str(tmp_path / "moved"), "split": "test"}}
    assert run(replace(plan, evaluations=evaluations), out) == Outcome(done=0, skipped=len(expand(plan)))
    with pytest.raises(InputError, match=r"another evaluations: away.dataset_dir was 'a dataset of its own', now None"):
        run(replace(plan, evaluations={"away": {"split": "test"}}), out)


def test_classes_and_splits_of_evaluations_are_looked_at_before_anything_is_trained(tmp_path: Path, out: Path) -> None:
    plan = small_plan(tmp_path)
    away = tmp_path / "away"
    shutil.copytree(tmp_path / "tiles", away)
    elsewhere = replace(plan, evaluations={"away": {"dataset_dir": str(away), "split": "test"}})
    content = json.loads((away / "dataset.json").read_text())
    write_json(away / "dataset.json", content | {"classes": content["classes"][::-1]})
    with pytest.raises(InputError, match=r"evaluation .away.: .* has the classes"):
        run(elsewhere, out)
    assert list(out.iterdir()) == []


def test_a_folder_with_other_things_is_no_results_folder(tmp_path: Path, out: Path) -> None:
    plan = small_plan(tmp_path)
    for name in ("plan.json", "summary.csv"):
        (out / name).write_text("mine")
        with pytest.raises(InputError, match=rf"out holds a {name} that is not of this plan: choose another --out"):
            run(plan, out)
        assert (out / name).read_text() == "mine"
        (out / name).unlink()
    (out / "log.txt").write_text("what the command says is sent there")
    write_json(out / "plan.json", plan_content(plan))  # all that a run which was killed at once has left
    assert run(plan, out).done == len(expand(plan))


def test_a_plan_that_is_corrected_at_once_may_take_the_place_of_the_first(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(scheduling, "work_through", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(small_plan(tmp_path), out)
    assert (out / "plan.json").is_file()
    assert run(small_plan(tmp_path, seeds=[0, 1]), out).done == 6


def test_a_plan_that_an_earlier_version_stored_is_known_again(tmp_path: Path, out: Path) -> None:
    plan = small_plan(tmp_path, bundle="msi_kdml")
    stored = plan_content(plan) | {"bundle": str(REPOSITORY / "bundles/msi_kdml")}
    write_json(out / "plan.json", stored)
    assert run(plan, out).done == 3
    assert json.loads((out / "plan.json").read_text())["bundle"] == "msi_kdml"


def test_a_fold_that_an_evaluation_named_in_vain_is_no_other_evaluation(tmp_path: Path, out: Path) -> None:
    plan = small_plan(tmp_path)
    cell = replace(expand(plan)[0], fold=2)
    record = cell_record(cell, plan)
    record["evaluations"]["test"]["fold"] = 0  # as earlier versions let a plan say
    write_json(out / cell.path / CELL_FILE, record)
    assert is_done(cell, plan, out)
    with pytest.raises(InputError, match=r"test\.split was 'test', now 'val'"):
        is_done(cell, replace(plan, evaluations={"test": {"split": "val"}}), out)


def begun_plan(folder: Path, epochs: int = 5, **content: Any) -> Plan:
    tiny = {"name": "tests.networks.tiny.TinyNet"}
    networks = {"teacher": tiny, "students": [tiny, tiny]}
    return small_plan(folder, arms=["kdml"], settings={**networks, "max_epochs": epochs}, **content)


def begin(plan: Plan, out: Path, monkeypatch: pytest.MonkeyPatch, *, learned: bool = True) -> Path:
    """Begin the only cell of a plan, and be interrupted."""

    def interrupted(*_: Any) -> None:
        raise SystemExit(130)

    (cell,) = expand(plan)
    monkeypatch.setattr(training, "_run", interrupted)
    assert "ended early" in str(train_cell(cell, plan, out))
    if learned:
        checkpoint_path(out / cell.path, "last").parent.mkdir()
        checkpoint_path(out / cell.path, "last").touch()
    (out / "calls.txt").touch()
    return out / cell.path


@pytest.mark.parametrize(
    ("change", "words"),
    [({"epochs": 9}, "another cell: settings.max_epochs was 5, now 9"), ({"threads": 2}, "another threads: was 1")],
)
def test_a_cell_that_learned_by_another_plan_is_refused_before_anything_starts(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], words: str
) -> None:
    folder = begin(begun_plan(tmp_path), out, monkeypatch)
    changed = begun_plan(tmp_path, **change)
    with pytest.raises(InputError) as caught:
        run(changed, out)
    assert f"{folder} was begun with {words}" in str(caught.value)
    assert "delete this folder to train it anew" in str(caught.value)
    assert calls(out) == []
    assert words in str(train_cell(expand(changed)[0], changed, out)), "by another process, just now"
    shutil.rmtree(folder)
    assert run(changed, out).done == 1


def test_what_decides_no_training_may_change_when_a_cell_has_begun(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(begun_plan(tmp_path), out, monkeypatch)
    other = {"evaluations": {"val": {"split": "val"}}, "keep_checkpoints": True, "name": "another name"}
    assert run(begun_plan(tmp_path, **other), out).done == 1


def test_a_cell_that_has_not_learned_or_was_begun_by_an_earlier_version_goes_on(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begin(begun_plan(tmp_path), out, monkeypatch, learned=False)
    assert begin(begun_plan(tmp_path, epochs=9), out, monkeypatch) == folder
    assert json.loads((folder / "begun.json").read_text())["cell"]["settings"]["max_epochs"] == 9
    (folder / "begun.json").unlink()
    assert run(begun_plan(tmp_path), out).done == 1


def test_how_a_training_runs_may_change_when_a_cell_has_begun(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = begun_plan(tmp_path)
    slow = replace(plan, settings={**plan.settings, "num_workers": 8})
    begin(slow, out, monkeypatch)
    spare = replace(plan, settings={**plan.settings, "num_workers": 0, "checkpoint_activations": "teacher"})
    assert run(spare, out).done == 1


@pytest.mark.parametrize("name", ["num_workers", "checkpoint_activations", "cache", "log_interval"])
def test_how_a_training_runs_may_change_when_a_cell_is_done(tmp_path: Path, out: Path, name: str) -> None:
    plan = begun_plan(tmp_path)
    (cell,) = expand(plan)
    write_json(out / cell.path / CELL_FILE, cell_record(cell, plan))
    values = {"num_workers": 8, "checkpoint_activations": "teacher", "cache": "disk", "log_interval": 5}
    other = replace(plan, settings={**plan.settings, name: values[name]})
    assert is_done(expand(other)[0], other, out)
    assert collect(other, out).finished == tuple(expand(other))


@pytest.mark.parametrize("change", [{"max_epochs": 9}, {"early_stopping": 2}, {"device": "cuda"}, {"batch_size": 3}])
def test_what_decides_a_result_stays_when_a_cell_is_done(tmp_path: Path, out: Path, change: dict[str, Any]) -> None:
    plan = begun_plan(tmp_path)
    (cell,) = expand(plan)
    write_json(out / cell.path / CELL_FILE, cell_record(cell, plan))
    other = replace(plan, settings={**plan.settings, **change})
    with pytest.raises(InputError, match=f"settings.{next(iter(change))} was"):
        is_done(expand(other)[0], other, out)
    with pytest.raises(InputError, match="was done with another cell than the plan's"):
        collect(other, out)


def test_a_changed_plan_does_not_take_a_cell_of_an_earlier_version_from_the_right_one(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = begun_plan(tmp_path)
    folder = begin(plan, out, monkeypatch)
    (folder / "begun.json").unlink()

    def refused(*_: Any) -> None:
        raise InputError("the run has other settings")

    changed = begun_plan(tmp_path, epochs=9)
    with monkeypatch.context() as patched:
        patched.setattr(training, "_run", refused)
        assert train_cell(expand(changed)[0], changed, out) == "the run has other settings"
    monkeypatch.setattr(training, "_run", lambda *_: None)
    assert train_cell(expand(plan)[0], plan, out) is None


def test_a_broken_dataset_ends_the_run_before_it_begins(tmp_path: Path, out: Path) -> None:
    plan = small_plan(tmp_path)
    (tmp_path / "tiles" / "dataset.json").unlink()
    with pytest.raises(InputError, match="is not a dataset folder"):
        run(plan, out)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"folds": [0]}, "has splits, not folds"),
        ({"evaluations": {"away": {"dataset_dir": "nowhere"}}}, "nowhere is not a dataset folder"),
        ({"bundle": str(REPOSITORY / "bundles/polyp_kdml"), "settings": {}}, "is a dataset of tiles"),
        ({"evaluations": {"later": {"split": "tomorrow"}}}, "split is 'tomorrow', expected"),
        ({"evaluations": {"fifth": {"fold": 4}}}, "has splits, not folds"),
    ],
)
def test_data_that_does_not_fit_the_plan_is_refused(
    tmp_path: Path, out: Path, content: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        run(small_plan(tmp_path, **content), out)


def test_a_network_that_does_not_exist_is_named_before_anything_is_done(tmp_path: Path, out: Path) -> None:
    with pytest.raises(InputError, match="unknown network 'resnet19'"):
        run(small_plan(tmp_path, settings={"students": ["resnet19", "resnet18"]}), out)
    assert list(out.iterdir()) == []


def test_every_line_says_how_long_the_rest_will_take(
    tmp_path: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run(small_plan(tmp_path), out, ml="fail")
    lines = [line for line in caplog.messages if " of 3  " in line]
    assert [line.partition("  (")[0] for line in lines] == [
        "1 of 3  edge/independent/seed0  done",
        "2 of 3  edge/ml/seed0  FAILED: it was to fail",
        "3 of 3  edge/kdml/seed0  done",
    ]
    assert all("so far, about " in line for line in lines)
    assert lines[-1].endswith("about 0 s to go)")


def test_networks_whose_cost_cannot_be_counted_count_alike(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cost(*_: object) -> float:
        raise RuntimeError("this network takes 224 x 224 only")

    monkeypatch.setattr(scheduling, "cell_cost", cost)
    assert run(small_plan(tmp_path), out).done == 3


@pytest.mark.parametrize(("seconds", "words"), [(0, "0 s"), (89, "89 s"), (91, "2 min"), (5400, "90 min")])
def test_durations_are_short(seconds: float, words: str) -> None:
    assert scheduling._duration(seconds) == words
    assert scheduling._duration(2 * 3600 + 300) == "2 h 05 min"


def test_a_second_run_into_the_same_folder_is_refused_and_changes_nothing(tmp_path: Path, out: Path) -> None:
    plan = small_plan(tmp_path)
    with sole_user(out), pytest.raises(InputError, match=r"another run is writing to .*out: wait for it"):
        run(plan, out)
    assert list(out.iterdir()) == []
