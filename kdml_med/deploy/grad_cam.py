"""What in a tile moved a classifier: Grad-CAM at its last convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn


def grad_cam(network: nn.Module, images: Tensor, positive_index: int) -> npt.NDArray[np.float32]:
    """Grad-CAM of one classifier.

    Args:
        network: in evaluation mode, see ``kdml_med.networks.stages``; left as it was.
        images: float, [n, 3, height, width], normalised as the network wants it, on its device.
        positive_index: of the class that is explained.

    Returns:
        float32, [n, height, width], 0..1; the largest value of each tile is 1, or all are 0 where nothing speaks for
        the class.

    Raises:
        InputError: the network does not say where its last convolutions are.
    """
    raise NotImplementedError


def mean_grad_cam(networks: Sequence[nn.Module], images: Tensor, positive_index: int) -> npt.NDArray[np.float32]:
    """Mean of ``grad_cam`` over the networks of an ensemble; the same arguments and result (without the largest 1)."""
    raise NotImplementedError
