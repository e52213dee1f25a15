"""What networks are computed on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from kdml_med.errors import InputError


def check_device(device: str, *, amp: bool = False) -> None:
    """Check that a device is there.

    Raises:
        InputError: it is not, it is no name of one, or it cannot do mixed precision.
    """
    try:
        kind, index = torch.device(device).type, torch.device(device).index or 0
    except RuntimeError as error:
        raise InputError(f"--device is {device!r}, expected cpu, cuda or cuda:0 and the like, or mps.") from error
    there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(kind, 1)
    if there == 0:
        raise InputError(f"device {device!r} is asked for, but this torch sees no GPU: use --device cpu.")
    if index >= there:
        raise InputError(f"device {device!r} is asked for, but there are {there}, counted from 0: name one of them.")
    if amp and kind != "cuda":
        raise InputError(f"amp (mixed precision) needs a GPU, the device is {device!r}: leave --amp out.")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes on one thread in this block: where the caller has threads of its own, or times one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
