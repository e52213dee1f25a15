"""Which precision a network is trained in: a rule from measurements that are kept, and the measurement itself."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from kdml_med.engines.acceleration import Acceleration, MemoryFormat, Precision
from kdml_med.networks.anchors import AnchorPredictions
from kdml_med.networks.answers import own_answers
from kdml_med.networks.committee import Committee
from kdml_med.networks.devices import native_types, processor

ROUNDS = 5


class Arithmetic(NamedTuple):
    """A way to compute a network."""

    precision: Precision
    memory_format: MemoryFormat

    def __str__(self) -> str:
        """Such as "bf16, channels_last"."""
        return f"{self.precision}, {self.memory_format}"


class Kind(StrEnum):
    """What decides how fast a network gets in fewer bits, in the order of what they need for it."""

    DENSE = "dense"
    """Convolutions that read all channels, as in a ResNet."""
    SEPARABLE = "separable"
    """Convolutions that read one channel each among them, 3 x 3 as in a MobileNetV2: memory traffic, not arithmetic."""
    OTHER = "other"
    """Nothing that was measured where fewer bits are faster: larger ones of these (EfficientNet-Lite), or none."""


# Sides of the input from which a processor that multiplies bfloat16 by itself trains faster in it, in pixels, and whose
# processors these are: with the same instructions, but without AMX, one of Intel was slower in it in every network
# and size. See docs/decisions/0033-precision.md for the measurements.
_BFLOAT16_FROM_PX = {Kind.DENSE: 32, Kind.SEPARABLE: 192}
_MEASURED_MAKER = "AuthenticAMD"
_MEASURED_KERNEL = 3


def kind_of(network: nn.Module) -> Kind:
    """Which kind a network, or the body of a detector, is of; a committee is of that of its most cautious member."""
    if isinstance(network, Committee):
        return max(map(kind_of, network.members), key=list(Kind).index)
    convolutions = [part for part in network.modules() if isinstance(part, nn.Conv2d)]
    if not convolutions:
        return Kind.OTHER
    kernels = [max(part.kernel_size) for part in convolutions if part.groups > 1]
    if not kernels:
        return Kind.DENSE
    return Kind.SEPARABLE if max(kernels) <= _MEASURED_KERNEL else Kind.OTHER


def choose_arithmetic(network: nn.Module, *, device: str, side_px: int) -> Arithmetic:
    """How a network is trained where nobody says: the same answer for the same device, network and size.

    It does not depend on what else is trained beside it, so that a student is computed alike alone and in every cohort.

    Args:
        network: as it is built.
        device: it is trained on.
        side_px: of the input, pixels, the shorter one; 0 where it is not known.
    """
    native, kind = native_types(device), torch.device(device).type
    if kind == "cuda":
        return Arithmetic("bf16" if "bf16" in native else "fp16", "channels_last")
    limit = _BFLOAT16_FROM_PX.get(kind_of(network)) if _MEASURED_MAKER in processor() else None
    if "bf16" in native and limit is not None and side_px >= limit:
        return Arithmetic("bf16", "channels_last")
    return Arithmetic("fp32", "channels_last" if kind == "cpu" else "contiguous")


def ways_to_compute(device: str) -> list[Arithmetic]:
    """All that a device can do, float32 in the usual order of memory first."""
    precisions: list[Precision] = ["fp32", "bf16", "fp16"]
    native = native_types(device)
    known = [name for name in precisions if name == "fp32" or name in native]
    return [Arithmetic(name, layout) for name in known for layout in get_args(MemoryFormat)]


def measure_steps(
    networks: Mapping[str, nn.Module],
    ways: Sequence[Arithmetic],
    *,
    device: str,
    batch_size: int,
    size: tuple[int, int],
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[Arithmetic, float]]:
    """Time forward and backward pass of networks, each alone, in several ways.

    The ways take turns, so that other work on the machine meets all of them, and of each the shortest time counts.

    Args:
        networks: by name; copied.
        ways: to compare.
        device: to compute on.
        batch_size: images of a batch.
        size: (height, width) of images, pixels.
        rounds: of which the fastest counts, after one that does not.
        clock: in seconds.

    Returns:
        Seconds, by network and way.
    """
    image = torch.rand(batch_size, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
    return {name: _measure(network, ways, image, rounds, clock) for name, network in networks.items()}


def _measure(
    network: nn.Module, ways: Sequence[Arithmetic], image: Tensor, rounds: int, clock: Callable[[], float]
) -> dict[Arithmetic, float]:
    steps = {}
    for way in ways:
        acceleration = Acceleration(image.device, precision=way.precision, memory_format=way.memory_format)
        prepared = acceleration.prepare(copy.deepcopy(network).to(image.device).train())
        steps[way] = (acceleration, prepared, acceleration.image(image))
    best = dict.fromkeys(ways, float("inf"))
    for turn in range(rounds + 1):
        for way, step in steps.items():
            _wait(image.device)
            started = clock()
            _step(*step)
            _wait(image.device)
            taken = clock() - started
            best[way] = min(best[way], taken) if turn else best[way]
    return best


def _step(acceleration: Acceleration, network: nn.Module, image: Tensor) -> None:
    network.zero_grad(set_to_none=True)
    with acceleration.autocast():
        answer: Any = network(image)
    values = [
        value
        for own in own_answers(answer)
        for value in ((own.logits, own.deltas) if isinstance(own, AnchorPredictions) else (own,))
    ]
    loss = torch.stack([value.float().square().mean() for value in values]).sum()
    (loss if acceleration.scaler is None else acceleration.scaler.scale(loss)).backward()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
