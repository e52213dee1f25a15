"""Curves as pictures for TensorBoard, drawn as those that a run leaves in ``figures/``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kdml_med.metrics.calibration import bins_for, reliability
from kdml_med.metrics.curves import Curve, froc_with_band, roc_curve
from kdml_med.report.curves import draw_froc, draw_reliability, draw_roc
from kdml_med.report.figures import style

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Answers = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]

_DPI = 110


def roc_figure(answers: Mapping[str, Answers]) -> dict[str, Pixels]:
    """ROC curves.

    Args:
        answers: labels, [n], 0 or 1, both there, and probabilities, [n], by network.

    Returns:
        uint8, [height, width, 3], under the tag ``val/roc``.
    """
    curves = {name: roc_curve(*own, resamples=0) for name, own in answers.items()}
    return {"val/roc": _pixels(draw_roc(curves))}


def calibration_figure(network: str, answers: Answers) -> dict[str, Pixels]:
    """Calibration of one network, whose picture is a card of its own: several in one would be too small.

    Args:
        network: name.
        answers: labels, [n], 0 or 1, and probabilities, [n].

    Returns:
        uint8, [height, width, 3], under the tag ``val/calibration``.
    """
    bins = reliability(*answers, bins=bins_for(len(answers[0])))
    return {"val/calibration": _pixels(draw_reliability({network: bins}))}


def froc_figure(
    frames: pd.DataFrame, detections: Mapping[str, pd.DataFrame], thresholds: Mapping[str, float]
) -> dict[str, Pixels]:
    """FROC curves; a marker is the network's threshold.

    Args:
        frames: evaluated rows of a manifest.
        detections: columns of ``DetectionColumn``, by network; numbers only.
        thresholds: by network.

    Returns:
        uint8, [height, width, 3], under the tag ``val/froc``; nothing where no frame has a box.
    """
    curves = {name: froc_with_band(frames, detections[name], resamples=0) for name in thresholds}
    if not any(len(curve.x) for curve in curves.values()):
        return {}
    points = {name: [("threshold with the best F1", *_at(curves[name], thresholds[name]))] for name in thresholds}
    return {"val/froc": _pixels(draw_froc(curves, points=points))}


def _at(curve: Curve, threshold: float) -> tuple[float, float]:
    """The point of a curve where everything with at least this score counts."""
    last = int(np.flatnonzero(curve.thresholds >= threshold)[-1])
    return float(curve.x[last]), float(curve.y[last])


def _pixels(figure: Figure) -> Pixels:
    with style():
        figure.set_dpi(_DPI)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    image: Pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return image
