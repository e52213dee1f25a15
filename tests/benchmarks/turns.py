"""Methods that stay ready and take short turns, so that they can be compared step by step.

A library of networks takes longer to import than a step takes. So a stable imports once, and forks a racer for each
method that is asked for; the racer prepares, and then makes as many steps as it is told, whenever it is its turn. This
module imports nothing of the project but ``racing`` and nothing outside the standard library: peers use it in an
environment of their own.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.racing import MARK, RaceError, cpu_seconds, heard, peak_mib, reset_peak

Work = Callable[[int], None]
"""Makes this many steps."""
_PATIENCE_S = 120.0


@dataclass(frozen=True)
class Turn:
    """Some steps of a method.

    Attributes:
        steps: that were made.
        seconds: that they took.
        cpu_seconds: likewise, of all threads.
        peak_mib: most memory that the racer has held so far, its preparation left out, beyond what it held before that.
        device_mib: likewise of a GPU; 0 without one.
    """

    steps: int
    seconds: float
    cpu_seconds: float
    peak_mib: float
    device_mib: float


def serve(
    prepare: Callable[[dict[str, Any]], Work],
    *,
    warm_up: Callable[[dict[str, Any]], None] = lambda asked: None,
    device_mib: Callable[[], float] = lambda: 0.0,
) -> None:
    """The program of a stable: forks a racer for each line of its standard input, until that ends.

    Args:
        prepare: gets the method ready that the racer was asked for.
        warm_up: touches what every method needs that was asked for, code of libraries for example, so that it does not
            count as memory; gives back what it held itself.
        device_mib: most memory of a GPU so far.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # racers that end leave nothing behind
    print(MARK + "ready", flush=True)
    for line in sys.stdin:
        if os.fork() == 0:
            try:
                _race(json.loads(line), prepare, warm_up, device_mib)
            finally:
                os._exit(0)


def _race(
    asked: dict[str, Any],
    prepare: Callable[[dict[str, Any]], Work],
    warm_up: Callable[[dict[str, Any]], None],
    device_mib: Callable[[], float],
) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    silence = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(silence, number)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(asked["address"])
        with connection.makefile("rw") as stream:

            def say(answer: Mapping[str, Any]) -> None:
                print(json.dumps(answer), file=stream, flush=True)

            try:
                warm_up(asked["method"])
                reset_peak()
                before = peak_mib()
                work = prepare(asked["method"])
                reset_peak()
                say({})
                for line in stream:
                    turn = _take_turn(work, int(line))
                    say(turn | {"peak_mib": peak_mib() - before, "device_mib": device_mib()})
            except Exception as error:
                say({"error": f"{type(error).__name__}: {error}"})


def _take_turn(work: Work, steps: int) -> dict[str, float]:
    cpu, start = cpu_seconds(), time.perf_counter()
    work(steps)
    return {"steps": steps, "seconds": time.perf_counter() - start, "cpu_seconds": cpu_seconds() - cpu}


class Racer:
    """A method that is ready; see ``Stable.racer``."""

    def __init__(self, connection: socket.socket) -> None:
        self._stream = connection.makefile("rw")
        connection.close()  # the stream keeps it open
        self._heard()

    def take(self, steps: int) -> Turn:
        """Make steps.

        Raises:
            RaceError: the racer failed or died.
        """
        print(steps, file=self._stream, flush=True)
        return Turn(**self._heard())

    def close(self) -> None:
        """End the racer."""
        self._stream.close()

    def _heard(self) -> dict[str, Any]:
        line = self._stream.readline()
        if not line:
            raise RaceError("it ended without a word: was memory short?")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RaceError(answer["error"])
        return answer


class Stable:
    """Starts racers of one program; see ``stable``."""

    def __init__(self, program: subprocess.Popen[str], listener: socket.socket) -> None:
        self._program, self._listener = program, listener
        heard(program)

    def racer(self, method: Mapping[str, Any]) -> Racer:
        """Get a method ready.

        Raises:
            RaceError: it cannot be prepared; the message says why.
        """
        assert self._program.stdin is not None
        print(json.dumps({"address": self._listener.getsockname(), "method": method}), file=self._program.stdin)
        self._program.stdin.flush()
        connection, _ = self._listener.accept()
        connection.settimeout(None)
        return Racer(connection)


@contextmanager
def stable(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[Stable]:
    """Start a program that calls ``serve``, and end it with all its racers.

    Args:
        command: that starts it.
        environment: added to that of this process.

    Raises:
        RaceError: it does not start; the message is the end of what it said.
    """
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(Path(folder, "socket")))
        listener.listen()
        listener.settimeout(_PATIENCE_S)
        program = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        try:
            yield Stable(program, listener)
        finally:
            program.communicate()


def take_turns(
    racers: Mapping[str, Racer], rounds: int, *, seconds: float, most_steps: int = 20
) -> dict[str, list[Turn]]:
    """Let racers take turns; every other round goes backwards, so that drift of the machine meets all alike.

    Args:
        racers: by name.
        rounds: that count, behind a step or two of each that warm up.
        seconds: that a turn should last at least; slower steps are made one by one.
        most_steps: of a turn.

    Raises:
        RaceError: a racer failed.
    """
    steps = {}
    for name, racer in racers.items():
        took = racer.take(1).seconds
        if took < seconds:  # the first step is slower than others
            took = racer.take(1).seconds
        steps[name] = max(1, min(most_steps, round(seconds / took)))
    turns: dict[str, list[Turn]] = {name: [] for name in racers}
    for number in range(rounds):
        order = list(racers)
        for name in reversed(order) if number % 2 else order:
            turns[name].append(racers[name].take(steps[name]))
    return turns


@dataclass(frozen=True)
class Ratio:
    """How one thing compares with another, round by round.

    Attributes:
        median: over the rounds.
        spread: (largest - smallest) / median.
    """

    median: float
    spread: float


def ratio(values: Sequence[float], others: Sequence[float]) -> Ratio:
    """Compare figures of the same rounds."""
    each = [value / other for value, other in zip(values, others, strict=True)]
    median = statistics.median(each)
    return Ratio(median, (max(each) - min(each)) / median)
