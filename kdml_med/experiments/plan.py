"""The plan file: which arms, versions, seeds and folds, on which dataset, judged on what."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from kdml_med.bundle.folders import BUNDLES, INSTALLED, bundle_dir
from kdml_med.bundle.kinds import is_whole
from kdml_med.errors import InputError
from kdml_med.experiments.arms import (
    ARMS,
    KDML,
    PAPER_ARMS,
    TEACHER_ONLY,
    Arm,
    arm_settings,
    own_settings,
    weight_names,
)
from kdml_med.experiments.endpoints import COMPARED_ROLES, METRICS, Endpoint, check_contrasts, read_endpoints
from kdml_med.experiments.plan_settings import check_training, check_values, near, told_evaluations
from kdml_med.experiments.sweeps import NAME, swept_arms
from kdml_med.keys import NetworkName, Task
from kdml_med.networks.registry import CohortSpec, cohort_spec, stream_name
from kdml_med.storage.reading import read_json

PLAN_FILE = "plan.json"
CELLS_DIR = "cells"
_NAME_HINT = "use at most 100 letters, digits and _-=.+, no dot in front; it becomes a folder"


@dataclass(frozen=True)
class Plan:
    """Content of a plan file. Relative paths start at the folder that the command is started in.

    Attributes:
        name: heading of the report.
        bundle: bundle folder, such as "bundles/msi_kdml"; "msi_kdml" and "polyp_kdml" are those of this package,
            wherever it is installed.
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
        endpoints: whose metric is compared, "ensemble" and "students"; others name a metric of their own, such as
            "ensemble_brier", see ``kdml_med.experiments.endpoints``.
        contrasts: pairs of arms that are compared beside those with the reference.
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
    endpoints: Sequence[str] = COMPARED_ROLES
    contrasts: Sequence[Sequence[str]] = ()
    threads: int = 1
    keep_checkpoints: bool = False

    @property
    def bundle_folder(self) -> Path:
        """Where the bundle lies: on this machine, in this environment."""
        ours = next((task for task, name in BUNDLES.items() if name == self.bundle), None)
        return Path(self.bundle) if ours is None or Path(self.bundle).is_dir() else bundle_dir(ours)

    @property
    def task(self) -> Task:
        """What the bundle trains."""
        config = json.loads((self.bundle_folder / "configs" / "train.json").read_text())
        return Task(config.get("task", Task.CLASSIFICATION))

    @property
    def primary_metric(self) -> str:
        """What arms are compared by."""
        return self.metric or METRICS[self.task][0]

    @property
    def compared(self) -> list[Endpoint]:
        """What was said beforehand to be compared."""
        return read_endpoints(self.endpoints, self.primary_metric, self.task)


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
        """Whether its only student is the teacher; so it is in a sweep of ``teacher_only``, too."""
        students = self.settings.get("students") or [None]
        return self.settings.get("use_teacher") is False and stream_name(students[0], "") == NetworkName.TEACHER


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
    content = read_json(path, remedy='Correct it; it holds an object such as {"name": …}.')
    return make_plan(content, where=str(path))


def make_plan(content: Mapping[str, Any], *, where: str = "the plan", stored: bool = False) -> Plan:
    """Check the content of a plan file.

    Args:
        content: of the file.
        where: its name, for messages.
        stored: it is that of a results folder, where trainings that cannot begin have failed already and others are
            done; an earlier version may have written it.

    Raises:
        InputError: see ``read_plan``.
    """
    known = [item.name for item in fields(Plan)]
    for key in content:
        if key not in known:
            raise InputError(f"{where}: unknown key {key!r}.{near(key, known)} Known: {', '.join(known)}.")
    missing = [key for key in ("name", "bundle", "dataset_dir", "versions") if key not in content]
    if missing:
        raise InputError(f"{where} lacks {', '.join(missing)}.")
    plan = Plan(**content)
    _check_kinds(plan, where)
    if stored and _was_ours(Path(plan.bundle)):
        plan = replace(plan, bundle=Path(plan.bundle).name)
    _check_bundle(plan, where)
    _check_lists(plan, where)
    names = list(named_arms(plan, where))
    if plan.reference not in names:
        hint = near(plan.reference, names)
        raise InputError(f"{where}: reference {plan.reference!r} is none of the arms {', '.join(names)}.{hint}")
    known_metrics = METRICS[plan.task]
    if plan.metric is not None and plan.metric not in known_metrics:
        raise InputError(
            f"{where}: metric {plan.metric!r}: bundle {plan.bundle!r} can be compared by {', '.join(known_metrics)}."
        )
    read_endpoints(plan.endpoints, plan.primary_metric, plan.task, where)
    check_contrasts(plan.contrasts, names, plan.reference, where)
    _check_evaluations(plan, where)
    if stored:
        plan = replace(plan, evaluations=told_evaluations(plan.evaluations, folds=bool(plan.folds)))
    cells = expand(plan, where=where)
    if not stored:
        _check_folds(plan, where)
        # One of each kind: seeds and folds change nothing that is looked at.
        kinds = [cell for cell in cells if (cell.seed, cell.fold) == (cells[0].seed, cells[0].fold)]
        _check_weights(plan, kinds, where)
        _check_trainings(plan, kinds, where)
    return plan


