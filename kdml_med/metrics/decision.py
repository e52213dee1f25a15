"""Whether acting on a probability does more good than acting on nobody or on everybody."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdml_med.metrics.inputs import as_binary

Floats = npt.NDArray[np.float64]

_COST = 0.1  # of all positives, that one false positive may weigh where a curve is drawn


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit over the threshold probability; that of treating nobody is 0 everywhere. All [thresholds].

    Attributes:
        thresholds: probability from which somebody would act: at 0.1, ten patients are treated to find one.
        model: net benefit of acting on the model, in true positives per patient.
        treat_all: net benefit of acting on everybody.
        limit: threshold up to which the curve says something: beyond it one false positive costs more than a tenth of
            what finding all positives is worth, and the curve jumps with each patient. 1 without positives.
    """

    thresholds: Floats
    model: Floats
    treat_all: Floats
    limit: float = 1.0


def decision_curve(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, *, thresholds: npt.ArrayLike | None = None
) -> DecisionCurve:
    """Net benefit, TP/n − FP/n · t/(1 − t), at every threshold t.

    Probabilities are taken as they are: badly calibrated ones lose benefit, which is what the curve is to show.

    Args:
        labels: [n], 0 or 1.
        probabilities: [n], of the positive class; at least t is positive.
        thresholds: rising, above 0 and below 1; None for 0.01, 0.02, …, 0.99.

    Returns:
        NaN everywhere without samples; ``model`` is NaN where a probability is NaN.

    Raises:
        ValueError: shapes differ, a label is neither 0 nor 1, or a threshold is outside (0, 1).

    Source:
        Vickers & Elkin 2006, Medical Decision Making 26:565.
    """
    truth, scores = as_binary(labels, probabilities)
    limits = np.arange(1, 100) / 100 if thresholds is None else np.asarray(thresholds, dtype=np.float64)
    if limits.ndim != 1 or not ((limits > 0) & (limits < 1)).all():
        raise ValueError("thresholds of a decision curve must be above 0 and below 1.")
    unknown = np.full(len(limits), np.nan)
    if not len(truth):
        return DecisionCurve(limits, unknown, unknown)
    odds = limits / (1 - limits)
    positives = int(truth.sum())
    limit = _COST * positives / (1 + _COST * positives) if positives else 1.0
    prevalence = float(truth.mean())
    treat_all = prevalence - (1 - prevalence) * odds
    if np.isnan(scores).any():
        return DecisionCurve(limits, unknown, treat_all, limit)
    found = positives - np.searchsorted(np.sort(scores[truth]), limits)
    false = (~truth).sum() - np.searchsorted(np.sort(scores[~truth]), limits)
    return DecisionCurve(limits, found / len(truth) - false / len(truth) * odds, treat_all, limit)
