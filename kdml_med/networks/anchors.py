"""The anchors that all detectors of a cohort share, and what is said about them.

Boxes are [xmin, ymin, xmax, ymax] in pixels of the network's input, x along columns and y along rows. Because every
network answers for the same anchors in the same order, predictions correspond one to one: ground truth is matched to
anchors once per batch, students learn from teacher and peers anchor by anchor, and ensembles average anchor by anchor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from monai.apps.detection.utils.anchor_utils import AnchorGenerator
from monai.apps.detection.utils.ATSS_matcher import ATSSMatcher
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
@torch.inference_mode(False)  # else those that an evaluation asks for first could not be trained with
def anchor_grid(height: int, width: int) -> tuple[Tensor, tuple[int, ...]]:
    """All anchors of an input size.

    Args:
        height: of the input, pixels.
        width: likewise.

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
    return torch.cat(levels).float(), tuple(len(level) for level in levels)


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


@lru_cache(maxsize=1)
def _matcher() -> ATSSMatcher:
    # Made once: it writes a line to the log each time.
    return ATSSMatcher(num_candidates=CANDIDATES_PER_LEVEL, center_in_gt=True)


def match_anchors(boxes: Sequence[Tensor], height: int, width: int) -> MatchedAnchors:
    """Decide which anchors stand for which boxes.

    Args:
        boxes: one float tensor [boxes, 4] for each image; may be empty.
        height: of the input, pixels.
        width: likewise.

    Returns:
        On the device of the boxes. An image without boxes has no positive anchor.

    Source:
        ATSS: Zhang et al. 2020, arXiv:1912.02424, algorithm 1, in MONAI's version.
    """
    grid, per_level = anchor_grid(height, width)
    anchors = grid.to(boxes[0].device)
    positive = torch.zeros(len(boxes), len(anchors), dtype=torch.bool, device=anchors.device)
    matched = torch.zeros(len(boxes), len(anchors), 4, device=anchors.device)
    for index, truth in enumerate(boxes):
        if len(truth):
            _, matches = _matcher().compute_matches(truth.float(), anchors, per_level, 1)
            positive[index] = matches >= 0
            matched[index][matches >= 0] = truth.float()[matches[matches >= 0]]
    return MatchedAnchors(positive, matched)
