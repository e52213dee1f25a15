"""How every program ends: exit codes, and one line instead of a traceback."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from kdml_med.errors import INTERRUPTED, ExitCode, InputError
from kdml_med.program import checked


def ending(command: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(typer.Exit) as caught:
        checked(command)()
    return caught.value.exit_code, capsys.readouterr().err


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("row 3: wrong."), 2, "error: row 3: wrong.\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: No space left on device. Free some space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a/b"), 2, "error: a/b: Disk quota exceeded. Free some space"),
        (PermissionError(errno.EACCES, "Permission denied", b"a/b"), 2, "error: a/b: Permission denied. Name a folder"),
        (OSError(errno.EROFS, "Read-only file system", Path("x")), 2, "error: x: Read-only file system. Name a folder"),
        (FileNotFoundError(errno.ENOENT, "No such file", "gone"), 2, "error: gone: No such file. Was it moved"),
        (KeyboardInterrupt(), 130, f"{INTERRUPTED}\n"),
    ],
)
def test_what_was_foreseen_ends_in_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, said = ending(raising(error), capsys)
    assert (found, said.count("\n")) == (code, 1)
    assert said.startswith(line)


@pytest.mark.parametrize("error", [KeyError("a"), OSError("of a library"), BrokenPipeError(errno.EPIPE, "pipe")])
def test_anything_else_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        checked(raising(error))()


def test_a_command_says_its_own_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(lambda: ExitCode.SOME_FAILED, capsys)[0] == 3
    assert ending(lambda: None, capsys)[0] == 0
