"""Settings of bundles in a plan, checked before anything is trained: else every training would end with them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from kdml_med.bundle.kinds import is_flag_text
from kdml_med.bundle.settings import check_settings, knobs_of
from kdml_med.bundle.training_checks import check_contradictions
from kdml_med.bundle.workflow import check_names, read_configs
from kdml_med.errors import InputError
from kdml_med.experiments.arms import NUMBER_OF_STUDENTS
from kdml_med.keys import Task

# Set for each training or evaluation, or arguments of the command that runs a bundle.
_RUN_SETTINGS = {
    "run_dir", "bundle_root", "config_file", "meta_file", "logging_file", "args_file", "run_id", "init_id", "final_id",
    "tracking", "tracking_uri", "experiment_name", "workflow_type", "properties_path",
}  # fmt: skip
_TRAINING_SETTINGS = _RUN_SETTINGS | {"seed", "fold", "version", "dataset_dir", "teacher_checkpoint", "resume"}
_OWN = {"train": _TRAINING_SETTINGS, "evaluate": _RUN_SETTINGS | {"output_dir"}}
_TEACHER_WHERE_NEEDED = "$@beta > 0"
"""How our configs, and those made after them, work out ``use_teacher``."""


def check_values(
    bundle: Path, task: Task, settings: Mapping[str, Any], where: str, *, stage: Literal["train", "evaluate"]
) -> None:
    """Check names against the bundle's configs, and values against what the settings may be.

    Args:
        bundle: its folder.
        task: of the bundle.
        settings: by name.
        where: the plan, for messages.
        stage: what they are for.

    Raises:
        InputError: says which setting is wrong, what was expected and what to do.
    """
    files = ["train.json"] if stage == "train" else ["train.json", "evaluate.json"]
    paths = [bundle / "configs" / name for name in files]
    knobs = {knob.name: knob for knob in knobs_of(task, stage)}
    for name, value in settings.items():
        if name == NUMBER_OF_STUDENTS and stage == "train":
            continue  # no setting of a bundle; checked where students are made of it
        if name in _OWN[stage]:
            raise InputError(f"{where}: {name!r} is no setting of a plan; it is set for each training.")
        if is_flag_text(value):
            raise InputError(f"{where}: setting {name!r} is the text {value!r}: write {value.lower()} without quotes.")
        try:
            check_names([name], read_configs(paths), task)
        except InputError as error:
            known = [*_shown(paths), NUMBER_OF_STUDENTS]
            raise InputError(
                f"{where}: unknown setting {name!r}.{near(name, known)} Known: {', '.join(sorted(known))}."
            ) from error
        if name in knobs:
            try:
                checked = knobs[name].check(value)
            except InputError as error:
                raise InputError(f"{where}: {str(error).removeprefix('--')}") from error
            if isinstance(value, str) and isinstance(checked, int | float):  # a command line has texts only
                raise InputError(f"{where}: setting {name!r} is the text {value!r}: write {value} without quotes.")


def check_training(bundle: Path, task: Task, settings: Mapping[str, Any], *, frozen_teacher: bool) -> None:
    """Refuse what the bundle would refuse on every machine.

    Args:
        bundle: its folder.
        task: of the bundle.
        settings: of one training.
        frozen_teacher: whether it gets a teacher that was trained before.

    Raises:
        InputError: settings contradict each other.
    """
    config = json.loads((bundle / "configs" / "train.json").read_text())
    # MONAI leaves out overrides that are None.
    given = {**config, **{name: value for name, value in settings.items() if value is not None}}
    names = {knob.name for knob in knobs_of(task, "train")} - {"dataset_dir", "run_dir", "device"}
    values = {name: value for name, value in given.items() if name in names}
    if values.get("use_teacher") == _TEACHER_WHERE_NEEDED:
        del values["use_teacher"]
    if any(isinstance(value, str) and value.startswith(("$", "@")) for value in values.values()):
        return  # a bundle of one's own may work out anything
    checked = check_settings(task, "train", values)
    checked.setdefault("use_teacher", checked["beta"] > 0)
    if frozen_teacher:
        checked["teacher_checkpoint"] = "trained before"
    check_contradictions(checked)


def told_evaluations(evaluations: Any, *, folds: bool) -> Any:
    """Evaluations without the test fold where each training has its own, which earlier versions let a plan name.

    Args:
        evaluations: of a plan or of a record.
        folds: whether the plan, or the training, has test folds.
    """
    if not folds or not isinstance(evaluations, Mapping):  # of a record that was edited
        return evaluations
    return {
        name: {key: value for key, value in settings.items() if key != "fold"}
        if isinstance(settings, Mapping) and "dataset_dir" not in settings
        else settings
        for name, settings in evaluations.items()
    }


def _shown(paths: Sequence[Path]) -> list[str]:
    """Plain values of configs: what one would want to set."""
    content = {name: value for path in paths for name, value in json.loads(path.read_text()).items()}
    hidden = _TRAINING_SETTINGS | {"imports", "initialize", "run", "network", "trained"}
    return [name for name, value in content.items() if not isinstance(value, dict) and name not in hidden]


def near(name: str, known: Iterable[str]) -> str:
    """A hint at the known name that resembles an unknown one most, with a blank in front; "" where none does."""
    found = get_close_matches(name, list(known), n=1)
    return f" Did you mean {found[0]!r}?" if found else ""
