"""One style for all figures, in colours that colour-blind people can tell apart."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdml_med.storage.files import write_atomically

WIDTH = 8.0
"""Inches of every figure; with ``_DPI`` and 10 point letters it is legible at 800 px."""
_DPI = 150
INK, FAINT, GRID = "#222222", "#767676", "#dddddd"
# Okabe & Ito 2008, the eight colours that all common kinds of colour blindness keep apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8B8000")
PANELS = 3
"""Side by side at most."""
_STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "svg.hashsalt": "kdml_med",
}


def style() -> AbstractContextManager[None]:
    """The context that figures are drawn in."""
    return mpl.rc_context(_STYLE)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG; the same figure gives the same bytes, because neither program nor date is noted."""
    sink = io.BytesIO()
    with style():
        figure.savefig(sink, format="png", dpi=_DPI, metadata={"Software": None})
    write_atomically(path, sink.getvalue())


def new_figure(height: float, rows: int = 1, columns: int = 1, **shared: Any) -> tuple[Figure, list[Axes]]:
    """An empty figure and its charts, row by row; within ``style``.

    Args:
        height: inches.
        rows: of charts.
        columns: of charts.
        **shared: see ``matplotlib.figure.Figure.subplots``.
    """
    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, **shared)
    return figure, [axis for row in grid for axis in row]


def new_panels(titles: Sequence[str], height: float, row_height: float, **shared: Any) -> tuple[Figure, list[Axes]]:
    """A chart below each title, ``PANELS`` in a row; within ``style``.

    Args:
        titles: at least one.
        height: of what surrounds the charts, inches.
        row_height: of each row of charts, inches.
        **shared: see ``matplotlib.figure.Figure.subplots``.
    """
    columns = min(PANELS, len(titles))
    rows = math.ceil(len(titles) / columns)
    figure, axes = new_figure(height + row_height * rows, rows, columns, **shared)
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title(title)
    for axis in axes[len(titles) :]:
        axis.set_visible(False)
    return figure, axes[: len(titles)]


def legend_entry(label: str, colour: str, marker: str, line: Any, *, size: float = 6) -> Line2D:
    """A line of a legend that stands for no line of the figure."""
    return Line2D([], [], color=colour, marker=marker, linestyle=line, label=label, markersize=size)
