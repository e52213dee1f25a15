"""A training that is killed anywhere and started again comes to the bytes of one that was not."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Events
from monai.handlers import LrScheduleHandler
from monai.optimizers import WarmupCosineSchedule
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kdml_med.data import RandStainJitterd, SampleLoader, TileDataset
from kdml_med.engines import KDMLTrainer
from kdml_med.errors import InputError
from kdml_med.handlers import CohortCheckpoint, CohortTensorBoard, LossHistory
from kdml_med.losses import ClassificationCohortLoss
from kdml_med.networks import build_cohort
from kdml_med.runs import checkpoint_path
from tests.data.folders import write_dataset
from tests.engines.test_trainer import trainer_of
from tests.examples import examples
from tests.networks.tiny import DROPPING

BATCHES = 5
"""Of an epoch of 10 tiles."""
EPOCHS = 2


class Killed(BaseException):
    """Ends a training as a signal does, between two lines."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("tiles"), {"a": ("train", "MSS", 6), "b": ("train", "MSI", 4)})


def disturb(engine: KDMLTrainer) -> None:
    """Stands for parts that draw from the generators of the process."""
    engine.state.batch["image"] += random.random() + np.random.random()


class Countdown:
    """Stands for a feature with a state of its own."""

    def __init__(self) -> None:
        self.left = torch.tensor(100)

    def state_dict(self) -> dict[str, Any]:
        return {"left": self.left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.left = state["left"]

    def step(self) -> None:
        self.left = self.left - 1


def run(
    folder: Path,
    run_dir: Path,
    *,
    stop: int | None = None,
    interval: int = 1,
    epochs: int = EPOCHS,
    accumulate: int = 1,
    keep: int = 1,
    batch_size: int = 2,
    num_workers: int = 0,
    seed: int = 3,
) -> KDMLTrainer:
    """Train, or go on: checkpoints every ``interval`` batches, killed behind iteration ``stop``.

    A run that goes on is given another seed, so that everything random has to come from the checkpoint.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    cohort = build_cohort(seed=seed, teacher=DROPPING, students=[DROPPING, DROPPING])
    dataset = TileDataset(folder, "train", transform=RandStainJitterd("image"), seed=5)
    loader = SampleLoader(dataset, batch_size=batch_size, training=True, seed=5, num_workers=num_workers)
    optimizer = torch.optim.AdamW(cohort.parameter_groups(), lr=1e-2, fused=True)
    schedule = WarmupCosineSchedule(optimizer, warmup_steps=3, t_total=epochs * len(loader), warmup_multiplier=0.1)
    loss = ClassificationCohortLoss(ramp_up_epochs=1)
    trainer = trainer_of(cohort, loader, loss, epochs=epochs, optimizer=optimizer, accumulate=accumulate)
    trainer.add_event_handler(Events.ITERATION_STARTED, disturb)
    trainer.countdown = Countdown()
    trainer.add_event_handler(Events.ITERATION_COMPLETED, trainer.countdown.step)
    board = CohortTensorBoard(run_dir / "tensorboard", optimizer)
    extras = {"countdown": trainer.countdown, "tensorboard": board}
    checkpoint = CohortCheckpoint(
        run_dir, cohort, optimizer, schedule, interval=interval, keep=keep, extras=extras
    )
    for handler in (LrScheduleHandler(schedule, print_lr=False, epoch_level=False), board, LossHistory(run_dir)):
        handler.attach(trainer)
    checkpoint.attach(trainer)

    def kill(engine: KDMLTrainer) -> None:
        if engine.state.iteration == stop:
            raise Killed

    trainer.add_event_handler(Events.ITERATION_COMPLETED, kill)
    clock = SimpleNamespace(monotonic=lambda: 60.0 * trainer.state.iteration)
    with mock.patch("kdml_med.handlers.checkpoint.time", clock):
        trainer.run()
    return trainer


def killed(folder: Path, run_dir: Path, stop: int, **options: Any) -> None:
    with pytest.raises(Killed):
        run(folder, run_dir, stop=stop, **options)


@cache
def uninterrupted(folder: Path, **options: Any) -> dict[str, Any]:
    with TemporaryDirectory() as name:
        trainer = run(folder, Path(name), **options)
        assert trainer.state.iteration == EPOCHS * BATCHES
        return left(Path(name))


def left(run_dir: Path) -> dict[str, Any]:
    """What a run left: bytes of weights and tables, points of TensorBoard."""
    files = [*(run_dir / "checkpoints").iterdir(), run_dir / "losses.csv"]
    return {path.name: path.read_bytes() for path in files} | {"points": list(points(run_dir / "tensorboard"))}


def points(log_dir: Path) -> Iterator[tuple[str, str, list[tuple[int, float]]]]:
    for path in sorted(log_dir.iterdir()):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
        for tag in sorted(events.Tags()["scalars"]):
            yield path.name, tag, [(point.step, point.value) for point in events.Scalars(tag)]


@settings(max_examples=examples(8))
@given(
    st.lists(st.integers(1, EPOCHS * BATCHES - 1), min_size=1, max_size=3, unique=True).map(sorted),
    st.integers(1, 4),
    st.sampled_from([1, 2, 3]),
)
def test_a_run_killed_anywhere_goes_on_to_the_same_bytes(
    folder: Path, stops: list[int], interval: int, accumulate: int
) -> None:
    expected = uninterrupted(folder, accumulate=accumulate, interval=interval)
    with TemporaryDirectory() as name:
        for number, stop in enumerate(stops):
            killed(folder, Path(name), stop, interval=interval, accumulate=accumulate, seed=3 if number == 0 else 4)
        # Nothing that a run from the beginning would draw by itself: it goes on, or was killed before any checkpoint.
        begun = checkpoint_path(Path(name), "last").is_file()
        run(folder, Path(name), interval=interval, accumulate=accumulate, seed=4 if begun else 3)
        found = left(Path(name))
    assert [part for part in expected if found.get(part) != expected[part]] == []
    assert found.keys() == expected.keys()
