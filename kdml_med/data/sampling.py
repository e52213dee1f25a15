"""The order in which samples come: shuffled, balanced, shared out over processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

_CHUNK = 2**16
"""Samples that are dealt out as Python objects at a time: an epoch of millions never is a list of so many pairs."""


class Labelled(Protocol):
    """Samples whose classes are known before they are read.

    Attributes:
        labels: int64, [samples], class index of each; -1 where unknown.
    """

    labels: npt.NDArray[np.int64]

    def __len__(self) -> int: ...


class EpochSampler(DistributedSampler[Any]):
    """Shuffled (epoch, index) pairs, drawn from (seed, epoch) alone.

    It is a ``DistributedSampler`` because MONAI's engines tell those the epoch, and so that several processes share an
    epoch. With one process it deals out everything.

    Args:
        dataset: gives the length and, for balancing, ``labels``.
        seed: of the order.
        balance: draw every class that occurs equally often, with replacement: first the class, then one of its samples.
        samples_per_epoch: length of an epoch; None for the size of the dataset.
        num_replicas: processes that share the epoch; None asks torch.distributed, 1 where that is not in use.
        rank: number of this process.

    Attributes:
        start: epoch, and how many of its samples are left out at its beginning, by all processes together: where a
            training goes on in the middle of it.
    """

    def __init__(
        self,
        dataset: Labelled,
        *,
        seed: int = 0,
        balance: bool = False,
        samples_per_epoch: int | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        if num_replicas is None:
            distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
            num_replicas = torch.distributed.get_world_size() if distributed else 1
            rank = torch.distributed.get_rank() if distributed else 0
        super().__init__(cast("Dataset[Any]", dataset), num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed)
        self.total = samples_per_epoch or len(dataset)
        self.num_samples = -(-self.total // num_replicas)
        self.start = (0, 0)
        self._members: tuple[Tensor, Tensor] | None = None
        if balance:
            labels = np.asarray(dataset.labels)
            counts = np.bincount(labels + 1)[1:]  # of -1 none are drawn
            by_class = np.argsort(labels, kind="stable")[len(labels) - counts.sum() :]
            self._members = torch.from_numpy(by_class), torch.from_numpy(counts[counts > 0])

    @property
    def epoch_seed(self) -> int:
        """What everything random about the order of the running epoch follows from."""
        return self.seed * 1_000_003 + self.epoch

    def __iter__(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(self.epoch_seed)
        wanted = self.num_samples * self.num_replicas
        size = len(self.dataset)  # type: ignore[arg-type]
        if self._members is not None:
            order = _draw_balanced(*self._members, wanted, generator)
        else:
            rounds = -(-wanted // size)
            order = torch.cat([torch.randperm(size, generator=generator) for _ in range(rounds)])[:wanted]
        epoch, seen = self.start
        return _deal(self.epoch, order[seen if self.epoch == epoch else 0 :][self.rank :: self.num_replicas])

    def __len__(self) -> int:
        """Samples of a whole epoch in this process."""
        return self.num_samples


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


def _deal(epoch: int, order: Tensor) -> Iterator[tuple[int, int]]:
    for part in order.split(_CHUNK):
        for index in part.tolist():
            yield epoch, index
