"""kdml_med from Python: train, evaluate, report, predict and export. What is wrong raises ``InputError``.

import kdml_med

run = kdml_med.train("data/crc", "runs/crc", version="v2", max_epochs=20)
metrics = kdml_med.evaluate(run)
kdml_med.write_report(run)
kdml_med.predict(run, ["new_slide.svs"], "results/new")
kdml_med.export(run, "exported", network="student_0", format="onnx")
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from kdml_med.bundle.inference import FRAMES_DIR
from kdml_med.bundle.running import run_config
from kdml_med.bundle.settings import knobs_of, unknown_setting
from kdml_med.errors import InputError
from kdml_med.keys import NetworkName, Task
from kdml_med.runs import (
    DETECTIONS_FILE,
    HISTORY_FILE,
    METRICS_FILE,
    PATIENTS_FILE,
    PREDICTIONS_FILE,
    SEQUENCES_FILE,
    SETTINGS_FILE,
    TRAIN_AGAIN,
    RunDescription,
    load_cohort,
    load_network,
    read_history,
    read_losses,
    read_run_json,
    trained_on,
)
from kdml_med.storage.manifest import DATASET_FILE, FAILURES_FILE, DatasetKind, read_info
from kdml_med.storage.reading import damaged, read_table, take

__all__ = ["Prediction", "Run", "evaluate", "export", "load_run", "predict", "train", "write_report"]


@dataclass(frozen=True)
class Run:
    """A training that is finished, or was interrupted after its first epoch.

    Attributes:
        folder: of the run.
        description: what the networks are and how to feed them, see ``kdml_med.runs.RunDescription``.
        settings: of the training, by name.
        metrics: content of metrics.json, figures on the validation split; empty until the training is finished.
    """

    folder: Path
    description: RunDescription
    settings: dict[str, Any] = field(repr=False)
    metrics: dict[str, Any] = field(repr=False)

    @property
    def task(self) -> Task:
        """What the networks are for."""
        return self.description.task

    @property
    def dataset_dir(self) -> Path:
        """The dataset folder that it was trained on.

        Raises:
            InputError: it is not there any more, or the run is of an earlier version that did not note it.
        """
        return trained_on(self.folder)

    @property
    def patients(self) -> pd.DataFrame:
        """Slides: one row per patient of the validation split; polyps: per sequence. Columns: docs, run folder."""
        return self.table(SEQUENCES_FILE if self.task is Task.DETECTION else PATIENTS_FILE)

    @property
    def predictions(self) -> pd.DataFrame:
        """One row per tile (polyps: per box) of the validation split and network."""
        return self.table(DETECTIONS_FILE if self.task is Task.DETECTION else PREDICTIONS_FILE)

    @property
    def losses(self) -> pd.DataFrame:
        """Mean loss terms of every epoch."""
        return read_losses(self.folder)

    @property
    def history(self) -> pd.DataFrame:
        """Loss and figures of every validation, one row for each epoch, network and figure.

        Raises:
            InputError: the run is of an earlier version that did not note them, or the file is damaged.
        """
        if not (self.folder / HISTORY_FILE).is_file():
            raise InputError(
                f"{self.folder} has no {HISTORY_FILE}: an earlier version trained it; see its TensorBoard."
            )
        return read_history(self.folder)

    def table(self, name: str) -> pd.DataFrame:
        """A CSV or parquet file of the run, such as "evaluation_test/patients.csv".

        Raises:
            InputError: it is missing or damaged.
        """
        return _table(self.folder / name)

    def network(self, name: str = "student_0") -> nn.Module:
        """One network with its best weights, in evaluation mode: float images [batch, 3, height, width], normalised.

        Raises:
            InputError: there is no such network, or its weights do not fit.
        """
        return load_network(self.folder, name)

    def cohort(self, *, students_only: bool = True) -> nn.Module:
        """All students, or all networks, as one module that gives a dictionary by name."""
        return load_cohort(self.folder, students_only=students_only).eval()


@dataclass(frozen=True)
class Prediction:
    """What a prediction wrote.

    Attributes:
        folder: with the files.
        failures: (name, reason) of inputs that could not be used; the work on the others is finished.
        lines: what to tell a person, where it was not printed.
    """

    folder: Path
    failures: list[tuple[str, str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def table(self, name: str) -> pd.DataFrame:
        """A CSV or parquet file, such as "patients.csv", "tiles.parquet" or "detections.csv".

        Raises:
            InputError: it is missing or damaged.
        """
        return _table(self.folder / name)


def load_run(run_dir: str | Path) -> Run:
    """Read what a training left behind.

    Raises:
        InputError: the folder is no run, or a file in it is damaged.
    """
    folder = Path(run_dir)
    description = RunDescription.read(folder)
    content = read_run_json(folder, SETTINGS_FILE)
    settings: dict[str, Any] = {}
    for part in ("knobs", "free"):
        settings |= take(content, part, dict[str, Any], folder / SETTINGS_FILE, remedy=TRAIN_AGAIN)
    finished = (folder / METRICS_FILE).is_file()
    return Run(folder, description, settings, read_run_json(folder, METRICS_FILE) if finished else {})


def train(dataset_dir: str | Path, run_dir: str | Path, **settings: Any) -> Run:
    """Train a cohort, or go on with a training that was interrupted. A finished run is only evaluated again.

    Args:
        dataset_dir: dataset folder with frozen splits; tiles give classifiers, frames detectors.
        run_dir: folder of the run; a run there is continued with the same settings only.
        **settings: of the training by name, such as ``version="v2"`` or ``max_epochs=20``; see the page of settings.

    Raises:
        InputError: a setting does not exist or makes no sense, the dataset does not fit, or the folder holds another
            run. Nothing was written then.
    """
    task = Task.DETECTION if read_info(Path(dataset_dir)).kind == DatasetKind.FRAMES else Task.CLASSIFICATION
    run_config(task, "train", dataset_dir=str(dataset_dir), run_dir=str(run_dir), **settings)
    return load_run(run_dir)


def evaluate(
    run: Run | str | Path,
    dataset_dir: str | Path | None = None,
    *,
    split: str = "test",
    output_dir: str | Path | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Evaluate a run on a split, and write metrics.json and tables.

    Args:
        run: from ``train`` or ``load_run``, or its folder.
        dataset_dir: dataset folder; None for that of the training.
        split: "test", "val" or "train".
        output_dir: where results go; None for ``evaluation_<split>`` in the run.
        **settings: such as ``device``, ``level`` or ``aggregation``.

    Returns:
        Content of metrics.json.

    Raises:
        InputError: no such run or dataset, they do not fit, or patients of the split were seen in training.
    """
    folder = _folder(run)
    task = RunDescription.read(folder).task
    place = {"dataset_dir": str(dataset_dir or trained_on(folder)), "run_dir": str(folder), "split": split}
    if output_dir is not None:
        place["output_dir"] = str(output_dir)
    metrics: dict[str, Any] = run_config(task, "evaluate", **place, **settings)
    return metrics


