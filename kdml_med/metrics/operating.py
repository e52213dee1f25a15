"""What one threshold means for patients: the table of four cells, and the shares that are read from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.stats import norm
from scipy.stats import t as student

from kdml_med.metrics.inputs import as_binary, group_codes

_Z = float(norm.ppf(0.975))


@dataclass(frozen=True)
class Proportion:
    """A share with its 95 % interval.

    Attributes:
        value: ``successes / n``, 0 to 1; NaN when n is 0.
        low: lower limit of Wilson's score interval; NaN when n is 0, or all of several are of one patient.
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
        independent: see ``of_groups`` for several slides of one patient.

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
        return cls(successes / n, *_wilson(successes / n, n), int(successes), int(n))

    @classmethod
    def of_groups(cls, succeeded: npt.ArrayLike, groups: npt.ArrayLike | None) -> Proportion:
        """Share of what succeeded, where samples of one group are alike, such as slides of one patient.

        Wilson's interval of as many samples as the spread between the groups is worth: n · s / v, where s is the
        variance of independent samples and v that of the ratio estimate over groups, lowered for the uncertainty of v
        itself (Student's t with groups − 1 degrees of freedom), and never more than n. Where all or none succeeded the
        spread says nothing, and each group counts once. A percentile bootstrap over groups has no width there and
        covers too seldom with few groups: of a true 0.9 in 12 patients of about 4 very much alike slides (correlation
        0.5), 78 % of its intervals hold it, of these 97 %, of Wilson's for independent samples 76 %.

        Args:
            succeeded: [n], true or false.
            groups: [n]; None, or all different, when each sample is its own.

        Raises:
            ValueError: another number of groups, or a missing group.

        Source:
            Korn & Graubard 1998, Survey Methodology 24:193, effective size and degrees of freedom; with Wilson's
            interval as compared by Franco et al. 2019, Journal of Survey Statistics and Methodology 7:334.
        """
        done = np.asarray(succeeded, dtype=np.bool_)
        plain = cls.of(int(done.sum()), len(done))
        codes, count = group_codes(groups, len(done))
        if count == len(done):
            return plain
        if count < 2:
            return replace(plain, low=math.nan, high=math.nan)
        share = plain.value
        if not 0 < plain.successes < plain.n:
            low, high = _wilson(share, count)
            return replace(plain, low=low, high=high)
        apart = np.bincount(codes, weights=done - share)
        variance = count / (count - 1) * float(apart @ apart) / plain.n**2
        independent = share * (1 - share) / plain.n
        size = plain.n * independent / max(variance, independent) * (_Z / float(student.ppf(0.975, count - 1))) ** 2
        low, high = _wilson(share, size)
        return replace(plain, low=low, high=high)


def _wilson(share: float, size: float) -> tuple[float, float]:
    """Limits of a share of so many independent samples, of which there may be a fraction."""
    z2 = _Z * _Z
    middle = (share + z2 / (2 * size)) / (1 + z2 / size)
    half = _Z * math.sqrt(share * (1 - share) / size + z2 / (4 * size * size)) / (1 + z2 / size)
    # At the ends the limit is exactly 0 or 1, which rounding would miss.
    return 0.0 if share == 0 else max(0.0, middle - half), 1.0 if share == 1 else min(1.0, middle + half)


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


def figures_at(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, threshold: float, *, groups: npt.ArrayLike | None = None
) -> OperatingFigures:
    """Decide at a threshold that was chosen elsewhere, and count.

    Nothing is decided, and every share is NaN of 0, where the threshold or a probability is NaN.

    Args:
        labels: [n], 0 or 1.
        probabilities: [n], of the positive class.
        threshold: a probability of at least this is called positive.
        groups: [n], patient of each sample, by whom the intervals are, see ``Proportion.of_groups``; None when each
            sample is its own.

    Raises:
        ValueError: shapes differ, a label is neither 0 nor 1, or a missing group.
    """
    truth, scores = as_binary(labels, probabilities)
    codes, _ = group_codes(groups, len(truth))
    if math.isnan(threshold) or np.isnan(scores).any():
        truth, scores, codes = truth[:0], scores[:0], codes[:0]
    called = scores >= threshold
    tp, fp = int((truth & called).sum()), int((~truth & called).sum())
    table = Confusion(tp, fp, int(truth.sum()) - tp, int((~truth).sum()) - fp)
    everybody = np.ones(len(truth), dtype=np.bool_)

    def share(succeeded: npt.NDArray[np.bool_], among: npt.NDArray[np.bool_]) -> Proportion:
        return Proportion.of_groups(succeeded[among], codes[among])

    return OperatingFigures(
        threshold=float(threshold),
        confusion=table,
        sensitivity=share(called, truth),
        specificity=share(~called, ~truth),
        ppv=share(truth, called),
        npv=share(~truth, ~called),
        ruled_out=share(~called, everybody),
        accuracy=share(called == truth, everybody),
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
