"""Parity reports as people read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kdml_med.report.caution import FEW, caution
from kdml_med.report.tables import text_table
from kdml_med.words import GENERATED_FIGURES, counted

LOST_AT_MOST = 0.01
"""AUROC or average precision that an int8 file may lose without a warning."""


def classifier_text(parity: Mapping[str, Any], *, network: str, format: str) -> str:
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
    level, owner = parity["level"], parity["bootstrap"]["unit"]
    header = ["", "n", "AUROC evaluated", "95 % interval", "AUROC exported", "95 % interval", "change", "95 % interval"]
    counts = {"tile": parity["n_tiles"], level: parity["n_groups"]}
    rows = []
    for name, figures in parity["auroc"].items():
        cells = [_figure(figures["evaluated"]), _interval(figures["evaluated_ci95"])]
        cells += [_figure(figures["exported"]), _interval(figures["exported_ci95"])]
        cells += [_figure(figures["change"], sign=True), _interval(figures["change_ci95"], sign=True)]
        rows.append([name, str(counts[name]), *cells])
    changes = {f"AUROC of {name}s": figures["change"] for name, figures in parity["auroc"].items()}
    changed = parity["changed_decisions"]
    lines = [
        f"{network} as {format} against the network that was evaluated, {parity['n_tiles']} of "
        f"{counted(parity['n_tiles_of_split'], 'tile')} of split {parity['split']}, "
        f"{counted(parity['n_patients'], owner)}:",
        f"{difference}, mean {parity['mean_difference']:.2g}; decisions at {changed['threshold']} that changed: "
        f"{changed['tile']} of {counted(counts['tile'], 'tile')}, {changed[level]} of {counted(counts[level], level)}.",
        "",
        text_table(header, rows, note=_caution({owner: parity["n_patients"]})),
        *_other_runtimes(
            parity, lambda found: f"largest difference of a probability {found['largest_difference']:.2g}"
        ),
        *_recorded_lines(parity, level),
        *_warnings(changes, parity["synthetic"]),
    ]
    return "\n".join(lines)


def detector_text(parity: Mapping[str, Any], *, network: str, format: str) -> str:
    """Likewise of a detector."""
    if parity["split"] is None:
        return (
            f"{network} as {format}: boxes on {parity['n_frames']} images of random pixels differ by "
            f"{boxes_apart(parity)}. No frames were at hand: name a dataset with --data for a comparison on real ones."
        )
    header = ["", "evaluated", "95 % interval", "exported", "95 % interval", "change"]
    rows = []
    for name, figures in parity["precision"].items():
        cells = [name.upper()]
        for side in ("evaluated", "exported"):
            cells += [_figure(figures[side]["value"]), _interval(figures[side]["ci95"] or [None, None])]
        rows.append([*cells, _figure(figures["change"], sign=True)])
    lines = [
        f"{network} as {format} against the network that was evaluated, {parity['n_frames']} of "
        f"{counted(parity['n_frames_of_split'], 'frame')} of split {parity['split']}, "
        f"{counted(parity['n_boxes'], 'polyp box', 'es')}:",
        f"boxes differ by at most {boxes_apart(parity)}; {parity['boxes_of_both']} are in both, "
        f"{parity['boxes_of_one']} in one only, the best of them with score {parity['highest_score_of_one']:.3f}; "
        f"decisions at {parity['threshold']:.2f} that changed: in {parity['frames_with_changed_decisions']} of "
        f"{counted(parity['n_frames'], 'frame')}.",
        "",
        text_table(header, rows, note=_caution({"frame": parity["n_frames"], "polyp box": parity["n_boxes"]})),
        *_other_runtimes(
            parity, lambda found: f"boxes differ by at most {boxes_apart(found)}, AP {_figure(found['ap'])}"
        ),
    ]
    if parity["recorded"]:
        own = {name: parity["precision"][name]["exported"]["value"] for name in parity["recorded"]}
        pairs = (f"{name.upper()} {_figure(value)}, by the file {_figure(own[name])}"
                 for name, value in parity["recorded"].items())  # fmt: skip
        lines += ["", f"Recorded in the metrics.json of split {parity['split']}: {'; '.join(pairs)}."]
    lines += _not_compared(parity)
    changes = {name.upper(): figures["change"] for name, figures in parity["precision"].items()}
    return "\n".join([*lines, *_warnings(changes, parity["synthetic"])])


def boxes_apart(parity: Mapping[str, Any]) -> str:
    """How far boxes differ, as part of a sentence."""
    most = f"{parity['largest_box_difference_px']:.2g} px and {parity['largest_score_difference']:.2g} of the score"
    beyond = parity["boxes_beyond_tolerance"]
    return f"{most} ({beyond} of {parity['boxes_of_both']} more than rounding explains)" if beyond else most


def _other_runtimes(parity: Mapping[str, Any], words: Callable[[Mapping[str, Any]], str]) -> list[str]:
    """What the file answers where another runtime computes it."""
    others = {name: found for name, found in parity["runtimes"].items() if name != parity["runtime"]}
    lines = [f"Computed by {name} instead of {parity['runtime']}: {words(found)}." for name, found in others.items()]
    return ["", *lines] if lines else []


def _recorded_lines(parity: Mapping[str, Any], level: str) -> list[str]:
    recorded = parity["recorded"]
    if not recorded or "tile_auroc" not in recorded:
        return _not_compared(parity)
    parts = [
        f"{name} AUROC {recorded[f'{name}_auroc']:.4f}, by the file {recorded[f'{name}_auroc_exported']:.4f}"
        for name in ("tile", level)
    ]
    return ["", f"Recorded in {recorded['folder']}/metrics.json: {'; '.join(parts)}."]


def _not_compared(parity: Mapping[str, Any]) -> list[str]:
    """Why the figures of an evaluation do not stand beside those of the file."""
    return ["", f"Not compared with what was recorded: {parity['not_compared']}"] if parity["not_compared"] else []


def _warnings(changes: Mapping[str, float | None], synthetic: bool) -> list[str]:
    found = [
        f"Warning: the file loses {-100 * change:.1f} points of {name}."
        for name, change in changes.items()
        if change is not None and change < -LOST_AT_MOST
    ]
    if synthetic:
        found.append(GENERATED_FIGURES)
    return ["", *found] if found else []


def _caution(counts: Mapping[str, int]) -> str:
    warned = caution(counts, enough=FEW)
    return f"Caution: {warned}" if warned else ""


def _figure(value: float | None, *, sign: bool = False) -> str:
    if value is None:
        return "not defined"
    return f"{value:+.4f}" if sign else f"{value:.4f}"


def _interval(limits: list[float | None], *, sign: bool = False) -> str:
    low, high = limits
    return "not defined" if low is None else f"{_figure(low, sign=sign)} – {_figure(high, sign=sign)}"
