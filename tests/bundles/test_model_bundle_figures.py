"""Figures and thresholds in an exported bundle are those of the weights in it; no network is trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from monai.bundle import ConfigWorkflow
from PIL import Image

from kdml_med.bundle.model_bundle import write_model_bundle
from kdml_med.errors import InputError
from kdml_med.runs import METRICS_FILE, SETTINGS_FILE, hash_checkpoints
from kdml_med.storage.files import write_json
from tests.bundles.conftest import read_json
from tests.deploy.export import test_exported_detector_files as detectors
from tests.deploy.runs import write_run
from tests.synthetic_tiles import write_tile_dataset

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
KNOBS = {"knobs": {}, "free": {}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Classifiers with an evaluation of the test split."""
    folder = write_run(tmp_path / "run", write_tile_dataset(tmp_path / "tiles"))
    write_json(folder / SETTINGS_FILE, KNOBS)
    own = {"auroc": 0.75, "n": 40, "positives": 20}
    metrics = {
        "split": "test", "level": "patient", "classes": ["MSS", "MSI"], "bootstrap": {"unit": "patient", "units": 40},
        "networks": {name: {"tile": own, "patient": own} for name in ("teacher", "student_0", "student_1")},
    }  # fmt: skip
    write_json(folder / "evaluation_test" / METRICS_FILE, metrics)
    return folder


def test_an_evaluation_of_other_weights_is_refused_as_the_report_refuses_it(run: Path, tmp_path: Path) -> None:
    weights = hash_checkpoints(run, ["teacher", "student_0", "student_1"])
    record = run / "evaluation_test/evaluation.json"
    write_json(record, {"weights": weights | {"student_1": "0" * 64}})  # one that the bundle has no part of
    bundle = write_model_bundle(run, tmp_path / "bundle", network="student_0")
    assert read_json(bundle / "configs/metadata.json")["eval_metrics"] == {"tile_auroc": 0.75, "patient_auroc": 0.75}
    write_json(record, {"weights": weights | {"student_0": "0" * 64}})
    with pytest.raises(InputError, match=r"evaluation_test was evaluated with other weights of student_0 than lie in"):
        write_model_bundle(run, tmp_path / "other", network="student_0")
    assert not (tmp_path / "other").exists()


def test_an_evaluation_of_another_dataset_is_refused_as_the_report_refuses_it(run: Path, tmp_path: Path) -> None:
    write_json(run / "evaluation_test/evaluation.json", {"dataset": {"manifest_sha256": "1"}})
    write_json(run / SETTINGS_FILE, KNOBS | {"dataset": {"manifest_sha256": "1"}})
    write_model_bundle(run, tmp_path / "bundle", network="student_0")
    write_json(run / SETTINGS_FILE, KNOBS | {"dataset": {"manifest_sha256": "2"}})
    with pytest.raises(InputError, match=r"evaluation_test is of another dataset than .* was trained on"):
        write_model_bundle(run, tmp_path / "other", network="student_0")


@pytest.mark.parametrize(
    ("recall", "who"), [(0.0, "the validation split could choose none"), (0.5, "training chose it on its validation")]
)
def test_the_card_of_a_detector_says_who_chose_its_threshold(tmp_path: Path, recall: float, who: str) -> None:
    run = detectors.write_run(tmp_path / "run")
    write_json(run / SETTINGS_FILE, KNOBS)
    own = {"recall": recall, "n_boxes": 40, "n_frames": 60, "n_sequences": 9}
    own |= {f"{name}{end}": None if end else 0.5 for name in ("ap", "ap50", "ap75", "f1") for end in ("", "_ci95")}
    found = dict.fromkeys(("student_0", "student_1", "ensemble"), own)
    metrics = {"split": "val", "thresholds": dict.fromkeys(found, 0.5), "networks": found}
    write_json(run / METRICS_FILE, metrics | {"bootstrap": {"unit": "frame"}})
    bundle = write_model_bundle(run, tmp_path / "bundle", network="student_0")
    assert f"score of 0.5000 on, as for F1: {who}" in (bundle / "docs/README.md").read_text()


def test_a_detector_brings_its_threshold(tmp_path: Path) -> None:
    run, threshold = detectors.write_run(tmp_path / "run"), 0.375
    write_json(run / SETTINGS_FILE, KNOBS)
    write_json(run / METRICS_FILE, {"thresholds": {"student_0": threshold, "student_1": 0.5, "ensemble": 0.5}})
    bundle = write_model_bundle(run, tmp_path / "bundle", network="student_0")
    assert read_json(bundle / "configs/inference.json")["threshold"] == threshold
    assert "A box counts from a score of 0.3750 on" in (bundle / "docs/README.md").read_text()
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (100, 170, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images/a.png")

    def infer(**changes: float) -> pd.DataFrame:
        workflow = ConfigWorkflow(
            config_file=str(bundle / "configs/inference.json"), workflow_type="inference", logging_file=False,
            bundle_root=str(bundle), dataset_dir=str(tmp_path / "images"), output_dir=str(tmp_path / "out"),
            device="cpu", **changes,
        )  # fmt: skip
        workflow.initialize()
        workflow.run()
        return pd.read_csv(tmp_path / "out/predictions.csv")

    found = infer()
    assert list(found) == ["file", "score", "xmin", "ymin", "xmax", "ymax", "above_threshold"]
    assert (found["above_threshold"] == (found["score"] >= threshold)).all()
    # Untrained networks are about as sure of all their boxes: a threshold among these tells them apart.
    again = infer(threshold=float(found["score"].median()))
    assert set(again["above_threshold"]) == {True, False}
    assert (again["above_threshold"] == (again["score"] >= found["score"].median())).all()


def test_a_bundle_of_classifiers_has_no_threshold(run: Path, tmp_path: Path) -> None:
    bundle = write_model_bundle(run, tmp_path / "bundle", network="student_0")
    assert "threshold" not in json.dumps(read_json(bundle / "configs/inference.json"))
    assert "counts from a score" not in (bundle / "docs/README.md").read_text()
