"""A trained run and a dataset brought together: predictions or detections, and figures with intervals."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from monai.engines import Evaluator

from kdml_med.bundle.evaluation_checks import check_as_trained, check_split, check_validated
from kdml_med.bundle.figures import write_classification_figures, write_detection_figures
from kdml_med.bundle.training_warnings import classifier_warnings, detector_warnings
from kdml_med.bundle.workflow import errors_for_people
from kdml_med.data.frames import FrameDataset
from kdml_med.data.tiles import TileDataset
from kdml_med.deploy.slides.prediction_tables import with_seen
from kdml_med.deploy.speed import REPEATS, measure_speed
from kdml_med.engines.processes import is_main
from kdml_med.errors import InputError
from kdml_med.keys import PredictionColumn, Split
from kdml_med.metrics.aggregation import AggregationMethod, Level, group_table
from kdml_med.metrics.detection import by_network, choose_thresholds
from kdml_med.metrics.detection_evaluation import evaluate_detections, sequence_table
from kdml_med.metrics.evaluation import evaluate_predictions
from kdml_med.networks.cohort import Cohort
from kdml_med.networks.weights import check_finite
from kdml_med.report.doubts import WARNINGS
from kdml_med.report.screen import detection_results_table, results_table
from kdml_med.runs import (
    DETECTIONS_FILE,
    METRICS_FILE,
    PATIENTS_FILE,
    PREDICTIONS_FILE,
    SEQUENCES_FILE,
    SPEED_FILE,
    TRAIN_AGAIN,
    RunDescription,
    checkpoint_path,
    networks_by_default,
    read_checkpoint,
    read_run_json,
    read_thresholds,
    write_detections,
    write_predictions,
)
from kdml_med.runs.weights import withdraw_figures
from kdml_med.storage.files import write_json, write_table
from kdml_med.storage.manifest import owner_word
from kdml_med.storage.reading import damaged, read_json
from kdml_med.words import GENERATED_FIGURES, counted, printable

_SPEED = "training_speed"


def save_evaluation(
    evaluator: Evaluator,
    network: Cohort,
    output_dir: str,
    *,
    split: str,
    level: Level,
    aggregation: AggregationMethod,
    best_of: str | None = None,
    run_dir: str | None = None,
    resamples: int = 2000,
    speed: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run an evaluator and write predictions.parquet, patients.csv, metrics.json and the curves in figures/.

    Args:
        evaluator: with ``CohortMetrics``; its data loader has a ``TileDataset``.
        network: the evaluator's cohort.
        output_dir: where the files go.
        split: name of what is evaluated, for the record.
        level: "patient" or "slide".
        aggregation: how tiles become one probability.
        best_of: run folder whose best weights are loaded first; None evaluates the network as it is.
        run_dir: training run that is evaluated; None while it is still training.
        resamples: of the bootstrap over patients.
        speed: of the training, see ``kdml_med.handlers.StepTimes.summary``; the one part of metrics.json that is not
            the same twice. Where it is empty, because nothing was left to train, that of an earlier evaluation stays.

    Returns:
        Content of metrics.json; nothing in all but the main one of several processes.

    Raises:
        InputError: on another split than "val", something is done in another way than the run was trained to.
    """
    if run_dir is not None:  # again, of what is really used: a config can be overridden anywhere
        asked = {"level": level, "aggregation": aggregation, "ensemble_average": evaluator.ensemble_average}
        check_as_trained(RunDescription.read(run_dir), split, asked)
    check_split(evaluator.data_loader.dataset, split)
    epoch = None if best_of is None else load_best_weights(network, best_of)
    predictions = run_evaluator(evaluator)
    if not is_main():
        return {}
    dataset: TileDataset = evaluator.data_loader.dataset
    networks = evaluate_predictions(predictions, level=level, method=aggregation, resamples=resamples)
    counts = network.parameter_counts()
    patients = int(dataset.rows["patient_id"].nunique())
    metrics = {
        "split": split,
        "level": level,
        "aggregation": aggregation,
        "classes": dataset.classes,
        "bootstrap": {
            "resamples": resamples,
            "unit": owner_word(dataset.rows, dataset.info),
            "units": patients,
            "confidence": 0.95,
            "interval": "percentile",
        },
        "synthetic": dataset.info.synthetic,
        "networks": {name: {"parameters": counts[name], **figures} for name, figures in networks.items()},
    }
    if epoch is not None:
        metrics["best_epoch"] = epoch
        metrics[WARNINGS] = classifier_warnings(metrics, predictions, str(best_of))
    target = Path(output_dir)
    metrics |= _speed_of_training(speed, target)
    withdraw_figures(target)
    table = write_tile_predictions(target, predictions, dataset, level, aggregation)
    write_classification_figures(target, table, metrics)
    write_json(target / METRICS_FILE, metrics)
    print(f"\n{_heading(metrics)}\n\n{results_table(metrics)}\n\nWritten to {target}\n")
    return metrics


