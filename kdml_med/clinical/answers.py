"""The answers of one evaluation of a run, slide by slide or patient by patient: what the report judges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kdml_med.errors import InputError
from kdml_med.keys import PredictionColumn, Split, Task, network_order
from kdml_med.metrics.aggregation import GROUP_COLUMNS, AggregationMethod, Level, aggregate_predictions
from kdml_med.runs import COHORT_FILE, METRICS_FILE, PREDICTIONS_FILE, RunDescription
from kdml_med.storage.reading import damaged, fits, read_json, read_rows, take
from kdml_med.words import counted

_AGAIN = "Evaluate again."
_TRAINING_AGAIN = "Give the command of the training again: it trains nothing more, and evaluates again."
_Figure = float | None
_LEVELS = ("tile", "patient", "slide")
_COUNTS = ("n", "positives", "n_frames", "n_boxes", "n_detections", "n_negative_frames")
"""Figures that are always defined."""
PATIENT, SLIDE, LABEL, TILES = "patient_id", "slide_id", "label", "tiles"
PROBABILITY = "probability_"
"""With the name of a network, its column."""


@dataclass(frozen=True)
class Answers:
    """What the networks of a run said about the slides or patients of one evaluation.

    Attributes:
        table: one row for each slide or patient: patient_id, at level "slide" also slide_id, label (1.0 for the
            positive class, 0.0, NaN where unknown), tiles (how many), and for each network probability_<network> (of
            the positive class; NaN where the network gave no number).
        networks: that answered: teacher, students by number, ensemble.
        split: "val", "test" or "train".
        name: what to call it: "validation", "test", or the folder's name.
        folder: where it was read from.
        level: "patient" or "slide".
        aggregation: how tiles became one probability.
        synthetic: of generated data: its figures say nothing about patients.
        classes: in index order, the positive one last.
    """

    table: pd.DataFrame
    networks: tuple[str, ...]
    split: Split
    name: str
    folder: Path
    level: Level
    aggregation: AggregationMethod
    synthetic: bool
    classes: tuple[str, ...]

    @property
    def labelled(self) -> pd.DataFrame:
        """Rows of ``table`` with a label, numbered from 0."""
        return self.table[self.table[LABEL].notna()].reset_index(drop=True)

    def of(self, network: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.object_]]:
        """Labels, probabilities of one network, and patients (what is resampled) of the labelled rows, each [n]."""
        rows = self.labelled
        return (
            rows[LABEL].to_numpy(dtype=np.int64),
            rows[f"{PROBABILITY}{network}"].to_numpy(dtype=np.float64),
            rows[PATIENT].to_numpy(dtype=object),
        )


def read_answers(run_dir: str | Path, folder: str | Path) -> Answers:
    """Read one evaluation of a run of classifiers; the run's own folder holds the one on its validation patients.

    Tiles are aggregated as the run does it, whatever the evaluation was told: both are chosen at training.

    Args:
        run_dir: folder of the run.
        folder: of the evaluation, with metrics.json and predictions.parquet.

    Raises:
        InputError: no such run or evaluation, one of another run, level or aggregation, a file is damaged, or patients
            that the run has seen in training are called test patients.
    """
    run = RunDescription.read(run_dir, task=Task.CLASSIFICATION)
    where = Path(folder) / METRICS_FILE
    metrics = read_evaluation(folder)
    split = split_of(metrics, where)
    level, aggregation = run.level, run.aggregation
    assert level is not None  # RunDescription.read refuses runs without
    assert aggregation is not None
    for name, own in (("level", level), ("aggregation", aggregation), ("classes", run.classes)):
        if metrics.get(name) != own:
            raise InputError(
                f"{where}: {name} is {metrics.get(name)!r}, the run {run_dir} has {own!r}: it is chosen at training. "
                f"{_AGAIN}"
            )
    predictions = _read_predictions(Path(folder) / PREDICTIONS_FILE)
    check_patients(run, metrics, split, predictions[PredictionColumn.PATIENT_ID], folder)
    with damaged(Path(folder) / PREDICTIONS_FILE, remedy=remedy_for(folder)):
        table = _wide(predictions, level, aggregation)
    networks = tuple(sorted(predictions[PredictionColumn.NETWORK].unique(), key=network_order))
    if set(networks) != set(metrics["networks"]):
        raise InputError(f"{where} and {PREDICTIONS_FILE} beside it are of different networks. {_AGAIN}")
    return Answers(
        table=table,
        networks=networks,
        split=split,
        name=name_of(run_dir, folder, split),
        folder=Path(folder),
        level=level,
        aggregation=aggregation,
        synthetic=bool(metrics.get("synthetic", False)),
        classes=tuple(run.classes),
    )


def read_evaluation(folder: str | Path) -> dict[str, Any]:
    """Content of the metrics.json of an evaluation, or of the run's own one.

    Raises:
        InputError: it is missing or damaged.
    """
    path = Path(folder) / METRICS_FILE
    if not path.is_file():
        raise InputError(
            f"{folder} holds no finished evaluation: it has no {METRICS_FILE}. Make one with `kdml-med evaluate`."
        )
    remedy = remedy_for(folder)
    metrics = read_json(path, remedy=remedy)
    for network, figures in take(metrics, "networks", dict[str, dict[str, Any]], path, remedy=remedy).items():
        for name, value in figures.items():
            inner = value if name in _LEVELS and isinstance(value, dict) else {name: value}
            if not all(_is_figure(*item) for item in inner.items()):
                raise InputError(f"{path}: {name} of {network} is no figure, interval or null: it was edited. {remedy}")
    return metrics


def _is_figure(name: str, value: Any) -> bool:
    """Whether this is a number or an interval, whichever the name says, or null for one that is not defined."""
    if name.endswith("_ci95"):
        return value is None or (fits(value, list[_Figure]) and len(value) == 2)
    return fits(value, float if name in _COUNTS else _Figure)


def remedy_for(folder: str | Path) -> str:
    """What brings the files of an evaluation back, one sentence; those of a run's own folder are the training's."""
    return _TRAINING_AGAIN if (Path(folder) / COHORT_FILE).is_file() else _AGAIN


def split_of(metrics: dict[str, Any], where: Path) -> Split:
    """What an evaluation calls the patients that it is of.

    Raises:
        InputError: metrics.json does not say it.
    """
    return Split(take(metrics, "split", Split, where, remedy=_AGAIN))


def unit_of(metrics: Mapping[str, Any]) -> str:
    """What metrics.json says that intervals resample; "patient" where it says nothing."""
    return str(metrics.get("bootstrap", {}).get("unit", "patient"))


def check_patients(
    run: RunDescription, metrics: Mapping[str, Any], split: Split, patients: pd.Series[Any], folder: str | Path
) -> None:
    """Whether the patients of an evaluation, or what stands for them, are those that its split says they are.

    Whatever is called "val" may have thresholds chosen on it, so it must be whom this training validated on; whatever
    is called "test" must not be.

    Raises:
        InputError: a patient was seen elsewhere in training.
    """
    names, owner = [str(name) for name in patients.unique()], unit_of(metrics)
    if split == Split.TRAIN:
        return
    if split == Split.TEST:
        seen = [name for name in names if run.has_seen(name)]
        if seen:
            raise InputError(
                f"{folder} is called a test, but this run has seen {counted(len(seen), owner)} of it in training "
                f"or validation, first {seen[0]!r}. Evaluate again, on the splits of the training."
            )
        return
    others = [name for name in names if not run.has_seen(name, [Split.VAL]) or run.has_seen(name, [Split.TRAIN])]
    if others:
        raise InputError(
            f"{folder} is called a validation, but this run did not validate on {counted(len(others), owner)} of "
            f"it, first {others[0]!r}: nothing may be chosen on them. Bring back the files as training wrote them, or "
            "train again."
        )


def name_of(run_dir: str | Path, folder: str | Path, split: Split) -> str:
    """What to call an evaluation: by its split where it is the run's own, else by its folder."""
    if Path(folder).resolve() == Path(run_dir).resolve():
        return "validation"
    name = Path(folder).resolve().name.removeprefix("evaluation_")
    return "validation" if name == Split.VAL else name or split.value


