"""How the arithmetic of a training is done: precision, memory format, compilation, and what is kept for backward."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from kdml_med.keys import NetworkName
from kdml_med.networks.cohort import Cohort
from kdml_med.networks.recomputing import recompute_activations

Precision = Literal["fp32", "bf16", "fp16"]
MemoryFormat = Literal["contiguous", "channels_last"]
Recomputing = Literal["none", "teacher", "all"]

_TYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Acceleration:
    """What makes the steps of a training fast, in one object that the trainer calls.

    It calls ``prepare`` once on its cohort, ``image`` on every batch, and runs the forward pass alone in ``autocast``.
    Losses are computed in float32 outside of it. Evaluators need none of this: the epoch that is kept is chosen by what
    the networks say in float32, in which they are evaluated and deployed afterwards.

    Args:
        device: on which is computed.
        precision: of the forward pass, and so of the backward pass, which follows it. Weights, their updates, batch
            statistics and losses stay float32.
        in_float32: names of networks of the cohort that are computed in float32 all the same.
        memory_format: in which order images and the weights of convolutions lie. "contiguous" leaves networks as they
            come; MobileNetV2 and detectors turn images to "channels_last" themselves.
        compile: let torch.compile fuse each network's operations.
        checkpoint_activations: whose activations are computed again in the backward pass instead of being kept.

    Attributes:
        scaler: keeps the gradients of float16 within its range; None where it is not needed. Its state belongs to a
            checkpoint.

    Raises:
        ValueError: a word is none of those above.
    """

    def __init__(
        self,
        device: str | torch.device = "cpu",
        *,
        precision: Precision = "fp32",
        in_float32: Collection[str] = (),
        memory_format: MemoryFormat = "contiguous",
        compile: bool = False,
        checkpoint_activations: Recomputing = "none",
    ) -> None:
        for name, value, known in (
            ("precision", precision, get_args(Precision)),
            ("memory_format", memory_format, get_args(MemoryFormat)),
            ("checkpoint_activations", checkpoint_activations, get_args(Recomputing)),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
        self.device = torch.device(device)
        self.precision: Precision = precision
        self.in_float32 = sorted(in_float32)
        self.memory_format: MemoryFormat = memory_format
        self.compile, self.checkpoint_activations = compile, checkpoint_activations
        self.scaler = torch.amp.GradScaler("cuda") if precision == "fp16" and self.device.type == "cuda" else None

    def autocast(self) -> AbstractContextManager[Any]:
        """What the forward pass of a training step runs in; losses do not."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=_TYPES[self.precision])

    def prepare(self, network: nn.Module) -> nn.Module:
        """The network to call in training.

        It is changed in place, once, before it is wrapped for several processes; its parameters stay the same objects,
        so that an optimizer may have been made before.

        Raises:
            InputError: a network that is to compute activations again does not say where its blocks are.
        """
        if self.memory_format == "channels_last":
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        cohort = network.networks if isinstance(network, Cohort) else {NetworkName.student(0): network}
        for name, part in cohort.items():
            if self.checkpoint_activations in ("all", name):
                recompute_activations(part)
        # Each size of a batch by itself: a graph for all of them would depend on which one came first, and a training
        # that goes on in the middle of an epoch meets another one first.
        compiled = {name: torch.compile(part, dynamic=False) for name, part in cohort.items() if self.compile}
        if isinstance(network, Cohort):
            network.in_float32, network.compiled = frozenset(self.in_float32), compiled
            return network
        return cast(nn.Module, next(iter(compiled.values()), network))

    def image(self, image: Tensor) -> Tensor:
        """A batch of images in the memory format of the networks.

        Args:
            image: [batch, channels, height, width], or [batch, views, channels, height, width], each view by itself.
        """
        if self.memory_format != "channels_last":
            return image
        if image.ndim == 5:
            return torch.stack([self.image(view) for view in image.unbind(1)]).transpose(0, 1)
        return image.contiguous(memory_format=torch.channels_last)

    def describe(self) -> dict[str, Any]:
        """What a run records and is continued with, by argument: what results depend on."""
        return {
            "precision": self.precision,
            "in_float32": self.in_float32,
            "memory_format": self.memory_format,
            "compile": self.compile,
        }
