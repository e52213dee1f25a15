"""What every program shares: one way to run a typer command, to print errors for people and to exit."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any

import typer

from kdml_med.errors import ExitCode, InputError


def run(command: Callable[..., int | None]) -> None:
    """Run a command function as a program.

    The function's signature is the command line. It returns an ``ExitCode`` (None is OK). ``InputError`` is printed
    to standard error without a traceback and gives ``ExitCode.BAD_INPUT``; Ctrl-C gives 130.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)

    @functools.wraps(command)
    def checked(*args: Any, **kwargs: Any) -> None:
        try:
            code = command(*args, **kwargs)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            code = ExitCode.BAD_INPUT
        except KeyboardInterrupt:
            print("interrupted; run the same command again to go on", file=sys.stderr)
            code = 130
        raise typer.Exit(int(code or ExitCode.OK))

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(checked)
    app()
