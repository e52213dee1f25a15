"""Settings of the bundles as options of the console command, made from the one list of settings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer
from fire.parser import DefaultParseValue

from kdml_med.bundle.help import defaults_words, plain
from kdml_med.bundle.kinds import FLAG, PATH, TEXT
from kdml_med.bundle.knobs import KNOBS, Knob, Stage
from kdml_med.errors import ExitCode
from kdml_med.keys import Task
from kdml_med.program import escaped

_TASKS = {Task.CLASSIFICATION: "MSI", Task.DETECTION: "polyps"}
_PLACES = {"run_dir": "run", "dataset_dir": "data", "output_dir": "out"}
# Settings that a text names; those of one word could be any word.
_SETTING = re.compile(rf"(?<!-)\b(?:{'|'.join(knob.name for knob in KNOBS if '_' in knob.name)})\b")
_BRACKETS, _QUOTES = ("[", "{", "("), ("'", '"')
_METAVARS = {"a whole number": "INTEGER", "a number": "NUMBER", "a path": "PATH", "a name": "NAME", "one of": "WORD"}


def with_knobs(command: Callable[..., ExitCode], stage: Stage, names: Iterable[str]) -> Callable[..., ExitCode]:
    """A command that takes settings as options beside its own parameters.

    Args:
        command: its last parameter ``settings``, a dictionary, gets those that were given.
        stage: of the config that they are for.
        names: of the settings.
    """
    signature = inspect.signature(command, eval_str=True)
    own = {name: one for name, one in signature.parameters.items() if name != "settings"}
    options = {name: _parameter(name, stage) for name in names}

    def run(**given: Any) -> ExitCode:
        settings = {name: given.pop(name) for name in options}
        read = {name: _read(value, name, stage) for name, value in settings.items() if value is not None}
        return command(**given, settings=read)

    parameters = [*own.values(), *options.values()]
    run.__doc__ = command.__doc__
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _read(value: Any, name: str, stage: Stage) -> Any:
    """What was typed, as the bundles' command line reads it: 0.001, [256,320] and None as Python.

    But 2026_11_30 and "run #2" stay paths and names: Python reads a number there, and a comment.
    """
    if not isinstance(value, str):
        return value
    found = DefaultParseValue(value)
    as_typed = all(knob.kind.as_typed for knob in _knobs(name, stage))
    meant = found is None or value[:1] in _QUOTES or (value[:1] in _BRACKETS and isinstance(found, list | tuple | dict))
    return value if as_typed and not meant else found


def _knobs(name: str, stage: Stage) -> list[Knob]:
    """Settings of a name: the tasks can have one each."""
    return [knob for knob in KNOBS if knob.name == name and stage in knob.stages]


def _parameter(name: str, stage: Stage) -> inspect.Parameter:
    knobs = _knobs(name, stage)
    word = name.replace("_", "-")
    how: dict[str, Any] = {"help": _help(knobs), "rich_help_panel": knobs[0].group, "show_default": False}
    if knobs[0].kind is FLAG:
        annotation: Any = Annotated[bool | None, typer.Option(f"--{word}/--no-{word}", **how)]
    else:
        annotation = Annotated[str | None, typer.Option(f"--{word}", metavar=_metavar(knobs[0]), **how)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _option(found: re.Match[str]) -> str:
    return f"--{_PLACES.get(found[0], found[0].replace('_', '-'))}"


def _metavar(knob: Knob) -> str:
    return next((word for words, word in _METAVARS.items() if knob.kind.words.startswith(words)), "VALUE")


def _help(knobs: list[Knob]) -> str:
    """Meaning, values and default; where the tasks have a setting of their own each, one after the other."""
    parts = []
    for knob in knobs:
        task = f"{' and '.join(_TASKS[task] for task in knob.tasks)}: " if len(knob.tasks) < len(Task) else ""
        values = "" if knob.kind in (FLAG, PATH, TEXT) else f"; {plain(knob.kind.words)}"
        default = {"True": "on", "False": "off"}.get(defaults_words(knob), defaults_words(knob))
        parts.append(f"{task}{plain(knob.help)}{values}. [default: {default}]")
    # A table of a terminal breaks lines at blanks only.
    text = _SETTING.sub(_option, " ".join(parts)).replace("','", "', '")
    return escaped(text[0].upper() + text[1:])
