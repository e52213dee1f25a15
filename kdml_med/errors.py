"""Errors meant for a person, and the exit codes that programs give for them."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit status of every program of this project."""

    OK = 0
    """Everything that was asked for was done."""
    BAD_INPUT = 2
    """Nothing was done: the arguments, a table or a folder need a correction first."""
    SOME_FAILED = 3
    """The work is finished, but some inputs could not be used; failures.csv names them."""


class InputError(ValueError):
    """Something that the user handed in is wrong.

    The message says which file, row or key, what was expected and what to do. Programs print it without a
    traceback and exit with ``ExitCode.BAD_INPUT``.
    """
