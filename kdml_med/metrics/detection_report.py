"""Detection figures as plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdml_med.keys import network_order

_COLUMNS = {"AP": "ap", "AP50": "ap50", "AP75": "ap75", "sensitivity at 0.5 FP/frame": "froc_sensitivity_0.5"}
_WITH_INTERVAL = ("ap50", "ap75")


def detection_results_table(metrics: Mapping[str, Any]) -> str:
    """Plain-text table of a metrics.json of detection: one row per network, intervals of AP50 and AP75 in brackets.

    Args:
        metrics: ``networks``: figures of ``evaluate_detections`` by name, each with ``parameters`` where it has some.
    """
    rows = [["network", "parameters", *_COLUMNS]]
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
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    if narrow:
        lines += ["", "An interval without width: no resample of these few frames differs. The true one is wider."]
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"
