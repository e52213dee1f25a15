"""Networks tried before a training begins: builders are anybody's, and what they give is not in their names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kdml_med.errors import InputError
from kdml_med.keys import NetworkName, Task
from kdml_med.networks.anchors import anchor_grid
from kdml_med.networks.cohort import Cohort
from kdml_med.networks.committee import Committee

_IMAGES = 2
"""To which answers are looked at. The answer to a single one may lack the dimension of the batch, as after a
``squeeze``, in a network that training and validation never show a single one."""
_SINGLE_VALUES = "Expected more than 1 value per channel"
"""How torch begins what its norms say of a batch that they cannot learn from."""


def check_answers(cohort: Cohort, *, task: Task, num_classes: int, size: tuple[int, int]) -> None:
    """Check that all networks, members of committees by themselves, answer in the shape that losses and metrics read.

    Nothing later would notice: a loss is a number with further classes or other anchors, too. Networks stay as they
    are; random numbers that they draw are the caller's to put back.

    Args:
        cohort: of classifiers or detectors, on the device that it is trained on.
        task: which of them.
        num_classes: of a classifier all classes, of a detector those beside background.
        size: (height, width) of what the networks see, pixels.

    Raises:
        InputError: names the network, what it gives and what was expected.
    """
    expected = {"logits": [_IMAGES, num_classes]}
    if task is Task.DETECTION:
        anchors = len(anchor_grid(*size)[0])
        expected = {"logits": [_IMAGES, anchors, num_classes], "deltas": [_IMAGES, anchors, 4]}
    for name, network in _single(cohort):
        with _left_alone(network):
            network.eval()
            answer = network(_images(network, _IMAGES, size))
        found = _shapes(answer, task)
        if found != expected:
            wanted = "AnchorPredictions with " if task is Task.DETECTION else ""
            raise InputError(
                f"{name} ({type(network).__name__}) answers to {_IMAGES} images of {size[0]} x {size[1]} px with "
                f"{_in_words(found) or type(answer).__name__}, expected {wanted}{_in_words(expected)}: let its builder "
                "heed num_classes" + (" and the anchors of anchor_grid." if task is Task.DETECTION else ".")
            )


def stopped_by_single_samples(cohort: Cohort, size: tuple[int, int]) -> list[str]:
    """Networks whose norms cannot learn from a batch of one sample, as they are left with one value for each channel.

    Whether they are depends on the size: a body that reduces 32 times has a single position at 32 px. Networks stay as
    they are; random numbers that they draw are the caller's to put back.

    Args:
        cohort: on the device that it is trained on.
        size: (height, width) of what the networks see, pixels.

    Returns:
        Their names; of members of a committee "teacher_0" and so on.
    """
    stopped = []
    for name, network in _single(cohort, learning=True):
        with _left_alone(network):
            network.train()
            try:
                network(_images(network, 1, size))
            except ValueError as error:
                if not str(error).startswith(_SINGLE_VALUES):
                    raise
                stopped.append(name)
    return stopped


def _single(cohort: Cohort, *, learning: bool = False) -> Iterator[tuple[str, nn.Module]]:
    for name, network in cohort.networks.items():
        if learning and cohort.frozen_teacher and name == NetworkName.TEACHER:
            continue
        if isinstance(network, Committee):
            yield from ((f"{name}_{number}", member) for number, member in enumerate(network.members))
        else:
            yield name, network


@contextlib.contextmanager
def _left_alone(network: nn.Module) -> Iterator[None]:
    """No gradients in the block, and behind it the modes and the buffers of before, batch statistics above all."""
    modes = [(module, module.training) for module in network.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]
    with torch.no_grad():
        try:
            yield
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)
            for module, training in modes:
                module.training = training


def _images(network: nn.Module, count: int, size: tuple[int, int]) -> Tensor:
    """Black images, float [count, 3, height, width]."""
    first = next(network.parameters(), None)
    return torch.zeros(count, 3, *size, device=None if first is None else first.device)


def _shapes(answer: Any, task: Task) -> dict[str, list[int]]:
    if task is Task.DETECTION:
        parts = {name: getattr(answer, name, None) for name in ("logits", "deltas")}
    else:
        parts = {"logits": answer}
    return {name: list(part.shape) for name, part in parts.items() if isinstance(part, Tensor)}


def _in_words(shapes: dict[str, list[int]]) -> str:
    return " and ".join(f"{name} {shape}" for name, shape in shapes.items())
