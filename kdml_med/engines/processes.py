"""The processes that train one cohort together: who writes, what they tell each other, and how they end.

With one process everything here does nothing, so that nobody has to ask how many there are. Every function that says
"all call it" waits for the others: a process that does not call it keeps them waiting.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

Value = TypeVar("Value")
MAIN = 0
"""Rank of the process that writes."""


def world_size() -> int:
    """Number of processes that train together; 1 where nobody has joined any."""
    return dist.get_world_size() if _joined() else 1


def rank() -> int:
    """Number of this process among them, from 0."""
    return dist.get_rank() if _joined() else MAIN


def is_main() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return rank() == MAIN


def gather(value: Value) -> list[Value] | None:
    """What every process hands in, in the order of their ranks, for the main one; all call it.

    Args:
        value: anything that can be pickled, tensors on the CPU.

    Returns:
        One value for each process; None in all but the main one.
    """
    if world_size() == 1:
        return [value]
    values: list[Any] | None = [None] * world_size() if is_main() else None
    dist.gather_object(value, values, dst=MAIN)
    return values


def from_main(value: Value) -> Value:
    """The value of the main process, for all of them; all call it. That of the others is not looked at."""
    if world_size() == 1:
        return value
    values = [value if is_main() else None]
    dist.broadcast_object_list(values, src=MAIN)
    return values[0]  # type: ignore[return-value]


def mean(value: Tensor) -> Tensor:
    """Mean over the processes, without gradient; all call it. The very same tensor where there is one process."""
    if world_size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def mean_terms(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scalars by name, each the mean over the processes; one message for all of them, and all call it."""
    if world_size() == 1:
        return dict(terms)
    return dict(zip(terms, mean(torch.stack(list(terms.values()))).unbind(), strict=True))


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """The block runs in the main process, and then in the others, who find what it has made; all enter it."""
    if not is_main():
        dist.barrier()
    yield
    if is_main() and world_size() > 1:
        dist.barrier()


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()
