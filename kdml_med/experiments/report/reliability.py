"""Whether probabilities mean what they say, arm by arm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kdml_med.experiments.plan import Cell
from kdml_med.experiments.results import Results
from kdml_med.experiments.training import evaluation_dir
from kdml_med.keys import NetworkName, PredictionColumn, Task
from kdml_med.metrics.aggregation import GROUP_COLUMNS, aggregate_predictions
from kdml_med.metrics.calibration import reliability
from kdml_med.runs import PREDICTIONS_FILE, TRAIN_AGAIN
from kdml_med.storage.reading import read_rows

BINS = 5
FEWEST_SAMPLES = 40
"""Below that a bin holds too few to tell anything."""

_COLUMNS = ["version", "arm", "predicted", "observed", "n"]


def reliability_table(results: Results, evaluation: str) -> pd.DataFrame:
    """Predicted probability and observed share of positives, in bins that hold equally many answers.

    Of every arm the ensemble is judged (of the teacher alone, the teacher), all seeds and folds together, at the level
    of the evaluation: one answer for each slide or patient and seed.

    Returns:
        One row for each version, arm and bin: "version", "arm", "predicted" (mean), "observed" and "n" answers. Empty
        for detectors, and for arms with fewer than ``FEWEST_SAMPLES`` slides or patients.
    """
    rows: list[dict[str, Any]] = []
    if results.plan.task is Task.CLASSIFICATION:
        for version in results.plan.versions:
            for arm in results.arms:
                cells = results.whole_cells(version, arm)
                rows += [{"version": version, "arm": arm} | row for row in _arm_rows(results, cells, evaluation)]
    return pd.DataFrame(rows, columns=_COLUMNS)


def _arm_rows(results: Results, cells: Sequence[Cell], evaluation: str) -> list[dict[str, float]]:
    answers = [_answers(results, cell, evaluation) for cell in cells]
    if not answers:
        return []
    table = pd.concat(answers, ignore_index=True)
    if table["sample"].nunique() < FEWEST_SAMPLES:  # seeds, and folds that share a test set, judge the same ones
        return []
    return bin_rows(table["label"].to_numpy(np.float64), table["probability"].to_numpy(np.float64))


def _answers(results: Results, cell: Cell, evaluation: str) -> pd.DataFrame:
    metrics = results.metrics(cell, evaluation)
    stored = results.networks(cell)
    network = stored.get(NetworkName.ENSEMBLE) or stored[NetworkName.TEACHER]
    path = results.folder(cell) / evaluation_dir(evaluation) / PREDICTIONS_FILE
    predictions = read_rows(path, list(PredictionColumn), remedy=TRAIN_AGAIN)
    own = predictions[predictions[PredictionColumn.NETWORK] == network]
    groups = aggregate_predictions(own, metrics["level"], metrics["aggregation"])
    known = groups[groups["label"] >= 0]
    return known[["label", "probability"]].assign(sample=known[GROUP_COLUMNS[metrics["level"]]])


def bin_rows(labels: npt.NDArray[np.float64], probabilities: npt.NDArray[np.float64]) -> list[dict[str, float]]:
    """Bins of equally many answers, from low to high probability, see ``kdml_med.metrics.calibration.reliability``.

    Args:
        labels: [n], 0 or 1.
        probabilities: [n], of the positive class.

    Returns:
        "predicted" (mean probability), "observed" (share of positives) and "n" of each bin.
    """
    found = reliability(labels, probabilities, bins=BINS)
    return [
        {"predicted": float(predicted), "observed": float(observed), "n": int(n)}
        for predicted, observed, n in zip(found.predicted, found.observed, found.n, strict=True)
    ]
