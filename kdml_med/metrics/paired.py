"""Figures over seeds and networks, and the paired comparison of two ways to train.

An arm is given as one entry for each seed, holding the networks whose figures are averaged: the ensemble alone, or all
students. The seeds of two arms belong together in pairs, because they share the split, the order of the data and the
first weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from kdml_med.metrics.bootstrap import CHUNK_ELEMENTS, Interval, percentile_interval, resampled_weights
from kdml_med.metrics.box_matching import Floats, Indices
from kdml_med.metrics.inputs import of_several_groups
from kdml_med.metrics.paired_scores import Scores, Weights

Arm = Sequence[Sequence[Scores]]

_ROUNDING = 1e-12  # of differences that are equal; two that differ do so by far more


@dataclass(frozen=True)
class Estimate:
    """The figure of one arm with its 95 % interval.

    Attributes:
        value: mean over seeds of the mean over networks; NaN when not defined.
        low: NaN when the interval is not defined.
        high: upper limit.
        units: patients, sequences or frames that were resampled.
        seeds: trainings that were resampled.
    """

    value: float
    low: float
    high: float
    units: int
    seeds: int


@dataclass(frozen=True)
class Comparison:
    """Two arms on the same samples.

    Attributes:
        value_a: mean over seeds of the mean over networks.
        value_b: of the other arm.
        difference: a − b.
        low: lower limit of the difference's 95 % interval; NaN when it is not defined.
        high: upper limit.
        p_value: two-sided; NaN when the difference is.
        units: patients, sequences or frames, resampled and swapped.
        seeds: pairs of trainings.
        permutations: swaps that the p value rests on.
        exact: whether these are all swaps there are.
        seed_sd: standard deviation of the difference over the pairs of trainings, on these samples; NaN with one pair.
    """

    value_a: float
    value_b: float
    difference: float
    low: float
    high: float
    p_value: float
    units: int
    seeds: int
    permutations: int
    exact: bool
    seed_sd: float


def estimate(arm: Arm, *, resamples: int = 2000, seed: int = 0, drawn: Floats | None = None) -> Estimate:
    """Mean figure of an arm, with a percentile interval over units and seeds.

    A resample draws units, the same for all seeds and networks, and seeds. With one seed the interval says nothing
    about another training; with few it is too narrow in that respect (the variance between S seeds comes out smaller
    by (S − 1) / S).

    Args:
        arm: for each seed the networks whose figures are averaged; all on the same samples.
        resamples: how often to draw; 0 gives a NaN interval.
        seed: of the draws.
        drawn: what ``resampled`` gives for the arm, where it is known already.

    Raises:
        ValueError: no seeds or no networks, or the samples differ.

    Source:
        Efron & Tibshirani 1993, chapter 13; NaN values are treated as in ``bootstrap_interval``.
    """
    units = _check(arm)
    value = float(_figures(arm, _once(arm)).mean())
    interval = _interval(resampled(arm, resamples=resamples, seed=seed) if drawn is None else drawn, seed)
    return Estimate(value, interval.low, interval.high, units, len(arm))


def resampled(arm: Arm, *, resamples: int = 2000, seed: int = 0) -> Floats:
    """Figures of an arm when units are drawn anew, the same ones for all arms on the same samples.

    Args:
        arm: for each seed the networks whose figures are averaged; all on the same samples.
        resamples: how often to draw.
        seed: of the draws.

    Returns:
        [seeds, resamples]; [seeds, 0] where fewer than two units leave nothing to draw: all samples, those of a class,
        or all annotated boxes are of one.

    Raises:
        ValueError: no seeds or no networks, or the samples differ.
    """
    _check(arm)
    first = arm[0][0]
    chunks = resampled_weights(
        first.units,
        len(first.sample_ids),
        resamples=resamples if of_several_groups(first.units, *first.counted) else 0,
        seed=seed,
        per_draw=max(network.elements for networks in arm for network in networks),
    )
    return np.concatenate([np.empty((len(arm), 0)), *(_figures(arm, weights) for weights in chunks)], axis=1)


def compare(
    a: Arm,
    b: Arm,
    *,
    resamples: int = 2000,
    permutations: int = 10_000,
    seed: int = 0,
    drawn: tuple[Floats, Floats] | None = None,
) -> Comparison:
    """Difference of two arms on the same samples, with a paired interval and a permutation test.

    The interval resamples units and seeds, with the same draws for both arms: it speaks about other patients and other
    trainings, as far as the seeds reach (see ``estimate``). The p value speaks about these trainings on other patients:
    under its null hypothesis it is irrelevant for every unit which arm has judged it, so a and b are swapped unit by
    unit, all seeds and networks of the unit together, and seeds are not exchanged. A small p value with few seeds
    therefore does not show that the method would win with other seeds, and the two may disagree.

    Scores are ranked within each network before they are swapped, which makes the test approximate: the ranks of a
    unit depend on the others.

    Args:
        a: for each seed the networks whose figures are averaged.
        b: as many seeds, on the same samples; the number of networks may differ.
        resamples: bootstrap resamples; 0 for no interval.
        permutations: swaps to draw; all swaps are tried where they are not more than that. 0 for no p value.
        seed: of the draws.
        drawn: what ``resampled`` gives for both arms, where it is known already.

    Raises:
        ValueError: another number of seeds, no seeds or no networks, or the samples differ.

    Source:
        Bandos, Rockette & Gur 2005, Statistics in Medicine 24:2873 (paired permutation of ROC ratings); Phipson &
        Smyth 2010, Statistical Applications in Genetics and Molecular Biology 9:39 (random swaps count the observed
        one); Efron & Tibshirani 1993, chapters 13 and 15.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} seeds cannot be paired with {len(b)}.")
    units = _check([*a, *b])
    seeds_a, seeds_b = (_figures(arm, _once(arm))[:, 0] for arm in (a, b))
    value_a, value_b = float(seeds_a.mean()), float(seeds_b.mean())
    of_a, of_b = drawn or (resampled(arm, resamples=resamples, seed=seed) for arm in (a, b))
    interval = _interval(of_a - of_b, seed)
    difference = value_a - value_b
    tried = 0 if math.isnan(difference) else min(2**units, permutations)
    exact = tried == 2**units
    p_value = _permutation_p(a, b, abs(difference), exact=exact, permutations=tried, seed=seed) if tried else math.nan
    seed_sd = float(np.std(seeds_a - seeds_b, ddof=1)) if len(a) > 1 else math.nan
    if seed_sd < _ROUNDING:
        seed_sd = 0.0
    return Comparison(
        value_a, value_b, difference, interval.low, interval.high, p_value, units, len(a), tried, exact, seed_sd
    )


