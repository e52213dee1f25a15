"""The stages of a bundle: check before the first batch, describe the run, and write results at the end."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from monai.engines import Evaluator
from monai.utils import set_determinism

from kdml_med.bundle.command_line import check_command_line, errors_for_people
from kdml_med.data.tiles import TileDataset
from kdml_med.errors import InputError
from kdml_med.keys import NetworkName, Split
from kdml_med.manifest import MANIFEST_FILE, content_hash, read_info, write_table
from kdml_med.metrics.aggregation import AggregationMethod, Level
from kdml_med.metrics.evaluation import evaluate_predictions
from kdml_med.networks.cohort import Cohort
from kdml_med.networks.registry import cohort_spec
from kdml_med.runs import (
    COHORT_FILE,
    METRICS_FILE,
    PATIENTS_FILE,
    PREDICTIONS_FILE,
    SETTINGS_FILE,
    checkpoint_path,
    group_table,
    read_run_json,
    results_table,
    write_json,
    write_predictions,
)

logger = logging.getLogger(__name__)

# A resumed run may change these: they do not decide what the networks learn from one epoch to the next.
_FREE_SETTINGS = {"max_epochs", "num_workers", "device"}


def prepare_training(
    dataset_dir: str,
    run_dir: str,
    *,
    settings: Mapping[str, Any],
    demo_dir: str | None = None,
    resume: bool = True,
) -> None:
    """Check everything that can be checked before the first batch, and seed.

    Makes the demo cohort when the dataset folder is the default one and does not exist yet.

    Args:
        dataset_dir: dataset folder.
        run_dir: where the run goes.
        settings: the knobs; they are recorded, and a run is only resumed with the same ones.
        demo_dir: the default dataset folder.
        resume: False refuses a run folder that holds a run.

    Raises:
        SystemExit: with a message for a person.
    """
    with errors_for_people():
        check_command_line()
        _check_device(str(settings["device"]), bool(settings.get("amp")))
        if demo_dir is not None and Path(dataset_dir).resolve() == Path(demo_dir).resolve():
            from kdml_med.demo.dataset import ensure_demo_dataset

            ensure_demo_dataset(Path(dataset_dir))
        for split in (Split.TRAIN, Split.VAL):
            TileDataset(dataset_dir, split, fold=settings.get("fold"))
        recorded = {
            "knobs": {name: value for name, value in settings.items() if name not in _FREE_SETTINGS},
            "dataset": _dataset_identity(Path(dataset_dir)),
        }
        _check_settings(Path(run_dir), json.loads(json.dumps(recorded, default=str)), resume=resume)
    seed_everything(int(settings["seed"]))
    logger.info("Dataset %s, run folder %s", dataset_dir, run_dir)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch and ask for deterministic algorithms."""
    set_determinism(seed=seed)
    torch.use_deterministic_algorithms(True, warn_only=True)


def _check_device(device: str, amp: bool) -> None:
    kind = torch.device(device).type
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device!r} is asked for, but this torch sees no GPU: use --device cpu.")
    if amp and kind != "cuda":
        raise InputError(f"amp (mixed precision) needs a GPU, the device is {device!r}: leave --amp out.")


def _dataset_identity(dataset_dir: Path) -> dict[str, Any]:
    info = read_info(dataset_dir)
    return {"manifest_sha256": content_hash(dataset_dir / MANIFEST_FILE), "splits": info.splits}


def _check_settings(run_dir: Path, recorded: dict[str, Any], *, resume: bool) -> None:
    path = run_dir / SETTINGS_FILE
    if path.is_file() and checkpoint_path(run_dir, "last").is_file():
        if not resume:
            raise InputError(f"{run_dir} already holds a run: name another --run_dir, or leave --resume on to go on.")
        before = json.loads(path.read_text())
        for part, names in {"knobs": None, "dataset": "the dataset"}.items():
            for name in sorted(set(before[part]) | set(recorded[part])):
                old, new = before[part].get(name), recorded[part].get(name)
                if old != new:
                    what = names or f"--{name}"
                    raise InputError(
                        f"{run_dir} holds a run with other settings: {what} was {old!r}, now {new!r}. Use the same "
                        "settings to go on, or name another --run_dir."
                    )
    write_json(path, recorded)