def _was_ours(bundle: Path) -> bool:
    """Whether a path is one of our bundles, in an environment that is gone or below a folder that is elsewhere."""
    # Earlier versions stored the path in place of the name; plans of a clone name one relative to it.
    ours = bundle.name in BUNDLES.values() and bundle.parent.name == INSTALLED.name
    return ours and not bundle.is_dir()


def plan_content(plan: Plan) -> dict[str, Any]:
    """The plan as it is stored beside the results."""
    content: dict[str, Any] = json.loads(json.dumps(asdict(plan)))
    return content


def named_arms(plan: Plan, where: str = "the plan") -> dict[str, tuple[Arm, dict[str, Any]]]:
    """Every arm of a plan by name, with the settings that it adds to those of the plan; sweeps included.

    ``teacher_only`` comes first, and when another arm needs its teacher, it is there whether the plan names it or not.
    """
    arms: dict[str, tuple[Arm, dict[str, Any]]] = {}
    wanted = _wanted_arms(plan, where)
    for name, like, settings in wanted:
        if name in arms:
            raise InputError(f"{where}: arm {name!r} occurs twice.")
        base = ARMS[like]
        if base.trained_teacher and "teacher" in settings:
            raise InputError(f"{where}: arm {name!r} takes the teacher of {TEACHER_ONLY}; leave 'teacher' out of it.")
        arms[name] = (replace(base, settings=own_settings(base, settings, plan.settings)), dict(settings))
    if TEACHER_ONLY not in arms and any(arm.trained_teacher for arm, _ in arms.values()):
        arms[TEACHER_ONLY] = (ARMS[TEACHER_ONLY], {})
    return dict(sorted(arms.items(), key=lambda item: item[0] != TEACHER_ONLY))


