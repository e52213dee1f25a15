"""MobileNetV2 with the parameter names of torchvision, and a knob that ends the body early."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

STEM_CHANNELS = 32
# Table 2 of the paper: expansion factor t, output channels c, repeats n, stride of the first repeat s.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
HEAD_CHANNELS = 1280
BLOCKS = sum(repeats for _, _, repeats, _ in STAGES)

_OF_BLOCK = re.compile(r"(features\.\d+\.conv)\.(\d+)\.(\w+)")
_LAST_NESTED = 3  # torchvision's highest place in a block; without nesting it is 4 or 7


def initialise(network: nn.Module) -> None:
    """Random weights of convolutions that ReLU6 follows, and of the classifier; torch's own for batch norms."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
            nn.init.zeros_(module.bias)


def conv_bn_relu6(
    in_channels: int, out_channels: int, *, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU6; indices 0, 1, 2 as in the published weights."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """Expand, filter depth-wise, project; with a shortcut where shapes allow it."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(conv_bn_relu6(in_channels, hidden, kernel=1))
        layers += [
            conv_bn_relu6(hidden, hidden, kernel=3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        self.conv = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in_channels, h, w] to [batch, out_channels, h / stride, w / stride]."""
        out: Tensor = self.conv(x)
        return x + out if self.has_shortcut else out


class MobileNetV2(nn.Module):
    """MobileNetV2 classifier.

    Args:
        num_classes: outputs of the classifier.
        last_block: end the body after this inverted-residual block, 1 to 17. At 17 (default) the 1280-channel head
            convolution follows, as published; a shorter body goes straight to pooling and the classifier.
        dropout: probability before the classifier. Default 0, unlike the published 0.2: dropout draws from one
            shared random stream, and a student must not depend on which other networks are trained beside it.

    Raises:
        ValueError: last_block is outside 1..17.

    Source:
        Sandler et al. 2018, arXiv:1801.04381, table 2. Parameter names follow torchvision's mobilenet_v2.
    """

    def __init__(self, num_classes: int = 2, *, last_block: int = BLOCKS, dropout: float = 0.0) -> None:
        super().__init__()
        if not 1 <= last_block <= BLOCKS:
            raise ValueError(f"last_block must be between 1 and {BLOCKS}, got {last_block}.")
        layers: list[nn.Module] = [conv_bn_relu6(3, STEM_CHANNELS, kernel=3, stride=2)]
        channels = STEM_CHANNELS
        for expansion, out_channels, repeats, first_stride in STAGES:
            for repeat in range(repeats):
                if len(layers) > last_block:
                    break
                stride = first_stride if repeat == 0 else 1
                layers.append(InvertedResidual(channels, out_channels, stride=stride, expansion=expansion))
                channels = out_channels
        if last_block == BLOCKS:
            layers.append(conv_bn_relu6(channels, HEAD_CHANNELS, kernel=1))
            channels = HEAD_CHANNELS
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, num_classes))
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [batch, 3, height, width] to logits [batch, num_classes]."""
        # A quarter faster on CPUs, whose 1 x 1 convolutions then read memory in order.
        features = self.features(x.contiguous(memory_format=torch.channels_last))
        pooled = torch.flatten(nn.functional.adaptive_avg_pool2d(features, 1), 1)
        logits: Tensor = self.classifier(pooled)
        return logits


def torchvision_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Entries of a MobileNetV2 under torchvision's names.

    Other implementations have convolution, batch norm and ReLU6 of a block one behind the other (conv.0, conv.1,
    conv.2, conv.3, ...) where torchvision nests all but the last convolution and its norm (conv.0.0, conv.0.1, conv.1,
    ...). The numbers are the same.

    Args:
        state: of either; torchvision's comes back as it is.
    """
    found = {name: match for name in state if (match := _OF_BLOCK.fullmatch(str(name)))}
    last: dict[str, int] = {}
    for match in found.values():
        last[match[1]] = max(last.get(match[1], 0), int(match[2]))
    flat = {name: match for name, match in found.items() if last[match[1]] > _LAST_NESTED}
    return {
        _nested(match, last[match[1]]) if (match := flat.get(name)) else name: value for name, value in state.items()
    }


def _nested(match: re.Match[str], last: int) -> str:
    unit, place = divmod(int(match[2]), 3)
    # The last unit has no activation, and so no module around it.
    return f"{match[1]}.{unit + place if unit == last // 3 else f'{unit}.{place}'}.{match[3]}"
