"""How large a difference of two ways to train has to be for some seeds to show it.

What is meant by "to show" is a two-sided paired t-test over the seeds. It speaks about other trainings on the same test
samples: how much these samples themselves leave open is what the interval over patients says.
"""

from __future__ import annotations

import math

from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import chi
from scipy.stats import t as student_t

ALPHA = 0.05
POWER = 0.8
_MOST_PAIRS = 100_000
_RARE = 1e-15  # of all estimated spreads, at either end


def power_of_pairs(difference: float, sd: float, pairs: int, *, alpha: float = ALPHA) -> float:
    """Chance that a paired t-test finds a difference, 0..1; NaN with fewer than two pairs or without a spread.

    Args:
        difference: true mean of the differences.
        sd: their standard deviation.
        pairs: of trainings.
        alpha: two-sided level of the test.

    Source:
        Cohen 1988, Statistical Power Analysis for the Behavioral Sciences, chapter 2: the noncentral t distribution.
    """
    if pairs < 2 or not sd > 0:
        return math.nan
    limit = float(student_t.isf(alpha / 2, pairs - 1))
    shift = abs(difference) * math.sqrt(pairs) / sd
    return _beyond(limit, shift, pairs - 1) + _beyond(limit, -shift, pairs - 1)


def _beyond(limit: float, shift: float, freedom: int) -> float:
    """Chance that a noncentral t deviate is above a limit.

    Its numerator is a normal deviate around ``shift``, its denominator a spread, over which this integrates. SciPy's
    ``nct`` gives NaN, or 1, for some of the values that occur here.
    """
    lowest, highest = (float(end) / math.sqrt(freedom) for end in (chi.ppf(_RARE, freedom), chi.isf(_RARE, freedom)))

    constant = math.log(2) + freedom / 2 * math.log(freedom / 2) - math.lgamma(freedom / 2)

    def density(spread: float) -> float:
        weight = math.exp(constant + (freedom - 1) * math.log(spread) - freedom * spread * spread / 2)
        return weight * math.erfc((limit * spread - shift) / math.sqrt(2)) / 2

    # The chance falls from 1 to 0 around this spread, and steeply where the limit is high.
    steps = (shift / limit + width / limit for width in (-8, 0, 8))
    inner = sorted({min(max(step, lowest), highest) for step in steps})
    found, _ = quad(density, lowest, highest, points=inner, epsabs=1e-11, epsrel=1e-11, limit=400)
    return min(1.0, float(found))


def detectable_difference(sd: float, pairs: int, *, alpha: float = ALPHA, power: float = POWER) -> float:
    """The smallest true difference that is found with a chance of ``power``, in the unit of ``sd``.

    Args:
        sd: standard deviation of the differences of pairs.
        pairs: of trainings.
        alpha: two-sided level of the test.
        power: 0..1, above ``alpha``.

    Returns:
        NaN with fewer than two pairs or where the spread is not known; 0 where there is none.
    """
    if pairs < 2 or math.isnan(sd):
        return math.nan
    if sd == 0:
        return 0.0
    # With two pairs at a level of 0.001 the limit is 637 standard errors.
    highest = 4 * (float(student_t.isf(alpha / 2, pairs - 1)) + 10) / math.sqrt(pairs)
    found = brentq(lambda units: power_of_pairs(units, 1.0, pairs, alpha=alpha) - power, 0.0, highest)
    return float(found) * sd


def pairs_needed(difference: float, sd: float, *, alpha: float = ALPHA, power: float = POWER) -> int | None:
    """The smallest number of pairs by which a true difference is found with a chance of ``power``.

    Args:
        difference: not 0.
        sd: standard deviation of the differences of pairs.
        alpha: two-sided level of the test.
        power: 0..1.

    Returns:
        At least 2; None where the spread is not known, or more than 100,000 would be needed.
    """
    if math.isnan(sd):
        return None
    if sd == 0:
        return 2
    low, high = 1, 2
    while power_of_pairs(difference, sd, high, alpha=alpha) < power:
        low, high = high, 2 * high
        if high > _MOST_PAIRS:
            return None
    while high - low > 1:  # the chance grows with the number of pairs
        middle = (low + high) // 2
        if power_of_pairs(difference, sd, middle, alpha=alpha) < power:
            low = middle
        else:
            high = middle
    return high
