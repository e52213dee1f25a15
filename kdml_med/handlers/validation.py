"""What every validation found, as a table: the loss on validation samples and the figures of every network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator, Trainer
from monai.utils import CommonKeys
from torch import Tensor

from kdml_med.engines import processes
from kdml_med.handlers.losses import write_epoch
from kdml_med.handlers.metrics import UNDEFINED
from kdml_med.keys import HistoryColumn, NetworkName, network_order
from kdml_med.losses.cohort import CohortLoss
from kdml_med.runs import HISTORY_FILE

LOSS_FIGURE = "loss"
"""Name of the validation loss beside the other figures."""
_WEIGHT = "weight"


class ValidationHistory:
    """Adds the validation loss to every validation, and writes history.csv: its figures, epoch by epoch.

    The loss of a network is ``CohortLoss.task_loss`` on the validation samples that have a label, the same function as
    its training loss against the labels. Batches weigh as ``CohortLoss.task_weight`` says, so that it is that of one
    batch of all samples, however these are cut and ordered. It stands as "{network}_loss" beside the evaluator's other
    metrics. A loss of another kind has no task loss, and is left out.

    Attach it behind the handler that runs the validation and before the one that saves the checkpoint: an epoch that is
    repeated after a kill replaces its rows.

    Args:
        run_dir: folder of the run.
        evaluator: validation engine.
    """

    def __init__(self, run_dir: str | Path, evaluator: Evaluator) -> None:
        self.path = Path(run_dir) / HISTORY_FILE
        self.evaluator = evaluator
        self.loss: CohortLoss | None = None
        self.networks: list[str] = []
        self._losses: dict[str, list[Tensor]] = {}
        self._weights: list[Tensor] = []

    def attach(self, engine: Trainer) -> None:
        """Register with the trainer, whose loss is asked, and with the evaluator."""
        self.loss = engine.cohort_loss if isinstance(engine.cohort_loss, CohortLoss) else None
        self.evaluator.add_event_handler(Events.EPOCH_STARTED, self._validation_started)
        self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._batch_validated)
        self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._validated)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)

    def _validation_started(self) -> None:
        self.networks, self._losses, self._weights = [], {}, []

    def _batch_validated(self, engine: Engine) -> None:
        predictions, target = engine.state.output[CommonKeys.PRED], engine.state.output[CommonKeys.LABEL]
        self.networks = list(predictions)
        if self.loss is None:
            return
        count = len(engine.state.output[CommonKeys.IMAGE])
        if isinstance(target, Tensor):
            # Of the labels as they were loaded: to ask those on a GPU would be to wait for it.
            known = (engine.state.batch[CommonKeys.LABEL] >= 0).nonzero().squeeze(1)
            if len(known) < count:
                count, places = len(known), known.to(target.device)
                predictions = {name: answer[places] for name, answer in predictions.items()}
                target = target[places]
        if count == 0:
            return
        with torch.no_grad():
            prepared = self.loss.prepare_target(predictions, target)
            for name, answer in predictions.items():
                self._losses.setdefault(name, []).append(self.loss.task_loss(answer, prepared))
            self._weights.append(self.loss.task_weight(prepared, count))

    def _validated(self, engine: Engine) -> None:
        if self.loss is None:
            return
        # Read once, and summed in double precision.
        losses = {name: torch.stack(values).tolist() for name, values in self._losses.items()}
        weights = torch.stack(self._weights).tolist() if self._weights else []
        least = self.loss.least_weight
        sums = {name: _sum(weights, values, least) for name, values in losses.items()}
        whole = processes.total({**sums, _WEIGHT: sum(weights)})
        weight = max(whole.pop(_WEIGHT), least)
        for name, value in whole.items():
            engine.state.metrics[f"{name}_{LOSS_FIGURE}"] = value / weight

    def _epoch_completed(self, engine: Engine) -> None:
        epoch = engine.state.epoch
        if self.evaluator.state.epoch != epoch or not processes.is_main():
            return  # it was not validated, or another process tells
        rows = [
            (epoch, name, figure, value)
            for name in sorted([*self.networks, NetworkName.ENSEMBLE.value], key=network_order)
            for figure, value in _figures_of(name, self.evaluator.state.metrics).items()
        ]
        write_epoch(self.path, list(HistoryColumn), rows, epoch)


def _sum(weights: Sequence[float], means: Sequence[float], least: float) -> float:
    """What means were before they were divided; that of samples without any weight can be no number."""
    pairs = zip(weights, means, strict=True)
    return sum(max(weight, least) * mean for weight, mean in pairs if weight > 0 or not math.isnan(mean))


def _figures_of(network: str, metrics: dict[str, float]) -> dict[str, float]:
    """Those of one network that are defined, by name; how many samples there were is the same in every epoch."""
    own = {name.removeprefix(f"{network}_"): value for name, value in metrics.items() if name.startswith(f"{network}_")}
    return {
        figure: float(value)
        for figure, value in own.items()
        if value != UNDEFINED
        and math.isfinite(value)
        and not figure.startswith("n_")
        and not figure.endswith(("_n", "_positives"))
    }
