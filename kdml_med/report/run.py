"""The report of one run: its figures on every split that was evaluated, its losses, and its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdml_med.keys import LossColumn, LossTerm, network_order
from kdml_med.report.document import Paragraph, Picture, Section, Table, without_empty_columns
from kdml_med.report.figures import COLOURS, new_panels, style
from kdml_med.report.pages import write_pages
from kdml_med.report.wording import figure, metric_words, network_words, term_words, with_interval

_GENERATED = "Trained on generated data: these figures show that the pipeline works, they say nothing about patients."
_RESEARCH = "For research only. Not a medical device."


def write_run_report(
    out: Path,
    *,
    name: str,
    facts: Mapping[str, str],
    evaluations: Mapping[str, Mapping[str, Any]],
    losses: pd.DataFrame | None,
    settings: Mapping[str, Any],
    synthetic: bool,
) -> list[str]:
    """Write report.md, report.html and their figures.

    Args:
        out: an existing folder.
        name: of the run.
        facts: what it is, in words, by what they are about.
        evaluations: content of metrics.json by a name for people.
        losses: rows of losses.csv, if there is one.
        settings: of the training.
        synthetic: trained on generated data.

    Returns:
        Names of the files.
    """
    warning = Section("Generated data", [Paragraph(_GENERATED)], banner=True)
    sections = [
        *([warning] if synthetic else []),
        Section("The run", [Table(["", ""], [[key, value] for key, value in facts.items()], names=2)]),
        Section(
            "Figures",
            [_figures(title, metrics) for title, metrics in evaluations.items()]
            + [Paragraph(f"Intervals: 95 %, by resampling. {_RESEARCH}")],
        ),
        *([] if losses is None else _learning(losses)),
        Section(
            "Settings", [Table(["setting", "value"], [[key, str(value)] for key, value in settings.items()], names=2)]
        ),
    ]
    return ["report.html", "report.md", *write_pages(out, f"Run {name}", sections)]


def _figures(title: str, metrics: Mapping[str, Any]) -> Table:
    """One row for each network; classification: of the level, AUROC of tiles beside it."""
    level = metrics.get("level")
    shown = ["auroc", "accuracy", "sensitivity", "specificity", "ece"] if level else ["ap", "ap50", "ap75", "f1"]
    first = ["AUROC of tiles"] if level else []
    unit = f" of {level}s" if level else ""
    columns = [
        "network",
        "parameters",
        *first,
        *(f"{metric_words(key)}{unit if key == 'auroc' else ''}" for key in shown),
    ]
    rows = []
    for name in sorted(metrics["networks"], key=network_order):
        every = metrics["networks"][name]
        own = every[level] if level else every
        cells = [f"{every['parameters']:,}" if "parameters" in every else ""]
        cells += [_cell(every["tile"], "auroc")] if level else []
        rows.append([network_words(name), *cells, *(_cell(own, key) for key in shown)])
    return without_empty_columns(Table(columns, rows, title))


def _cell(figures: Mapping[str, Any], key: str) -> str:
    value = figures.get(key)
    if value is None:
        return ""
    low, high = figures.get(f"{key}_ci95") or (None, None)
    return figure(value) if low is None or high is None else with_interval(value, low, high)


def _learning(losses: pd.DataFrame) -> list[Section]:
    drawn = _draw_losses(losses)
    if drawn is None:
        return []
    caption = "Mean of every loss term in each epoch, not weighted: one panel for each network."
    return [Section("Losses", [Picture("losses.png", caption, drawn)])]


def _draw_losses(losses: pd.DataFrame) -> Figure | None:
    """Terms over epochs, a panel for each network."""
    own = losses[losses[LossColumn.TERM] != LossTerm.LOSS.value]
    networks: Sequence[str] = sorted({name for name in own[LossColumn.NETWORK] if name}, key=network_order)
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
                axis.plot(
                    curve[LossColumn.EPOCH],
                    curve[LossColumn.VALUE],
                    "o-",
                    color=colours[source],
                    label=label,
                    markersize=3,
                )
            axis.set_xlabel("epoch")
            axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            axis.set_ylim(bottom=0)
            axis.grid(axis="y")
        axes[0].set_ylabel("mean of the term")
        drawn.legend(loc="outside upper left", ncols=len(labelled))
    return drawn
