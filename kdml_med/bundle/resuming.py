"""Whether a training goes on in the folder of a run: with settings, dataset and teacher that it began with."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from kdml_med.bundle.settings import Settings, free_settings, known_default
from kdml_med.errors import InputError
from kdml_med.keys import NetworkName
from kdml_med.networks.weights import read_state_dict, same_weights
from kdml_med.runs import (
    CHECKPOINTS_DIR,
    COHORT_FILE,
    SETTINGS_FILE,
    TRAIN_AGAIN,
    RunDescription,
    checkpoint_path,
    read_run_json,
)
from kdml_med.runs.weights import older_states, read_checkpoint
from kdml_med.storage.manifest import dataset_identity
from kdml_med.storage.reading import take

_DATASET_WORDS = {"classes": "the dataset's classes, the positive one last,"}


def recorded_settings(settings: Settings) -> dict[str, Any]:
    """What settings.json says of a config: "knobs", which a run keeps, "free" ones, and the dataset.

    Raises:
        InputError: the dataset cannot be read.
    """
    free = free_settings()
    content = {
        "knobs": settings.fixed,
        "free": {name: value for name, value in settings.recorded.items() if name in free},
        "dataset": dataset_identity(Path(settings["dataset_dir"])),
        "dataset_dir": str(Path(settings["dataset_dir"]).resolve()),
    }
    return dict(json.loads(json.dumps(content, default=str)))


def recorded_before(run_dir: Path, part: str) -> dict[str, Any] | None:
    """What is noted of a training that goes on; nothing of one that begins, or of an earlier version."""
    goes_on = checkpoint_path(run_dir, "last").is_file() or older_states(run_dir)
    if not goes_on or not (run_dir / SETTINGS_FILE).is_file():
        return None
    content = {part: {}} | read_run_json(run_dir, SETTINGS_FILE)
    return dict(take(content, part, dict[str, Any], run_dir / SETTINGS_FILE, remedy=TRAIN_AGAIN))


def holds_run(run_dir: Path) -> bool:
    """Whether a training in this folder has begun to learn."""
    # Any of them: a run whose last.pt was deleted is begun anew over the weights that it has, with the same settings.
    return any((run_dir / CHECKPOINTS_DIR).glob("*.pt"))


def check_run(run_dir: Path, settings: Settings) -> None:
    """Refuse a folder that holds a run which these settings do not go on with.

    Raises:
        InputError: they do not, or the dataset cannot be read, also where there is no run yet.
    """
    recorded = recorded_settings(settings)
    if not holds_run(run_dir):
        return
    if not settings["resume"]:
        raise InputError(f"{run_dir} already holds a run: name another --run_dir, or leave --resume on to go on.")
    if not (run_dir / SETTINGS_FILE).is_file():
        raise InputError(
            f"{run_dir} holds a run without its {SETTINGS_FILE}, which says with which settings it goes on: bring the "
            "file back, or name another --run_dir."
        )
    if (run_dir / COHORT_FILE).is_file():
        RunDescription.read(run_dir, task=settings.task)
    before = read_run_json(run_dir, SETTINGS_FILE)
    for part in ("knobs", "dataset"):
        old_part = take(before, part, dict[str, Any], run_dir / SETTINGS_FILE, remedy=TRAIN_AGAIN)
        if part == "dataset" and "classes" not in old_part:  # earlier versions have them in cohort.json alone
            old_part = {"classes": RunDescription.read(run_dir).classes, **old_part}
        old_part.pop("amp", None)  # of earlier versions; how they computed is kept, see build_acceleration
        for name in sorted({*old_part, *recorded[part]}):
            # A setting that is newer than the run had its default.
            old = old_part.get(name, known_default(settings.task, name) if part == "knobs" else None)
            new = recorded[part].get(name)
            if not (_same_teacher(run_dir, old, new) if name == "teacher_checkpoint" else old == new):
                what = f"--{name}" if part == "knobs" else _DATASET_WORDS.get(name, "the dataset")
                raise InputError(
                    f"{run_dir} holds a run with other settings: {what} was {old!r}, now {new!r}. Use the same "
                    "settings to go on, or name another --run_dir."
                )


def _same_teacher(run_dir: Path, old: Any, new: Any) -> bool:
    """Whether a run goes on with its frozen teacher: the file may move, as datasets may, and holds the same weights."""
    teacher = _frozen_teacher(run_dir) if old is not None and isinstance(new, str) else {}
    if not teacher or (old == new and not checkpoint_path(run_dir, "last").is_file()):  # which is begun anew
        return bool(old == new)
    # As they were loaded: in the network's own precision, and without counters, which a file may lack.
    counters = {name: value for name, value in teacher.items() if name.endswith("num_batches_tracked")}
    found = {name: value.to(teacher.get(name, value).dtype) for name, value in read_state_dict(Path(new)).items()}
    same = same_weights(counters | found, teacher)
    if not same and old == new:
        raise InputError(
            f"--teacher_checkpoint {new} holds another teacher than {run_dir} began with: bring that one back (a copy "
            f"is {CHECKPOINTS_DIR}/teacher.pt there), name another --run_dir, or delete the folder to train it anew."
        )
    return same


def _frozen_teacher(run_dir: Path) -> dict[str, Tensor]:
    prefix, own = f"networks.{NetworkName.TEACHER}.", checkpoint_path(run_dir, NetworkName.TEACHER)
    with contextlib.suppress(InputError):  # who reads all of it says what to do
        state = read_checkpoint(checkpoint_path(run_dir, "last"), {"network": Mapping}, remedy="")["network"]
        return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return read_state_dict(own) if own.is_file() else {}
