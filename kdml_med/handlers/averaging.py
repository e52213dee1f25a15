"""Averages of the weights that networks pass through while they learn, judged and kept in place of the last ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, cast, get_args

import torch
from ignite.engine import Events
from monai.engines import IterationEvents, Trainer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import PARAM_LIST, AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from kdml_med.data.sampling import EpochSampler
from kdml_med.keys import BatchKey, NetworkName
from kdml_med.networks.cohort import Cohort

Average = Literal["none", "ema", "swa"]
STATISTICS_BATCHES = 100
"""From at most so many batches the batch statistics of averaged weights are measured."""


class WeightAverage:
    """Averages the weights of every network that learns; ``network`` is the cohort that is validated and kept.

    Training goes on from the weights as they are, and nothing of it changes but what ``teaches`` says.

    "ema": after every optimizer step the average moves towards the weights, d · average + (1 − d) · weights with
    d = min(decay, (1 + n) / (10 + n)) in step n, so that a short training is not held back by its random start. Batch
    statistics (running means and variances) are averaged in the same way.

    "swa": up to the share ``start`` of all epochs the weights as they are, then the plain mean of those at the end of
    that epoch and of every later one. More epochs than before move the beginning; a mean that has earlier ones begins
    anew. Statistics of averaged weights are not averages of statistics: they are measured anew, with up to
    ``STATISTICS_BATCHES`` batches of the epoch that was trained.

    Attach it before the handler that runs the validation. What it keeps is part of a checkpoint. Several processes have
    the same averages of weights; statistics are those of the main one, as evaluators use them.

    Args:
        network: the cohort that is trained. A frozen teacher is shared, not copied.
        kind: "none", "ema" or "swa".
        decay: largest d of "ema", 0 to 1.
        start: of "swa", 0 to 1.
        teaches: let students learn from what the average of a teacher that learns says, with "ema"; otherwise nothing.

    Attributes:
        network: the cohort with averaged weights; with "none" the one that is trained.

    Raises:
        ValueError: kind is none of the three.

    Source:
        Izmailov et al. 2018, arXiv:1803.05407, algorithm 1, and torch.optim.swa_utils. The growing d is that of
        TensorFlow's ExponentialMovingAverage with ``num_updates``. An average as the teacher: Tarvainen and Valpola
        2017, arXiv:1703.01780.
    """

    def __init__(
        self,
        network: Cohort,
        kind: Average = "none",
        *,
        decay: float = 0.999,
        start: float = 0.75,
        teaches: bool = False,
    ) -> None:
        if kind not in get_args(Average):
            raise ValueError(f"kind must be one of {', '.join(get_args(Average))}, got {kind!r}.")
        self.trained, self.kind, self.decay, self.start = network, kind, decay, start
        self.network = network
        if kind != "none":
            frozen = {NetworkName.TEACHER.value} if network.frozen_teacher else set()
            self.learning = Cohort({name: part for name, part in network.networks.items() if name not in frozen})
            self.averaged = AveragedModel(self.learning, multi_avg_fn=self._move, use_buffers=True)
            self.averaged.eval()  # nobody trains it
            own = self._cohort.networks
            if teaches and kind == "ema" and NetworkName.TEACHER in own:
                network.spokesman = (own[NetworkName.TEACHER],)
            parts = {name: part if name in frozen else own[name] for name, part in network.networks.items()}
            self.network = Cohort(parts, frozen_teacher=network.frozen_teacher).eval()
            self.network.remembered = network.remembered

    def attach(self, engine: Trainer) -> None:
        """Register with the trainer."""
        if self.kind != "none" and engine.acceleration.memory_format == "channels_last":
            # As the weights lie: for evaluation, and because two orders make every step of the average slow.
            self._cohort.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.kind == "ema":
            engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self._batch_trained)
        elif self.kind == "swa":
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_trained)

    def state_dict(self) -> dict[str, Any]:
        """What a training goes on from; empty without an average."""
        return {} if self.kind == "none" else dict(self.averaged.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` gave.

        Raises:
            RuntimeError: it is of other networks.
        """
        if self.kind != "none":
            self.averaged.load_state_dict(state)

    @property
    def _cohort(self) -> Cohort:
        """With the averages of what learns."""
        return cast(Cohort, self.averaged.module)

    def _move(self, averages: PARAM_LIST, values: PARAM_LIST, _: Tensor | int) -> None:
        """Move averages of one type towards new values."""
        taken = int(self.averaged.n_averaged)  # stays on the CPU, whatever device the weights are on
        if not averages[0].is_floating_point():  # numbers of batches
            torch._foreach_copy_(averages, values)
        elif self.kind == "ema":
            get_ema_multi_avg_fn(min(self.decay, (1 + taken) / (10 + taken)))(averages, values, taken)
        else:
            get_swa_multi_avg_fn()(averages, values, taken)

    def _batch_trained(self, engine: Trainer) -> None:
        if engine.updated:
            self.averaged.update_parameters(self.learning)

    def _epoch_trained(self, engine: Trainer) -> None:
        epoch, first = engine.state.epoch, math.floor(self.start * engine.state.max_epochs)
        # It has the ends of so many epochs before this one; they are too early where max_epochs was raised meanwhile.
        if epoch <= first or epoch - int(self.averaged.n_averaged) < first:
            self.averaged.n_averaged.zero_()  # the next update copies
        self.averaged.update_parameters(self.learning)
        if self.averaged.n_averaged > 1:
            sampler = EpochSampler.of(engine.data_loader)
            if sampler is not None:
                sampler.start = (0, 0)  # where a continued training began this epoch, which is over now
            batches = itertools.islice(engine.data_loader, STATISTICS_BATCHES)
            device = engine.state.device
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # dropout draws
                measure_statistics(self._cohort, _images(batches, device))


def measure_statistics(network: nn.Module, images: Iterable[Tensor]) -> None:
    """Replace the batch statistics of a network by their plain means over batches; weights stay.

    The same as ``torch.optim.swa_utils.update_bn``, but layers that stay in evaluation mode while the network trains
    (frozen stages) keep theirs.

    Args:
        network: is left in the mode it was in.
        images: batches, float [batch, channels, height, width], on the network's device.
    """
    was_training = network.training
    network.train()
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.training]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean
    with torch.no_grad():
        for batch in images if layers else ():
            network(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    network.train(was_training)


def _images(batches: Iterable[Mapping[str, Any]], device: torch.device) -> Iterator[Tensor]:
    for batch in batches:
        yield batch[BatchKey.IMAGE].to(device)
