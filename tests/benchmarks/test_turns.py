"""Racers that are forked and take turns measure what they say; nothing here depends on how fast anything is."""

from __future__ import annotations

import sys

import pytest

from tests.benchmarks.racing import RaceError
from tests.benchmarks.turns import Racer, Turn, ratio, stable, take_turns

STABLE = """
import os, time
from tests.benchmarks.turns import serve

def prepare(asked):
    if asked["what"] == "refuse":
        raise ValueError("no such method")
    preparing = bytearray(asked.get("preparing_mib", 0) << 20)
    del preparing
    kept = []

    def work(steps):
        for _ in range(steps):
            if asked["what"] == "die":
                os._exit(1)
            if asked["what"] == "keep":
                kept.append(bytearray(os.urandom(1 << 20) * 16))
            end = time.process_time() + asked.get("cpu", 0)
            while time.process_time() < end:
                pass
            time.sleep(asked.get("sleep", 0))

    return work

print("a library says hello")
serve(prepare)
"""
COMMAND = [sys.executable, "-c", STABLE]


def test_racers_of_one_stable_take_turns_and_are_measured_alone() -> None:
    with stable(COMMAND) as own:
        busy = own.racer({"what": "work", "cpu": 0.05})
        idle = own.racer({"what": "work", "sleep": 0.05})
        turns = [busy.take(3), idle.take(3), busy.take(2)]
        assert [turn.steps for turn in turns] == [3, 3, 2]
        assert turns[0].cpu_seconds >= 0.14
        assert turns[1].seconds >= 0.15
        assert turns[1].cpu_seconds < 0.14
        assert turns[2].cpu_seconds >= 0.09


def test_memory_is_that_of_the_steps_without_the_preparation() -> None:
    with stable(COMMAND) as own:
        nothing = own.racer({"what": "work", "preparing_mib": 400}).take(1)
        much = own.racer({"what": "keep"}).take(4)
    assert nothing.peak_mib < 32
    assert 64 <= much.peak_mib < 160


@pytest.mark.parametrize(("what", "words"), [("refuse", "no such method"), ("die", "ended without a word")])
def test_a_racer_that_fails_says_why_and_others_go_on(what: str, words: str) -> None:
    with stable(COMMAND) as own:
        other = own.racer({"what": "work"})
        with pytest.raises(RaceError, match=words):
            own.racer({"what": what}).take(1)
        assert other.take(1).steps == 1


def test_a_stable_that_does_not_start_says_why() -> None:
    start = stable([sys.executable, "-c", "raise SystemExit('no such library')"])
    with pytest.raises(RaceError, match="no such library"), start:
        pass


class FakeRacer(Racer):
    """Steps of a given length; notes whose turn it was."""

    def __init__(self, name: str, seconds: float, seen: list[str]) -> None:
        self.name, self.seconds, self.seen = name, seconds, seen

    def take(self, steps: int) -> Turn:
        self.seen.append(f"{self.name}{steps}")
        return Turn(steps, steps * self.seconds, 0.0, 0.0, 0.0)


def test_every_other_round_goes_backwards_and_short_steps_are_repeated() -> None:
    seen: list[str] = []
    racers = {name: FakeRacer(name, seconds, seen) for name, seconds in {"a": 2.0, "b": 0.25, "c": 0.001}.items()}
    turns = take_turns(racers, 2, seconds=1.0, most_steps=20)
    assert seen == ["a1", "b1", "b1", "c1", "c1", "a1", "b4", "c20", "c20", "b4", "a1"]
    assert {name: len(each) for name, each in turns.items()} == {"a": 2, "b": 2, "c": 2}


def test_ratios_are_of_the_same_rounds() -> None:
    found = ratio([2.0, 8.0, 3.0], [1.0, 2.0, 3.0])
    assert found.median == 2.0
    assert found.spread == pytest.approx((4 - 1) / 2)
