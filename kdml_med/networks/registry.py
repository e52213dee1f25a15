"""Named networks and named versions of teacher-student cohorts; anything else comes in by its import path."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from torch import nn

from kdml_med.errors import InputError
from kdml_med.keys import NetworkName, Task
from kdml_med.networks.committee import Committee
from kdml_med.networks.convnet import ConvNet
from kdml_med.networks.efficientnet_lite import EFFICIENTNETS_LITE
from kdml_med.networks.mobilenet import MobileNetV2
from kdml_med.networks.resnet import RESNETS
from kdml_med.networks.retinanet import RetinaNet

NetworkSpec = str | Mapping[str, Any]
"""A name, or a mapping with "name" and the builder's keyword arguments. A name with a dot is an import path.

The key "stream" of a mapping is no argument of the builder, see ``stream_name``. The name "committee" is followed by
"members", a list of specs, see ``kdml_med.networks.committee``.
"""


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    **RESNETS,
    "mobilenet_v2": MobileNetV2,
    **EFFICIENTNETS_LITE,
    "convnet": ConvNet,
    "retinanet": RetinaNet,
}


COMMITTEE = "committee"
"""Name in the spec of a network that consists of several."""
_NO_ARGUMENTS = {"name", "stream"}


@dataclass(frozen=True)
class CohortSpec:
    """Which networks make a cohort; ``teacher`` is None for peers without a teacher."""

    teacher: NetworkSpec | None
    students: tuple[NetworkSpec, ...]

    def networks(self) -> dict[str, NetworkSpec]:
        """Specs by cohort name, teacher first."""
        named: dict[str, NetworkSpec] = {} if self.teacher is None else {NetworkName.TEACHER.value: self.teacher}
        return named | {NetworkName.student(index): spec for index, spec in enumerate(self.students)}


_SHORT_MOBILENET: NetworkSpec = {"name": "mobilenet_v2", "last_block": 13}
_SHORT_LITE: NetworkSpec = {"name": "efficientnet_lite0", "last_block": 11}


def _detector(body: str, **settings: Any) -> NetworkSpec:
    return {"name": "retinanet", "body": body, **settings}


def _convnet(width: int) -> NetworkSpec:
    return {"name": "convnet", "width": width}


def _committee(*members: NetworkSpec) -> NetworkSpec:
    return {"name": COMMITTEE, "members": list(members)}


_LITE_DETECTOR = _detector("efficientnet_lite0", head_convs=2, last_block=15)
_TEACHER_LITE = _detector("efficientnet_lite0", width=96, head_convs=2)
_LITE_TEACHER = _committee("mobilenet_v2", "efficientnet_lite0")
_LITE_TEACHER_DETECTOR = _committee(_detector("mobilenet_v2", width=96, head_convs=2), _TEACHER_LITE)
# Every weight of it comes with the extra `pretrained`.
_TWIN_TEACHER = _committee("efficientnet_lite0", "efficientnet_lite2")
_TWIN_TEACHER_DETECTOR = _committee(_TEACHER_LITE, _detector("efficientnet_lite2", width=96, head_convs=2))

# Detectors of students have a pyramid narrower than their teacher's. The edge students keep the whole body: polyps
# fill much of a frame, so that a body cut short does not see one whole; those of lite lose no more than its last block.
# The small ones are for tiles of 16 to 64 px. The tiny ones are for trying out: they learn from random weights within
# minutes on a CPU.
VERSIONS: dict[Task, dict[str, CohortSpec]] = {
    Task.CLASSIFICATION: {
        "v1": CohortSpec("resnet50", ("resnet18", "resnet18")),
        "v2": CohortSpec("resnet50", ("mobilenet_v2", "mobilenet_v2")),
        "v3": CohortSpec("resnet50", ("resnet18", "mobilenet_v2")),
        "edge": CohortSpec("mobilenet_v2", (_SHORT_MOBILENET, _SHORT_MOBILENET)),
        "lite": CohortSpec(_LITE_TEACHER, (_SHORT_LITE, _SHORT_MOBILENET)),
        "lite-twin": CohortSpec(_TWIN_TEACHER, (_SHORT_LITE, _SHORT_LITE)),
        "small": CohortSpec(_convnet(32), (_convnet(8), _convnet(8))),
        "tiny": CohortSpec("resnet18", ("resnet10", "resnet10")),
    },
    Task.DETECTION: {
        "v1": CohortSpec(_detector("resnet50", width=128), (_detector("resnet18"), _detector("resnet18"))),
        "v2": CohortSpec(_detector("resnet50", width=128), (_detector("mobilenet_v2"), _detector("mobilenet_v2"))),
        "v3": CohortSpec(_detector("resnet50", width=128), (_detector("resnet18"), _detector("mobilenet_v2"))),
        "edge": CohortSpec(
            _detector("mobilenet_v2", width=96, head_convs=2),
            (_detector("mobilenet_v2", head_convs=2), _detector("mobilenet_v2", head_convs=2)),
        ),
        "lite": CohortSpec(
            _LITE_TEACHER_DETECTOR, (_LITE_DETECTOR, _detector("mobilenet_v2", head_convs=2, last_block=16))
        ),
        "lite-twin": CohortSpec(_TWIN_TEACHER_DETECTOR, (_LITE_DETECTOR, _LITE_DETECTOR)),
        "tiny": CohortSpec(
            _detector("resnet18", head_convs=2),
            (_detector("resnet10", width=32, head_convs=2), _detector("resnet10", width=32, head_convs=2)),
        ),
    },
}


def architecture_name(spec: NetworkSpec) -> str:
    """Name or import path in a spec."""
    if isinstance(spec, str):
        return spec
    if "name" not in spec:
        raise InputError(
            f"network {dict(spec)} has no 'name'; expected one of {sorted(ARCHITECTURES)} or a dotted path."
        )
    return str(spec["name"])


def member_specs(spec: NetworkSpec) -> list[NetworkSpec]:
    """The members of a committee; none of any other network.

    Raises:
        InputError: it is no committee of networks.
    """
    if architecture_name(spec) != COMMITTEE:
        return []
    members = [] if isinstance(spec, str) else spec.get("members", [])
    known = isinstance(spec, str) or set(spec) <= {*_NO_ARGUMENTS, "members"}
    if not (
        known
        and isinstance(members, list | tuple)
        and len(members) > 1
        and all(isinstance(member, str | Mapping) and architecture_name(member) != COMMITTEE for member in members)
    ):
        raise InputError(
            f"{spec if isinstance(spec, str) else dict(spec)} is no committee: write {{'name': 'committee', 'members': "
            "[...]}} with a list of two or more networks, none of which is a committee."
        )
    return list(members)


def single_networks(spec: NetworkSpec, name: str) -> dict[str, NetworkSpec]:
    """The networks that one of a cohort consists of: itself, or the members of a committee as "teacher_0" and so on."""
    members = member_specs(spec)
    return {f"{name}_{number}": member for number, member in enumerate(members)} if members else {name: spec}


def body_name(spec: NetworkSpec) -> str:
    """Architecture whose published weights a single network takes: its own, or that of its body."""
    body = None if isinstance(spec, str) else spec.get("body")
    return architecture_name(spec) if body is None else str(body)


def architecture_words(spec: NetworkSpec) -> str:
    """What a network is, for people: "resnet18", "retinanet on resnet18 (width 96)", "committee of ... + ..."."""
    members = member_specs(spec)
    if members:
        return f"committee of {' + '.join(map(architecture_words, members))}"
    if isinstance(spec, str):
        return spec
    name, body = architecture_name(spec), body_name(spec)
    shown = name if body == name else f"{name} on {body}"
    rest = [f"{key.replace('_', ' ')} {value}" for key, value in spec.items() if key not in {*_NO_ARGUMENTS, "body"}]
    return f"{shown} ({', '.join(rest)})" if rest else shown


def stream_name(spec: NetworkSpec, default: str) -> str:
    """Random stream of a network's initial weights: the spec's "stream", by default its name in the cohort.

    A teacher trained alone is "student_0" there; {"name": "resnet50", "stream": "teacher"} lets it start from the same
    weights as in a cohort.
    """
    return default if isinstance(spec, str) else str(spec.get("stream", default))


def build_network(spec: NetworkSpec, *, num_classes: int) -> nn.Module:
    """Build one network.

    Args:
        spec: a name from ``ARCHITECTURES``, a dotted import path of a callable that takes ``num_classes``, or a mapping
            with "name" and further keyword arguments; "stream" is left to whoever seeds.
        num_classes: number of outputs.

    Raises:
        InputError: the name is unknown, the path cannot be imported, the mapping names another ``num_classes``, or the
            builder refuses its arguments.
    """
    members = member_specs(spec)
    if members:
        return Committee([build_network(member, num_classes=num_classes) for member in members])
    name = architecture_name(spec)
    kwargs = {} if isinstance(spec, str) else {key: value for key, value in spec.items() if key not in _NO_ARGUMENTS}
    if kwargs.get("num_classes", num_classes) != num_classes:
        raise InputError(
            f"network {name!r} names num_classes {kwargs['num_classes']!r}, by the dataset it has to be {num_classes}: "
            "leave it out."
        )
    builder = ARCHITECTURES.get(name) or _import(name)
    arguments = {"num_classes": num_classes} | kwargs
    try:
        return builder(**arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"network {name!r} cannot be built with {arguments}: {error}") from error


def cohort_spec(
    version: str,
    *,
    task: Task = Task.CLASSIFICATION,
    teacher: NetworkSpec | None = None,
    students: Sequence[NetworkSpec] | None = None,
) -> CohortSpec:
    """The named version, with the teacher or the students replaced where they are given.

    Raises:
        InputError: the version is unknown or there are no students.
    """
    versions = VERSIONS[task]
    if version not in versions:
        near = get_close_matches(version, versions, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InputError(f"unknown version {version!r}; known: {', '.join(versions)}.{hint}")
    named = versions[version]
    spec = CohortSpec(
        teacher if teacher is not None else named.teacher, tuple(students) if students is not None else named.students
    )
    if not spec.students:
        raise InputError("a cohort needs at least one student; `students` is an empty list.")
    return spec


def _import(path: str) -> Callable[..., nn.Module]:
    module_name, _, attribute = path.rpartition(".")
    if not module_name:
        known = sorted([*ARCHITECTURES, COMMITTEE])
        near = get_close_matches(path, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InputError(
            f"unknown network {path!r}; known: {', '.join(known)}, or a dotted import path such as "
            f"'monai.networks.nets.EfficientNetBN'.{hint}"
        )
    try:
        builder: Callable[..., nn.Module] = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"network {path!r} cannot be imported: {error}.") from error
    return builder
