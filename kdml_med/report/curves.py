"""Curves of networks beside each other: how well they separate, how honest their probabilities are, how they learned.

Every function gives a figure, also where nothing is defined: the figure says so. Figures of one chart are half as wide
as a page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from kdml_med.keys import LossColumn, LossTerm, network_order
from kdml_med.metrics.calibration import Reliability
from kdml_med.metrics.curves import Curve, Floats
from kdml_med.metrics.decision import DecisionCurve
from kdml_med.metrics.froc import FALSE_POSITIVE_RATES
from kdml_med.report.figures import (
    COLOURS,
    FAINT,
    HALF_WIDTH,
    INK,
    PANELS,
    WIDTH,
    label_text,
    legend_entry,
    network_colour,
    network_line,
    new_figure,
    new_panels,
    style,
)
from kdml_med.report.wording import network_words, term_words, with_interval

Points = Mapping[str, Sequence[tuple[str, float, float]]]
"""Of each network: what a point is called, its x and its y."""

_POINT_MARKERS = ("o", "D", "^", "v", "P", "X")
_MOST_BANDS = 2
_FAINT = 0.15
_SHARES = (0, 0.25, 0.5, 0.75, 1)
_FROC_RATES = (0.01, 10.0)  # the same axis in every figure


def draw_roc(curves: Mapping[str, Curve], *, points: Points | None = None) -> Figure:
    """Sensitivity over the false-positive rate, with bands; the legend holds the areas.

    Args:
        curves: of each network, see ``kdml_med.metrics.curves.roc_curve``.
        points: operating points to mark: name, false-positive rate, sensitivity.
    """
    with style():
        figure, axis = _square(len(curves) + min(len(curves), 1), points)
        axis.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":")
        entries = _draw_curves(axis, curves, drawstyle="default")
        entries += _draw_points(axis, points)
        axis.set(xlabel="false-positive rate (1 − specificity)", ylabel="sensitivity")
        _legend(figure, entries, _area_words("area under the curve", curves))
    return figure


def draw_precision_recall(curves: Mapping[str, Curve], *, points: Points | None = None) -> Figure:
    """Precision over recall, with bands; the legend holds the average precisions.

    Args:
        curves: of each network, see ``kdml_med.metrics.curves.precision_recall_curve``.
        points: operating points to mark: name, recall, precision.
    """
    with style():
        figure, axis = _square(len(curves) + min(len(curves), 1), points)
        for chance in {curve.chance for curve in curves.values() if math.isfinite(curve.chance)}:
            axis.axhline(chance, color=FAINT, linewidth=1, linestyle=":")
        entries = _draw_curves(axis, curves, drawstyle="steps-pre")
        entries += _draw_points(axis, points)
        axis.set(xlabel="recall (sensitivity)", ylabel="precision (PPV)")
        _legend(figure, entries, _area_words("average precision", curves))
    return figure


def draw_froc(curves: Mapping[str, Curve], *, points: Points | None = None) -> Figure:
    """Share of lesions found over false positives per frame, with bands; the legend holds the mean sensitivities.

    Args:
        curves: of each network, see ``kdml_med.metrics.curves.froc_with_band``.
        points: operating points to mark: name, false positives per frame, sensitivity.
    """
    with style():
        figure, axis = _square(len(curves) + min(len(curves), 1), points)
        entries = _draw_curves(axis, curves, drawstyle="steps-post", limits=_FROC_RATES)
        entries += _draw_points(axis, points, limits=_FROC_RATES)
        axis.set(xscale="log", xlim=_FROC_RATES, xlabel="false positives per frame", ylabel="sensitivity")
        ticks = [_FROC_RATES[0], *FALSE_POSITIVE_RATES, _FROC_RATES[1]]
        axis.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
        axis.set_xticks([], minor=True)
        axis.set_aspect("auto")
        _legend(figure, entries, _area_words("mean sensitivity", curves))
    return figure


def draw_reliability(bins: Mapping[str, Reliability]) -> Figure:
    """Observed share of positives over the predicted probability, with intervals: a chart for each network.

    Args:
        bins: of each network, see ``kdml_med.metrics.calibration.reliability``.
    """
    names = sorted(bins, key=network_order)
    with style():
        columns = {1: 1, 2: 2, 4: 2}.get(len(names), PANELS)
        width = WIDTH if columns == PANELS else HALF_WIDTH
        titles = [label_text(network_words(name)) for name in names] or [""]
        row_height = (width - 0.7) / columns + 0.2
        figure, axes = new_panels(titles, 0.5, row_height, width=width, columns=columns, sharex=True, sharey=True)
        if not names:
            _say_undefined(axes[0])
        for axis, name in zip(axes, names, strict=False):
            own, colour = bins[name], network_colour(name)
            axis.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":")
            axis.vlines(own.predicted, own.low, own.high, color=colour, linewidth=1.2, alpha=0.6)
            axis.plot(own.predicted, own.observed, "o-", color=colour, markersize=4.5, linewidth=1.2)
            if not np.isfinite(own.observed).any():
                _say_undefined(axis)
        for axis in axes:
            axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
            axis.set_xticks(_SHARES[:: 1 if columns == 1 else 2])
            axis.set_yticks(_SHARES[:: 1 if columns == 1 else 2])
            axis.grid()
        for axis in axes[-columns:]:
            axis.tick_params(labelbottom=True)
        figure.supxlabel("predicted probability", size=10)
        figure.supylabel("observed share of positives", size=10)
    return figure


def draw_decision(curves: Mapping[str, DecisionCurve]) -> Figure:
    """Net benefit over the threshold probability, beside treating everybody and nobody, up to the curves' limit.

    Args:
        curves: of each network, see ``kdml_med.metrics.decision.decision_curve``.
    """
    names = sorted(curves, key=network_order)
    with style():
        figure, axis = _square(len(curves) + 1, None)
        axis.axhline(0, color=FAINT, linewidth=1)
        entries = []
        highest = 0.0
        for name in names:
            own = curves[name]
            axis.plot(own.thresholds, own.model, **network_line(name))
            finite = own.model[np.isfinite(own.model)]
            highest = max(highest, float(finite.max(initial=0)))
            entries.append(_network_entry(name))
        for own in list(curves.values())[:1]:
            axis.plot(own.thresholds, own.treat_all, color=FAINT, linewidth=1.2, linestyle="--")
            finite = own.treat_all[np.isfinite(own.treat_all)]
            highest = max(highest, float(finite.max(initial=0)))
        entries.append(legend_entry("everybody", FAINT, "", "--"))
        entries.append(legend_entry("nobody", FAINT, "", "-"))
        if highest == 0:
            _say_undefined(axis)
        reach = highest or 1.0
        until = max((own.limit for own in curves.values()), default=1.0)
        axis.set(xlim=(0, until), ylim=(-0.25 * reach, 1.08 * reach), aspect="auto")
        axis.set(xlabel="threshold probability", ylabel="net benefit")
        _legend(figure, entries, "who is treated by", columns=2)
    return figure


def draw_losses(losses: pd.DataFrame) -> Figure | None:
    """Terms of the loss over epochs, not weighted: a chart for each network; None where there are none.

    Args:
        losses: rows of losses.csv, columns of ``LossColumn``.
    """
    own = losses[losses[LossColumn.TERM] != LossTerm.LOSS.value]
    networks = sorted({name for name in own[LossColumn.NETWORK] if name}, key=network_order)
    if not networks:
        return None
    sources = {term.value: term.source for term in LossTerm.parts()}
    words = term_words([sources.get(term, term) for term in own[LossColumn.TERM].unique()])
    colours = dict(zip(words, COLOURS * 2, strict=False))
    with style():
        drawn, axes = new_panels([network_words(name) for name in networks], 0.6, 2.4, sharex=True)
        labelled: set[str] = set()
        for axis, name in zip(axes, networks, strict=True):
            rows = own[own[LossColumn.NETWORK] == name]
            for term, curve in rows.groupby(LossColumn.TERM, sort=False):
                source = sources.get(str(term), str(term))
                label = words[source] if source not in labelled else None
                labelled.add(source)
                epochs, values = curve[LossColumn.EPOCH], curve[LossColumn.VALUE]
                axis.plot(epochs, values, "o-", color=colours[source], label=label, markersize=3)
            axis.set_xlabel("epoch")
            axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            axis.set_ylim(bottom=0)
            axis.grid(axis="y")
        axes[0].set_ylabel("mean of the term")
        drawn.legend(loc="outside lower left", ncols=len(labelled))
    return drawn


def draw_history(history: Mapping[str, pd.DataFrame], ylabel: str) -> Figure:
    """A figure over the epochs, a line for each network.

    Args:
        history: "epoch" and "value" of each network.
        ylabel: what the values are.
    """
    with style():
        figure, (axis,) = new_figure(3.6, width=HALF_WIDTH)
        entries = []
        for name in sorted(history, key=network_order):
            own = history[name]
            axis.plot(own["epoch"], own["value"], marker="o", markersize=3, **network_line(name))
            entries.append(_network_entry(name, marker="o"))
        if not any(frame["value"].notna().any() for frame in history.values()):
            _say_undefined(axis)
        axis.set(xlabel="epoch", ylabel=label_text(ylabel))
        axis.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axis.grid(axis="y")
        _legend(figure, entries, "", columns=3)
    return figure


def _square(lines: int, points: Points | None) -> tuple[Figure, Axes]:
    """A chart from 0 to 1 in both directions, with room for a legend below it."""
    marked = len({name for every in (points or {}).values() for name, _, _ in every})
    figure, (axis,) = new_figure(4.5 + 0.19 * (lines + marked), width=HALF_WIDTH)
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axis.grid()
    return figure, axis


def _draw_curves(
    axis: Axes, curves: Mapping[str, Curve], *, drawstyle: Any, limits: tuple[float, float] | None = None
) -> list[Any]:
    """Bands first, so that no band hides a line; gives the entries of the legend.

    Of more than two networks the last has a band alone, the ensemble where there is one: all together hide each other.
    """
    place = _clipped(limits)
    names = sorted(curves, key=network_order)
    banded = [name for name in names[-1 if len(names) > _MOST_BANDS else 0 :] if np.isfinite(curves[name].low).any()]
    for name in banded:
        own = curves[name]
        axis.fill_between(place(own.grid), own.low, own.high, color=network_colour(name), alpha=_FAINT, linewidth=0)
    for name in names:
        x, y = curves[name].x, curves[name].y
        if limits is not None and len(x):  # what was found stays found when more false positives are allowed
            shown = x <= limits[1]
            x, y = np.append(x[shown], limits[1]), np.append(y[shown], y[shown].max(initial=0))
        axis.plot(place(x), y, drawstyle=drawstyle, **network_line(name))
    if not any(len(own.y) and np.isfinite(own.y).any() for own in curves.values()):
        _say_undefined(axis)
    areas = {name: with_interval(own.area, own.area_low, own.area_high) for name, own in curves.items()}
    entries: list[Any] = [_network_entry(name, f": {areas[name]}") for name in names]
    for name in banded:
        words = f"{label_text(network_words(name))}, 95 % at each place"
        entries.append(Patch(color=network_colour(name), alpha=_FAINT, linewidth=0, label=words))
    return entries


def _draw_points(axis: Axes, points: Points | None, *, limits: tuple[float, float] | None = None) -> list[Any]:
    """A marker for each kind of point, in the colour of its network.

    The first kind is a ring, and others fit into it: two points at one place are still seen as two.
    """
    place = _clipped(limits)
    kinds = list(dict.fromkeys(kind for every in (points or {}).values() for kind, _, _ in every))
    looks = {kind: _point_look(number, alone=len(kinds) == 1) for number, kind in enumerate(kinds)}
    for name, every in (points or {}).items():
        for kind, x, y in every:
            look = looks[kind] | {"color": network_colour(name), "zorder": 5 + kinds.index(kind), "clip_on": False}
            axis.plot(place(np.array([x])), [y], **look)
    marked = list(points or {})
    colour = network_colour(marked[0]) if len(marked) == 1 else INK
    return [Line2D([], [], color=colour, label=label_text(kind), **looks[kind]) for kind in kinds]


def _point_look(number: int, *, alone: bool) -> dict[str, Any]:
    """Of the points of a kind, the same on a curve and in the legend."""
    look = {"linestyle": "none", "marker": _POINT_MARKERS[number % len(_POINT_MARKERS)], "markeredgewidth": 1.6}
    return look | ({"markersize": 4.5} if number else {"markersize": 7 if alone else 11, "markerfacecolor": "white"})


def _network_entry(name: str, more: str = "", *, marker: str = "") -> Line2D:
    """A network in a legend, its line as in the figure."""
    return Line2D(
        [], [], label=f"{label_text(network_words(name))}{more}", marker=marker, markersize=3, **network_line(name)
    )


def _clipped(limits: tuple[float, float] | None) -> Callable[[Floats], Floats]:
    """A logarithmic axis has no 0: what lies beyond its ends is drawn at them."""
    return (lambda x: x) if limits is None else (lambda x: np.clip(x, *limits))


def _area_words(words: str, curves: Mapping[str, Curve]) -> str:
    known = any(math.isfinite(own.area_low) for own in curves.values())
    return f"{words} (95 % interval)" if known else words


def _legend(figure: Figure, entries: Sequence[Any], title: str, columns: int = 1) -> None:
    if entries:
        figure.legend(
            handles=entries, loc="outside lower left", ncols=columns, title=title or None,
            alignment="left", fontsize=9, title_fontsize=9,
        )  # fmt: skip


def _say_undefined(axis: Axes) -> None:
    axis.text(0.5, 0.5, "not defined", transform=axis.transAxes, ha="center", va="center", color=FAINT)