def _speed_of_training(speed: Mapping[str, Any] | None, folder: Path) -> dict[str, Any]:
    """What metrics.json says of how fast the training was; nothing where no training is evaluated."""
    path = folder / METRICS_FILE
    if speed is not None and not speed and path.is_file():
        with contextlib.suppress(InputError):  # damaged: it will be written anew
            speed = read_json(path, remedy=TRAIN_AGAIN).get(_SPEED)
    return {_SPEED: dict(speed)} if isinstance(speed, Mapping) and speed else {}


def load_best_weights(network: Cohort, run_dir: str) -> int:
    """Load the best weights of a run into its cohort; returns their epoch.

    Raises:
        InputError: best.pt is missing, damaged or of other networks.
    """
    path = checkpoint_path(Path(run_dir), "best")
    best = read_checkpoint(path, {"network": Mapping, "epoch": int}, remedy=TRAIN_AGAIN)
    with damaged(path, remedy=TRAIN_AGAIN):
        network.load_state_dict(best["network"])
    # As networks come from their files later: another order of memory rounds differently.
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    check_finite(network.state_dict(), path)
    epoch: int = best["epoch"]
    return epoch


def run_evaluator(evaluator: Evaluator) -> pd.DataFrame:
    """Run an evaluator; returns its table of predictions or detections.

    Raises:
        InputError: a network answers with something that is no number.
    """
    with errors_for_people(FloatingPointError):
        evaluator.run()
    predictions: pd.DataFrame = evaluator.state.predictions
    value = PredictionColumn.PROBABILITY.value
    lost = predictions[predictions[value].isna()] if value in predictions else predictions[:0]
    if len(lost):
        row = lost.iloc[0]
        raise InputError(
            f"{row['network']} gives no number for {counted(len(lost), 'tile')}, first {row['sample_id']!r}, though "
            "its weights are finite: they are too large. Train again with a lower --learning_rate."
        )
    return predictions


def write_tile_predictions(
    target: Path,
    predictions: pd.DataFrame,
    dataset: TileDataset,
    level: Level,
    aggregation: AggregationMethod,
    *,
    seen_by: RunDescription | None = None,
) -> pd.DataFrame:
    """Write predictions.parquet and patients.csv, and return the latter.

    Args:
        target: folder.
        predictions: columns of ``PredictionColumn``.
        dataset: that they are of.
        level: "patient" or "slide".
        aggregation: how tiles become one probability.
        seen_by: a run; patients.csv then says whom it has seen in training.
    """
    write_predictions(target / PREDICTIONS_FILE, predictions, dataset.rows)
    table = group_table(predictions, level=level, method=aggregation, classes=dataset.classes)
    if seen_by is not None:
        table = with_seen(table, {name: seen_by.seen_in([name]) for name in table["patient_id"].unique()})
    write_table(target / PATIENTS_FILE, table)
    return table


def _heading(metrics: Mapping[str, Any]) -> str:
    some = next(iter(metrics["networks"].values()))
    group = some[metrics["level"]]
    text = (
        f"Split {metrics['split']}: {counted(group['n'], metrics['level'])} ({group['positives']} "
        f"{printable(metrics['classes'][-1])}), {counted(some['tile']['n'], 'tile')}; intervals by bootstrap over "
        f"{counted(metrics['bootstrap']['units'], metrics['bootstrap']['unit'])}."
    )
    return f"{text}\n{GENERATED_FIGURES}" if metrics["synthetic"] else text


