"""The end of a bundle run: predictions, one row per patient, and figures with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from monai.engines import Evaluator

from kdml_med.bundle.command_line import errors_for_people
from kdml_med.data.tiles import TileDataset
from kdml_med.metrics.aggregation import AggregationMethod, Level, group_table
from kdml_med.metrics.evaluation import evaluate_predictions
from kdml_med.networks.cohort import Cohort
from kdml_med.report.screen import results_table
from kdml_med.runs import (
    METRICS_FILE,
    PATIENTS_FILE,
    PREDICTIONS_FILE,
    checkpoint_path,
    write_predictions,
)
from kdml_med.storage.files import write_json, write_table


def save_evaluation(
    evaluator: Evaluator,
    network: Cohort,
    output_dir: str,
    *,
    split: str,
    level: Level,
    aggregation: AggregationMethod,
    best_of: str | None = None,
    resamples: int = 2000,
) -> dict[str, Any]:
    """Run an evaluator and write predictions.parquet, patients.csv and metrics.json.

    Args:
        evaluator: with ``CohortMetrics``; its data loader has a ``TileDataset``.
        network: the evaluator's cohort.
        output_dir: where the files go.
        split: name of what is evaluated, for the record.
        level: "patient" or "slide".
        aggregation: how tiles become one probability.
        best_of: run folder whose best weights are loaded first; None evaluates the network as it is.
        resamples: of the bootstrap over patients.

    Returns:
        Content of metrics.json.
    """
    epoch = None if best_of is None else load_best_weights(network, best_of)
    predictions = run_evaluator(evaluator)
    dataset: TileDataset = evaluator.data_loader.dataset
    networks = evaluate_predictions(predictions, level=level, method=aggregation, resamples=resamples)
    counts = network.parameter_counts()
    metrics = {
        "split": split,
        "level": level,
        "aggregation": aggregation,
        "classes": dataset.classes,
        "bootstrap": {"resamples": resamples, "unit": "patient", "confidence": 0.95, "interval": "percentile"},
        "synthetic": dataset.info.synthetic,
        "networks": {name: {"parameters": counts[name], **figures} for name, figures in networks.items()},
    }
    if epoch is not None:
        metrics["best_epoch"] = epoch
    target = Path(output_dir)
    _write_predictions(target, predictions, dataset, level, aggregation)
    write_json(target / METRICS_FILE, metrics)
    print(f"\n{_heading(metrics)}\n\n{results_table(metrics)}\n\nWritten to {target}\n")
    return metrics


def save_inference(evaluator: Evaluator, output_dir: str, *, level: Level, aggregation: AggregationMethod) -> None:
    """Run an evaluator on tiles with or without labels; write predictions.parquet and patients.csv."""
    predictions = run_evaluator(evaluator)
    target = Path(output_dir)
    _write_predictions(target, predictions, evaluator.data_loader.dataset, level, aggregation)
    groups = predictions[f"{level}_id"].nunique()
    print(f"\n{predictions['sample_id'].nunique():,} tiles of {groups} {level}s. Written to {target}\n")


def load_best_weights(network: Cohort, run_dir: str) -> int:
    """Load the best weights of a run into its cohort; returns their epoch."""
    best = torch.load(checkpoint_path(Path(run_dir), "best"), map_location="cpu", weights_only=True)
    network.load_state_dict(best["network"])
    epoch: int = best["epoch"]
    return epoch


def run_evaluator(evaluator: Evaluator) -> pd.DataFrame:
    """Run an evaluator; a sample that cannot be read ends the run with one line. Returns its table of predictions."""
    with errors_for_people():
        evaluator.run()
    predictions: pd.DataFrame = evaluator.state.predictions
    return predictions


def _write_predictions(
    target: Path, predictions: pd.DataFrame, dataset: TileDataset, level: Level, aggregation: AggregationMethod
) -> None:
    write_predictions(target / PREDICTIONS_FILE, predictions)
    table = group_table(predictions, level=level, method=aggregation, classes=dataset.classes)
    write_table(target / PATIENTS_FILE, table)


def _heading(metrics: Mapping[str, Any]) -> str:
    some = next(iter(metrics["networks"].values()))
    group = some[metrics["level"]]
    text = (
        f"Split {metrics['split']}: {group['n']} {metrics['level']}s ({group['positives']} {metrics['classes'][-1]}), "
        f"{some['tile']['n']} tiles; intervals by bootstrap over patients."
    )
    if metrics["synthetic"]:
        text += (
            "\nGenerated data: these figures show that the pipeline works, they say nothing about accuracy on patients."
        )
    return text