def holm(p_values: npt.ArrayLike) -> Floats:
    """Adjust p values for their number, so that 0.05 bounds the chance of any false claim.

    Args:
        p_values: [tests], 0 to 1; a NaN is no test, stays NaN and does not count.

    Returns:
        [tests], in the same order.

    Raises:
        ValueError: a value outside [0, 1], or not a vector.

    Source:
        Holm 1979, Scandinavian Journal of Statistics 6:65.
    """
    values = np.asarray(p_values, dtype=np.float64)
    known = values[~np.isnan(values)]
    if values.ndim != 1 or ((known < 0) | (known > 1)).any():
        raise ValueError(f"expected a vector of p values between 0 and 1, got {values}.")
    order = np.argsort(known, kind="stable")
    steps = known[order] * np.arange(len(known), 0, -1)
    adjusted = np.empty(len(known))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    result: Floats = np.full(len(values), np.nan)
    result[~np.isnan(values)] = adjusted
    return result


def _check(arm: Arm) -> int:
    """Number of units.

    Raises:
        ValueError: nothing to compare, or the samples differ.
    """
    if not arm or not all(arm):
        raise ValueError("expected at least one seed, and at least one network for each.")
    first = arm[0][0]
    for networks in arm:
        for network in networks:
            if network.statistic != first.statistic:
                raise ValueError(f"the statistics {first.statistic} and {network.statistic} cannot be compared.")
            _check_samples(first, network)
    return int(pd.Series(first.units).nunique())


def _check_samples(first: Scores, other: Scores) -> None:
    for id_a, id_b in zip(first.sample_ids, other.sample_ids, strict=False):
        if id_a != id_b:
            raise ValueError(f"sample {min(id_a, id_b)!r} is there for one network and not for another.")
    if len(first.sample_ids) != len(other.sample_ids):
        longer = max(first.sample_ids, other.sample_ids, key=len)
        extra = longer[min(len(first.sample_ids), len(other.sample_ids))]
        raise ValueError(f"sample {extra!r} is there for one network and not for another.")
    columns = {
        "truth": (first.truth, other.truth),
        "unit": (first.units, other.units),
        "stratum": (first.strata, other.strata),
    }
    for name, (own, others) in columns.items():
        wrong = np.flatnonzero(own != others)
        if len(wrong):
            place = wrong[0]
            raise ValueError(
                f"sample {first.sample_ids[place]!r} has the {name} {own[place]!r} for one network and "
                f"{others[place]!r} for another."
            )


