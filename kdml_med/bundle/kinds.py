"""What settings can be: whole numbers, words, paths and so on, each with the words that say so."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch

from kdml_med.networks.anchors import STRIDES


@dataclass(frozen=True)
class Kind:
    """What a setting can be.

    Attributes:
        words: for people, such as "a whole number from 1".
        accepts: whether a value is one of them.
        convert: what is made of an accepted value.
        as_typed: whether a text on a command line is one as it stands, and not the number that Python reads in it.
    """

    words: str
    accepts: Callable[[Any], bool]
    convert: Callable[[Any], Any] = lambda value: value
    as_typed: bool = False


LARGEST = 2**31 - 1
"""Of all whole numbers: more overflows in torch, NumPy or memory, and is a slip of the hand."""


def whole(low: int, high: int | None = None) -> Kind:
    """A whole number in a range, ends included."""
    words = f"a whole number from {low}" + ("" if high is None else f" to {high}")
    return Kind(words, lambda value: is_whole(value) and low <= value <= (LARGEST if high is None else high), int)


def number(low: float, *, above: bool = False, high: float = math.inf) -> Kind:
    """A finite number from ``low``, or ``above`` it, up to ``high``."""
    words = f"a number {'above' if above else 'from'} {low:g}" + ("" if high == math.inf else f" to {high:g}")

    def accepts(value: Any) -> bool:
        found = _plain_number(value)
        return _is_number(found) and (low < found if above else low <= found) and bool(found <= high)

    return Kind(words, accepts, _plain_number)


def word(*choices: str) -> Kind:
    """One of some words."""
    return Kind(f"one of: {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices)


def optional(kind: Kind, meaning: str = "") -> Kind:
    """The kind, or None."""
    words = f"{kind.words}, or None{f' for {meaning}' if meaning else ''}"
    return Kind(
        words,
        lambda value: value is None or kind.accepts(value),
        lambda value: None if value is None else kind.convert(value),
        kind.as_typed,
    )


def one_or_each(kind: Kind, what: str) -> Kind:
    """The kind, or a list with one for each ``what``."""
    return Kind(
        f"{kind.words}; or a list with one for each {what}",
        lambda value: (
            kind.accepts(value)
            or (isinstance(value, list | tuple) and len(value) > 0 and all(map(kind.accepts, value)))
        ),
        lambda value: [*map(kind.convert, value)] if isinstance(value, list | tuple) else kind.convert(value),
        kind.as_typed,
    )


def some_of(*choices: str) -> Kind:
    """One or several of some words; becomes a list."""
    one = word(*choices)
    return Kind(
        f"{one.words}; or a list of several",
        lambda value: (
            one.accepts(value) or (isinstance(value, list | tuple) and len(value) > 0 and all(map(one.accepts, value)))
        ),
        lambda value: [value] if isinstance(value, str) else list(dict.fromkeys(value)),
    )


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_flag_text(value: Any) -> bool:
    """Whether a value is a text that means True or False, and would count as true: any text but the empty one does."""
    return isinstance(value, str) and value.lower() in ("true", "false")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _plain_number(value: Any) -> Any:
    """A number of Python; YAML takes 1e-3 for a text, and Python programs hand in numbers of NumPy."""
    if isinstance(value, str) or (is_whole(value) and abs(value) > LARGEST):
        try:
            return float(value)
        except OverflowError:  # a whole number of hundreds of digits
            return math.inf
        except ValueError:
            return value
    return value.item() if isinstance(value, Real) and hasattr(value, "item") else value


def _is_spec(value: Any) -> bool:
    name = value.get("name") if isinstance(value, Mapping) else value
    return isinstance(name, str) and name != ""


def _weight_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): str(path) for name, path in value.items()}
    return str(value)


def _is_input_size(value: Any) -> bool:
    sides = value if isinstance(value, list | tuple) else [value, value]
    return len(sides) == 2 and all(is_whole(side) and side > 0 and side % STRIDES[-1] == 0 for side in sides)


def _is_range(value: Any) -> bool:
    return (
        isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value)) and 0 < value[0] <= value[1]
    )


def _is_path(text: str) -> bool:
    return text != "" and "\0" not in text


FLAG = Kind("True or False", lambda value: isinstance(value, bool))
# A folder called 2026 comes from the command line as a number.
PATH = Kind(
    "a path",
    lambda value: (isinstance(value, str | Path) and _is_path(str(value))) or is_whole(value),
    str,
    as_typed=True,
)
TEXT = Kind("a name", lambda value: isinstance(value, str) and value != "", as_typed=True)
DEVICE = Kind(
    "cpu, cuda or cuda:0 and the like, or mps",
    lambda value: (
        isinstance(value, str | torch.device) and re.fullmatch(r"(cpu|mps|cuda)(:\d+)?", str(value)) is not None
    ),
    str,
)
SPEC = Kind("a network's name, an import path, or a mapping with 'name' and arguments", _is_spec, as_typed=True)
SPECS = Kind(
    "a list of networks, such as ['resnet18','resnet18']",
    lambda value: isinstance(value, list | tuple) and len(value) > 0 and all(map(_is_spec, value)),
)
WEIGHTS = Kind(
    "a path, imagenet, or a mapping of network or architecture names to these",
    lambda value: (
        PATH.accepts(value) or (isinstance(value, Mapping) and all(map(PATH.accepts, [*value.keys(), *value.values()])))
    ),
    _weight_paths,
    as_typed=True,
)
INPUT_SIZE = Kind(f"[height, width] or one side, pixels, multiples of {STRIDES[-1]}", _is_input_size)
RANGE = Kind("[low, high], both above 0", _is_range)