def write_report(
    run: Run | str | Path,
    *,
    external: Sequence[str | Path] = (),
    labels: Sequence[str | Path] = (),
    by: Sequence[str] = (),
    temperature: bool = False,
    dataset_dir: str | Path | None = None,
    speed: bool | None = None,
) -> Path:
    """Write report.html, one page that needs nothing else, and report.json with its figures, into the run's folder.

    Args:
        run: from ``train`` or ``load_run``, or its folder.
        external: folders of evaluations on other datasets, see ``evaluate``.
        labels: tables with columns for subgroups of patients or slides, such as the label table.
        by: names of these columns.
        temperature: show probabilities after temperature scaling, too.
        dataset_dir: where the dataset of the training is now; None for where it was.
        speed: measure the latency anew, or not at all; None measures what no earlier report knows.

    Returns:
        Path of the page.

    Raises:
        InputError: no finished run, or an evaluation, a table or the named dataset does not fit it.
    """
    folder = _folder(run)
    RunDescription.read(folder)  # what is no run is said before libraries are loaded
    from kdml_med.clinical.writing import REPORT_PAGE
    from kdml_med.clinical.writing import write_report as write

    write(
        folder, external=external, labels=labels, by=by, temperature=temperature, dataset_dir=dataset_dir, speed=speed
    )
    return folder / REPORT_PAGE


