"""Teacher and students as one module: one forward pass gives the answers of all of them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from kdml_med.errors import InputError
from kdml_med.keys import NetworkName, Task
from kdml_med.networks.answers import CommitteeAnswer, ViewsAnswer, own_answers
from kdml_med.networks.committee import Committee
from kdml_med.networks.published import announce, describe_weights
from kdml_med.networks.registry import NetworkSpec, build_network, member_specs, stream_name
from kdml_med.networks.sources import find_sources
from kdml_med.networks.stages import answer_with_features, shared_strides
from kdml_med.networks.starts import keep_own, own_part, starts_of
from kdml_med.networks.weights import load_initial_weights, read_state_dict, same_kind


class TeacherMemory(Protocol):
    """Answers for a frozen teacher; ``kdml_med.networks.remembered.RememberedTeacher`` is one."""

    def answer(self, teacher: nn.Module, called: Callable[[Tensor], Any], image: Tensor, strides: Sequence[int]) -> Any:
        """What the teacher, or what is called in its place, answers to images, with feature maps at these strides."""


class Cohort(nn.Module):
    """A teacher (or none) and at least one student.

    Args:
        networks: networks by name, "teacher" and "student_0", "student_1", ... .
        frozen_teacher: the teacher only answers: no gradients, and its batch statistics stay as they are.
        features: classifiers answer with feature maps as well while the cohort is in training mode.

    Attributes:
        remembered: answers in place of a frozen teacher; None lets it answer itself.
        spokesman: what answers to students in training in place of a teacher that learns, such as the average of its
            weights; no part of the cohort, and so in a tuple. Empty for the teacher itself.
        in_float32: names of networks that are computed in float32 where the others are under autocast.
        compiled: what is called in training mode instead of a network, by its name; the network itself, compiled.
        initial_weights: files that networks started from, by network name, see
            ``kdml_med.networks.published.describe_weights``.

    Raises:
        ValueError: there is no student, or a frozen teacher is asked for and there is none.
        InputError: features are asked for, and a network does not know its stages or has no stride in common with the
            others.
    """

    def __init__(
        self, networks: Mapping[str, nn.Module], *, frozen_teacher: bool = False, features: bool = False
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)
        if not self.student_names:
            raise ValueError("a cohort needs at least one student.")
        if frozen_teacher and not self.has_teacher:
            raise ValueError("frozen_teacher needs a teacher.")
        self.frozen_teacher = frozen_teacher
        self.remembered: TeacherMemory | None = None
        self.spokesman: tuple[nn.Module, ...] = ()
        if frozen_teacher:
            self.networks[NetworkName.TEACHER].requires_grad_(False).eval()
        self.feature_strides = shared_strides(networks) if features else ()
        self.in_float32: frozenset[str] = frozenset()
        self.compiled: dict[str, Callable[..., Any]] = {}
        self.initial_weights: dict[str, dict[str, Any]] = {}

    @property
    def names(self) -> list[str]:
        """Names of all networks, teacher first."""
        return list(self.networks)

    @property
    def student_names(self) -> list[str]:
        """Names of the students."""
        return [name for name in self.networks if name != NetworkName.TEACHER]

    @property
    def has_teacher(self) -> bool:
        """Whether a teacher was built."""
        return NetworkName.TEACHER in self.networks

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode; a frozen teacher stays in evaluation mode."""
        super().train(mode)
        if self.frozen_teacher:
            self.networks[NetworkName.TEACHER].eval()
        return self

    def forward(self, image: Tensor) -> dict[str, Any]:
        """Run each network once; the teacher once for each view.

        Args:
            image: float, [batch, channels, height, width]; or [batch, students, channels, height, width], with a view
                of its own for each student.

        Returns:
            Answers by network name: logits [batch, classes] of classifiers, ``AnchorPredictions`` of detectors. In
            training mode and with ``features``, a ``ClassifierAnswer`` of every classifier, a frozen teacher included.
            In training mode a ``CommitteeAnswer`` of every committee that learns, and of a teacher with a spokesman.
            Of a teacher that saw several views a ``ViewsAnswer``.

        Raises:
            ValueError: there are not as many views as students.
        """
        if image.ndim != 5:
            return {name: self._answer(name, image) for name in self.networks}
        views = dict(zip(self.student_names, image.unbind(1), strict=True))
        answers: dict[str, Any] = {}
        if self.has_teacher:
            name = NetworkName.TEACHER.value
            # One after the other: batch norm and remembered answers know batches of one size.
            answers[name] = ViewsAnswer(tuple(self._answer(name, view) for view in views.values()))
        return answers | {name: self._answer(name, view) for name, view in views.items()}

    def _answer(self, name: str, image: Tensor) -> Any:
        network, strides = self.networks[name], self.feature_strides if self.training else ()
        frozen = self.frozen_teacher and name == NetworkName.TEACHER
        with self._precision(name, image), torch.no_grad() if frozen else contextlib.nullcontext():
            called = self.compiled.get(name, network) if self.training else network
            if frozen and self.remembered is not None:
                return self.remembered.answer(network, called, image, strides)
            answer = answer_with_features(network, image, strides) if strides else called(image)
            if name != NetworkName.TEACHER or not (self.training and self.spokesman):
                return answer
            (spokesman,) = self.spokesman
            with torch.no_grad():
                said = answer_with_features(spokesman, image, strides) if strides else spokesman(image)
            return CommitteeAnswer(said, own_answers(answer))

    def _precision(self, name: str, image: Tensor) -> AbstractContextManager[Any]:
        if name in self.in_float32:
            return torch.autocast(image.device.type, enabled=False)
        return contextlib.nullcontext()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One optimizer group for each network that learns, named after it."""
        groups = []
        for name, network in self.networks.items():
            parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
            if parameters:
                groups.append({"params": parameters, "name": name})
        return groups

    def parameter_counts(self) -> dict[str, int]:
        """Number of parameters by network name; "ensemble" is the sum over the students."""
        counts = {name: sum(p.numel() for p in network.parameters()) for name, network in self.networks.items()}
        return counts | {NetworkName.ENSEMBLE.value: sum(counts[name] for name in self.student_names)}


@contextlib.contextmanager
def network_seed(seed: int, name: str) -> Iterator[None]:
    """Seed torch for building a network from the stream of this name, and put the global random state back afterwards.

    Each network has a stream of its own, so that its initial weights do not depend on which others are built.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed every GPU, whose state is not put back.
        torch.default_generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        yield


