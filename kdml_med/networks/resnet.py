"""MONAI's residual networks, as their published weights want them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monai.networks.nets import resnet as monai_resnet
from torch import nn


def _resnet(name: str) -> Callable[..., nn.Module]:
    builder = getattr(monai_resnet, name)

    def build(num_classes: int = 2, **kwargs: Any) -> nn.Module:
        # MONAI's defaults (stem stride 1, biased shortcuts) neither match the published ImageNet weights nor the
        # published cost: stride 1 in the stem makes every later layer work on four times the pixels.
        settings: dict[str, Any] = {
            "spatial_dims": 2,
            "n_input_channels": 3,
            "conv1_t_stride": 2,
            "bias_downsample": False,
        }
        network: nn.Module = builder(num_classes=num_classes, **(settings | kwargs))
        return network

    return build


RESNETS: dict[str, Callable[..., nn.Module]] = {
    name: _resnet(name) for name in ("resnet10", "resnet18", "resnet34", "resnet50")
}
"""Builders by name; each takes ``num_classes`` and what MONAI's does."""
