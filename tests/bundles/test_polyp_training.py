"""Training and evaluation of detectors, run in a subprocess as the README says."""

from __future__ import annotations

import ast
import contextlib
import io
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from kdml_med.networks import build_network
from kdml_med.runs import load_cohort
from kdml_med.splits import freeze_splits
from kdml_med.storage.manifest import read_manifest
from tests.bundles.conftest import (
    POLYP_CONFIGS,
    SMALL_DETECTOR,
    polyp_words,
    read_json,
    refused,
    run_bundle,
    run_here,
)
from tests.kills import kill_in_step
from tests.results import lasting, points
from tests.synthetic_frames import SPLITS, write_frame_dataset

NETWORKS = ["ensemble", "student_0", "student_1", "teacher"]  # sorted
RESULTS = ["metrics.json", "detections.parquet", "sequences.csv", "cohort.json"]
STEPS = 3
"""Of an epoch of the dataset here."""
WEIGHTS = [f"checkpoints/{name}.pt" for name in ("last", "best", "teacher", "student_0", "student_1")]


def contents(run_dir: Path) -> dict[str, bytes]:
    return {name: lasting(run_dir / name) for name in RESULTS + WEIGHTS}


def evaluate_words(dataset: Path, run_dir: Path, *more: str) -> list[str | Path]:
    files = f"['{POLYP_CONFIGS}/train.json','{POLYP_CONFIGS}/evaluate.json']"
    return ["run", "--config_file", files, "--dataset_dir", dataset, "--run_dir", run_dir, *more]


@pytest.fixture(scope="module")
def evaluated(frames: Path, trained_detectors: Path) -> Path:
    # Two epochs teach little: every anchor counts, so that there are detections to compare.
    run_here(*evaluate_words(frames, trained_detectors, "--validate#evaluator#score_threshold", "0.0"))
    return trained_detectors / "evaluation_test"


def test_training_leaves_the_promised_files_and_a_table(trained_detectors: Path) -> None:
    for name in RESULTS + WEIGHTS:
        assert (trained_detectors / name).is_file(), name
    screen = (trained_detectors / "screen.txt").read_text()
    assert "epoch 2/2" in screen
    assert "AP50" in screen
    assert "Generated data" in screen
    metrics = read_json(trained_detectors / "metrics.json")
    assert sorted(metrics["networks"]) == sorted(metrics["thresholds"]) == NETWORKS
    assert metrics["split"] == "val"


def test_a_cohort_of_detectors_is_rebuilt_from_its_run(trained_detectors: Path) -> None:
    cohort = load_cohort(trained_detectors)
    assert cohort.names == ["teacher", "student_0", "student_1"]
    best = torch.load(trained_detectors / "checkpoints/best.pt", weights_only=True)["network"]
    for key, value in cohort.state_dict().items():
        assert torch.equal(value, best[key]), key
    students = load_cohort(trained_detectors, students_only=True).eval()
    assert students(torch.zeros(1, 3, 64, 64))["student_0"].logits.shape == (1, 85, 1)


