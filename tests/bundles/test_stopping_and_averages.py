"""Early stopping, averaged weights and MLflow in whole trainings."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from kdml_med.bundle import training_checks
from kdml_med.bundle.running import run_config
from kdml_med.errors import InputError
from kdml_med.keys import Task
from kdml_med.runs import load_cohort, read_history, read_losses
from tests.bundles.conftest import (
    REPOSITORY,
    read_json,
    refused,
    run_bundle,
    train_words,
)
from tests.kills import kill_in_step
from tests.results import lasting

STEPS = 6
"""Of an epoch of the dataset here."""
MOBILE = "mobilenet_v2"
NETWORKS = {"teacher": {"name": MOBILE, "last_block": 3}, "students": [{"name": MOBILE, "last_block": 2}] * 2}


def train(dataset: Path, run_dir: Path, **settings: Any) -> Path:
    run_config(
        Task.CLASSIFICATION, "train",
        **{"dataset_dir": dataset, "run_dir": run_dir, "batch_size": 8, "device": "cpu", **NETWORKS, **settings},
    )  # fmt: skip
    return run_dir


def checkpoint(run_dir: Path, name: str) -> Any:
    return torch.load(run_dir / "checkpoints" / f"{name}.pt", weights_only=True)


@pytest.fixture(scope="module", params=["ema", pytest.param("swa", marks=pytest.mark.slow)])
def averaged(request: pytest.FixtureRequest, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {"average": request.param, "swa_start": 0.3, "max_epochs": 3}
    return train(dataset, tmp_path_factory.mktemp("averaged") / request.param, **settings)


def test_averaged_weights_are_judged_kept_and_used(averaged: Path, dataset: Path) -> None:
    best, last = checkpoint(averaged, "best"), checkpoint(averaged, "last")
    kept = load_cohort(averaged).state_dict()
    assert all(torch.equal(kept[name], value) for name, value in best["network"].items())
    # The evaluation of what is kept has the figures of training, to the last digit.
    run_config(Task.CLASSIFICATION, "evaluate", dataset_dir=dataset, run_dir=averaged, split="val", device="cpu")
    evaluated, trained = read_json(averaged / "evaluation_val/metrics.json"), read_json(averaged / "metrics.json")
    assert evaluated["networks"] == trained["networks"]
    assert max(float((last["network"][name] - value).abs().max()) for name, value in kept.items()) > 1e-4


def test_averages_are_recorded_and_compared(averaged: Path, dataset: Path) -> None:
    kind = averaged.name
    assert read_json(averaged / "settings.json")["knobs"]["average"] == kind
    words = train_words(dataset, averaged, "--average", "none", "--max_epochs", "4")
    assert f"--average was '{kind}', now 'none'" in refused(*words)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_a_killed_training_with_an_average_goes_on_to_the_same_bytes(dataset: Path, tmp_path: Path, kind: str) -> None:
    more = ["--average", kind, "--swa_start", "0.3", "--max_epochs", "4", "--early_stopping", "3"]
    run_bundle(*train_words(dataset, tmp_path / "whole", *more))
    # In the fourth epoch: the plain average has the ends of two epochs, and validations have been counted.
    kill_in_step(3 * STEPS + 3, train_words(dataset, tmp_path / "killed", *more), tmp_path / "killed")
    assert int(checkpoint(tmp_path / "killed", "last")["extras"]["average"]["n_averaged"]) >= 2
    result = run_bundle(*train_words(dataset, tmp_path / "killed", *more))
    assert f"Going on behind batch 2 of {STEPS} in epoch 4 of " in result.stdout
    names = [f"checkpoints/{name}.pt" for name in ("last", "best", "teacher", "student_0", "student_1")]
    for name in (*names, "metrics.json", "losses.csv", "history.csv"):
        assert lasting(tmp_path / "whole" / name) == lasting(tmp_path / "killed" / name), name


@pytest.mark.slow
def test_a_training_that_stopped_is_finished_and_goes_on_with_more_patience(dataset: Path, tmp_path: Path) -> None:
    # At a rate of next to nothing the validation soon stays as it is.
    alone = {"beta": 0.0, "gamma": 0.0, "students": NETWORKS["students"][:1]}
    slow = {"learning_rate": 1e-12, "weight_decay": 0.0, "max_epochs": 8, **alone}
    run_dir = train(dataset, tmp_path / "run", early_stopping=1, **slow)
    history = read_history(run_dir)
    own = history[(history["network"] == "ensemble") & (history["figure"] == "patient_auroc")]
    values = own["value"].to_list()
    assert len(values) < 8
    assert values[-1] <= max(values[:-1])
    assert all(after > before for before, after in pairwise(values[:-1]))
    assert read_json(run_dir / "settings.json")["free"]["early_stopping"] == 1
    before = {path: lasting(path) for path in run_dir.glob("*.*") if path.name != "settings.json"}
    train(dataset, run_dir, early_stopping=1, **slow)
    assert {path: lasting(path) for path in before} == before
    train(dataset, run_dir, early_stopping=2, **slow)
    assert read_losses(run_dir)["epoch"].max() > len(values)


def test_without_mlflow_tracking_is_refused_with_what_to_do(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_checks, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^--tracking mlflow needs MLflow: pip install 'kdml_med\[tracking\]'\.$"):
        train(dataset, tmp_path / "run", tracking="mlflow")
    assert list(tmp_path.iterdir()) == []


needs_mlflow = pytest.mark.skipif(
    find_spec("mlflow") is None, reason="MLflow is not installed: pip install 'kdml_med[tracking]'"
)


def rows(database: Path, query: str) -> list[Any]:
    with sqlite3.connect(database) as connection:
        found = connection.execute(query).fetchall()
    connection.close()
    return found


@needs_mlflow
@pytest.mark.slow
@pytest.mark.parametrize("how", ["kdml-med", "monai.bundle"])
def test_a_training_is_tracked_in_a_folder_of_ones_own(dataset: Path, tmp_path: Path, how: str) -> None:
    run_dir, place = tmp_path / "run", tmp_path / "mlflow"
    place.mkdir()
    words = train_words(dataset, run_dir, "--tracking", "mlflow", "--tracking_uri", f"sqlite:///{place}/mlruns.db")
    words += ["--experiment_name", "colon"]
    if how == "kdml-med":
        command = [sys.executable, "-m", "kdml_med.cli", "train", dataset, "--run", run_dir]
        command += [*words[words.index("--batch_size") :]]
    else:
        command = [sys.executable, "-m", "monai.bundle", *words, "--save_execute_config", "False"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(list(map(str, command)), cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    database = place / "mlruns.db"
    assert rows(database, "SELECT name FROM experiments WHERE name = 'colon'") == [("colon",)]
    ((status,),) = rows(database, "SELECT status FROM runs")
    assert status == "FINISHED"
    assert rows(database, "SELECT value FROM params WHERE key = 'batch_size'") == [("8",)]
    points = rows(database, "SELECT step, value FROM metrics WHERE key = 'val/ensemble_patient_auroc' ORDER BY step")
    assert [step for step, _ in points] == [1, 2]
    best = read_json(run_dir / "metrics.json")["networks"]["ensemble"]["patient"]["auroc"]
    assert max(value for _, value in points) == best
    losses = read_losses(run_dir)
    own = losses[(losses["network"] == "student_0") & (losses["term"] == "kd")]["value"].to_list()
    means = rows(database, "SELECT value FROM metrics WHERE key = 'train/student_0_kd_epoch' ORDER BY step")
    assert [value for (value,) in means] == own
    assert {path.name for path in place.rglob("*.*")} >= {"settings.json", "losses.csv", "history.csv"}
    assert not list(place.rglob("*.pt"))
    shutil.rmtree(place)


@needs_mlflow
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of what MLflow is built on
def test_a_folder_that_is_trained_anew_is_another_run_which_is_gone_on_with(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    run_dir, database = tmp_path / "run", tmp_path / "mlruns.db"
    tracked = {"tracking": "mlflow", "tracking_uri": f"sqlite:///{database}"}

    def trained(*, killed: bool = False, **settings: Any) -> list[tuple[str, str]]:
        train(dataset, run_dir, **tracked, **settings)
        with sqlite3.connect(database) as connection:
            if killed:
                last = "SELECT run_uuid FROM runs ORDER BY start_time DESC LIMIT 1"
                connection.execute(f"UPDATE runs SET status = 'RUNNING' WHERE run_uuid = ({last})")
        connection.close()
        query = "SELECT value, status FROM runs JOIN params USING (run_uuid) WHERE key = 'alpha' ORDER BY start_time"
        return rows(database, query)

    assert trained(max_epochs=1, alpha=1.0, killed=True) == [("1.0", "RUNNING")]
    shutil.rmtree(run_dir)
    assert trained(max_epochs=1, alpha=2.0, killed=True) == [("1.0", "RUNNING"), ("2.0", "RUNNING")]
    assert trained(max_epochs=1, alpha=2.0, killed=True) == [("1.0", "RUNNING"), ("2.0", "RUNNING")]
    assert trained(max_epochs=1, alpha=2.0) == [("1.0", "RUNNING"), ("2.0", "FINISHED")]
    assert trained(max_epochs=2, alpha=2.0, killed=True)[1:] == [("2.0", "FINISHED"), ("2.0", "RUNNING")]
    assert trained(max_epochs=3, alpha=2.0)[1:] == [("2.0", "FINISHED"), ("2.0", "FINISHED")]
    query = "SELECT step FROM metrics WHERE key = 'val/ensemble_patient_auroc' ORDER BY timestamp"
    assert [step for (step,) in rows(database, query)] == [1, 1, 2, 3]
