"""A trace of some training steps."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents, Trainer
from torch.profiler import ProfilerActivity, profile, record_function

from kdml_med.engines.processes import is_main
from kdml_med.handlers.timing import Part
from kdml_med.storage.files import write_atomically, writing

logger = logging.getLogger(__name__)

TRACE_FILE, OPERATORS_FILE = "trace.json", "operators.txt"
_ROWS = 40
# The part that each event ends, and the one that it begins.
_BEGINS = {
    Events.GET_BATCH_STARTED: Part.DATA,
    Events.ITERATION_STARTED: Part.FORWARD,
    IterationEvents.FORWARD_COMPLETED: Part.LOSS,
    IterationEvents.LOSS_COMPLETED: Part.BACKWARD,
    IterationEvents.BACKWARD_COMPLETED: Part.UPDATE,
    IterationEvents.MODEL_COMPLETED: Part.METRICS,
}


class StepProfile:
    """Writes what torch's profiler sees of some steps, with the parts of a step named in it.

    Two files: trace.json, for chrome://tracing or https://ui.perfetto.dev, and operators.txt, the operators that took
    longest. The first steps of a run are left out, in which libraries choose their kernels and memory is asked for.

    Args:
        folder: where the files go, replacing those of an earlier run; None profiles nothing.
        skip: steps that are left out.
        steps: to be profiled; training goes on afterwards as always.
    """

    def __init__(self, folder: str | Path | None = None, *, skip: int = 3, steps: int = 5) -> None:
        self.folder = None if folder is None else Path(folder)
        self.skip, self.steps = skip, steps
        self._seen = self._profiled = 0
        self._profile: profile | None = None
        self._part: record_function | None = None

    def attach(self, engine: Trainer) -> None:
        """Register with the trainer."""
        if self.folder is None or not is_main():
            return
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._step_started)
        for event, part in _BEGINS.items():
            engine.add_event_handler(event, self._begin, part)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._stop)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def _step_started(self) -> None:
        if self._profile is None and self._seen == self.skip:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities, acc_events=True)
            self._profile.start()
        elif self._seen == self.skip + self.steps:
            self._stop()
        self._seen += 1

    def _begin(self, _: Engine, part: Part) -> None:
        self._end_part()
        if self._profile is not None:
            self._part = record_function(f"step: {part}")
            self._part.__enter__()

    def _end_part(self) -> None:
        if self._part is not None:
            self._part.__exit__(None, None, None)
            self._part = None

    def _stop(self) -> None:
        """Write the files; also of fewer steps, where an epoch ends before, whose end is no part of a step."""
        if self._profile is None or self.folder is None:
            return
        self._end_part()
        found, self._profile = self._profile, None
        self._profiled = min(self._seen - self.skip, self.steps)
        self._seen = self.skip + self.steps + 1
        found.stop()
        with writing(self.folder / TRACE_FILE) as path:
            found.export_chrome_trace(str(path))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        table = found.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=_ROWS)
        write_atomically(self.folder / OPERATORS_FILE, table.encode())
        logger.info("Profile of %d steps: %s.", self._profiled, self.folder)

    def _completed(self) -> None:
        if not self._profiled:
            logger.warning("--profile: the training was over after %d steps, too few for a profile.", self._seen)
