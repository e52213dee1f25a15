"""The order in which samples come: shuffled, balanced, shared out over processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler


class Labelled(Protocol):
    """Samples whose classes are known before they are read.

    Attributes:
        labels: class index of each sample.
    """

    labels: list[int]

    def __len__(self) -> int: ...

    def class_weights(self) -> list[float]:
        """Weight of each class."""
        ...


class EpochSampler(DistributedSampler[Any]):
    """Shuffled (epoch, index) pairs, drawn from (seed, epoch) alone.

    It is a ``DistributedSampler`` because MONAI's engines tell those the epoch, and so that several processes share an
    epoch. With one process it deals out everything.

    Args:
        dataset: gives the length and, for balancing, ``labels``.
        seed: of the order.
        balance: draw every class equally often, with replacement.
        samples_per_epoch: length of an epoch; None for the size of the dataset.
        num_replicas: processes that share the epoch; None asks torch.distributed, 1 where that is not in use.
        rank: number of this process.
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
        self.weights: Tensor | None = None
        if balance:
            weights = torch.tensor(dataset.class_weights(), dtype=torch.float64)
            self.weights = weights[torch.tensor(dataset.labels)]

    def __iter__(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        wanted = self.num_samples * self.num_replicas
        size = len(self.dataset)  # type: ignore[arg-type]
        if self.weights is not None:
            order = torch.multinomial(self.weights, wanted, replacement=True, generator=generator)
        else:
            rounds = -(-wanted // size)
            order = torch.cat([torch.randperm(size, generator=generator) for _ in range(rounds)])[:wanted]
        return iter([(self.epoch, index) for index in order[self.rank :: self.num_replicas].tolist()])

    def __len__(self) -> int:
        return self.num_samples
