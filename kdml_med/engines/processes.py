"""The processes that train one cohort together: what is whose, what they tell each other, and how they end.

A launcher (``torchrun``) starts them, each joins, and together they do what one would do: they share every batch, each
has the gradient of the whole batch, and one of them, the main one, writes and speaks. With one process everything here
does nothing, so that nobody has to ask how many there are. Of a function that says "all call it", each process that
does not call it keeps the others waiting.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from kdml_med.errors import ExitCode, InputError, foreseen

Value = TypeVar("Value")
MAIN = 0
"""Rank of the process that writes."""
_ENDED = "ended"
_LAUNCHER = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}  # what torchrun tells every process
_ENDED_WITHIN_S = 5.0  # after the first one the launcher has ended the others
_SEEN_WITHIN_S = 60.0  # so long a file system of several machines may show what was there before
_LOST = (
    "another process of this training is gone, without a word: was it killed, perhaps for want of memory? The same "
    "command goes on from the last checkpoint."
)

_store: Store | None = None  # what all processes can read and write, whatever they wait for
_ends_first: bool | None = None
_left_as = MAIN  # rank that this process had
_groups = 0  # that it has joined so far


def world_size() -> int:
    """Number of processes that train together; 1 where nobody has joined any."""
    return dist.get_world_size() if _joined() else 1


def rank() -> int:
    """Number of this process among them, from 0; also behind ``leave``, and 0 before ``join``."""
    return dist.get_rank() if _joined() else _left_as


def is_main() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return rank() == MAIN


def own_device() -> str:
    """The GPU of this process, by the number that the launcher gave it on its machine; "cpu" where there is none.

    Raises:
        InputError: there are more processes than GPUs.
    """
    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if count == 0:
        return "cpu"
    if number >= count:
        raise InputError(
            f"process {number} of this machine has no GPU, there are {count}: start with --nproc_per_node {count}, or "
            "add --device cpu."
        )
    return f"cuda:{number}"


def launched() -> int:
    """Number of processes that a launcher says it has started; 1 without a launcher."""
    return int(os.environ["WORLD_SIZE"]) if os.environ.keys() >= _LAUNCHER else 1


def launcher() -> str:
    """The command of the launcher, as a person would type it on each machine."""
    own = int(os.environ.get("LOCAL_WORLD_SIZE", launched()))
    machines = f"--nnodes={launched() // own} " if launched() > own else ""
    return f"torchrun {machines}--nproc_per_node={own}"


def join(device: str) -> tuple[int, int]:
    """Join the processes that the launcher started; all call it, before anything else.

    Args:
        device: on which this process computes.

    Returns:
        Number of this process and of all, as ``SampleLoader`` takes them.

    Raises:
        InputError: no launcher started this process, or several would have one GPU.
    """
    global _groups
    if not os.environ.keys() >= _LAUNCHER:
        raise InputError(
            "multi_gpu_train.json is for several processes: start with torchrun --nproc_per_node=2 -m monai.bundle run "
            "…, or leave it out."
        )
    if _joined():
        return rank(), world_size()
    gpu = torch.device(device).type == "cuda"
    if gpu and device != own_device():
        raise InputError(f"--device {device} would be that of several processes: leave it out, each takes a GPU.")
    if gpu:
        torch.cuda.set_device(device)
    _groups += 1
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpu else "gloo",  # objects go by gloo, tensors of GPUs by NCCL
        store=PrefixStore(f"group_{_groups}", _meet()),
        rank=int(os.environ["RANK"]),
        world_size=launched(),
    )
    if not is_main():
        logging.disable(logging.WARNING)  # what concerns all of them is said once
    return rank(), world_size()


def leave() -> None:
    """Leave them when everything is done; all call it."""
    global _left_as
    if _joined():
        _left_as = dist.get_rank()
        logging.disable(logging.NOTSET)
        dist.destroy_process_group()


def _abandon() -> None:
    """Leave them by an error: who waits for this process meets one as well, and a later training begins anew.

    A group of GPUs stays: NCCL can wait for what will never be computed.
    """
    logging.disable(logging.NOTSET)
    if _joined() and dist.get_backend() == dist.Backend.GLOO:
        leave()


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


def made_by_main(make: Callable[[], Value]) -> Value:
    """What the main process makes, for all of them; all call it, and the others make nothing."""
    return from_main(make() if is_main() else None)  # type: ignore[return-value]


def total(values: Mapping[str, float]) -> dict[str, float]:
    """Sums over the processes by name; all call it. A process need not have all of the names."""
    if world_size() == 1:
        return dict(values)
    parts = gather(dict(values))
    return from_main(added(parts or []))


def added(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Sums by name."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0) for part in parts) for name in names}


def mean(value: Tensor) -> Tensor:
    """Mean over the processes, without gradient; all call it. The very same tensor where there is one process."""
    return value if world_size() == 1 else summed(value) / world_size()


def summed(value: Tensor) -> Tensor:
    """Sum over the processes, without gradient; all call it. The very same tensor where there is one process."""
    if world_size() == 1:
        return value
    whole = value.detach().clone()
    dist.all_reduce(whole)
    return whole


def wait() -> None:
    """Wait for the others; all call it."""
    if world_size() > 1:
        dist.barrier()


def seen_by_all(path: Path) -> bool:
    """Whether a file of the run is there; all call it.

    Raises:
        InputError: this process does not see it as the main one does.
    """
    there = from_main(path.is_file())
    deadline = time.monotonic() + _SEEN_WITHIN_S
    while path.is_file() != there:
        if time.monotonic() > deadline:
            raise InputError(
                f"process {rank()} of this training {'does not see' if there else 'sees'} {path}, unlike the main one: "
                "--run_dir has to be one folder that all machines share."
            )
        time.sleep(0.1)
    return there


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """The block runs in the main process, and then in the others, who find what it has made; all enter it."""
    if not is_main():
        wait()
    yield
    if is_main():
        wait()


def share_network(network: nn.Module) -> nn.Module:
    """The network as every process calls it in training: backward gives the mean gradient of all of them.

    Batch norm of a GPU is over the samples of all processes; on a CPU, where torch has no such layer, it is over those
    of each, and the running statistics are those of the main one, as torch does it.

    Args:
        network: the cohort; its batch norm is changed in place, and its parameters stay the same objects.
    """
    if world_size() == 1:
        return network
    device = next(network.parameters()).device
    if device.type != "cuda":
        return DistributedDataParallel(network)
    return DistributedDataParallel(nn.SyncBatchNorm.convert_sync_batchnorm(network), device_ids=[device])


def exchange_gradients(network: nn.Module, *, wanted: bool) -> None:
    """Say before a forward pass whether its backward pass exchanges gradients, or leaves them to a later one.

    Args:
        network: from ``share_network``.
        wanted: False for batches behind which no weights are updated.
    """
    if isinstance(network, DistributedDataParallel):
        network.require_backward_grad_sync = wanted  # as its ``no_sync`` does


def share_buffers(network: nn.Module) -> None:
    """Give all processes the buffers of the main one, batch statistics above all; all call it.

    In training that happens before forward passes, but for those behind batches that exchanged no gradients. Whoever
    evaluates has to do it once.
    """
    if world_size() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, src=MAIN)


def end_together(error: BaseException) -> BaseException:
    """What a process that has to end by an error says; called where the error would leave the work.

    The first to end says why, and so does the launcher, which then ends the others: what these meet, and the same error
    met by several, is not said again.

    Returns:
        The error; or, where it is only that another process was lost, what to say of that.

    Raises:
        SystemExit: another process has ended first, and said why.
    """
    if launched() == 1:
        return error
    store = _meet()
    asked = _ends_first is not None
    if not _is_first_to_end(store):
        if not isinstance(error, SystemExit):  # of this process, on its way out: it has waited
            time.sleep(_ENDED_WITHIN_S)  # torchrun takes the code of any that ends in the same second for the reason
        raise SystemExit(int(ExitCode.BAD_INPUT)) from error
    said: BaseException = InputError(_LOST) if _is_lost(error) else foreseen(error) or error
    _tell_launcher(said)
    if not (asked or is_main()):
        print(file=sys.stderr)  # ends the line on which the bar of the main process may stand
    return said


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """An error that leaves the block is that of one process only, see ``end_together``, and ends the group."""
    try:
        yield
    except BaseException as error:
        try:
            said = end_together(error)
        finally:
            _abandon()
        if said is error:
            raise
        raise said from error


def _meet() -> Store:
    """Where the launcher lets its processes meet, before they join and after."""
    global _store, _ends_first
    if _store is None:
        store, *_ = next(rendezvous("env://"))
        _store, _ends_first = PrefixStore("kdml_med", store), None
    return _store


def _is_first_to_end(store: Store) -> bool:
    global _ends_first
    if _ends_first is None:
        try:
            _ends_first = store.add(_ENDED, 1) == 1
        except RuntimeError:  # the machine that kept the store is gone
            _ends_first = False
    return _ends_first


def _is_lost(error: BaseException) -> bool:
    """Whether an error only says that another process has left; gloo has no class of its own for it."""
    text = str(error)
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in text)


def _tell_launcher(error: BaseException) -> None:
    """Leave the reason where torchrun shows it at its end."""
    try:
        raise error.with_traceback(None) if isinstance(error, InputError) else error
    except BaseException as shown:
        get_error_handler().record_exception(shown)


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()