def build_cohort(
    version: str = "v1",
    *,
    task: str = Task.CLASSIFICATION,
    num_classes: int = 2,
    seed: int = 0,
    teacher: NetworkSpec | None = None,
    students: Sequence[NetworkSpec] | None = None,
    use_teacher: bool = True,
    initial_weights: Mapping[str, str] | str | None = None,
    teacher_checkpoint: str | Sequence[str] | None = None,
    frozen_stages: int = 0,
    own_start: str | Sequence[str] = "none",
    features: bool = False,
) -> Cohort:
    """Build a named or a custom cohort.

    Args:
        version: name in ``kdml_med.networks.registry.VERSIONS``.
        task: "classification" or "detection": what the named versions consist of.
        num_classes: number of classes; detectors do not count background.
        seed: of the initial weights; each network has a stream of its own.
        teacher: replaces the version's teacher.
        students: replaces the version's students; any number from one.
        use_teacher: False builds no teacher at all.
        initial_weights: files to start from, by network name ("student_0") or architecture ("mobilenet_v2"); one plain
            path goes to every network but a trained teacher. "imagenet" in place of a path is the file of an installed
            package, see ``kdml_med.networks.published.PUBLISHED``. Members of a committee are named after it
            ("teacher_0").
        teacher_checkpoint: state dict of a trained teacher, which is then frozen (offline distillation). Of a committee
            either its own, or a sequence with one for each member.
        frozen_stages: leave the first stages of every detector's body as they are in ``initial_weights``. 1 is up to
            stride 2 in a MobileNetV2 and the stem (stride 4) in a ResNet, 2 up to stride 4 in both, and so on.
        own_start: what students do not take from ``initial_weights`` but draw each from its own stream, one of
            ``kdml_med.networks.starts.OWN_STARTS`` for all or one for each. Members of a committee start as it does.
        features: classifiers answer with feature maps as well in training mode, for losses that link them. Detectors
            always answer with their pyramid.

    Raises:
        InputError: unknown names, files that do not fit or are not installed, a teacher checkpoint without a teacher,
            stages to be frozen that start from random weights or that a network does not have, own starts of students
            that have no file, feature maps or a last stage of a network whose stages are not known, or an own
            classifier of one that has none.
    """
    spec, parts, trained, files = find_sources(
        version,
        task=task,
        teacher=teacher,
        students=students,
        use_teacher=use_teacher,
        initial_weights=initial_weights,
        teacher_checkpoint=teacher_checkpoint,
    )
    specs = spec.networks()
    singles = {own: single for members in parts.values() for own, single in members.items()}
    starts = enumerate(starts_of(own_start, len(spec.students)))
    own_starts = {own: start for i, start in starts for own in parts[NetworkName.student(i)]}
    apart = {own for own, start in own_starts.items() if start != "none"}
    if apart and not apart & files.keys():
        raise InputError(
            f"own_start says what {', '.join(sorted(apart))} do not take from initial_weights, which have no file for "
            "them: name one, or leave own_start out."
        )

    def build(name: str, stream: str) -> nn.Module:
        with network_seed(seed, stream_name(singles[name], stream)):
            network = build_network(singles[name], num_classes=num_classes)
        if name in files:
            own = own_part(network, own_starts.get(name, "none"))
            load_initial_weights(network, files[name])
            keep_own(network, own)
        if frozen_stages and name not in trained:  # that one is frozen whole
            _freeze(network, name, frozen_stages, started=name in files)
            _check_own_start_learns(network, name, own_starts.get(name, "none"))
        return network

    networks: dict[str, nn.Module] = {}
    for name, item in specs.items():
        stream = stream_name(item, name)
        built = [build(own, own.replace(name, stream, 1)) for own in parts[name]]
        networks[name] = Committee(built) if member_specs(item) else built[0]
    if teacher_checkpoint:
        _load_teacher(networks[NetworkName.TEACHER], teacher_checkpoint)
    maps = features and task == Task.CLASSIFICATION
    cohort = Cohort(networks, frozen_teacher=bool(teacher_checkpoint), features=maps)
    described = {path: describe_weights(path) for path in set(files.values())}
    cohort.initial_weights = {name: described[path] for name, path in files.items()}
    announce(cohort.initial_weights)
    return cohort


