"""Whether probabilities mean what they say."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from kdml_med.metrics.inputs import as_binary


def brier_score(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Mean squared difference of probability and label, 0 (best) to 1; NaN without samples.

    Args:
        labels: [n], 0 or 1.
        probabilities: [n], of the positive class.

    Raises:
        ValueError: shapes differ, or a label is neither 0 nor 1.

    Source:
        Brier 1950, Monthly Weather Review 78:1, halved as usual for two classes.
    """
    truth, scores = as_binary(labels, probabilities)
    return float(np.mean((scores - truth) ** 2)) if len(truth) else math.nan


def expected_calibration_error(labels: npt.ArrayLike, probabilities: npt.ArrayLike, *, bins: int = 10) -> float:
    """Mean of |observed share of positives − mean probability| over bins, weighted by their samples.

    The bins divide [0, 1] by the probability of the positive class, not by the confidence of the decision: in a rare
    class, confidence is high nearly everywhere and hides a bad calibration of the positives.

    Args:
        labels: [n], 0 or 1.
        probabilities: [n], of the positive class.
        bins: equally wide bins; each holds its lower edge, the last one also 1.

    Returns:
        0 (best) to 1; NaN without samples or with a NaN probability.

    Raises:
        ValueError: shapes differ, a label is neither 0 nor 1, a probability is outside [0, 1], or no bins.

    Source:
        Naeini et al. 2015, AAAI, section 3, on positive-class probabilities.
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}, expected at least 1.")
    truth, scores = as_binary(labels, probabilities)
    if len(truth) == 0 or np.isnan(scores).any():
        return math.nan
    if scores.min() < 0 or scores.max() > 1:
        raise ValueError(f"probabilities must be in [0, 1], found {scores.min()} to {scores.max()}.")
    index = np.minimum((scores * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(index, weights=truth - scores, minlength=bins)  # a bin's samples times its mean gap
    return float(np.abs(gaps).sum() / len(truth))
