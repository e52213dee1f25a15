"""The loss of a whole cohort: labels, teacher and peers, composed for each student."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from kdml_med.keys import LossTerm, NetworkName
from kdml_med.losses.feature import attention_loss
from kdml_med.networks.answers import common_answer, own_answers

LINKS = ("predictions", "features", "both")
"""What a student can learn from its teacher or its peers."""
LABELS = "labels"
"""Name of the ``label_sums`` of those who read all labels."""


class OwnLabels(NamedTuple):
    """Labels of a batch of which a student reads some.

    Attributes:
        labels: int64, [batch], as ``CohortLoss.prepare_target`` leaves them.
        read: bool, [batch], which of them.
        reader: name of the student.
    """

    labels: Tensor
    read: Tensor
    reader: str


class DealtLabels(NamedTuple):
    """Labels of a batch of which each student reads its own; the teacher reads all.

    Attributes:
        labels: int64, [batch].
        learners: int64, [batch], number of the student that reads each.
    """

    labels: Tensor
    learners: Tensor


class Joint(Protocol):
    """What a loss asks where several processes have a share each of a batch, so that their mean is that of the batch.

    Where batches make an update together, they are such a batch, too, and each of them weighs as its samples.

    Attributes:
        share: samples of this process over those of the mean process, a scalar. A mean over the samples of this process
            is multiplied by it.
    """

    share: Tensor

    @property
    def foresees(self) -> bool:
        """Whether there are other batches of the update, whose label sums are known."""

    def divisor(self, own: Tensor, least: float, name: str | None = None) -> Tensor:
        """What a sum over this process is divided by: the total of all processes, over their number.

        Args:
            own: scalar of this process, such as the number of its positive anchors; without gradient.
            least: the total is at least this.
            name: of ``own`` among the ``CohortLoss.label_sums``, so that the total is of all batches of the update,
                times the part of them that this one is; None for what labels alone do not tell.
        """


class CohortLoss(nn.Module):
    """Sum of every network's own loss; each network receives the gradient of its own loss only.

    For the teacher, L_t = task(z_t, y). For student k,

        L_k = alpha · task(z_k, y) + beta · kd(z_k, z_t)
              + gamma · ml(z_k, {z_j, j≠k})

    where z_t and z_j are detached. kd and ml are what the link of the student says: something learned from the other's
    predictions, ``feature_weight`` times the ``attention_loss`` of the feature maps, or the sum of both. A term whose
    weight is zero is not computed. Of a committee others learn the mean, while each of its members learns by itself: a
    term of a committee is the mean of those of its members. Where every student has a view of the samples of its own,
    it learns from the teacher's answer to that view and from its peers' answers to theirs, and the teacher's term is
    the mean over the views. Of ``DealtLabels`` a student's task term is the mean over the samples whose labels it
    reads, and 0 where a batch has none; teacher and peers teach it all samples. A subclass for each task says how
    labels and predictions are learned from and where feature maps are; weights, ramp, links and names are the same for
    all.

    Args:
        alpha: weight of the labels for students.
        beta: weight of the teacher.
        gamma: weight of the peers.
        temperature: T towards the teacher.
        peer_temperature: T_p between peers.
        ramp_up_epochs: in epoch e, beta and gamma are e / (ramp_up_epochs + 1) of their value, later all of it; 0 for
            full weight at once. Early on, teacher and peers know nothing worth imitating.
        teacher_warmup_epochs: head start of the teacher: beta is 0 in so many epochs, in which students learn from
            labels and peers, and its ramp begins behind them.
        train_teacher: False leaves the teacher's loss out (frozen teacher).
        teacher_link: what students learn from the teacher: "predictions", "features" or "both" for all of them, or a
            sequence with one of these for each student.
        peer_link: likewise what they learn from their peers.
        feature_weight: of feature maps beside predictions in kd and ml.

    Raises:
        ValueError: a weight is negative, a temperature is not positive, a link is unknown or has no weight, or no label
            would reach the students, neither by themselves nor by a teacher.

    Source:
        Niyaz and Bathula 2022, arXiv:2110.11023; links that differ between students: Niyaz, Sambyal and Bathula 2022,
        arXiv:2212.02931 (abstracts). The composition is recorded in docs/decisions.

    Attributes:
        joint: set while processes that share a batch work out its loss; None where this one has all of it.
        terms_are_joint: whether ``task_loss``, ``teacher_loss`` and ``peer_loss`` heed ``joint`` themselves. Else they
            are means over the samples that they are given, and weighed here as what these are of the batch.
        least_weight: what ``task_loss`` divides by at least.
    """

    terms_are_joint: ClassVar[bool] = False
    least_weight: ClassVar[float] = 1.0

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        *,
        temperature: float = 4.0,
        peer_temperature: float = 1.0,
        ramp_up_epochs: int = 0,
        teacher_warmup_epochs: int = 0,
        train_teacher: bool = True,
        teacher_link: str | Sequence[str] = "predictions",
        peer_link: str | Sequence[str] = "predictions",
        feature_weight: float = 1.0,
    ) -> None:
        super().__init__()
        weights = {"alpha": alpha, "beta": beta, "gamma": gamma, "feature_weight": feature_weight}
        epochs = {"ramp_up_epochs": ramp_up_epochs, "teacher_warmup_epochs": teacher_warmup_epochs}
        for name, value in (weights | epochs).items():
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}.")
        for name, value in {"temperature": temperature, "peer_temperature": peer_temperature}.items():
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}.")
        if alpha == beta == 0:
            raise ValueError(
                "alpha and beta are both zero: no student would learn from labels, by itself or by a teacher, and "
                "peers can only agree. Set one of them above 0."
            )
        if alpha == 0 and teacher_warmup_epochs > 0:
            raise ValueError(
                "teacher_warmup_epochs is for students that learn from labels meanwhile: set alpha above 0."
            )
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.temperature, self.peer_temperature = temperature, peer_temperature
        self.ramp_up_epochs, self.teacher_warmup_epochs = ramp_up_epochs, teacher_warmup_epochs
        self.train_teacher = train_teacher
        self.feature_weight = feature_weight
        self.teacher_link = _checked_link("teacher_link", teacher_link, feature_weight)
        self.peer_link = _checked_link("peer_link", peer_link, feature_weight)
        self.epoch = ramp_up_epochs + teacher_warmup_epochs + 1
        self.joint: Joint | None = None

    @abstractmethod
    def task_loss(self, prediction: Any, target: Any) -> Tensor:
        """Loss of one network against the labels; a scalar, mean over the samples (but see ``terms_are_joint``).

        The target is what ``prepare_target`` made of it, of a student with labels of its own ``OwnLabels`` with that.
        """

    @abstractmethod
    def teacher_loss(self, student: Any, teacher: Any, target: Any) -> Tensor:
        """What a student learns from the teacher's predictions; a scalar, gradient for the student only."""

    @abstractmethod
    def peer_loss(self, student: Any, peers: Sequence[Any], target: Any) -> Tensor:
        """What a student learns from its peers' predictions; a scalar, gradient for the student only."""

    @abstractmethod
    def feature_maps(self, prediction: Any) -> Sequence[Tensor]:
        """Feature maps [batch, channels, height, width] of one network; empty where it gives none."""

    def prepare_target(self, predictions: Mapping[str, Any], target: Any) -> Any:
        """What all networks need to know of the target, worked out once per batch."""
        return target

    def of_batch(self, value: Tensor) -> Tensor:
        """A mean over the samples of this process as what it adds to the mean over the batch.

        Whoever adds terms in a ``forward`` of their own hands them through here.
        """
        return value if self.joint is None else value * self.joint.share

    def task_weight(self, target: Any, samples: int) -> Tensor:
        """What ``task_loss`` has divided its sum over these samples by, or less than ``least_weight``; a scalar.

        So means over batches weigh as in one batch of all samples.

        Args:
            target: what ``prepare_target`` made of it.
            samples: of the batch.
        """
        return torch.tensor(float(samples))

    def label_sums(self, target: Any) -> dict[str, Tensor]:
        """What sums over these samples are divided by in place of their number, as far as labels tell; scalars by name.

        Asked before any network has answered, of all batches whose gradients are added up to one update. Empty where
        all terms are means over samples.

        Args:
            target: labels of a batch as ``forward`` takes them.
        """
        return {}

    def task_share(self, target: Any, joint: Joint) -> Tensor:
        """By what ``task_loss`` of this process is weighed where it shares the batch; asked once for each target."""
        return joint.share

    def set_epoch(self, epoch: int) -> None:
        """Tell the ramp which epoch is running, counted from 1."""
        self.epoch = epoch

    def weights(self) -> dict[str, float]:
        """The weights in force in this epoch."""
        return {
            "alpha": self.alpha,
            "beta": self.beta * self._ramp(self.epoch - self.teacher_warmup_epochs),
            "gamma": self.gamma * self._ramp(self.epoch),
        }

    def _ramp(self, epoch: int) -> float:
        return min(1.0, max(0, epoch) / (self.ramp_up_epochs + 1))

    def term_weights(self, network: str) -> dict[str, float]:
        """The weight of each term in the loss of a network in this epoch; terms that are not named count as they are.

        A loss of one's own that adds a term with a weight adds it here, too, so that the history tells it.
        """
        if network == NetworkName.TEACHER:
            return {LossTerm.TASK: 1.0}
        weights = self.weights()
        return {term: weights[term.weight] for term in LossTerm.parts() if term.weight in weights}

    @property
    def needs_features(self) -> bool:
        """Whether a link that has a weight compares feature maps."""
        used = [link for weight, link in ((self.beta, self.teacher_link), (self.gamma, self.peer_link)) if weight > 0]
        names = {name for link in used for name in ([link] if isinstance(link, str) else link)}
        return self.feature_weight > 0 and bool(names - {"predictions"})

    def check_students(self, count: int) -> None:
        """Check that links fit this number of students and that each student is taught how to answer.

        Raises:
            ValueError: links given student by student are not as many as the students, or a student has nothing to
                learn its answers from.
        """
        for name, links in (("teacher_link", self.teacher_link), ("peer_link", self.peer_link)):
            if not isinstance(links, str) and len(links) != count:
                raise ValueError(
                    f"{name} names {len(links)} links, {list(links)}, but the cohort has {count} students: name one "
                    "for each, or a single one for all."
                )
        by_teacher = [self.beta > 0 and _link_of(self.teacher_link, number) != "features" for number in range(count)]
        taught = [self.alpha > 0 or answers for answers in by_teacher]
        for number in range(count):
            from_peers = self.gamma > 0 and any(taught) and _link_of(self.peer_link, number) != "features"
            if not (taught[number] or from_peers):
                raise ValueError(
                    f"{NetworkName.student(number)} has nothing to learn from: without peers that know labels, alpha "
                    "or beta must be above 0, and features alone teach no answers."
                )

    def forward(self, predictions: Mapping[str, Any], target: Any) -> dict[str, Tensor]:
        """Compute every term.

        Args:
            predictions: answers of the networks by name, as the task's terms take them.
            target: labels of the batch, likewise.

        Returns:
            Unweighted terms ("teacher_task", "student_0_task", "student_0_kd", "student_0_ml", ...) and "loss", the
            weighted sum to back-propagate. All are scalars.

        Raises:
            ValueError: beta is positive and there is no teacher among the predictions, links are not as many as the
                students, a link needs feature maps that the networks do not give, or a student would learn from
                nothing.
        """
        learners = {name: own_answers(answer) for name, answer in predictions.items()}
        teacher = predictions.get(NetworkName.TEACHER)
        predictions = {name: common_answer(answer) for name, answer in predictions.items()}
        students = {name: answer for name, answer in predictions.items() if name != NetworkName.TEACHER}
        if self.beta > 0 and teacher is None:
            raise ValueError("beta is positive, but the cohort has no teacher: set beta to 0 or build a teacher.")
        self.check_students(len(students))
        dealt = target if isinstance(target, DealtLabels) else None
        target = self.prepare_target(predictions, target if dealt is None else dealt.labels)
        joint = None if self.terms_are_joint else self.joint
        terms: dict[str, Tensor] = {}
        parts: list[Tensor] = []

        def add(name: str, term: LossTerm, loss: Callable[[Any], Tensor]) -> None:
            values = [loss(answer) for answer in learners[name]]
            terms[f"{name}_{term}"] = values[0] if len(values) == 1 else torch.stack(values).mean()
            parts.append(self.term_weights(name)[term] * terms[f"{name}_{term}"])

        def judged_by(labels: Any) -> Callable[[Any], Tensor]:
            share = None if joint is None else self.task_share(labels, joint)

            def judge(answer: Any) -> Tensor:
                value = self.task_loss(answer, labels)
                return value if share is None else value * share

            return judge

        judge = judged_by(target)
        if teacher is not None and self.train_teacher:
            add(NetworkName.TEACHER, LossTerm.TASK, judge)
        for number, name in enumerate(students):
            if self.alpha > 0:
                own = None if dealt is None else OwnLabels(target, dealt.learners == number, name)
                add(name, LossTerm.TASK, judge if own is None else judged_by(own))
            if self.beta > 0 and teacher is not None:
                link, said = _link_of(self.teacher_link, number), common_answer(teacher, number)
                add(name, LossTerm.KD, partial(self._from_teacher, link, said, target))
            peers = [other for peer, other in students.items() if peer != name]
            if self.gamma > 0 and peers:
                add(name, LossTerm.ML, partial(self._from_peers, _link_of(self.peer_link, number), peers, target))
        terms[LossTerm.LOSS] = torch.stack(parts).sum()
        return terms

    def _from_teacher(self, link: str, teacher: Any, target: Any, student: Any) -> Tensor:
        return self._linked(link, lambda answer: self.teacher_loss(answer, teacher, target), [teacher], student)

    def _from_peers(self, link: str, peers: Sequence[Any], target: Any, student: Any) -> Tensor:
        return self._linked(link, lambda answer: self.peer_loss(answer, peers, target), peers, student)

    def _linked(
        self, link: str, learn_predictions: Callable[[Any], Tensor], sources: Sequence[Any], student: Any
    ) -> Tensor:
        """What a student learns from its teacher or its peers, as the link says; a scalar."""
        parts = []
        if link != "features":
            learned = learn_predictions(student)
            parts.append(learned if self.terms_are_joint else self.of_batch(learned))
        if link != "predictions" and self.feature_weight > 0:
            own = self._maps(student)
            # The maps of a committee are those of all members, each of which is learned from.
            maps = [part for source in sources for part in _members_maps(self._maps(source), len(own))]
            terms = [attention_loss(own, source) for source in maps]
            parts.append(self.feature_weight * self.of_batch(torch.stack(terms).mean()))
        return torch.stack(parts).sum()

    def _maps(self, prediction: Any) -> Sequence[Tensor]:
        maps = self.feature_maps(prediction)
        if not maps:
            raise ValueError(
                "a link compares features, but a network answers without feature maps: classifiers need "
                "build_cohort(features=True) and training mode, detectors have to fill AnchorPredictions.features."
            )
        return maps

    def extra_repr(self) -> str:
        """Settings, for printing."""
        names = ["alpha", "beta", "gamma", "temperature", "peer_temperature", "ramp_up_epochs"]
        names += ["teacher_warmup_epochs", "teacher_link", "peer_link", "feature_weight"]
        settings: dict[str, Any] = {name: getattr(self, name) for name in names}
        return ", ".join(f"{name}={value}" for name, value in settings.items())


def _checked_link(name: str, link: str | Sequence[str], feature_weight: float) -> str | tuple[str, ...]:
    each: list[str] = list(link) if isinstance(link, list | tuple) else [link]  # type: ignore[list-item]
    if not each or not all(part in LINKS for part in each):
        raise ValueError(
            f"{name} is {link!r}, expected one of {', '.join(LINKS)}, or a list with one of these for each student."
        )
    if "features" in each and feature_weight == 0:
        raise ValueError(f"{name} is {link!r}, but feature_weight is 0: nothing would be learned from features alone.")
    return link if isinstance(link, str) else tuple(each)


def _members_maps(maps: Sequence[Tensor], levels: int) -> list[Sequence[Tensor]]:
    """The maps of each member of a committee, which follow each other; of one network, all of them."""
    step = levels if len(maps) % levels == 0 else len(maps)
    return [maps[start : start + step] for start in range(0, len(maps), step)]


def _link_of(links: str | Sequence[str], number: int) -> str:
    return links if isinstance(links, str) else links[number]
