"""The trained networks of a run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import nn

from kdml_med.errors import InputError
from kdml_med.keys import NetworkName
from kdml_med.networks.cohort import Cohort, load_trained
from kdml_med.networks.registry import build_network
from kdml_med.networks.weights import load_on_cpu
from kdml_med.runs.description import RunDescription
from kdml_med.runs.files import CHECKPOINTS_DIR, EVALUATION_FILE, METRICS_FILE, SPEED_FILE
from kdml_med.storage.files import content_hash, naming, writing

_OLDER = re.compile(r"step_(\d+)\.pt")


def read_checkpoint(path: Path, kinds: Mapping[str, type | tuple[type, ...]], *, remedy: str) -> dict[str, Any]:
    """Read a checkpoint of training without running any code of the file.

    Args:
        path: of the file.
        kinds: keys that it must have, and what they hold.
        remedy: what to do when it is damaged, one sentence.

    Raises:
        InputError: it is missing, cut short, no checkpoint, or lacks a key.
    """
    if not path.is_file():
        raise InputError(f"checkpoint {path} does not exist. {remedy}")
    try:
        state = load_on_cpu(path)
    except Exception as error:  # a damaged file raises nearly anything, at length and with advice to run its code
        raise InputError(
            f"{path} cannot be read as a checkpoint: it was cut short, or is another file. {remedy}"
        ) from error
    for name, kind in kinds.items():
        if not isinstance(state, Mapping) or name not in state or not isinstance(state[name], kind):
            raise InputError(f"{path} is no checkpoint of training: it has no usable {name!r}. {remedy}")
    return dict(state)


def write_checkpoint(path: Path, content: Any) -> None:
    """Write a checkpoint atomically: the file is whole, or what it was before.

    Args:
        path: of the file.
        content: tensors and plain values in mappings and lists; tensors are stored on the CPU.

    Raises:
        InputError: it cannot be written.
    """
    # Not through memory, where it would lie once more; and not by its path, which would be part of the bytes.
    with writing(path) as temporary, temporary.open("wb") as stream:
        told = _Told(stream)
        try:
            torch.save(_plain(content), cast("IO[bytes]", told))
        except RuntimeError as error:
            if told.error is None:
                raise
            raise told.error from error


class _Told:
    """Hands what torch writes on to a file, and keeps the error of the system, in whose place torch raises its own."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.stream.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.stream.flush()


def _plain(content: Any) -> Any:
    """What loads with ``weights_only`` and without a GPU."""
    if isinstance(content, torch.Tensor):
        return content.detach().cpu()
    if isinstance(content, Mapping):
        return {_plain(key): _plain(value) for key, value in content.items()}
    if isinstance(content, str):
        return str(content)  # of a StrEnum its text
    return [_plain(value) for value in content] if isinstance(content, list | tuple) else content


def checkpoint_path(run_dir: Path, name: str) -> Path:
    """File of a checkpoint: "last", "best" or a network's name."""
    return Path(run_dir) / CHECKPOINTS_DIR / f"{name}.pt"


def older_states(run_dir: str | Path) -> dict[int, Path]:
    """Files of what a training went through before its last checkpoint, by iteration, in no order."""
    found = (Path(run_dir) / CHECKPOINTS_DIR).glob("step_*.pt")
    return {int(name[1]): path for path in found if (name := _OLDER.fullmatch(path.name))}


def withdraw_figures(folder: str | Path) -> None:
    """Take away what vouches for an evaluation, before the tables or the weights that it is of become others.

    Args:
        folder: of the evaluation; of a run, for its own.

    Raises:
        InputError: a file cannot be removed.
    """
    for name in (METRICS_FILE, EVALUATION_FILE, SPEED_FILE):
        path = Path(folder) / name
        with naming(path):
            path.unlink(missing_ok=True)


def hash_checkpoints(run_dir: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the file with the weights of each network.

    Raises:
        InputError: a file is missing.
    """
    paths = {name: checkpoint_path(run_dir, name) for name in names}
    for path in paths.values():
        if not path.is_file():
            raise InputError(f"{run_dir} is not a finished training run: it has no {path.relative_to(run_dir)}.")
    return {name: content_hash(path) for name, path in paths.items()}


def load_network(run_dir: str | Path, name: str = "student_0", *, trained: bool = True) -> nn.Module:
    """Build one network of a finished run with its best weights.

    Args:
        run_dir: folder of the run.
        name: "teacher", "student_0", ... .
        trained: False leaves the initial weights, for callers that load a checkpoint themselves.

    Raises:
        InputError: no such run or network, or the weights do not fit.
    """
    description = RunDescription.read(run_dir)
    if name not in description.networks:
        raise InputError(f"run {run_dir} has no network {name!r}; it has {sorted(description.networks)}.")
    network = build_network(description.networks[name], num_classes=description.num_classes)
    if trained:
        load_trained(network, checkpoint_path(Path(run_dir), name))
    return network.eval()


def load_cohort(run_dir: str | Path, *, students_only: bool = False) -> Cohort:
    """Build the cohort of a finished run with its best weights.

    Args:
        run_dir: folder of the run.
        students_only: leave the teacher out, as one does in use.

    Raises:
        InputError: no such run, or the weights do not fit.
    """
    names = RunDescription.read(run_dir).names
    if students_only:
        names = [name for name in names if name != NetworkName.TEACHER]
    return Cohort({name: load_network(run_dir, name) for name in names})
