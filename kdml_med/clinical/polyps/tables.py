"""Tables of detectors: side by side, at their thresholds, by size of the polyps, and one row for each sequence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kdml_med.clinical.networks import COST_COLUMNS, Costs
from kdml_med.clinical.polyps.detections import DetectorEvaluation, main_network
from kdml_med.report.document import Table, without_empty_columns
from kdml_med.report.wording import figure, metric_words, network_words, with_interval

MOST_SEQUENCES = 500
"""Rows on the page; sequences.csv of the evaluation has them all."""
OVERALL = ("ap50", "ap75", "ap", "froc_mean")
"""Figures over all thresholds."""
OPERATING = {
    "recall": "Sensitivity by box",
    "polyps_found": "Sensitivity by polyp, found at least once",
    "sequences_found": "Sensitivity by sequence, a polyp found at least once",
    "sequence_sensitivity": "Sensitivity by box, mean of sequences",
    "precision": "Precision",
    "f1": "F1",
    "false_positives_per_frame": "False alarms per frame",
    "false_positives_per_negative_frame": "False alarms per frame without polyp",
}
"""Figures at the threshold, in words."""


def cell(figures: Mapping[str, Any], name: str, digits: int = 3) -> str:
    """A figure of metrics.json with its interval; a dash where it is not defined."""
    if not _is_said(figures, name):
        return "–"
    value, (low, high) = figures[name], _interval(figures, name)
    return figure(value, digits) if low is None or high is None else with_interval(value, low, high)


def _is_said(figures: Mapping[str, Any], name: str) -> bool:
    """Whether a figure says something: without boxes no detection can be right, and precision is 0 of necessity."""
    return figures.get(name) is not None and (name != "precision" or figures.get("n_boxes") != 0)


def _interval(figures: Mapping[str, Any], name: str) -> tuple[float | None, float | None]:
    low, high = figures.get(f"{name}_ci95") or (None, None)
    return low, high


def intervals(every: Sequence[DetectorEvaluation], names: Iterable[str]) -> list[tuple[float | None, float | None]]:
    """Low and high of the figures that ``cell`` shows of some evaluations."""
    return [
        _interval(own, name)
        for judged in every
        for own in judged.figures.values()
        for name in names
        if _is_said(own, name)
    ]


def networks_table(every: Sequence[DetectorEvaluation], costs: Costs) -> Table:
    """What each network is and costs."""
    rates = frame_rates(every, costs)
    rows = [
        [network_words(name), *costs.cells(name)[:-1], f"{rates[name]:.1f}" if name in rates else ""]
        for name in every[0].networks
    ]
    return without_empty_columns(Table(["network", *COST_COLUMNS[:-1], "frames per second"], rows, names=2))


def overall_table(judged: DetectorEvaluation) -> Table:
    """What each network reaches over all thresholds."""
    rows = [[network_words(name), *(cell(own, metric) for metric in OVERALL)] for name, own in judged.figures.items()]
    return Table(["network", *map(metric_words, OVERALL)], rows, judged.title)


def frame_rates(every: Sequence[DetectorEvaluation], costs: Costs) -> dict[str, float]:
    """Frames per second by network: as the first evaluation measured that did, or else from the latency."""
    measured = (judged.speed.get("frames_per_second") for judged in every)
    found: dict[str, float] | None = next(filter(None, measured), None)
    return found or {name: 1000 / taken for name, taken in costs.milliseconds.items() if taken > 0}


def operating_table(judged: DetectorEvaluation) -> Table:
    """What each network finds at its threshold, a column for each; figures that no network has are left out."""
    every = judged.figures
    rows = [["Threshold", *(figure(judged.thresholds[name]) for name in every)]]
    counts = [_counts(own) for own in every.values()]
    for place, words in enumerate(("Annotated boxes", "… found", "… missed", "False alarms")):
        rows.append([words, *("–" if own is None else f"{own[place]:,}" for own in counts)])
    for metric, words in OPERATING.items():
        if any(_is_said(own, metric) for own in every.values()):
            rows.append([words, *(cell(own, metric) for own in every.values())])
    return Table(["at the threshold", *map(network_words, every)], rows, judged.title)


def _counts(figures: Mapping[str, Any]) -> tuple[int, int, int, int] | None:
    """Boxes, those found and those missed, and false alarms; None where nothing could be judged."""
    boxes, detected = figures.get("n_boxes"), figures.get("n_detections")
    if boxes is None or detected is None or not _is_judged(figures):
        return None
    found = round(figures["recall"] * boxes) if boxes else 0
    return boxes, found, boxes - found, detected - found


def _is_judged(figures: Mapping[str, Any]) -> bool:
    """Whether the scores are numbers; false alarms are counted then, boxes or not."""
    return figures.get("false_positives_per_frame") is not None


def undefined_at_threshold(judged: DetectorEvaluation) -> list[str]:
    """Why figures are missing from the table at the threshold, one sentence each."""
    some: Mapping[str, Any] = next(iter(judged.figures.values()))
    reasons = []
    if not some.get("n_negative_frames"):
        reasons.append("No frame without a polyp was evaluated, so that false alarms in such frames are not known.")
    if some.get("n_sequences") is None:
        reasons.append("Frames are not known to belong to sequences, so that nothing is said by sequence.")
    if some.get("n_boxes") and some.get("n_polyps") is None:
        reasons.append("Boxes are not known to show the same polyp, so that nothing is said by polyp.")
    broken = [network_words(name) for name, own in judged.figures.items() if not _is_judged(own)]
    if broken:
        reasons.append(f"Scores of {', '.join(broken)} are no numbers, so that figures of it are not defined.")
    if not some.get("n_boxes"):
        reasons.append("No frame has an annotated polyp, so that nothing can be found.")
    return reasons


def frozen_table(every: Sequence[DetectorEvaluation]) -> Table:
    """Figures at one and the same threshold on each set of frames."""
    rows = []
    for name in every[0].networks:
        for judged in every:
            figures = judged.figures.get(name)
            if figures is not None:
                shown = ("recall", "precision", "false_positives_per_frame", "ap50")
                rows.append([
                    network_words(name), judged.title, figure(judged.thresholds[name]),
                    *(cell(figures, metric) for metric in shown),
                ])  # fmt: skip
    columns = ["network", "frames of", "threshold", "sensitivity by box", "precision", "false alarms per frame", "AP50"]
    return Table(columns, rows, names=2)


def sequences_table(judged: DetectorEvaluation) -> Table:
    """One row for each sequence, those of which the main network found least first; its columns are in front."""
    table, main = judged.sequences, main_network(judged)
    networks = [name for name in [main, *judged.networks] if f"sensitivity_{name}" in table]
    networks = list(dict.fromkeys(networks))
    ordered = table
    if networks:
        keys = zip(table[f"sensitivity_{networks[0]}"], table[f"false_positives_{networks[0]}"], strict=True)
        worst = [_worst_first(_number(found), _number(false)) for found, false in keys]
        ordered = table.iloc[sorted(range(len(table)), key=worst.__getitem__)]
    alone = bool((table["sequence_id"] == table["patient_id"]).all())  # patients unknown
    single = judged.unit == "frame"
    about = ["sequence_id", *([] if alone else ["patient_id"]), *([] if single else ["frames"]), "boxes"]
    columns = ["frame" if single else "sequence", *(name.removesuffix("_id") for name in about[1:])]
    for name in networks:
        columns += [f"{network_words(name)}: found", f"{network_words(name)}: false"]
    rows = []
    for _, row in ordered.iloc[:MOST_SEQUENCES].iterrows():
        cells = [row[name] for name in about]
        for name in networks:
            cells += [_share(row[f"sensitivity_{name}"]), row[f"false_positives_{name}"] or "–"]
        rows.append([str(one) for one in cells])
    return Table(columns, rows, judged.title, names=1 if alone else 2, sortable=True, filterable=True)


def _number(text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan


def _share(text: Any) -> str:
    value = _number(text)
    return "–" if math.isnan(value) else f"{value:.2f}"


def _worst_first(found: float, false: float) -> tuple[float, float]:
    """Least found first, then most false alarms; a sequence without boxes stands with those where all was found."""
    return (1.0 if math.isnan(found) else found, -false)
