"""What in a tile moved a classifier: Grad-CAM at its last convolutions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.visualize import GradCAM
from torch import Tensor, nn

from kdml_med.errors import InputError, one_line
from kdml_med.networks.committee import Committee
from kdml_med.networks.stages import last_stage

_BATCH = 4  # images at a time: every layer of the network is kept meanwhile


class _Evidence(nn.Module):
    """A classifier whose answer for a class is its log-odds, which its probability depends on and on nothing else.

    The logit alone may rise while the probability falls, because that of the other class rises faster.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Map images to log-odds, float, [batch, classes]."""
        logits: Tensor = self.network(image)
        others = [
            logits[:, [other for other in range(logits.shape[1]) if other != own]].logsumexp(1)
            for own in range(logits.shape[1])
        ]
        return logits - torch.stack(others, dim=1)


def grad_cam(network: nn.Module, images: Tensor, positive_index: int) -> npt.NDArray[np.float32]:
    """Grad-CAM of one classifier: where the maps of its last stage spoke for a class.

    Args:
        network: in evaluation mode, see ``kdml_med.networks.stages``; left as it was, because a copy is looked at.
        images: float, [n, 3, height, width], normalised as the network wants it, on its device.
        positive_index: of the class that is explained.

    Returns:
        float32, [n, height, width], 0..1: the strongest place of each tile is 1, or all are 0 where nothing speaks for
        the class.

    Raises:
        InputError: the network does not say where its last stage is, or cannot be looked into.

    Source:
        Selvaraju et al. 2017, arXiv:1610.02391, section 3; MONAI's implementation.
    """
    stage = last_stage(network)
    name = next((name for name, module in network.named_modules() if module is stage), "")
    if not name:
        raise InputError(
            f"no Grad-CAM of a {type(network).__name__}: it does not say where its feature maps are. Give it a method "
            "feature_stages() that returns its modules by stride, such as {16: self.stage3, 32: self.stage4}."
        )
    if not len(images):
        return np.zeros((0, *images.shape[2:]), np.float32)
    with torch.inference_mode(False), torch.enable_grad():
        cam = _prepare(network, name)
        parts = [_look(cam, batch, positive_index, type(network).__name__) for batch in images.split(_BATCH)]
    return np.concatenate(parts)


def mean_grad_cam(networks: Sequence[nn.Module], images: Tensor, positive_index: int) -> npt.NDArray[np.float32]:
    """Mean of ``grad_cam`` over the networks of an ensemble, or of a committee; the same arguments, result and errors.

    Networks that look at different places give no place with 1.
    """
    maps = [
        mean_grad_cam(list(network.members), images, positive_index)  # of an ensemble it is one voice, as in answers
        if isinstance(network, Committee)
        else grad_cam(network, images, positive_index)
        for network in networks
    ]
    mean: npt.NDArray[np.float32] = np.mean(maps, axis=0, dtype=np.float32)
    return mean


def explain(
    networks: Sequence[nn.Module], images: Tensor, positive_index: int
) -> Sequence[npt.NDArray[np.float32] | None]:
    """``mean_grad_cam`` of each image; None where a network of one's own does not allow it."""
    try:
        return list(mean_grad_cam(networks, images, positive_index))
    except InputError:
        return [None] * len(images)


def _prepare(network: nn.Module, name: str) -> Any:
    """MONAI's class leaves its hooks and gradients in the network it looks at: so that is a copy."""
    looked_at = copy.deepcopy(network).eval().requires_grad_(False)
    for module in looked_at.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]  # would overwrite what the hook keeps
    return GradCAM(_Evidence(looked_at), target_layers=f"network.{name}", postprocessing=_scale)


def _look(cam: Any, images: Tensor, index: int, kind: str) -> npt.NDArray[np.float32]:
    try:
        found: Tensor = cam(images.detach().clone().float().requires_grad_(), class_idx=index)
    except (RuntimeError, AttributeError, ValueError, KeyError, IndexError) as error:
        raise InputError(f"no Grad-CAM of a {kind}: {one_line(error)}.") from error
    return found.detach()[:, 0].cpu().numpy()


def _scale(maps: Tensor) -> Tensor:
    """Divide by the largest value of each map: the sum of what speaks for a class has no unit of its own."""
    largest = maps.amax(dim=(1, 2, 3), keepdim=True)
    return torch.where(largest > 0, maps / largest.clamp_min(torch.finfo(maps.dtype).tiny), 0.0)
