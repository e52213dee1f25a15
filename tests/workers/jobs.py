"""Jobs that do what they are told, and note when; imports little, because worker processes import it."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kdml_med.errors import InputError

_CALLS = "calls.txt"
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Task:
    """One job: its name, what happens in it, and the names of those that it needs."""

    name: str
    does: str = "nothing"
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Explosive:
    """Takes down the process that receives it."""

    name: str

    def __reduce__(self) -> tuple[Callable[[int], None], tuple[int]]:
        return os._exit, (1,)


@dataclass(frozen=True)
class Stranger:
    """Cannot be received."""

    name: str

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return __import__, ("no_such_module",)


@dataclass(frozen=True)
class Slow:
    """Takes two seconds to receive, as a job does whose work has much to import."""

    name: str

    def __reduce__(self) -> tuple[Callable[[str], Task], tuple[str]]:
        return _receive_slowly, (self.name,)


def _receive_slowly(name: str) -> Task:
    time.sleep(2)
    return Task(name)


def do(task: Task, count: Callable[[int], None], *, folder: Path) -> str | None:
    """Do what the task says: end well, fail, or be the end of a process."""
    _note(folder, "begin", task)
    first = calls(folder, "begin").count(task.name) == 1
    match task.does:
        case "fail":
            return "it was to fail"
        case "raise":
            raise ValueError("it was to raise\nin two lines")
        case "exit":
            raise SystemExit("it was to exit")
        case "refuse":
            raise InputError("the output cannot be written.")
        case "refuse when another hangs":
            _wait_until((folder / "hangs").exists)
            raise InputError("the output cannot be written.")
        case "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        case "fork and crash":
            if os.fork() == 0:
                time.sleep(_TIMEOUT_S / 3)
            os._exit(1)
        case "crash once" if first:
            os._exit(1)
        case "meet":
            _wait_until(lambda: len(calls(folder, "begin")) >= 2)
        case "count in threads":
            threads = [threading.Thread(target=lambda: [count(1) for _ in range(1000)]) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        case "nap":
            time.sleep(2)
        case "tell now and then" | "count now and then" as how:
            for _ in range(8):
                time.sleep(0.25)
                count(int(how == "count now and then"))
        case "hang" | "hang once" as how if how == "hang" or first:
            (folder / "hangs").touch()
            time.sleep(10 * _TIMEOUT_S)
        case "hang in C":
            (folder / "hangs").touch()
            re.match("(a+)+$", "a" * 60 + "b")  # for ages, and no other thread of the process runs meanwhile
    _note(folder, "end", task)
    return None


def _wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen")
        time.sleep(0.02)


def _note(folder: Path, what: str, task: Task) -> None:
    with (folder / _CALLS).open("a") as stream:
        stream.write(f"{what} {task.name} {os.getpid()}\n")


def _noted(folder: Path) -> list[list[str]]:
    path = folder / _CALLS
    return [line.split() for line in path.read_text().splitlines()] if path.is_file() else []


def calls(folder: Path, what: str | None = None) -> list[str]:
    """What was noted: "begin a", ...; or only the names of those that began, or ended."""
    return [f"{word} {name}" if what is None else name for word, name, _ in _noted(folder) if what in (None, word)]


def processes(folder: Path) -> list[int]:
    """Process ids that began a job, each once, in order."""
    return list(dict.fromkeys(int(pid) for _, _, pid in _noted(folder)))
