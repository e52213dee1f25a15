"""A training that is killed anywhere and started again comes to the bytes of one that was not."""

from __future__ import annotations

import logging
import random
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Events
from monai.optimizers import WarmupCosineSchedule
from torch.optim.optimizer import register_optimizer_step_pre_hook

from kdml_med.data import RandStainJitterd, SampleLoader, TileDataset
from kdml_med.engines import KDMLTrainer
from kdml_med.errors import InputError
from kdml_med.handlers import CohortCheckpoint, CohortTensorBoard, LossHistory, UpdateSchedule
from kdml_med.losses import ClassificationCohortLoss
from kdml_med.networks import build_cohort
from kdml_med.networks.registry import NetworkSpec
from kdml_med.runs import checkpoint_path
from tests.data.folders import write_dataset
from tests.engines.test_trainer import trainer_of
from tests.examples import examples
from tests.kills import Killed, train_until
from tests.networks.tiny import DROPPING
from tests.results import points

BATCHES = 5
"""Of an epoch of 10 tiles."""
EPOCHS = 2


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
    batch_size: int = 2,
    num_workers: int = 0,
    teacher: NetworkSpec = DROPPING,
    views: int = 1,
    warmup: int = 0,
    **checkpoints: Any,
) -> KDMLTrainer:
    """Train, or go on: checkpoints every ``interval`` batches, killed behind iteration ``stop``.

    A run that goes on is given another seed, so that everything random has to come from the checkpoint.
    """
    seed = 4 if checkpoint_path(run_dir, "last").is_file() else 3
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    cohort = build_cohort(seed=seed, teacher=teacher, students=[DROPPING, DROPPING])
    dataset = TileDataset(folder, "train", transform=RandStainJitterd("image"), seed=5)
    loader = SampleLoader(dataset, batch_size=batch_size, training=True, seed=5, num_workers=num_workers, views=views)
    optimizer = torch.optim.AdamW(cohort.parameter_groups(), lr=1e-2, fused=True)
    schedule = WarmupCosineSchedule(optimizer, warmup_steps=3, t_total=epochs * len(loader), warmup_multiplier=0.1)
    loss = ClassificationCohortLoss(ramp_up_epochs=1, teacher_warmup_epochs=warmup)
    trainer = trainer_of(cohort, loader, loss, epochs=epochs, optimizer=optimizer, accumulate=accumulate)
    trainer.add_event_handler(Events.ITERATION_STARTED, disturb)
    trainer.countdown = Countdown()
    trainer.add_event_handler(Events.ITERATION_COMPLETED, trainer.countdown.step)
    board = CohortTensorBoard(run_dir / "tensorboard", optimizer)
    extras = {"countdown": trainer.countdown, "tensorboard": board}
    checkpoint = CohortCheckpoint(run_dir, cohort, optimizer, schedule, interval=interval, extras=extras, **checkpoints)
    for handler in (UpdateSchedule(schedule), board, LossHistory(run_dir)):
        handler.attach(trainer)
    checkpoint.attach(trainer)

    train_until(trainer, stop)
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
    return {path.name: path.read_bytes() for path in files} | {"points": points(run_dir / "tensorboard")}


@settings(max_examples=examples(8))
@given(
    st.lists(st.integers(1, EPOCHS * BATCHES - 1), min_size=1, max_size=3, unique=True).map(sorted),
    st.integers(1, 4),
    st.sampled_from([1, 2, 3]),
)
def test_a_run_killed_anywhere_goes_on_to_the_same_bytes(
    folder: Path, stops: list[int], interval: int, accumulate: int
) -> None:
    with TemporaryDirectory() as name:
        for stop in stops:
            killed(folder, Path(name), stop, interval=interval, accumulate=accumulate)
        run(folder, Path(name), interval=interval, accumulate=accumulate)
        found, expected = left(Path(name)), uninterrupted(folder, accumulate=accumulate)
    assert [part for part in expected if found.get(part) != expected[part]] == []
    assert found.keys() == expected.keys()


