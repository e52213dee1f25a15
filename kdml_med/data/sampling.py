"""The order in which samples come: shuffled, balanced, shared out over processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from kdml_med.errors import InputError

Dealt = tuple[int, int] | tuple[int, int, int]
"""(epoch, position of a sample), and, where it has come in the epoch before, how often."""

_CHUNK = 2**16
"""Samples that are dealt out as Python objects at a time: an epoch of millions never is a list of so many tuples."""

_LEAST_SHARE = 2
"""Of a batch: batch norm takes no single sample where maps are 1 x 1."""


class Labelled(Protocol):
    """Samples whose classes are known before they are read.

    Attributes:
        labels: int64, [samples], class index of each; -1 where unknown.
    """

    labels: npt.NDArray[np.int64]

    def __len__(self) -> int: ...


class EpochSampler(DistributedSampler[Any]):
    """Shuffled (epoch, index), drawn from (seed, epoch) alone; (epoch, index, times) where a sample comes again.

    An epoch that is balanced, or longer than the dataset, has samples several times, which are to be augmented in
    another way each time. How often a sample has come before counts from the beginning of the epoch over all processes,
    so it is the same with any number of them, and where a training goes on in the middle.

    It is a ``DistributedSampler`` because MONAI's engines tell those the epoch, and so that several processes share an
    epoch: every batch is cut into as equal shares as it can, and the shares of all processes together are the batch
    that one process alone would have. So an epoch has the same batches, and as many, with any number of processes.

    Args:
        dataset: gives the length and, for balancing, ``labels``.
        seed: of the order.
        balance: draw every class that occurs equally often, with replacement: first the class, then one of its samples.
        samples_per_epoch: length of an epoch; None for the size of the dataset.
        repeat_views: epochs after which the same batches of the same views come again, from the first epoch on; None
            for new ones in every epoch.
        batch_size: samples of a batch, of all processes together. A last batch that would be a single sample, which
            batch norm cannot take, is left out.
        num_replicas: processes that share the epoch.
        rank: number of this process.

    Attributes:
        share: samples of a whole batch that are this process's.
        rest: samples of a last batch that is not whole, of all processes together; else 0.
        spare: samples of the last batch that this process is dealt behind its own, where it has none or a single one
            of it: all processes take as many steps, and batch norm has two samples. Other processes have them, too, and
            nobody must count here what comes of them.
        start: epoch, and how many of its samples are left out at its beginning, by all processes together: where a
            training goes on in the middle of it.

    Raises:
        InputError: a batch is too small to be shared out.
    """

    def __init__(
        self,
        dataset: Labelled,
        *,
        seed: int = 0,
        balance: bool = False,
        samples_per_epoch: int | None = None,
        repeat_views: int | None = None,
        batch_size: int = 1,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        if batch_size < num_replicas:
            raise InputError(
                f"--batch_size {batch_size} cannot be shared by {num_replicas} processes: it is that of all together."
            )
        super().__init__(cast("Dataset[Any]", dataset), num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed)
        self.total = samples_per_epoch or len(dataset)
        self.batch_size = batch_size
        self.repeat_views = repeat_views
        self.dealt = self.total - (self.total % batch_size == 1 and self.total > 1)
        batches, self.rest = divmod(self.dealt, batch_size)
        self.share, last = self._share_of(batch_size), self._share_of(self.rest)
        self.spare = max(0, min(_LEAST_SHARE, self.share) - last) if self.rest and num_replicas > 1 else 0
        self.num_samples = batches * self.share + last + self.spare
        self.start = (0, 0)
        self._members: tuple[Tensor, Tensor] | None = None
        if balance:
            labels = np.asarray(dataset.labels)
            counts = np.bincount(labels + 1)[1:]  # of -1 none are drawn
            by_class = np.argsort(labels, kind="stable")[len(labels) - counts.sum() :]
            self._members = torch.from_numpy(by_class), torch.from_numpy(counts[counts > 0])

    @property
    def shown_epoch(self) -> int:
        """The epoch whose batches and views come in the running one, both from 1."""
        return self.epoch if self.repeat_views is None else (self.epoch - 1) % self.repeat_views + 1

    @property
    def epoch_seed(self) -> int:
        """What everything random about the order of the running epoch follows from."""
        return self.seed * 1_000_003 + self.shown_epoch

    def __iter__(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(self.epoch_seed)
        wanted = self.total
        size = len(self.dataset)  # type: ignore[arg-type]
        if self._members is not None:
            order = _draw_balanced(*self._members, wanted, generator)
        else:
            rounds = -(-wanted // size)
            order = torch.cat([torch.randperm(size, generator=generator) for _ in range(rounds)])[:wanted]
        repeats = self._members is not None or wanted > size
        times = _times_before(order) if repeats else torch.zeros_like(order)
        epoch, seen = self.start
        places = self._own_places(seen if self.epoch == epoch else 0)
        return _deal(self.shown_epoch, order[places], times[places])

    def __len__(self) -> int:
        """Samples of a whole epoch in this process."""
        return self.num_samples

    @classmethod
    def of(cls, loader: Any) -> Self | None:
        """What deals the samples of a data loader; None where it is something else."""
        sampler = getattr(loader, "sampler", None)
        return sampler if isinstance(sampler, cls) else None

    def size_of(self, batch: int) -> int:
        """Samples of a batch of an epoch, counted from 0, in all processes together."""
        return min(self.batch_size, self.dealt - batch * self.batch_size)

    def _share_of(self, samples: int) -> int:
        return len(range(self.rank, samples, self.num_replicas))

    def _own_places(self, seen: int) -> Tensor:
        """Places in the common order that are this process's, int64 [samples]: every ``num_replicas``th of a batch."""
        places = torch.arange(seen, self.dealt)
        own = places[places % self.batch_size % self.num_replicas == self.rank]
        if not self.spare:
            return own
        last = places[-self.rest :]
        others = last[last % self.batch_size % self.num_replicas != self.rank]
        return torch.cat([own, (others if len(others) else last).repeat(self.spare)[: self.spare]])


def _draw_balanced(by_class: Tensor, counts: Tensor, wanted: int, generator: torch.Generator) -> Tensor:
    """Samples with replacement, int64 [wanted], every class with the same probability.

    ``torch.multinomial`` draws from the same distribution, but from at most 2**24 samples.

    Args:
        by_class: samples in the order of their classes.
        counts: samples of each class, none 0.
        wanted: samples to draw.
        generator: of the draw.
    """
    classes = torch.randint(len(counts), (wanted,), generator=generator)
    places = torch.rand(wanted, generator=generator, dtype=torch.float64)
    ends = counts.cumsum(0)
    return by_class[(ends - counts)[classes] + (places * counts[classes]).long()]


def _times_before(order: Tensor) -> Tensor:
    """How often the sample at each place has come at earlier places, int64, like ``order``."""
    ordered, places = order.sort(stable=True)
    times = torch.empty_like(order)
    times[places] = torch.arange(len(order)) - torch.searchsorted(ordered, ordered)
    return times


def _deal(epoch: int, order: Tensor, times: Tensor) -> Iterator[Dealt]:
    for part, before in zip(order.split(_CHUNK), times.split(_CHUNK), strict=True):
        for index, time in zip(part.tolist(), before.tolist(), strict=True):
            yield (epoch, index, time) if time else (epoch, index)
