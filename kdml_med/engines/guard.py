"""Stops a training whose losses are no numbers or beyond all measure, and says of which network and which samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from ignite.engine import Engine
from torch import Tensor

from kdml_med.keys import BatchKey, LossTerm, split_loss_name
from kdml_med.words import printable

EXPLODED = 1e5
"""A task, kd or ml term of a network above this has exploded: they are means in nats, or of errors of boxes."""
_SHOWN_SAMPLES = 32


@dataclass(frozen=True)
class _Batch:
    """Loss terms of a batch, and what a person would look for it by."""

    epoch: int
    place: str
    samples: Sequence[str]
    names: Sequence[str]
    values: Tensor


class LossGuard:
    """Looks at the loss terms of every batch before weights are updated by it.

    On a CPU the first bad term stops the training at once. On a GPU every look would make the CPU wait for the step, so
    that the terms of ``interval`` batches, or of what is left of the epoch, are looked at together. Until then a fused
    optimizer is told to leave weights and its own state alone from the first bad batch on (``found_inf``, by which a
    gradient scaler skips steps), without anybody waiting: the weights are those before that batch, whenever it
    is found. An optimizer that is not fused goes on, and so does one with a scaler, which has its own ``found_inf``.

    Args:
        interval: batches between two looks where a look means waiting.
        at_once: look at every batch; None for where that means no waiting.
    """

    def __init__(self, interval: int = 32, *, at_once: bool | None = None) -> None:
        self.interval, self.at_once = interval, at_once
        self._unread: list[_Batch] = []
        self._found: Tensor | None = None
        self._limits: dict[tuple[str, ...], Tensor] = {}

    def check(self, terms: Mapping[str, Tensor], engine: Engine) -> None:
        """Look at the terms of a batch, now or later; to be called before weights are updated by it.

        Args:
            terms: scalars by loss name.
            engine: the trainer, in whose state the batch and its number are.

        Raises:
            FloatingPointError: a term of this batch, or of one before that was not looked at yet, is NaN or infinite,
                or one of a network has exploded; names network, batch, samples and the last checkpoint.
        """
        values = torch.stack([value.detach() for value in terms.values()]).float()
        state = engine.state
        place = state.iteration - (state.epoch - 1) * state.epoch_length if state.epoch_length else state.iteration
        words = f"{place} of {state.epoch_length}" if state.epoch_length else str(place)
        samples = state.batch.get(BatchKey.SAMPLE_ID, ()) if isinstance(state.batch, Mapping) else ()
        self._unread.append(_Batch(state.epoch, words, samples, list(terms), values))
        at_once = values.device.type == "cpu" if self.at_once is None else self.at_once
        if at_once or len(self._unread) >= self.interval or place == state.epoch_length:
            self.settle(engine)
        else:
            self._hold_back(values, list(terms), engine)

    def settle(self, engine: Engine) -> None:
        """Look at all batches that nobody has looked at yet; before their effects are kept.

        Raises:
            FloatingPointError: see ``check``.
        """
        unread, self._unread, self._found = self._unread, [], None
        for batch in unread:
            found = zip(batch.names, batch.values.tolist(), strict=True)
            bad = {name: value for name, value in found if not _is_good(name, value)}
            if bad:
                raise FloatingPointError(_words(batch, bad, getattr(engine.state, "checkpoint", None)))

    def _hold_back(self, values: Tensor, names: Sequence[str], engine: Engine) -> None:
        """Let the optimizer skip its steps from the first bad batch on."""
        optimizer = engine.optimizer
        if not optimizer.defaults.get("fused") or engine.scaler is not None:
            return
        if tuple(names) not in self._limits:
            limits = torch.tensor([_limit(name) for name in names], device=values.device)
            self._limits = {tuple(names): limits}
        limits = self._limits[tuple(names)]
        bad = (values.abs() <= limits).logical_not().any().float()  # NaN is not below anything
        self._found = bad if self._found is None else torch.maximum(self._found, bad)
        optimizer.found_inf = self._found


def _is_good(name: str, value: float) -> bool:
    return math.isfinite(value) and abs(value) <= _limit(name)


def _limit(name: str) -> float:
    """A term of one's own can have any size, and so the sum."""
    return EXPLODED if split_loss_name(name)[1] in LossTerm.parts() else torch.finfo(torch.float32).max


def _words(batch: _Batch, bad: Mapping[str, float], checkpoint: str | None) -> str:
    terms = {name: value for name, value in bad.items() if name != LossTerm.LOSS} or dict(bad)
    owners = {name: split_loss_name(name) for name in terms}
    # What others learn from a network that has diverged is no number either: those that err on labels are named.
    erring = [network for network, term in owners.values() if term == LossTerm.TASK]
    networks = dict.fromkeys(erring or [network or "the cohort" for network, _ in owners.values()])
    finite = all(map(math.isfinite, terms.values()))
    found = ", ".join(f"{name} {value:.3g}" for name, value in terms.items())
    shown = ", ".join(map(printable, batch.samples[:_SHOWN_SAMPLES]))
    more = f" and {len(batch.samples) - _SHOWN_SAMPLES} more" if len(batch.samples) > _SHOWN_SAMPLES else ""
    return (
        f"the loss of {', '.join(networks)} {'has exploded' if finite else 'is no number'} in epoch {batch.epoch}, "
        f"batch {batch.place} ({found})"
        + (f", samples {shown}{more}" if shown else "")
        + (f". The checkpoint before it is {checkpoint}" if checkpoint else "")
        + ". Start again in a new --run_dir with a lower --learning_rate, or look for broken images in this batch."
    )
