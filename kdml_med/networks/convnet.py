"""A plain convolutional network for small tiles, where bodies that reduce 32 times would be left with one position."""

from __future__ import annotations

import torch
from torch import Tensor, nn

KERNEL = 3


class ConvNet(nn.Module):
    """Stages of 3 x 3 convolutions with batch norm and ReLU, each at half the resolution of the one before.

    Args:
        num_classes: outputs of the classifier.
        width: channels of the first stage; each further one has twice as many.
        stages: how many; the last one works at stride 2^(stages − 1), 8 by default.
        convs: convolutions in each stage.

    Raises:
        ValueError: an argument is below 1.

    Source:
        The plan of channels and resolutions is that of VGG (Simonyan and Zisserman 2015, arXiv:1409.1556) with batch
        norm, strides in place of pooling, and a mean in place of its large linear layers.
    """

    def __init__(self, num_classes: int = 2, *, width: int = 16, stages: int = 4, convs: int = 2) -> None:
        super().__init__()
        for name, value in (("width", width), ("stages", stages), ("convs", convs)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        channels = [3, *(width << stage for stage in range(stages))]
        self.stages = nn.Sequential(
            *(
                _stage(channels[stage], channels[stage + 1], convs, stride=1 if stage == 0 else 2)
                for stage in range(stages)
            )
        )
        self.fc = nn.Linear(channels[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def feature_stages(self) -> dict[int, nn.Module]:
        """Stages by stride."""
        return {1 << number: stage for number, stage in enumerate(self.stages)}

    def forward(self, x: Tensor) -> Tensor:
        """Map images [batch, 3, height, width] to logits [batch, num_classes]."""
        logits: Tensor = self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(self.stages(x), 1), 1))
        return logits


def _stage(in_channels: int, out_channels: int, convs: int, *, stride: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(convs):
        conv = nn.Conv2d(
            in_channels if number == 0 else out_channels,
            out_channels,
            KERNEL,
            stride if number == 0 else 1,
            KERNEL // 2,
            bias=False,
        )
        layers += [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
