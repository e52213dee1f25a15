"""Grids of settings in a plan, each point an arm of its own."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kdml_med.errors import InputError
from kdml_med.experiments.arms import KDML

NAME = re.compile(r"[A-Za-z0-9_=+-][A-Za-z0-9_=+.-]{0,99}")
"""What an arm can be called."""


def sweep_axes(sweep: Mapping[str, Any]) -> list[str]:
    """Settings that a grid sweeps, sorted as in the stored plan.json: their order names the arms."""
    return sorted(key for key in sweep if key != "arm")


def swept_arms(sweep: Mapping[str, Any], where: str) -> Iterable[tuple[str, str, Mapping[str, Any]]]:
    """Name, the built-in arm it is like, and the settings of every point of a grid.

    Raises:
        InputError: an axis is no list of values, there is none, or a value gives no name.
    """
    like = sweep.get("arm", KDML)
    for settings in _grid(sweep, where):
        label = "_".join(f"{name}={_label(name, value, where)}" for name, value in settings.items())
        yield f"{like}_{label}", like, settings


def _grid(sweep: Mapping[str, Any], where: str) -> Iterable[dict[str, Any]]:
    axes = {key: sweep[key] for key in sweep_axes(sweep)}
    for key, values in axes.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise InputError(f"{where}: sweep over {key!r}: {values!r}, expected a list of values.")
    if not axes:
        raise InputError(f'{where}: a sweep without a setting; expected such as {{"arm": "kdml", "beta": [0.5, 2]}}.')
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def value_words(value: Any) -> str:
    """A swept value as text; a list of plain ones is joined with +."""
    return "+".join(str(part) for part in _parts(value))


def _parts(value: Any) -> list[Any]:
    return value if isinstance(value, list) and value else [value]


def _label(setting: str, value: Any, where: str) -> str:
    """A value in the name of an arm."""
    parts, label = _parts(value), value_words(value)
    if any(isinstance(part, Mapping | list) for part in parts) or not NAME.fullmatch(f"_{label}"):
        raise InputError(
            f"{where}: sweep over {setting!r}: {value!r} gives no name for a folder. Write it as an arm with a name: "
            f'{{"name": "…", "like": "{KDML}", "settings": {{"{setting}": …}}}}.'
        )
    return label
