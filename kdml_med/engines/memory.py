"""Memory of training steps on a CPU."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of the settings, from malloc.h


def keep_freed_memory() -> bool:
    """Let the C library keep memory that this process frees, for the next step, rather than give it back to the system.

    Large tensors are otherwise given back as soon as they are freed, and the system has to clear every page of the
    next ones again. The activations of a cohort live together, more than the library keeps by itself, so that a step
    of small networks took a tenth longer than those of its networks one after the other. The process stays as large
    as its largest step.

    Returns:
        Whether the library can be told so: glibc can, other libraries do as they do.

    Source:
        mallopt(3): M_MMAP_MAX 0 takes large requests from the heap, M_TRIM_THRESHOLD -1 never shrinks it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # TypeError: on Windows no library has no name
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
