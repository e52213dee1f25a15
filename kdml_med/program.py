"""What every program shares: running typer commands, progress bars, and errors for people with their exit codes."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any

import typer
from tqdm import tqdm

from kdml_med.errors import ExitCode, InputError

Command = Callable[..., int | None]


def run(command: Command) -> None:
    """Run a command function as a program.

    The function's signature is the command line. It returns an ``ExitCode`` (None is OK). ``InputError`` is printed
    to standard error without a traceback and gives ``ExitCode.BAD_INPUT``; Ctrl-C gives 130.
    """
    _run({None: command})


def run_commands(*commands: Command) -> None:
    """Run the one of several command functions that the command line names, likewise."""
    _run({command.__name__: command for command in commands})


def _run(commands: dict[str, Command] | dict[None, Command]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    for name, command in commands.items():
        app.command(name)(_checked(command))
    app()


def _checked(command: Command) -> Callable[..., None]:
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

    return checked


def progress_bar(total: int, *, what: str, unit: str, done: int = 0, show: bool = True) -> tqdm[Any]:
    """Bar on standard error: it moves on a terminal, and adds a line now and then to a log file.

    Args:
        total: number of units, those done before included.
        what: shown before the bar.
        unit: name of one unit.
        done: units that were done before.
        show: False for no bar at all.
    """
    interval = 0.2 if sys.stderr.isatty() else 10
    return tqdm(total=total, initial=done, desc=what, unit=unit, disable=not show, mininterval=interval)
