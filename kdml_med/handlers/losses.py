"""Mean loss terms of every epoch as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from ignite.engine import Engine, Events
from monai.engines import Trainer

from kdml_med.keys import LossColumn, LossTerm, OutputKey, split_loss_name
from kdml_med.runs import LOSSES_FILE
from kdml_med.storage.files import write_table
from kdml_med.storage.reading import damaged, read_table

_REMEDY = "Delete it to go on without the rows of earlier epochs."


class EpochMeans:
    """Mean of every loss term over the iterations of an epoch, not weighted."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.iterations = 0

    def attach(self, engine: Trainer) -> None:
        """Register with the trainer; before those who ask at the end of an iteration or an epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)

    def values(self) -> dict[str, float]:
        """By loss name, of what has run so far; "loss" is the sum that is back-propagated."""
        return {name: total / self.iterations for name, total in self.sums.items()}

    def _epoch_started(self) -> None:
        self.sums, self.iterations = {}, 0

    def _iteration_completed(self, engine: Engine) -> None:
        self.iterations += 1
        for name, value in engine.state.output[OutputKey.LOSS_TERMS].items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)


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
        self.means = EpochMeans()

    def attach(self, engine: Trainer) -> None:
        """Register with the trainer."""
        self.means.attach(engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)

    def _epoch_completed(self, engine: Engine) -> None:
        weights_of: Callable[[str], dict[str, float]] = getattr(engine.cohort_loss, "term_weights", lambda _: {})
        rows = []
        for name, value in self.means.values().items():
            if name == LossTerm.LOSS:
                continue
            network, term = split_loss_name(name)
            weight = weights_of(network).get(term, 1.0)
            rows.append((engine.state.epoch, self.means.iterations, network, term, weight, value))
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
