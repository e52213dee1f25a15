"""A trained run and a dataset brought together: checks, predictions or detections, and figures with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from monai.engines import Evaluator

from kdml_med.bundle.figures import write_classification_figures, write_detection_figures
from kdml_med.bundle.settings import Settings
from kdml_med.bundle.training import check_level, seed_everything
from kdml_med.bundle.workflow import errors_for_people
from kdml_med.data.frames import FrameDataset
from kdml_med.data.samples import ManifestDataset
from kdml_med.data.tiles import TileDataset
from kdml_med.deploy.slides.prediction_tables import with_seen
from kdml_med.deploy.speed import REPEATS, measure_speed
from kdml_med.errors import InputError
from kdml_med.keys import PredictionColumn, Split, Task
from kdml_med.metrics.aggregation import AggregationMethod, Level, group_table
from kdml_med.metrics.detection import by_network, choose_thresholds
from kdml_med.metrics.detection_evaluation import evaluate_detections, sequence_table
from kdml_med.metrics.evaluation import evaluate_predictions
from kdml_med.networks.cohort import Cohort
from kdml_med.networks.devices import check_device
from kdml_med.networks.weights import check_finite
from kdml_med.report.screen import detection_results_table, results_table
from kdml_med.runs import (
    DETECTIONS_FILE,
    EVALUATION_FILE,
    METRICS_FILE,
    PATIENTS_FILE,
    PREDICTIONS_FILE,
    SEQUENCES_FILE,
    SPEED_FILE,
    TRAIN_AGAIN,
    RunDescription,
    checkpoint_path,
    read_checkpoint,
    read_thresholds,
    write_detections,
    write_predictions,
)
from kdml_med.splits import has_folds, has_splits
from kdml_med.storage.files import naming, write_json, write_table
from kdml_med.storage.folder import keep_out_others
from kdml_med.storage.manifest import DatasetInfo, owner_word, read_info
from kdml_med.storage.reading import damaged
from kdml_med.words import counted, printable, verb

# Pixel sizes and fields of view that differ by less are taken as equal.
_SCALE_TOLERANCE = 0.05
_CHOSEN = ("level", "aggregation", "ensemble_average", "fusion")
"""How networks are judged, by name in settings and in cohort.json: chosen at training, like the thresholds."""
_GENERATED = "Generated data: these figures show that the pipeline works, they say nothing about accuracy on patients."


def fold_of(dataset_dir: str | Path, fold: int | None) -> int | None:
    """Fold that a run was trained for, where the dataset has folds at all."""
    if not read_info(Path(dataset_dir)).splits:
        return None
    return fold if has_splits(Path(dataset_dir)) and has_folds(Path(dataset_dir)) else None


def prepare_evaluation(settings: Settings, *, dataset_dir: str | None = None, level: Level | None = None) -> None:
    """Check a run and a dataset before they are brought together, and seed.

    Args:
        settings: of the config; those without a split are for inference on everything.
        dataset_dir: dataset folder; None takes that of the settings.
        level: "patient" or "slide", what tiles are aggregated to.

    Raises:
        InputError: no such run; kind of dataset, classes, scale or stain normalisation differ; splits leak; patients of
            this split were seen in training, or those of "val" are others than training validated on; something is to
            be chosen on another split than "val"; or another run writes to the output folder.
    """
    check_device(settings["device"])
    dataset_dir = dataset_dir or settings["dataset_dir"]
    run = RunDescription.read(settings["run_dir"], task=settings.task)
    if "split" in settings:
        _check_chosen(settings, run, level)
    split, fold = settings.get("split"), settings.get("fold")
    dataset: ManifestDataset
    if run.task is Task.DETECTION:
        dataset = FrameDataset(dataset_dir, split, fold=fold)
    else:
        dataset = TileDataset(dataset_dir, split, fold=fold, stain=settings["stain"])
        if level is not None:
            check_level(level, dataset.info, dataset_dir)
        _check_scale(dataset.info, run, dataset_dir)
        if dataset.stain != run.stain:
            raise InputError(
                f"the tiles of {dataset_dir} come with stain normalisation {dataset.stain!r}, the run was trained with "
                f"{run.stain!r}: leave --stain out, or tile the slides again without it."
            )
    if dataset.classes and dataset.classes != run.classes:
        raise InputError(
            f"the run knows the classes {run.classes}, the dataset has {dataset.classes}; they must be the same and in "
            "the same order."
        )
    if split not in (None, Split.TRAIN):
        _check_unseen(dataset, run)
    if "output_dir" in settings:
        settings.holds = keep_out_others(Path(settings["output_dir"]), option="--output_dir")
    seed_everything(0)


def _check_scale(info: DatasetInfo, run: RunDescription, dataset_dir: str | Path) -> None:
    if info.mpp and run.mpp and abs(info.mpp / run.mpp - 1) > _SCALE_TOLERANCE:
        raise InputError(
            f"the run was trained at {run.mpp} µm/px, the tiles of {dataset_dir} have {info.mpp} µm/px: tile the "
            f"slides again with --mpp {run.mpp}."
        )
    if info.tile_size_px and run.tile_size_px and abs(info.tile_size_px / run.tile_size_px - 1) > _SCALE_TOLERANCE:
        raise InputError(
            f"the run was trained on tiles of {run.tile_size_px} px, those of {dataset_dir} have {info.tile_size_px} "
            f"px and would be resized: tile the slides again with --tile-size {run.tile_size_px}."
        )


def _check_chosen(settings: Settings, run: RunDescription, level: Level | None) -> None:
    """Refuse to choose on other patients than those of the validation, and to write over what was chosen there."""
    asked = {**settings, "level": level}
    changed = _check_as_trained(run, settings["split"], {name: asked.get(name) for name in _CHOSEN})
    folder, split = settings.get("output_dir"), settings["split"]
    if folder is not None and Path(folder).resolve() == Path(settings["run_dir"]).resolve():
        what = f"split {split!r}" if split != Split.VAL else f"another --{changed[0]}" if changed else ""
        if what:
            raise InputError(
                f"--output_dir is the folder of the run, {folder}: there lie its figures on the validation split, by "
                f"which thresholds are chosen, and not those of {what}. Name another folder, or none."
            )


def _check_as_trained(run: RunDescription, split: str, asked: Mapping[str, Any]) -> list[str]:
    """Names of what is asked for in another way than the run has it; refused on any split but "val"."""
    changed = [name for name, value in asked.items() if value not in (None, getattr(run, name))]
    if changed and split != Split.VAL:
        name = changed[0]
        raise InputError(
            f"--{name} is {asked[name]!r}, the run was trained with {getattr(run, name)!r}: on split {split!r} that "
            f"would be chosen by patients who are to test it. Leave --{name} out; it can be tried with --split val, "
            "and given to a new training."
        )
    return changed


def _check_unseen(dataset: ManifestDataset, run: RunDescription) -> None:
    # The best epoch was chosen by the patients of "val", and so it may be looked at again.
    parts = [Split.TRAIN] if dataset.split == Split.VAL else list(run.seen_patients)
    overlap = [name for name in dataset.rows["patient_id"].unique() if run.has_seen(name, parts)]
    if overlap:
        raise InputError(
            f"{counted(len(overlap), owner_word(dataset.rows, dataset.info))} of split {dataset.split!r} "
            f"{verb(len(overlap), 'has an id that was', 'have ids that were')} used in training this run, first "
            f"{overlap[0]!r}. Either the splits were changed since: train again on the present ones. Or two hospitals "
            "number their patients alike: put the hospital's name before the id."
        )
    if dataset.split == Split.VAL:
        _check_validated(dataset, run)


def _check_validated(dataset: ManifestDataset, run: RunDescription) -> None:
    """Whether these are the patients by whom things may be chosen, whatever the split is called."""
    patients = dataset.rows["patient_id"].unique()
    others = [name for name in patients if not run.has_seen(name, [Split.VAL])]
    if others:
        raise InputError(
            f"{len(others)} patients of split 'val' are not those that this run validated on, first {others[0]!r}: "
            "thresholds would be chosen by others. For another dataset, or splits that were made anew, take --split "
            "test; or train again on the present splits."
        )


def _check_split(dataset: ManifestDataset, split: str) -> None:
    """Whether patients go under the name of their split, wherever a config was overridden."""
    if dataset.split not in (None, split):
        raise InputError(
            f"the evaluator reads the split {str(dataset.split)!r}, and its results would be called {split!r}: name "
            "the split with --split alone."
        )


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

    Returns:
        Content of metrics.json.

    Raises:
        InputError: on another split than "val", something is done in another way than the run was trained to.
    """
    if run_dir is not None:  # again, of what is really used: a config can be overridden anywhere
        asked = {"level": level, "aggregation": aggregation, "ensemble_average": evaluator.ensemble_average}
        _check_as_trained(RunDescription.read(run_dir), split, asked)
    _check_split(evaluator.data_loader.dataset, split)
    epoch = None if best_of is None else load_best_weights(network, best_of)
    predictions = run_evaluator(evaluator)
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
            "unit": "patient",
            "units": patients,
            "confidence": 0.95,
            "interval": "percentile",
        },
        "synthetic": dataset.info.synthetic,
        "networks": {name: {"parameters": counts[name], **figures} for name, figures in networks.items()},
    }
    if epoch is not None:
        metrics["best_epoch"] = epoch
    target = Path(output_dir)
    _withdraw(target)
    table = write_tile_predictions(target, predictions, dataset, level, aggregation)
    write_classification_figures(target, table, metrics)
    write_json(target / METRICS_FILE, metrics)
    print(f"\n{_heading(metrics)}\n\n{results_table(metrics)}\n\nWritten to {target}\n")
    return metrics


