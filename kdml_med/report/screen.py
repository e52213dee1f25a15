"""Figures of a metrics.json as plain text, as programs print them at their end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdml_med.keys import network_order
from kdml_med.report.caution import caution_of
from kdml_med.report.doubts import WARNINGS
from kdml_med.report.tables import text_table
from kdml_med.report.wording import width_note

_COLUMNS = {"AP": "ap", "AP50": "ap50", "AP75": "ap75", "sensitivity at 0.5 FP/frame": "froc_sensitivity_0.5"}
_WITH_INTERVAL = ("ap50", "ap75")


def results_table(metrics: Mapping[str, Any]) -> str:
    """Plain-text table of a metrics.json of classification: parameters, tile AUROC, patient AUROC with its interval.

    Args:
        metrics: ``level`` that tiles are aggregated to, ``classes``, ``bootstrap``, and ``networks``: figures of
            ``evaluate_predictions`` by name, each with ``parameters``.
    """
    level = metrics["level"]
    header = ["network", "parameters", "tile AUROC", f"{level} AUROC", "95 % interval", f"{level} accuracy"]
    rows = []
    for name in sorted(metrics["networks"], key=network_order):
        figures = metrics["networks"][name]
        group = figures[level]
        low, high = group["auroc_ci95"]
        interval = "not defined" if low is None else f"{low:.3f} – {high:.3f}"
        numbers = [_figure(figures["tile"]["auroc"]), _figure(group["auroc"]), interval, _figure(group["accuracy"])]
        rows.append([name, f"{figures['parameters']:,}", *numbers])
    intervals = [figures[level]["auroc_ci95"] for figures in metrics["networks"].values()]
    return text_table(header, rows, note=_notes(metrics, intervals))


def detection_results_table(metrics: Mapping[str, Any]) -> str:
    """Plain-text table of a metrics.json of detection: one row per network, intervals of AP50 and AP75 in brackets.

    Args:
        metrics: ``bootstrap``, and ``networks``: figures of ``evaluate_detections`` by name, each with ``parameters``
            where it has some.
    """
    rows, intervals = [], []
    for name in sorted(metrics["networks"], key=network_order):
        figures = metrics["networks"][name]
        cells = []
        for key in _COLUMNS.values():
            low, high = figures[f"{key}_ci95"]
            shown = key in _WITH_INTERVAL and low is not None
            intervals += [(low, high)] if shown else []
            cells.append(_figure(figures[key]) + (f" ({low:.3f} – {high:.3f})" if shown else ""))
        parameters = figures.get("parameters")
        rows.append([name, "" if parameters is None else f"{parameters:,}", *cells])
    return text_table(["network", "parameters", *_COLUMNS], rows, note=_notes(metrics, intervals))


def _notes(metrics: Mapping[str, Any], intervals: Sequence[Sequence[float | None]]) -> str:
    """What to think of the training, and of the intervals of few units and those without width.

    Args:
        metrics: content of a metrics.json.
        intervals: low and high of those in the table.
    """
    warned = caution_of(metrics)
    notes = [f"Warning: {text}" for text in metrics.get(WARNINGS, {}).values()]
    notes += [f"Caution: {warned}"] if warned else []
    return "\n".join([*notes, *filter(None, [width_note(intervals)])])


def _figure(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"
