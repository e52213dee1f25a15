"""Knowledge in feature maps, compared by where they are active."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def attention_loss(student: Sequence[Tensor], source: Sequence[Tensor]) -> Tensor:
    """Squared distance of attention maps, summed over positions, mean over the batch and the maps.

    The attention map of a feature map is the mean of squares over its channels, scaled to length 1. So networks of any
    width can be compared without layers in between that would have to be learned.

    Args:
        student: feature maps, float [batch, channels, height, width]; gradient flows.
        source: as many maps of the teacher or of a peer, detached here; each is compared with the one at the same
            place. Channels may differ. Where sizes differ, the larger map is averaged down to the smaller one.

    Returns:
        Scalar, float32 also under autocast, dimensionless, from 0 to 2. A map that is zero everywhere has no direction:
        it is compared as zeros.

    Raises:
        ValueError: there are no maps, or not as many on both sides.

    Source:
        Zagoruyko and Komodakis 2017, arXiv:1612.03928, equation 2 (squared, p = 2). Averaging down is ours.
    """
    if not student or len(student) != len(source):
        raise ValueError(
            f"feature maps are compared one by one, but the student has {len(student)} and the other {len(source)}: "
            "their networks have to give the same number, at least one."
        )
    losses = []
    with torch.autocast(student[0].device.type, enabled=False):
        for mine, other in zip(student, source, strict=True):
            maps = [part.float().pow(2).mean(dim=1) for part in (mine, other.detach())]
            size = (min(part.shape[-2] for part in maps), min(part.shape[-1] for part in maps))
            first, second = (F.normalize(_averaged(part, size).flatten(1)) for part in maps)
            losses.append((first - second).pow(2).sum(dim=1).mean())
    return torch.stack(losses).mean()


def _averaged(part: Tensor, size: tuple[int, int]) -> Tensor:
    # Not for equal sizes: on a GPU the gradient of adaptive pooling is not the same each time.
    return part if part.shape[-2:] == size else F.adaptive_avg_pool2d(part, size)
