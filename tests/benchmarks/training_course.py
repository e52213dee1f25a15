"""What is trained in ``bench_training``: the networks of a version, their losses and one batch of noise.

Beside torch and MONAI's networks this imports nothing that peers would not have in their environment.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kdml_med.keys import LossTerm, Task
from kdml_med.losses import ClassificationCohortLoss, CohortLoss, DetectionCohortLoss
from kdml_med.networks import Cohort, build_cohort
from kdml_med.networks.devices import compute_repeatably
from kdml_med.networks.memory import freed_memory_kept
from tests.benchmarks.turns import Work

# A small rate: a batch of noise is learned by heart, step after step.
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.01
MOST_BOXES = 3
_TO_THE_END = contextlib.ExitStack()
"""Of the process."""


@dataclass(frozen=True)
class Course:
    """What all methods train.

    Attributes:
        task: of the networks.
        version: of the cohort.
        side_px: of the square input.
        batch: images of it.
        device: on which is computed.
        threads: of torch; 0 as many as torch takes by itself.
    """

    task: str
    version: str
    side_px: int
    batch: int
    device: str = "cpu"
    threads: int = 0

    def request(self, method: str, **arguments: Any) -> dict[str, Any]:
        """What a stable is asked for."""
        return {"course": asdict(self), "method": method, **arguments}

    def prepare(self) -> None:
        """Tell this process what every training is told, whichever library trains: only the step is to differ."""
        self.take_threads()
        compute_repeatably(0)
        if self.device == "cpu":
            _TO_THE_END.enter_context(freed_memory_kept())

    def take_threads(self) -> None:
        """Set the threads of this process."""
        if self.threads:
            torch.set_num_threads(self.threads)

    def cohort(self) -> Cohort:
        """The networks, always with the same weights, on the device and in training mode."""
        classes = 2 if self.task == Task.CLASSIFICATION else 1
        return build_cohort(self.version, task=self.task, num_classes=classes).to(self.device).train()

    def loss(self) -> CohortLoss:
        """With the weights that the bundles have by default."""
        return ClassificationCohortLoss() if self.task == Task.CLASSIFICATION else DetectionCohortLoss()

    def batch_of_noise(self) -> dict[str, Any]:
        """A batch as loaders give it, on the device: ``image`` and ``label``."""
        generator = torch.Generator().manual_seed(1)
        image = torch.randn(self.batch, 3, self.side_px, self.side_px, generator=generator).to(self.device)
        if self.task == Task.CLASSIFICATION:
            label: Any = torch.randint(0, 2, (self.batch,), generator=generator).to(self.device)
        else:
            label = [self._boxes(number % (MOST_BOXES + 1), generator) for number in range(self.batch)]
        return {"image": image, "label": label}

    def _boxes(self, count: int, generator: torch.Generator) -> Tensor:
        low = torch.rand(count, 2, generator=generator) * self.side_px / 2
        size = (0.15 + 0.3 * torch.rand(count, 2, generator=generator)) * self.side_px
        return torch.cat([low, low + size], dim=1).to(self.device)

    def repeated(self, step: Callable[[], None]) -> Work:
        """A step as work: so many of them, until the device has done them."""

        def work(steps: int) -> None:
            for _ in range(steps):
                step()
            self.wait()

        return work

    def wait(self) -> None:
        """Wait for a GPU to have done what it was told."""
        if self.device != "cpu":
            torch.cuda.synchronize()


class Batches:
    """A loader with as many steps as a turn has, always of the same batch: reading is no part of a step."""

    def __init__(self, batch: Any, size: int) -> None:
        self.batch, self.size = batch, size
        self.steps = 1

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        return itertools.repeat(self.batch, self.steps)

    @property
    def dataset(self) -> range:
        """As long as what is read in a turn."""
        return range(self.steps * self.size)


def adamw(parameters: Any) -> torch.optim.AdamW:
    """The optimizer of the bundles."""
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)


def warm_up(asked: dict[str, Any]) -> None:
    """Load the code of a whole step: it is in every process once, and is no memory of what is trained.

    Args:
        asked: see ``Course.request``.
    """
    small = replace(Course(**asked["course"]), side_px=64, batch=2, device="cpu")
    small.take_threads()
    with freed_memory_kept():  # which gives all of it back behind the step
        _step(small)


def _step(course: Course) -> None:
    networks, noise = course.cohort(), course.batch_of_noise()
    label = noise["label"]  # as prepare_cohort_batch gives it, which needs ignite
    target = label if isinstance(label, Tensor) else (label, (course.side_px, course.side_px))
    course.loss()(networks(noise["image"]), target)[LossTerm.LOSS].backward()
    adamw(networks.parameter_groups()).step()


def device_mib() -> float:
    """Most memory of tensors on a GPU so far."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_initialized() else 0.0
