"""The run folder: what a training or an evaluation leaves behind, and how to read it again.

cohort.json             networks, classes, image size: enough to build the networks and to feed them
settings.json           the knobs that training started with; a resumed run must have the same
checkpoints/last.pt     everything needed to go on; best.pt, student_0.pt, teacher.pt, ...: the best weights
losses.csv              mean loss terms of every epoch
tensorboard/            event files
predictions.parquet     classification: one row per tile and network
patients.csv            classification: one row per patient (or slide), one probability column per network
detections.parquet      detection: one row per detected box and network
sequences.csv           detection: one row per sequence
speed.json              detection: frames per second of every network on the machine at hand
metrics.json            figures with intervals
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from kdml_med.errors import InputError
from kdml_med.keys import DetectionColumn, NetworkName, PredictionColumn, Task, network_order
from kdml_med.metrics.aggregation import AggregationMethod, Level, aggregate_predictions
from kdml_med.networks.cohort import Cohort, load_trained
from kdml_med.networks.registry import build_network
from kdml_med.storage.files import write_parquet

COHORT_FILE = "cohort.json"
SETTINGS_FILE = "settings.json"
LOSSES_FILE = "losses.csv"
METRICS_FILE = "metrics.json"
PREDICTIONS_FILE = "predictions.parquet"
PATIENTS_FILE = "patients.csv"
DETECTIONS_FILE = "detections.parquet"
SEQUENCES_FILE = "sequences.csv"
SPEED_FILE = "speed.json"
CHECKPOINTS_DIR = "checkpoints"


def read_run_json(run_dir: Path, name: str) -> dict[str, Any]:
    """Content of one JSON file of a run.

    Raises:
        InputError: the folder is not a training run.
    """
    path = Path(run_dir) / name
    if not path.is_file():
        raise InputError(
            f"{run_dir} is not a finished training run: it has no {name}. Train first, or name its run_dir."
        )
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def checkpoint_path(run_dir: Path, name: str) -> Path:
    """File of a checkpoint: "last", "best" or a network's name."""
    return Path(run_dir) / CHECKPOINTS_DIR / f"{name}.pt"


def load_network(run_dir: str | Path, name: str = "student_0", *, trained: bool = True) -> nn.Module:
    """Build one network of a finished run with its best weights.

    Args:
        run_dir: folder of the run.
        name: "teacher", "student_0", ... .
        trained: False leaves the initial weights, for callers that load a checkpoint themselves.

    Raises:
        InputError: no such run or network, or the weights do not fit.
    """
    description = read_run_json(Path(run_dir), COHORT_FILE)
    if name not in description["networks"]:
        raise InputError(f"run {run_dir} has no network {name!r}; it has {sorted(description['networks'])}.")
    # Detectors tell the classes apart from background, which is the first one.
    classes = len(description["classes"]) - (description.get("task") == Task.DETECTION)
    network = build_network(description["networks"][name], num_classes=classes)
    if trained:
        load_trained(network, checkpoint_path(Path(run_dir), name))
    return network.eval()


def load_cohort(run_dir: str | Path, *, students_only: bool = False) -> Cohort:
    """Build the cohort of a finished run with its best weights.

    Args:
        run_dir: folder of the run.
        students_only: leave the teacher out, as one does in use.

    Raises:
        InputError: no such run, or the weights do not fit.
    """
    names = sorted(read_run_json(Path(run_dir), COHORT_FILE)["networks"], key=network_order)
    if students_only:
        names = [name for name in names if name != NetworkName.TEACHER]
    return Cohort({name: load_network(run_dir, name) for name in names})


def write_predictions(path: Path, predictions: pd.DataFrame) -> None:
    """Write predictions.parquet, columns of ``PredictionColumn``; the same rows give the same bytes."""
    write_parquet(path, predictions[[str(column) for column in PredictionColumn]])


def write_detections(path: Path, detections: pd.DataFrame) -> None:
    """Write detections.parquet, columns of ``DetectionColumn``; the same rows give the same bytes."""
    write_parquet(path, detections[[str(column) for column in DetectionColumn]])


def group_table(
    predictions: pd.DataFrame, *, level: Level, method: AggregationMethod, classes: list[str]
) -> pd.DataFrame:
    """One row per patient or slide: identifiers, label where known, number of tiles, one probability per network.

    Args:
        predictions: columns of ``PredictionColumn``.
        level: "patient" or "slide".
        method: see ``kdml_med.metrics.aggregation.aggregate_tiles``.
        classes: class names in index order; probabilities are of the last one.
    """
    groups = aggregate_predictions(predictions, level, method)
    identifiers = ["patient_id"] if level == "patient" else ["slide_id", "patient_id"]
    wide = groups.pivot(index=[*identifiers, "label", "tiles"], columns="network", values="probability").reset_index()
    wide.columns.name = None
    names = dict(enumerate(classes))
    wide["label"] = [names.get(label) for label in wide["label"]]
    ordered = [name for name in wide.columns if name not in (*identifiers, "label", "tiles")]
    ordered.sort(key=network_order)
    renamed = {name: f"probability_{name}" for name in ordered}
    return wide[[*identifiers, "label", "tiles", *ordered]].rename(columns=renamed)


def results_table(metrics: Mapping[str, Any]) -> str:
    """Plain-text table of a metrics.json: parameters, tile AUROC, patient AUROC with its interval."""
    level = metrics["level"]
    header = ["network", "parameters", "tile AUROC", f"{level} AUROC", "95 % interval", f"{level} accuracy"]
    rows = [header]
    for name in sorted(metrics["networks"], key=network_order):
        figures = metrics["networks"][name]
        group = figures[level]
        low, high = group["auroc_ci95"]
        interval = "not defined" if low is None else f"{low:.3f} – {high:.3f}"
        rows.append(
            [
                name,
                f"{figures['parameters']:,}",
                _figure(figures["tile"]["auroc"]),
                _figure(group["auroc"]),
                interval,
                _figure(group["accuracy"]),
            ]
        )
    intervals = [figures[level]["auroc_ci95"] for figures in metrics["networks"].values()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    if any(low is not None and low == high for low, high in intervals):
        lines += ["", f"An interval without width: no resample of these few {level}s differs. The true one is wider."]
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"
