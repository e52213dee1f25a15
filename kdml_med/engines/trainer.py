"""Training of a whole cohort in MONAI's supervised loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch import Tensor

from kdml_med.keys import BatchKey, LossTerm, OutputKey


def prepare_cohort_batch(
    batch: Mapping[str, Any], device: torch.device | None = None, non_blocking: bool = False, **_: Any
) -> tuple[Tensor, Any]:
    """Images and labels of a batch on the device; identifiers stay in ``engine.state.batch``.

    Boxes come as the list of boxes of each image and the images' (height, width), which anchors are made for.
    """
    image = batch[BatchKey.IMAGE].to(device=device, non_blocking=non_blocking)
    label = batch[BatchKey.LABEL]
    if isinstance(label, Tensor):
        return image, label.to(device=device, non_blocking=non_blocking)
    boxes = [part.to(device=device, non_blocking=non_blocking) for part in label]
    return image, (boxes, tuple(image.shape[-2:]))


class KDMLTrainer(SupervisedTrainer):
    """Supervised trainer whose network answers with named logits and whose loss answers with named terms.

    One forward pass, one backward pass and one optimizer step serve all networks. The loop itself is MONAI's; this
    class only keeps the loss terms for handlers, tells the loss which epoch is running, and stops when the loss is not
    finite. Events, mixed precision and gradient accumulation are those of ``SupervisedTrainer``.

    Args:
        loss_function: called with (predictions by name, target), returns scalars by name; "loss" is back-propagated. If
            it has ``set_epoch``, it is called with the epoch (from 1) when an epoch starts.
        **kwargs: see ``monai.engines.SupervisedTrainer``. ``decollate`` is always off: it would take the predictions
            apart by sample and lose the names.

    Raises:
        FloatingPointError: a loss term is NaN or infinite; the message names the terms and the iteration.
    """

    def __init__(self, *, loss_function: Callable[..., dict[str, Tensor]], **kwargs: Any) -> None:
        kwargs.setdefault("prepare_batch", prepare_cohort_batch)
        self.cohort_loss = loss_function
        super().__init__(loss_function=self._total_loss, decollate=False, **kwargs)
        # Registered after super().__init__, which attaches handlers before fields of a subclass would exist.
        if hasattr(loss_function, "set_epoch"):
            self.add_event_handler(Events.EPOCH_STARTED, lambda: loss_function.set_epoch(self.state.epoch))

    def _total_loss(self, predictions: dict[str, Any], target: Any) -> Tensor:
        terms = self.cohort_loss(predictions, target)
        self.state.output[OutputKey.LOSS_TERMS] = {name: value.detach() for name, value in terms.items()}
        total = terms[LossTerm.LOSS]
        if not torch.isfinite(total):
            bad = [name for name, value in terms.items() if name != LossTerm.LOSS and not torch.isfinite(value)]
            raise FloatingPointError(
                f"loss terms {bad} are not finite in epoch {self.state.epoch}, iteration {self.state.iteration}: start "
                "again in a new --run_dir with a lower --learning_rate, or look for broken images in this batch."
            )
        return total
