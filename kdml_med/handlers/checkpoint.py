"""Checkpoints that a killed run can go on from, and that load with ``weights_only``."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator, Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kdml_med.networks.cohort import Cohort
from kdml_med.runs import checkpoint_path, read_checkpoint
from kdml_med.storage.files import write_atomically
from kdml_med.storage.reading import damaged

logger = logging.getLogger(__name__)

_LAST: dict[str, type | tuple[type, ...]] = {
    "network": Mapping,
    "optimizer": Mapping,
    "scheduler": (Mapping, type(None)),
    "epoch": int,
    "best_metric": float,
    "best_metric_epoch": int,
    "scaler": Mapping,
    "random": Mapping,
}
_REMEDY = "Delete it to train from the beginning, or name another --run_dir."
# The length of the schedule follows from max_epochs, which a resumed run may raise.
_SCHEDULE_SETTINGS = ("t_total", "warmup_steps", "end_lr", "cycles", "warmup_multiplier")


class CohortCheckpoint:
    """Saves the last epoch and the best one, and goes on from the last when training starts.

    MONAI's CheckpointSaver is not used because a resumed run could overwrite the best model with a worse one, a NaN
    in the first epoch would stay best for ever, and its files are not written atomically.

    After every epoch: ``last.pt`` (networks, optimizer, schedule, best value, random state). Whenever the evaluator's
    key metric is at least as good as before: ``best.pt`` (networks, epoch, metric) and one plain state dict for each
    network, ``student_0.pt`` and so on. Attach it behind the handler that runs the validation.

    Args:
        run_dir: folder of the run.
        network: the cohort.
        optimizer: the cohort's optimizer.
        scheduler: its learning-rate schedule.
        evaluator: validation engine, whose ``best_metric`` decides; None keeps the last epoch as the best.
        resume: go on from ``last.pt`` where there is one.
    """

    def __init__(
        self,
        run_dir: str | Path,
        network: Cohort,
        optimizer: Optimizer,
        scheduler: LRScheduler | None = None,
        evaluator: Evaluator | None = None,
        *,
        resume: bool = True,
    ) -> None:
        self.run_dir = Path(run_dir)
        self.network, self.optimizer, self.scheduler = network, optimizer, scheduler
        self.evaluator, self.resume = evaluator, resume

    def attach(self, engine: Trainer) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)

    def _started(self, engine: Engine) -> None:
        path = checkpoint_path(self.run_dir, "last")
        if not (self.resume and path.is_file()):
            return
        state = read_checkpoint(path, _LAST, remedy=_REMEDY)
        with damaged(path, remedy=_REMEDY):
            self._restore(engine, state)
        engine.state.epoch = state["epoch"]
        engine.state.iteration = state["epoch"] * engine.state.epoch_length
        if state["epoch"] >= engine.state.max_epochs:
            logger.info("Already trained for %d epochs: nothing to do. Raise max_epochs to go on.", state["epoch"])
        else:
            logger.info("Going on behind epoch %d of %s.", state["epoch"], path)

    def _restore(self, engine: Engine, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None and state["scheduler"] is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        if self.evaluator is not None:
            self.evaluator.state.best_metric = state["best_metric"]
            self.evaluator.state.best_metric_epoch = state["best_metric_epoch"]
        if engine.scaler is not None and state["scaler"]:
            engine.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"]["cpu"])
        if torch.cuda.is_available() and state["random"]["cuda"]:
            torch.cuda.set_rng_state_all(state["random"]["cuda"])

    def _epoch_completed(self, engine: Engine) -> None:
        # -1: nothing validated so far, so the latest is the best that is known.
        if self.evaluator is None or self.evaluator.state.best_metric_epoch in (-1, engine.state.epoch):
            self._save_best(engine.state.epoch)
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self._schedule_state(),
            "epoch": int(engine.state.epoch),
            "best_metric": float(self.evaluator.state.best_metric) if self.evaluator else -1.0,
            "best_metric_epoch": int(self.evaluator.state.best_metric_epoch) if self.evaluator else -1,
            "scaler": engine.scaler.state_dict() if engine.scaler is not None else {},
            "random": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
        }
        # The last file goes last: a run killed before this line repeats the epoch and comes to the same best files.
        _save(checkpoint_path(self.run_dir, "last"), state)

    def _save_best(self, epoch: int) -> None:
        metric = float(self.evaluator.state.best_metric) if self.evaluator else -1.0
        for name, network in self.network.networks.items():
            _save(checkpoint_path(self.run_dir, name), network.state_dict())
        best = {"network": self.network.state_dict(), "epoch": int(epoch), "key_metric": metric}
        _save(checkpoint_path(self.run_dir, "best"), best)

    def _schedule_state(self) -> dict[str, Any] | None:
        if self.scheduler is None:
            return None
        state = self.scheduler.state_dict()
        return {key: value for key, value in state.items() if key not in _SCHEDULE_SETTINGS}


def _save(path: Path, content: Any) -> None:
    # Through memory, so that the file is whole or absent; and from CPU copies, so that it loads without the GPU.
    buffer = io.BytesIO()
    torch.save(_on_cpu(content), buffer)
    write_atomically(path, buffer.getvalue())


def _on_cpu(content: Any) -> Any:
    if isinstance(content, torch.Tensor):
        return content.detach().cpu()
    if isinstance(content, Mapping):
        return {key: _on_cpu(value) for key, value in content.items()}
    return [_on_cpu(value) for value in content] if isinstance(content, list | tuple) else content
