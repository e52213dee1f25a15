"""What every program shares: running typer commands, progress bars, and errors for people with their exit codes."""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NoReturn

import typer
from tqdm import tqdm

from kdml_med.errors import INTERRUPTED, ExitCode, foreseen
from kdml_med.words import printable

Command = Callable[..., int | None]
# What typer raises for a wrong option or value: a class of click, or of its own copy of click.
_MISUSE: type[Exception] = next(one for one in typer.BadParameter.__mro__ if one.__name__ == "ClickException")


def run(command: Command) -> None:
    """Run a command function as a program.

    The function's signature is the command line. It returns an ``ExitCode`` (None is OK). ``InputError`` is printed
    to standard error without a traceback and gives ``ExitCode.BAD_INPUT``, and so do a full disk and a file that cannot
    be read or written; Ctrl-C gives 130.
    """
    _run({None: command})


def run_commands(*commands: Command) -> None:
    """Run the one of several command functions that the command line names, likewise."""
    _run({command.__name__: command for command in commands})


def _run(commands: dict[str, Command] | dict[None, Command]) -> None:
    app = new_app()
    for name, command in commands.items():
        app.command(name)(checked(command))
    start(app)


def new_app(**how: Any) -> typer.Typer:
    """An empty typer application as all programs have it; messages of this process go to standard error."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, **how)


@contextlib.contextmanager
def unhindered_imports() -> Iterator[None]:
    """Load libraries without looking for garbage among their million objects: a quarter of the time of torch and MONAI.

    Nothing else is begun in this block.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def start(app: typer.Typer, **how: Any) -> NoReturn:
    """Run an application; what is wrong with the words of the command line is said in one line, too."""
    leave_quickly()
    try:
        code = app(standalone_mode=False, **how)
    except _MISUSE as misuse:
        text = " ".join(misuse.format_message().split())  # type: ignore[attr-defined]
        context = getattr(misuse, "ctx", None)
        ask = f" `{context.command_path} --help` shows what there is." if context else ""
        if re.search(r"unexpected extra argument.*\((True|False)\)", text):
            ask = " A switch takes no value: write --NAME or --no-NAME."
        print(f"error: {printable(text.rstrip('.'))}.{ask}", file=sys.stderr)
        raise SystemExit(int(ExitCode.BAD_INPUT)) from misuse
    raise SystemExit(code)


def usable_cores() -> int:
    """Cores that this process may use: of a machine that is shared, those that it was given."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def leave_quickly() -> None:
    """Spare the collections at the end of this process: a second among the objects of libraries, for nothing."""
    atexit.register(gc.freeze)


def checked(command: Command) -> Callable[..., None]:
    """A command function that ends with an exit code, whatever happens in it."""

    @functools.wraps(command)
    def ending(*args: Any, **kwargs: Any) -> None:
        try:
            code = command(*args, **kwargs)
        except (Exception, KeyboardInterrupt) as error:
            ending = tell_ending(error)
            if ending is None:
                raise
            code = ending
        raise typer.Exit(int(code or ExitCode.OK))

    return ending


def with_default(text: str, default: object) -> str:
    """Help of an option that is None unless it is given."""
    return escaped(f"{text} [default: {default}]")


def escaped(text: str) -> str:
    """Help that may hold brackets, which typer would take for markup."""
    return text.replace("[", "\\[")


def tell_ending(error: BaseException) -> ExitCode | None:
    """Say in one line on standard error why a program ends.

    Returns:
        Its exit code; None, and nothing was said, for an error that nobody foresaw.
    """
    interrupted = isinstance(error, KeyboardInterrupt)
    known = foreseen(error)
    if not interrupted and known is None:
        return None
    # Not print: the line would stand behind a progress bar that was cut off.
    tqdm.write(INTERRUPTED if interrupted else f"error: {printable(str(known))}", file=sys.stderr)
    return ExitCode.INTERRUPTED if interrupted else ExitCode.BAD_INPUT


@contextlib.contextmanager
def hold_interrupts() -> Iterator[None]:
    """Ctrl-C in this block counts when it is over, and processes that are started in it never see one.

    For starting processes: Python loses the exception where it meets the handlers of a fork, and the work would go on.
    A terminal sends Ctrl-C to all processes, and each would print a traceback; the main one ends the others.
    """
    came: list[int] = []
    # The mask is what new processes take over. It does not stop other threads from letting the signal in, and so this
    # one, if it is the one that is told, makes a note of it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    is_told = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number)) if is_told else None
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if is_told:
            signal.signal(signal.SIGINT, signal.SIG_DFL if handler is None else handler)
        if came and callable(handler):
            handler(came[0], None)


def mute_lost_receivers() -> None:
    """Let this process say nothing of one that left before it had taken the memory that it was to be given.

    For processes that read samples. A thread of ``multiprocessing`` (``resource_sharer``) hands on what they have read,
    and prints a traceback where the main process, interrupted, goes away in the middle of taking it.
    """
    before = sys.excepthook

    def told(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if not issubclass(kind, ConnectionError | EOFError):
            before(kind, error, traceback)

    sys.excepthook = told


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
