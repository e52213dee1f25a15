"""Checkpoints that a killed run goes on from as if nothing had been, and that load with ``weights_only``."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from operator import index
from pathlib import Path
from typing import Any, Protocol

from ignite.engine import Events
from monai.engines import Evaluator, Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kdml_med.data.sampling import EpochSampler
from kdml_med.engines.processes import from_main, gather, is_main, rank, seen_by_all, world_size
from kdml_med.errors import InputError
from kdml_med.handlers.losses import EpochMeans
from kdml_med.handlers.random_state import random_state, restore_random_state
from kdml_med.handlers.timing import SavingEvents
from kdml_med.keys import NetworkName
from kdml_med.networks.cohort import Cohort
from kdml_med.networks.weights import read_state_dict, same_weights
from kdml_med.runs import checkpoint_path, read_checkpoint, write_checkpoint
from kdml_med.runs.weights import older_states, withdraw_figures
from kdml_med.storage.files import writing
from kdml_med.storage.reading import damaged

logger = logging.getLogger(__name__)

_LAST: dict[str, type | tuple[type, ...]] = {
    "network": Mapping,
    "optimizer": Mapping,
    "scheduler": (Mapping, type(None)),
    "best_metric": float,
    "best_metric_epoch": int,
    "scaler": Mapping,
    "random": Mapping,
}
_REMEDY = "Delete it to train from the beginning, or name another --run_dir."
_REMEDY_WITH_OLDER = "Copy {} over it to go on from there, or name another --run_dir."
_REMEDY_OF_BEST = "Delete it to keep the best of the epochs to come."
# The length of the schedule follows from max_epochs, which a resumed run may raise.
_SCHEDULE_SETTINGS = ("t_total", "warmup_steps", "end_lr", "cycles", "warmup_multiplier")
_BATCHES_BETWEEN_QUESTIONS = 16
"""Batches with an update, of processes that train together, until the main one is asked again whether its clock says
that a checkpoint is due."""


class Stateful(Protocol):
    """What has a state that belongs into checkpoints: plain values, tensors, and mappings and lists of them."""

    def state_dict(self) -> Mapping[str, Any]:
        """The state, whole enough to go on with; what goes to files of its own is there when this returns."""

    def load_state_dict(self, state: Any) -> Any:
        """Go on with a state."""


class CohortCheckpoint:
    """Saves the state of the training and the best networks, and goes on from the last state when training starts.

    MONAI's CheckpointSaver is not used because a resumed run could overwrite the best model with a worse one, a NaN
    in the first epoch would stay best for ever, and its files are not written atomically.

    After every epoch, and every ``interval`` minutes in between: ``last.pt``, with everything that the next batch
    depends on, so that a run that is killed at any moment and started again comes to the same bytes as one that was
    not. Whenever the evaluator's key metric is at least as good as before: ``best.pt`` (networks, epoch, metric) and a
    plain state dict for each network, ``student_0.pt`` and so on. Weights that are no numbers are never saved. Figures
    of the run's own validation are of the best weights before, and taken away then.

    Attach it behind all handlers that change what it saves, and behind the one that runs the validation. In the middle
    of an epoch it saves only where the data loader can begin there, that is, has an ``EpochSampler``.

    Args:
        run_dir: folder of the run.
        network: the cohort.
        optimizer: the cohort's optimizer.
        scheduler: its learning-rate schedule.
        evaluator: validation engine, whose ``best_metric`` decides; None keeps the last epoch as the best.
        kept: the cohort whose weights are kept as the best, such as an average of those of ``network``; None for that.
        resume: go on from ``last.pt`` where there is one.
        interval: minutes between checkpoints within an epoch; 0 for none.
        keep: how many states to keep; older ones are called ``step_<iteration>.pt``.
        extras: what else has a state, by a name of its own. Asked in the main process, told in all.
    """

    def __init__(
        self,
        run_dir: str | Path,
        network: Cohort,
        optimizer: Optimizer,
        scheduler: LRScheduler | None = None,
        evaluator: Evaluator | None = None,
        *,
        kept: Cohort | None = None,
        resume: bool = True,
        interval: float = 0.0,
        keep: int = 1,
        extras: Mapping[str, Stateful] | None = None,
    ) -> None:
        self.run_dir = Path(run_dir)
        self.network, self.optimizer, self.scheduler = network, optimizer, scheduler
        self.evaluator, self.resume = evaluator, resume
        self.kept = network if kept is None else kept
        self.interval, self.keep = interval, keep
        self.extras = dict(extras or {})
        self._saved_at = time.monotonic()
        self._asked = 0
        self._iteration: int | None = None
        self._teacher_written = False

    def attach(self, engine: Trainer) -> None:
        """Register with the trainer."""
        self.means = EpochMeans.of(engine)
        engine.register_events(*SavingEvents)
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def _started(self, engine: Trainer) -> None:
        self._saved_at = time.monotonic()
        path = checkpoint_path(self.run_dir, "last")
        if not self.resume:
            return
        older = from_main(_newest(self.run_dir))
        if not seen_by_all(path):
            if older is None:
                return
            raise InputError(
                f"{path} is missing, and to train from the beginning would remove what the run was before: copy "
                f"{older} to it to go on from there, delete every step_*.pt to begin anew, or name another --run_dir."
            )
        remedy = _REMEDY if older is None else _REMEDY_WITH_OLDER.format(older)
        state = read_checkpoint(path, _LAST, remedy=remedy)
        with damaged(path, remedy=remedy):
            self._restore(engine, state)
        self._forget_a_lost_best(engine)
        if engine.state.epoch >= engine.state.max_epochs:
            logger.info("Already trained for %d epochs: nothing to do. Raise max_epochs to go on.", engine.state.epoch)
        elif not engine.should_terminate:  # else whoever ends it has said why
            logger.info("Going on behind %s of %s.", _place(engine), path)
        self._note(engine)

    def _restore(self, engine: Trainer, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None and state["scheduler"] is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        if self.evaluator is not None:
            self.evaluator.state.best_metric = state["best_metric"]
            self.evaluator.state.best_metric_epoch = state["best_metric_epoch"]
        if engine.scaler is not None and state["scaler"]:
            engine.scaler.load_state_dict(state["scaler"])
        states = [state["random"]]
        if "position" in state:
            states += state["random_of_others"]
            self._go_behind(engine, state["position"])
            self.means.load_state_dict(state["means"])
            for name in self.extras.keys() & state["extras"].keys():
                self.extras[name].load_state_dict(state["extras"][name])
        else:  # of an earlier version, which saved after whole epochs only
            self._go_behind(engine, {"epoch": state["epoch"], "batches": 0, "samples": 0})
        if rank() < len(states):
            restore_random_state(states[rank()])

    def _go_behind(self, engine: Trainer, position: Mapping[str, int]) -> None:
        """Set the trainer, and the order that samples come in, behind a batch."""
        epoch, batches, samples = (index(position[name]) for name in ("epoch", "batches", "samples"))
        if batches:
            sampler = EpochSampler.of(engine.data_loader)
            if sampler is None or batches * sampler.batch_size != samples:
                raise InputError(
                    f"{self.run_dir} was stopped in the middle of an epoch, behind {samples} samples in {batches} "
                    "batches, and its samples come in other batches now: go on with as many samples per batch of all "
                    "processes together, and with the same kind of data loader."
                )
            sampler.start = (epoch + 1, samples)
        engine.state.epoch = epoch
        engine.state.iteration = epoch * engine.state.epoch_length + batches

    def _forget_a_lost_best(self, engine: Trainer) -> None:
        """Where somebody has gone back to an older state, its best weights may be overwritten by those of later epochs.

        Then the best of the epochs to come is kept. A run that was killed between its best and its last file repeats
        that epoch, which is the best again.

        Raises:
            InputError: no epoch is to come.
        """
        path, done = checkpoint_path(self.run_dir, "best"), engine.state.epoch
        if path.is_file():
            epoch = read_checkpoint(path, {"epoch": int}, remedy=_REMEDY_OF_BEST)["epoch"]
            if epoch <= done:
                return
            if done >= engine.state.max_epochs or engine.should_terminate:
                raise InputError(
                    f"{path} is of epoch {epoch}, and the training that would go on is over behind epoch {done}: raise "
                    "--max_epochs (or --early_stopping), so that it can have a best epoch of its own."
                )
        if self.evaluator is not None:
            self.evaluator.state.best_metric, self.evaluator.state.best_metric_epoch = -1.0, -1

    def _iteration_completed(self, engine: Trainer) -> None:
        sampler = EpochSampler.of(engine.data_loader)
        done = (engine.state.iteration - 1) % engine.state.epoch_length + 1
        # The end of an epoch is saved after its validation, and gradients of batches without an update are not saved.
        if not self.interval or sampler is None or not engine.updated or done == engine.state.epoch_length:
            return
        if self._is_due():
            samples = done * sampler.batch_size
            engine.fire_event(SavingEvents.SAVING_STARTED)
            self._save(engine, {"epoch": engine.state.epoch - 1, "batches": done, "samples": samples})
            engine.fire_event(SavingEvents.SAVING_COMPLETED)

    def _is_due(self) -> bool:
        """Whether the minutes are over; the clock is that of the main process. All call it behind the same batches."""
        # Not the number of the batch: updates need not fall on its multiples.
        self._asked += 1
        if world_size() > 1 and self._asked % _BATCHES_BETWEEN_QUESTIONS:
            return False
        return from_main(time.monotonic() - self._saved_at >= 60 * self.interval)

    def _epoch_completed(self, engine: Trainer) -> None:
        # -1: nothing validated so far, so the latest is the best that is known.
        is_best = self.evaluator is None or self.evaluator.state.best_metric_epoch in (-1, engine.state.epoch)
        self._save(engine, {"epoch": int(engine.state.epoch), "batches": 0, "samples": 0}, is_best=is_best)

    def _save(self, engine: Trainer, position: dict[str, int], *, is_best: bool = False) -> None:
        engine.guard.settle(engine)
        means, states = self.means.state_dict(), gather(random_state())
        if states is not None:  # in the main process
            _refuse_spoiled([self.network, self.kept], engine)
            if is_best:
                self._save_best(engine.state.epoch)
            state = {
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self._schedule_state(),
                "best_metric": float(self.evaluator.state.best_metric) if self.evaluator else -1.0,
                "best_metric_epoch": int(self.evaluator.state.best_metric_epoch) if self.evaluator else -1,
                "scaler": engine.scaler.state_dict() if engine.scaler is not None else {},
                "random": states[0],
                "random_of_others": states[1:],
                "position": position,
                "means": means,
                "extras": {name: extra.state_dict() for name, extra in self.extras.items()},
            }
            # The last file goes last: a run killed before this line repeats the epoch and comes to the same best files.
            self._replace_last(state, engine.state.iteration)
        self._saved_at = time.monotonic()
        self._note(engine)

    def _note(self, engine: Trainer) -> None:
        """Let others say which checkpoint is the last one."""
        self._iteration = engine.state.iteration
        engine.state.checkpoint = f"{checkpoint_path(self.run_dir, 'last')} (behind {_place(engine)})"

    def _replace_last(self, state: Mapping[str, Any], iteration: int) -> None:
        path = checkpoint_path(self.run_dir, "last")
        if self.keep > 1 and self._iteration is not None and path.is_file():
            _put_aside(path, checkpoint_path(self.run_dir, f"step_{self._iteration:08d}"))
        write_checkpoint(path, state)
        older = older_states(self.run_dir)
        # Not those of a future that somebody has gone back from.
        kept = sorted((number for number in older if number < iteration), reverse=True)[: self.keep - 1]
        for number in older.keys() - kept:
            older[number].unlink()

    def _save_best(self, epoch: int) -> None:
        metric = float(self.evaluator.state.best_metric) if self.evaluator else -1.0
        withdraw_figures(self.run_dir)
        best = {"network": self.kept.state_dict(), "epoch": int(epoch), "key_metric": metric}
        # First of all: a run that ends behind it repeats the epoch, and finds that a best one is lost.
        write_checkpoint(checkpoint_path(self.run_dir, "best"), best)
        for name, network in self.kept.networks.items():
            path = checkpoint_path(self.run_dir, name)
            frozen = self.kept.frozen_teacher and name == NetworkName.TEACHER
            # Once by each process: a file that was there before can be of another teacher, from a run begun anew.
            if not (frozen and self._teacher_written and path.is_file()):
                write_checkpoint(path, network.state_dict())
                self._teacher_written |= frozen

    def _completed(self) -> None:
        """Let files of single networks be those of best.pt, which earlier versions wrote last."""
        path = checkpoint_path(self.run_dir, "best")
        if not (is_main() and path.is_file()):
            return
        best = read_checkpoint(path, {"network": Mapping}, remedy=_REMEDY_OF_BEST)["network"]
        for name in self.kept.networks:
            prefix = f"networks.{name}."
            state = {key.removeprefix(prefix): value for key, value in best.items() if key.startswith(prefix)}
            own = checkpoint_path(self.run_dir, name)
            if not _holds(own, state):
                logger.warning("%s does not hold the weights of %s, and is written anew.", own, path.name)
                write_checkpoint(own, state)

    def _schedule_state(self) -> dict[str, Any] | None:
        if self.scheduler is None:
            return None
        state = self.scheduler.state_dict()
        return {key: value for key, value in state.items() if key not in _SCHEDULE_SETTINGS}


def _place(engine: Trainer) -> str:
    epochs, batches = divmod(engine.state.iteration, engine.state.epoch_length)
    return f"batch {batches} of {engine.state.epoch_length} in epoch {epochs + 1}" if batches else f"epoch {epochs}"


def _newest(run_dir: Path) -> str | None:
    """Name of the newest checkpoint before the last one."""
    older = older_states(run_dir)
    return older[max(older)].name if older else None


def _holds(path: Path, state: Mapping[str, Any]) -> bool:
    try:
        found = read_state_dict(path)
    except InputError:  # it is missing or damaged
        return False
    return same_weights(found, state)


def _put_aside(path: Path, name: Path) -> None:
    """Give a file that is about to be replaced a second name, under which it stays."""
    if name.exists() and name.samefile(path):
        return
    with writing(name) as temporary:
        temporary.unlink(missing_ok=True)  # of a process that was killed here
        try:
            os.link(path, temporary)
        except OSError:  # of file systems without second names
            shutil.copyfile(path, temporary)


def _refuse_spoiled(cohorts: Sequence[Cohort], engine: Trainer) -> None:
    """Keep weights that are no numbers out of files: gradients can overflow where the loss did not.

    Raises:
        FloatingPointError: names the networks, and the checkpoint before.
    """
    networks = {id(network): (name, network) for cohort in cohorts for name, network in cohort.networks.items()}
    spoiled = [
        name
        for name, network in networks.values()
        if not all(bool(value.isfinite().all()) for value in network.state_dict().values())
    ]
    if spoiled:
        before = getattr(engine.state, "checkpoint", None)
        raise FloatingPointError(
            f"weights of {', '.join(dict.fromkeys(spoiled))} are no numbers behind {_place(engine)}, and not saved"
            + (f". The checkpoint before it is {before}" if before else "")
            + ". Start again in a new --run_dir with a lower --learning_rate."
        )
