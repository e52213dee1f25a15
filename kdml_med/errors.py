"""Errors meant for a person, and the exit codes that programs give for them."""

from __future__ import annotations

import errno
import os
from enum import IntEnum
from pathlib import Path


class ExitCode(IntEnum):
    """Exit status of every program of this project."""

    OK = 0
    """Everything that was asked for was done."""
    BAD_INPUT = 2
    """Something needs a correction first: the arguments, a table, a folder, the disk. Mostly nothing was done; what a
    run that was under way has finished stays, and the same command goes on from there."""
    SOME_FAILED = 3
    """The work is finished, but some inputs could not be used; failures.csv names them."""
    INTERRUPTED = 130
    """Ctrl-C; what is finished stays, and the same command goes on from there."""


INTERRUPTED = "interrupted; run the same command again to go on"


class InputError(ValueError):
    """Something that the user handed in is wrong.

    The message says which file, row or key, what was expected and what to do. Programs print it without a
    traceback and exit with ``ExitCode.BAD_INPUT``.
    """


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Only writing gives these, whatever file they are about."""
_NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM)
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


def cannot_write(path: Path | str, error: OSError) -> InputError:
    """What a failed attempt to write a file says to a person."""
    return InputError(f"cannot write {path}: {_reason(error)}.{_remedy(error)}")


def foreseen(error: BaseException) -> InputError | None:
    """What an error says to a person; None where nobody foresaw it, so that its traceback is wanted.

    A full disk, a folder that cannot be written and a file that vanished can meet any line of any program.
    """
    if isinstance(error, InputError):
        return error
    # Without a number it is raised by a library that means something else by it, and a closed pipe is no fault.
    if not isinstance(error, OSError) or error.errno in (None, errno.EPIPE):
        return None
    name = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    return InputError(f"{name}{_reason(error)}.{_remedy(error)}")


def one_line(error: BaseException) -> str:
    """An error of a library, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _remedy(error: OSError) -> str:
    if error.errno in NO_ROOM:
        return " Free some space, or name another folder; the same command goes on from what is finished."
    if error.errno in _NOT_ALLOWED:
        return " Name a folder that you may write to."
    return " Was it moved or removed meanwhile?" if error.errno in _GONE else ""
