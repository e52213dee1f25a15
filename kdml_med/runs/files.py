"""Names of the files of a run, and the JSON files among them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdml_med.errors import InputError
from kdml_med.keys import Split, network_order
from kdml_med.storage.reading import read_json, take

COHORT_FILE = "cohort.json"
SETTINGS_FILE = "settings.json"
LOSSES_FILE = "losses.csv"
HISTORY_FILE = "history.csv"
METRICS_FILE = "metrics.json"
EVALUATION_FILE = "evaluation.json"
PREDICTIONS_FILE = "predictions.parquet"
PATIENTS_FILE = "patients.csv"
DETECTIONS_FILE = "detections.parquet"
SEQUENCES_FILE = "sequences.csv"
SPEED_FILE = "speed.json"
CHECKPOINTS_DIR = "checkpoints"
FIGURES_DIR = "figures"

TRAIN_AGAIN = "Train again into another folder, or bring back the file as training wrote it."


def read_run_json(run_dir: str | Path, name: str) -> dict[str, Any]:
    """Content of one JSON file of a run.

    Raises:
        InputError: the folder is not a training run, or the file is damaged, see ``read_json``.
    """
    path = Path(run_dir) / name
    if not path.is_file():
        raise InputError(
            f"{run_dir} is not a finished training run: it has no {name}. Train first, or name its run_dir."
        )
    return read_json(path, remedy=TRAIN_AGAIN)


def trained_on(run_dir: str | Path) -> Path:
    """The dataset folder that a run was trained on, as the training found it.

    Raises:
        InputError: no such run, it is of an earlier version that did not note it, or the folder is not there any more.
    """
    content = read_run_json(run_dir, SETTINGS_FILE)
    if "dataset_dir" not in content:
        raise InputError(f"{run_dir} does not say on which dataset it was trained: name it with --data.")
    folder = Path(take(content, "dataset_dir", str, Path(run_dir) / SETTINGS_FILE, remedy=TRAIN_AGAIN))
    if not folder.is_dir():
        raise InputError(f"{run_dir} was trained on {folder}, which is not there: name its new place with --data.")
    return folder


def read_thresholds(run_dir: str | Path) -> dict[str, float]:
    """Score thresholds of the detectors of a run, by network, as training chose them on its validation split.

    Raises:
        InputError: see ``read_run_json``; or metrics.json has none, or is of another split.
    """
    content = read_run_json(run_dir, METRICS_FILE)
    split = content.get("split", Split.VAL.value)
    if split != Split.VAL:
        raise InputError(
            f"{Path(run_dir) / METRICS_FILE} is of the split {split!r}, expected that of the validation, where "
            f"thresholds are chosen. {TRAIN_AGAIN}"
        )
    found: dict[str, float] = take(
        content, "thresholds", dict[str, float], Path(run_dir) / METRICS_FILE, remedy=TRAIN_AGAIN
    )
    wrong = [name for name, value in found.items() if not 0 <= value <= 1]
    if wrong:
        shown = f"the threshold of {wrong[0]} is {found[wrong[0]]}"
        raise InputError(f"{Path(run_dir) / METRICS_FILE}: {shown}, expected a score from 0 to 1. {TRAIN_AGAIN}")
    return found


def networks_by_default(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """Detectors whose threshold is ``DEFAULT_THRESHOLD`` because the validation frames could choose none.

    A chosen one finds something, see ``kdml_med.metrics.detection.choose_threshold``.

    Args:
        metrics: content of metrics.json of the validation.
    """
    networks: Mapping[str, Mapping[str, Any]] = metrics.get("networks", {})
    return tuple(name for name in sorted(networks, key=network_order) if not networks[name].get("recall"))
