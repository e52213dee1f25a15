"""Free-response ROC: how many lesions are found when so many false alarms per frame are accepted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from kdml_med.metrics.box_matching import Floats, Hit, Matches, match_detections, read_frames
from kdml_med.metrics.detection import ScoreCurve, detected_until, last_of_equal_scores, score_curve

FALSE_POSITIVE_RATES: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0)
"""False positives per frame at which the sensitivity is reported."""

_ROUNDING = 1e-9  # 0.29 · 100 is 28.999…: 29 false positives in 100 frames are a rate of 0.29


def froc_curve(
    frames: pd.DataFrame, detections: pd.DataFrame, *, hit: Hit = "iou", iou_threshold: float = 0.5
) -> ScoreCurve:
    """Curve of one network: ``recall`` over ``false_positives_per_frame``, for plotting.

    Args:
        frames: rows of a manifest, see ``kdml_med.metrics.box_matching.read_frames``.
        detections: columns of ``DetectionColumn``, of one network.
        hit: "iou", or "centre": a detection finds a box that its centre lies in.
        iou_threshold: with hit "iou".

    Raises:
        ValueError: as for ``read_frames`` and ``match_detections``.
    """
    matches = match_detections(read_frames(frames), detections, iou_thresholds=(iou_threshold,), hit=hit)
    return score_curve(matches, iou_threshold=matches.thresholds[0])


def froc_sensitivity(
    matches: Matches,
    weights: npt.NDArray[np.int64] | None = None,
    *,
    rates: Sequence[float] = FALSE_POSITIVE_RATES,
    iou_threshold: float = 0.5,
) -> Floats:
    """Highest sensitivity that a score threshold reaches with at most so many false positives per frame.

    Steps, no interpolation: a value that some threshold has. False positives are counted over all frames, with and
    without boxes; the sensitivity is by annotated box.

    Args:
        matches: of one network.
        weights: [weightings, frames], how often each frame counts; None counts each once.
        rates: false positives per frame.
        iou_threshold: one that was matched at.

    Returns:
        float64, [weightings, rates], or [rates] without weights; NaN without annotated boxes.

    Source:
        Bunch et al. 1977, SPIE 127, "A free response approach to the measurement and characterization of
        radiographic observer performance".
    """
    if weights is None:
        once = np.ones((1, len(matches.boxes_per_frame)), dtype=np.int64)
        alone: Floats = froc_sensitivity(matches, once, rates=rates, iou_threshold=iou_threshold)[0]
        return alone
    hits = matches.row(iou_threshold) >= 0
    # A threshold between two lesions only adds false positives, so thresholds at which a lesion is found suffice.
    ends = last_of_equal_scores(matches.score)
    hits_until = np.cumsum(hits)[ends]
    better = np.diff(hits_until, prepend=0) > 0
    counted = weights.astype(np.float64)
    detected = detected_until(matches, ends[better], counted)
    found = np.cumsum(counted[:, matches.frame[hits]], axis=1)[:, hits_until[better] - 1]
    allowed = weights.sum(axis=1)[:, None] * np.asarray(rates) + _ROUNDING
    boxes = weights @ matches.boxes_per_frame
    # Both rise down the ranking: the last threshold that is allowed finds most.
    last = [np.searchsorted(row, limits, side="right") for row, limits in zip(detected - found, allowed, strict=True)]
    reached = np.concatenate([np.zeros((len(weights), 1)), found], axis=1)
    best = np.take_along_axis(reached, np.stack(last), axis=1)
    result = np.full(allowed.shape, np.nan)
    np.divide(best, boxes[:, None], out=result, where=boxes[:, None] > 0)
    return result
