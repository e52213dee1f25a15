"""Cells of a plan, trained by the bundle in worker processes as the command does it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import kdml_med.experiments.__main__ as program
from kdml_med.errors import ExitCode, InputError
from kdml_med.experiments import training
from kdml_med.experiments.plan import Cell, Plan, expand
from kdml_med.experiments.scheduling import Outcome
from kdml_med.experiments.training import CELL_FILE, cell_record, train_cell
from kdml_med.program import run_commands
from kdml_med.storage.files import write_json
from tests.experiments.conftest import EPOCHS, Study, run_experiments, run_words, write_plan
from tests.experiments.fakes import REPOSITORY, small_plan
from tests.results import lasting
from tests.synthetic_tiles import write_tile_dataset

ARMS = ["teacher_only", "kd_offline", "kd_online"]
RESULTS = [
    "cell.json",
    "losses.csv",
    "metrics.json",
    "predictions.parquet",
    "evaluation_test/metrics.json",
    "evaluation_test/predictions.parquet",
    "evaluation_test/patients.csv",
    "checkpoints/student_0.pt",
]


def losses(folder: Path, network: str, term: str = "task") -> list[float]:
    """Mean of each epoch."""
    table = pd.read_csv(folder / "losses.csv")
    return table[(table["network"] == network) & (table["term"] == term)].sort_values("epoch")["value"].tolist()


def results(study: Study) -> dict[str, bytes]:
    return {f"{arm}/{name}": lasting(study.cell(arm) / name) for arm in ARMS for name in RESULTS}


def test_every_cell_leaves_results_and_a_log(study: Study) -> None:
    assert results(study)
    for arm in ARMS:
        log = (study.cell(arm) / "log.txt").read_text()
        assert f"epoch {EPOCHS}/{EPOCHS}" in log
        assert log.splitlines()[-1].startswith("done in ")
    assert "leaked" not in study.screen
    assert "3 of 4  tiny/kd_online/seed0  done" in study.screen
    assert "4 trainings: 3 done now, 0 before, 1 failed. Next: kdml-med report" in study.screen


def test_an_arm_that_cannot_be_trained_leaves_the_others_done(study: Study) -> None:
    assert study.code == ExitCode.SOME_FAILED
    assert "Traceback" not in study.screen
    failures = pd.read_csv(study.out / "failures.csv")
    assert failures["cell"].tolist() == ["cells/tiny/impossible/seed0"]
    assert "unexpected ValueError: Invalid beta parameter at index 0: 2.0" in failures["reason"][0]
    assert not (study.cell("impossible") / "cell.json").exists()
    assert "Traceback" in (study.cell("impossible") / "log.txt").read_text()


def test_the_teacher_learns_the_same_alone_and_in_a_cohort(study: Study) -> None:
    alone = losses(study.cell("teacher_only"), "student_0")
    assert len(alone) == EPOCHS
    assert losses(study.cell("kd_online"), "teacher") == alone


def test_students_of_all_arms_start_with_the_same_weights_and_tiles(study: Study) -> None:
    first = {arm: [losses(study.cell(arm), f"student_{k}")[0] for k in (0, 1)] for arm in ("kd_offline", "kd_online")}
    assert first["kd_offline"] == first["kd_online"]
    last = {arm: losses(study.cell(arm), "student_0")[-1] for arm in first}
    assert last["kd_offline"] != last["kd_online"], "they did learn from different teachers"


def test_offline_distillation_has_the_trained_teacher_unchanged(study: Study) -> None:
    trained = torch.load(study.cell("teacher_only") / "checkpoints/student_0.pt", weights_only=True)
    frozen = torch.load(study.cell("kd_offline") / "checkpoints/teacher.pt", weights_only=True)
    assert trained.keys() == frozen.keys()
    assert all(torch.equal(trained[key], frozen[key]) for key in trained)
    assert losses(study.cell("kd_offline"), "teacher") == []
    assert len(losses(study.cell("kd_offline"), "student_0", "kd")) == EPOCHS


@pytest.mark.slow
def test_a_killed_run_side_by_side_goes_on_to_the_same_bytes(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "results"
    killed = Study(study.plan, out)
    process = subprocess.Popen(
        run_words(study.plan, out, "--jobs", "2"), cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    # In the middle of the second cell to end: the other one is done, and the third is not begun.
    middle = killed.cell("kd_offline") / "checkpoints" / "last.pt"
    deadline = time.monotonic() + 1500
    while not middle.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert middle.is_file()
    assert not (killed.cell("kd_offline") / "cell.json").exists(), "it was to be killed before the end"
    again = run_experiments(study.plan, out, "--jobs", "2")
    assert again.code == ExitCode.SOME_FAILED
    assert "of 4 trainings are done already" in again.screen
    assert "Going on behind epoch" in (killed.cell("kd_offline") / "log.txt").read_text()
    resumed, whole = results(again), results(study)
    # The teacher's file is named by its path, which cell.json leaves out.
    assert [name for name in whole if whole[name] != resumed[name]] == []


@pytest.mark.slow
def test_a_results_folder_that_was_moved_and_is_reached_by_a_link_goes_on(study: Study, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(study.out, moved)
    link = Study(study.plan, tmp_path / "link")
    link.out.symlink_to(moved)
    (link.cell("kd_offline") / "cell.json").unlink()
    again = run_experiments(study.plan, link.out)
    assert "4 trainings: 1 done now, 2 before, 1 failed" in again.screen
    knobs = json.loads((link.cell("kd_offline") / "settings.json").read_text())["knobs"]
    assert knobs["teacher_checkpoint"] == str(link.cell("teacher_only") / "checkpoints/student_0.pt")
    assert results(again) == results(study)


def test_the_results_folder_is_called_as_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = write_plan(tmp_path / "plan.json", tmp_path / "tiles")
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    named: list[Path] = []

    def run_plan(_: Plan, __: Sequence[Cell], out: Path, **___: Any) -> Outcome:
        named.append(out)
        return Outcome()

    monkeypatch.setattr(program, "run_plan", run_plan)
    content = json.loads(plan.read_text())
    plan.write_text(json.dumps(content | {"bundle": str(REPOSITORY / content["bundle"])}))
    monkeypatch.chdir(tmp_path)
    assert program.run(plan, Path("link")) == ExitCode.OK
    assert named == [tmp_path / "link"]


@pytest.mark.parametrize(
    ("recorded", "follows"),
    [("cells/edge/teacher_only/seed0/checkpoints/student_0.pt", True), ("checkpoints/student_0.pt", False)],
)
def test_the_teacher_of_a_training_moves_with_the_results_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: str, follows: bool
) -> None:
    bundle = replaced(monkeypatch)
    plan = small_plan(tmp_path, arms=["kd_offline"], reference="kd_offline")
    cell = next(cell for cell in expand(plan) if cell.needs)
    path, before = tmp_path / "out" / cell.path / "settings.json", f"/was/here/{recorded}"
    write_json(path, {"knobs": {"teacher_checkpoint": before, "seed": 3}, "made_by": {}})
    assert train_cell(cell, plan, tmp_path / "out") is None
    now = bundle.runs[0][1]["teacher_checkpoint"]
    assert now == str(tmp_path / "out/cells/edge/teacher_only/seed0/checkpoints/student_0.pt")
    knobs = {"teacher_checkpoint": now if follows else before, "seed": 3}
    assert json.loads(path.read_text()) == {"knobs": knobs, "made_by": {}}


def test_a_broken_dataset_gives_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = write_tile_dataset(tmp_path / "tiles", split=False)
    plan = write_plan(tmp_path / "plan.json", dataset)
    code, errors = command(monkeypatch, capsys, str(plan), tmp_path / "results")
    assert code == ExitCode.BAD_INPUT
    assert len(errors.splitlines()) == 1
    assert errors.startswith("error: ")
    assert "kdml-med split" in errors
    assert list((tmp_path / "results").iterdir()) == []


def test_a_results_folder_that_cannot_be_made_gives_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(tmp_path / "plan.json", tmp_path / "tiles")
    code, errors = command(monkeypatch, capsys, str(plan), plan)
    assert code == ExitCode.BAD_INPUT
    assert errors == f"error: cannot use {plan} as results folder: File exists.\n"


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], plan: str, out: Path
) -> tuple[int, str]:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", ["experiments", "run", plan, "--out", str(out)])
    with pytest.raises(SystemExit) as caught:
        run_commands(program.run, program.report)
    return int(str(caught.value.code)), capsys.readouterr().err


class Bundle:
    """Stands in for the bundle's own runs."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.runs: list[tuple[list[str], dict[str, Any]]] = []

    def __call__(self, plan: Plan, files: list[str], settings: dict[str, Any]) -> None:
        self.runs.append((files, settings))
        for name in ("last", "best", "student_0"):
            path = Path(settings["run_dir"]) / "checkpoints" / f"{name}.pt"
            path.parent.mkdir(exist_ok=True)
            path.touch()
        if self.error is not None:
            raise self.error


