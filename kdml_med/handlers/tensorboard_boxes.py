"""Detections of all networks beside each other: FROC curves and agreement, for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kdml_med.keys import NetworkName
from kdml_med.metrics.box_matching import BOX_COLUMNS, match_detections, read_frames
from kdml_med.metrics.detection import ScoreCurve, count_at
from kdml_med.metrics.froc import FALSE_POSITIVE_RATES, froc_curve

_RATES = (0.01, 10.0)  # the same axis in every epoch
_STYLES: dict[str, dict[str, Any]] = {
    NetworkName.TEACHER.value: {"color": "black", "linestyle": "--", "linewidth": 1.5},
    NetworkName.ENSEMBLE.value: {"color": "firebrick", "linewidth": 2.5},
}


def froc_figure(
    frames: pd.DataFrame, detections: Mapping[str, pd.DataFrame], thresholds: Mapping[str, float]
) -> dict[str, np.ndarray[Any, np.dtype[np.uint8]]]:
    """FROC curves of all networks in one picture; a dot is the network's threshold.

    Args:
        frames: evaluated rows of a manifest.
        detections: columns of ``DetectionColumn``, by network; numbers only.
        thresholds: by network, in the order of the legend.

    Returns:
        uint8, [height, width, 3], under the tag ``val/froc``; nothing where no frame has a box.
    """
    figure = Figure(figsize=(5.2, 4.6), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axis = figure.subplots()
    for name, threshold in thresholds.items():
        curve = froc_curve(frames, detections[name])
        if curve.boxes == 0:
            return {}
        _draw_curve(axis, name, curve, threshold)
    axis.set(xscale="log", xlim=_RATES, ylim=(0, 1.02))
    axis.set_xticks([0.01, *FALSE_POSITIVE_RATES, 10], ["0.01", *(f"{rate:g}" for rate in FALSE_POSITIVE_RATES), "10"])
    axis.set_xticks([], minor=True)
    axis.set(xlabel="false positives per frame", ylabel="sensitivity (share of polyps found)")
    axis.set_title("found: IoU of at least 0.5 · dot: threshold with the best F1", fontsize=9)
    axis.grid(visible=True, color="0.88")
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    canvas.draw()
    image: np.ndarray[Any, np.dtype[np.uint8]] = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return {"val/froc": image}


def _draw_curve(axis: Axes, name: str, curve: ScoreCurve, threshold: float) -> None:
    # A rate allows at most so many false positives: steps, from nothing found on the left to the end of the axis.
    rates = np.clip([_RATES[0], *curve.false_positives_per_frame, _RATES[1]], *_RATES)
    found = np.array([0.0, *curve.recall, curve.recall[-1] if len(curve.recall) else 0.0])
    line = axis.step(rates, found, where="post", label=name, **_STYLES.get(name, {"linewidth": 1.5}))[0]
    used = np.flatnonzero(curve.score >= threshold)
    if len(used):
        axis.plot(rates[used[-1] + 1], found[used[-1] + 1], "o", color=line.get_color(), clip_on=False)


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
