"""One style for all figures, in colours that colour-blind people can tell apart."""

from __future__ import annotations

import io
import math
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdml_med.keys import NetworkName
from kdml_med.storage.files import write_atomically

WIDTH = 8.0
"""Inches of every figure; with ``_DPI`` and 10 point letters it is legible at 800 px."""
HALF_WIDTH = 4.7
"""Inches of a figure with one chart: pages show two of them side by side, telephones one that is still legible."""
_DPI = 150
INK, FAINT, GRID = "#222222", "#767676", "#dddddd"
# Okabe & Ito 2008, the eight colours that all common kinds of colour blindness keep apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8B8000")
NEUTRAL = "#555555"
"""Of what is compared with, such as the teacher."""
STUDENT_COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#8B8000", "#6A51A3", "#A6611A")
"""All with a contrast of at least 3 to 1 on white, which lines need (WCAG 2.2, 1.4.11)."""
ENSEMBLE_COLOUR = "#D55E00"
ON_DARK = {
    INK: "#e6e6e9",
    FAINT: "#9a9aa2",
    GRID: "#3a3b41",
    NEUTRAL: "#b9b9c2",
    "#0072B2": "#5aaeea",
    "#D55E00": "#ff8a3d",
    "#009E73": "#34c79a",
    "#CC79A7": "#ee9fcd",
    "#E69F00": "#f0b429",
    "#56B4E9": "#8fd3ff",
    "#000000": "#f5f5f5",
    "#8B8000": "#c9bd3f",
    "#6A51A3": "#b39ddb",
    "#A6611A": "#d9a066",
    "#999999": "#85858d",
}
"""What stands for a colour of these figures on a dark page; other colours stay as they are."""
PANELS = 3
"""Side by side at most."""
_LONGEST_LABEL = 60
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
    "text.parse_math": False,  # a class called "$50" is text
    "svg.fonttype": "none",  # text stays text: it can be searched, and read out
    "svg.hashsalt": "kdml_med",
}


@contextmanager
def style() -> Iterator[None]:
    """The context that figures are drawn in."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # Names in scripts that the font does not have: a box stands for each letter, in PNG files alone.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


def network_colour(name: str) -> str:
    """Colour of a network, the same in every figure.

    Args:
        name: as in all files. A name that is none of a cohort has the colour of the teacher.
    """
    if name == NetworkName.ENSEMBLE:
        return ENSEMBLE_COLOUR
    number = name.rpartition("_")[2]
    is_student = name.startswith("student_") and number.isdecimal()
    return STUDENT_COLOURS[int(number) % len(STUDENT_COLOURS)] if is_student else NEUTRAL


def network_line(name: str) -> dict[str, Any]:
    """How a network's line is drawn: also told apart by dashes and width, where there is no colour."""
    widths = {NetworkName.TEACHER.value: 1.6, NetworkName.ENSEMBLE.value: 2.4}
    dashes = (0, (5, 1.6)) if name == NetworkName.TEACHER else "-"
    return {"color": network_colour(name), "linewidth": widths.get(name, 1.4), "linestyle": dashes}


def label_text(text: str, longest: int = _LONGEST_LABEL, *, kept_end: int = 0) -> str:
    """Somebody's words as a figure can show them: on one line, of bearable length, without characters that steer.

    Args:
        text: the words.
        longest: letters.
        kept_end: letters at the end of longer words that stay, because they tell these from others.
    """
    plain = "".join(" " if unicodedata.category(letter)[0] == "C" else letter for letter in text)
    plain = " ".join(plain.split())
    if len(plain) <= longest:
        return plain
    return f"{plain[: longest - kept_end - 1]}…{plain[len(plain) - kept_end :]}"


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG; the same figure gives the same bytes, because neither program nor date is noted."""
    sink = io.BytesIO()
    with style():
        figure.savefig(sink, format="png", dpi=_DPI, metadata={"Software": None})
    write_atomically(path, sink.getvalue())


def new_figure(
    height: float, rows: int = 1, columns: int = 1, *, width: float = WIDTH, **shared: Any
) -> tuple[Figure, list[Axes]]:
    """An empty figure and its charts, row by row; within ``style``.

    Args:
        height: inches.
        rows: of charts.
        columns: of charts.
        width: inches.
        **shared: see ``matplotlib.figure.Figure.subplots``.
    """
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, **shared)
    return figure, [axis for row in grid for axis in row]


def new_panels(
    titles: Sequence[str],
    height: float,
    row_height: float,
    *,
    width: float = WIDTH,
    columns: int = PANELS,
    **shared: Any,
) -> tuple[Figure, list[Axes]]:
    """A chart below each title, ``columns`` in a row; within ``style``.

    Args:
        titles: at least one.
        height: of what surrounds the charts, inches.
        row_height: of each row of charts, inches.
        width: inches.
        columns: side by side at most.
        **shared: see ``matplotlib.figure.Figure.subplots``.
    """
    columns = min(columns, len(titles))
    rows = math.ceil(len(titles) / columns)
    figure, axes = new_figure(height + row_height * rows, rows, columns, width=width, **shared)
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title(title)
    for axis in axes[len(titles) :]:
        axis.set_visible(False)
    return figure, axes[: len(titles)]


def legend_entry(label: str, colour: str, marker: str, line: Any, *, size: float = 6) -> Line2D:
    """A line of a legend that stands for no line of the figure."""
    return Line2D([], [], color=colour, marker=marker, linestyle=line, label=label, markersize=size)
