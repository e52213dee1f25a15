"""Evaluation of a whole cohort and of the ensemble of its students."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import IterationEvents, SupervisedEvaluator
from monai.utils import CommonKeys
from torch import Tensor

from kdml_med.engines import processes
from kdml_med.engines.trainer import prepare_cohort_batch, refuse_amp
from kdml_med.keys import NetworkName, OutputKey
from kdml_med.networks.memory import freed_memory_kept

AVERAGES = ("probabilities", "logits")


def check_average(average: str) -> None:
    """Refuse anything but the two ways to average.

    Raises:
        ValueError: average is neither "probabilities" nor "logits".
    """
    if average not in AVERAGES:
        raise ValueError(f"average must be 'probabilities' or 'logits', got {average!r}.")


def ensemble_probabilities(logits: Mapping[str, Tensor], *, average: str = "probabilities") -> dict[str, Tensor]:
    """Class probabilities of every network, and of the ensemble of the students.

    Args:
        logits: float, [batch, classes], by network name; the teacher is no part of the ensemble.
        average: "probabilities" for the mean of the students' probabilities, "logits" for the softmax of their mean
            logits.

    Returns:
        float32, [batch, classes], by network name, and "ensemble".

    Raises:
        ValueError: average is neither of the two.
    """
    check_average(average)
    logits = {name: value.float() for name, value in logits.items()}
    probabilities = {name: torch.softmax(value, dim=1) for name, value in logits.items()}
    students = [name for name in logits if name != NetworkName.TEACHER]
    if average == "logits":
        ensemble = torch.softmax(torch.stack([logits[name] for name in students]).mean(dim=0), dim=1)
    else:
        ensemble = torch.stack([probabilities[name] for name in students]).mean(dim=0)
    return probabilities | {NetworkName.ENSEMBLE.value: ensemble}


class CohortEvaluator(SupervisedEvaluator):
    """Supervised evaluator that adds to its output what the networks, and the ensemble of the students, answer.

    It runs in inference mode: what it leaves in its output cannot be trained with.

    Args:
        **kwargs: see ``monai.engines.SupervisedEvaluator``; ``decollate`` is always off, and ``non_blocking`` on unless
            it is given, as in ``KDMLTrainer``.

    Raises:
        InputError: ``amp`` is on, see ``refuse_amp``.
    """

    def __init__(self, **kwargs: Any) -> None:
        refuse_amp(kwargs)
        kwargs.setdefault("prepare_batch", prepare_cohort_batch)
        kwargs.setdefault("non_blocking", True)
        super().__init__(decollate=False, **kwargs)
        self.add_event_handler(Events.STARTED, lambda: processes.share_buffers(self.network))

    @abstractmethod
    def answer(self, predictions: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        """What goes to the output beside the raw predictions, by ``OutputKey``."""

    def run(self, global_epoch: int = 1) -> None:
        """Evaluate, in evaluation mode throughout: to switch all modules for every batch takes its time.

        Args:
            global_epoch: of the training, from 1.
        """
        with self.mode(self.network), freed_memory_kept(self.state.device):
            super().run(global_epoch=global_epoch)

    def _iteration(self, engine: CohortEvaluator, batchdata: dict[str, Any]) -> dict[str, Any]:
        """Evaluate one batch.

        Returns:
            The output: images and labels on the device, predictions by name, and what ``answer`` adds.
        """
        image, target = self.prepare_batch(batchdata, self.state.device, self.non_blocking, **self.to_kwargs)
        output = self.state.output = {CommonKeys.IMAGE: image, CommonKeys.LABEL: target}
        with torch.inference_mode():
            output[CommonKeys.PRED] = self.inferer(image, self.network)
            self.fire_event(IterationEvents.FORWARD_COMPLETED)
            output |= self.answer(output[CommonKeys.PRED], batchdata)
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        return output


class ClassificationEvaluator(CohortEvaluator):
    """Evaluator of classifiers: adds the class probabilities of every network and of the ensemble.

    Args:
        ensemble_average: see ``ensemble_probabilities``.
        **kwargs: see ``CohortEvaluator``.
    """

    def __init__(self, *, ensemble_average: str = "probabilities", **kwargs: Any) -> None:
        check_average(ensemble_average)  # now, not after the first epoch of training
        self.ensemble_average = ensemble_average
        super().__init__(**kwargs)

    def answer(self, predictions: Mapping[str, Tensor], batch: Mapping[str, Any]) -> dict[str, Any]:
        """Probabilities [batch, classes] by network name."""
        return {OutputKey.PROBABILITIES: ensemble_probabilities(predictions, average=self.ensemble_average)}
