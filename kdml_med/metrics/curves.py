"""Curves over all thresholds, with the area under them and a band, both by resampling patients.

A band is pointwise: of 95 % of the resampled patients the curve passes between its limits at that place; whole curves
leave it more often. Draws are those of ``bootstrap_interval`` and ``evaluate_detections`` with the same groups,
resamples and seed, so that the area and its limits are the figures of metrics.json. Where a class, or all annotated
boxes, are of one group, there are neither limits nor band, as there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from kdml_med.metrics.bootstrap import percentile_interval, resampled_weights
from kdml_med.metrics.box_matching import Group, Hit, Matches, finite, match_detections, read_frames
from kdml_med.metrics.classification import average_precision as binary_average_precision
from kdml_med.metrics.classification import binary_auroc
from kdml_med.metrics.detection import RECALL_LEVELS, average_precision, interpolated_precision, score_curve
from kdml_med.metrics.froc import FALSE_POSITIVE_RATES, froc_sensitivity
from kdml_med.metrics.inputs import as_binary, of_several_groups

Floats = npt.NDArray[np.float64]
Weights = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_PLACES = np.linspace(0, 1, 101)
_FROC_PLACES = np.linspace(0, 2, 101)
_ROUNDING = 1e-9  # 29 of 100 is to be at the place 0.29, whatever their quotient is


@dataclass(frozen=True)
class Curve:
    """A curve, the area under it, and its band.

    Attributes:
        x: [points], rising.
        y: [points].
        thresholds: [points], falling: a probability or score of at least this is positive; the first may be infinite.
        area: what summarises the curve; which area says the function that made it. NaN where not defined.
        area_low: lower limit of its 95 % interval; NaN where not defined.
        area_high: upper limit.
        grid: [places], of x, where the band is known.
        low: [places], lower limit of y; NaN where not defined.
        high: [places], upper limit.
        chance: the area for answers that know nothing; NaN where there is no such figure.
    """

    x: Floats
    y: Floats
    thresholds: Floats
    area: float
    area_low: float
    area_high: float
    grid: Floats = field(default_factory=lambda: _PLACES)
    low: Floats = field(default_factory=lambda: np.full(len(_PLACES), np.nan))
    high: Floats = field(default_factory=lambda: np.full(len(_PLACES), np.nan))
    chance: float = math.nan

    def corners(self) -> Curve:
        """The same line without points inside its level and upright parts, of which there are as many as patients."""
        moves = np.ones(len(self.x), dtype=np.bool_)
        moves[1:] = (np.diff(self.x) != 0) | (np.diff(self.y) != 0)  # else a corner is two points
        x, y, thresholds = self.x[moves], self.y[moves], self.thresholds[moves]
        kept = np.ones(len(x), dtype=np.bool_)
        for own in (x, y):
            kept[1:-1] &= (own[1:-1] != own[:-2]) | (own[1:-1] != own[2:])
        return replace(self, x=x[kept], y=y[kept], thresholds=thresholds[kept])


def roc_curve(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    *,
    groups: npt.ArrayLike | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Curve:
    """Sensitivity (y) over false-positive rate (x): straight between its points; the area is the AUROC.

    The band averages vertically: at a false-positive rate, over the sensitivities of the resampled patients.

    Args:
        labels: [n], 0 or 1.
        probabilities: [n], of the positive class.
        groups: [n], patient of each sample; None when each sample is its own.
        resamples: how often to draw patients; 0 for no band.
        seed: of the draws.

    Returns:
        No points, and NaN for all figures, when a class is absent or a probability is NaN.

    Raises:
        ValueError: shapes differ, a label is neither 0 nor 1, or a missing group.

    Source:
        Fawcett 2006, Pattern Recognition Letters 27:861, algorithms 1, 2 and 4.
    """
    truth, scores = as_binary(labels, probabilities)
    if not _usable(truth, scores):
        return _nothing()
    thresholds, found, false = _counts(truth, scores, np.ones((1, len(truth)), dtype=np.int64))
    x, y = false[0] / false[0, -1], found[0] / found[0, -1]
    resamples = resamples if of_several_groups(groups, truth, ~truth) else 0
    drawn = resampled_weights(groups, len(truth), resamples=resamples, seed=seed)
    band = _band(drawn, _judging(truth, scores, _sensitivity), resamples, len(_PLACES))
    return Curve(x, y, thresholds, binary_auroc(truth, scores), *band.area, _PLACES, band.low, band.high, 0.5)


def precision_recall_curve(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    *,
    groups: npt.ArrayLike | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Curve:
    """Precision (y) over recall (x) in steps, each precision back to the recall before; the area is average precision.

    The first point is recall 0 and precision 1, as scikit-learn adds it. The chance is the share of positives.

    Args:
        labels: [n], 0 or 1.
        probabilities: [n], of the positive class.
        groups: [n], patient of each sample; None when each sample is its own.
        resamples: how often to draw patients; 0 for no band.
        seed: of the draws.

    Returns:
        No points, and NaN for all figures, when a class is absent or a probability is NaN.

    Raises:
        ValueError: shapes differ, a label is neither 0 nor 1, or a missing group.

    Source:
        Davis & Goadrich 2006, ICML: no straight lines between the points.
    """
    truth, scores = as_binary(labels, probabilities)
    if not _usable(truth, scores):
        return _nothing()
    thresholds, found, false = _counts(truth, scores, np.ones((1, len(truth)), dtype=np.int64))
    precision = np.concatenate([[1.0], found[0, 1:] / (found[0, 1:] + false[0, 1:])])
    resamples = resamples if of_several_groups(groups, truth, ~truth) else 0
    drawn = resampled_weights(groups, len(truth), resamples=resamples, seed=seed)
    band = _band(drawn, _judging(truth, scores, _precision), resamples, len(_PLACES))
    area = binary_average_precision(truth, scores)
    recall = found[0] / found[0, -1]
    chance = float(truth.mean())
    return Curve(recall, precision, thresholds, area, *band.area, _PLACES, band.low, band.high, chance)


def froc_with_band(
    frames: pd.DataFrame,
    detections: pd.DataFrame,
    *,
    hit: Hit = "iou",
    iou_threshold: float = 0.5,
    group: Group = "sequence",
    resamples: int = 1000,
    seed: int = 0,
) -> Curve:
    """Sensitivity by annotated box (y) over false positives per frame (x), in steps, of one network.

    The area is the mean of the sensitivities at ``FALSE_POSITIVE_RATES``, "froc_mean" in metrics.json where boxes
    match at an IoU of 0.5; the band reaches to 2 false positives per frame.

    Args:
        frames: evaluated rows of a manifest, see ``kdml_med.metrics.box_matching.read_frames``.
        detections: columns of ``DetectionColumn``, of one network.
        hit: "iou", or "centre": a detection finds a box that its centre lies in.
        iou_threshold: with hit "iou".
        group: what is resampled.
        resamples: how often to draw; 0 for no band.
        seed: of the draws.

    Returns:
        No points, and NaN for all figures, without annotated boxes or with a score or corner that is no number.

    Raises:
        ValueError: as for ``read_frames`` and ``match_detections``, or unknown group.
    """
    truth = read_frames(frames)
    groups = truth.groups(group)
    if not finite(detections) or not len(truth.boxes):
        return _nothing(_FROC_PLACES)
    matches = match_detections(truth, detections, iou_thresholds=(iou_threshold,), hit=hit)
    limit = matches.thresholds[0]
    points = score_curve(matches, iou_threshold=limit)
    rates = [*FALSE_POSITIVE_RATES, *_FROC_PLACES]

    def under(weights: Weights) -> tuple[Floats, Floats]:
        values = froc_sensitivity(matches, weights, rates=rates, iou_threshold=limit)
        return values[:, : len(FALSE_POSITIVE_RATES)].mean(axis=1), values[:, len(FALSE_POSITIVE_RATES) :]

    resamples = resamples if of_several_groups(groups, matches.boxes_per_frame) else 0
    drawn = _frame_draws(matches, groups, resamples, seed)
    band = _band(drawn, under, resamples, len(_FROC_PLACES))
    return Curve(
        np.concatenate([[0.0], points.false_positives_per_frame]),
        np.concatenate([[0.0], points.recall]),
        np.concatenate([[np.inf], points.score]),
        float(froc_sensitivity(matches, iou_threshold=limit).mean()),
        *band.area,
        _FROC_PLACES,
        band.low,
        band.high,
    )


def detection_precision_recall(
    frames: pd.DataFrame,
    detections: pd.DataFrame,
    *,
    iou_threshold: float = 0.5,
    group: Group = "sequence",
    resamples: int = 1000,
    seed: int = 0,
) -> Curve:
    """Precision (y) over recall (x) of one network, in steps as COCO takes them; the area is its average precision.

    Precision is the upper envelope: the best that any lower threshold reaches, which is what COCO averages over 101
    recalls. A recall that no threshold reaches has the precision 0 in the band.

    Args:
        frames: as for ``froc_with_band``.
        detections: as for ``froc_with_band``.
        iou_threshold: from which a detection finds a box.
        group: what is resampled.
        resamples: how often to draw; 0 for no band.
        seed: of the draws.

    Returns:
        No points, and NaN for all figures, without annotated boxes or with a score or corner that is no number.

    Raises:
        ValueError: as for ``froc_with_band``.
    """
    truth = read_frames(frames)
    groups = truth.groups(group)
    if not finite(detections) or not len(truth.boxes):
        return _nothing(RECALL_LEVELS)
    matches = match_detections(truth, detections, iou_thresholds=(iou_threshold,))
    points = score_curve(matches, iou_threshold=iou_threshold)
    envelope = np.maximum.accumulate(points.precision[::-1])[::-1]

    def under(weights: Weights) -> tuple[Floats, Floats]:
        return average_precision(matches, weights)[:, 0], interpolated_precision(matches, weights)

    resamples = resamples if of_several_groups(groups, matches.boxes_per_frame) else 0
    drawn = _frame_draws(matches, groups, resamples, seed)
    band = _band(drawn, under, resamples, len(RECALL_LEVELS))
    return Curve(
        np.concatenate([[0.0], points.recall]),
        np.concatenate([envelope[:1] if len(envelope) else [0.0], envelope]),
        np.concatenate([[np.inf], points.score]),
        float(average_precision(matches)[0]),
        *band.area,
        RECALL_LEVELS,
        band.low,
        band.high,
    )


@dataclass(frozen=True)
class _Band:
    area: tuple[float, float]
    low: Floats
    high: Floats


def _band(
    drawn: Iterator[Weights], under: Callable[[Weights], tuple[Floats, Floats]], resamples: int, places: int
) -> _Band:
    """Limits of the area and of y; a resample in which they are not defined is left out, see ``bootstrap_interval``."""
    areas, values = np.full(resamples, np.nan), np.full((resamples, places), np.nan)
    start = 0
    for weights in drawn:
        rows = slice(start, start + len(weights))
        areas[rows], values[rows] = under(weights)
        start += len(weights)
    interval = percentile_interval(areas)
    usable = values[~np.isnan(values).any(axis=1)]
    if 2 * len(usable) < max(resamples, 1):
        unknown = np.full(places, np.nan)
        return _Band((interval.low, interval.high), unknown, unknown)
    low, high = np.quantile(usable, [0.025, 0.975], axis=0)
    return _Band((interval.low, interval.high), low, high)


def _frame_draws(matches: Matches, groups: npt.NDArray[np.object_], resamples: int, seed: int) -> Iterator[Weights]:
    per_draw = int((matches.box >= 0).any(axis=0).sum())
    return resampled_weights(groups, len(groups), resamples=resamples, seed=seed, per_draw=per_draw)


def _usable(truth: Bools, scores: Floats) -> bool:
    return bool(0 < truth.sum() < len(truth)) and not bool(np.isnan(scores).any())


def _nothing(places: Floats = _PLACES) -> Curve:
    none, unknown = np.empty(0), np.full(len(places), np.nan)
    return Curve(none, none, none, math.nan, math.nan, math.nan, places, unknown, unknown)


def _counts(truth: Bools, scores: Floats, weights: Weights) -> tuple[Floats, Floats, Floats]:
    """Thresholds from infinity down, [points]; positives and negatives at or above each, [weightings, points]."""
    order = np.argsort(-scores, kind="stable")
    thresholds = np.unique(scores)[::-1]
    counts = []
    for own in (truth, ~truth):
        ranked = order[own[order]]
        above = np.zeros((len(weights), len(ranked) + 1))
        np.cumsum(weights[:, ranked], axis=1, out=above[:, 1:])
        until = np.searchsorted(-scores[ranked], -thresholds, side="right")
        counts.append(above[:, np.concatenate([[0], until])])
    return np.concatenate([[np.inf], thresholds]), counts[0], counts[1]


def _judging(
    truth: Bools, scores: Floats, judge: Callable[[Floats, Floats], tuple[float, Floats]]
) -> Callable[[Weights], tuple[Floats, Floats]]:
    """Areas and values at ``_PLACES`` under many weightings, from what ``judge`` makes of the counts of one."""

    def under(weights: Weights) -> tuple[Floats, Floats]:
        _, hits, alarms = _counts(truth, scores, weights)
        pairs = [judge(own, others) for own, others in zip(hits, alarms, strict=True)]
        return np.array([area for area, _ in pairs]), np.stack([places for _, places in pairs])

    return under


def _sensitivity(found: Floats, false: Floats) -> tuple[float, Floats]:
    """AUROC, and sensitivity at each place: where the curve rises straight up, the upper end.

    NaN when a class is absent.
    """
    if not found[-1] or not false[-1]:
        return math.nan, np.full(len(_PLACES), np.nan)
    x, y = false / false[-1], found / found[-1]
    return float(np.trapezoid(y, x)), np.interp(_PLACES + _ROUNDING, x, y)


def _precision(found: Floats, false: Floats) -> tuple[float, Floats]:
    """Average precision, and the precision at each recall; NaN when a class is absent."""
    if not found[-1] or not false[-1]:
        return math.nan, np.full(len(_PLACES), np.nan)
    better = np.flatnonzero(np.diff(found, prepend=0) > 0)  # elsewhere the recall stays
    recall = found[better] / found[-1]
    precision = found[better] / (found[better] + false[better])
    area = float((np.diff(recall, prepend=0) * precision).sum())
    return area, precision[np.searchsorted(recall, np.maximum(_PLACES - _ROUNDING, 0))]
