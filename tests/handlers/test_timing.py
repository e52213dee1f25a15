"""Parts of a training by a clock that the test moves, and the trace of a profile."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from torch import Tensor, nn

from kdml_med.data.sampling import EpochSampler
from kdml_med.handlers import ClassificationTensorBoard, CohortCheckpoint, StepProfile, StepTimes, checkpoint, timing
from kdml_med.handlers.tensorboard import CohortTensorBoard
from kdml_med.losses import ClassificationCohortLoss
from kdml_med.networks import build_cohort
from tests.engines.test_trainer import batches, equal_states, trainer_of
from tests.networks.tiny import TINY


class Clock:
    """Time that passes where the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    own = Clock()
    monkeypatch.setattr(timing, "time", own)
    return own


class Network(nn.Module):
    """Answers after two seconds; its gradient takes four."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.weight = nn.Parameter(torch.ones(()))
        self.weight.register_hook(lambda _: clock.spend(4))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        self.clock.spend(2)
        return {"student_0": image.mean() * self.weight}


class Batches:
    """Ten samples in three batches, a second for each."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for size in (4, 4, 2):
            self.clock.spend(1)
            yield {"image": torch.ones(size, 3, 4, 4), "label": torch.zeros(size, dtype=torch.int64)}


def timed(clock: Clock, *, epochs: int) -> tuple[StepTimes, list[dict[str, float]]]:
    """Train with three seconds of loss, five of update, six of metrics, ten of validation and seven of saving."""
    network = Network(clock)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: clock.spend(5))

    def loss(predictions: dict[str, Tensor], _: Tensor) -> dict[str, Tensor]:
        clock.spend(3)
        return {"student_0_task": predictions["student_0"], "loss": predictions["student_0"]}

    evaluator = Engine(lambda *_: clock.spend(5))
    times = StepTimes("tiles", evaluator)
    trainer = trainer_of(network, Batches(clock), loss, epochs=epochs, optimizer=optimizer, train_handlers=[times])
    seen: list[dict[str, float]] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, clock.spend, 6)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([0, 1]))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append(times.last_epoch()))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, clock.spend, 7)
    trainer.run()
    clock.spend(1000)
    evaluator.run([0])  # of the finished run
    return times, seen


def test_every_second_belongs_to_one_part(clock: Clock) -> None:
    times, epochs = timed(clock, epochs=2)
    step = {"data": 1, "forward": 2, "loss": 3, "backward": 4, "update": 5, "metrics": 6}
    per_step = {f"{part}_seconds": pytest.approx(value) for part, value in step.items()}
    expected = per_step | {"steps_per_second": pytest.approx(1 / 21), "tiles_per_second": pytest.approx(10 / 63)}
    assert epochs == [expected] * 2
    summary = times.summary()
    assert summary["seconds"] == pytest.approx(
        {part: 6 * value for part, value in step.items()} | {"validation": 20, "saving": 14}
    )
    assert summary["steps"] == 6
    assert summary["epoch_over_steps"] == pytest.approx((126 + 14) / 126)
    assert {name: summary[name] for name in expected} == expected


class Loader(list[dict[str, Tensor]]):
    """Batches of which a training can begin behind any; ten samples of all processes."""

    def __init__(self, batches: list[dict[str, Tensor]]) -> None:
        super().__init__(batches)
        self.sampler = EpochSampler(range(10), batch_size=4)


def test_checkpoints_within_an_epoch_are_no_part_of_its_steps(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """20 s for a file: ``last.pt`` behind two of three steps and, with the two of the best, behind the epoch."""
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(checkpoint, "write_checkpoint", lambda *_: clock.spend(20))
    cohort = build_cohort(students=[TINY], use_teacher=False)
    optimizer = torch.optim.SGD(cohort.parameters(), lr=0.1)
    times = StepTimes()
    handlers = [times, CohortCheckpoint(tmp_path, cohort, optimizer, interval=1e-9)]
    loss = ClassificationCohortLoss(beta=0.0)
    trainer = trainer_of(cohort, Loader(batches(3)), loss, optimizer=optimizer, train_handlers=handlers)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, clock.spend, 6)
    trainer.run()
    summary = times.summary()
    assert {part: value for part, value in summary["seconds"].items() if value} == {"metrics": 18, "saving": 100}
    assert summary["steps_per_second"] == pytest.approx(3 / 18)


