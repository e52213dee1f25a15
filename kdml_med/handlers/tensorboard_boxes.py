"""How much the detections of networks agree, for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from kdml_med.keys import NetworkName
from kdml_med.metrics.box_matching import BOX_COLUMNS, match_detections, read_frames
from kdml_med.metrics.detection import count_at


def box_agreement(
    frames: pd.DataFrame, detections: Mapping[str, pd.DataFrame], thresholds: Mapping[str, float]
) -> dict[str, float]:
    """How much every two networks draw the same boxes, without a look at the annotation.

    In a frame it is twice the number of boxes that both drew (IoU of at least 0.5) by the number of all their boxes, 1
    where neither drew any; over the frames the mean. The ensemble is left out: it consists of the others.

    Args:
        frames: evaluated rows of a manifest.
        detections: columns of ``DetectionColumn``, by network; numbers only.
        thresholds: score from which a detection counts, by network.

    Returns:
        0 to 1, by "agreement_{a}_{b}".
    """
    names = [name for name in thresholds if name != NetworkName.ENSEMBLE]
    shares = {}
    for a, b in combinations(names, 2):
        # The boxes of one stand for the annotation that the other is compared with.
        truth = read_frames(_annotated_by(frames, detections[b], thresholds[b]))
        counts = count_at(match_detections(truth, detections[a], iou_thresholds=(0.5,)), thresholds[a])
        both = counts.boxes + counts.detected
        share = np.divide(2 * counts.found, both, out=np.ones(len(both)), where=both > 0)
        shares[f"agreement_{a}_{b}"] = float(share.mean())
    return shares


def _annotated_by(frames: pd.DataFrame, rows: pd.DataFrame, threshold: float) -> pd.DataFrame:
    used = rows[rows["score"] >= threshold]
    corners, places = used[BOX_COLUMNS].to_numpy(np.float64), used.groupby("sample_id").indices
    boxes: list[Any] = [corners[places[name]] if name in places else [] for name in frames["sample_id"]]
    return frames[["sample_id", "sequence_id", "patient_id"]].assign(
        boxes=pd.Series(boxes, index=frames.index, dtype=object)
    )
