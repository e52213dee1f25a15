"""Figures of a comparison, in words instead of code names.

Every function takes tables as the result files hold them, and gives None where there is nothing to draw.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from kdml_med.experiments.report.verdict import Outcome, outcome
from kdml_med.report.figures import COLOURS, FAINT, INK, PANELS, label_text, legend_entry, new_figure, new_panels, style
from kdml_med.report.tables import records
from kdml_med.report.wording import (
    LOWER_IS_BETTER,
    MINUS,
    difference_with_interval,
    metric_words,
    p_words,
    term_words,
)

ROLES = {"teacher": ("teacher", "s", "#555555"), "students": ("each student", "o", "#0072B2"),
         "ensemble": ("ensemble", "D", "#D55E00")}  # fmt: skip
_LONGEST_NAME, _TITLE_LETTERS = 34, 24
"""Letters of an arm or setting: more leave no room for what is drawn."""
_TERM_COLOURS = ("#999999", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2")
"""In the order of the terms; the first is that of the labels."""


def _name(text: object) -> str:
    """An arm or setting; its end tells it from others that begin alike."""
    return label_text(str(text), _LONGEST_NAME, kept_end=12)


def _title(text: str) -> str:
    """The same above a chart, which is narrow."""
    return "\n".join(textwrap.wrap(_name(text), _TITLE_LETTERS))


def draw_differences(comparisons: pd.DataFrame, words: Mapping[str, str]) -> Figure | None:
    """Forest plot: the reference minus each other arm, with intervals, role by role.

    Args:
        comparisons: rows of one version, evaluation and metric.
        words: what to call each arm.
    """
    if comparisons["difference"].notna().sum() == 0:
        return None
    roles = [role for role in reversed(ROLES) if (comparisons["role"] == role).any()]
    lines = len(comparisons) + len(roles)
    with style():
        figure, (axis, numbers) = new_figure(1.5 + 0.31 * lines, 1, 2, sharey=True, width_ratios=[1.0, 0.72])
        numbers.axis("off")
        axis.axvline(0, color=FAINT, linewidth=1)
        place, ticks, labels = 0.0, [], []
        for role in roles:
            name, marker, colour = ROLES[role]
            axis.text(0, place, name, transform=axis.get_yaxis_transform(), ha="left", va="center", weight="bold")
            for row in records(comparisons[comparisons["role"] == role]):
                place += 1
                _difference_row(axis, numbers, row, place, marker, colour)
                ticks.append(place)
                labels.append(_name(words[row["arm"]]))
            place += 1.35
        axis.set_ylim(place - 0.5, -0.7)
        axis.set_yticks(ticks, labels)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.grid(axis="x")
        _difference_axis(axis, comparisons, words)
    return figure


def _difference_row(axis: Axes, numbers: Axes, row: Mapping[str, Any], place: float, marker: str, colour: str) -> None:
    decided = outcome(row) is not Outcome.UNDECIDED
    axis.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=2.2 if decided else 1.4)
    axis.plot(
        [row["difference"]], [place], marker=marker, markersize=7.5, color=colour,
        markerfacecolor=colour if decided else "white", linestyle="none", markeredgewidth=1.5,
    )  # fmt: skip
    interval = difference_with_interval(row["difference"], row["low"], row["high"])
    for x, text in ((0.0, interval), (0.79, p_words(row["p_holm"]))):
        shown = numbers.text(x, place, text, transform=numbers.get_yaxis_transform(), va="center", size=9)
        shown.set_fontweight("bold" if decided else "normal")


def _difference_axis(axis: Axes, comparisons: pd.DataFrame, words: Mapping[str, str]) -> None:
    """Symmetric around 0, so that the eye does not take the middle for no difference."""
    metric = comparisons["metric"].iloc[0]
    reference = _name(words[comparisons["reference"].iloc[0]])
    ends = np.abs(comparisons[["difference", "low", "high"]].to_numpy(np.float64))
    reach = 1.08 * max(float(np.nanmax(ends)), 0.005)
    axis.set_xlim(-reach, reach)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=5, symmetric=True))  # more would touch each other
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:+.2g}".replace("-", MINUS) if abs(value) > 1e-9 else "0")
    left, right = "other is better", f"{reference} is better"
    if metric in LOWER_IS_BETTER:
        left, right = right, left
    axis.set_xlabel(f"← {left}      difference in {metric_words(metric)}      {right} →")
    axis.set_title(f"{reference} minus …")


def draw_seeds(seeds: pd.DataFrame, arms: Sequence[str], words: Mapping[str, str], metric: str) -> Figure | None:
    """One line for each seed over the arms, role by role: whether a difference comes back with every seed.

    Args:
        seeds: one row for each arm, role and seed of one version and evaluation: "arm", "role", "seed", "value".
        arms: in the order in which they are drawn.
        words: what to call each arm.
        metric: what the values are.
    """
    seeds = seeds.dropna(subset=["value"])
    roles = [role for role in ROLES if (seeds["role"] == role).any()]
    if not roles:
        return None
    with style():
        figure, axes = new_figure(3.9, 1, len(roles), sharey=True)
        for axis, role in zip(axes, roles, strict=True):
            own = seeds[seeds["role"] == role]
            shown = [arm for arm in arms if (own["arm"] == arm).any()]
            _draw_seed_lines(axis, own, shown)
            axis.set_xticks(
                range(len(shown)), [_name(words[arm]) for arm in shown], rotation=40, ha="right", rotation_mode="anchor"
            )
            axis.set_xlim(-0.4, len(shown) - 0.6)
            axis.set_title(ROLES[role][0])
            axis.grid(axis="y")
        axes[0].set_ylabel(metric_words(metric))
        numbers = sorted(seeds["seed"].unique())
        entries: list[Any] = (
            [legend_entry(f"seed {seed}", COLOURS[place], "o", "-") for place, seed in enumerate(numbers)]
            if len(numbers) <= len(COLOURS)
            else [legend_entry("each seed", FAINT, "o", "-")]
        )
        if len(numbers) > 1:
            entries.append(legend_entry("mean", INK, "_", "none", size=14))
        figure.legend(handles=entries, loc="outside upper left", ncols=6)
    return figure


def _draw_seed_lines(axis: Axes, own: pd.DataFrame, shown: Sequence[str]) -> None:
    wide = own.pivot_table(index="arm", columns="seed", values="value").reindex(list(shown))
    many = wide.shape[1] > len(COLOURS)  # more than can be told apart
    for place, seed in enumerate(wide):
        colour, size = (FAINT, 3) if many else (COLOURS[place], 6)
        axis.plot(range(len(shown)), wide[seed], marker="o", markersize=size, linewidth=1.3, color=colour)
    if wide.shape[1] > 1:
        axis.plot(
            range(len(shown)),
            wide.mean(axis=1),
            linestyle="none",
            marker="_",
            markersize=min(22, 110 / len(shown)),  # else those of many arms run into each other
            markeredgewidth=2.5,
            color=INK,
        )


def draw_costs(points: pd.DataFrame, words: Mapping[str, str], metric: str) -> Figure | None:
    """The metric against multiply-accumulates: what accuracy costs.

    Args:
        points: one row for each arm and role of one version and evaluation: "arm", "role", "value", "low", "high" and
            "multiply_accumulates".
        words: what to call each arm.
        metric: what the values are.
    """
    points = points.dropna(subset=["value", "multiply_accumulates"])
    if points.empty:
        return None
    arms = [arm for arm in words if (points["arm"] == arm).any()]
    step = _sideways(points["multiply_accumulates"], len(arms))
    with style():
        figure, (axis,) = new_figure(4.6)
        for place, arm in enumerate(arms):
            colour = COLOURS[place % len(COLOURS)]
            for row in records(points[points["arm"] == arm]):
                # Arms have the same networks, and their points would lie upon each other.
                cost = row["multiply_accumulates"] / 1e6 * step ** (place - (len(arms) - 1) / 2)
                axis.plot([cost, cost], [row["low"], row["high"]], color=colour, linewidth=1.1)
                axis.plot([cost], [row["value"]], marker=ROLES[row["role"]][1], markersize=7, color=colour)
        _log_ticks(axis)
        axis.set_xlabel("multiply–accumulates per image, million (points of one network stand side by side)")
        axis.set_ylabel(metric_words(metric))
        axis.grid()
        roles = [role for role in ROLES if (points["role"] == role).any()]
        entries = [
            legend_entry(_name(words[arm]), COLOURS[place % len(COLOURS)], "", "-") for place, arm in enumerate(arms)
        ]
        entries += [legend_entry(ROLES[role][0], FAINT, ROLES[role][1], "none", size=8) for role in roles]
        figure.legend(handles=entries, loc="outside upper left", ncols=min(5, len(entries)))
    return figure


def _log_ticks(axis: Axes) -> None:
    axis.set_xscale("log")
    axis.margins(x=0.08)
    low, high = axis.get_xlim()
    labelled = "123456789" if high < 10 * low else "125"
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    axis.xaxis.set_minor_formatter(lambda value, _: f"{value:,.6g}" if f"{value:e}"[0] in labelled else "")


def _sideways(costs: pd.Series, arms: int) -> float:
    """Factor between neighbouring arms: wide enough to see each, and networks that differ in cost apart if possible."""
    different = np.unique(np.log(costs.to_numpy(np.float64)))
    span = max(float(different[-1] - different[0]), math.log(2))
    nearest = float(np.diff(different).min()) if len(different) > 1 else span
    return math.exp(min(max(0.7 * nearest / arms, 0.009 * span), 0.02 * span))


def draw_loss_shares(shares: pd.DataFrame, arms: Sequence[str], words: Mapping[str, str]) -> Figure | None:
    """Which part of the students' loss comes from labels, teacher and peers, epoch by epoch, arm by arm.

    Args:
        shares: "arm", "epoch", "term", "share" of one version.
        arms: in the order in which they are drawn.
        words: what to call each arm.
    """
    shown = [arm for arm in arms if (shares["arm"] == arm).any()]
    if not shown:
        return None
    terms = term_words(shares["term"])
    colours = {term: _TERM_COLOURS[place % len(_TERM_COLOURS)] for place, term in enumerate(terms)}
    with style():
        figure, axes = new_panels([_title(words[arm]) for arm in shown], 1.1, 1.7, sharey=True)
        for axis, arm in zip(axes, shown, strict=True):
            _stack(axis, shares[shares["arm"] == arm], colours)
        for axis in axes[::PANELS]:
            axis.set_ylabel("share of the loss")
        figure.supxlabel("epoch", size=10)
        entries = [Line2D([], [], color=colours[term], linewidth=9, label=label) for term, label in terms.items()]
        figure.legend(handles=entries, loc="outside upper left", ncols=min(5, len(entries)))
    return figure


def _stack(axis: Axes, own: pd.DataFrame, colours: Mapping[str, str]) -> None:
    """Bars without gaps: an epoch has one value, and nothing is known in between."""
    wide = own.pivot_table(index="epoch", columns="term", values="share", aggfunc="sum").fillna(0)
    bottom = np.zeros(len(wide))
    for term, colour in colours.items():
        if term in wide:
            axis.bar(wide.index, wide[term], bottom=bottom, width=1, color=colour, edgecolor="white", linewidth=0.4)
            bottom += wide[term].to_numpy()
    axis.set_ylim(0, 1)
    axis.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    axis.set_xticks(wide.index[:: math.ceil(len(wide) / 8)].to_numpy())
    axis.set_xlim(wide.index.min() - 0.5, wide.index.max() + 0.5)


def draw_reliability(
    bins: pd.DataFrame, arms: Sequence[str], words: Mapping[str, str], looked_for: str
) -> Figure | None:
    """Observed share of positives against predicted probability, arm by arm.

    Args:
        bins: "arm", "predicted", "observed" and "n" of one version and evaluation.
        arms: in the order in which they are drawn.
        words: what to call each arm.
        looked_for: name of the positive class.
    """
    shown = [arm for arm in arms if (bins["arm"] == arm).any()]
    if not shown:
        return None
    with style():
        figure, axes = new_panels([_title(words[arm]) for arm in shown], 0.4, 2.5, sharex=True, sharey=True)
        for axis, arm in zip(axes, shown, strict=True):
            own = bins[bins["arm"] == arm]
            axis.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle="--")
            axis.plot(own["predicted"], own["observed"], marker="D", markersize=6, color=ROLES["ensemble"][2])
            axis.set_xlim(-0.03, 1.03)
            axis.set_ylim(-0.03, 1.03)
            axis.set_aspect("equal")
            axis.grid()
        for axis in axes[-PANELS:]:
            axis.tick_params(labelbottom=True)
        figure.supxlabel(f"predicted probability of {_name(looked_for)}", size=10)
        figure.supylabel(f"observed share of {_name(looked_for)}", size=10)
    return figure


def draw_sweep(points: pd.DataFrame, setting: str, metric: str) -> Figure | None:
    """The metric against a swept setting, with intervals, role by role.

    Args:
        points: "setting" (the value), "role", "value", "low", "high", and "others": the other settings of the grid.
        setting: its name.
        metric: what the values are.
    """
    points = points.dropna(subset=["value"])
    roles = [role for role in ROLES if (points["role"] == role).any()]
    if not roles or points["setting"].nunique() < 2:
        return None
    values = sorted(points["setting"].unique(), key=lambda value: (isinstance(value, str), value))
    numeric = all(isinstance(value, int | float) for value in values)
    places = dict(zip(values, values if numeric else range(len(values)), strict=True))
    others = list(dict.fromkeys(points["others"]))
    with style():
        figure, axes = new_figure(3.6, 1, len(roles), sharey=True)
        for axis, role in zip(axes, roles, strict=True):
            for place, other in enumerate(others):
                own = points[(points["role"] == role) & (points["others"] == other)]
                own = own.assign(place=own["setting"].map(places)).sort_values("place")
                colour = COLOURS[place % len(COLOURS)]
                axis.plot(
                    own["place"],
                    own["value"],
                    marker=ROLES[role][1],
                    color=colour,
                    label=_name(other).lstrip("_") or None,
                )
                axis.fill_between(
                    own["place"].astype(float), own["low"], own["high"], color=colour, alpha=0.15, linewidth=0
                )
            axis.set_title(ROLES[role][0])
            axis.set_xlabel(_name(setting.replace("_", " ")))
            axis.grid()
            axis.set_xticks(list(places.values()), [_name(value) for value in places])
        axes[0].set_ylabel(metric_words(metric))
        if any(others):
            figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=4)
    return figure
