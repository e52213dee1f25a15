"""What networks are computed on, and in which types it computes by itself."""

from __future__ import annotations

import contextlib
import functools
import platform
from collections.abc import Iterator
from pathlib import Path

import torch
from monai.utils import set_determinism

from kdml_med.errors import InputError

_PROCESSORS = Path("/proc/cpuinfo")
_OF_ITS_KIND = ("vendor_id", "cpu family", "model", "cache size", "CPU ")
"""How lines of that file begin that say what a processor is; the last is ARM's, where it has no name."""


def check_device(device: str) -> None:
    """Check that a device is there.

    Raises:
        InputError: it is not, or it is no name of one.
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


def native_types(device: str | torch.device) -> frozenset[str]:
    """Which of "bf16" and "fp16" a device multiplies by itself, without going through float32.

    Processors do so in bfloat16 with AVX-512 BF16 or AMX, of CUDA devices those of capability 8 and later; float16 is
    for CUDA devices alone.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return frozenset({"bf16", "fp16"} if major >= 8 else {"fp16"})
    # Not torch.cpu.get_capabilities, which the oldest torch in range lacks.
    if kind == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return frozenset({"bf16"})
    return frozenset()


@functools.cache
def processor() -> str:
    """Which processor this is, its maker's name among the rest, "AuthenticAMD" or "GenuineIntel" of most.

    Libraries choose by it how they compute, also among those of one instruction set.
    """
    try:
        lines = _PROCESSORS.read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    return "; ".join(sorted({line for line in lines if line.startswith(_OF_ITS_KIND)})) or platform.processor()


def check_precision(precision: str, device: str) -> None:
    """Check that a device can compute in a precision; a processor computes bfloat16 in any case, by itself or not.

    Args:
        precision: "fp32", "bf16" or "fp16".
        device: that is there, see ``check_device``.

    Raises:
        InputError: it cannot.
    """
    kind = torch.device(device).type
    if precision == "fp16" and kind != "cuda":
        raise InputError(f"precision fp16 needs a CUDA GPU, the device is {device!r}: use --precision auto.")
    if precision == "bf16" and (kind == "mps" or (kind == "cuda" and "bf16" not in native_types(device))):
        other = "fp32" if kind == "mps" else "fp16"
        raise InputError(f"precision bf16 is not for device {device!r}: use --precision {other}, or auto.")


def compute_repeatably(seed: int) -> None:
    """Seed Python, NumPy and torch, and ask for deterministic algorithms, as every training does."""
    set_determinism(seed=seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Else every new tensor is filled with NaN first, a fifth of a step: for kernels that read what nobody wrote, of
    # which there are none here.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes on one thread in this block: where the caller has threads of its own, or times one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
