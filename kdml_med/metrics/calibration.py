"""Whether probabilities mean what they say."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import expit, log_expit, logit

from kdml_med.metrics.inputs import as_binary, group_codes
from kdml_med.metrics.operating import Proportion

Floats = npt.NDArray[np.float64]

_NEAREST = 1e-7  # float32 cannot tell a probability that is nearer to 1 from 1
_NEWTON_STEPS, _SMALLEST_STEP = 100, 1e-12


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


@dataclass(frozen=True)
class Reliability:
    """Bins that hold about equally many answers, from low to high probability; all [bins].

    Attributes:
        predicted: mean probability.
        observed: share of positives.
        low: lower limit of its 95 % interval, see ``Proportion.of_groups``.
        high: upper limit.
        n: answers.
    """

    predicted: Floats
    observed: Floats
    low: Floats
    high: Floats
    n: npt.NDArray[np.int64]


def bins_for(n: int) -> int:
    """Bins of a reliability curve of ``n`` answers: so many that a bin tells something, and no more than ten."""
    return min(10, max(2, n // 10))


def reliability(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, *, bins: int = 10, groups: npt.ArrayLike | None = None
) -> Reliability:
    """Observed share of positives over predicted probability: on the diagonal, probabilities mean what they say.

    Args:
        labels: [n], 0 or 1.
        probabilities: [n], of the positive class.
        bins: how many; fewer where there are fewer answers, or many of the same probability, which are in one bin.
        groups: [n], patient of each sample, by whom the intervals are; None when each sample is its own.

    Returns:
        No bins without samples or with a NaN probability.

    Raises:
        ValueError: shapes differ, a label is neither 0 nor 1, a missing group, or no bins.

    Source:
        DeGroot & Fienberg 1983, The Statistician 32:12; with bins of equally many answers as in Nguyen & O'Connor
        2015, arXiv:1508.05154.
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}, expected at least 1.")
    truth, scores = as_binary(labels, probabilities)
    codes, _ = group_codes(groups, len(truth))
    if np.isnan(scores).any():
        truth, scores = truth[:0], scores[:0]
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    cuts = np.cumsum([len(part) for part in np.array_split(order, bins)])[:-1]
    # Between equal answers a cut would sort them by their rows, which say nothing; it moves behind them.
    cuts = np.searchsorted(ordered, ordered[cuts[cuts > 0] - 1], side="right")
    parts = [part for part in np.split(order, cuts) if len(part)]
    shares = [Proportion.of_groups(truth[part], codes[part]) for part in parts]
    return Reliability(
        predicted=np.array([scores[part].mean() for part in parts], dtype=np.float64),
        observed=np.array([share.value for share in shares], dtype=np.float64),
        low=np.array([share.low for share in shares], dtype=np.float64),
        high=np.array([share.high for share in shares], dtype=np.float64),
        n=np.array([share.n for share in shares], dtype=np.int64),
    )


def calibration_intercept(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Calibration in the large: what to add to all log odds so that as many positives are expected as there are.

    Args:
        labels: [n], 0 or 1.
        probabilities: [n], of the positive class.

    Returns:
        0 (best); above it the probabilities are too low on the whole. NaN when a class is absent or a probability is
        NaN.

    Raises:
        ValueError: shapes differ, or a label is neither 0 nor 1.

    Source:
        Van Calster et al. 2019, BMC Medicine 17:230.
    """
    truth, scores = as_binary(labels, probabilities)
    if truth.all() or not truth.any() or np.isnan(scores).any():
        return math.nan
    logits = _log_odds(scores)
    reach = float(np.abs(logits).max()) + math.log(len(truth)) + 1  # beyond which nearly all or none are expected

    def surplus(shift: float) -> float:
        return float(expit(logits + shift).sum() - truth.sum())

    return float(brentq(surplus, -reach, reach, xtol=1e-13, rtol=1e-13))


def calibration_slope(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Slope of a logistic regression of the labels on the log odds of the probabilities, with an intercept.

    Args:
        labels: [n], 0 or 1.
        probabilities: [n], of the positive class.

    Returns:
        1 (best); below it the probabilities are too extreme, above it not extreme enough. NaN when a class is absent, a
        probability is NaN, all are the same, or one value separates the classes: then no slope is steep enough.

    Raises:
        ValueError: shapes differ, or a label is neither 0 nor 1.

    Source:
        Cox 1958, Biometrika 45:562; Van Calster et al. 2019, BMC Medicine 17:230.
    """
    truth, scores = as_binary(labels, probabilities)
    if truth.all() or not truth.any() or np.isnan(scores).any():
        return math.nan
    logits = _log_odds(scores)
    high, low = logits[truth], logits[~truth]
    if high.min() >= low.max() or low.min() >= high.max():
        return math.nan
    spread = float(logits.std())
    design = np.stack([np.ones(len(logits)), (logits - logits.mean()) / spread], axis=1)
    weights = np.zeros(2)
    for _ in range(_NEWTON_STEPS):  # the likelihood is concave; halved steps keep it rising
        expected = expit(design @ weights)
        gradient = design.T @ (truth - expected)
        step = np.linalg.solve(design.T @ (design * (expected * (1 - expected))[:, None]), gradient)
        size = 1.0
        while _log_likelihood(design @ (weights + size * step), truth) < _log_likelihood(design @ weights, truth):
            size /= 2
            if size < _SMALLEST_STEP:
                break
        weights = weights + size * step
        if float(np.abs(step).max()) < _SMALLEST_STEP:
            break
    return float(weights[1] / spread)


def _log_odds(probabilities: Floats) -> Floats:
    odds: Floats = logit(np.clip(probabilities, _NEAREST, 1 - _NEAREST))
    return odds


def _log_likelihood(logits: Floats, truth: npt.NDArray[np.bool_]) -> float:
    return float(log_expit(np.where(truth, logits, -logits)).sum())


def fit_temperature(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Temperature T that makes σ(logit(p) / T) most likely; above 1 the probabilities were too sure.

    Fit it on validation patients and apply it to others. The order of the probabilities, and with it the AUROC, stays.

    Args:
        labels: [n], 0 or 1.
        probabilities: [n], of the positive class.

    Returns:
        T > 0; NaN where no T is best: without samples, with a NaN probability, when every answer is on the right side
        of 0.5 (the surer the better), or when the probabilities are no better than chance (the less sure the better).

    Raises:
        ValueError: shapes differ, or a label is neither 0 nor 1.

    Source:
        Guo et al. 2017, arXiv:1706.04599, section 4.2, for two classes.
    """
    truth, scores = as_binary(labels, probabilities)
    if not len(truth) or np.isnan(scores).any():
        return math.nan
    logits = _log_odds(scores)

    def slope(sharpness: float) -> float:  # of the negative log-likelihood by 1 / T; it rises, so that it has one root
        return float(logits @ (expit(sharpness * logits) - truth))

    wrong_side = np.where(truth, logits < 0, logits > 0)
    if slope(0.0) >= 0 or not wrong_side.any():
        return math.nan
    upper = 1.0
    while slope(upper) < 0:
        upper *= 2
    return 1 / float(brentq(slope, 0.0, upper, xtol=1e-14, rtol=1e-13))


def scale_by_temperature(probabilities: npt.ArrayLike, temperature: float) -> Floats:
    """Probabilities as they would be at a temperature, σ(logit(p) / T), [n].

    Raises:
        ValueError: the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, expected above 0.")
    scaled: Floats = expit(logit(np.asarray(probabilities, dtype=np.float64)) / temperature)
    return scaled
