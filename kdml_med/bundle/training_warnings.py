"""What is asked of a training at its end, see ``kdml_med.report.doubts``: from its figures, answers and losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdml_med.handlers.validation import LOSS_FIGURE
from kdml_med.keys import HistoryColumn, LossColumn, LossTerm, NetworkName, PredictionColumn
from kdml_med.metrics.diversity import error_correlation, found_by_network, found_error_correlation
from kdml_med.report.doubts import training_warnings
from kdml_med.runs import HISTORY_FILE, LOSSES_FILE, read_history, read_losses


def classifier_warnings(metrics: Mapping[str, Any], predictions: pd.DataFrame, run_dir: str) -> dict[str, str]:
    """Warnings of a training of classifiers.

    Tiles are asked, of which there are many: patients are few, and of few the AUROC is often 1.

    Args:
        metrics: content of its metrics.json.
        predictions: on the validation split, columns of ``PredictionColumn``.
        run_dir: folder of the run.
    """
    names, learned = _singles(metrics), _learned(Path(run_dir), metrics["best_epoch"])
    known = predictions[predictions[PredictionColumn.LABEL] >= 0].sort_values(PredictionColumn.SAMPLE_ID)
    by_network = {name: known[known[PredictionColumn.NETWORK] == name] for name in _students(names)}
    labels = next(iter(by_network.values()))[PredictionColumn.LABEL].to_numpy(np.int64)
    answers = {name: own[PredictionColumn.PROBABILITY].to_numpy(np.float64) for name, own in by_network.items()}
    return training_warnings(
        {name: _number(metrics["networks"][name]["tile"]["auroc"]) for name in names},
        figure="tile AUROC",
        correlation=error_correlation(labels, answers),
        losses=_losses(learned, Path(run_dir), _students(names), metrics["best_epoch"]),
        taught=_taught(learned),
    )


def detector_warnings(
    metrics: Mapping[str, Any], frames: pd.DataFrame, detections: pd.DataFrame, run_dir: str
) -> dict[str, str]:
    """Warnings of a training of detectors.

    Args:
        metrics: content of its metrics.json.
        frames: rows of the manifest on the validation split.
        detections: there, columns of ``DetectionColumn``.
        run_dir: folder of the run.
    """
    names, learned = _singles(metrics), _learned(Path(run_dir), metrics["best_epoch"])
    thresholds = {name: metrics["thresholds"][name] for name in _students(names)}
    return training_warnings(
        {name: _number(metrics["networks"][name]["ap"]) for name in names},
        figure="AP",
        correlation=found_error_correlation(found_by_network(frames, detections, thresholds)),
        losses=_losses(learned, Path(run_dir), _students(names), metrics["best_epoch"]),
        taught=_taught(learned),
    )


def _singles(metrics: Mapping[str, Any]) -> list[str]:
    return [name for name in metrics["networks"] if name != NetworkName.ENSEMBLE]


def _students(names: Sequence[str]) -> list[str]:
    return [name for name in names if name != NetworkName.TEACHER]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _learned(folder: Path, epoch: int) -> pd.DataFrame | None:
    """Terms of an epoch; None where a run does not keep them."""
    if not (folder / LOSSES_FILE).is_file():
        return None
    losses = read_losses(folder)
    return losses[losses[LossColumn.EPOCH] == epoch]


def _losses(
    learned: pd.DataFrame | None, folder: Path, students: Sequence[str], epoch: int
) -> dict[str, tuple[float, float]]:
    """Loss against the labels on training and on validation samples in an epoch, of students of which both are kept."""
    if learned is None or not (folder / HISTORY_FILE).is_file():
        return {}
    judged = read_history(folder)
    judged = judged[(judged[HistoryColumn.EPOCH] == epoch) & (judged[HistoryColumn.FIGURE] == LOSS_FIGURE)]
    learned = learned[learned[LossColumn.TERM] == LossTerm.TASK]
    training = learned.set_index(str(LossColumn.NETWORK))[str(LossColumn.VALUE)]
    validation = judged.set_index(str(HistoryColumn.NETWORK))[str(HistoryColumn.VALUE)]
    both = [name for name in students if name in training.index and name in validation.index]
    return {name: (float(training[name]), float(validation[name])) for name in both}


def _taught(learned: pd.DataFrame | None) -> bool:
    """False where what students learn from their teacher has the weight 0 in an epoch; True where there is none."""
    if learned is None:
        return True
    own = learned[learned[LossColumn.TERM] == LossTerm.KD]
    return bool(own.empty or (own[LossColumn.WEIGHT] > 0).any())
