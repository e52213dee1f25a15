"""The anchors that all detectors of a cohort share, and what is said about them.

Boxes are [xmin, ymin, xmax, ymax] in pixels of the network's input, x along columns and y along rows. Because every
network answers for the same anchors in the same order, predictions correspond one to one: ground truth is matched to
anchors once per batch, students learn from teacher and peers anchor by anchor, and ensembles average anchor by anchor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
from monai.apps.detection.utils.anchor_utils import AnchorGenerator
from torch import Tensor

STRIDES = (8, 16, 32, 64)
"""Input pixels between neighbouring anchors, one for each pyramid level."""
SIZE_IN_STRIDES = 4
"""Side of the square anchor of a level, in its strides. ATSS with one square anchor does as well as with nine."""
CANDIDATES_PER_LEVEL = 9
# Deltas are small numbers; these factors, usual since Faster R-CNN, bring them to the scale of 1.
CENTRE_WEIGHT, SIDE_WEIGHT = 10.0, 5.0
# No box grows further than this from its anchor: exponentials of an untrained network would overflow.
MAX_LOG_GROWTH = math.log(1000 / 16)
_BOXES = 512  # whose distances from all anchors are worked out together: of more they would not fit into memory
_INSIDE = 0.01  # pixels that the centre of an anchor lies within its box at least


class AnchorPredictions(NamedTuple):
    """What one detector says about every anchor."""

    logits: Tensor
    """float, [batch, anchors, classes]; each class against background, before the sigmoid."""
    deltas: Tensor
    """float, [batch, anchors, 4]; box relative to the anchor, see ``decode_boxes``."""
    features: tuple[Tensor, ...] = ()
    """Pyramid levels [batch, channels, height, width], for losses on features."""


class MatchedAnchors(NamedTuple):
    """What the ground truth says about every anchor of a batch."""

    positive: Tensor
    """bool, [batch, anchors]; whether the anchor stands for a box."""
    boxes: Tensor
    """float, [batch, anchors, 4]; that box, zeros elsewhere."""


@lru_cache(maxsize=32)
@torch.inference_mode(mode=False)
def anchor_grid(height: int, width: int, device: torch.device | str = "cpu") -> tuple[Tensor, tuple[int, ...]]:
    """All anchors of an input size; made once, and not to be written to.

    Args:
        height: of the input, pixels.
        width: likewise.
        device: where they are kept.

    Returns:
        float32, [anchors, 4], level by level and row by row, and the number of anchors of each level.

    Raises:
        ValueError: a side is not a multiple of the largest stride.
    """
    if height % STRIDES[-1] or width % STRIDES[-1] or min(height, width) <= 0:
        raise ValueError(f"input is {height} x {width} px, both sides must be multiples of {STRIDES[-1]}.")
    sizes = tuple((SIZE_IN_STRIDES * stride,) for stride in STRIDES)
    generator = AnchorGenerator(sizes=sizes, aspect_ratios=((1.0,),) * len(STRIDES), indexing="xy")
    grids = [[height // stride, width // stride] for stride in STRIDES]
    levels = generator.grid_anchors(grids, [[torch.tensor(stride)] * 2 for stride in STRIDES])
    return torch.cat(levels).float().to(device), tuple(len(level) for level in levels)


def decode_boxes(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Boxes that deltas mean: centre moves by sides of the anchor, sides grow by the exponential.

    Args:
        deltas: float, [..., 4].
        anchors: float, [..., 4].

    Returns:
        float32, [..., 4]; gradient flows to the deltas. NaN stays NaN, which MONAI's coder would stop at without
        knowing which network it comes from.

    Source:
        Girshick et al. 2014, arXiv:1311.2524, appendix C; weights as in Faster R-CNN.
    """
    low, high = anchors.float().split(2, dim=-1)
    moves, growth = deltas.float().split(2, dim=-1)
    centre = (low + high) / 2 + moves / CENTRE_WEIGHT * (high - low)
    half = (growth / SIDE_WEIGHT).clamp(max=MAX_LOG_GROWTH).exp() * (high - low) / 2
    return torch.cat([centre - half, centre + half], dim=-1)


