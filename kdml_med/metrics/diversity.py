"""Whether students of one cohort differ: an ensemble gains nothing from networks that err together.

Name the students only; the ensemble consists of them, and the teacher has ``agreement``. A figure that is not defined
(one network, no samples, a NaN) is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd

from kdml_med.metrics.box_matching import Floats, finite, match_detections, read_frames
from kdml_med.metrics.calibration import brier_score, expected_calibration_error
from kdml_med.metrics.detection import by_network, found_boxes
from kdml_med.metrics.inputs import as_binary


def agreement(probabilities: npt.ArrayLike, others: npt.ArrayLike, threshold: float = 0.5) -> float:
    """Share of samples for which two networks decide alike, for example student and teacher.

    Args:
        probabilities: [n], of the positive class; at least ``threshold`` decides for it.
        others: [n], of the other network.
        threshold: for both.

    Raises:
        ValueError: they are not vectors of one length.
    """
    first, second = _vectors(probabilities, others)
    if len(first) == 0 or np.isnan(first).any() or np.isnan(second).any():
        return math.nan
    return float(((first >= threshold) == (second >= threshold)).mean())


def disagreement(probabilities: Mapping[str, npt.ArrayLike], threshold: float = 0.5) -> float:
    """Share of samples for which two networks decide differently, mean over all pairs of networks.

    Args:
        probabilities: [n], of the positive class, by network.
        threshold: as for ``agreement``.

    Raises:
        ValueError: they are not vectors of one length.

    Source:
        Skalak 1996; Kuncheva & Whitaker 2003, Machine Learning 51:181, section 2.
    """
    return _mean_over_pairs(probabilities, lambda first, second: 1 - agreement(first, second, threshold))


def error_correlation(labels: npt.ArrayLike, probabilities: Mapping[str, npt.ArrayLike]) -> float:
    """Pearson correlation of the errors p − y of two networks, mean over all pairs of networks.

    Args:
        labels: [n], 0 or 1.
        probabilities: [n], of the positive class, by network.

    Returns:
        −1 to 1; NaN when the error of a network is the same for all samples.

    Raises:
        ValueError: they are not vectors of one length, or a label is neither 0 nor 1.
    """
    errors = {}
    for name, values in probabilities.items():
        truth, scores = as_binary(labels, values)
        errors[name] = scores - truth
    return _mean_over_pairs(errors, _correlation)


def found_by_network(
    frames: pd.DataFrame, detections: pd.DataFrame, thresholds: Mapping[str, float], *, iou_threshold: float = 0.5
) -> dict[str, Floats]:
    """Which annotated boxes each network finds: the decisions of detectors, to be compared.

    ``agreement`` of two entries is the share of boxes that both find or both miss.

    Args:
        frames: evaluated rows of a manifest, see ``kdml_med.metrics.box_matching.read_frames``.
        detections: columns of ``DetectionColumn``; networks that ``thresholds`` does not name are left out.
        thresholds: score from which a detection counts, by network; see ``choose_thresholds``.
        iou_threshold: from which IoU a box is found.

    Returns:
        1 found, 0 missed, [boxes], by network; NaN for a network with a score or corner that is not finite.

    Raises:
        ValueError: as for ``read_frames`` and ``match_detections``.
    """
    truth = read_frames(frames)
    tables = by_network(detections, thresholds)
    found = {}
    for name, threshold in thresholds.items():
        if not finite(tables[name]):
            found[name] = np.full(len(truth.boxes), np.nan)
            continue
        matches = match_detections(truth, tables[name], iou_thresholds=(iou_threshold,))
        found[name] = found_boxes(matches, threshold, iou_threshold=iou_threshold).astype(np.float64)
    return found


def found_disagreement(found: Mapping[str, npt.ArrayLike]) -> float:
    """Share of annotated boxes that one of two networks finds and the other misses, mean over pairs.

    Args:
        found: 1 or 0, [boxes], by network; from ``found_by_network``.

    Raises:
        ValueError: they are not vectors of one length.
    """
    return disagreement(found)


def found_error_correlation(found: Mapping[str, npt.ArrayLike]) -> float:
    """Phi coefficient of the annotated boxes that two networks miss, mean over pairs.

    Args:
        found: 1 or 0, [boxes], by network; from ``found_by_network``.

    Returns:
        −1 to 1, 1 where they miss the same boxes; NaN when a network finds all boxes or none.

    Raises:
        ValueError: they are not vectors of one length.
    """
    return _mean_over_pairs(found, _correlation)  # of two binary variables, and the same for found and missed


def detection_calibration(
    frames: pd.DataFrame,
    detections: pd.DataFrame,
    *,
    iou_threshold: float = 0.5,
    min_score: float = 0.0,
    bins: int = 10,
) -> dict[str, float]:
    """Whether the scores of one detector are the chance that the box is right.

    A detection is right when it finds an annotated box, see ``match_detections``; boxes that nothing found have no
    score and do not count. Most detections have low scores, and rule both figures unless ``min_score`` leaves them out.

    Args:
        frames: evaluated rows of a manifest, see ``kdml_med.metrics.box_matching.read_frames``.
        detections: columns of ``DetectionColumn``, of one network, scores 0 to 1.
        iou_threshold: from which IoU a box is found.
        min_score: of the detections that count.
        bins: of the expected calibration error.

    Returns:
        ``n``, the detections, and ``brier`` and ``ece``, NaN without any or when a score or corner is not finite.

    Raises:
        ValueError: a score is outside [0, 1], or as for ``read_frames`` and ``match_detections``.

    Source:
        Küppers et al. 2020, CVPR Workshops, "Multivariate Confidence Calibration for Object Detection", on scores only.
    """
    truth = read_frames(frames)
    if not finite(detections):
        return {"n": len(detections), "brier": math.nan, "ece": math.nan}
    matches = match_detections(truth, detections, iou_thresholds=(iou_threshold,))
    used = matches.score >= min_score
    right, scores = (matches.row(iou_threshold) >= 0)[used], matches.score[used]
    return {
        "n": len(scores),
        "brier": brier_score(right, scores),
        "ece": expected_calibration_error(right, scores, bins=bins),
    }


def _mean_over_pairs(columns: Mapping[str, npt.ArrayLike], figure: Callable[[Floats, Floats], float]) -> float:
    pairs = [figure(*_vectors(columns[first], columns[second])) for first, second in combinations(columns, 2)]
    return float(np.mean(pairs)) if pairs else math.nan


def _correlation(first: Floats, second: Floats) -> float:
    # Rounding leaves about 1e-16 between errors that are all the same; that is no variance.
    if len(first) == 0 or not np.minimum(np.ptp(first), np.ptp(second)) > 1e-12:
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])


def _vectors(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[Floats, Floats]:
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.ndim != 1 or one.shape != other.shape:
        raise ValueError(f"expected vectors of one length, got the shapes {one.shape} and {other.shape}.")
    return one, other
