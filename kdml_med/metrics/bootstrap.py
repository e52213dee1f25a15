"""Confidence intervals by resampling patients.

Tiles of one patient are alike, so an interval that resamples tiles is far too narrow. Everything here resamples whole
groups. The resamples depend on the seed and the number of groups only: two statistics of the same samples and seed see
the same patients, and their difference is a paired one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from kdml_med.metrics.classification import binary_auroc
from kdml_med.metrics.inputs import as_binary, group_codes, of_several_groups

CHUNK_ELEMENTS = 1_000_000  # weights held at once: about 8 MB an array, which stays in cache
_PIECE = 2**16  # samples of a resample that are looked at together


@dataclass(frozen=True)
class Interval:
    """A percentile interval.

    Attributes:
        low: lower limit; NaN when the interval is not defined.
        high: upper limit.
        resamples_used: resamples in which the statistic was defined.
    """

    low: float
    high: float
    resamples_used: int


def bootstrap_interval(
    statistic: Callable[..., float],
    *arrays: npt.ArrayLike,
    groups: npt.ArrayLike | None = None,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Percentile interval of a statistic over resampled groups.

    Resamples in which the statistic is NaN (for an AUROC: a class is absent) are left out. With fewer than half
    usable, or fewer than two groups, the interval is NaN: it would describe other data than these. So it is where the
    statistic is NaN without one certain group, such as the only patient of a class: no resample has another one.

    Args:
        statistic: takes the arrays, gives a number. ``binary_auroc`` is computed for all resamples at once.
        arrays: each [n, …], resampled together along the first axis.
        groups: [n], patient of each sample; None when each sample is its own.
        resamples: how often to draw; 0 gives a NaN interval.
        seed: of the draws.
        confidence: share of the resampled values inside.

    Raises:
        ValueError: no arrays, lengths differ, a missing group, or ``confidence`` is not in (0, 1).

    Source:
        Efron & Tibshirani 1993, chapter 13; resampling of clusters as in Davison & Hinkley 1997, section 3.8.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, expected between 0 and 1.")
    if statistic is binary_auroc and len(arrays) == 2:
        values = resample_auroc(arrays[0], arrays[1], groups=groups, resamples=resamples, seed=seed)
    else:
        values = _resample(statistic, arrays, groups, resamples, seed)
    return percentile_interval(values, confidence=confidence)


def percentile_interval(values: npt.ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Interval of resampled values, [resamples]; NaN values are left out, see ``bootstrap_interval``."""
    drawn = np.asarray(values, dtype=np.float64)
    usable = drawn[~np.isnan(drawn)]
    if len(usable) == 0 or 2 * len(usable) < len(drawn):
        return Interval(math.nan, math.nan, len(usable))
    low, high = np.quantile(usable, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high), len(usable))


