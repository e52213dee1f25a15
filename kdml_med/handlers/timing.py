"""How long the parts of training take."""

from __future__ import annotations

import time
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import torch
from ignite.engine import Engine, EventEnum, Events
from monai.engines import Evaluator, IterationEvents, Trainer
from monai.utils import CommonKeys

from kdml_med.data.sampling import EpochSampler
from kdml_med.engines.processes import world_size

Moment = float | torch.cuda.Event
_READ_AFTER = 3000  # moments, some hundred steps


class Part(StrEnum):
    """What a training spends its time on."""

    DATA = "data"
    """Waiting for a batch."""
    FORWARD = "forward"
    """Sending the batch to the device, and the answers of all networks."""
    LOSS = "loss"
    BACKWARD = "backward"
    UPDATE = "update"
    """Of the weights."""
    METRICS = "metrics"
    """Everything that handlers do after a step: schedule, curves, progress."""
    VALIDATION = "validation"
    SAVING = "saving"
    """Pictures, tables, averages and checkpoints at the end of an epoch, and checkpoints within it."""


class SavingEvents(EventEnum):
    """Fired by a trainer whose handler saves among the steps of an epoch, which is no part of them."""

    SAVING_STARTED = "saving_started"
    SAVING_COMPLETED = "saving_completed"


STEP_PARTS = (Part.DATA, Part.FORWARD, Part.LOSS, Part.BACKWARD, Part.UPDATE, Part.METRICS)
_ENDS: Mapping[Any, Part] = {
    Events.GET_BATCH_COMPLETED: Part.DATA,
    IterationEvents.FORWARD_COMPLETED: Part.FORWARD,
    IterationEvents.LOSS_COMPLETED: Part.LOSS,
    IterationEvents.BACKWARD_COMPLETED: Part.BACKWARD,
    IterationEvents.MODEL_COMPLETED: Part.UPDATE,
    Events.EPOCH_COMPLETED: Part.METRICS,
    SavingEvents.SAVING_STARTED: Part.METRICS,
    SavingEvents.SAVING_COMPLETED: Part.SAVING,
}
"""The events of a trainer that a part ends with, but for ``GET_BATCH_STARTED``."""


class StepTimes:
    """Measures how long training spends on each ``Part``.

    Everything between two moments belongs to the part that the second one ends, so that the parts add up to the whole.
    On a GPU moments are those of its own work, not of the program that runs ahead of it, and are read now and then.
    Attach it before all other handlers: what these do in an event then counts to the next part.

    Args:
        samples: what to call samples: "tiles" or "frames".
        evaluator: validation engine; None where there is none.
    """

    def __init__(self, samples: str = "samples", evaluator: Evaluator | None = None) -> None:
        self.samples, self.evaluator = samples, evaluator
        self._total = _Spent()
        self._epoch = _Spent()
        self._moments: list[tuple[Part | None, Moment]] = []
        self._cuda = False

    def attach(self, engine: Trainer) -> None:
        """Register with the trainer, and with the evaluator where there is one."""
        self._cuda = engine.state.device.type == "cuda"
        engine.register_events(*SavingEvents)
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._batch_wanted)
        for event, part in _ENDS.items():
            engine.add_event_handler(event, self._mark, part)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.COMPLETED, self._completed)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.STARTED, self._validation, Part.SAVING)
            self.evaluator.add_event_handler(Events.COMPLETED, self._validation, Part.VALIDATION)

    def last_epoch(self) -> dict[str, float]:
        """Steps and samples per second, and the seconds of each part in a mean step; empty before the first step."""
        self._read()
        return self._epoch.per_step(self.samples)

    def summary(self) -> dict[str, Any]:
        """Of everything since training was started, or went on: as ``last_epoch``, and the seconds of all parts.

        "epoch_over_steps" is the whole time but for validation, divided by that of the steps.
        """
        self._read()
        return self._total.per_step(self.samples) | self._total.whole()

    def _epoch_started(self, engine: Engine) -> None:
        self._mark(engine, Part.SAVING if self._total.steps else None)
        self._read()
        self._epoch = _Spent()

    def _batch_wanted(self, engine: Engine) -> None:
        # Before the first batch of an epoch nothing was trained, but reading processes are started.
        self._mark(engine, Part.METRICS if self._epoch.steps else Part.DATA)

    def _completed(self, engine: Engine) -> None:
        self._mark(engine, Part.SAVING)
        self._read()
        self._moments = []

    def _mark(self, _: Engine, part: Part | None) -> None:
        moment: Moment
        if self._cuda:
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        else:
            moment = time.perf_counter()
        self._moments.append((part, moment))

    def _validation(self, engine: Engine, part: Part) -> None:
        if self._moments:  # else it is an evaluation outside of the training
            self._mark(engine, part)

    def _iteration_completed(self, engine: Trainer) -> None:
        samples = _samples(engine)
        for spent in (self._epoch, self._total):
            spent.steps += 1
            spent.samples += samples
        if len(self._moments) > _READ_AFTER:
            self._read()

    def _read(self) -> None:
        if not self._moments:
            return
        *_, (_, last) = self._moments
        if isinstance(last, torch.cuda.Event):
            last.synchronize()
        for (_, start), (part, end) in zip(self._moments, self._moments[1:], strict=False):
            if part is not None:
                for spent in (self._epoch, self._total):
                    spent.seconds[part] += _between(start, end)
        self._moments = [(None, last)]


def _samples(engine: Trainer) -> int:
    """Of the batch that was trained, in all processes together."""
    sampler = EpochSampler.of(engine.data_loader)
    if sampler is not None:
        return sampler.size_of((engine.state.iteration - 1) % engine.state.epoch_length)
    return len(engine.state.output[CommonKeys.IMAGE]) * world_size()


def _between(start: Moment, end: Moment) -> float:
    if isinstance(start, torch.cuda.Event):
        assert isinstance(end, torch.cuda.Event)
        return float(start.elapsed_time(end)) / 1000
    assert isinstance(end, float)
    return end - start


class _Spent:
    """Steps, samples and seconds by part."""

    def __init__(self) -> None:
        self.steps = self.samples = 0
        self.seconds = dict.fromkeys(Part, 0.0)

    def per_step(self, samples: str) -> dict[str, float]:
        in_steps = self._in_steps()
        if not in_steps:
            return {}
        rates = {"steps_per_second": self.steps / in_steps, f"{samples}_per_second": self.samples / in_steps}
        return rates | {f"{part}_seconds": self.seconds[part] / self.steps for part in STEP_PARTS}

    def whole(self) -> dict[str, Any]:
        in_steps = self._in_steps()
        if not in_steps:
            return {}
        return {
            "steps": self.steps,
            "seconds": {str(part): value for part, value in self.seconds.items()},
            "epoch_over_steps": (in_steps + self.seconds[Part.SAVING]) / in_steps,
        }

    def _in_steps(self) -> float:
        return sum(self.seconds[part] for part in STEP_PARTS)
