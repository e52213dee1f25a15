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
        self.sums: dict[str, float] = {}

    def attach(self, engine: Trainer) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)

    def _epoch_started(self) -> None:
        self.sums = {}

    def _iteration_completed(self, engine: Engine) -> None:
        for name, value in engine.state.output[OutputKey.LOSS_TERMS].items():
            if name != LossTerm.LOSS:
                self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def _epoch_completed(self, engine: Engine) -> None:
        weights_of: Callable[[str], dict[str, float]] = getattr(engine.cohort_loss, "term_weights", lambda _: {})
        iterations = engine.state.epoch_length
        rows = []
        for name, total in self.sums.items():
            network, term = split_loss_name(name)
            weight = weights_of(network).get(term, 1.0)
            rows.append((engine.state.epoch, iterations, network, term, weight, total / iterations))
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