def resample_auroc(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    *,
    groups: npt.ArrayLike | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> npt.NDArray[np.float64]:
    """AUROC of each resample, [resamples]; NaN where a class is absent (everywhere, where one is of one group only).

    Args:
        labels: [n], 0 or 1.
        probabilities: [n], of the positive class.
        groups: [n], patient of each sample; None when each sample is its own.
        resamples: how often to draw.
        seed: of the draws; the same seed and groups draw the same patients for any probabilities.

    Raises:
        ValueError: lengths differ, a label is neither 0 nor 1, or a missing group.
    """
    truth, scores = as_binary(labels, probabilities)
    result = np.full(resamples, np.nan)
    codes, count = group_codes(groups, len(truth))
    if not of_several_groups(codes, truth, ~truth) or np.isnan(scores).any():
        return result
    # Once for all resamples: in the order of probabilities, cut where they differ into pieces that stay in cache.
    order = np.argsort(scores, kind="stable")
    truth, codes, starts = truth[order], codes[order], _block_starts(scores[order])
    cuts = starts[np.searchsorted(starts, np.arange(0, len(truth), _PIECE))[1:] - 1]
    bounds = np.unique([0, *cuts, len(truth)])
    pieces = [
        (truth[low:high], codes[low:high], starts[np.searchsorted(starts, low) : np.searchsorted(starts, high)] - low)
        for low, high in pairwise(bounds)
    ]
    start = 0
    for picks in _draws(count, resamples, seed, per_draw=max(int(np.diff(bounds).max()), count)):
        often = _multiplicities(picks, count).astype(np.float64)
        won, positives, negatives = np.zeros((3, len(picks)))
        for labelled, groups_of, blocks in pieces:
            positive, negative = _block_sums(labelled, blocks, often[:, groups_of])
            below = np.cumsum(negative, axis=1) - negative / 2 + negatives[:, None]
            won += (positive * below).sum(axis=1)
            positives += positive.sum(axis=1)
            negatives += negative.sum(axis=1)
        stop = start + len(picks)
        np.divide(won, positives * negatives, out=result[start:stop], where=positives * negatives > 0)
        start = stop
    return result


def resampled_weights(
    groups: npt.ArrayLike | None, length: int, *, resamples: int, seed: int, per_draw: int = 0
) -> Iterator[npt.NDArray[np.int64]]:
    """How often each sample occurs in each resample; what a statistic needs that takes weights.

    Args:
        groups: [length], patient of each sample; None when each sample is its own.
        length: number of samples.
        resamples: how often to draw.
        seed: of the draws.
        per_draw: elements that the caller holds for each draw, where they are more than the samples.

    Yields:
        [draws, length], together ``resamples`` rows; nothing with fewer than two groups.

    Raises:
        ValueError: another number of groups, or a missing group.
    """
    codes, count = group_codes(groups, length)
    if count < 2:
        return
    for picks in _draws(count, resamples, seed, per_draw=max(length, count, per_draw)):
        yield _multiplicities(picks, count)[:, codes]


def _multiplicities(picks: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """How often each group was drawn, [draws, count]."""
    offsets = np.arange(len(picks))[:, None] * count
    return np.bincount((picks + offsets).ravel(), minlength=len(picks) * count).reshape(len(picks), count)


def weighted_pairs(
    labels: npt.NDArray[np.bool_], probabilities: npt.NDArray[np.float64], weights: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Pairs of a positive and a negative: how many are in the right order, and how many there are.

    Their ratio is the AUROC; sums over strata give the AUROC of pairs within strata.

    Args:
        labels: bool, [n], n ≥ 1.
        probabilities: [n], without NaN.
        weights: [weightings, n], not negative; a pair counts by the product of its weights.

    Returns:
        Pairs in which the positive has the higher probability, ties as one half, [weightings]; all pairs, [weightings].
    """
    order = np.argsort(probabilities, kind="stable")
    positive, negative = _block_sums(labels[order], _block_starts(probabilities[order]), weights[:, order])
    below = np.cumsum(negative, axis=1) - negative / 2
    return (positive * below).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1)


def _block_starts(ordered: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """Where each block of equal values begins; a positive beats all negatives of earlier blocks and half of its own."""
    return np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))


def _block_sums(
    labels: npt.NDArray[np.bool_], starts: npt.NDArray[np.intp], weights: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Weights of the positives and of the negatives of each block, both [weightings, blocks]."""
    by_rank = np.asarray(weights, np.float64)
    of_positives = by_rank * labels
    if len(starts) == by_rank.shape[1]:  # no ties
        return of_positives, by_rank - of_positives
    positive = np.add.reduceat(of_positives, starts, axis=1)
    return positive, np.add.reduceat(by_rank, starts, axis=1) - positive


def _resample(
    statistic: Callable[..., float],
    arrays: tuple[npt.ArrayLike, ...],
    groups: npt.ArrayLike | None,
    resamples: int,
    seed: int,
) -> npt.NDArray[np.float64]:
    columns = [np.asarray(array) for array in arrays]
    lengths = sorted({len(column) for column in columns})
    if len(lengths) != 1:
        raise ValueError(f"expected arrays of one length, got {lengths}.")
    codes, count = group_codes(groups, lengths[0])
    if count < 2:
        return np.full(resamples, np.nan)
    rows_of = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    values = []
    for picks in _draws(count, resamples, seed, per_draw=max(lengths[0], count)):
        for picked in picks:
            rows = picked if groups is None else np.concatenate([rows_of[group] for group in picked])
            values.append(float(statistic(*(column[rows] for column in columns))))
    drawn = np.asarray(values, dtype=np.float64)
    # A group that cannot be missed is missing from a third of all resamples: without NaN there is none.
    if np.isnan(drawn).any():
        without = (codes != group for group in range(count))
        if any(math.isnan(float(statistic(*(column[rows] for column in columns)))) for rows in without):
            drawn[:] = np.nan
    return drawn


def _draws(count: int, resamples: int, seed: int, *, per_draw: int) -> Iterator[npt.NDArray[np.int64]]:
    """Chunks of [draws, count] group indices; the chunk size does not change what is drawn."""
    generator = np.random.default_rng(seed)
    chunk = max(1, CHUNK_ELEMENTS // per_draw)
    for start in range(0, resamples, chunk):
        draws = min(chunk, resamples - start)
        yield generator.integers(0, count, size=(draws, count))