def describe_run(
    run_dir: str, training: TileDataset, validation: TileDataset, *, settings: Mapping[str, Any], level: Level
) -> None:
    """Write cohort.json: what is needed to build the networks again, to feed them and to judge them.

    Patients that were learned from or chosen by are recorded as hashes, so that an evaluation can refuse to be run on
    them without the file naming anybody.
    """
    spec = cohort_spec(settings["version"], teacher=settings["teacher"], students=settings["students"])
    specs = {
        name: item for name, item in spec.networks().items() if settings["use_teacher"] or name != NetworkName.TEACHER
    }
    write_json(
        Path(run_dir) / COHORT_FILE,
        {
            "version": settings["version"],
            "networks": specs,
            "classes": training.classes,
            "image_size": training.image_size or training.info.tile_size_px,
            "mpp": training.info.mpp,
            "level": level,
            "aggregation": settings["aggregation"],
            "ensemble_average": settings["ensemble_average"],
            "fold": settings["fold"],
            "synthetic": training.info.synthetic,
            "kdml_med": version("kdml_med"),
            "seen_patients": {
                str(part.split): sorted({_hashed(patient) for patient in part.tiles["patient_id"]})
                for part in (training, validation)
            },
        },
    )


def read_description(run_dir: str) -> dict[str, Any]:
    """Content of cohort.json of a run.

    Raises:
        SystemExit: with a message for a person, when the folder is no run.
    """
    with errors_for_people():
        return read_run_json(Path(run_dir), COHORT_FILE)


def _hashed(patient_id: str) -> str:
    return hashlib.sha256(patient_id.encode()).hexdigest()[:16]


def prepare_evaluation(dataset_dir: str, run_dir: str, *, split: str | None, fold: int | None, device: str) -> None:
    """Check a run and a dataset before they are evaluated together, and seed.

    Raises:
        SystemExit: with a message for a person: no such run, classes differ, splits leak, or patients of this split
            were seen in training.
    """
    with errors_for_people():
        check_command_line()
        _check_device(device, amp=False)
        description = read_run_json(Path(run_dir), COHORT_FILE)
        dataset = TileDataset(dataset_dir, split, fold=fold)
        if split is not None and dataset.classes != description["classes"]:
            raise InputError(
                f"the run knows the classes {description['classes']}, the dataset has {dataset.classes}; they must be "
                "the same and in the same order."
            )
        expected = description["mpp"]
        if expected and dataset.info.mpp and abs(dataset.info.mpp / expected - 1) > 0.05:
            raise InputError(
                f"the run was trained at {expected} µm/px, the tiles of {dataset_dir} have {dataset.info.mpp} µm/px: "
                f"tile the slides again with --mpp {expected}."
            )
        if split not in (None, Split.TRAIN, Split.VAL):
            seen = {patient for part in description["seen_patients"].values() for patient in part}
            overlap = [name for name in dataset.tiles["patient_id"].unique() if _hashed(name) in seen]
            if overlap:
                raise InputError(
                    f"{len(overlap)} patients of split {split!r} were used in training this run, first {overlap[0]!r}: "
                    "the splits were changed since. Train again on the present splits."
                )
    seed_everything(0)


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
    epoch = None
    if best_of is not None:
        best = torch.load(checkpoint_path(Path(best_of), "best"), map_location="cpu", weights_only=True)
        network.load_state_dict(best["network"])
        epoch = best["epoch"]
    predictions = _predict(evaluator)
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
    predictions = _predict(evaluator)
    target = Path(output_dir)
    _write_predictions(target, predictions, evaluator.data_loader.dataset, level, aggregation)
    groups = predictions[f"{level}_id"].nunique()
    print(f"\n{predictions['sample_id'].nunique():,} tiles of {groups} {level}s. Written to {target}\n")


def _predict(evaluator: Evaluator) -> pd.DataFrame:
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
