"""How the arithmetic of a training is done: precision, memory format, compilation, and what is kept for backward."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

Precision = Literal["fp32", "bf16", "fp16"]
MemoryFormat = Literal["contiguous", "channels_last"]
Checkpointing = Literal["none", "teacher", "all"]

_TYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Acceleration:
    """What trainer and evaluator do alike to be fast.

    The trainer calls ``prepare`` once on its cohort, ``image`` on every batch, and runs the forward pass alone in
    ``autocast``: losses are computed in float32 outside of it, and so is what is compared with a network that was
    evaluated or deployed. Evaluators use ``image`` and no ``autocast``: the epoch that is kept is chosen by what the
    networks say in float32, in which they are evaluated and deployed afterwards.

    Args:
        device: on which is computed.
        precision: of the forward pass (and so of the backward pass, which follows it). Weights, their updates, batch
            statistics and losses stay float32.
        in_float32: names of networks of the cohort that are computed in float32 all the same.
        memory_format: in which order images and the weights of convolutions lie.
        compile: let torch.compile fuse each network's operations.
        checkpoint_activations: whose activations are computed again in the backward pass instead of being kept.

    Attributes:
        scaler: keeps the gradients of float16 within its range; None where it is not needed. Its state belongs to a
            checkpoint.
    """

    def __init__(
        self,
        device: str | torch.device = "cpu",
        *,
        precision: Precision = "fp32",
        in_float32: Sequence[str] = (),
        memory_format: MemoryFormat = "contiguous",
        compile: bool = False,  # noqa: A002 (MONAI's trainers call it so)
        checkpoint_activations: Checkpointing = "none",
    ) -> None:
        for name, value, known in (
            ("precision", precision, get_args(Precision)),
            ("memory_format", memory_format, get_args(MemoryFormat)),
            ("checkpoint_activations", checkpoint_activations, get_args(Checkpointing)),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
        self.device = torch.device(device)
        self.precision: Precision = precision
        self.in_float32 = tuple(in_float32)
        self.memory_format: MemoryFormat = memory_format
        self.compile, self.checkpoint_activations = compile, checkpoint_activations
        self.scaler = torch.amp.GradScaler("cuda") if precision == "fp16" and self.device.type == "cuda" else None

    def autocast(self) -> AbstractContextManager[Any]:
        """What the forward pass of a training step runs in; losses do not."""
        return torch.autocast(
            self.device.type, dtype=_TYPES[self.precision], enabled=self.precision != "fp32", cache_enabled=True
        )

    def prepare(self, network: nn.Module) -> nn.Module:
        """The network to call; it is changed in place, and its parameters stay the same objects."""
        if self.memory_format == "channels_last":
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network

    def image(self, image: Tensor) -> Tensor:
        """A batch of images [batch, channels, height, width] in the memory format of the networks."""
        if self.memory_format == "channels_last":
            return image.contiguous(memory_format=torch.channels_last)
        return image

    def describe(self) -> dict[str, Any]:
        """What a run records, and is continued with."""
        return {
            "precision": self.precision,
            "in_float32": list(self.in_float32),
            "memory_format": self.memory_format,
            "compile": self.compile,
        }
