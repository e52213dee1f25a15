"""Detection of one class of object: average precision, and precision, recall and F1 at a score threshold.

A detection on a frame without boxes is a false positive like any other. What is not defined is NaN: everything but
false positives when no frame has a box, precision when nothing was detected. Without any detection, average precision,
recall and F1 are 0.

Functions that take ``weights``, [weightings, frames], count each frame that often; a resample is such a weighting.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import csr_array

from kdml_med.keys import network_order
from kdml_med.metrics.box_matching import Floats, Indices, Matches, finite, match_detections, read_frames

RECALL_LEVELS = np.linspace(0, 1, 101)
DEFAULT_THRESHOLD = 0.5
_NO_COLUMN = "expected the column 'network' in the detections; they have"


def average_precision(matches: Matches, weights: npt.NDArray[np.int64] | None = None) -> Floats:
    """COCO's average precision at each IoU threshold: mean over 101 recall levels of the precision's upper envelope.

    With weights, the copies of a frame stand side by side in the ranking. That is the AP of the duplicated frames
    where scores differ; between equal scores COCO's depends on the order of the frames.

    Args:
        matches: of one network.
        weights: [weightings, frames]; None counts each frame once.

    Returns:
        float64, [weightings, thresholds], or [thresholds] without weights; NaN without annotated boxes.

    Source:
        pycocotools' ``COCOeval.accumulate``, for one class, all areas, and crowds absent.
    """
    if weights is None:
        alone: Floats = average_precision(matches, _once(matches))[0]
        return alone
    result = np.full((len(weights), len(matches.box)), np.nan)
    for column, (envelope, reached) in enumerate(_envelopes(matches, weights)):
        result[:, column] = (envelope * np.diff(reached, axis=1, prepend=0)).sum(axis=1) / len(RECALL_LEVELS)
    result[weights @ matches.boxes_per_frame == 0] = np.nan
    return result


def interpolated_precision(matches: Matches, weights: npt.NDArray[np.int64]) -> Floats:
    """Upper envelope of the precision at ``RECALL_LEVELS``: the values that ``average_precision`` is the mean of.

    Args:
        matches: of one network, at one IoU threshold.
        weights: [weightings, frames].

    Returns:
        float64, [weightings, levels]; 0 where a recall is not reached; NaN without annotated boxes.

    Raises:
        ValueError: the matches are at several thresholds.
    """
    if len(matches.box) != 1:
        raise ValueError(f"matched at {matches.thresholds}, expected one IoU threshold.")
    envelope, reached = next(_envelopes(matches, weights))
    levels = np.arange(len(RECALL_LEVELS))
    first = np.stack([np.searchsorted(row, levels, side="right") for row in reached])
    beyond = np.concatenate([envelope, np.zeros((len(weights), 1))], axis=1)
    result: Floats = np.take_along_axis(beyond, first, axis=1)
    result[weights @ matches.boxes_per_frame == 0] = np.nan
    return result


def _envelopes(matches: Matches, weights: npt.NDArray[np.int64]) -> Iterator[tuple[Floats, Indices]]:
    """Of each IoU threshold: envelope of the precision at true positives, and how many recall levels are reached there.

    Both [weightings, true positives]: precision has its peaks there, so the curve is needed nowhere else.
    """
    counted = weights.astype(np.float64)
    peaks = np.flatnonzero((matches.box >= 0).any(axis=0))
    detected = detected_until(matches, peaks, counted)
    boxes = (weights @ matches.boxes_per_frame)[:, None]
    for found in matches.box[:, peaks] >= 0:
        hits = np.cumsum(counted[:, matches.frame[peaks[found]]], axis=1)
        precision = _ratio(hits, detected[:, found], undefined=0)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        yield envelope, np.searchsorted(RECALL_LEVELS, _ratio(hits, boxes, undefined=0), side="right")


def detected_until(matches: Matches, positions: npt.NDArray[np.intp], weights: Floats) -> Floats:
    """Number of detections down to some positions of the ranking, when frames count by weight.

    Detections between two positions are first counted by frame, in a sparse matrix. That is ten times as fast as a
    running sum over all detections, of which many have low scores and few find a box.

    Args:
        matches: of one network.
        positions: [positions], indices of detections, rising.
        weights: float64, [weightings, frames].

    Returns:
        float64, [weightings, positions]; a detection at a position is included.
    """
    used = int(positions[-1]) + 1 if len(positions) else 0
    step = np.searchsorted(positions, np.arange(used))
    shape = (len(positions), len(matches.boxes_per_frame))
    counts = csr_array((np.ones(used), (step, matches.frame[:used])), shape=shape)
    result: Floats = np.cumsum((counts @ weights.T).T, axis=1)
    return result


@dataclass(frozen=True)
class FrameCounts:
    """What one network found in each frame at a score threshold; all [frames].

    Attributes:
        boxes: annotated boxes.
        detected: detections with at least the threshold.
        found: annotated boxes that were found; true positives.
    """

    boxes: Indices
    detected: Indices
    found: Indices

    @property
    def false_positives(self) -> Indices:
        """Detections that found nothing, [frames]."""
        return self.detected - self.found


def count_at(matches: Matches, threshold: float, *, iou_threshold: float = 0.5) -> FrameCounts:
    """Count detections with a score of at least ``threshold`` frame by frame."""
    frames = len(matches.boxes_per_frame)
    used = matches.score >= threshold
    hits = used & (matches.row(iou_threshold) >= 0)
    return FrameCounts(
        matches.boxes_per_frame,
        np.bincount(matches.frame[used], minlength=frames).astype(np.intp),
        np.bincount(matches.frame[hits], minlength=frames).astype(np.intp),
    )


def found_boxes(matches: Matches, threshold: float, *, iou_threshold: float = 0.5) -> npt.NDArray[np.bool_]:
    """Which annotated boxes detections with a score of at least ``threshold`` find, bool [boxes]."""
    found = matches.row(iou_threshold)[matches.score >= threshold]
    result = np.zeros(int(matches.boxes_per_frame.sum()), dtype=bool)
    result[found[found >= 0]] = True
    return result


def precision_recall_f1(counts: FrameCounts, weights: npt.NDArray[np.int64] | None = None) -> dict[str, Floats]:
    """Precision, recall and F1 over all boxes.

    Returns:
        ``precision``, ``recall``, ``f1``; each [weightings], or [1] without weights.
    """
    used = np.ones((1, len(counts.boxes)), dtype=np.int64) if weights is None else weights
    boxes, detected, found = (used @ column for column in (counts.boxes, counts.detected, counts.found))
    return {
        "precision": _ratio(found, detected),
        "recall": _ratio(found, boxes),
        "f1": np.where(boxes > 0, _ratio(2 * found, detected + boxes), np.nan),
    }


@dataclass(frozen=True)
class ScoreCurve:
    """Counts at every score that occurs, from the highest down; all [scores].

    Attributes:
        score: threshold; detections with at least this score count.
        found: annotated boxes that were found.
        false_positives: detections that found nothing.
        boxes: annotated boxes in all frames.
        frames: all frames.
    """

    score: Floats
    found: Indices
    false_positives: Indices
    boxes: int
    frames: int

    @property
    def precision(self) -> Floats:
        """[scores]."""
        return _ratio(self.found, self.found + self.false_positives)

    @property
    def recall(self) -> Floats:
        """Sensitivity, [scores]; NaN without annotated boxes."""
        return _ratio(self.found, np.full(len(self.found), self.boxes))

    @property
    def f1(self) -> Floats:
        """[scores]; NaN without annotated boxes."""
        both = 2 * self.found / np.maximum(self.found + self.false_positives + self.boxes, 1)
        return both if self.boxes else np.full(len(both), np.nan)

    @property
    def false_positives_per_frame(self) -> Floats:
        """[scores]."""
        return _ratio(self.false_positives, np.full(len(self.found), self.frames))


def score_curve(matches: Matches, *, iou_threshold: float = 0.5) -> ScoreCurve:
    """Points of the precision-recall and of the FROC curve; equal scores make one point."""
    last = last_of_equal_scores(matches.score)
    found = np.cumsum(matches.row(iou_threshold) >= 0, dtype=np.intp)[last]
    boxes, frames = int(matches.boxes_per_frame.sum()), len(matches.boxes_per_frame)
    return ScoreCurve(matches.score[last], found, last + 1 - found, boxes, frames)


def last_of_equal_scores(score: Floats) -> Indices:
    """Positions after which a falling score changes, the last one included."""
    return np.flatnonzero(np.diff(score, append=-np.inf)).astype(np.intp)


def choose_threshold(frames: pd.DataFrame, detections: pd.DataFrame, *, default: float = DEFAULT_THRESHOLD) -> float:
    """Score threshold with the best F1 at an IoU of 0.5, for one network.

    Choose it on validation frames and apply it to others. It is a score that occurs; of several with the same F1 it is
    the highest, which has the fewest false positives.

    Args:
        frames: rows of a manifest, see ``kdml_med.metrics.box_matching.read_frames``.
        detections: columns of ``DetectionColumn``, of one network.
        default: where no threshold is better than another: nothing annotated, nothing found, or a score that is NaN.

    Raises:
        ValueError: as for ``read_frames`` and ``match_detections``.
    """
    if not finite(detections):
        return default
    curve = score_curve(match_detections(read_frames(frames), detections, iou_thresholds=(0.5,)))
    if curve.boxes == 0 or not curve.found.any():
        return default
    return float(curve.score[np.argmax(curve.f1)])  # argmax takes the first, the highest score


def choose_thresholds(
    frames: pd.DataFrame, detections: pd.DataFrame, *, networks: Iterable[str] = (), default: float = DEFAULT_THRESHOLD
) -> dict[str, float]:
    """``choose_threshold`` for every network of a table, and for those of ``networks`` that detected nothing."""
    return {
        name: choose_threshold(frames, rows, default=default) for name, rows in by_network(detections, networks).items()
    }


def by_network(detections: pd.DataFrame, networks: Iterable[str] = ()) -> dict[str, pd.DataFrame]:
    """Rows of each network, teacher first, ensemble last; no rows for names of ``networks`` that detected nothing.

    Raises:
        ValueError: the table has no column ``network``, or a row has no name.
    """
    if "network" not in detections:
        raise ValueError(f"{_NO_COLUMN} {list(detections.columns)}.")
    if detections["network"].isna().any():
        raise ValueError(f"{int(detections['network'].isna().sum())} detections have no network.")
    names = sorted({*networks, *detections["network"].unique()}, key=network_order)
    return {str(name): detections[detections["network"] == name] for name in names}


def _once(matches: Matches) -> npt.NDArray[np.int64]:
    return np.ones((1, len(matches.boxes_per_frame)), dtype=np.int64)


def _ratio(part: npt.ArrayLike, whole: npt.ArrayLike, *, undefined: float = math.nan) -> Floats:
    top, bottom = np.broadcast_arrays(np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64))
    result: Floats = np.full(top.shape, undefined, dtype=np.float64)
    np.divide(top, bottom, out=result, where=bottom > 0)
    return result