def save_detection_evaluation(
    evaluator: Evaluator,
    network: Cohort,
    output_dir: str,
    *,
    run_dir: str,
    split: str,
    load_best: bool = False,
    resamples: int = 1000,
    speed: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run an evaluator and write detections.parquet, sequences.csv, metrics.json and the curves in figures/.

    On the validation split the score threshold of every network is chosen, where F1 is best; on all others the
    thresholds that the training run chose are used.

    Args:
        evaluator: with ``DetectionMetrics``; its data loader has a ``FrameDataset``.
        network: the evaluator's cohort.
        output_dir: where the files go.
        run_dir: training run.
        split: name of what is evaluated, for the record.
        load_best: load the best weights of the run first.
        resamples: of the bootstrap over sequences.
        speed: see ``save_evaluation``.

    Returns:
        Content of metrics.json; nothing in all but the main one of several processes.

    Raises:
        InputError: the frames of "val" are not those that the run validated on, or those of another split are fused in
            another way than there.
    """
    dataset: FrameDataset = evaluator.data_loader.dataset
    check_split(dataset, split)
    if split == Split.VAL:
        check_validated(dataset, RunDescription.read(run_dir))
    else:
        check_as_trained(RunDescription.read(run_dir), split, {"fusion": evaluator.fusion})
    epoch = load_best_weights(network, run_dir) if load_best else None
    detections = run_evaluator(evaluator)
    if not is_main():
        return {}
    names = evaluator.state.networks
    level = dataset.info.label_level
    if split == Split.VAL:
        thresholds = choose_thresholds(dataset.rows, detections, networks=names)
    else:
        thresholds = _thresholds_for(names, run_dir)
    group: Any = level
    figures = evaluate_detections(
        dataset.rows, detections, threshold=thresholds, group=group, networks=names, resamples=resamples
    )
    counts = network.parameter_counts()
    units = len(dataset.rows) if level == "frame" else int(dataset.rows[f"{level}_id"].nunique())
    metrics = {
        "split": split,
        "classes": dataset.classes,
        "bootstrap": {
            "resamples": resamples,
            "unit": level,
            "units": units,
            "confidence": 0.95,
            "interval": "percentile",
        },
        "thresholds": thresholds,
        "synthetic": dataset.info.synthetic,
        "networks": {name: {"parameters": counts[name], **values} for name, values in figures.items()},
    }
    if epoch is not None:
        metrics["best_epoch"] = epoch
        metrics[WARNINGS] = detector_warnings(metrics, dataset.rows, detections, run_dir)
    target = Path(output_dir)
    metrics |= _speed_of_training(speed, target)
    withdraw_figures(target)
    write_detections(target / DETECTIONS_FILE, detections)
    write_table(target / SEQUENCES_FILE, sequence_table(dataset.rows, detections, threshold=thresholds))
    validation = metrics if split == Split.VAL else read_run_json(run_dir, METRICS_FILE)
    write_detection_figures(
        target, dataset.rows, by_network(detections, names), metrics, by_default=networks_by_default(validation)
    )
    write_json(target / METRICS_FILE, metrics)
    print(f"\n{_detection_heading(metrics)}\n\n{detection_results_table(metrics)}\n\nWritten to {target}\n")
    return metrics


def _thresholds_for(names: Sequence[str], run_dir: str) -> dict[str, float]:
    thresholds = read_thresholds(run_dir)
    missing = [name for name in names if name not in thresholds]
    if missing:
        raise InputError(f"{Path(run_dir) / METRICS_FILE}: thresholds lacks {missing[0]!r}. {TRAIN_AGAIN}")
    return thresholds


def _detection_heading(metrics: Mapping[str, Any]) -> str:
    some = next(iter(metrics["networks"].values()))
    resampled = counted(metrics["bootstrap"]["units"], metrics["bootstrap"]["unit"])
    sequences = f"{counted(some['n_sequences'], 'sequence')}, " if some["n_sequences"] else ""
    text = (
        f"Split {metrics['split']}: {sequences}{counted(some['n_frames'], 'frame')}, "
        f"{counted(some['n_boxes'], 'polyp box', 'es')}, {counted(some['n_negative_frames'], 'frame')} without; "
        f"intervals by bootstrap over {resampled}."
    )
    return f"{text}\n{GENERATED_FIGURES}" if metrics["synthetic"] else text


def save_speed(
    network: Cohort, output_dir: str, *, image_size: int | Sequence[int], device: str, repeats: int = REPEATS
) -> dict[str, Any]:
    """Time every network, one frame after the other, and write speed.json.

    A file of its own: beside the speed of the training in metrics.json it is what is not the same twice. See
    ``kdml_med.deploy.speed``.
    """
    speed = measure_speed(network, image_size=image_size, device=device, repeats=repeats)
    write_json(Path(output_dir) / SPEED_FILE, speed)
    shown = ", ".join(f"{name} {value:.1f}" for name, value in speed["frames_per_second"].items())
    height, width = speed["image_size"]
    print(f"Frames per second, one at a time, {height} x {width} px, {speed['device']}: {shown}\n")
    return speed
