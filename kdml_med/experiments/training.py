"""One cell of a plan: the bundle's training and evaluation, as ``python -m monai.bundle run`` does them."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
import torch
from monai.bundle import run as run_bundle

from kdml_med.bundle.knobs import KNOBS
from kdml_med.bundle.resuming import holds_run
from kdml_med.errors import InputError
from kdml_med.experiments.plan import Cell, Plan
from kdml_med.experiments.plan_settings import told_evaluations
from kdml_med.keys import NetworkName, Split, Task
from kdml_med.runs import SETTINGS_FILE, TRAIN_AGAIN, RunDescription, checkpoint_path, read_run_json
from kdml_med.runs.weights import older_states
from kdml_med.splits import assign_splits, has_folds, has_splits
from kdml_med.storage.files import write_json
from kdml_med.storage.manifest import DatasetInfo, dataset_identity, read_info, read_manifest
from kdml_med.storage.reading import take

CELL_FILE = "cell.json"
BEGUN_FILE = "begun.json"
LOG_FILE = "log.txt"

_DECIDING = {"max_epochs", "early_stopping", "device"}
"""What a single run may change; the results of a plan hang on it."""
_HOW_IT_RUNS = {knob.name for knob in KNOBS if "train" in knob.stages and (knob.free or not knob.recorded)} - _DECIDING
"""Settings of a training without effect on what it learns; who ran out of memory goes on with others."""


def cell_record(cell: Cell, plan: Plan) -> dict[str, Any]:
    """What decides the result of a cell; written when it is done, and compared when a plan is run again."""
    record: dict[str, Any] = {
        "cell": asdict(cell),
        "bundle": Path(plan.bundle).name,
        "threads": plan.threads,
        "evaluations": plan.evaluations,
        "datasets": {name: dataset_identity(folder) for name, folder in _dataset_folders(plan).items()},
    }
    plain: dict[str, Any] = json.loads(json.dumps(record, default=str))
    return plain


def _begun_record(cell: Cell, plan: Plan) -> dict[str, Any]:
    """What decides a training; written when it begins, and compared when it goes on. Evaluations come later."""
    whole = cell_record(cell, plan)
    return {part: whole[part] for part in ("cell", "bundle", "threads")} | {"datasets": {"": whole["datasets"][""]}}


def comparable_cell(cell: Any) -> Any:
    """A cell to be compared, of a plan or of a record: how it is trained may change, as what is learned may not."""
    if not isinstance(cell, Mapping) or not isinstance(cell.get("settings"), Mapping):  # of a record that was edited
        return cell
    return {**cell, "settings": {name: value for name, value in cell["settings"].items() if name not in _HOW_IT_RUNS}}


def comparable_evaluations(evaluations: Any, cell: Cell) -> Any:
    """Evaluations of a cell to be compared, of a plan or of a record.

    A dataset may move, its content is recorded beside.
    """
    evaluations = told_evaluations(evaluations, folds=cell.fold is not None)
    if not isinstance(evaluations, Mapping):  # of a record that was edited
        return evaluations
    return {
        name: {**settings, "dataset_dir": "a dataset of its own"}
        if isinstance(settings, Mapping) and "dataset_dir" in settings
        else settings
        for name, settings in evaluations.items()
    }


def _dataset_folders(plan: Plan) -> dict[str, Path]:
    """Folder of the plan under "", and those of evaluations elsewhere under their names."""
    return {"": Path(plan.dataset_dir)} | {
        name: Path(evaluation["dataset_dir"])
        for name, evaluation in plan.evaluations.items()
        if "dataset_dir" in evaluation
    }


def check_data(plan: Plan) -> None:
    """Look at all datasets of a plan before anything is trained: what is wrong with one would end every training.

    Raises:
        InputError: a folder is missing, unfinished, of another kind or has other classes, its splits leak, it has no
            such folds, or nothing is in a split that is evaluated.
    """
    kind = "frames" if plan.task is Task.DETECTION else "tiles"
    classes = read_info(Path(plan.dataset_dir)).classes
    of_plan: Sequence[int | None] = plan.folds or [None]
    for name, folder in _dataset_folders(plan).items():
        info = read_info(folder)
        if info.kind != kind:
            raise InputError(f"{folder} is a dataset of {info.kind}, bundle {plan.bundle!r} needs {kind}.")
        if info.classes and info.classes != classes:
            raise InputError(
                f"evaluation {name!r}: {folder} has the classes {info.classes}, {plan.dataset_dir} has {classes}; they "
                "must be the same and in the same order."
            )
        manifest = read_manifest(folder)
        if not name:
            for fold in of_plan:
                assign_splits(folder, manifest, info, fold=fold)
        for own, evaluation in plan.evaluations.items():
            if (own if "dataset_dir" in evaluation else "") == name:
                _check_split(plan, own, folder, manifest, info)


def _check_split(plan: Plan, name: str, folder: Path, manifest: pd.DataFrame, info: DatasetInfo) -> None:
    """Whether an evaluation finds something to judge."""
    evaluation = plan.evaluations[name]
    elsewhere = "dataset_dir" in evaluation
    # Where an evaluation does not say it, the fold is that of the training, if the dataset has any.
    of_training = not elsewhere or (has_splits(folder) and has_folds(folder))
    folds: Sequence[int | None] = (plan.folds if of_training else None) or [None]
    split = str(evaluation.get("split", Split.TEST))
    for fold in [evaluation["fold"]] if "fold" in evaluation else folds:
        if not (assign_splits(folder, manifest, info, fold=fold) == split).any():
            raise InputError(f"evaluation {name!r}: nothing in {folder} is in the split {split!r}.")


def is_done(cell: Cell, plan: Plan, out: Path) -> bool:
    """Whether a cell is finished.

    Raises:
        InputError: it was finished with other settings or data.
    """
    path = out / cell.path / CELL_FILE
    if not path.is_file():
        return False
    before, now = read_run_json(path.parent, CELL_FILE), cell_record(cell, plan)
    _add_classes(before, path.parent)
    for record in (before, now):
        record["evaluations"] = comparable_evaluations(record.get("evaluations"), cell)
    _refuse_others(before, now, f"{path.parent} was trained", "Take the plan as it was, or another --out.")
    return True


def check_begun(cell: Cell, plan: Plan, out: Path) -> None:
    """Check that a cell that is not finished can go on: the bundle lets a training that goes on change its length.

    Raises:
        InputError: it has learned with other settings or data. It is not begun anew, which would cost hours in silence.
    """
    folder = out / cell.path
    if not (folder / BEGUN_FILE).is_file() or not holds_run(folder):  # earlier versions kept no such record
        return
    _refuse_others(
        read_run_json(folder, BEGUN_FILE),
        _begun_record(cell, plan),
        f"{folder} was begun",
        "Take the plan as it was or another --out, or delete this folder to train it anew.",
    )


def _refuse_others(before: Mapping[str, Any], now: Mapping[str, Any], what: str, remedy: str) -> None:
    before, now = ({**record, "cell": comparable_cell(record.get("cell"))} for record in (before, now))
    for part in now:
        if before.get(part) != now[part]:
            difference = _first_difference(before.get(part), now[part])
            raise InputError(f"{what} with another {part}: {difference}. {remedy}")


def _add_classes(record: Mapping[str, Any], folder: Path) -> None:
    """Add to a record of an earlier version what it lacks; evaluations on other classes were refused."""
    datasets = record.get("datasets")
    for known in datasets.values() if isinstance(datasets, dict) else ():
        if isinstance(known, dict) and "classes" not in known:
            known["classes"] = RunDescription.read(folder).classes


def _first_difference(before: Any, now: Any, name: str = "") -> str:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                return _first_difference(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    return f"{name} was {before!r}, now {now!r}".lstrip()


def train_cell(cell: Cell, plan: Plan, out: Path) -> str | None:
    """Train and evaluate one cell, or go on where it was interrupted.

    What the bundle prints goes to log.txt in the cell's folder.

    Returns:
        None when it is done, else the reason why not, one line.
    """
    folder = out / cell.path
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(plan.threads)
    started = time.monotonic()
    with _log_to(folder / LOG_FILE) as log:
        _wait_for_others(log)
        since = log.seek(0, os.SEEK_END)
        try:
            if is_done(cell, plan, out):  # by another process, just now
                return None
            check_begun(cell, plan, out)
            _follow_teacher(cell, out)
            if not holds_run(folder):  # one that an earlier version began is of a plan that nobody knows
                write_json(folder / BEGUN_FILE, _begun_record(cell, plan))
            _run(plan, ["train.json"], _training_settings(cell, plan, out))
            for name, evaluation in plan.evaluations.items():
                _run(plan, ["train.json", "evaluate.json"], _evaluation_settings(cell, plan, folder, name, evaluation))
        except SystemExit:
            return _last_error(log, since) or f"ended early, see {folder / LOG_FILE}"
        except Exception as error:  # one cell must not end the others
            logging.getLogger(__name__).exception("this training failed")
            cause = _root_cause(error)
            reason = (str(cause).splitlines() or [""])[0]
            if isinstance(cause, InputError):
                return reason
            return f"unexpected {type(cause).__name__}: {reason}; see {folder / LOG_FILE}"
        print(f"done in {time.monotonic() - started:.0f} s")
        write_json(folder / CELL_FILE, cell_record(cell, plan))
    if not plan.keep_checkpoints:
        # Last of all: a cell that is killed before this line is done, and only keeps more than it needs. Older states
        # go first: without last.pt they would be taken for what the training is to go on from.
        for path in [*older_states(folder).values(), *(checkpoint_path(folder, name) for name in ("last", "best"))]:
            path.unlink(missing_ok=True)
    return None


def _follow_teacher(cell: Cell, out: Path) -> None:
    """Let a training go on with its teacher where the results folder was moved, or is reached by another name."""
    path = out / cell.path / SETTINGS_FILE
    if cell.needs is None or not path.is_file():
        return
    settings, now = read_run_json(path.parent, SETTINGS_FILE), _teacher_path(cell.needs, out)
    knobs = take(settings, "knobs", dict[str, Any], path, remedy=TRAIN_AGAIN)
    within = now.relative_to(out)
    before = Path(str(knobs.get("teacher_checkpoint")))
    if before != now and before.parts[-len(within.parts) :] == within.parts:
        write_json(path, {**settings, "knobs": {**knobs, "teacher_checkpoint": str(now)}})


def _teacher_path(needs: str, out: Path) -> Path:
    """Weights of the teacher of another cell, which is its only student."""
    return checkpoint_path(out / needs, NetworkName.student(0))


def _wait_for_others(log: TextIO) -> None:
    """Wait while another process works on the same cell: a worker of a cluster that was given up, or a second run.

    The lock on the log dies with the process that has it.
    """
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another process works on this training; waiting for it")
        fcntl.flock(log, fcntl.LOCK_EX)
    except OSError:
        print("this file system has no locks: two runs must not share a results folder")


def _training_settings(cell: Cell, plan: Plan, out: Path) -> dict[str, Any]:
    settings = {
        **cell.settings,
        "version": cell.version,
        "seed": cell.seed,
        "fold": cell.fold,
        "dataset_dir": plan.dataset_dir,
        "run_dir": str(out / cell.path),
        "bundle_root": str(plan.bundle_folder.resolve()),
    }
    if cell.needs is not None:
        settings["teacher_checkpoint"] = str(_teacher_path(cell.needs, out))
    return settings


def _evaluation_settings(
    cell: Cell, plan: Plan, folder: Path, name: str, evaluation: Mapping[str, Any]
) -> dict[str, Any]:
    shared = {key: cell.settings[key] for key in ("device", "batch_size", "num_workers") if key in cell.settings}
    settings = {
        **shared,
        "dataset_dir": plan.dataset_dir,
        "run_dir": str(folder),
        "output_dir": str(folder / evaluation_dir(name)),
        "bundle_root": str(plan.bundle_folder.resolve()),
        **evaluation,
    }
    config = json.loads((plan.bundle_folder / "configs" / "evaluate.json").read_text())
    if "measure_speed" in config:
        settings.setdefault("measure_speed", False)  # the report measures all networks side by side
    if cell.fold is not None and "dataset_dir" not in evaluation:
        settings["fold"] = cell.fold
    return settings


def evaluation_dir(name: str) -> str:
    """Folder of an evaluation in a cell."""
    return f"evaluation_{name}"


def _run(plan: Plan, files: list[str], settings: Mapping[str, Any]) -> None:
    configs = plan.bundle_folder / "configs"
    try:
        run_bundle(
            config_file=[str(configs / name) for name in files],
            meta_file=str(configs / "metadata.json"),
            logging_file=False,
            **settings,
        )
    finally:
        # Engines and handlers refer to each other in circles, and hold on to networks and optimiser.
        gc.collect()


def _root_cause(error: BaseException) -> BaseException:
    """What went wrong at first: configs wrap every error of a component in one that says nothing."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextlib.contextmanager
def _log_to(path: Path) -> Iterator[TextIO]:
    """Send prints, progress and log messages of this process to a file, added to what is there."""
    root = logging.getLogger()
    level = root.level
    with path.open("a+", buffering=1) as stream:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter("%(message)s"))
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        _redirect_library_logs(stream)
        try:
            with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
                yield stream
        finally:
            root.removeHandler(handler)
            root.setLevel(level)
            _redirect_library_logs(sys.stderr, was=stream)


def _redirect_library_logs(stream: TextIO, *, was: TextIO | None = None) -> None:
    """Let MONAI's loggers write to a stream; with ``was``, only those that write to that one."""
    # They do not pass messages on, and keep the stream that was the standard one when they were made.
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.startswith("monai") and isinstance(logger, logging.Logger):
            for handler in logger.handlers:
                # Exactly this class: those derived from it write to files and buffers of their own.
                if type(handler) is logging.StreamHandler and was in (None, handler.stream):
                    handler.setStream(stream)


def _last_error(log: TextIO, since: int) -> str | None:
    """The last message for a person that this process wrote."""
    log.seek(since)
    lines = [line for line in log.read().splitlines() if line.startswith("error: ")]
    return lines[-1].removeprefix("error: ") if lines else None
