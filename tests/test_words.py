"""Words on the screen: numbers of things, and the first of many lines."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdml_med.words import counted, first_lines, named_failures, printable, verb
from tests.examples import examples


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (counted(0, "tile"), "0 tiles"),
        (counted(1, "tile"), "1 tile"),
        (counted(1200, "patient"), "1,200 patients"),
        (counted(1, "box", "es"), "1 box"),
        (counted(2, "box", "es"), "2 boxes"),
        (verb(1, "is", "are"), "is"),
        (verb(0, "is", "are"), "are"),
    ],
)
def test_one_thing_is_singular_and_any_other_number_is_not(said: str, expected: str) -> None:
    assert said == expected


@given(st.integers(0, 40), st.integers(1, 12))
@settings(max_examples=examples(100))
def test_no_line_is_lost_and_a_single_one_is_never_counted_instead_of_shown(count: int, shown: int) -> None:
    lines = first_lines([f"line {number}" for number in range(count)], shown=shown, where="failures.csv")
    left = 0
    if lines and "more" in lines[-1]:
        left = int(lines.pop().split()[1])
        assert left > 1
    assert lines == [f"  line {number}" for number in range(count - left)]


def test_names_cannot_steer_a_terminal_or_break_a_line() -> None:
    (line,) = named_failures([("a\x1b[2J\nb\u202e.svs", "x" * 1000)])
    assert line.isprintable()
    assert len(line) < 410
    assert "\\x1b[2J\\nb" in line


@given(st.text())
@settings(max_examples=examples(100))
def test_printable_is_printable_and_leaves_ordinary_names_alone(text: str) -> None:
    assert printable(text).isprintable()
    if text.isprintable():
        assert printable(text) == text
