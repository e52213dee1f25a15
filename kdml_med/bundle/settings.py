"""Values of the settings of a config: checked one by one, and by what they are for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any, Literal

from kdml_med.bundle.knobs import KNOBS, Knob, Shown, Stage
from kdml_med.errors import InputError
from kdml_med.keys import Task


class Settings(dict[str, Any]):
    """Checked values of the settings of a config, by name.

    Args:
        task: what the config is for.
        values: by name.

    Attributes:
        holds: what keeps other processes out of the folder that is written to, for as long as the settings live.
    """

    holds: object = None

    def __init__(self, task: Task, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.task = task

    def part(self, name: Literal["networks", "loss"]) -> dict[str, Any]:
        """What the builder of a part is handed."""
        return {knob.name: self[knob.name] for knob in knobs_of(self.task, "train") if knob.part == name}

    @property
    def recorded(self) -> dict[str, Any]:
        """What belongs to the run, see ``Knob.recorded``."""
        return {knob.name: self[knob.name] for knob in knobs_of(self.task, "train") if knob.recorded}

    @property
    def fixed(self) -> dict[str, Any]:
        """What belongs to the run and stays the same when it is continued."""
        return {name: value for name, value in self.recorded.items() if name not in free_settings()}

    @property
    def defaults(self) -> dict[str, Any]:
        """What they are in training where nobody sets them, as far as that is not worked out."""
        return default_settings(self.task, "train")


def knobs_of(task: Task, stage: Stage) -> list[Knob]:
    """Settings of a config of a task."""
    return [knob for knob in KNOBS if task in knob.tasks and stage in knob.stages]


def check_settings(task: Task | str, stage: Stage, values: Mapping[str, Any]) -> Settings:
    """Check settings one by one, and those that hang together.

    Args:
        task: what the config is for.
        stage: kind of the config.
        values: by name; what is absent has its default.

    Raises:
        InputError: there is no such setting, or a value is none of its kind; names the setting, its value and what is
            expected.
    """
    known = [knob.name for knob in knobs_of(Task(task), stage)]
    for name in values:
        if name not in known:
            raise unknown_setting(name, known)
    checked = {knob.name: knob.check(values[knob.name]) for knob in knobs_of(Task(task), stage) if knob.name in values}
    return Settings(Task(task), default_settings(Task(task), stage) | checked)


def default_settings(task: Task, stage: Stage) -> dict[str, Any]:
    """Settings of a config by name, as far as their defaults are not worked out."""
    defaults = {knob.name: knob.default_of(task) for knob in knobs_of(task, stage)}
    return {name: value for name, value in defaults.items() if not isinstance(value, Shown)}


def known_default(task: Task, name: str) -> Any:
    """Default of a setting in training; None where it is worked out or there is no such setting."""
    return default_settings(task, "train").get(name)


def free_settings() -> set[str]:
    """Names of settings that a continued run may change."""
    return {knob.name for knob in KNOBS if knob.free}


def unknown_setting(
    name: str, known: Collection[str], shown: Collection[str] | None = None, *, task: Task | str | None = None
) -> InputError:
    """What a name that is no setting says to a person.

    Args:
        name: as it was written.
        known: every name that could have been meant.
        shown: those that are listed, if not all of them.
        task: what the others are for; a setting of the other task is called that.
    """
    owners = {owner for knob in KNOBS if knob.name == name for owner in knob.tasks}
    if task is not None and owners and task not in owners:
        return InputError(f"unknown option --{name}: it is for {_OF_THE_OTHER[Task(task)]}. Leave it out.")
    if name in _GONE:
        return InputError(f"unknown option --{name}: {_GONE[name]}.")
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean --{near[0]}?" if near else ""
    return InputError(f"unknown option --{name}.{hint} Known: {', '.join(sorted(known if shown is None else shown))}.")


_GONE = {"amp": "say --precision fp16, or nothing for what suits the device"}
_OF_THE_OTHER = {
    Task.CLASSIFICATION: "frames and detectors, and this is about tiles and classifiers",
    Task.DETECTION: "tiles and classifiers, and this is about frames and detectors",
}
