"""Words for people that every room has in common: what results are not for, numbers of things, first lines of many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

RESEARCH_ONLY = "Research only, not for diagnosis"
"""Of pictures and tables, where room is short; ``NO_DEVICE`` where it is not."""
NO_DEVICE = "Research only. Not a medical device, not for diagnosis."
GENERATED_PICTURE = "Generated data: the picture shows that the pipeline works, it says nothing about patients."
GENERATED_FIGURES = (
    "Generated data: these figures show that the pipeline works, they say nothing about accuracy on patients."
)
SHOWN = 10
"""Lines of one kind that are shown; a file has them all."""
_LETTERS = 400  # of a line


def counted(count: int, what: str, plural: str = "s") -> str:
    """A number of things: "1 slide", "2,000 slides", "3 boxes"."""
    return f"{count:,} {what}{plural * (count != 1)}"


def verb(count: int, one: str, several: str) -> str:
    """The form of a verb that fits a number of things: "is" or "are"."""
    return one if count == 1 else several


def storable(name: str) -> str:
    """A file name that tables can hold: bytes that are not UTF-8 are written by their numbers."""
    return "".join(f"\\x{ord(letter) - 0xDC00:02x}" if "\udc80" <= letter <= "\udcff" else letter for letter in name)


def printable(text: str) -> str:
    """Text in one line, as a person can recognise it; ``storable``, too, and nothing in it steers a terminal."""
    shown = (letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in storable(text))
    return "".join(shown)


def first_lines(lines: Sequence[str], *, shown: int = SHOWN, where: object = None) -> list[str]:
    """The first of many lines, indented and printable, and how many more there are.

    Args:
        lines: all of them.
        shown: how many at most; a single one more is shown, too, as saying so would take as much room.
        where: file that has them all; None where there is none.
    """
    kept = lines if len(lines) <= shown + 1 else lines[:shown]
    left = len(lines) - len(kept)
    more = [f"  and {left:,} more" + ("" if where is None else f", in {where}")] if left else []
    return [*(f"  {_shorten(printable(line))}" for line in kept), *more]


def named_failures(failures: Iterable[tuple[str, str]], *, shown: int = SHOWN, where: object = None) -> list[str]:
    """``first_lines`` of inputs that could not be used, each (name, reason)."""
    return first_lines([f"{name}: {reason}" for name, reason in failures], shown=shown, where=where)


def _shorten(line: str) -> str:
    return line if len(line) <= _LETTERS else f"{line[: _LETTERS - 1]}…"
