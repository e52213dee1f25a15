"""Grad-CAM against a computation by hand, and what it leaves behind: nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdml_med.deploy.pictures.grad_cam import grad_cam, mean_grad_cam
from kdml_med.errors import InputError
from kdml_med.networks.mobilenet import MobileNetV2
from kdml_med.networks.registry import build_network
from tests.networks.tiny import StagedNet, TinyNet


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build().eval()


def images(count: int = 3, side: int = 48) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def normalised(maps: Tensor, side: int) -> np.ndarray:
    """Enlarge and scale by hand: float, [n, side, side]."""
    large = F.interpolate(maps.clamp_min(0)[:, None], size=(side, side), mode="bilinear")[:, 0]
    largest = large.amax(dim=(1, 2), keepdim=True)
    return torch.where(largest > 0, large / largest, 0).detach().numpy()


def test_weights_times_activations_of_a_small_network() -> None:
    network = seeded(lambda: StagedNet(2))
    x = images()
    with torch.no_grad():
        activations = network.body(x)
        # Mean pooling and one linear layer: the gradient of the log-odds is the difference of the weights.
        weights = (network.fc.weight[1] - network.fc.weight[0]) / activations[0, 0].numel()
        expected = normalised(torch.einsum("c,nchw->nhw", weights, activations), 48)
    np.testing.assert_allclose(grad_cam(network, x, 1), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "last"),
    [
        ("resnet10", "layer4"),
        ("resnet50", "layer4"),
        ("mobilenet_v2", "features.18"),
        ({"name": "mobilenet_v2", "last_block": 13}, "features.13"),
        ({"name": "mobilenet_v2", "last_block": 2}, "features.2"),
        ("efficientnet_lite0", "_relu1"),
        ({"name": "efficientnet_lite0", "last_block": 11}, "_blocks.10"),
    ],
)
def test_networks_of_the_versions_agree_with_their_gradients(spec: Any, last: str) -> None:
    network = seeded(lambda: build_network(spec, num_classes=2))
    x = images(2, 64)
    kept: list[Tensor] = []
    handle = network.get_submodule(last).register_forward_hook(lambda _module, _input, output: kept.append(output))
    logits = network(x)
    handle.remove()
    (gradient,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), kept)
    maps = (gradient.mean(dim=(2, 3), keepdim=True) * kept[0]).sum(dim=1)
    found = grad_cam(network, x, 1)
    assert (found.dtype, found.shape) == (np.float32, (2, 64, 64))
    np.testing.assert_allclose(found, normalised(maps, 64), atol=2e-4)


def test_what_speaks_for_one_class_of_two_speaks_against_the_other() -> None:
    network = seeded(lambda: StagedNet(2))
    stage = [grad_cam(network, images(side=8), index) for index in (0, 1)]  # one pixel at the last stage
    np.testing.assert_array_equal(np.stack(stage).max(axis=(2, 3)).sum(axis=0), 1)


@pytest.mark.parametrize("training", [False, True])
def test_the_network_is_left_as_it_was(training: bool) -> None:
    network = seeded(MobileNetV2).train(training)
    network.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    inplace = [getattr(module, "inplace", None) for module in network.modules()]
    with torch.inference_mode():
        grad_cam(network, images(), 1)
    assert network.training == training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in network.parameters())
    for module in network.modules():
        assert not [*module._forward_hooks, *module._backward_hooks, *module._forward_pre_hooks]
    assert [getattr(module, "inplace", None) for module in network.modules()] == inplace


def test_the_same_images_give_the_same_maps_alone_or_together() -> None:
    network = seeded(lambda: build_network("resnet10", num_classes=2))
    x = images(20, 32)
    together = grad_cam(network, x, 1)
    np.testing.assert_array_equal(together, grad_cam(network, x, 1))
    np.testing.assert_allclose(np.concatenate([grad_cam(network, one[None], 1) for one in x]), together, atol=1e-4)


def test_an_ensemble_has_the_mean_of_its_students() -> None:
    networks = [seeded(lambda: StagedNet(2)), build_network("resnet10", num_classes=2).eval()]
    own = [grad_cam(network, images(), 1) for network in networks]
    np.testing.assert_allclose(mean_grad_cam(networks, images(), 1), (own[0] + own[1]) / 2, atol=1e-6)


def test_no_images_give_no_maps() -> None:
    assert grad_cam(seeded(lambda: StagedNet(2)), images()[:0], 1).shape == (0, 48, 48)


class _Mute(StagedNet):
    def feature_stages(self) -> dict[int, nn.Module]:
        return {8: nn.Identity()}


class _NotRun(StagedNet):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.unused = nn.Conv2d(3, 3, 1)

    def feature_stages(self) -> dict[int, nn.Module]:
        return {8: self.unused}


class _Overwriting(StagedNet):
    def forward(self, image: Tensor) -> Tensor:
        return self.fc(F.relu(self.body(image), inplace=True).mean(dim=(2, 3)))


@pytest.mark.parametrize("build", [TinyNet, _Mute, _NotRun, _Overwriting])
def test_networks_that_cannot_be_looked_into_are_refused_by_name(build: Callable[[int], nn.Module]) -> None:
    with pytest.raises(InputError, match=f"no Grad-CAM of a {build.__name__}: .") as refused:
        grad_cam(seeded(lambda: build(2)), images(), 1)
    assert "\n" not in str(refused.value)
