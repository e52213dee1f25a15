"""Run folders as training and evaluation leave them, with answers that a test made up: no network is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdml_med.keys import DetectionColumn, Task
from kdml_med.metrics.detection import choose_thresholds
from kdml_med.metrics.detection_evaluation import evaluate_detections, sequence_table
from kdml_med.metrics.evaluation import evaluate_predictions
from kdml_med.runs import (
    DETECTIONS_FILE,
    METRICS_FILE,
    PREDICTIONS_FILE,
    SEQUENCES_FILE,
    SETTINGS_FILE,
    RunDescription,
    hashed_patient,
    write_detections,
    write_predictions,
)
from kdml_med.storage.files import write_json, write_table

NETWORKS = ("teacher", "student_0", "student_1", "ensemble")
CLASSES = ["MSS", "MSI"]
# Mean probabilities 0.2, 0.5, 0.4 and 0.9; positives are b and d.
FOUR = {"a": (0, [0.1, 0.3]), "b": (1, [0.3, 0.7]), "c": (0, [0.4]), "d": (1, [0.8, 1.0])}


def predictions_of(
    patients: Mapping[str, tuple[int, Sequence[float]]], *, networks: Sequence[str] = NETWORKS, seed: int = 0
) -> pd.DataFrame:
    """Columns of predictions.parquet; of each patient its label and the probabilities of its tiles, one slide each.

    The first network gives them as they are, the others a little less sure, each in its own way.
    """
    generator = np.random.default_rng(seed)
    rows = []
    for place, network in enumerate(networks):
        for patient, (label, probabilities) in patients.items():
            for tile, probability in enumerate(probabilities):
                moved = probability if place == 0 else 0.1 + 0.8 * probability + generator.uniform(-0.05, 0.05)
                rows.append((f"{patient}_{tile}", f"S{patient}", patient, network, label, moved))
    columns = ["sample_id", "slide_id", "patient_id", "network", "label", "probability"]
    return pd.DataFrame(rows, columns=columns)


def many(prefix: str, *, n: int = 30, seed: int = 0, shift: float = 0.0) -> pd.DataFrame:
    """Patients whose networks are right more often than not."""
    generator = np.random.default_rng(seed)
    patients = {}
    for place in range(n):
        label = place % 2
        tiles = np.clip(generator.normal(0.4 + 0.2 * label + shift, 0.2, 4), 0.01, 0.99)
        patients[f"{prefix}{place:02}"] = (label, tiles.tolist())
    return predictions_of(patients, seed=seed)


def write_evaluation(folder: Path, predictions: pd.DataFrame, *, split: str, **changes: Any) -> Path:
    """Write predictions.parquet and metrics.json as an evaluation does; ``changes`` are keys of metrics.json."""
    folder.mkdir(parents=True, exist_ok=True)
    how: dict[str, Any] = {"level": "patient", "aggregation": "mean"}
    how |= {key: value for key, value in changes.items() if key in how}
    figures = evaluate_predictions(predictions, level=how["level"], method=how["aggregation"], resamples=0)
    content = {"split": split, **how, "classes": CLASSES, "synthetic": True, "networks": figures}
    write_predictions(folder / PREDICTIONS_FILE, predictions)
    write_json(folder / METRICS_FILE, content | changes)
    return folder


def write_run(
    folder: Path, validation: pd.DataFrame, *, train: Sequence[str] = (), networks: Sequence[str] = NETWORKS,
    **changes: Any,
) -> Path:  # fmt: skip
    """Write a finished run whose training validated on these predictions; ``changes`` are keys of cohort.json."""
    folder.mkdir(parents=True, exist_ok=True)
    seen = {"train": train, "val": validation["patient_id"].unique()}
    usual: dict[str, Any] = {
        "task": Task.CLASSIFICATION, "version": "v1", "image_size": 32, "fold": None, "synthetic": True,
        "networks": {name: "resnet10" for name in networks if name != "ensemble"}, "classes": CLASSES,
        "seen_patients": {part: sorted(map(hashed_patient, names)) for part, names in seen.items()},
        "kdml_med": "0", "level": "patient", "aggregation": "mean", "ensemble_average": "probabilities",
    }  # fmt: skip
    described = RunDescription(**usual | changes)
    described.write(folder)
    write_json(folder / SETTINGS_FILE, {"knobs": {}, "free": {}})
    how: dict[str, Any] = {name: getattr(described, name) for name in ("level", "aggregation", "classes")}
    return write_evaluation(folder, validation, split="val", **how)


def frames_of(patients: Sequence[str], *, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Frames with one box each, and what two detectors found there, a false alarm in every third frame included."""
    generator = np.random.default_rng(seed)
    frames, found = [], []
    for place, patient in enumerate(patients):
        name = f"{patient}_0"
        box = [10.0, 10.0, 50.0 + place, 40.0]
        frames.append((name, f"Q{patient}", patient, [box], "polyp"))
        for network in ("student_0", "ensemble"):
            found.append((name, f"Q{patient}", patient, network, generator.uniform(0.3, 0.9), *box))
            if place % 3 == 0:
                found.append(
                    (name, f"Q{patient}", patient, network, generator.uniform(0.1, 0.6), 90.0, 90.0, 99.0, 99.0)
                )
    columns = ["sample_id", "sequence_id", "patient_id", "boxes", "label"]
    return pd.DataFrame(frames, columns=columns), pd.DataFrame(found, columns=[str(one) for one in DetectionColumn])


def write_detector_evaluation(
    folder: Path, frames: pd.DataFrame, detections: pd.DataFrame, thresholds: Mapping[str, float], *, split: str
) -> Path:
    """Write detections.parquet, sequences.csv and metrics.json as an evaluation of detectors does."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = evaluate_detections(frames, detections, threshold=thresholds, resamples=0)
    write_detections(folder / DETECTIONS_FILE, detections)
    write_table(folder / SEQUENCES_FILE, sequence_table(frames, detections, threshold=thresholds))
    content = {
        "split": split, "classes": ["negative", "polyp"], "thresholds": dict(thresholds), "synthetic": True,
        "bootstrap": {"resamples": 0, "unit": "sequence", "confidence": 0.95, "interval": "percentile"},
        "networks": figures,
    }  # fmt: skip
    write_json(folder / METRICS_FILE, content)
    return folder


def write_detector_run(folder: Path, frames: pd.DataFrame, detections: pd.DataFrame) -> Path:
    """Write a finished run of detectors whose training validated on these frames."""
    folder.mkdir(parents=True, exist_ok=True)
    validated = sorted(map(hashed_patient, frames["patient_id"]))
    RunDescription(
        task=Task.DETECTION, version="tiny", networks={"student_0": "retinanet"}, classes=["negative", "polyp"],
        image_size=64, fold=None, synthetic=True, seen_patients={"train": [], "val": validated}, kdml_med="0",
        fusion="anchors",
    ).write(folder)  # fmt: skip
    write_json(folder / SETTINGS_FILE, {"knobs": {}, "free": {}})
    return write_detector_evaluation(folder, frames, detections, choose_thresholds(frames, detections), split="val")
