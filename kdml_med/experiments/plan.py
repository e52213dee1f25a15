"""The plan file: which arms, versions, seeds and folds, on which dataset, judged on what."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from kdml_med.bundle.command_line import check_command_line
from kdml_med.errors import InputError
from kdml_med.experiments.arms import ARMS, KDML, PAPER_ARMS, TEACHER_ONLY, Arm, arm_settings
from kdml_med.keys import Task
from kdml_med.networks.registry import cohort_spec

CELLS_DIR = "cells"
METRICS: dict[Task, tuple[str, ...]] = {
    Task.CLASSIFICATION: ("auroc", "tile_auroc"),
    Task.DETECTION: ("ap50", "ap75", "ap"),
}
"""What arms can be compared by; the first is what a plan compares unless it says otherwise."""
_OWN_SETTINGS = {"seed", "fold", "version", "dataset_dir", "run_dir", "teacher_checkpoint", "resume", "bundle_root"}
_NAME_LETTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-=.+")


@dataclass(frozen=True)
class Plan:
    """Content of a plan file. Relative paths start at the folder that the command is started in.

    Attributes:
        name: heading of the report.
        bundle: bundle folder, such as "bundles/msi_kdml".
        dataset_dir: dataset folder with frozen splits.
        versions: names of teacher-student versions.
        arms: names of ``ARMS``, or mappings with "name", "like" (a name of ``ARMS``) and "settings".
        seeds: each is one paired repetition.
        folds: test folds, where the dataset has folds; every fold is tested with every seed.
        settings: bundle settings that all arms share, and ``number_of_students``.
        sweeps: grids, each a mapping with "arm" (default kdml) and lists of values by setting.
        evaluations: what to evaluate on by name: settings of evaluate.json, such as "dataset_dir" and "split".
        reference: the arm that is compared with every other one.
        metric: what is compared, one of ``METRICS``; None for the task's usual one.
        threads: of one training; part of the plan because the number changes the last digits.
        keep_checkpoints: keep what is only needed to go on with a finished training.
    """

    name: str
    bundle: str
    dataset_dir: str
    versions: Sequence[str]
    arms: Sequence[str | Mapping[str, Any]] = field(default_factory=lambda: list(PAPER_ARMS))
    seeds: Sequence[int] = (0, 1, 2)
    folds: Sequence[int] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    sweeps: Sequence[Mapping[str, Any]] = ()
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"test": {"split": "test"}})
    reference: str = KDML
    metric: str | None = None
    threads: int = 1
    keep_checkpoints: bool = False

    @property
    def task(self) -> Task:
        """What the bundle trains."""
        config = json.loads((Path(self.bundle) / "configs" / "train.json").read_text())
        return Task(config["network_def"].get("task", Task.CLASSIFICATION))


@dataclass(frozen=True)
class Cell:
    """One training of a plan, with everything that decides its result.

    Attributes:
        version: name of the version.
        arm: name of the arm.
        seed: of initial weights, order and augmentation.
        fold: test fold; None without folds.
        settings: for the bundle, as in its settings.json; paths of other cells are not among them.
        needs: path of the cell whose teacher is used, relative to the results folder.
    """

    version: str
    arm: str
    seed: int
    fold: int | None
    settings: Mapping[str, Any]
    needs: str | None = None

    @property
    def path(self) -> str:
        """Folder below the results folder."""
        return cell_path(self.version, self.arm, self.seed, self.fold)

    @property
    def teacher_alone(self) -> bool:
        """Whether its only student is the teacher."""
        return self.arm == TEACHER_ONLY


def cell_path(version: str, arm: str, seed: int, fold: int | None) -> str:
    """Folder of a cell below the results folder."""
    last = f"seed{seed}" if fold is None else f"seed{seed}-fold{fold}"
    return f"{CELLS_DIR}/{version}/{arm}/{last}"


def read_plan(path: Path) -> Plan:
    """Read and check a plan file.

    Raises:
        InputError: says which key is wrong, what was expected and what to do.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"plan file {path} does not exist.")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise InputError(f'{path} holds a {type(content).__name__}, expected an object such as {{"name": …}}.')
    return make_plan(content, where=str(path))


def make_plan(content: Mapping[str, Any], *, where: str = "the plan") -> Plan:
    """Check the content of a plan file.

    Raises:
        InputError: see ``read_plan``.
    """
    known = [item.name for item in fields(Plan)]
    for key in content:
        if key not in known:
            raise InputError(f"{where}: unknown key {key!r}.{_near(key, known)} Known: {', '.join(known)}.")
    missing = [key for key in ("name", "bundle", "dataset_dir", "versions") if key not in content]
    if missing:
        raise InputError(f"{where} lacks {', '.join(missing)}.")
    plan = Plan(**content)
    if not (Path(plan.bundle) / "configs" / "train.json").is_file():
        raise InputError(
            f"{where}: bundle {plan.bundle!r} has no configs/train.json; relative paths start at {Path.cwd()}."
        )
    _check_lists(plan, where)
    names = list(named_arms(plan, where))
    if plan.reference not in names:
        raise InputError(f"{where}: reference {plan.reference!r} is none of the arms {', '.join(names)}.")
    known_metrics = METRICS[plan.task]
    if plan.metric is not None and plan.metric not in known_metrics:
        raise InputError(
            f"{where}: metric {plan.metric!r}: bundle {plan.bundle!r} can be compared by {', '.join(known_metrics)}."
        )
    for evaluation in plan.evaluations.values():
        _check_settings(plan, evaluation, where, files=["train.json", "evaluate.json"])
    expand(plan, where=where)
    return plan


def plan_content(plan: Plan) -> dict[str, Any]:
    """The plan as it is stored beside the results."""
    content: dict[str, Any] = json.loads(json.dumps(asdict(plan)))
    return content


