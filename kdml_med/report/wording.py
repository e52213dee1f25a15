"""Words for people: what a report calls metrics, networks, terms of the loss and numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from kdml_med.keys import LossTerm
from kdml_med.metrics.classification import METRICS

METRIC_WORDS = {name: metric.words for name, metric in METRICS.items() if metric.words} | {
    "tile_auroc": "AUROC of tiles",
    "tile_brier": "Brier score of tiles",
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "f1": "F1",
    "froc_mean": "mean FROC sensitivity",
    "false_positives_per_frame": "false positives per frame",
    "false_positives_per_negative_frame": "false positives per frame without polyp",
    "sequence_sensitivity": "sensitivity, mean of sequences",
    "sequences_found": "sequences with a polyp found",
    "polyps_found": "polyps found",
}
LOWER_IS_BETTER = {name for name, metric in METRICS.items() if metric.lower_is_better}
LOWER_IS_BETTER |= {"tile_brier", "false_positives_per_frame", "false_positives_per_negative_frame"}

MINUS = "−"
ENSEMBLE_COST = "The ensemble costs what its students cost together; in use, the teacher is not needed."


_NO_WIDTH = 1e-9  # sums of the same numbers in another order differ by less
_BUSY = 0.8
"""Share of the time that a process computes below which others have kept it waiting."""


def if_busy(cpu_share: float) -> str:
    """What follows a latency that was measured beside other work, with a space before it; else nothing.

    Args:
        cpu_share: of the time of the measurement, how much the process computed.
    """
    if cpu_share >= _BUSY:
        return ""
    return " The machine was busy with other work, so that these times are too long; measure again with report --speed."


def metric_words(metric: str) -> str:
    """Name of a metric, such as "AUROC"."""
    if metric.startswith("froc_sensitivity_"):
        return f"sensitivity at {metric.rpartition('_')[2]} false positives per frame"
    return METRIC_WORDS.get(metric, metric.replace("_", " "))


def directed(metric: str) -> str:
    """Name of a metric, and that lower is better where it is: of a difference, the sign alone would mislead."""
    return f"{metric_words(metric)} (lower is better)" if metric in LOWER_IS_BETTER else metric_words(metric)


def term_words(sources: Iterable[str]) -> dict[str, str]:
    """What to call the terms of a loss, in the order in which they are shown.

    Args:
        sources: what a table of shares names. What this project does not know keeps its name and stands behind.
    """
    known = {term.source: term.words for term in LossTerm.parts()}
    return {source: known.get(source, source) for source in dict.fromkeys([*known, *sources])}


def network_words(network: str) -> str:
    """Name of a network, with the number that it has in all files."""
    return network.replace("_", " ")


def figure(value: float, digits: int = 3) -> str:
    """A number, or a dash where it is not defined."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.{digits}f}".replace("-", MINUS)


def difference(value: float) -> str:
    """A number with its sign."""
    return "–" if math.isnan(value) else f"{value:+.3f}".replace("-", MINUS)


def with_interval(value: float, low: float, high: float) -> str:
    """As in "0.930 (0.852–0.996)"; no bracket where the interval is not defined."""
    if math.isnan(low) or math.isnan(high):
        return figure(value)
    return f"{figure(value)} ({figure(low)}–{figure(high)})"


def width_note(intervals: Iterable[Sequence[float | None]]) -> str:
    """What to think of intervals without width; empty where none of them is such a one.

    Args:
        intervals: low and high each; None or NaN where it is not defined.
    """
    shown = [(low, high) for low, high in intervals if low is not None and high is not None]
    if not any(high - low < _NO_WIDTH for low, high in shown):  # a NaN is no less
        return ""
    return "An interval without width: no resample differs, as where all is right. The true one is wider."


def difference_with_interval(value: float, low: float, high: float) -> str:
    """As in "+0.012 (−0.020 to 0.045)"."""
    if math.isnan(low) or math.isnan(high):
        return difference(value)
    return f"{difference(value)} ({figure(low)} to {figure(high)})"


def p_words(p_value: float) -> str:
    """As in "p = 0.041" and "p < 0.001"."""
    if math.isnan(p_value):
        return "p not defined"
    if p_value < 0.001:
        return "p < 0.001"
    return f"p = {p_value:.3f}" if p_value < 0.1 else f"p = {p_value:.2f}"


def listed(words: list[str]) -> str:
    """As in "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def capital(text: str) -> str:
    """Text that begins a line."""
    return text[:1].upper() + text[1:]
