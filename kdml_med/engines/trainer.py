"""Training of a whole cohort: one forward pass, one backward pass and one optimizer step for all networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents, SupervisedTrainer, Workflow
from monai.utils import CommonKeys
from torch import Tensor, nn

from kdml_med.engines import processes
from kdml_med.engines.acceleration import Acceleration
from kdml_med.engines.guard import LossGuard
from kdml_med.engines.joint import BatchesAhead, UpdatePart, joint_terms
from kdml_med.errors import InputError
from kdml_med.keys import BatchKey, LossTerm, OutputKey
from kdml_med.losses.cohort import CohortLoss, DealtLabels
from kdml_med.networks.memory import freed_memory_kept


def prepare_cohort_batch(
    batch: Mapping[str, Any], device: torch.device | None = None, non_blocking: bool = False, **_: Any
) -> tuple[Tensor, Any]:
    """Images and labels of a batch on the device; identifiers stay in ``engine.state.batch``.

    Boxes come as the list of boxes of each image and the images' (height, width), which anchors are made for. They go
    one by one, as the loader has pinned them: joined here they would be in memory that a copy to a GPU waits for.
    Where students have labels of their own, these are ``DealtLabels``.
    """
    image = batch[BatchKey.IMAGE].to(device=device, non_blocking=non_blocking)
    label = batch[BatchKey.LABEL]
    if isinstance(label, Tensor):
        label = label.to(device=device, non_blocking=non_blocking)
        learner = batch.get(BatchKey.LEARNER)
        if learner is None:
            return image, label
        return image, DealtLabels(label, learner.to(device=device, non_blocking=non_blocking))
    boxes = [part.to(device=device, non_blocking=non_blocking) for part in label]
    return image, (boxes, tuple(image.shape[-2:]))


def refuse_amp(settings: Mapping[str, Any]) -> None:
    """Refuse MONAI's switch for mixed precision, which the steps of this package do not read.

    Raises:
        InputError: it is on; says what to write.
    """
    if settings.get("amp") or settings.get("amp_kwargs"):
        raise InputError(
            "amp is on, which trainer and evaluators of kdml_med do not read: train with --precision fp16, in Python "
            "KDMLTrainer(acceleration=Acceleration(device, precision='fp16')); evaluation is in float32."
        )


class KDMLTrainer(SupervisedTrainer):
    """Supervised trainer whose network answers with named logits and whose loss answers with named terms.

    One forward pass, one backward pass and one optimizer step serve all networks. Constructor, state, events and
    handlers are MONAI's. The step is its own: the loss is computed outside autocast, its terms stay on the device for
    handlers to read when they need them (``LOSS_TERMS``), and a loss that is not finite stops before it spoils weights.

    Args:
        network: the cohort.
        loss_function: called with (predictions by name, target), returns scalars by name; "loss" is back-propagated. If
            it has ``set_epoch``, it is called with the epoch (from 1) when an epoch starts.
        acceleration: precision and memory format of the forward pass; None for float32.
        accumulate: batches whose mean gradient makes one optimizer step. The last step of an epoch takes what is left.
            With an ``EpochSampler`` batches weigh by their samples, otherwise alike. A ``CohortLoss`` divides by what
            the labels of all of them say, see ``CohortLoss.label_sums``; for that they are read together.
        **kwargs: see ``monai.engines.SupervisedTrainer``. ``decollate`` is always off: it would take the predictions
            apart by sample and lose the names. ``non_blocking`` is on unless it is given: a batch is on its way to a
            GPU while the step before is still at work there.

    Attributes:
        updated: whether the batch that was trained last ended with an optimizer step.
        guard: stops where a loss is no number or has exploded.

    Raises:
        FloatingPointError: see ``LossGuard.check``.
        InputError: ``amp`` is on, see ``refuse_amp``.
        ValueError: accumulate is not positive.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        loss_function: Callable[..., dict[str, Tensor]],
        acceleration: Acceleration | None = None,
        accumulate: int = 1,
        **kwargs: Any,
    ) -> None:
        refuse_amp(kwargs)
        kwargs.setdefault("prepare_batch", prepare_cohort_batch)
        kwargs.setdefault("non_blocking", True)
        self.acceleration = acceleration or Acceleration(kwargs["device"])
        self.cohort = self.acceleration.prepare(network)
        self.cohort_loss = loss_function
        self.updated = True
        self.guard = LossGuard()
        self._label_sums: dict[str, float] = {}  # of the batches of this update
        super().__init__(
            network=processes.share_network(self.cohort),
            loss_function=loss_function,
            accumulation_steps=accumulate,
            decollate=False,
            **kwargs,
        )
        # Registered after super().__init__, which attaches handlers before fields of a subclass would exist.
        self.scaler = self.acceleration.scaler
        if hasattr(loss_function, "set_epoch"):
            self.add_event_handler(Events.EPOCH_STARTED, lambda: loss_function.set_epoch(self.state.epoch))

    def run(self) -> None:
        """Train up to ``max_epochs``."""
        with freed_memory_kept(self.state.device):
            if self.accumulation_steps > 1 and self.state.epoch_length and isinstance(self.cohort_loss, CohortLoss):
                loss = self.cohort_loss
                needed, show = partial(self._is_foreseen, loss), partial(self._foresee, loss)
                ahead = BatchesAhead(self.data_loader, self._wanted_batches, needed, show)
                Engine.run(self, data=ahead, max_epochs=self.state.max_epochs)
            else:
                Workflow.run(self)  # MONAI's trainer would make a new scaler, and lose what the old one has learned

    def _iteration(self, engine: KDMLTrainer, batchdata: Mapping[str, Any]) -> dict[str, Any]:
        """Train one batch.

        Returns:
            The output: images and labels on the device, predictions and terms by name, and the loss.
        """
        image, target = self.prepare_batch(batchdata, self.state.device, self.non_blocking, **self.to_kwargs)
        image = self.acceleration.image(image)
        output: dict[str, Any] = {CommonKeys.IMAGE: image, CommonKeys.LABEL: target}
        self.state.output = output
        place, batches = self._place(self.state.iteration)
        parts = 1.0 if batches == 1 else self._parts(place, batches)
        if place == 1:
            self.optimizer.zero_grad(set_to_none=True)
        if not self.cohort.training:  # after a validation; walking through all modules takes its time
            self.network.train()
        processes.exchange_gradients(self.network, wanted=place == batches)
        with self.acceleration.autocast():
            output[CommonKeys.PRED] = self.inferer(image, self.network)
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        terms = self._terms(output[CommonKeys.PRED], target, dealt=len(image), parts=parts)
        loss = output[CommonKeys.LOSS] = terms[LossTerm.LOSS]
        output[OutputKey.LOSS_TERMS] = {name: value.detach() for name, value in terms.items()}
        self.fire_event(IterationEvents.LOSS_COMPLETED)
        self.guard.check(output[OutputKey.LOSS_TERMS], self)
        loss = loss if batches == 1 else loss / parts
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        self.fire_event(IterationEvents.BACKWARD_COMPLETED)
        self.updated = place == batches
        if self.updated:
            self._update()
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        return output

    def _terms(self, predictions: Any, target: Any, *, dealt: int, parts: float) -> dict[str, Tensor]:
        """Loss terms of the samples that count; where none does, of all."""
        counted = self._counted(dealt, self.state.iteration)
        if 0 < counted < dealt:
            predictions, target = first_samples(predictions, counted), first_samples(target, counted)
        update = UpdatePart(self._label_sums, 1 / parts) if self._label_sums and parts > 1 else None
        return joint_terms(self.cohort_loss, predictions, target, samples=counted, update=update)

    def _counted(self, dealt: int, iteration: int) -> int:
        """Of the samples of a batch those that count, see ``EpochSampler.spare``."""
        spare = self._of_sampler("spare")
        return dealt if not spare or iteration % self.state.epoch_length else dealt - spare

    def _of_sampler(self, name: str) -> Any:
        """What an ``EpochSampler`` knows, of which engines see no more than that; None where the loader has none."""
        return getattr(getattr(self.data_loader, "sampler", None), name, None)

    def _place(self, iteration: int) -> tuple[int, int]:
        """Of a batch among those of its optimizer step, from 1, and how many these are."""
        steps, length = self.accumulation_steps, self.state.epoch_length
        done = (iteration - 1) % length if length else iteration - 1
        first = done - done % steps
        return done - first + 1, min(steps, length - first) if length else steps

    def _parts(self, place: int, batches: int) -> float:
        """Samples of an optimizer step over those of one of its batches: samples weigh alike, batches may differ."""
        size_of = self._of_sampler("size_of")
        if size_of is None:
            return float(batches)
        first = (self.state.iteration - 1) % self.state.epoch_length - (place - 1)
        sizes: list[int] = [size_of(first + number) for number in range(batches)]
        return sum(sizes) / sizes[place - 1]

    def _wanted_batches(self) -> int:
        """From the next one up to the next optimizer step."""
        place, batches = self._place(self.state.iteration + 1)
        return batches - place + 1

    def _is_foreseen(self, loss: CohortLoss, batch: Mapping[str, Any]) -> bool:
        """Whether labels tell what terms are divided by. Where they do not, no batch has to wait for others."""
        return bool(loss.label_sums(self._labels_of(batch)))

    def _labels_of(self, batch: Mapping[str, Any]) -> Any:
        """The target on the CPU, where labels are; without pixels: one would wait for those that are on a GPU."""
        bare = {**batch, BatchKey.IMAGE: batch[BatchKey.IMAGE][:0]}
        return self.prepare_batch(bare, torch.device("cpu"), False, **self.to_kwargs)[1]

    def _foresee(self, loss: CohortLoss, batches: Sequence[Mapping[str, Any]]) -> None:
        """Add up what labels of the batches up to the next optimizer step say, all processes together."""
        sums: list[dict[str, float]] = []
        for iteration, batch in enumerate(batches, start=self.state.iteration + 1):
            counted = self._counted(len(batch[BatchKey.IMAGE]), iteration)
            if counted > 0:
                told = loss.label_sums(first_samples(self._labels_of(batch), counted))
                sums.append({name: float(value) for name, value in told.items()})
        self._label_sums = processes.total(processes.added(sums))

    def _update(self) -> None:
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()


def first_samples(value: Any, samples: int) -> Any:
    """The first samples of a batch: of tensors and of lists by sample, in mappings and tuples of these."""
    if isinstance(value, Tensor | list):
        return value[:samples]
    if isinstance(value, Mapping):
        return {name: first_samples(part, samples) for name, part in value.items()}
    if isinstance(value, tuple):
        parts = [first_samples(part, samples) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value