def _withdraw(folder: Path) -> None:
    """Take away what vouches for an earlier evaluation before its tables change: one that is interrupted is none."""
    for name in (METRICS_FILE, EVALUATION_FILE, SPEED_FILE):
        with naming(folder / name):
            (folder / name).unlink(missing_ok=True)


def load_best_weights(network: Cohort, run_dir: str) -> int:
    """Load the best weights of a run into its cohort; returns their epoch.

    Raises:
        InputError: best.pt is missing, damaged or of other networks.
    """
    path = checkpoint_path(Path(run_dir), "best")
    best = read_checkpoint(path, {"network": Mapping, "epoch": int}, remedy=TRAIN_AGAIN)
    with damaged(path, remedy=TRAIN_AGAIN):
        network.load_state_dict(best["network"])
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
        f"{counted(metrics['bootstrap']['units'], 'patient')}."
    )
    return f"{text}\n{_GENERATED}" if metrics["synthetic"] else text


def save_detection_evaluation(
    evaluator: Evaluator,
    network: Cohort,
    output_dir: str,
    *,
    run_dir: str,
    split: str,
    load_best: bool = False,
    resamples: int = 1000,
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

    Returns:
        Content of metrics.json.

    Raises:
        InputError: the frames of "val" are not those that the run validated on, or those of another split are fused in
            another way than there.
    """
    dataset: FrameDataset = evaluator.data_loader.dataset
    _check_split(dataset, split)
    if split == Split.VAL:
        _check_validated(dataset, RunDescription.read(run_dir))
    else:
        _check_as_trained(RunDescription.read(run_dir), split, {"fusion": evaluator.fusion})
    epoch = load_best_weights(network, run_dir) if load_best else None
    detections = run_evaluator(evaluator)
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
    target = Path(output_dir)
    _withdraw(target)
    write_detections(target / DETECTIONS_FILE, detections)
    write_table(target / SEQUENCES_FILE, sequence_table(dataset.rows, detections, threshold=thresholds))
    write_detection_figures(target, dataset.rows, by_network(detections, names), metrics)
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
    return f"{text}\n{_GENERATED}" if metrics["synthetic"] else text


def save_speed(
    network: Cohort, output_dir: str, *, image_size: int | Sequence[int], device: str, repeats: int = REPEATS
) -> dict[str, Any]:
    """Time every network, one frame after the other, and write speed.json.

    A file of its own, because it is the one result that is not the same twice. See ``kdml_med.deploy.speed``.
    """
    speed = measure_speed(network, image_size=image_size, device=device, repeats=repeats)
    write_json(Path(output_dir) / SPEED_FILE, speed)
    shown = ", ".join(f"{name} {value:.1f}" for name, value in speed["frames_per_second"].items())
    height, width = speed["image_size"]
    print(f"Frames per second, one at a time, {height} x {width} px, {speed['device']}: {shown}\n")
    return speed
