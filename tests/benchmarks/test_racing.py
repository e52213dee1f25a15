"""The benches measure what they say; nothing here depends on how fast anything is."""

from __future__ import annotations

import sys

import pytest

from tests.benchmarks.racing import Lap, RaceError, race, standing

RACER = """
import time
from tests.benchmarks.racing import take_part

def work():
    end = time.process_time() + {cpu}
    while time.process_time() < end:
        pass
    time.sleep({sleep})
    return {items}

take_part(work)
"""


def racer(items: int, *, cpu: float = 0.0, sleep: float = 0.0) -> list[str]:
    return [sys.executable, "-c", RACER.format(items=items, cpu=cpu, sleep=sleep)]


def test_processes_of_a_race_are_summed_up() -> None:
    lap = race([racer(3, cpu=0.2), racer(4, sleep=0.3)])
    assert lap.items == 7
    assert lap.seconds >= 0.3
    assert lap.cpu_seconds >= 0.2
    assert lap.peak_mib > 1


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RaceError, match="no such slide"):
        race([racer(1), [sys.executable, "-c", "raise SystemExit('no such slide')"]])


def test_work_that_fails_says_why() -> None:
    with pytest.raises(RaceError, match="ZeroDivisionError"):
        race([[sys.executable, "-c", RACER.format(items="1 / 0", cpu=0, sleep=0)]])


def test_a_standing_is_the_median_of_the_rounds() -> None:
    laps = [Lap(100, 1.0, 0.5, 10.0), Lap(100, 2.0, 0.6, 30.0), Lap(100, 4.0, 0.7, 20.0)]
    own = standing(laps)
    assert own.rate == 50
    assert own.spread == pytest.approx((100 - 25) / 50)
    assert own.cpu_seconds == pytest.approx(6.0)
    assert own.peak_mib == 30