@pytest.fixture
def one(tmp_path: Path) -> tuple[Cell, Plan, Path]:
    plan = small_plan(tmp_path)
    return expand(plan)[0], plan, tmp_path / "out"


def replaced(monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None) -> Bundle:
    bundle = Bundle(error)
    monkeypatch.setattr(training, "_run", bundle)
    return bundle


@pytest.mark.parametrize("keep", [False, True])
def test_only_checkpoints_for_going_on_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool) -> None:
    replaced(monkeypatch)
    plan = small_plan(tmp_path, keep_checkpoints=keep)
    cell = expand(plan)[0]
    assert train_cell(cell, plan, tmp_path) is None
    left = sorted(path.name for path in (tmp_path / cell.path / "checkpoints").iterdir())
    assert left == (["best.pt", "last.pt", "student_0.pt"] if keep else ["student_0.pt"])
    assert json.loads((tmp_path / cell.path / CELL_FILE).read_text()) == cell_record(cell, plan)


def test_older_states_go_with_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(monkeypatch)
    plan = small_plan(tmp_path, keep_checkpoints=False)
    cell = expand(plan)[0]
    older = tmp_path / cell.path / "checkpoints" / "step_00000006.pt"
    older.parent.mkdir(parents=True)
    older.touch()
    assert train_cell(cell, plan, tmp_path) is None
    assert [path.name for path in older.parent.iterdir()] == ["student_0.pt"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SystemExit(2), "ended early, see "),
        (InputError("the tiles are gone.\nMore."), "the tiles are gone."),
        (RuntimeError("no memory\nat all"), "unexpected RuntimeError: no memory; see "),
    ],
)
def test_a_cell_that_fails_says_why_and_is_not_done(
    one: tuple[Cell, Plan, Path], monkeypatch: pytest.MonkeyPatch, error: BaseException, reason: str
) -> None:
    cell, plan, out = one
    replaced(monkeypatch, error)
    (out / cell.path).mkdir(parents=True)
    (out / cell.path / "log.txt").write_text("error: of an earlier attempt\n")
    said = train_cell(cell, plan, out)
    assert said is not None
    assert said.startswith(reason)
    assert "\n" not in said
    assert not (out / cell.path / CELL_FILE).exists()
    assert (out / cell.path / "checkpoints" / "last.pt").exists()