def _freeze(network: nn.Module, name: str, stages: int, *, started: bool) -> None:
    if not hasattr(network, "freeze"):
        raise InputError(
            f"{name} is a {type(network).__name__}, which has no stages to freeze: set frozen_stages to 0."
        )
    if not started:
        raise InputError(f"{name} has no initial_weights: its first stages would stay random. Set frozen_stages to 0.")
    try:
        network.freeze(stages)  # type: ignore[operator]
    except ValueError as error:
        raise InputError(str(error)) from error


def _check_own_start_learns(network: nn.Module, name: str, start: str) -> None:
    parameters = dict(network.named_parameters())
    if any(entry in parameters and not parameters[entry].requires_grad for entry in own_part(network, start)):
        raise InputError(
            f"{name} draws its last stage by own_start, and frozen_stages would leave it random: take fewer."
        )


def _load_teacher(teacher: nn.Module, files: str | Sequence[str]) -> None:
    if isinstance(files, str):
        load_trained(teacher, Path(files))
        return
    assert isinstance(teacher, Committee)  # see find_sources
    for member, file in zip(teacher.members, files, strict=True):
        load_trained(member, Path(str(file)))


def load_trained(network: nn.Module, path: Path) -> None:
    """Load a complete state dict of a trained network.

    Raises:
        InputError: the file is missing or does not fit exactly.
    """
    state = read_state_dict(path)
    for name, wanted in network.state_dict().items():
        if name in state and not same_kind(state[name], wanted):
            raise InputError(
                f"{path} is not a state dict of this {type(network).__name__}: {name!r} is {state[name].dtype}, "
                f"expected {wanted.dtype}."
            )
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        first = (str(error).splitlines()[1:] or [str(error)])[0].strip()  # behind a line that says nothing
        shown = first if len(first) <= 200 else f"{first[:200]} …"
        raise InputError(f"{path} is not a state dict of this {type(network).__name__}: {shown}") from error
