"""Locks on folders: one run at a time writes there. They leave no files and end with the process."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import weakref
from collections.abc import Iterator
from pathlib import Path

from kdml_med.errors import InputError

logger = logging.getLogger(__name__)


class Hold:
    """A lock on a folder: it leaves no file, ends with the process, and ``release`` or garbage collection ends it."""

    def __init__(self, folder: Path, option: str | None) -> None:
        self._handle = -1
        _HOLDS.add(self)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(folder, os.O_RDONLY)
        except OSError as error:
            raise InputError(f"cannot use {folder} as output folder: {error.strerror}.") from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.release()
            other = "" if option is None else f", or choose another {option}"
            raise InputError(f"another run is writing to {folder}: wait for it{other}.") from error
        except OSError:  # NFS, say
            logger.warning("%s is on a file system without locks: two runs must not share it", folder)

    def release(self) -> None:
        """Let others in."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __del__(self) -> None:
        self.release()


_HOLDS: weakref.WeakSet[Hold] = weakref.WeakSet()
_KEPT: weakref.WeakValueDictionary[Path, Hold] = weakref.WeakValueDictionary()


def _release_in_child() -> None:
    # A process that reads samples would keep the folder locked for a while after the one that trains was killed.
    for hold in list(_HOLDS):
        hold.release()


os.register_at_fork(after_in_child=_release_in_child)


def keep_out_others(folder: Path, *, option: str | None = "--out") -> Hold:
    """Keep other processes from writing to a folder as long as the object that is returned lives.

    Within one process the folder can be asked for again.

    Args:
        folder: made when absent.
        option: that names it on the command line, where another folder would do.

    Raises:
        InputError: the folder cannot be made, or another process has it.
    """
    key = Path(folder).resolve()
    hold = _KEPT.get(key)
    if hold is None:
        hold = _KEPT[key] = Hold(folder, option)
    return hold


@contextlib.contextmanager
def sole_user(out_dir: Path) -> Iterator[None]:
    """Keep two runs out of one folder, also two of one process.

    Raises:
        InputError: the folder cannot be made, or another run has it.
    """
    hold = Hold(out_dir, "--out")
    try:
        yield
    finally:
        hold.release()