def _read_predictions(path: Path) -> pd.DataFrame:
    remedy = remedy_for(path.parent)
    if not path.is_file():
        raise InputError(f"{path} does not exist. {remedy}")
    predictions = read_rows(path, list(PredictionColumn), remedy=remedy)
    if predictions.empty:
        raise InputError(f"{path} holds no predictions. {remedy}")
    wrong = predictions[~predictions[PredictionColumn.LABEL].fillna(-1).isin([-1, 0, 1])]
    if len(wrong):
        label = wrong[PredictionColumn.LABEL].iloc[0]
        raise InputError(f"{path}: label is {label}, expected 0, 1, or -1 where unknown. {remedy}")
    return predictions


def _wide(predictions: pd.DataFrame, level: Level, aggregation: AggregationMethod) -> pd.DataFrame:
    groups = aggregate_predictions(predictions, level, aggregation)
    keys = [PATIENT] if level == "patient" else [SLIDE, PATIENT]
    wide = groups.pivot(index=[*keys, LABEL, TILES], columns="network", values="probability").reset_index()
    wide.columns.name = None
    if wide[GROUP_COLUMNS[level]].duplicated().any():
        raise ValueError("networks answered about different tiles")
    wide[LABEL] = wide[LABEL].where(wide[LABEL] >= 0).astype(np.float64)
    networks = sorted(predictions[PredictionColumn.NETWORK].unique(), key=network_order)
    renamed: pd.DataFrame = wide[[*sorted(keys), LABEL, TILES, *networks]].rename(
        columns={name: f"{PROBABILITY}{name}" for name in networks}
    )
    return renamed
