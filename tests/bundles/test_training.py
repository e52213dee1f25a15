"""The training command, run in a subprocess as the README says."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from monai.bundle import ConfigWorkflow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kdml_med.errors import INTERRUPTED, InputError
from kdml_med.networks import build_network
from kdml_med.runs import RunDescription, load_cohort, load_network
from kdml_med.storage.files import content_hash
from kdml_med.storage.manifest import read_manifest
from tests.bundles.conftest import (
    CONFIGS,
    REPOSITORY,
    bundle_command,
    read_json,
    refused,
    run_bundle,
    run_here,
    train_words,
)
from tests.kills import kill_in_step
from tests.results import lasting, points

NETWORKS = ["teacher", "student_0", "student_1", "ensemble"]
RESULTS = ["metrics.json", "predictions.parquet", "patients.csv", "cohort.json", "losses.csv", "history.csv"]
FIGURES = ["figures/roc.png", "figures/roc.csv", "figures/losses.png", "figures/validation_loss.png"]
STEPS = 6
"""Of an epoch of the dataset here."""
WEIGHTS = [f"checkpoints/{name}.pt" for name in ("last", "best", "teacher", "student_0", "student_1")]


def contents(run_dir: Path) -> dict[str, bytes]:
    return {name: lasting(run_dir / name) for name in RESULTS + FIGURES + WEIGHTS}


def test_training_leaves_the_promised_files_and_a_table(trained: Path) -> None:
    for name in RESULTS + FIGURES + WEIGHTS:
        assert (trained / name).is_file(), name
    screen = (trained / "screen.txt").read_text()
    assert "epoch 2/2" in screen
    assert "patient AUROC" in screen
    assert "Generated data" in screen
    metrics = read_json(trained / "metrics.json")
    assert sorted(metrics["networks"]) == sorted(NETWORKS)
    assert metrics["split"] == "val"
    ensemble = metrics["networks"]["ensemble"]["patient"]
    assert 0 <= ensemble["auroc"] <= 1
    assert min(ensemble["positives"], ensemble["n"] - ensemble["positives"]) == 1
    assert ensemble["auroc_ci95"] == [None, None], "resamples of one patient of a class say nothing of others"


def test_checkpoints_load_with_weights_only_and_rebuild_the_networks(trained: Path) -> None:
    for name in WEIGHTS:
        torch.load(trained / name, weights_only=True)
    cohort = load_cohort(trained)
    assert cohort.names == ["teacher", "student_0", "student_1"]
    best = torch.load(trained / "checkpoints/best.pt", weights_only=True)["network"]
    for key, value in cohort.state_dict().items():
        assert torch.equal(value, best[key]), key
    student = load_network(trained, "student_1")
    assert torch.equal(student(torch.ones(1, 3, 32, 32)), cohort.eval()(torch.ones(1, 3, 32, 32))["student_1"])


def events_of(run_dir: Path, network: str) -> EventAccumulator:
    events = EventAccumulator(str(run_dir / "tensorboard" / network), size_guidance={"scalars": 0, "images": 0})
    return events.Reload()


def test_tensorboard_has_a_run_for_every_network(trained: Path) -> None:
    validation = {"val/tile_auroc", "val/tile_accuracy", "val/patient_auroc", "val/patient_accuracy"}
    training = {"train/task_loss", "train/task_loss_epoch", "train/learning_rate", "val/loss"}
    student = {f"train/{term}_loss{ending}" for term in ("kd", "ml") for ending in ("", "_epoch")}
    expected = {
        "teacher": validation | training,
        "student_0": validation | training | student,
        "student_1": validation | training | student,
        "ensemble": validation,
    }
    for network, tags in expected.items():
        events = events_of(trained, network)
        assert set(events.Tags()["scalars"]) == tags, network
        assert "val/precision_recall" in events.Tags()["tensors"]
        assert [event.step for event in events.Scalars("val/patient_auroc")] == [1, 2]


def test_tensorboard_shows_weights_agreement_tiles_and_settings_of_the_cohort(trained: Path) -> None:
    events = events_of(trained, "cohort")
    assert [event.value for event in events.Scalars("weights/beta")] == [0.5, 1.0]
    assert {"val/agreement_student_0_student_1", "train/total_loss"} <= set(events.Tags()["scalars"])
    assert "val/roc" in events.Tags()["images"]
    assert [event.step for event in events.Images("val_tiles_worst/1")] == [1, 2]
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_same_command_gives_the_same_bytes(dataset: Path, trained: Path, tmp_path: Path) -> None:
    run_bundle(*train_words(dataset, tmp_path / "again"))
    again, before = contents(tmp_path / "again"), contents(trained)
    assert [name for name in before if before[name] != again[name]] == []


def test_killed_training_goes_on_to_the_same_bytes(dataset: Path, trained: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "killed"
    kill_in_step(STEPS + 3, train_words(dataset, run_dir), run_dir)
    result = run_bundle(*train_words(dataset, run_dir))
    assert f"Going on behind batch 2 of {STEPS} in epoch 2 of " in result.stdout
    resumed, uninterrupted = contents(run_dir), contents(trained)
    assert [name for name in resumed if resumed[name] != uninterrupted[name]] == []
    assert points(run_dir / "tensorboard") == points(trained / "tensorboard")


@pytest.mark.slow
def test_finished_run_is_left_as_it_is(dataset: Path, trained: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trained, tmp_path / "copy")
    result = run_bundle(*train_words(dataset, copy))
    assert "nothing to do" in result.stdout
    assert contents(copy) == contents(trained)
    assert (copy / "metrics.json").read_bytes() == (trained / "metrics.json").read_bytes()
    (copy / "metrics.json").write_text("{")
    run_bundle(*train_words(dataset, copy))
    assert lasting(copy / "metrics.json") == lasting(trained / "metrics.json")


@pytest.mark.slow
def test_other_settings_for_the_same_run_are_refused(dataset: Path, trained: Path) -> None:
    result = run_bundle(*train_words(dataset, trained, "--gamma", "0.5"), check=False)
    assert result.returncode == 2
    assert "--gamma was 1.0, now 0.5" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_unknown_option_is_refused_with_the_nearest_name(dataset: Path, tmp_path: Path) -> None:
    result = run_bundle(*train_words(dataset, tmp_path / "run", "--learning_rat", "0.1"), check=False)
    assert result.returncode == 2
    assert "unknown option --learning_rat. Did you mean --learning_rate?" in result.stderr
    assert not (tmp_path / "run").exists()


def test_patient_in_two_splits_is_refused(dataset: Path, tmp_path: Path) -> None:
    leaking = shutil.copytree(dataset, tmp_path / "leaking")
    splits = pd.read_csv(leaking / "splits.csv")
    twice = pd.concat([splits, splits[:1].assign(split="test" if splits["split"][0] != "test" else "train")])
    twice.to_csv(leaking / "splits.csv", index=False)
    assert "splits.csv" in refused(*train_words(leaking, tmp_path / "run"))


def test_without_distillation_no_teacher_is_built(dataset: Path, tmp_path: Path) -> None:
    run_here(*train_words(dataset, tmp_path / "run", "--beta", "0"))
    metrics = read_json(tmp_path / "run/metrics.json")
    assert sorted(metrics["networks"]) == ["ensemble", "student_0", "student_1"]
    assert not (tmp_path / "run/checkpoints/teacher.pt").exists()


def test_trained_teacher_is_frozen(dataset: Path, trained: Path, tmp_path: Path) -> None:
    teacher = trained / "checkpoints/teacher.pt"
    run_here(*train_words(dataset, tmp_path / "run", "--teacher_checkpoint", str(teacher)))
    before = torch.load(teacher, weights_only=True)
    after = torch.load(tmp_path / "run/checkpoints/teacher.pt", weights_only=True)
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.slow
def test_answers_that_are_kept_change_nothing_and_spare_the_teacher(
    dataset: Path, trained: Path, tmp_path: Path
) -> None:
    more = ["--teacher_checkpoint", str(trained / "checkpoints/teacher.pt"), "--repeat_views", "1"]
    run_bundle(*train_words(dataset, tmp_path / "plain", *more))
    result = run_bundle(*train_words(dataset, tmp_path / "cached", *more, "--cache_teacher", str(tmp_path / "answers")))
    assert contents(tmp_path / "cached") == contents(tmp_path / "plain")
    splits = read_manifest(dataset).merge(pd.read_csv(dataset / "splits.csv"), on="patient_id")["split"]
    tiles = int((splits != "test").sum())  # of training and validation, asked about in the first of two epochs
    said = f"The teacher was asked about {tiles} images; to {tiles} its answers were known."
    assert said in result.stdout + result.stderr


@pytest.mark.slow
def test_one_student_learns_from_predictions_and_the_other_from_features(dataset: Path, tmp_path: Path) -> None:
    # Unlike the smallest networks these have a stride of 8 in common; evaluation and loading know nothing of maps.
    deeper = ["--teacher", "{'name': 'mobilenet_v2', 'last_block': 6}"]
    deeper += ["--students", "[{'name': 'mobilenet_v2', 'last_block': 4}, {'name': 'mobilenet_v2', 'last_block': 5}]"]
    links = ["--teacher_link", "['predictions','features']", "--peer_link", "both", "--feature_weight", "2.0"]
    run_dir = tmp_path / "run"
    run_bundle(*train_words(dataset, run_dir, *deeper, *links, "--max_epochs", "1"))
    knobs = read_json(run_dir / "settings.json")["knobs"]
    assert knobs["teacher_link"] == ["predictions", "features"]
    assert (knobs["peer_link"], knobs["feature_weight"]) == ("both", 2.0)
    assert sorted(read_json(run_dir / "metrics.json")["networks"]) == sorted(NETWORKS)
    assert load_cohort(run_dir).feature_strides == ()


@pytest.mark.slow
def test_a_run_records_the_weights_that_it_started_from(dataset: Path, tmp_path: Path) -> None:
    weights, run_dir = tmp_path / "published.pt", tmp_path / "run"
    torch.save(build_network({"name": "mobilenet_v2", "last_block": 2}, num_classes=2).state_dict(), weights)
    started = ["--initial_weights", f"{{'student_1': '{weights}'}}", "--max_epochs", "1"]
    result = run_bundle(*train_words(dataset, run_dir, *started))
    expected = {"file": "published.pt", "sha256": content_hash(weights)}
    assert read_json(run_dir / "settings.json")["initial_weights"] == {"student_1": expected}
    assert f"published.pt (SHA-256 {expected['sha256']}): initial weights of student_1" in result.stdout + result.stderr
    # What lies in its place later is not what the run began with.
    torch.save(build_network({"name": "mobilenet_v2", "last_block": 2}, num_classes=2).state_dict(), weights)
    assert content_hash(weights) != expected["sha256"]
    run_bundle(*train_words(dataset, run_dir, *started[:2], "--max_epochs", "2"))
    assert read_json(run_dir / "settings.json")["initial_weights"] == {"student_1": expected}


@pytest.mark.slow
def test_links_that_are_not_as_many_as_the_students_are_refused(dataset: Path, tmp_path: Path) -> None:
    links = ["--teacher_link", "['predictions','predictions','predictions']"]
    result = run_bundle(*train_words(dataset, tmp_path / "run", *links), check=False)
    assert result.returncode == 2
    assert "teacher_link names 3 links" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run/settings.json").exists()


def test_a_training_has_its_folder_alone_and_ctrl_c_ends_it_with_130(dataset: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = train_words(dataset, run_dir, "--num_workers", "1", "--max_epochs", "100")
    process = subprocess.Popen(
        bundle_command(*words), cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not (run_dir / "checkpoints/last.pt").is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (run_dir / "checkpoints/last.pt").is_file()  # it was met at work, and lives
    assert process.poll() is None
    with pytest.raises(InputError, match=r"another run is writing to .*choose another --run_dir"):
        prepare_and_record(dataset, run_dir)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to those who read samples as well
    screen, _ = process.communicate(timeout=60)
    assert process.returncode == 130, screen
    assert screen.count(INTERRUPTED) == 1
    assert "Traceback" not in screen
    assert "terminating due to" not in screen
    assert not list(run_dir.rglob("*.part"))
    assert RunDescription.read(run_dir).names == NETWORKS[:-1]
    torch.load(run_dir / "checkpoints/last.pt", weights_only=True)


def prepare_and_record(dataset: Path, run_dir: Path) -> None:
    """Begin a second training in a run folder, as far as to its first file."""
    small = {
        "teacher": {"name": "mobilenet_v2", "last_block": 3},
        "students": [{"name": "mobilenet_v2", "last_block": 2}] * 2,
    }
    ConfigWorkflow(
        config_file=str(REPOSITORY / CONFIGS / "train.json"), logging_file=False, dataset_dir=str(dataset),
        run_dir=str(run_dir), batch_size=8, max_epochs=2, **small,
    ).initialize()  # fmt: skip
