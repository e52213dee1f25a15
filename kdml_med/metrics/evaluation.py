"""All figures of a prediction table, ready for metrics.json."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from kdml_med.metrics.aggregation import AggregationMethod, Level, aggregate_predictions
from kdml_med.metrics.bootstrap import bootstrap_interval
from kdml_med.metrics.classification import METRICS, classification_summary

Figures = dict[str, Any]


def evaluate_predictions(
    frame: pd.DataFrame,
    *,
    level: Level = "patient",
    method: AggregationMethod = "mean",
    threshold: float = 0.5,
    top_k: int = 10,
    via_slides: bool = False,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, dict[str, Figures]]:
    """Figures of each network, for tiles and for slides or patients.

    Rows without a label (-1 or missing) are left out. Intervals resample patients at every level, with the same draws
    for every network.

    Args:
        frame: one row for each tile and network, columns of ``PredictionColumn``; labels are 0, 1 or -1.
        level: what tiles are aggregated to, "patient" or "slide".
        method: as for ``aggregate_tiles``.
        top_k: as for ``aggregate_tiles``.
        via_slides: as for ``aggregate_predictions``.
        threshold: from which probability a tile, slide or patient is called positive.
        resamples: bootstrap resamples; 0 for no intervals.
        seed: of the resampling.

    Returns:
        ``{network: {"tile": figures, level: figures}}`` of plain Python numbers, None where a figure is not defined.
        Figures are those of ``classification_summary``, and of metrics with an interval "<name>_ci95", [low, high].

    Raises:
        ValueError: a column is missing, a label is not 0, 1 or -1, or a group has two labels.
    """
    missing = sorted({"network", "label"} - set(frame.columns))
    if missing:
        raise ValueError(f"the predictions lack the columns {missing}; they have {list(frame.columns)}.")
    networks = sorted(frame["network"].unique())
    labelled = frame[frame["label"].fillna(-1) != -1]
    groups = aggregate_predictions(labelled, level, method, top_k=top_k, threshold=threshold, via_slides=via_slides)
    result = {}
    for network in networks:
        tables = {"tile": labelled[labelled["network"] == network], level: groups[groups["network"] == network]}
        result[str(network)] = {
            name: _figures(table, threshold, resamples=resamples, seed=seed) for name, table in tables.items()
        }
    return result


def _figures(table: pd.DataFrame, threshold: float, *, resamples: int, seed: int) -> Figures:
    labels = table["label"].to_numpy(dtype="int64")
    probabilities = table["probability"].to_numpy(dtype="float64")
    patients, _ = pd.factorize(table["patient_id"], sort=True)  # in the order of their names, as draws are
    figures: Figures = {
        name: _defined(value) for name, value in classification_summary(labels, probabilities, threshold).items()
    }
    for name, metric in METRICS.items():
        if metric.interval:
            interval = bootstrap_interval(
                metric.statistic(threshold), labels, probabilities, groups=patients, resamples=resamples, seed=seed
            )
            figures[f"{name}_ci95"] = [_defined(interval.low), _defined(interval.high)]
    return figures


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value
