"""What ``decode_boxes`` undoes."""

import torch
from torch import Tensor

from kdml_med.networks.anchors import CENTRE_WEIGHT, SIDE_WEIGHT


def encode_boxes(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Deltas [..., 4] that ``decode_boxes`` turns into these boxes, which must have an area."""
    low, high = anchors.float().split(2, dim=-1)
    box_low, box_high = boxes.float().split(2, dim=-1)
    moves = (box_low + box_high - low - high) / 2 / (high - low) * CENTRE_WEIGHT
    return torch.cat([moves, ((box_high - box_low) / (high - low)).log() * SIDE_WEIGHT], dim=-1)
