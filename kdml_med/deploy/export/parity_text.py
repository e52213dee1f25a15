"""A parity report as people read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdml_med.report.tables import text_table

LOST_AT_MOST = 0.01
"""AUROC that an int8 file may lose without a warning."""


def parity_text(parity: Mapping[str, Any], *, network: str, format: str) -> str:
    """A parity.json as a table and sentences.

    Args:
        parity: its content.
        network: what was exported.
        format: to what.
    """
    difference = f"largest difference of a probability {parity['largest_difference']:.2g}"
    if parity["split"] is None:
        return (
            f"{network} as {format}: {difference} on {parity['n_tiles']} images of random pixels. No tiles were at "
            "hand: name a dataset with --data for a comparison on real ones."
        )
    level = parity["level"]
    header = ["", "n", "AUROC evaluated", "95 % interval", "AUROC exported", "95 % interval", "change", "95 % interval"]
    counts = {"tile": parity["n_tiles"], level: parity["n_groups"]}
    rows = []
    for name, figures in parity["auroc"].items():
        cells = [_figure(figures["evaluated"]), _interval(figures["evaluated_ci95"])]
        cells += [_figure(figures["exported"]), _interval(figures["exported_ci95"])]
        cells += [_figure(figures["change"], sign=True), _interval(figures["change_ci95"], sign=True)]
        rows.append([name, str(counts[name]), *cells])
    changed = parity["changed_decisions"]
    lines = [
        f"{network} as {format} against the network that was evaluated, {parity['n_tiles']} of "
        f"{parity['n_tiles_of_split']} tiles of split {parity['split']}, {parity['n_patients']} patients:",
        f"{difference}, mean {parity['mean_difference']:.2g}; decisions at {changed['threshold']} that changed: "
        f"{changed['tile']} of {counts['tile']} tiles, {changed[level]} of {counts[level]} {level}s.",
        "",
        text_table(header, rows),
        *_recorded_lines(parity, level),
        *_warnings(parity),
    ]
    return "\n".join(lines)


def _recorded_lines(parity: Mapping[str, Any], level: str) -> list[str]:
    recorded = parity["recorded"]
    if not recorded or "tile_auroc" not in recorded:
        return []
    parts = [
        f"{name} AUROC {recorded[f'{name}_auroc']:.4f}, by the file {recorded[f'{name}_auroc_exported']:.4f}"
        for name in ("tile", level)
    ]
    return ["", f"Recorded in {recorded['folder']}/metrics.json: {'; '.join(parts)}."]


def _warnings(parity: Mapping[str, Any]) -> list[str]:
    found = []
    for name, figures in parity["auroc"].items():
        if figures["change"] is not None and figures["change"] < -LOST_AT_MOST:
            found.append(f"Warning: the file loses {-100 * figures['change']:.1f} AUROC points of {name}s.")
    if parity["synthetic"]:
        found.append("Generated data: these figures show that the pipeline works, they say nothing about patients.")
    return ["", *found] if found else []


def _figure(value: float | None, *, sign: bool = False) -> str:
    if value is None:
        return "not defined"
    return f"{value:+.4f}" if sign else f"{value:.4f}"


def _interval(limits: list[float | None], *, sign: bool = False) -> str:
    low, high = limits
    return "not defined" if low is None else f"{_figure(low, sign=sign)} – {_figure(high, sign=sign)}"