@pytest.mark.parametrize(("sampled", "samples"), [(False, 3 * 12), (True, 10)])
def test_samples_are_those_of_all_processes(
    sampled: bool, samples: int, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main process has the largest share of a batch; ``EpochSampler`` knows how many all have together."""
    monkeypatch.setattr(timing, "world_size", lambda: 3)
    cohort = build_cohort(students=[TINY], use_teacher=False)
    own = [
        {name: part[:size] for name, part in batch.items()} for batch, size in zip(batches(3), (2, 2, 1), strict=True)
    ]
    data: list[dict[str, Tensor]] = Loader(own) if sampled else [{k: v[:4] for k, v in b.items()} for b in batches(3)]
    times = StepTimes()
    loss = ClassificationCohortLoss(beta=0.0)
    trainer = trainer_of(cohort.eval(), data, loss, train_handlers=[times])
    trainer.add_event_handler(Events.ITERATION_COMPLETED, clock.spend, 1)
    trainer.run()
    assert times.summary()["samples_per_second"] == pytest.approx(samples / 3)


def test_curves_are_written_behind_the_step(clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A second for each event; the rate of a step is that before the schedule moves it."""
    rates: list[tuple[int, float]] = []

    def write(_: CohortTensorBoard, run: str, values: dict[str, float], step: int) -> None:
        clock.spend(1)
        rates.extend((step, value) for tag, value in values.items() if tag == "train/learning_rate")

    monkeypatch.setattr(CohortTensorBoard, "write_scalars", write)
    cohort = build_cohort(students=[TINY], use_teacher=False)
    optimizer = torch.optim.SGD(cohort.parameters(), lr=0.5)
    times = StepTimes()
    handlers = [times, ClassificationTensorBoard(tmp_path, optimizer)]
    loss = ClassificationCohortLoss(beta=0.0)
    trainer = trainer_of(cohort, batches(3), loss, optimizer=optimizer, train_handlers=handlers)

    @trainer.on(IterationEvents.MODEL_COMPLETED)
    def _schedule() -> None:
        optimizer.param_groups[0]["lr"] /= 2

    trainer.run()
    assert {part for part, value in times.summary()["seconds"].items() if value} == {"metrics", "saving"}
    assert rates == [(1, 0.5), (2, 0.25), (3, 0.125)]


def test_nothing_is_told_of_a_training_that_had_nothing_to_do(clock: Clock) -> None:
    assert StepTimes().summary() == {}
    assert StepTimes().last_epoch() == {}


def test_long_epochs_are_read_before_their_end(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = timed(clock, epochs=2)
    monkeypatch.setattr(timing, "_READ_AFTER", 4)
    often, _ = timed(clock, epochs=2)
    assert often.summary() == whole.summary()


def profiled(folder: Path | None, count: int, **how: int) -> nn.Module:
    cohort = build_cohort(seed=3, students=[TINY], use_teacher=False)
    handlers = [StepProfile(folder, **how)]
    trainer_of(cohort, batches(count), ClassificationCohortLoss(beta=0.0), train_handlers=handlers).run()
    return cohort


def test_a_profile_has_the_parts_of_some_steps_and_changes_nothing(tmp_path: Path) -> None:
    cohort = profiled(tmp_path / "profile", 5, skip=1, steps=2)
    names = [event.get("name") for event in json.loads((tmp_path / "profile/trace.json").read_text())["traceEvents"]]
    for part in ("data", "forward", "loss", "backward", "update", "metrics"):
        assert names.count(f"step: {part}") == 2, part
    assert "aten::" in (tmp_path / "profile/operators.txt").read_text()
    assert equal_states(cohort, profiled(None, 5))


def test_a_profile_ends_with_the_epoch(tmp_path: Path) -> None:
    profiled(tmp_path, 3, skip=1, steps=20)
    names = [event.get("name") for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]]
    assert names.count("step: backward") == 2


def test_a_training_too_short_for_a_profile_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        profiled(tmp_path / "profile", 2)
    assert "over after 2 steps, too few for a profile" in caplog.text
    assert not (tmp_path / "profile").exists()
