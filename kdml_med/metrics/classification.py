"""Binary classification: how well one probability separates two classes.

All functions take labels, [n], 0 or 1 with 1 the positive class, and probabilities of the positive class, [n]. A
figure that is not defined (a class is absent, or a probability is NaN) is NaN: a small validation set must not stop a
training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_auc_score

from kdml_med.metrics.calibration import brier_score, expected_calibration_error
from kdml_med.metrics.inputs import as_binary


def binary_auroc(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Area under the ROC curve; ties count one half; NaN when a class is absent.

    Raises:
        ValueError: shapes differ, or a label is neither 0 nor 1.
    """
    truth, scores = as_binary(labels, probabilities)
    if not 0 < truth.sum() < len(truth) or np.isnan(scores).any():
        return math.nan
    return float(roc_auc_score(truth, scores))


def average_precision(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Area under the precision-recall steps, as scikit-learn defines it; NaN when a class is absent.

    Raises:
        ValueError: shapes differ, or a label is neither 0 nor 1.
    """
    truth, scores = as_binary(labels, probabilities)
    if not 0 < truth.sum() < len(truth) or np.isnan(scores).any():
        return math.nan
    return float(average_precision_score(truth, scores))


def accuracy(labels: npt.ArrayLike, probabilities: npt.ArrayLike, threshold: float = 0.5) -> float:
    """Share of right decisions; a probability of at least ``threshold`` decides for the positive class."""
    truth, scores = as_binary(labels, probabilities)
    return _share((scores >= threshold) == truth, scores)


def sensitivity(labels: npt.ArrayLike, probabilities: npt.ArrayLike, threshold: float = 0.5) -> float:
    """Share of positives with a probability of at least ``threshold``; NaN without positives."""
    truth, scores = as_binary(labels, probabilities)
    return _share(scores[truth] >= threshold, scores)


def specificity(labels: npt.ArrayLike, probabilities: npt.ArrayLike, threshold: float = 0.5) -> float:
    """Share of negatives with a probability below ``threshold``; NaN without negatives."""
    truth, scores = as_binary(labels, probabilities)
    return _share(scores[~truth] < threshold, scores)


def balanced_accuracy(labels: npt.ArrayLike, probabilities: npt.ArrayLike, threshold: float = 0.5) -> float:
    """Mean of sensitivity and specificity; NaN when a class is absent."""
    return (sensitivity(labels, probabilities, threshold) + specificity(labels, probabilities, threshold)) / 2


def _share(right: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64]) -> float:
    return math.nan if len(right) == 0 or np.isnan(scores).any() else float(right.mean())


def threshold_for_sensitivity(labels: npt.ArrayLike, probabilities: npt.ArrayLike, target: float = 0.95) -> float:
    """Highest threshold at which the sensitivity is at least ``target``; NaN without positives.

    Choose it on validation patients and apply it to others: on the patients it was chosen on it is optimistic.

    Raises:
        ValueError: ``target`` is not in (0, 1], shapes differ, or a label is neither 0 nor 1.
    """
    if not 0 < target <= 1:
        raise ValueError(f"target sensitivity is {target}, expected above 0 and at most 1.")
    truth, scores = as_binary(labels, probabilities)
    positives = np.sort(scores[truth])
    if len(positives) == 0 or np.isnan(scores).any():
        return math.nan
    needed = math.ceil(target * len(positives) - 1e-9)  # 0.95 · 20 is 19, also in floating point
    return float(positives[len(positives) - max(needed, 1)])


@dataclass(frozen=True)
class ClassificationMetric:
    """A figure of tiles, slides or patients, and where it is shown beside metrics.json.

    Attributes:
        compute: takes labels, [n], 0 or 1, and probabilities of the positive class, [n], and gives a number, NaN where
            it is not defined. With ``at_threshold``, the threshold comes third.
        at_threshold: the figure depends on the probability from which a sample is called positive.
        interval: metrics.json has its 95 % interval too, as "<name>_ci95". It is computed for every resample of the
            patients, so ``compute`` has to be fast.
        chart: TensorBoard has a curve of it for every network, over tiles and over slides or patients.
        progress: its value for the ensemble's tiles stands in the line of every epoch.
        lower_is_better: 0 is best; else reports take higher values for better ones.
        words: what reports call it; its name with spaces where none are given.
    """

    compute: Callable[..., float]
    at_threshold: bool = False
    interval: bool = False
    chart: bool = False
    progress: bool = False
    lower_is_better: bool = False
    words: str = ""

    def statistic(self, threshold: float) -> Callable[..., float]:
        """The figure as a function of labels and probabilities alone."""
        if not self.at_threshold:
            return self.compute
        return lambda labels, probabilities: self.compute(labels, probabilities, threshold)


METRICS: dict[str, ClassificationMetric] = {
    "auroc": ClassificationMetric(binary_auroc, interval=True, chart=True, progress=True, words="AUROC"),
    "average_precision": ClassificationMetric(average_precision),
    "accuracy": ClassificationMetric(accuracy, at_threshold=True, chart=True),
    "balanced_accuracy": ClassificationMetric(balanced_accuracy, at_threshold=True),
    "sensitivity": ClassificationMetric(sensitivity, at_threshold=True),
    "specificity": ClassificationMetric(specificity, at_threshold=True),
    "brier": ClassificationMetric(brier_score, lower_is_better=True, words="Brier score"),
    "ece": ClassificationMetric(expected_calibration_error, lower_is_better=True, words="calibration error"),
}
"""The one list of figures of classifiers: evaluation, TensorBoard, lines of epochs and reports have no other."""


def classification_summary(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, threshold: float = 0.5
) -> dict[str, float | int]:
    """All of ``METRICS`` by name, and the counts n and positives, which are ints."""
    truth, scores = as_binary(labels, probabilities)
    figures: dict[str, float | int] = {"n": len(truth), "positives": int(truth.sum())}
    return figures | {name: float(metric.statistic(threshold)(truth, scores)) for name, metric in METRICS.items()}
