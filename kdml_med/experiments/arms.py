"""The arms of a comparison: the same cohort, the same data, other weights of the losses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kdml_med.data.cache import NO_CACHE
from kdml_med.errors import InputError
from kdml_med.keys import NetworkName
from kdml_med.networks.registry import CohortSpec, NetworkSpec, body_name, single_networks

TEACHER_ONLY = "teacher_only"
KDML = "kdml"
NUMBER_OF_STUDENTS = "number_of_students"
"""Setting of a plan, not of a bundle: the students of the version, in turns, up to this many.

One is allowed for arms that learn from peers, too: there are none then, and that is where such a row of numbers begins.
"""


@dataclass(frozen=True)
class Arm:
    """One way of training.

    Attributes:
        description: what students learn from, for tables.
        settings: bundle settings that make the arm; they override those of the plan.
        teacher_alone: train the version's teacher and nothing else.
        trained_teacher: start from the teacher that ``teacher_only`` trained with the same seed, and freeze it.
        peers_to_teacher: give the teacher what peers weigh in the plan, on top of its own weight.
    """

    description: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    teacher_alone: bool = False
    trained_teacher: bool = False
    peers_to_teacher: bool = False


ARMS: dict[str, Arm] = {
    TEACHER_ONLY: Arm("the teacher alone, from labels", {"beta": 0.0, "gamma": 0.0}, teacher_alone=True),
    "independent": Arm("labels", {"beta": 0.0, "gamma": 0.0}),
    "kd_offline": Arm("labels and a teacher trained before, frozen", {"gamma": 0.0}, trained_teacher=True),
    "kd_online": Arm("labels and a teacher trained along", {"gamma": 0.0}),
    "ml": Arm("labels and peers", {"beta": 0.0}),
    KDML: Arm("labels, a teacher trained along, and peers"),
    "kdml_offline": Arm("labels, a teacher trained before, frozen, and peers", trained_teacher=True),
    "kd_strong": Arm("labels and, with more weight, a teacher trained along", {"gamma": 0.0}, peers_to_teacher=True),
    "kd_offline_strong": Arm(
        "labels and, with more weight, a teacher trained before, frozen",
        {"gamma": 0.0},
        trained_teacher=True,
        peers_to_teacher=True,
    ),
    "kdml_head_start": Arm(
        "labels, a teacher trained along and listened to after its first epochs, and peers",
        {"teacher_warmup_epochs": 2},
    ),
    "kdml_own_start": Arm(
        "labels, a teacher trained along, and peers whose last stages start apart", {"own_start": "last_stage"}
    ),
    "kdml_features": Arm(
        "labels, the teacher's feature maps, and peers",
        {"teacher_link": "features"},
    ),
    "kdml_diverse": Arm(
        "labels; one student from the teacher's predictions, the next from its features, in turns; peers exchange both",
        {"teacher_link": ["predictions", "features"], "peer_link": "both"},
    ),
}
"""Built-in arms. ``kd_strong`` and ``kd_offline_strong`` are the controls of ``kdml`` and ``kdml_offline``: what peers
weigh in the plan goes to the teacher. The last two are variants with features, the diverse one after Niyaz et al. 2022,
arXiv:2212.02931."""

_WEIGHT = 1.0
"""Of teacher and of peers where no plan says another."""

PAPER_ARMS = [TEACHER_ONLY, "independent", "kd_offline", "kd_online", "ml", KDML]
"""What a plan trains unless it says otherwise."""


def own_settings(arm: Arm, added: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that make an arm of a plan.

    Args:
        arm: a built-in one.
        added: what the plan adds to it, which wins, else a sweep of the weight that makes an arm would do nothing.
        settings: those of the plan.
    """
    weights = [settings.get(name, _WEIGHT) for name in ("beta", "gamma")]
    made = {}
    if arm.peers_to_teacher and all(isinstance(weight, int | float) for weight in weights):  # others are refused later
        made["beta"] = round(sum(weights), 12)  # 0.1 + 0.2 would be told with 17 digits
    return {**made, **arm.settings, **added}


