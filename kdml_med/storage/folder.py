"""The folder that only one run may write to."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from kdml_med.errors import InputError


@contextlib.contextmanager
def sole_user(out_dir: Path) -> Iterator[None]:
    """Keep two runs out of one folder; the lock is on the folder itself, leaves no file and dies with the process.

    Raises:
        InputError: the folder cannot be made, or another run has it.
    """
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(out_dir, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"cannot use {out_dir} as output folder: {error.strerror}.") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another run is writing to {out_dir}: wait for it, or choose another --out.") from error
        yield
    finally:
        os.close(handle)
