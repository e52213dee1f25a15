"""Methods measured from inside, in processes of their own that begin together.

A process prepares (imports, opened files, pixels to encode), says that it is ready, waits for the word and works. The
wall time is from the first beginning to the last end, so start-up and preparation are not in it. This module imports
nothing of the project and nothing outside the standard library: peers use it in an environment of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MARK = "@@ "


@dataclass(frozen=True)
class Lap:
    """One turn of a method.

    Attributes:
        items: that were made, by all processes together.
        seconds: from the first beginning to the last end.
        cpu_seconds: of all processes, with their threads and children.
        peak_mib: most memory that one process held at any time, preparation included.
    """

    items: float
    seconds: float
    cpu_seconds: float
    peak_mib: float


class RaceError(Exception):
    """A process ended without a result; the message is the end of what it said."""


def cpu_seconds() -> float:
    """Of this process and its children, those that have ended and those that live."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ended = sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, kinds))
    return ended + sum(map(_living_seconds, _children()))


def _children() -> list[str]:
    lists = Path("/proc/self/task").glob("*/children")
    return [child for path in lists for child in path.read_text().split()]


def _living_seconds(child: str) -> float:
    try:
        fields = Path("/proc", child, "stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has just ended
        return 0.0
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def peak_mib() -> float:
    """Most resident memory of this process since it began, or of the largest child."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    status = Path("/proc/self/status")
    if not status.exists():
        return max(children, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    # Not ru_maxrss of this process: that counts the process it was forked from.
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return max(children, int(line.split()[1]) / 1024)


def reset_peak() -> None:
    """Forget the most memory of this process so far, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def take_part(work: Callable[[], float]) -> None:
    """Say that this process is ready, wait for the word, work, and report; ``work`` returns the items it made."""
    print(MARK + "ready", flush=True)
    if not sys.stdin.readline():
        return
    cpu, start = cpu_seconds(), time.monotonic()
    items = work()
    result = {"items": items, "start": start, "end": time.monotonic(), "cpu": cpu_seconds() - cpu}
    print(MARK + json.dumps(result | {"peak": peak_mib()}), flush=True)


def race(commands: Sequence[Sequence[str]], environment: Mapping[str, str] | None = None) -> Lap:
    """Start the processes of one method, let them go together, and sum up.

    Args:
        commands: one for each process; each has to call ``take_part``.
        environment: added to that of this process.

    Raises:
        RaceError: a process failed.
    """
    racers = [
        subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        )
        for command in commands
    ]
    try:
        for racer in racers:
            heard(racer)
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        results = [json.loads(heard(racer)) for racer in racers]
    finally:
        for racer in racers:
            racer.communicate()
    return Lap(
        items=sum(result["items"] for result in results),
        seconds=max(result["end"] for result in results) - min(result["start"] for result in results),
        cpu_seconds=sum(result["cpu"] for result in results),
        peak_mib=max(result["peak"] for result in results),
    )


def timed(command: Sequence[str], checkout: Path) -> tuple[float, float]:
    """Run a whole command of a checkout; returns its seconds and CPU seconds, those of its children included.

    Raises:
        RaceError: the command failed; the message is the end of what it said.
    """
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    before, start = cpu_seconds(), time.perf_counter()
    done = subprocess.run(list(command), capture_output=True, text=True, cwd=checkout, env=environment, check=False)
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - before
    if done.returncode:
        raise RaceError(next((line for line in reversed((done.stdout + done.stderr).splitlines()) if line), command[0]))
    return seconds, cpu


def heard(racer: subprocess.Popen[str]) -> str:
    assert racer.stdout is not None
    said: list[str] = []
    for line in racer.stdout:
        if line.startswith(MARK):
            return line.removeprefix(MARK).strip()
        said.append(line.strip())
    raise RaceError(next((line for line in reversed(said) if line), "it said nothing"))


@dataclass(frozen=True)
class Standing:
    """Median laps of one method.

    Attributes:
        rate: items per second.
        spread: of that, (largest - smallest) / median.
        cpu_seconds: for 1,000 items.
        peak_mib: of the largest process.
    """

    rate: float
    spread: float
    cpu_seconds: float
    peak_mib: float


def standing(laps: Sequence[Lap]) -> Standing:
    """Medians over the rounds."""
    rates = [lap.items / lap.seconds for lap in laps]
    rate = statistics.median(rates)
    return Standing(
        rate=rate,
        spread=(max(rates) - min(rates)) / rate,
        cpu_seconds=statistics.median(1000 * lap.cpu_seconds / lap.items for lap in laps),
        peak_mib=max(lap.peak_mib for lap in laps),
    )


def describe_machine() -> str:
    """Processor, cores, memory and Python of this machine, in one line."""
    name = platform.processor() or platform.machine()
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        name = next(
            (s.split(":")[1].strip() for s in facts.read_text().splitlines() if s.startswith("model name")), name
        )
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name}, {os.cpu_count()} cores, {gib:.0f} GiB, {platform.system()}, Python {platform.python_version()}"