def arm_settings(arm: Arm, spec: CohortSpec, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Bundle settings of an arm.

    Args:
        arm: what is trained.
        spec: the version's networks.
        settings: those of the plan (and of a sweep), which the arm's own override.

    Returns:
        Settings for the bundle; ``NUMBER_OF_STUDENTS`` has become ``students``.

    Raises:
        InputError: the number of students is none.
    """
    inherited = dict(settings)
    if not arm.trained_teacher and inherited.get("cache_teacher") != NO_CACHE:
        inherited.pop("cache_teacher", None)  # for the arms that can: a teacher that learns gives new answers
    merged = {**inherited, **arm.settings}
    students = list(merged.get("students") or spec.students)
    count = merged.pop(NUMBER_OF_STUDENTS, None)
    if count is not None:
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise InputError(f"{NUMBER_OF_STUDENTS} is {count!r}, expected a whole number from 1.")
        students = [students[index % len(students)] for index in range(count)]
        merged["students"] = students
    if arm.trained_teacher:
        merged.pop("teacher_warmup_epochs", None)  # it has learned all that it will
    if arm.teacher_alone:
        teacher = merged.pop("teacher", None) or spec.teacher
        if teacher is None:
            raise InputError("this version has no teacher that could be trained.")
        students = [_teacher_stream(teacher)]
        merged |= {"students": students, "use_teacher": False}
        merged.pop("own_start", None)  # of students; a teacher takes all of its file
        if "alpha" in merged:
            merged["alpha"] = 1.0  # as for the teacher of a cohort
    for name in ("teacher_link", "peer_link", "own_start"):
        links = merged.get(name)
        if isinstance(links, list) and links:
            merged[name] = [links[index % len(links)] for index in range(len(students))]
    weights = merged.get("initial_weights")
    if isinstance(weights, Mapping):
        if arm.teacher_alone:
            weights = _teacher_weights(weights)
        # A plan of several versions names files that one of them does not need, which the bundle would refuse.
        used = _weight_names(spec, merged)
        merged["initial_weights"] = {name: path for name, path in weights.items() if name in used}
    return merged


def weight_names(spec: CohortSpec, settings: Mapping[str, Any], *, teacher_alone: bool) -> set[str]:
    """Names that a plan can give files of weights of a training: its networks and their architectures.

    Args:
        spec: the version's networks.
        settings: see ``arm_settings``.
        teacher_alone: whether the only student is the teacher, and called that in the plan.
    """
    names = _weight_names(spec, settings)
    return {_renamed(name, NetworkName.student(0), NetworkName.TEACHER) for name in names} if teacher_alone else names


def _weight_names(spec: CohortSpec, settings: Mapping[str, Any]) -> set[str]:
    has_teacher = settings.get("use_teacher", settings.get("beta", _WEIGHT) > 0)
    teacher = (settings.get("teacher") or spec.teacher) if has_teacher else None
    networks = CohortSpec(teacher, tuple(settings.get("students") or spec.students)).networks()
    singles = {own: single for name, spec in networks.items() for own, single in single_networks(spec, name).items()}
    return {*singles, *map(body_name, singles.values())}


def _teacher_stream(teacher: NetworkSpec) -> dict[str, Any]:
    """The teacher as the only student, with the random start that it has as a teacher."""
    named = {"name": teacher} if isinstance(teacher, str) else dict(teacher)
    return {**named, "stream": NetworkName.TEACHER.value}


def _teacher_weights(weights: Mapping[str, str]) -> dict[str, str]:
    """Files by architecture stay, that of the teacher goes to the only student, those of students go."""
    taken = {name: path for name, path in weights.items() if not name.startswith("student_")}
    return {_renamed(name, NetworkName.TEACHER, NetworkName.student(0)): taken[name] for name in taken}


def _renamed(name: str, old: str, new: str) -> str:
    """A network, or a member of a committee, which is named after it."""
    return re.sub(rf"^{old}(?=_\d+$|$)", new, name)