def _once(arm: Arm) -> Weights:
    return np.ones((1, len(arm[0][0].sample_ids)), dtype=np.int64)


def _figures(arm: Arm, weights: Weights) -> Floats:
    """Mean over the networks of each seed, [seeds, weightings]."""
    return np.stack([np.mean([network.value(weights) for network in networks], axis=0) for networks in arm])


def _interval(drawn: Floats, seed: int) -> Interval:
    """Interval of the mean over seeds of figures under resampled units, [seeds, resamples], over drawn seeds, too."""
    seeds, resamples = drawn.shape
    # A generator of its own: units are drawn as for any other figure of the same seed.
    picks = np.random.default_rng([seed, 1]).integers(0, seeds, size=(resamples, seeds))
    return percentile_interval(drawn[picks, np.arange(resamples)[:, None]].mean(axis=1))


def _permutation_p(a: Arm, b: Arm, difference: float, *, exact: bool, permutations: int, seed: int) -> float:
    """Share of swaps with at least this absolute difference."""
    units, names = pd.factorize(a[0][0].units, sort=True)
    elements, after = _swapped(a, b, units)
    chunk = max(1, CHUNK_ELEMENTS // elements)
    swaps = _all_swaps(len(names), chunk) if exact else _random_swaps(len(names), permutations, seed, chunk)
    count, extreme = 0, 0
    for swapped in swaps:
        extreme += int((np.abs(after(swapped)) >= difference - _ROUNDING).sum())
        count += len(swapped)
    return extreme / count if exact else (extreme + 1) / (count + 1)


def _swapped(a: Arm, b: Arm, units: Indices) -> tuple[int, Callable[[npt.NDArray[np.bool_]], Floats]]:
    """Numbers that are held for each choice of units to swap, and the difference after each choice.

    Args:
        a: first arm.
        b: second arm.
        units: number of the unit of each sample, from 0.
    """
    pairs = [[(one, other) for one in own for other in others] for own, others in zip(a, b, strict=True)]
    parts = [[one.parts(other) for one, other in networks] for networks in pairs]
    sums = [[part for part in networks if part is not None] for networks in parts]
    if all(len(known) == len(networks) for known, networks in zip(sums, parts, strict=True)):
        of_samples = np.mean([np.mean(networks, axis=0) for networks in sums], axis=0)
        of_units = np.bincount(units, weights=of_samples)
        return len(of_units), lambda swapped: np.where(swapped, -1.0, 1.0) @ of_units
    pooled = [[one.pooled(other) for one, other in networks] for networks in pairs]

    def difference(swapped: npt.NDArray[np.bool_]) -> Floats:
        other = swapped[:, units].astype(np.int64)
        weights = np.concatenate([np.hstack([1 - other, other]), np.hstack([other, 1 - other])])
        arm_a, arm_b = np.split(_figures(pooled, weights).mean(axis=0), 2)
        result: Floats = arm_a - arm_b
        return result

    # Both arms after the swap are computed at once, hence the factor.
    return 2 * max(2 * len(units), *(network.elements for networks in pooled for network in networks)), difference


def _all_swaps(units: int, chunk: int) -> Iterator[npt.NDArray[np.bool_]]:
    """Every choice of units, bool [choices, units], but the last unit always stays.

    Swapping the complement negates the difference, so that half of the choices gives the share of all.
    """
    for start in range(0, 2 ** (units - 1), chunk):
        numbers = np.arange(start, min(start + chunk, 2 ** (units - 1)))
        yield (numbers[:, None] >> np.arange(units)) & 1 == 1


def _random_swaps(units: int, permutations: int, seed: int, chunk: int) -> Iterator[npt.NDArray[np.bool_]]:
    generator = np.random.default_rng([seed, 2])
    for start in range(0, permutations, chunk):
        yield generator.integers(0, 2, size=(min(chunk, permutations - start), units)) == 1