@torch.no_grad()
def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of boxes with their partners, as MONAI's ``box_iou`` has it to the bit.

    That function takes each box of one image with each other and waits for a GPU to look for NaN.

    Args:
        boxes: float32, [..., 4].
        others: likewise; the leading dimensions of both are broadcast.

    Returns:
        float32, [...]; 0 for boxes without an area. No gradient flows.
    """
    xmin, ymin, xmax, ymax = boxes.unbind(-1)
    other_xmin, other_ymin, other_xmax, other_ymax = others.unbind(-1)
    # In place: of all pairs of many boxes, memory that is new for every step takes longer than the steps.
    shared = torch.minimum(xmax, other_xmax).sub_(torch.maximum(xmin, other_xmin)).clamp_(min=0)
    shared.mul_(torch.minimum(ymax, other_ymax).sub_(torch.maximum(ymin, other_ymin)).clamp_(min=0))
    union = (xmax - xmin) * (ymax - ymin) + (other_xmax - other_xmin) * (other_ymax - other_ymin)
    return shared.div_(union.sub_(shared).add_(torch.finfo(torch.float32).eps))


@torch.no_grad()
def match_anchors(boxes: Sequence[Tensor], height: int, width: int) -> MatchedAnchors:
    """Decide which anchors stand for which boxes; the boxes of all images at once.

    On each level the anchors whose centres are nearest to that of a box are its candidates. Those become positive that
    lie in the box and overlap it by at least the mean and standard deviation of its candidates; an anchor of several
    boxes is for the one that it overlaps most.

    Args:
        boxes: one float tensor [boxes, 4] for each image; may be empty.
        height: of the input, pixels.
        width: likewise.

    Returns:
        On the device of the boxes. An image without boxes has no positive anchor.

    Source:
        ATSS: Zhang et al. 2020, arXiv:1912.02424, algorithm 1. It equals MONAI's ``ATSSMatcher``, which takes one image
        at a time and works out the overlaps with all anchors.
    """
    truth = torch.cat(list(boxes)).float()
    anchors, per_level = anchor_grid(height, width, truth.device)
    everything = len(boxes) * len(anchors)
    # One more row: no box.
    known = torch.cat([truth, truth.new_zeros(1, 4)])
    owner = torch.full((everything,), len(truth), device=truth.device)
    if len(truth):
        candidate = torch.cat([_nearest(part, anchors, per_level) for part in truth.split(_BOXES)])
        overlap = overlaps(truth[:, None], anchors[candidate])
        least = overlap.mean(dim=1) + overlap.std(dim=1)
        positive = (overlap >= least[:, None]) & _contains(truth[:, None], _centres(anchors)[candidate])
        # Made where the boxes are: a copy from the CPU would wait for the forward pass.
        image = torch.cat([own.new_full((len(own),), number, dtype=torch.long) for number, own in enumerate(boxes)])
        place = (image[:, None] * len(anchors) + candidate).flatten()
        # What is not positive takes part with less than any overlap, so that no step waits to count what is.
        strength = torch.where(positive, overlap, -1.0).flatten()
        best = strength.new_zeros(everything).scatter_reduce(0, place, strength, "amax")
        number = torch.arange(len(truth), device=truth.device).repeat_interleave(candidate.shape[1])
        number = torch.where(strength == best[place], number, len(truth))
        owner = owner.scatter_reduce(0, place, number, "amin")
    owner = owner.view(len(boxes), len(anchors))
    return MatchedAnchors(owner < len(truth), known[owner])


def _nearest(boxes: Tensor, anchors: Tensor, per_level: tuple[int, ...]) -> Tensor:
    """The anchors of each level whose centres are nearest to those of boxes [n, 4]: int64, [n, candidates]."""
    across, down = (_centres(boxes)[:, None] - _centres(anchors)).unbind(-1)
    distance = (across.pow(2) + down.pow(2)).sqrt()
    starts = accumulate(per_level[:-1], initial=0)
    levels = zip(distance.split(per_level, dim=1), per_level, starts, strict=True)
    chosen = [
        level.topk(min(CANDIDATES_PER_LEVEL, count), dim=1, largest=False).indices + start
        for level, count, start in levels
    ]
    return torch.cat(chosen, dim=1)


def _contains(boxes: Tensor, points: Tensor) -> Tensor:
    """Whether points lie in their boxes and not on the border; both with the same leading dimensions."""
    return (torch.minimum(points - boxes[..., :2], boxes[..., 2:] - points) > _INSIDE).all(dim=-1)


def _centres(boxes: Tensor) -> Tensor:
    return (boxes[..., :2] + boxes[..., 2:]) / 2
