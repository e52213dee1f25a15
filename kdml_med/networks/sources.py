"""What the networks of a cohort are and which files they start from, before any of them is built."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kdml_med.errors import InputError
from kdml_med.keys import NetworkName, Task
from kdml_med.networks.published import IMAGENET, published_files
from kdml_med.networks.registry import CohortSpec, NetworkSpec, body_name, cohort_spec, member_specs, single_networks
from kdml_med.networks.weights import check_is_there


class Sources(NamedTuple):
    """Networks of a cohort and their files.

    Attributes:
        spec: of the cohort; without a teacher where none is built.
        parts: single networks by their own name ("teacher_0" of a committee), by network.
        trained: names of the single networks that ``teacher_checkpoint`` brings.
        files: initial weights by the name of the single network; every file is there.
    """

    spec: CohortSpec
    parts: dict[str, dict[str, NetworkSpec]]
    trained: frozenset[str]
    files: dict[str, Path]


def find_sources(
    version: str,
    *,
    task: str,
    teacher: NetworkSpec | None,
    students: Sequence[NetworkSpec] | None,
    use_teacher: bool,
    initial_weights: Mapping[str, str] | str | None,
    teacher_checkpoint: str | Sequence[str] | None,
) -> Sources:
    """Find the networks and files of ``build_cohort``, whose arguments these are. No file of weights is loaded.

    Raises:
        InputError: unknown names, files that are missing or not installed, a teacher checkpoint without a teacher.
    """
    if task not in list(Task):
        raise InputError(f"task must be one of {', '.join(Task)}, got {task!r}.")
    spec = cohort_spec(version, task=Task(task), teacher=teacher, students=students)
    if not use_teacher:
        if teacher_checkpoint:
            raise InputError("teacher_checkpoint is given, but the cohort has no teacher: set use_teacher or drop it.")
        spec = CohortSpec(None, spec.students)
    parts = {name: single_networks(item, name) for name, item in spec.networks().items()}
    singles = {own: single for members in parts.values() for own, single in members.items()}
    trained = frozenset(parts.get(NetworkName.TEACHER, ()) if teacher_checkpoint else ())
    files = _weights_by_network(singles, trained, initial_weights)
    checkpoints = [teacher_checkpoint] if isinstance(teacher_checkpoint, str) else teacher_checkpoint or []
    if not isinstance(teacher_checkpoint, str) and checkpoints:
        _check_count(len(checkpoints), member_specs(spec.teacher) if spec.teacher else [])
    for path in [*files.values(), *(Path(str(file)) for file in checkpoints)]:
        check_is_there(path)
    return Sources(spec, parts, trained, files)


def _check_count(files: int, members: Sequence[NetworkSpec]) -> None:
    if files != len(members):
        found = f"a committee of {len(members)} networks" if members else "one network"
        raise InputError(f"teacher_checkpoint names {files} files, one for each member, but the teacher is {found}.")


def _weights_by_network(
    singles: Mapping[str, NetworkSpec], trained: Collection[str], initial_weights: Mapping[str, str] | str | None
) -> dict[str, Path]:
    """Files of the networks that start; those of a trained teacher may be named, and need not be there."""
    if not initial_weights:
        return {}
    started = [name for name in singles if name not in trained]
    if isinstance(initial_weights, str):
        named = dict.fromkeys(started, initial_weights)
    else:
        known = set(singles) | {body_name(single) for single in singles.values()}
        unknown = sorted(set(initial_weights) - known)
        if unknown:
            raise InputError(f"initial_weights names {unknown}, but this cohort has {sorted(known)}.")
        wanted = {
            name: initial_weights.get(name) or initial_weights.get(body_name(single))
            for name, single in singles.items()
            if name in started
        }
        named = {name: path for name, path in wanted.items() if path}
    bodies = {name: body_name(singles[name]) for name, path in named.items() if path == IMAGENET}
    published = published_files(bodies.values())
    return {name: published[bodies[name]] if name in bodies else Path(path) for name, path in named.items()}
