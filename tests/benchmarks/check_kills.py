"""Whether a training that is killed at any moment, and started again, ends with the same bits as one that is not.

    python -m tests.benchmarks.check_kills [--kills 10] [--seed 0] [--data DIR]

For each bundle one training runs undisturbed. Others are killed with SIGKILL, each once, at random moments spread over
the whole command, from the first import to the last figure, and then started again as they were, with other numbers of
reading processes. Where a training had ended before its moment, another one is drawn. Weights, optimizer, schedules and
random states of the last checkpoint, the best weights, all tables (losses, validations, predictions, points of the
figures) and TensorBoard's points have to be the same. Exits with 1 where one isn't, or where none left a checkpoint.
Takes about a quarter of an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from kdml_med.runs import (
    CHECKPOINTS_DIR,
    DETECTIONS_FILE,
    HISTORY_FILE,
    LOSSES_FILE,
    METRICS_FILE,
    PREDICTIONS_FILE,
)
from kdml_med.storage.manifest import SPLITS_FILE
from tests.benchmarks.racing import describe_machine
from tests.results import TIMES, points

TRAININGS = {"msi": ("tiles", "--tiles-per-epoch", "320"), "polyp": ("frames", "--frames-per-epoch", "96")}
"""Dataset of the demo's folder, and the length of an epoch."""
COMMON = ("--version", "tiny", "--max-epochs", "3", "--checkpoint-interval", "0.02")
PROGRAM = (sys.executable, "-m", "kdml_med.cli")
WORKERS = (0, 1, 2)
WRITTEN = {
    "msi": {LOSSES_FILE, HISTORY_FILE, PREDICTIONS_FILE, METRICS_FILE},
    "polyp": {LOSSES_FILE, HISTORY_FILE, DETECTIONS_FILE, METRICS_FILE},
}
"""Without which there is nothing to compare."""
DRAWS = 5
"""Of a moment, for trainings that end before theirs."""


def differences(reference: Path, other: Path) -> list[str]:
    """What is not the same in two run folders."""
    found = list(_files(reference, other))
    for name in ("best", "last", *_networks(reference)):
        paths = [folder / CHECKPOINTS_DIR / f"{name}.pt" for folder in (reference, other)]
        if paths[1].exists():
            states = [torch.load(path, weights_only=True) for path in paths]
            found += [f"{name}.pt: {place}" for place in unequal(*states)]
        else:
            found.append(f"{name}.pt is not there")
    curves = [points(folder / "tensorboard") for folder in (reference, other)]
    return found + [f"TensorBoard: {tag}" for tag in unequal(*curves)]


def _files(reference: Path, other: Path) -> Iterator[str]:
    """Tables that differ, or that one of both lacks."""
    for name in sorted(_tables(reference) | _tables(other)):
        paths = [folder / name for folder in (reference, other)]
        same = all(path.exists() for path in paths)
        if same and name.endswith(".parquet"):
            one, another = map(pd.read_parquet, paths)
            same = one.equals(another)
        elif same:
            same = _bytes(paths[0]) == _bytes(paths[1])
        if not same:
            yield name
    metrics = [json.loads(_bytes(folder / METRICS_FILE) or b"{}") for folder in (reference, other)]
    yield from (f"{METRICS_FILE}: {place}" for place in unequal(*metrics))


def _tables(run: Path) -> set[str]:
    paths = [path for ending in ("csv", "parquet") for path in run.rglob(f"*.{ending}")]
    return {path.relative_to(run).as_posix() for path in paths}


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _networks(run: Path) -> list[str]:
    names = ("teacher", "student_")
    return [path.stem for path in sorted((run / CHECKPOINTS_DIR).glob("*.pt")) if path.stem.startswith(names)]