@pytest.mark.parametrize("stop", [2, 5, 8])
def test_a_committee_views_and_a_head_start_go_on_to_the_same_bytes(folder: Path, tmp_path: Path, stop: int) -> None:
    options = {"teacher": {"name": "committee", "members": [DROPPING, DROPPING]}, "views": 2, "warmup": 1}
    run(folder, tmp_path / "whole", **options)
    killed(folder, tmp_path / "killed", stop, **options)
    run(folder, tmp_path / "killed", **options)
    assert left(tmp_path / "killed") == left(tmp_path / "whole")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_reading_processes_go_on_behind_the_last_checkpoint(
    folder: Path, tmp_path: Path, num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    killed(folder, tmp_path, 8, interval=2, num_workers=2 - num_workers)
    with caplog.at_level(logging.INFO):
        trainer = run(folder, tmp_path, interval=2, num_workers=num_workers)
    assert "Going on behind batch 2 of 5 in epoch 2 of " in caplog.text
    assert trainer.countdown.left == 100 - EPOCHS * BATCHES
    assert left(tmp_path) == uninterrupted(folder)


def test_without_an_interval_an_epoch_is_repeated_to_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    killed(folder, tmp_path, 9, interval=0)
    run(folder, tmp_path, interval=0)
    assert left(tmp_path) == uninterrupted(folder)


def test_gradients_that_wait_for_more_batches_are_no_place_to_stop_at(folder: Path, tmp_path: Path) -> None:
    killed(folder, tmp_path, 2, accumulate=3)
    assert not checkpoint_path(tmp_path, "last").exists()
    killed(folder, tmp_path, 4, accumulate=3)
    position = torch.load(checkpoint_path(tmp_path, "last"), weights_only=True)["position"]
    assert position == {"epoch": 0, "batches": 3, "samples": 6}


def test_several_processes_ask_for_the_time_wherever_their_updates_fall(folder: Path, tmp_path: Path) -> None:
    """In the second epoch of 5 batches updates are behind batches 7 and 9, neither of which 2 divides."""
    with (
        mock.patch("kdml_med.handlers.checkpoint.world_size", return_value=2),
        mock.patch("kdml_med.handlers.checkpoint._BATCHES_BETWEEN_QUESTIONS", 2),
    ):
        killed(folder, tmp_path, 9, accumulate=2)
    position = torch.load(checkpoint_path(tmp_path, "last"), weights_only=True)["position"]
    assert position == {"epoch": 1, "batches": 4, "samples": 8}


def test_older_checkpoints_stay_and_can_be_gone_back_to(folder: Path, tmp_path: Path) -> None:
    killed(folder, tmp_path, 8, keep=3)
    names = {path.name for path in (tmp_path / "checkpoints").glob("step_*.pt")}
    assert names == {"step_00000006.pt", "step_00000007.pt"}
    shutil.copy(tmp_path / "checkpoints/step_00000006.pt", checkpoint_path(tmp_path, "last"))
    killed(folder, tmp_path, 7, keep=3)
    names = {path.name for path in (tmp_path / "checkpoints").glob("step_*.pt")}
    assert names == {"step_00000006.pt"}  # the future that was left is not kept as a past
    run(folder, tmp_path)
    assert left(tmp_path) == uninterrupted(folder)


def test_a_file_system_without_second_names_keeps_copies(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    killed(folder, tmp_path, 4, keep=2)
    assert not list(tmp_path.rglob("*.part"))
    shutil.copy(tmp_path / "checkpoints/step_00000003.pt", checkpoint_path(tmp_path, "last"))
    run(folder, tmp_path)
    assert left(tmp_path) == uninterrupted(folder)


def test_a_checkpoint_of_an_earlier_version_goes_on_behind_its_epoch(folder: Path, tmp_path: Path) -> None:
    killed(folder, tmp_path, 7, interval=0)
    path = checkpoint_path(tmp_path, "last")
    state = torch.load(path, weights_only=True)
    old = {name: state[name] for name in ("network", "optimizer", "scheduler", "best_metric", "best_metric_epoch")}
    torch.save(old | {"epoch": 1, "scaler": {}, "random": {"cpu": state["random"]["cpu"], "cuda": []}}, path)
    trainer = run(folder, tmp_path)
    assert trainer.state.iteration == EPOCHS * BATCHES
    expected = uninterrupted(folder)["points"]
    steps, wanted = (
        {tag: [step for step, _ in own] for tag, own in curves.items()}
        for curves in (left(tmp_path)["points"], expected)
    )
    assert steps == wanted


def test_other_batches_in_the_middle_of_an_epoch_are_refused(folder: Path, tmp_path: Path) -> None:
    killed(folder, tmp_path, 3)
    with pytest.raises(InputError, match=r"in the middle of an epoch, behind 6 samples in 3 batches, and .* other"):
        run(folder, tmp_path, batch_size=5)


def test_weights_that_are_no_numbers_are_not_saved(folder: Path, tmp_path: Path) -> None:
    def spoil(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        (weight, *_) = (group for group in optimizer.param_groups if group["name"] == "student_1")
        steps.append(1)
        if len(steps) == 3:
            weight["params"][0].grad.fill_(float("inf"))

    steps: list[int] = []
    handle = register_optimizer_step_pre_hook(spoil)
    try:
        with pytest.raises(FloatingPointError) as caught:
            run(folder, tmp_path)
    finally:
        handle.remove()
    path = checkpoint_path(tmp_path, "last")
    assert str(caught.value).startswith(
        "weights of student_1 are no numbers behind batch 3 of 5 in epoch 1, and not saved. The checkpoint before "
        f"it is {path} (behind batch 2 of 5 in epoch 1). Start again"
    )
    state = torch.load(path, weights_only=True)
    assert state["position"]["batches"] == 2
    assert all(value.isfinite().all() for value in state["network"].values())
