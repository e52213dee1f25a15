"""Curves that a training and an evaluation leave as files: a picture to look at, and a table of what it shows."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from kdml_med.engines.processes import is_main
from kdml_med.keys import HistoryColumn, network_order
from kdml_med.metrics.calibration import bins_for, reliability
from kdml_med.metrics.classification import METRICS
from kdml_med.metrics.curves import (
    Curve,
    detection_precision_recall,
    froc_with_band,
    precision_recall_curve,
    roc_curve,
)
from kdml_med.metrics.decision import decision_curve
from kdml_med.metrics.detection import DEFAULT_THRESHOLD
from kdml_med.report.caution import caution_of
from kdml_med.report.curves import (
    draw_decision,
    draw_froc,
    draw_history,
    draw_losses,
    draw_precision_recall,
    draw_reliability,
    draw_roc,
)
from kdml_med.report.figures import label_text, save_figure, style
from kdml_med.report.wording import metric_words
from kdml_med.runs import FIGURES_DIR, HISTORY_FILE, LOSSES_FILE, RunDescription, read_history, read_losses
from kdml_med.storage.files import write_table
from kdml_med.words import GENERATED_PICTURE

_PROBABILITY = "probability_"
_LETTERS_PER_INCH, _LINE_INCHES = 14, 0.15  # of titles
_DETECTION_HISTORY = ("ap", "ap50", "f1")


def write_classification_figures(folder: Path, table: pd.DataFrame, metrics: Mapping[str, Any]) -> None:
    """Write ROC, precision-recall, calibration and decision curve of an evaluation, each as PNG and CSV.

    Args:
        folder: of the evaluation; the files go to ``figures/`` in it.
        table: one row per patient or slide, as in patients.csv; those without a label are left out.
        metrics: content of metrics.json; its classes, level and number of resamples are those of the curves.
    """
    level, positive, resamples = metrics["level"], metrics["classes"][-1], metrics["bootstrap"]["resamples"]
    known = table[table["label"].notna()]
    labels, patients = (known["label"] == positive).to_numpy(np.int64), known["patient_id"].to_numpy()
    answers = {
        str(column).removeprefix(_PROBABILITY): known[column].to_numpy(np.float64)
        for column in known.columns
        if str(column).startswith(_PROBABILITY)
    }
    drawn: dict[str, Any] = {"groups": patients, "resamples": resamples}
    roc = {name: roc_curve(labels, own, **drawn) for name, own in answers.items()}
    recall = {name: precision_recall_curve(labels, own, **drawn) for name, own in answers.items()}
    bins = bins_for(len(labels))
    honest = {name: reliability(labels, own, bins=bins, groups=patients) for name, own in answers.items()}
    benefit = {name: decision_curve(labels, own) for name, own in answers.items()}
    out = _Folder(folder / FIGURES_DIR, _title(metrics, f"{len(known)} {level}s, {labels.sum()} {positive}"))
    out.write("roc", draw_roc(roc), _points(roc, "threshold", "false_positive_rate", "sensitivity"))
    out.write_table("roc_band", _band(roc, "false_positive_rate", "sensitivity"))
    out.write("precision_recall", draw_precision_recall(recall), _points(recall, "threshold", "recall", "precision"))
    out.write_table("precision_recall_band", _band(recall, "recall", "precision"))
    out.write("calibration", draw_reliability(honest), _columns(honest, ["predicted", "observed", "low", "high", "n"]))
    out.write("decision_curve", draw_decision(benefit), _columns(benefit, ["thresholds", "model", "treat_all"]))


def write_detection_figures(
    folder: Path,
    frames: pd.DataFrame,
    detections: Mapping[str, pd.DataFrame],
    metrics: Mapping[str, Any],
    *,
    by_default: Collection[str] = (),
) -> None:
    """Write FROC and precision-recall of an evaluation of detectors, each as PNG and CSV.

    Args:
        folder: of the evaluation; the files go to ``figures/`` in it.
        frames: evaluated rows of a manifest.
        detections: columns of ``DetectionColumn``, by network.
        metrics: content of metrics.json; its unit and number of resamples are those of the bands.
        by_default: networks whose threshold nobody chose, see ``networks_by_default``.
    """
    own = metrics["networks"]
    drawn: dict[str, Any] = {"group": metrics["bootstrap"]["unit"], "resamples": metrics["bootstrap"]["resamples"]}
    froc = {name: froc_with_band(frames, rows, **drawn) for name, rows in detections.items()}
    recall = {name: detection_precision_recall(frames, rows, **drawn) for name, rows in detections.items()}
    points = {
        name: [(_threshold_words(name not in by_default), own[name]["false_positives_per_frame"], own[name]["recall"])]
        for name, curve in froc.items()
        if len(curve.x)
    }
    some = next(iter(own.values()))
    title = _title(metrics, f"{some['n_frames']} frames, {some['n_boxes']} polyps")
    out = _Folder(folder / FIGURES_DIR, title)
    table = _corners(froc, "score", "false_positives_per_frame", "sensitivity")
    out.write("froc", draw_froc(froc, points=points), table)
    out.write_table("froc_band", _band(froc, "false_positives_per_frame", "sensitivity"))
    table = _corners(recall, "score", "recall", "precision")
    out.write("precision_recall", draw_precision_recall(recall), table)
    out.write_table("precision_recall_band", _band(recall, "recall", "precision"))


def _threshold_words(chosen: bool) -> str:
    """What the threshold of a network is called; validation frames may choose the very value of the default."""
    return "threshold chosen on validation frames" if chosen else f"threshold {DEFAULT_THRESHOLD:g}"


def write_training_figures(run_dir: str | Path) -> None:
    """Draw what losses.csv and history.csv of a run hold, over its epochs.

    Args:
        run_dir: folder of the run; the pictures go to ``figures/`` in it.

    Raises:
        InputError: one of the two is damaged.
    """
    if not is_main():
        return
    run_dir = Path(run_dir)
    losses, history = run_dir / LOSSES_FILE, run_dir / HISTORY_FILE
    if not losses.is_file() and not history.is_file():
        return
    synthetic = [GENERATED_PICTURE] if RunDescription.read(run_dir).synthetic else []
    out = _Folder(run_dir / FIGURES_DIR, synthetic)
    drawn = draw_losses(read_losses(run_dir)) if losses.is_file() else None
    if drawn is not None:
        out.draw("losses", drawn)
    if not history.is_file():
        return
    rows = read_history(run_dir)
    for figure in _shown(set(rows[HistoryColumn.FIGURE])):
        own = rows[rows[HistoryColumn.FIGURE] == figure]
        networks = {str(name): values for name, values in own.groupby(HistoryColumn.NETWORK)}
        out.draw(f"validation_{figure}", draw_history(networks, _words(figure)))


def _shown(figures: set[str]) -> list[str]:
    """Of all figures of a history those that decide or are looked at most; the others are in the table."""
    charts = [name for name, metric in METRICS.items() if metric.chart]
    wanted = ["loss", *_DETECTION_HISTORY, *(f"{level}_{name}" for level in ("patient", "slide") for name in charts)]
    return [name for name in wanted if name in figures]


def _words(figure: str) -> str:
    level, _, metric = figure.partition("_")
    if level in ("tile", "patient", "slide"):
        return f"{metric_words(metric)} of {level}s, validation"
    return "loss on validation samples" if figure == "loss" else f"{metric_words(figure)}, validation"


class _Folder:
    """Writes figures below lines that say what they are of, and the tables beside them."""

    def __init__(self, path: Path, lines: Sequence[str]) -> None:
        self.path, self.lines = path, lines

    def draw(self, name: str, figure: Figure) -> None:
        width, height = figure.get_size_inches()
        lines = [part for line in self.lines for part in textwrap.wrap(line, int(width * _LETTERS_PER_INCH))]
        if lines:
            figure.set_size_inches(width, height + _LINE_INCHES * len(lines))  # room of its own
            with style():
                figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=8.5)
        save_figure(figure, self.path / f"{name}.png")

    def write(self, name: str, figure: Figure, table: pd.DataFrame) -> None:
        self.draw(name, figure)
        self.write_table(name, table)

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        write_table(self.path / f"{name}.csv", table)


def _title(metrics: Mapping[str, Any], counts: str) -> list[str]:
    """What a figure is of, and why it may say little."""
    generated = [GENERATED_PICTURE] if metrics["synthetic"] else []
    return [label_text(f"split {metrics['split']}: {counts}"), *generated, *filter(None, [caution_of(metrics)])]


def _points(curves: Mapping[str, Curve], threshold: str, x: str, y: str) -> pd.DataFrame:
    return _stacked(curves, lambda own: {threshold: own.thresholds, x: own.x, y: own.y})


def _corners(curves: Mapping[str, Curve], threshold: str, x: str, y: str) -> pd.DataFrame:
    return _points({name: own.corners() for name, own in curves.items()}, threshold, x, y)


def _band(curves: Mapping[str, Curve], x: str, y: str) -> pd.DataFrame:
    return _stacked(curves, lambda own: {x: own.grid, f"{y}_low": own.low, f"{y}_high": own.high})


def _columns(found: Mapping[str, Any], names: Sequence[str]) -> pd.DataFrame:
    return _stacked(found, lambda own: {name: getattr(own, name) for name in names})


def _stacked(found: Mapping[str, Any], columns: Any) -> pd.DataFrame:
    """One table of all networks, that of each below the others."""
    tables = [pd.DataFrame({"network": name, **columns(found[name])}) for name in sorted(found, key=network_order)]
    return pd.concat(tables, ignore_index=True)
