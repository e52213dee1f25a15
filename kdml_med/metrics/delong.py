"""AUROC with an interval from its variance instead of from resampling: a cross-check of the bootstrap.

Where a patient has several slides these are not independent: with ``groups`` the variance is that between patients.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, rankdata

from kdml_med.metrics.inputs import as_binary, group_codes

Floats = npt.NDArray[np.float64]


def delong_interval(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    *,
    groups: npt.ArrayLike | None = None,
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """AUROC, and the limits of its interval, cut at 0 and 1.

    Args:
        labels: [n], 0 or 1.
        probabilities: [n], of the positive class.
        groups: [n], patient of each sample; None when each sample is its own.
        confidence: of the interval.

    Returns:
        All NaN where a class is absent or a probability is NaN. The limits are NaN where a class is of one patient
        only, or the variance is 0, as for an AUROC of 1: the method then knows nothing of how uncertain it is.

    Raises:
        ValueError: shapes differ, a label is neither 0 nor 1, or a missing group.

    Source:
        DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44:837; by mid-ranks as in Sun & Xu 2014, IEEE Signal
        Processing Letters 21:1389; with groups Obuchowski 1997, Biometrics 53:567.
    """
    areas, covariance = _areas(groups, labels, probabilities)
    low, high = _limits(areas[0], covariance[0, 0], confidence)
    return float(areas[0]), max(low, 0.0) if low == low else low, min(high, 1.0) if high == high else high


def delong_test(
    labels: npt.ArrayLike, a: npt.ArrayLike, b: npt.ArrayLike, *, groups: npt.ArrayLike | None = None
) -> tuple[float, float, float, float]:
    """Difference of two AUROCs on the same samples, a − b, its 95 % limits, and the two-sided p value.

    Args:
        labels: [n], 0 or 1.
        a: [n], probabilities of one network.
        b: [n], of the other.
        groups: as for ``delong_interval``.

    Returns:
        Difference, low, high, p; NaN as for ``delong_interval``, also where both rank all samples alike.

    Raises:
        ValueError: as for ``delong_interval``.

    Source:
        As for ``delong_interval``.
    """
    areas, covariance = _areas(groups, labels, a, b)
    difference = float(areas[0] - areas[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    low, high = _limits(difference, variance, 0.95)
    p = math.nan if math.isnan(low) else 2 * float(norm.sf(abs(difference) / math.sqrt(variance)))
    return difference, low, high, p


def _areas(groups: npt.ArrayLike | None, labels: npt.ArrayLike, *columns: npt.ArrayLike) -> tuple[Floats, Floats]:
    """AUROC of each column, [columns], and their covariance, [columns, columns]."""
    checked = [as_binary(labels, column) for column in columns]
    truth, scores = checked[0][0], np.stack([column for _, column in checked])
    codes, count = group_codes(groups, len(truth))
    positives, negatives = int(truth.sum()), int((~truth).sum())
    unknown = np.full((len(columns), len(columns)), np.nan)
    if not positives or not negatives or np.isnan(scores).any():
        return unknown[0], unknown
    # Share of the other class that each sample is placed right of; ties count one half.
    among_all = rankdata(scores, axis=1)
    of_positives = (among_all[:, truth] - rankdata(scores[:, truth], axis=1)) / negatives
    of_negatives = 1 - (among_all[:, ~truth] - rankdata(scores[:, ~truth], axis=1)) / positives
    areas: Floats = of_positives.mean(axis=1)
    with_positives, with_negatives = len(np.unique(codes[truth])), len(np.unique(codes[~truth]))
    if with_positives < 2 or with_negatives < 2:
        return areas, unknown
    # How far the samples of a group lie from the mean together, [columns, groups]; its own two classes go together.
    up = _sums(of_positives - areas[:, None], codes[truth], count) / positives
    down = _sums(of_negatives - areas[:, None], codes[~truth], count) / negatives
    both = up @ down.T
    covariance = (
        with_positives / (with_positives - 1) * up @ up.T
        + with_negatives / (with_negatives - 1) * down @ down.T
        + count / (count - 1) * (both + both.T)
    )
    return areas, covariance


def _sums(values: Floats, codes: npt.NDArray[np.intp], count: int) -> Floats:
    """Sum of each row by group, [rows, groups]."""
    return np.stack([np.bincount(codes, weights=row, minlength=count) for row in values])


def _limits(value: float, variance: float, confidence: float) -> tuple[float, float]:
    if not variance > 1e-15:  # rounding leaves a little of a variance of 0
        return math.nan, math.nan
    half = float(norm.ppf((1 + confidence) / 2)) * math.sqrt(variance)
    return float(value - half), float(value + half)
