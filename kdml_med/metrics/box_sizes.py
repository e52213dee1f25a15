"""Sensitivity of a detector by size of the annotated boxes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from kdml_med.metrics.bootstrap import percentile_interval, resampled_weights
from kdml_med.metrics.box_matching import Floats, Group, finite, match_detections, read_frames
from kdml_med.metrics.detection import found_boxes
from kdml_med.metrics.inputs import of_several_groups

SIZE_EDGES = (0.04, 0.16)
"""Share of its frame's area from which a box is medium, and large: a fifth and two fifths of the side of a frame.

Shares, because frames are stored at any size, and a polyp fills more of a frame the nearer the camera is: pixels say no
more about its millimetres. COCO's limits, 32² and 96² pixels (Lin et al. 2014, arXiv:1405.0312), are 0.3 % and 3 % of
its photographs of 640 x 480; of 1,484 boxes of Kvasir-SEG and CVC-ClinicDB, at 384 x 288 or so, they call 26 small.
These call 190 small and 672 large.
"""
SIZE_NAMES = ("small", "medium", "large")


@dataclass(frozen=True)
class SizeFigures:
    """What a detector finds of the boxes of one size.

    Attributes:
        boxes: annotated ones.
        found: of them.
        sensitivity: ``found / boxes``; NaN without boxes, or where scores are no numbers.
        low: lower limit of its 95 % interval; NaN where not defined, or where all boxes are of one group.
        high: upper limit.
    """

    boxes: int
    found: int
    sensitivity: float
    low: float
    high: float


def sensitivity_by_size(
    frames: pd.DataFrame,
    detections: pd.DataFrame,
    *,
    threshold: float,
    group: Group = "sequence",
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, SizeFigures]:
    """Share of the annotated boxes of each size that are found at a threshold, at an IoU of 0.5.

    Sizes are relative to the frame, see ``SIZE_EDGES``, so that they mean the same at any resolution. Draws are those
    of ``evaluate_detections`` with the same groups, resamples and seed; one without boxes of a size is left out there.

    Args:
        frames: evaluated rows of a manifest, see ``kdml_med.metrics.box_matching.read_frames``; with width and height
            of each frame, pixels.
        detections: columns of ``DetectionColumn``, of one network.
        threshold: score from which a detection counts.
        group: what is resampled.
        resamples: how often to draw; 0 for no intervals.
        seed: of the draws.

    Returns:
        By name of the size, ``SIZE_NAMES`` in that order.

    Raises:
        ValueError: as for ``read_frames`` and ``match_detections``, or unknown group.
    """
    truth = read_frames(frames)
    usable = finite(detections)
    matches = match_detections(truth, detections if usable else detections.iloc[:0], iou_thresholds=(0.5,))
    found = found_boxes(matches, threshold)
    areas = frames.set_index("sample_id").loc[truth.sample_ids, ["width", "height"]].prod(axis=1).to_numpy(np.float64)
    sides = truth.boxes[:, 2:] - truth.boxes[:, :2]
    size = np.digitize(sides.prod(axis=1) / areas[truth.box_frame], SIZE_EDGES)
    groups = truth.groups(group)
    result = {}
    for place, name in enumerate(SIZE_NAMES):
        of_size = size == place
        boxes = np.bincount(truth.box_frame[of_size], minlength=len(areas))
        hits = np.bincount(truth.box_frame[of_size & found], minlength=len(areas))
        drawable = usable and of_several_groups(groups, boxes)
        low, high = _interval(boxes, hits, groups, resamples if drawable else 0, seed)
        total, hit = int(boxes.sum()), int(hits.sum())
        known = usable and total > 0
        result[name] = SizeFigures(total, hit if usable else 0, hit / total if known else math.nan, low, high)
    return result


def _interval(
    boxes: npt.NDArray[np.intp], hits: npt.NDArray[np.intp], groups: npt.NDArray[np.object_], resamples: int, seed: int
) -> tuple[float, float]:
    drawn: list[Floats] = []
    for weights in resampled_weights(groups, len(boxes), resamples=resamples, seed=seed):
        whole = (weights @ boxes).astype(np.float64)
        share = np.full(len(whole), np.nan)
        np.divide(weights @ hits, whole, out=share, where=whole > 0)
        drawn.append(share)
    interval = percentile_interval(np.concatenate([np.empty(0), *drawn]))
    return interval.low, interval.high
