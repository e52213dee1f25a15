"""Loss terms of every iteration, read from the device now and then, and their means of every epoch as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from ignite.engine import Engine, Events
from monai.engines import Trainer
from torch import Tensor

from kdml_med.engines import processes
from kdml_med.keys import LossColumn, LossTerm, OutputKey, split_loss_name
from kdml_med.runs import LOSSES_FILE
from kdml_med.storage.files import write_table
from kdml_med.storage.reading import damaged, read_table

_REMEDY = "Delete it to go on without the rows of earlier epochs."
Listener = Callable[[int, Mapping[str, float]], None]


def read_interval(device: torch.device) -> int:
    """Iterations between two readings of loss terms: on a GPU each waits for everything that was computed before."""
    return 1 if device.type == "cpu" else 20


class EpochMeans:
    """Mean of every loss term over the iterations of an epoch, not weighted; one for all handlers of a trainer.

    Terms stay on their device until those of ``read_interval`` iterations are read all at once, at the end of an
    epoch what is left. Sums are in double precision, in the order of the iterations. Where several processes train
    together, terms are means over them, and all of them read at the same iterations.

    Attributes:
        latest: the terms of the last iteration that was read, by loss name.
    """

    def __init__(self) -> None:
        self.iterations = 0
        self.sums: dict[str, float] = {}
        self.latest: dict[str, float] = {}
        self._waiting: list[tuple[int, tuple[str, ...], Tensor]] = []
        self._listeners: list[Listener] = []

    @classmethod
    def of(cls, engine: Trainer) -> Self:
        """That of a trainer; whoever asks first attaches it, and so before all that ask it in its events."""
        means: Self | None = getattr(engine, "epoch_means", None)
        if means is None:
            means = engine.epoch_means = cls()
            engine.add_event_handler(Events.EPOCH_STARTED, means._epoch_started)
            engine.add_event_handler(Events.ITERATION_COMPLETED, means._iteration_completed)
            engine.add_event_handler(Events.EPOCH_COMPLETED, means.read)
        return means

    def listen(self, listener: Listener) -> None:
        """Have a function called with the number and the terms of every iteration when these are read, in order."""
        self._listeners.append(listener)

    def values(self) -> dict[str, float]:
        """By loss name, of what was read of the epoch so far; "loss" is the sum that is back-propagated."""
        return {name: total / self.iterations for name, total in self.sums.items()}

    def read(self) -> None:
        """Take all terms that wait on the device into account; all processes call it."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        values = iter(processes.mean(torch.cat([terms for _, _, terms in waiting])).tolist())
        for iteration, names, _ in waiting:
            self._take(iteration, {name: next(values) for name in names})

    def state_dict(self) -> dict[str, Any]:
        """What a run that is stopped in the middle of an epoch goes on with; all processes call it."""
        self.read()
        return {"iterations": self.iterations, "sums": dict(self.sums)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the epoch of a state; an epoch that is started from its beginning takes nothing from it."""
        self.iterations, self.sums, self._waiting = state["iterations"], dict(state["sums"]), []

    def _epoch_started(self, engine: Engine) -> None:
        length = engine.state.epoch_length
        if not length or engine.state.iteration % length == 0:
            self.iterations, self.sums, self._waiting = 0, {}, []

    def _iteration_completed(self, engine: Engine) -> None:
        terms = engine.state.output[OutputKey.LOSS_TERMS]
        self._waiting.append((engine.state.iteration, tuple(terms), torch.stack(list(terms.values()))))
        if len(self._waiting) >= read_interval(self._waiting[-1][2].device):
            self.read()

    def _take(self, iteration: int, terms: dict[str, float]) -> None:
        self.iterations += 1
        self.latest = terms
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        for listener in self._listeners:
            listener(iteration, terms)


class LossHistory:
    """Writes losses.csv: for each epoch, network and term the unweighted mean and the weight in force.

    The weight is what the loss tells in ``term_weights``; 1 for a term of which it tells nothing.

    TensorBoard shows the same per iteration; this is the short form that a report can read in a moment. Attach it
    before the handler that saves the checkpoint: an epoch that is repeated after a kill replaces its rows.

    Args:
        run_dir: folder of the run.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.path = Path(run_dir) / LOSSES_FILE

    def attach(self, engine: Trainer) -> None:
        """Register with the trainer."""
        EpochMeans.of(engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)

    def _epoch_completed(self, engine: Trainer) -> None:
        weights_of: Callable[[str], dict[str, float]] = getattr(engine.cohort_loss, "term_weights", lambda _: {})
        means = EpochMeans.of(engine)
        rows = []
        for name, value in means.values().items():
            if name == LossTerm.LOSS:
                continue
            network, term = split_loss_name(name)
            weight = weights_of(network).get(term, 1.0)
            rows.append((engine.state.epoch, means.iterations, network, term, weight, value))
        if processes.is_main():
            write_epoch(self.path, list(LossColumn), rows, engine.state.epoch)


def write_epoch(path: Path, columns: Sequence[str], rows: Sequence[tuple[Any, ...]], epoch: int) -> None:
    """Write rows of an epoch to a table, behind those of earlier epochs; any of this epoch or later ones go.

    Args:
        path: CSV file; made when absent.
        columns: of the table, "epoch" among them.
        rows: of this epoch.
        epoch: that the rows are of.

    Raises:
        InputError: the file is damaged, or cannot be written.
    """
    # As text: numbers that are read and written again keep every digit.
    table = pd.DataFrame(rows, columns=[str(column) for column in columns]).astype(str)
    if path.is_file():
        earlier = read_table(path, list(table.columns), remedy=_REMEDY)
        with damaged(path, remedy=_REMEDY):
            earlier = earlier[earlier[LossColumn.EPOCH].astype(int) < epoch]
        table = pd.concat([earlier[table.columns], table])
    write_table(path, table)
