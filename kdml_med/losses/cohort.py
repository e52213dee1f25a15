"""The loss of a whole cohort: labels, teacher and peers, composed for each student."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdml_med.keys import LossTerm, NetworkName
from kdml_med.losses.distillation import distillation_loss
from kdml_med.losses.mutual import mutual_loss


class CohortLoss(nn.Module):
    """Sum of every network's own loss; each network receives the gradient of its own loss only.

    For the teacher, L_t = task(z_t, y). For student k,

        L_k = alpha · task(z_k, y) + beta · kd(z_k, z_t) + gamma · ml(z_k, {z_j, j≠k})

    where z_t and z_j are detached. A term whose weight is zero is not computed. A subclass for each task says what its
    three terms are; weights, ramp and names are the same for all.

    Args:
        alpha: weight of the labels for students.
        beta: weight of the teacher.
        gamma: weight of the peers.
        temperature: T towards the teacher.
        peer_temperature: T_p between peers.
        ramp_up_epochs: in epoch e, beta and gamma are e / (ramp_up_epochs + 1) of their value, later all of it; 0 for
            full weight at once. Early on, teacher and peers know nothing worth imitating.
        train_teacher: False leaves the teacher's loss out (frozen teacher).

    Raises:
        ValueError: a weight is negative, a temperature is not positive, or nothing is left to learn from.

    Source:
        Niyaz and Bathula 2022, arXiv:2110.11023 (abstract); the composition is recorded in docs/decisions.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        *,
        temperature: float = 4.0,
        peer_temperature: float = 1.0,
        ramp_up_epochs: int = 0,
        train_teacher: bool = True,
    ) -> None:
        super().__init__()
        for name, value in {"alpha": alpha, "beta": beta, "gamma": gamma, "ramp_up_epochs": ramp_up_epochs}.items():
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}.")
        for name, value in {"temperature": temperature, "peer_temperature": peer_temperature}.items():
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}.")
        if alpha == beta == gamma == 0:
            raise ValueError("alpha, beta and gamma are all zero: the students would learn from nothing.")
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.temperature, self.peer_temperature = temperature, peer_temperature
        self.ramp_up_epochs = ramp_up_epochs
        self.train_teacher = train_teacher
        self.epoch = ramp_up_epochs + 1

    @abstractmethod
    def task_loss(self, prediction: Any, target: Any) -> Tensor:
        """Loss of one network against the labels; a scalar."""

    @abstractmethod
    def teacher_loss(self, student: Any, teacher: Any, target: Any) -> Tensor:
        """Distillation of the teacher into a student; a scalar, gradient for the student only."""

    @abstractmethod
    def peer_loss(self, student: Any, peers: Sequence[Any], target: Any) -> Tensor:
        """Mutual learning of a student from its peers; a scalar, gradient for the student only."""

    def prepare_target(self, predictions: Mapping[str, Any], target: Any) -> Any:
        """What all networks need to know of the target, worked out once per batch."""
        return target

    def set_epoch(self, epoch: int) -> None:
        """Tell the ramp which epoch is running, counted from 1."""
        self.epoch = epoch

    def weights(self) -> dict[str, float]:
        """The weights in force in this epoch."""
        ramp = min(1.0, self.epoch / (self.ramp_up_epochs + 1))
        return {"alpha": self.alpha, "beta": self.beta * ramp, "gamma": self.gamma * ramp}

    def forward(self, predictions: Mapping[str, Any], target: Any) -> dict[str, Tensor]:
        """Compute every term.

        Args:
            predictions: answers of the networks by name, as the task's terms take them.
            target: labels of the batch, likewise.

        Returns:
            Unweighted terms ("teacher_task", "student_0_task", "student_0_kd", "student_0_ml", ...) and "loss", the
            weighted sum to back-propagate. All are scalars.

        Raises:
            ValueError: beta is positive and there is no teacher among the predictions, or a student would learn from
                nothing.
        """
        teacher = predictions.get(NetworkName.TEACHER)
        students = {name: answer for name, answer in predictions.items() if name != NetworkName.TEACHER}
        if self.beta > 0 and teacher is None:
            raise ValueError("beta is positive, but the cohort has no teacher: set beta to 0 or build a teacher.")
        target = self.prepare_target(predictions, target)
        weights = self.weights()
        terms: dict[str, Tensor] = {}
        parts: list[Tensor] = []

        def add(name: str, term: LossTerm, weight: float, value: Tensor) -> None:
            terms[f"{name}_{term}"] = value
            parts.append(weight * value)

        if teacher is not None and self.train_teacher:
            add(NetworkName.TEACHER, LossTerm.TASK, 1.0, self.task_loss(teacher, target))
        for name, answer in students.items():
            before = len(parts)
            if self.alpha > 0:
                add(name, LossTerm.TASK, weights["alpha"], self.task_loss(answer, target))
            if self.beta > 0 and teacher is not None:
                add(name, LossTerm.KD, weights["beta"], self.teacher_loss(answer, teacher, target))
            peers = [other for peer, other in students.items() if peer != name]
            if self.gamma > 0 and peers:
                add(name, LossTerm.ML, weights["gamma"], self.peer_loss(answer, peers, target))
            if len(parts) == before:
                raise ValueError(f"{name} has nothing to learn from: without peers, alpha or beta must be above 0.")
        terms[LossTerm.LOSS] = torch.stack(parts).sum()
        return terms

    def extra_repr(self) -> str:
        """Settings, for printing."""
        names = ("alpha", "beta", "gamma", "temperature", "peer_temperature", "ramp_up_epochs")
        settings: dict[str, Any] = {name: getattr(self, name) for name in names}
        return ", ".join(f"{name}={value}" for name, value in settings.items())


class ClassificationCohortLoss(CohortLoss):
    """Cohort loss for classifiers.

        task(z, y) = CE(z, y)
        kd(z_k, z_t) = T² · KL(σ(z_t / T) ‖ σ(z_k / T))
        ml(z_k, z_j) = T_p² / (K - 1) · Σ_{j≠k} KL(σ(z_j / T_p) ‖ σ(z_k / T_p))

    Predictions are logits [batch, classes], the target is int64 [batch]; terms are in nats.

    Args:
        class_weights: weight of each class in the cross-entropy, for uneven classes; None for equal weights.
        **settings: see ``CohortLoss``.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        *,
        class_weights: list[float] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(alpha, beta, gamma, **settings)
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights)
        self.class_weights: Tensor | None

    def task_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy, mean over the batch."""
        with torch.autocast(prediction.device.type, enabled=False):
            return F.cross_entropy(prediction.float(), target, weight=self.class_weights)

    def teacher_loss(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """See ``distillation_loss``."""
        return distillation_loss(student, teacher, temperature=self.temperature)

    def peer_loss(self, student: Tensor, peers: Sequence[Tensor], target: Tensor) -> Tensor:
        """See ``mutual_loss``."""
        return mutual_loss(student, peers, temperature=self.peer_temperature)