def unequal(one: Any, other: Any, place: str = "") -> list[str]:
    """Where two nested structures of plain values and tensors differ, bit by bit; what tells times is left out."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        names = [name for name in {**one, **other} if not str(name).startswith(TIMES)]
        inner = [(one.get(name), other.get(name), f"{place}/{name}") for name in names]
        return [found for first, second, where in inner for found in unequal(first, second, where)]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for number, (first, second) in pairs for found in unequal(first, second, f"{place}/{number}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        same = same and one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()
    else:
        both_nan = isinstance(one, float) and isinstance(other, float) and one != one and other != other
        same = type(one) is type(other) and (one == other or both_nan)
    return [] if same else [place or "all"]


def train(dataset: Path, run: Path, options: Sequence[str], *, kill_after: float | None = None) -> float | None:
    """Train, for so many seconds at most; returns how long it took, None where it was killed.

    Raises:
        SystemExit: the training failed by itself; says why.
    """
    command = [*PROGRAM, "train", str(dataset), "--run", str(run), *COMMON, *options]
    start = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=kill_after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{said[-2000:]}")
    return time.monotonic() - start


@dataclass
class Kills:
    """What came of them.

    Attributes:
        hit: trainings that were killed.
        resumed: of these, those that had left a checkpoint to go on from.
        wrong: of these, and of those that began anew, those that did not come to the same.
    """

    hit: int = 0
    resumed: int = 0
    wrong: int = 0


def check(task: str, dataset: Path, out: Path, kills: int, generator: np.random.Generator) -> Kills:
    """Kill trainings of one bundle and compare.

    Raises:
        SystemExit: a training failed by itself, or wrote nothing to compare.
    """
    _, *epoch = TRAININGS[task]
    reference = out / f"{task}_undisturbed"
    seconds = train(dataset, reference, epoch)
    assert seconds is not None
    if missing := sorted(name for name in WRITTEN[task] if not (reference / name).exists()):
        raise SystemExit(f"{reference} has no {', '.join(missing)}: there is nothing to compare.")
    done = Kills()
    for number in range(kills):
        options = [*epoch, "--num-workers", str(WORKERS[number % len(WORKERS)])]
        run = out / f"{task}_{number}"
        for _ in range(DRAWS):
            moment = (number + generator.random()) / kills * seconds
            killed = train(dataset, run, options, kill_after=moment) is None
            if killed:
                break
            shutil.rmtree(run)
        left = sorted(path.name for path in (run / CHECKPOINTS_DIR).glob("*.pt")) if run.exists() else []
        train(dataset, run, options)
        found = differences(reference, run)
        shutil.rmtree(run)
        done.hit += killed
        done.resumed += killed and "last.pt" in left
        done.wrong += bool(found)
        what = f"{moment:.1f} of {seconds:.1f} s" + ("" if killed else ", it had ended")
        verdict = "yes" if not found else f"**no**: {', '.join(found[:5])}"
        print(
            f"| {task} | {number + 1} | {what} | {options[-1]} | {', '.join(left) or 'none'} | {verdict} |", flush=True
        )
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="of each bundle")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--tasks", nargs="+", choices=list(TRAININGS), default=list(TRAININGS))
    parser.add_argument("--data", type=Path, help="folder of `kdml-med demo`, by task; made where it is not there")
    arguments = parser.parse_args()
    generator = np.random.default_rng(arguments.seed)
    done = []
    with tempfile.TemporaryDirectory() as folder:
        print(
            f"{describe_machine()}\n\n| bundle | kill | at | reading processes | left | the same |\n" + "|---" * 6 + "|"
        )
        for task in arguments.tasks:
            data = (arguments.data or Path(folder)) / task
            dataset = data / TRAININGS[task][0]
            if not (dataset / SPLITS_FILE).exists():
                demo = [*PROGRAM, "demo", "--task", task, "--data-only", "--out", str(data)]
                subprocess.run(demo, check=True, capture_output=True)
            done.append(check(task, dataset, Path(folder), arguments.kills, generator))
    hit, resumed, wrong = (sum(getattr(each, name) for each in done) for name in ("hit", "resumed", "wrong"))
    wanted = arguments.kills * len(done)
    print(f"\n{hit} of {wanted} were killed, {resumed} of them behind a checkpoint; {wrong} were not the same.")
    raise SystemExit(1 if wrong or not all(each.resumed for each in done) else 0)


if __name__ == "__main__":
    main()