def predict(
    run: Run | str | Path,
    inputs: str | Path | Sequence[str | Path],
    output_dir: str | Path,
    *,
    network: str = "ensemble",
    device: str | None = None,
    **options: Any,
) -> Prediction:
    """Apply a run to something new; the task of the run decides what that can be.

    Args:
        run: from ``train`` or ``load_run``, or its folder.
        inputs: slides and folders with slides, or images, videos and folders with them; or one dataset folder.
        output_dir: folder for results; the same call again goes on where it was interrupted.
        network: "ensemble" for all students, "student_0" and so on, or "teacher".
        device: where the networks run; None for a GPU where there is one.
        **options: slides: those of ``kdml_med.deploy.slides.predicting.predict_slides``, such as ``workers``,
            ``assume_mpp`` or ``roi``; otherwise settings of inference, such as ``batch_size``, ``fps`` or ``annotate``.

    Raises:
        InputError: no such run, network, input or option.
    """
    folder, paths = _folder(run), _paths(inputs)
    task = RunDescription.read(folder).task
    place: dict[str, Any] = {"network": network, "device": device or ("cuda" if torch.cuda.is_available() else "cpu")}
    is_dataset = len(paths) == 1 and (paths[0] / DATASET_FILE).is_file()
    if task is Task.CLASSIFICATION and not is_dataset:
        from kdml_med.deploy.slides.predicting import predict_slides

        _check_options(predict_slides, options, task=task)
        report = predict_slides(folder, paths, Path(output_dir), **place, **options)
        return Prediction(Path(output_dir), [*report.failures, *report.absent], report.lines())
    if len(paths) > 1:
        raise InputError(f"{len(paths)} inputs are named: put them in one folder, and name that.")
    if "network" not in {knob.name for knob in knobs_of(task, "inference")}:  # tables of tiles have all that ran
        place |= {"students_only": place.pop("network") != NetworkName.TEACHER}
    place |= {"run_dir": str(folder), "output_dir": str(output_dir)}
    place["dataset_dir" if is_dataset else "source"] = str(paths[0])
    if "workers" in options:
        place["num_workers"] = options.pop("workers")
    run_config(task, "inference", **place, **options)
    return Prediction(Path(output_dir), [] if is_dataset else _unused_sources(Path(output_dir)))


def _unused_sources(output_dir: Path) -> list[tuple[str, str]]:
    """Images and videos of which no or not every frame could be used."""
    table = read_table(output_dir / FRAMES_DIR / FAILURES_FILE, ["input", "reason"], remedy="Predict again.")
    return list(zip(table["input"], table["reason"], strict=True))


def export(
    run: Run | str | Path,
    out_dir: str | Path,
    *,
    network: str = "student_0",
    format: str = "onnx",
    dataset_dir: str | Path | None = None,
    **options: Any,
) -> Any:
    """Write a network, or the ensemble, as one file that behaves as the one that was evaluated.

    Args:
        run: from ``train`` or ``load_run``, or its folder.
        out_dir: folder for the model, its metadata and the report on parity, size and speed.
        network: "student_0" and so on, "ensemble" or "teacher".
        format: "torchscript", "onnx" or "onnx-int8".
        dataset_dir: real images for calibration and comparison; None for the dataset of the training, if it is there.
        **options: of ``kdml_med.deploy.export.export_run``.

    Returns:
        ``kdml_med.deploy.export.ExportReport``.

    Raises:
        InputError: no such run, network or format, or a package that the format needs is not installed.
    """
    folder = _folder(run)
    RunDescription.read(folder)  # what is no run is said before libraries are loaded
    from kdml_med.deploy.export import export_run

    _check_options(export_run, options)
    return export_run(folder, Path(out_dir), network=network, format=format, dataset_dir=dataset_dir, **options)


def _folder(run: Run | str | Path) -> Path:
    return run.folder if isinstance(run, Run) else Path(run)


def _paths(inputs: str | Path | Sequence[str | Path]) -> list[Path]:
    paths = [Path(inputs)] if isinstance(inputs, str | Path) else [Path(path) for path in inputs]
    if not paths:
        raise InputError("no input is named: name slides, images, videos, folders with them, or a dataset folder.")
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist: name a file or a folder that is there.")
    return paths


def _check_options(function: Callable[..., Any], options: dict[str, Any], *, task: Task | None = None) -> None:
    """Refuse what a function does not take, in one line instead of a TypeError."""
    known = [name for name, one in inspect.signature(function).parameters.items() if one.kind is one.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            raise unknown_setting(name, known, task=task)


_NAMES = ("label", "input", "source", "file_name", "site")
"""Columns of names beside the identifiers."""
_TRUTHS = {"True": True, "False": False, "": None}


def _table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"{path} does not exist: was the work finished?")
    if path.suffix == ".parquet":
        with damaged(path, remedy=TRAIN_AGAIN):
            return pd.read_parquet(path)
    return read_table(path, remedy=TRAIN_AGAIN).apply(_numbers)


def _numbers(column: pd.Series[Any]) -> pd.Series[Any]:
    """A column of texts as numbers or truths, where all of it are some; empty cells are missing. Names stay."""
    if str(column.name).endswith("_id") or column.name in _NAMES:
        return column.replace("", None)  # "007" is no 7
    if set(column) - {""} and set(column) <= set(_TRUTHS):
        return column.map(_TRUTHS).astype("boolean" if "" in set(column) else "bool")
    try:
        return pd.to_numeric(column.replace("", None))
    except ValueError:
        return column