def named_arms(plan: Plan, where: str = "the plan") -> dict[str, tuple[Arm, dict[str, Any]]]:
    """Every arm of a plan by name, with the settings that it adds to those of the plan; sweeps included.

    ``teacher_only`` comes first when another arm needs its teacher, whether the plan names it or not.
    """
    arms: dict[str, tuple[Arm, dict[str, Any]]] = {}

    def add(name: str, like: str, settings: Mapping[str, Any]) -> None:
        if like not in ARMS:
            raise InputError(f"{where}: unknown arm {like!r}.{_near(like, ARMS)} Known: {', '.join(ARMS)}.")
        if name in arms:
            raise InputError(f"{where}: arm {name!r} occurs twice.")
        if not name or set(name) - _NAME_LETTERS:
            raise InputError(f"{where}: arm name {name!r}: use letters, digits and _-=.+ only; it becomes a folder.")
        if ARMS[like].trained_teacher and TEACHER_ONLY not in arms:
            add(TEACHER_ONLY, TEACHER_ONLY, {})
        # What a plan adds to an arm wins over what makes the arm, else a sweep of its weight would do nothing.
        base = ARMS[like]
        arms[name] = (
            Arm(base.description, {**base.settings, **settings}, base.teacher_alone, base.trained_teacher),
            dict(settings),
        )

    for item in sorted(plan.arms, key=lambda arm: arm != TEACHER_ONLY):
        if isinstance(item, str):
            add(item, item, {})
        elif isinstance(item, Mapping) and "name" in item and set(item) <= {"name", "like", "settings"}:
            add(item["name"], item.get("like", KDML), item.get("settings", {}))
        else:
            raise InputError(f"{where}: arm {item!r}: expected a name, or an object with name, like and settings.")
    for sweep in plan.sweeps:
        like = str(sweep.get("arm", KDML))
        for settings in _grid(sweep, where):
            label = "_".join(f"{name}={value}" for name, value in settings.items())
            add(f"{like}_{label}", like, settings)
    return arms


def expand(plan: Plan, *, where: str = "the plan") -> list[Cell]:
    """Every training of a plan; seed by seed and fold by fold, so that an unfinished plan has whole repetitions.

    Raises:
        InputError: a version or a setting is unknown, or a setting belongs elsewhere in the plan.
    """
    cells = []
    arms = named_arms(plan, where)
    checked: set[str] = set()
    folds: Sequence[int | None] = plan.folds or [None]
    for seed, fold, version in itertools.product(plan.seeds, folds, plan.versions):
        spec = cohort_spec(
            version, task=plan.task, teacher=plan.settings.get("teacher"), students=plan.settings.get("students")
        )
        for name, (arm, _) in arms.items():
            settings = arm_settings(arm, spec, plan.settings)
            if name not in checked:
                _check_settings(plan, settings, where, files=["train.json"])
                checked.add(name)
            needs = cell_path(version, TEACHER_ONLY, seed, fold) if arm.trained_teacher else None
            cells.append(Cell(version, name, seed, fold, settings, needs))
    _check_weights(plan, cells, where)
    return cells


def _check_weights(plan: Plan, cells: Sequence[Cell], where: str) -> None:
    """Refuse a file of weights that no training starts from: its name is misspelt."""
    wanted = plan.settings.get("initial_weights")
    if isinstance(wanted, Mapping):
        used = {name for cell in cells for name in cell.settings["initial_weights"]}
        for name in wanted:
            if name not in used:
                raise InputError(
                    f"{where}: initial_weights names {name!r}, but no version has it; used: {sorted(used)}."
                )


def _check_lists(plan: Plan, where: str) -> None:
    for key in ("versions", "arms", "seeds", "folds"):
        value = getattr(plan, key)
        if key == "folds" and value is None:
            continue
        if isinstance(value, str) or not isinstance(value, Sequence) or not value:
            raise InputError(f"{where}: {key} is {value!r}, expected a list that is not empty.")
    for key in ("seeds", "folds"):
        values = getattr(plan, key) or []
        if not all(isinstance(value, int) for value in values) or len(set(values)) < len(values):
            raise InputError(f"{where}: {key} is {list(values)}, expected whole numbers that are all different.")
    if not isinstance(plan.evaluations, Mapping) or not plan.evaluations:
        raise InputError(f'{where}: evaluations: expected an object such as {{"test": {{"split": "test"}}}}.')
    if not isinstance(plan.threads, int) or plan.threads < 1:
        raise InputError(f"{where}: threads is {plan.threads!r}, expected a whole number from 1.")


def _grid(sweep: Mapping[str, Any], where: str) -> Iterable[dict[str, Any]]:
    axes = {key: value for key, value in sweep.items() if key != "arm"}
    for key, values in axes.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise InputError(f"{where}: sweep over {key!r}: {values!r}, expected a list of values.")
    if not axes:
        raise InputError(f'{where}: a sweep without a setting; expected such as {{"arm": "kdml", "beta": [0.5, 2]}}.')
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _check_settings(plan: Plan, settings: Mapping[str, Any], where: str, *, files: Sequence[str]) -> None:
    own = _OWN_SETTINGS & set(settings) if files == ["train.json"] else {"run_dir"} & set(settings)
    if own:
        raise InputError(f"{where}: {sorted(own)[0]!r} is no setting of a plan; it is set for each training.")
    paths = [str(Path(plan.bundle) / "configs" / name) for name in files]
    words = ["--config_file", str(paths)]
    for name, value in settings.items():
        words += [f"--{name}", str(value)]
    try:
        check_command_line(words)
    except InputError as error:
        raise InputError(f"{where}: settings: {error}") from error


def _near(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