def test_the_cause_of_an_error_in_a_config_is_told(
    one: tuple[Cell, Plan, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped = RuntimeError("Failed to instantiate component")
    wrapped.__cause__ = ValueError("beta must not be negative")
    replaced(monkeypatch, wrapped)
    assert str(train_cell(*one)).startswith("unexpected ValueError: beta must not be negative; see ")


def test_a_cell_that_another_process_works_on_is_waited_for_and_not_trained_twice(
    one: tuple[Cell, Plan, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, plan, out = one
    bundle = replaced(monkeypatch)
    log = out / cell.path / "log.txt"
    log.parent.mkdir(parents=True)
    with log.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        answers: list[str | None] = []
        thread = threading.Thread(target=lambda: answers.append(train_cell(cell, plan, out)))
        thread.start()
        deadline = time.monotonic() + 60
        while "waiting for it" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "waiting for it" in log.read_text()
        write_json(out / cell.path / CELL_FILE, cell_record(cell, plan))
    thread.join(60)
    assert answers == [None]
    assert bundle.runs == []


def test_evaluations_get_the_fold_and_their_own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = replaced(monkeypatch)
    away = {"dataset_dir": str(tmp_path / "tiles"), "split": "val", "batch_size": 2}
    plan = small_plan(tmp_path, folds=[1], evaluations={"home": {"split": "test"}, "away": away})
    cell = expand(plan)[0]
    assert train_cell(cell, plan, tmp_path) is None
    (_, trained), (files, home), (_, elsewhere) = bundle.runs
    assert files == ["train.json", "evaluate.json"]
    assert (trained["fold"], trained["seed"], trained["version"]) == (1, 0, "edge")
    assert (home["fold"], home["split"]) == (1, "test")
    assert home["output_dir"] == str(tmp_path / cell.path / "evaluation_home")
    assert "fold" not in elsewhere
    assert elsewhere.items() >= away.items()
