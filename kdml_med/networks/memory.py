"""Memory of networks that compute on a CPU."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Names of the settings, from malloc.h, and where glibc itself comes to in a process with large tensors.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_USUAL = {_MMAP_MAX: 65_536, _MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 64 * 2**20}
_blocks = 0  # that are open


@contextlib.contextmanager
def freed_memory_kept(device: torch.device | None = None) -> Iterator[bool]:
    """Let the C library keep memory that this process frees for the next batch, and give it back at the end.

    Large tensors are otherwise given back as soon as they are freed, and the system has to clear every page of the
    next ones again. The activations of a cohort live together, more than the library keeps by itself, so that a step
    of small networks took a tenth longer than those of its networks one after the other, and the answers of a
    MobileNetV2 to 16 images of 224 px twice as long. In the block the process stays as large as its largest batch took;
    of blocks within each other the outermost gives memory back.

    Args:
        device: where the networks compute; nothing is done for others than CPUs.

    Yields:
        Whether the library was told so: glibc can be, other libraries do as they do.

    Source:
        mallopt(3): M_MMAP_MAX 0 takes large requests from the heap, M_TRIM_THRESHOLD -1 never shrinks it. A threshold
        that was set is not adapted any more, hence the values that it would be adapted to.
    """
    global _blocks
    if device is not None and device.type != "cpu":
        yield False
        return
    try:
        library = ctypes.CDLL(None)
        mallopt, trim = library.mallopt, library.malloc_trim
    except (AttributeError, OSError, TypeError):  # TypeError: on Windows no library has no name
        yield False
        return
    _blocks += 1
    try:
        yield bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
    finally:
        _blocks -= 1
        if _blocks == 0:
            for name, value in _USUAL.items():
                mallopt(name, value)
            trim(0)
