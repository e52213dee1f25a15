"""Both bundles trained by several processes with torchrun, on the CPU: the same as one process, and how they end."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from monai.bundle import ConfigWorkflow

from kdml_med.bundle.running import run_config
from kdml_med.bundle.settings import check_settings
from kdml_med.bundle.training import check_shares, run_training
from kdml_med.errors import InputError
from kdml_med.networks import build_cohort
from kdml_med.networks.remembered import RememberedTeacher
from kdml_med.runs import read_losses
from tests.bundles.conftest import CONFIGS, POLYP_CONFIGS, REPOSITORY, read_json
from tests.bundles.together import train_in_processes
from tests.networks.tiny import PLAIN, STAGED, STEADY_DETECTOR, TINY

FLOAT: dict[str, Any] = {"device": "cpu", "precision": "fp32"}
# Without batch norm, which sees only the samples of its own process on a CPU.
CLASSIFIERS: dict[str, Any] = FLOAT | {"teacher": PLAIN, "students": [PLAIN, PLAIN], "batch_size": 8}
DETECTORS: dict[str, Any] = FLOAT | {
    "teacher": STEADY_DETECTOR,
    "students": [STEADY_DETECTOR, STEADY_DETECTOR],
    "image_size": 64,
    "batch_size": 4,
    "ramp_up_epochs": 0,
}
COMMITTEES: dict[str, Any] = CLASSIFIERS | {
    "teacher": {"name": "committee", "members": [PLAIN, STAGED]},
    "students": [PLAIN, {"name": "committee", "members": [PLAIN, STAGED]}],
    "student_views": True,
    "own_labels": True,
    "teacher_warmup_epochs": 1,
    "average": "ema",
    "average_teaches": True,
}
DETECTOR_COMMITTEES: dict[str, Any] = DETECTORS | {
    "teacher": {"name": "committee", "members": [STEADY_DETECTOR, {"name": STEADY_DETECTOR, "width": 24}]},
    "teacher_link": "both",
}


def torchrun(configs: Path, count: int, **settings: Any) -> list[str]:
    """The command of several processes on this machine, at a port of their own."""
    files = [f"{configs}/train.json", f"{configs}/multi_gpu_train.json"]
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    return [*launcher, "-m", "monai.bundle", "run", "--config_file", str(files), *words]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def train_together(configs: Path, count: int, **settings: Any) -> str:
    """Train; returns what was on the screen."""
    command = torchrun(configs, count, **settings)
    result = subprocess.run(
        command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout + result.stderr


def weights_of(run_dir: Path, name: str = "last") -> dict[str, torch.Tensor]:
    content = torch.load(run_dir / f"checkpoints/{name}.pt", weights_only=True)
    return content["network"] if name in ("last", "best") else content


def assert_same_training(run_dir: Path, other: Path) -> None:
    """Losses, weights and validation are the same but for the rounding of floats."""
    losses, others = read_losses(run_dir), read_losses(other)
    pd.testing.assert_frame_equal(losses, others, rtol=1e-4, atol=1e-6)
    found, wanted = weights_of(run_dir), weights_of(other)
    assert found.keys() == wanted.keys()
    # All together: AdamW takes a step of full size where a gradient is nothing but rounding.
    difference, size = (
        torch.cat([value.float().flatten() for value in one]).norm().item()
        for one in ([found[name] - value for name, value in wanted.items()], list(wanted.values()))
    )
    assert difference < 2e-4 * size
    assert read_json(run_dir / "settings.json")["knobs"] == read_json(other / "settings.json")["knobs"]


@pytest.mark.parametrize(
    "networks", [CLASSIFIERS, pytest.param(COMMITTEES, marks=pytest.mark.slow)], ids=["plain", "committees"]
)
def test_three_processes_train_classifiers_as_one_does(dataset: Path, tmp_path: Path, networks: dict[str, Any]) -> None:
    """The last batch of an epoch has two tiles: the third process has none of it."""
    settings = networks | {"dataset_dir": dataset, "max_epochs": 2, "tiles_per_epoch": 18}
    run_config("classification", "train", run_dir=tmp_path / "one", **settings)
    screens = train_in_processes(3, "classification", tmp_path / "screens", run_dir=tmp_path / "three", **settings)
    assert_same_training(tmp_path / "three", tmp_path / "one")
    found, wanted = (pd.read_parquet(tmp_path / run / "predictions.parquet") for run in ("three", "one"))
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-3, atol=1e-5)
    for table in ("patients.csv", "history.csv"):
        found, wanted = (pd.read_csv(tmp_path / run / table) for run in ("three", "one"))
        pd.testing.assert_frame_equal(found, wanted, rtol=1e-3, atol=1e-4)
    assert screens[0].count("epoch 2/2  ") == screens[0].count("Written to") == 1
    assert screens[1:] == ["", ""], "one of them speaks"
    assert len(list((tmp_path / "three/tensorboard/cohort").iterdir())) == 1


@pytest.mark.parametrize(
    "networks", [DETECTORS, pytest.param(DETECTOR_COMMITTEES, marks=pytest.mark.slow)], ids=["plain", "committee"]
)
def test_two_processes_train_detectors_as_one_does(frames: Path, tmp_path: Path, networks: dict[str, Any]) -> None:
    """Two batches make an update, the last one alone makes one."""
    settings = networks | {"dataset_dir": frames, "max_epochs": 1, "accumulate": 2}
    settings["validate#evaluator#score_threshold"] = 0.0  # one epoch teaches little: else there is nothing to compare
    run_config("detection", "train", run_dir=tmp_path / "one", **settings)
    screens = train_in_processes(2, "detection", tmp_path / "screens", run_dir=tmp_path / "two", **settings)
    assert_same_training(tmp_path / "two", tmp_path / "one")
    found, wanted = (pd.read_parquet(tmp_path / run / "detections.parquet") for run in ("two", "one"))
    assert len(found) > 0
    assert_same_detections(found, wanted)
    assert screens[1] == ""


def assert_same_detections(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    """Frame by frame the same scored boxes; those of scores that differ by rounding alone come in any order."""
    keys, numbers = ["network", "sample_id"], ["xmin", "ymin", "xmax", "ymax", "score"]
    counts = [table.groupby(keys).size() for table in (found, wanted)]
    pd.testing.assert_series_equal(*counts)
    for name, own in found.groupby(keys):
        others = wanted[(wanted[keys] == list(name)).all(axis=1)][numbers].to_numpy()
        apart = (np.abs(own[numbers].to_numpy()[:, None] - others) / (1 + np.abs(others))).max(axis=2)
        assert apart.min(axis=0).max() < 1e-3, name
        assert apart.min(axis=1).max() < 1e-3, name


@pytest.mark.slow
def test_torchrun_trains_and_a_run_goes_on_with_another_number_of_processes(dataset: Path, tmp_path: Path) -> None:
    settings = CLASSIFIERS | {"dataset_dir": dataset}
    for epochs in (1, 2):
        run_config("classification", "train", run_dir=tmp_path / "one", max_epochs=epochs, **settings)
    screen = train_together(CONFIGS, 2, run_dir=tmp_path / "two", max_epochs=1, **settings)
    assert screen.count("epoch 1/1  ") == screen.count("Written to") == 1
    command = read_json(tmp_path / "two/settings.json")["made_by"]["command"]
    assert command.startswith("torchrun --nproc_per_node=2 -m monai.bundle run --config_file")
    run_config("classification", "train", run_dir=tmp_path / "two", max_epochs=2, **settings)
    assert_same_training(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_the_console_command_starts_processes_and_ends_as_they_do(dataset: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "kdml_med.cli", "train", str(dataset), "--run", str(tmp_path / "run")]
    words += ["--processes", "2", "--students", f"['{PLAIN}']", "--teacher", PLAIN, "--max-epochs", "1"]
    for more, code, line in (
        (["--device", "cpu"], 0, "Next: kdml-med evaluate"),
        (["--device", "cpu", "--seed", "3"], 2, "error: .*--seed was 0, now 3"),
    ):
        found = subprocess.run(
            [*words, *more], cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=False, timeout=300
        )
        screen = found.stdout + found.stderr
        assert found.returncode == code, screen
        assert len(re.findall(line, screen)) == 1, screen
        assert "Traceback" not in screen


@pytest.mark.slow
def test_torchrun_trains_detectors_with_batch_norm(frames: Path, tmp_path: Path) -> None:
    """Here a process normalises by its own frames: another training, whose parts all have to be there."""
    detector = {"name": "retinanet", "body": "mobilenet_v2", "last_block": 13, "width": 16, "head_convs": 1}
    settings = DETECTORS | {"teacher": detector, "students": [detector, detector], "dataset_dir": frames}
    screen = train_together(POLYP_CONFIGS, 2, run_dir=tmp_path / "two", max_epochs=2, **settings)
    assert screen.count("epoch 2/2  ") == 1
    assert read_json(tmp_path / "two/metrics.json")["split"] == "val"
    run_config("detection", "evaluate", run_dir=tmp_path / "two", dataset_dir=frames, split="val", device="cpu")
    found, wanted = (pd.read_parquet(tmp_path / "two" / run / "detections.parquet") for run in ("", "evaluation_val"))
    pd.testing.assert_frame_equal(found, wanted)


def ended(process: subprocess.Popen[str]) -> str:
    """Errors of a command that has to end by itself, and not well."""
    try:
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode != 0
    return errors


def start(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def said(errors: str) -> list[str]:
    return [line for line in errors.splitlines() if line.startswith("error: ")]


@pytest.mark.slow
def test_a_tile_that_one_process_cannot_read_ends_all_and_is_said_once(dataset: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(dataset, tmp_path / "tiles")
    rows = pd.read_parquet(broken / "manifest.parquet")
    splits = pd.read_csv(broken / "splits.csv").set_index("patient_id")["split"]
    row = rows[rows["patient_id"].map(splits) == "train"].iloc[0]
    with (broken / row["shard"]).open("r+b") as stream:
        stream.seek(int(row["offset"]))
        stream.write(bytes(int(row["size"])))
    settings = CLASSIFIERS | {"dataset_dir": broken, "run_dir": tmp_path / "run", "max_epochs": 50}
    errors = ended(start(*torchrun(CONFIGS, 2, **settings)))
    lines = said(errors)
    assert len(lines) == 1, errors
    assert f"tile '{row['sample_id']}'" in lines[0]
    assert "InputError: tile" in errors.rpartition("FAILED")[2], "the launcher ends with the reason"


def children_of(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_others_and_the_run_goes_on(dataset: Path, tmp_path: Path, rank: int) -> None:
    settings = CLASSIFIERS | {"dataset_dir": dataset, "run_dir": tmp_path / "run"}
    process = start(*torchrun(CONFIGS, 2, **settings, max_epochs=1000))
    deadline = time.monotonic() + 200
    while not (tmp_path / "run/checkpoints/last.pt").is_file() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    assert (tmp_path / "run/checkpoints/last.pt").is_file()
    os.kill(sorted(children_of(process.pid))[rank], signal.SIGKILL)
    errors = ended(process)
    assert len(said(errors)) <= 1, "the launcher may end the other one before it has noticed"
    assert all("another process of this training is gone" in line for line in said(errors)), errors
    assert "SIGKILL" in errors
    epochs = read_losses(tmp_path / "run")["epoch"].max()
    run_config("classification", "train", **settings, max_epochs=int(epochs) + 1)
    assert read_losses(tmp_path / "run")["epoch"].max() == epochs + 1


def test_questions_to_a_remembered_teacher_are_those_of_all_processes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    remembered = mock.Mock(spec=RememberedTeacher, asked=5, known=2)
    others = {"asked": 4.0, "known": 1.0}
    monkeypatch.setattr(
        "kdml_med.engines.processes.total", lambda own: {name: own[name] + others[name] for name in own}
    )
    caplog.set_level("INFO", "kdml_med")
    trainer: Any = SimpleNamespace(run=lambda: None, cohort=SimpleNamespace(remembered=remembered))
    run_training(trainer)
    assert caplog.messages == ["The teacher was asked about 9 images; to 3 its answers were known."]


def test_batch_norm_of_single_samples_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdml_med.engines.processes.world_size", lambda: 5)
    values = {"dataset_dir": "data", "run_dir": tmp_path, "device": "cpu", "batch_size": 8}
    few = check_settings("classification", "train", values)
    check_shares(few, build_cohort(students=[PLAIN], use_teacher=False))
    cohort = build_cohort(students=[PLAIN, TINY], use_teacher=False)
    with pytest.raises(
        InputError, match=r"--batch_size 8 is that of all 5 processes .*: raise it to 10, better 40, or"
    ):
        check_shares(few, cohort)
    check_shares(check_settings("classification", "train", values | {"batch_size": 10}), cohort)


def test_processes_that_would_not_train_together_are_refused(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    place = {"dataset_dir": str(dataset), "run_dir": str(tmp_path / "run"), "device": "cpu"}
    workflow = ConfigWorkflow(config_file=str(CONFIGS / "train.json"), logging_file=False, **place)
    monkeypatch.setattr("kdml_med.bundle.workflow.end_together", lambda error: error)
    with pytest.raises(InputError, match="2 processes were started, and each would train a run of its own"):
        workflow.initialize()