def _wanted_arms(plan: Plan, where: str) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Name, the built-in arm it is like, and added settings of every arm and sweep, checked one by one."""
    wanted: list[tuple[str, str, Mapping[str, Any]]] = []
    for item in plan.arms:
        given: Any = {"name": item, "like": item} if isinstance(item, str) else item
        if not _is_arm(given):
            raise InputError(f"{where}: arm {item!r}: expected a name, or an object with name, like and settings.")
        name = given["name"]
        wanted.append((name, given.get("like", name if name in ARMS else KDML), given.get("settings", {})))
    for sweep in plan.sweeps:
        wanted += swept_arms(sweep, where)
    for name, like, _ in wanted:
        if like not in ARMS:
            raise InputError(f"{where}: unknown arm {like!r}.{near(like, ARMS)} Known: {', '.join(ARMS)}.")
        if not NAME.fullmatch(name):
            raise InputError(f"{where}: arm name {name!r}: {_NAME_HINT}.")
        if name in ARMS and like != name:
            raise InputError(f"{where}: arm {name!r} is built in and cannot be made like {like!r}: take another name.")
    return wanted


def _is_arm(item: Any) -> bool:
    return (
        isinstance(item, Mapping)
        and "name" in item
        and set(item) <= {"name", "like", "settings"}
        and all(isinstance(item[key], str) for key in ("name", "like") if key in item)
        and isinstance(item.get("settings", {}), Mapping)
    )


def expand(plan: Plan, *, where: str = "the plan") -> list[Cell]:
    """Every training of a plan; seed by seed and fold by fold, so that an unfinished plan has whole repetitions.

    Raises:
        InputError: a version or a setting is unknown, or a setting belongs elsewhere in the plan.
    """
    cells = []
    arms = named_arms(plan, where)
    checked: set[str] = set()
    folds: Sequence[int | None] = plan.folds or [None]
    task = plan.task
    for seed, fold, version in itertools.product(plan.seeds, folds, plan.versions):
        for name, (arm, _) in arms.items():
            if name not in checked:
                merged = {**plan.settings, **arm.settings}
                check_values(plan.bundle_folder, task, merged, where, stage="train")
                checked.add(name)
            try:
                settings = arm_settings(arm, _spec(plan, version, task), plan.settings)
            except InputError as error:
                raise InputError(f"{where}: {error}") from error
            needs = cell_path(version, TEACHER_ONLY, seed, fold) if arm.trained_teacher else None
            cells.append(Cell(version, name, seed, fold, settings, needs))
    return cells


def _spec(plan: Plan, version: str, task: Task) -> CohortSpec:
    return cohort_spec(version, task=task, teacher=plan.settings.get("teacher"), students=plan.settings.get("students"))


def _check_weights(plan: Plan, cells: Sequence[Cell], where: str) -> None:
    """Refuse a file of weights that no training starts from: its name is misspelt."""
    arms, task = named_arms(plan, where), plan.task
    own = {name: added["initial_weights"] for name, (_, added) in arms.items() if "initial_weights" in added}
    for whose, wanted in {"": plan.settings.get("initial_weights"), **own}.items():
        takers = [cell for cell in cells if (cell.arm if cell.arm in own else "") == whose]
        if not takers or not isinstance(wanted, Mapping):
            continue
        known: set[str] = set()
        for cell in takers:
            alone = arms[cell.arm][0].teacher_alone
            known |= weight_names(_spec(plan, cell.version, task), cell.settings, teacher_alone=alone)
        for name in wanted:
            if name not in known:
                raise InputError(
                    f"{where}: {f'arm {whose!r}: ' if whose else ''}initial_weights names {name!r}, which no training "
                    f"has.{near(name, known)} Known: {', '.join(sorted(known))}."
                )


def _check_trainings(plan: Plan, cells: Sequence[Cell], where: str) -> None:
    """Refuse an arm that no machine can train."""
    for cell in cells:
        settings = {**cell.settings, "version": cell.version}
        try:
            check_training(plan.bundle_folder, plan.task, settings, frozen_teacher=cell.needs is not None)
        except InputError as error:
            reason = str(error).replace("--", "")
            raise InputError(f"{where}: arm {cell.arm!r}, version {cell.version!r}: {reason}") from error


def _check_kinds(plan: Plan, where: str) -> None:
    kinds: dict[str, tuple[type | tuple[type, ...], str]] = {
        **dict.fromkeys(("name", "bundle", "dataset_dir", "reference"), (str, "a text")),
        **dict.fromkeys(("settings", "evaluations"), (Mapping, 'an object such as {"batch_size": 16}')),
        "metric": ((str, type(None)), "a text"),
        "keep_checkpoints": (bool, "true or false"),
    }
    for key, (kind, expected) in kinds.items():
        if not isinstance(getattr(plan, key), kind):
            raise InputError(f"{where}: {key} is {getattr(plan, key)!r}, expected {expected}.")
    if not is_whole(plan.threads) or plan.threads < 1:
        raise InputError(f"{where}: threads is {plan.threads!r}, expected a whole number from 1.")


def _check_bundle(plan: Plan, where: str) -> None:
    for name in ("train.json", "evaluate.json", "metadata.json"):
        path = plan.bundle_folder / "configs" / name
        if not path.is_file():
            raise InputError(
                f"{where}: bundle {plan.bundle!r} has no configs/{name}; relative paths start at {Path.cwd()}."
            )
        content = read_json(path, remedy="Bring back the bundle's config.")
        if name == "train.json" and "network_def" not in content:
            raise InputError(f"{where}: {path} has no network_def: it trains no cohort.")
        if name == "train.json" and content.get("task", Task.CLASSIFICATION) not in list(Task):
            raise InputError(f"{where}: {path} has the task {content['task']!r}, expected one of {', '.join(Task)}.")


def _check_lists(plan: Plan, where: str) -> None:
    for key in ("versions", "arms", "seeds", "folds", "sweeps"):
        value = getattr(plan, key)
        if key == "folds" and value is None:
            continue
        if isinstance(value, str) or not isinstance(value, Sequence) or not (value or key == "sweeps"):
            raise InputError(f"{where}: {key} is {value!r}, expected a list that is not empty.")
    for key in ("seeds", "folds"):
        values = getattr(plan, key) or []
        if not all(is_whole(value) and value >= 0 for value in values) or len(set(values)) < len(values):
            raise InputError(f"{where}: {key} is {list(values)}, expected whole numbers from 0 that are all different.")
    for version in plan.versions:
        if not isinstance(version, str) or list(plan.versions).count(version) > 1:
            raise InputError(f"{where}: versions is {list(plan.versions)}, expected names that are all different.")
    for sweep in plan.sweeps:
        if not isinstance(sweep, Mapping) or not isinstance(sweep.get("arm", KDML), str):
            raise InputError(f'{where}: sweep {sweep!r}: expected such as {{"arm": "kdml", "beta": [0.5, 2]}}.')


def _check_evaluations(plan: Plan, where: str) -> None:
    if not plan.evaluations:
        raise InputError(f'{where}: evaluations is empty, expected an object such as {{"test": {{"split": "test"}}}}.')
    for name, settings in plan.evaluations.items():
        if not NAME.fullmatch(name):
            raise InputError(f"{where}: evaluation name {name!r}: {_NAME_HINT}.")
        if not isinstance(settings, Mapping):
            raise InputError(f'{where}: evaluation {name!r} is {settings!r}, expected such as {{"split": "test"}}.')
        check_values(plan.bundle_folder, plan.task, settings, where, stage="evaluate")


def _check_folds(plan: Plan, where: str) -> None:
    told = told_evaluations(plan.evaluations, folds=bool(plan.folds))
    for name, settings in plan.evaluations.items():
        if settings != told[name]:
            raise InputError(
                f"{where}: evaluation {name!r} names fold {settings['fold']!r}, but each training is tested on its own "
                f"of the folds {list(plan.folds or ())}: leave 'fold' out."
            )
