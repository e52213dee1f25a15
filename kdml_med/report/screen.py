"""Figures of a metrics.json as plain text, as programs print them at their end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdml_med.keys import network_order
from kdml_med.report.caution import caution_of
from kdml_med.report.doubts import WARNINGS
from kdml_med.report.tables import text_table

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
    narrow = any(low is not None and low == high for low, high in intervals)
    return text_table(header, rows, note=_notes(metrics, f"{level}s" if narrow else ""))


def detection_results_table(metrics: Mapping[str, Any]) -> str:
    """Plain-text table of a metrics.json of detection: one row per network, intervals of AP50 and AP75 in brackets.

    Args:
        metrics: ``bootstrap``, and ``networks``: figures of ``evaluate_detections`` by name, each with ``parameters``
            where it has some.
    """
    rows = []
    narrow = False
    for name in sorted(metrics["networks"], key=network_order):
        figures = metrics["networks"][name]
        cells = []
        for key in _COLUMNS.values():
            low, high = figures[f"{key}_ci95"]
            shown = key in _WITH_INTERVAL and low is not None
            narrow |= shown and low == high
            cells.append(_figure(figures[key]) + (f" ({low:.3f} – {high:.3f})" if shown else ""))
        parameters = figures.get("parameters")
        rows.append([name, "" if parameters is None else f"{parameters:,}", *cells])
    return text_table(["network", "parameters", *_COLUMNS], rows, note=_notes(metrics, "frames" if narrow else ""))


def _notes(metrics: Mapping[str, Any], narrow: str) -> str:
    """What to think of the training, and of the intervals of few units and those without width.

    Args:
        metrics: content of a metrics.json.
        narrow: what the units of an interval without width are called.
    """
    warned = caution_of(metrics)
    notes = [f"Warning: {text}" for text in metrics.get(WARNINGS, {}).values()]
    notes += [f"Caution: {warned}"] if warned else []
    if narrow:
        notes.append(f"An interval without width: no resample of these few {narrow} differs. The true one is wider.")
    return "\n".join(notes)


def _figure(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"
