"""What one threshold means for patients: the table of four cells, and the shares that are read from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from kdml_med.metrics.inputs import as_binary

_Z = float(norm.ppf(0.975))


@dataclass(frozen=True)
class Proportion:
    """A share with its 95 % interval.

    Attributes:
        value: ``successes / n``, 0 to 1; NaN when n is 0.
        low: lower limit of Wilson's score interval; NaN when n is 0.
        high: upper limit.
        successes: how many it is true of.
        n: of how many.
    """

    value: float
    low: float
    high: float
    successes: int
    n: int

    @classmethod
    def of(cls, successes: int, n: int) -> Proportion:
        """Share of ``successes`` in ``n``, not negative and not more than n.

        Wilson's interval stays inside 0 to 1, and says something where all or none succeeded. It takes the n as
        independent: of several slides of one patient it is too narrow.

        Raises:
            ValueError: the counts are no such share.

        Source:
            Wilson 1927, Journal of the American Statistical Association 22:209; recommended for small n by Brown, Cai
            & DasGupta 2001, Statistical Science 16:101.
        """
        if not 0 <= successes <= n:
            raise ValueError(f"{successes} of {n} is no share.")
        if n == 0:
            return cls(math.nan, math.nan, math.nan, 0, 0)
        share, z2 = successes / n, _Z * _Z
        middle = (share + z2 / (2 * n)) / (1 + z2 / n)
        half = _Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
        # At the ends the limit is exactly 0 or 1, which rounding would miss.
        low = 0.0 if successes == 0 else max(0.0, middle - half)
        high = 1.0 if successes == n else min(1.0, middle + half)
        return cls(share, low, high, int(successes), int(n))


@dataclass(frozen=True)
class Confusion:
    """Slides or patients by truth and decision.

    Attributes:
        tp: positives that were called positive.
        fp: negatives that were called positive.
        fn: positives that were called negative.
        tn: negatives that were called negative.
    """

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def n(self) -> int:
        """All of them."""
        return self.tp + self.fp + self.fn + self.tn


@dataclass(frozen=True)
class OperatingFigures:
    """One threshold on one test set; every share is a ``Proportion`` with its interval.

    Attributes:
        threshold: a probability of at least this is called positive; NaN where none could be chosen.
        confusion: counts; all 0 where nothing can be decided.
        sensitivity: of the positives, called positive.
        specificity: of the negatives, called negative.
        ppv: of those called positive, positive. It holds for the share of positives in this test set only.
        npv: of those called negative, negative; holds for this test set only, too.
        ruled_out: of all, called negative: the tests that are saved.
        accuracy: of all, called rightly.
    """

    threshold: float
    confusion: Confusion
    sensitivity: Proportion
    specificity: Proportion
    ppv: Proportion
    npv: Proportion
    ruled_out: Proportion
    accuracy: Proportion


def figures_at(labels: npt.ArrayLike, probabilities: npt.ArrayLike, threshold: float) -> OperatingFigures:
    """Decide at a threshold that was chosen elsewhere, and count.

    Nothing is decided, and every share is NaN of 0, where the threshold or a probability is NaN.

    Args:
        labels: [n], 0 or 1.
        probabilities: [n], of the positive class.
        threshold: a probability of at least this is called positive.

    Raises:
        ValueError: shapes differ, or a label is neither 0 nor 1.
    """
    truth, scores = as_binary(labels, probabilities)
    if math.isnan(threshold) or np.isnan(scores).any():
        truth, scores = truth[:0], scores[:0]
    called = scores >= threshold
    tp, fp = int((truth & called).sum()), int((~truth & called).sum())
    table = Confusion(tp, fp, int(truth.sum()) - tp, int((~truth).sum()) - fp)
    return OperatingFigures(
        threshold=float(threshold),
        confusion=table,
        sensitivity=Proportion.of(table.tp, table.tp + table.fn),
        specificity=Proportion.of(table.tn, table.tn + table.fp),
        ppv=Proportion.of(table.tp, table.tp + table.fp),
        npv=Proportion.of(table.tn, table.tn + table.fn),
        ruled_out=Proportion.of(table.tn + table.fn, table.n),
        accuracy=Proportion.of(table.tp + table.tn, table.n),
    )


def youden_threshold(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Threshold with the highest sensitivity + specificity; of several the highest; NaN when a class is absent.

    It is a probability that occurs. Choose it on validation patients and apply it to others.

    Raises:
        ValueError: shapes differ, or a label is neither 0 nor 1.

    Source:
        Youden 1950, Cancer 3:32.
    """
    truth, scores = as_binary(labels, probabilities)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives or np.isnan(scores).any():
        return math.nan
    candidates = np.unique(scores)[::-1]
    found = positives - np.searchsorted(np.sort(scores[truth]), candidates)
    false = negatives - np.searchsorted(np.sort(scores[~truth]), candidates)
    # In whole numbers, so that equal ones are equal.
    return float(candidates[np.argmax(found * negatives - false * positives)])
