"""Loss terms of a batch that is worked out in shares: by several processes, one behind the other, or both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from kdml_med.engines import processes
from kdml_med.losses.cohort import CohortLoss


@dataclass(frozen=True)
class UpdatePart:
    """A batch among those whose gradients are added up to one update.

    Attributes:
        label_sums: of all of these batches, in all processes, see ``CohortLoss.label_sums``.
        part: by what the loss of this one is multiplied when gradients are added up: its samples over all.
    """

    label_sums: Mapping[str, float]
    part: float


class BatchesAhead:
    """A data loader of which the batches up to the next update are read before the first of them is trained.

    Args:
        loader: the batches.
        wanted: tells how many batches the next one makes an update with, itself among them.
        needed: tells by the first batch of an epoch whether they are to be read together; else one is at a time.
        show: called with these when they have been read.
    """

    def __init__(
        self, loader: Any, wanted: Callable[[], int], needed: Callable[[Any], bool], show: Callable[[list[Any]], None]
    ) -> None:
        self.loader, self.wanted, self.needed, self.show = loader, wanted, needed, show

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return self._read(iter(self.loader))  # which starts at once, as the loader by itself does

    def _read(self, source: Iterator[Any]) -> Iterator[Any]:
        batches = list(islice(source, 1))
        if batches and not self.needed(batches[0]):
            yield batches.pop()
            yield from source
        while batches := batches + list(islice(source, self.wanted() - len(batches))):
            self.show(batches)
            while batches:
                yield batches.pop(0)


def joint_terms(
    loss: Callable[..., dict[str, Tensor]],
    predictions: Mapping[str, Any],
    target: Any,
    *,
    samples: int,
    update: UpdatePart | None = None,
) -> dict[str, Tensor]:
    """Loss terms of this process, whose mean over the processes is that of the joined batch; all call it.

    Args:
        loss: the cohort loss. Of one that is no ``CohortLoss``, terms are taken for means over the batch.
        predictions: of the samples of this process.
        target: likewise.
        samples: how many of them count; 0 for a process that only keeps the others company.
        update: what is known of the other batches of the update. Then the sum of these terms over its batches, each
            times its ``part``, is that of all of them joined; of divisors that are no label sums as nearly as the loss
            can tell.

    Returns:
        Scalars by name; the gradient of "loss" is such that its mean over the processes is that of the joined batch.
    """
    if processes.world_size() == 1 and update is None:
        return loss(predictions, target)
    joint = _Share(samples, _device_of(predictions), update)
    if not isinstance(loss, CohortLoss):
        return {name: value * joint.share for name, value in loss(predictions, target).items()}
    loss.joint = joint
    try:
        terms = loss(predictions, target)
    finally:
        loss.joint = None
    return terms if samples else {name: value * 0.0 for name, value in terms.items()}


class _Share:
    """What a loss asks, see ``kdml_med.losses.cohort.Joint``."""

    def __init__(self, samples: int, device: torch.device, update: UpdatePart | None) -> None:
        self._counts = samples > 0
        self._update = update
        own = torch.full((), float(samples), device=device)
        self.share = own / self.divisor(own, 1.0)

    @property
    def foresees(self) -> bool:
        return self._update is not None

    def divisor(self, own: Tensor, least: float, name: str | None = None) -> Tensor:
        update = self._update
        if update is not None and name is not None and name in update.label_sums:
            whole = max(update.label_sums[name], least) * update.part  # the loss is multiplied by the part afterwards
            return torch.full((), whole / processes.world_size(), device=own.device)
        shared = processes.summed(own.detach().float() * float(self._counts))
        return shared.clamp(min=least) / processes.world_size()


def _device_of(predictions: Any) -> torch.device:
    while not isinstance(predictions, Tensor):
        predictions = next(iter(predictions.values() if isinstance(predictions, Mapping) else predictions))
    return predictions.device