def coco_ap(dataset: Path, detections: pd.DataFrame) -> float:
    """AP of one network on the test split by pycocotools."""
    manifest = read_manifest(dataset)
    rows = manifest[manifest["patient_id"].map(SPLITS) == "test"].reset_index(drop=True)
    numbers = {name: number + 1 for number, name in enumerate(rows["sample_id"])}
    truth = COCO()
    annotations = []
    for name, boxes in zip(rows["sample_id"], rows["boxes"], strict=True):
        for xmin, ymin, xmax, ymax in boxes:
            box = [xmin, ymin, xmax - xmin, ymax - ymin]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": numbers[name], "category_id": 1, "bbox": box,
                 "area": box[2] * box[3], "iscrowd": 0}
            )  # fmt: skip
    truth.dataset = {
        "info": {}, "images": [{"id": number} for number in numbers.values()], "annotations": annotations,
        "categories": [{"id": 1, "name": "polyp"}],
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = truth.loadRes(
            [
                {"image_id": numbers[row.sample_id], "category_id": 1, "score": row.score,
                 "bbox": [row.xmin, row.ymin, row.xmax - row.xmin, row.ymax - row.ymin]}
                for row in detections.itertuples()
            ]
        )  # fmt: skip
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def test_precision_agrees_with_pycocotools_on_the_written_detections(evaluated: Path, frames: Path) -> None:
    detections = pd.read_parquet(evaluated / "detections.parquet")
    assert not detections.empty
    metrics = read_json(evaluated / "metrics.json")
    for network, rows in detections.groupby("network"):
        assert metrics["networks"][network]["ap"] == pytest.approx(coco_ap(frames, rows), abs=1e-9), network


def test_detections_lie_in_their_frames_and_sequences_are_listed(evaluated: Path, frames: Path) -> None:
    detections = pd.read_parquet(evaluated / "detections.parquet")
    assert set(detections["patient_id"]) <= {"P3"}
    corners = detections[["xmin", "ymin", "xmax", "ymax"]].to_numpy()
    assert (corners >= 0).all()
    assert (corners <= np.array([64, 48, 64, 48]) + 1e-3).all()
    sequences = pd.read_csv(evaluated / "sequences.csv")
    assert list(sequences["sequence_id"]) == ["P3-s"]
    assert sequences["frames"].tolist() == [6]


def test_thresholds_come_from_validation(evaluated: Path, trained_detectors: Path) -> None:
    chosen = read_json(trained_detectors / "metrics.json")["thresholds"]
    assert read_json(evaluated / "metrics.json")["thresholds"] == chosen


@pytest.mark.parametrize("name", ["fusion", "validate#evaluator#fusion"])
def test_test_frames_do_not_choose_how_boxes_are_fused(
    frames: Path, trained_detectors: Path, tmp_path: Path, name: str
) -> None:
    said = refused(*evaluate_words(frames, trained_detectors, "--output_dir", str(tmp_path), f"--{name}", "boxes"))
    assert said.startswith("--fusion is 'boxes', the run was trained with 'anchors': on split 'test'")
    assert not list(tmp_path.iterdir())


def test_test_frames_choose_no_threshold_whatever_they_are_called(
    frames: Path, trained_detectors: Path, tmp_path: Path
) -> None:
    swapped = shutil.copytree(frames, tmp_path / "swapped")
    table = pd.read_csv(swapped / "splits.csv", dtype=str)
    table["split"] = table["split"].replace({"val": "test", "test": "val"})
    freeze_splits(swapped, table, mode="table", seed=None, force=True)
    out = tmp_path / "out"
    for dataset, words, expected in (
        (swapped, [], "split 'val' has 1 patient whom this run did not validate on, first 'P3'"),
        # past the settings
        (frames, ["--validate#dataset#split", "test"], "the evaluator reads the split 'test', and its results would"),
    ):
        words = ["--output_dir", str(out), "--split", "val", *words]
        assert refused(*evaluate_words(dataset, trained_detectors, *words)).startswith(expected)
        assert not (out / "metrics.json").exists()
    said = refused(*evaluate_words(frames, trained_detectors, "--output_dir", str(trained_detectors)))
    assert said.startswith("--output_dir is the folder of the run")


def test_speed_is_measured_for_every_network(evaluated: Path) -> None:
    speed = read_json(evaluated / "speed.json")
    assert sorted(speed["frames_per_second"]) == NETWORKS
    assert min(speed["frames_per_second"].values()) > 0


def test_killed_training_goes_on_to_the_same_bytes(frames: Path, trained_detectors: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "killed"
    kill_in_step(STEPS + 2, polyp_words(frames, run_dir), run_dir)
    result = run_bundle(*polyp_words(frames, run_dir))
    assert f"Going on behind batch 1 of {STEPS} in epoch 2 of " in result.stdout
    resumed, uninterrupted = contents(run_dir), contents(trained_detectors)
    assert [name for name in resumed if resumed[name] != uninterrupted[name]] == []
    resumed, uninterrupted = (
        {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
        for folder in (run_dir, trained_detectors)
    )
    assert resumed.keys() == uninterrupted.keys()
    assert [name for name in resumed if resumed[name] != uninterrupted[name]] == []
    assert points(run_dir / "tensorboard") == points(trained_detectors / "tensorboard")


@pytest.mark.slow
def test_a_killed_training_with_a_committee_and_own_starts_goes_on_to_the_same_bytes(
    frames: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "body.pt"
    torch.save(build_network(ast.literal_eval(SMALL_DETECTOR), num_classes=1).body.state_dict(), weights)
    committee = f"{{'name': 'committee', 'members': [{SMALL_DETECTOR}, {SMALL_DETECTOR}]}}"
    more = ["--teacher", committee, "--initial_weights", weights, "--own_start", "last_stage"]
    more += ["--teacher_warmup_epochs", "1", "--average", "ema"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_bundle(*polyp_words(frames, whole, *more))
    kill_in_step(STEPS + 2, polyp_words(frames, killed, *more), killed)
    assert "Going on behind batch 1 of" in run_bundle(*polyp_words(frames, killed, *more)).stdout
    resumed, uninterrupted = contents(killed), contents(whole)
    assert [name for name in resumed if resumed[name] != uninterrupted[name]] == []


def test_a_sequence_in_two_splits_is_refused(frames: Path, tmp_path: Path) -> None:
    leaking = shutil.copytree(frames, tmp_path / "leaking")
    splits = pd.read_csv(leaking / "splits.csv")
    pd.concat([splits, splits[:1].assign(split="test")]).to_csv(leaking / "splits.csv", index=False)
    said = refused(*polyp_words(leaking, tmp_path / "run"))
    assert "P0" in said
    assert not (tmp_path / "run").exists()


def test_frames_that_were_learned_from_are_no_test(trained_detectors: Path, tmp_path: Path) -> None:
    mixed = {"P2": "train", "P3": "val", "P0": "test"}
    write_frame_dataset(tmp_path / "mixed", splits=mixed, frames=6)
    said = refused(*evaluate_words(tmp_path / "mixed", trained_detectors))
    assert "used in training" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image_size", "100"], "multiples of 64"),
        (["--frozen_stages", "2"], "initial_weights"),
        (["--fusion", "votes"], "--fusion is 'votes', expected one of: anchors, boxes"),
        (["--colour_jiter", "0.1"], "Did you mean --colour_jitter?"),
    ],
)
def test_settings_that_make_no_sense_are_refused(frames: Path, tmp_path: Path, words: list[str], message: str) -> None:
    said = refused(*polyp_words(frames, tmp_path / "run", *words))
    assert message in said


def test_tiles_are_no_frames(dataset: Path, tmp_path: Path) -> None:
    said = refused(*polyp_words(dataset, tmp_path / "run"))
    assert "dataset of tiles, this task needs frames" in said


@pytest.mark.slow
def test_fused_boxes_and_peers_without_a_teacher_train_too(frames: Path, tmp_path: Path) -> None:
    words = ["--fusion", "boxes", "--beta", "0", "--peer_link", "features", "--max_epochs", "1"]
    run_bundle(*polyp_words(frames, tmp_path / "run", *words))
    metrics = read_json(tmp_path / "run/metrics.json")
    assert sorted(metrics["networks"]) == ["ensemble", "student_0", "student_1"]
