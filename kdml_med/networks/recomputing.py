"""Activations computed again in the backward pass instead of being kept: a third more work for a part of the memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

from monai.networks.nets.resnet import ResNet
from torch import Tensor, is_grad_enabled, nn
from torch.utils.checkpoint import checkpoint

from kdml_med.errors import InputError
from kdml_med.networks.committee import Committee
from kdml_med.networks.efficientnet_lite import EfficientNetLite
from kdml_med.networks.mobilenet import MobileNetV2
from kdml_med.networks.retinanet import RetinaNet


def recompute_activations(network: nn.Module) -> None:
    """Let a network keep only what goes into its blocks, and compute the rest of them again in the backward pass.

    Gradients, weights and batch statistics stay what they are, to the bit where the device computes the same twice.

    Args:
        network: a ResNet of MONAI, a MobileNetV2, an EfficientNetLite, a RetinaNet with one of them, any other with a
            method ``feature_stages()``, see ``kdml_med.networks.stages.feature_stages``, or a committee of these;
            changed in place, once.

    Raises:
        InputError: its blocks are not known.
    """
    for part in _blocks(network):
        part.forward = partial(_run, part, part.forward)


def _blocks(network: nn.Module) -> list[nn.Module]:
    """Parts that run one after the other; each has one map as its input and one as its output."""
    if isinstance(network, Committee):
        return [block for member in network.members for block in _blocks(member)]
    if isinstance(network, RetinaNet):
        heads = network.detector.classification_head, network.detector.regression_head
        return [*_blocks(network.body), *(head.conv for head in heads)]
    if hasattr(network, "feature_stages"):
        return list(cast(Any, network).feature_stages().values())
    if isinstance(network, MobileNetV2):
        return list(network.features)
    if isinstance(network, EfficientNetLite):
        return network.blocks()
    if isinstance(network, ResNet):
        return [block for layer in (network.layer1, network.layer2, network.layer3, network.layer4) for block in layer]
    raise InputError(
        f"a {type(network).__name__} does not say where its blocks are, which --checkpoint_activations needs: set it "
        "to none, or give the network a method feature_stages()."
    )


def _run(part: nn.Module, forward: Callable[[Tensor], Any], features: Tensor) -> Any:
    if not is_grad_enabled():  # evaluation, or a frozen teacher
        return forward(features)
    return checkpoint(forward, features, use_reentrant=False, context_fn=partial(_contexts, part))


def _contexts(
    part: nn.Module,
) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    return contextlib.nullcontext(), _counted_once(part)


@contextlib.contextmanager
def _counted_once(part: nn.Module) -> Iterator[None]:
    """Batch norms compute with the batch as before, and do not count it a second time."""
    norms = [
        (module, module.momentum, module.num_batches_tracked)
        for module in part.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.track_running_stats
    ]
    for norm, _, count in norms:
        # Statistics stay exactly as they are, and the count goes to a copy: SyncBatchNorm insists on having one.
        norm.momentum, norm.num_batches_tracked = 0.0, None if count is None else count.clone()
    try:
        yield
    finally:
        for norm, momentum, count in norms:
            norm.momentum, norm.num_batches_tracked = momentum, count
