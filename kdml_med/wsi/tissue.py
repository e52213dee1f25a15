"""Where the tissue is: a small picture of the whole slide and a mask on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from kdml_med.pixels import reduce
from kdml_med.wsi.glass import AS_BRIGHT, NEAR_WHITE, Glass, chroma, mean, split
from kdml_med.wsi.grid import choose_plane
from kdml_med.wsi.slide import Pixels, Slide, SlideError

Mask = npt.NDArray[np.bool_]

Places = npt.NDArray[np.int64]

OVERVIEW_MPP = 8.0
"""Micrometres per pixel of the overview: a nucleus is one pixel, a gland many."""

_BLOCK_R = 2048  # pixels; the overview is read in squares of this side, so memory does not grow with the slide
_BLOCK_ROWS = 64  # of the overview that are judged at a time, so that memory stays small beside the overview
_SMALLEST_BLOCK_R = 16  # pixels; damage is fenced in down to squares of this side
_MOST_FAILED_READS = 128  # a reader may open the file again after each: what is damaged all over is not fenced in
_CHROMA_RANGE = (10.0, 24.0)  # grey levels
_SURELY_GLASS = 0.985  # of its light, in a pixel alone: smoothing spreads the colour of tissue over the glass around it
_DARK = 25.0
_MIN_PIECE_UM2 = 50.0**2


@dataclass(frozen=True)
class Overview:
    """A small picture of a whole slide.

    Attributes:
        pixels: uint8, [height, width, 3], RGB; white where nothing could be decoded.
        unread: bool, [height, width]; where nothing could be decoded.
        downsample: level-0 pixels per overview pixel.
        mpp: micrometres per overview pixel.
    """

    pixels: Pixels
    unread: Mask
    downsample: float
    mpp: float


def read_overview(slide: Slide, slide_mpp: float, mpp: float = OVERVIEW_MPP) -> Overview:
    """Read the whole slide at low resolution, from the level nearest to it.

    Args:
        slide: to read.
        slide_mpp: micrometres per level-0 pixel.
        mpp: micrometres per pixel wanted; a slide that is coarser is read as it is.
    """
    mpp = max(mpp, slide_mpp)
    level_factors = [slide.factors(level) for level in range(len(slide.levels))]
    plane = choose_plane(
        [level.downsample for level in slide.levels], level_factors, slide_mpp=slide_mpp, mpp=mpp, fine_mpp=mpp
    )
    level = slide.levels[plane.level]
    width_r, height_r = level.width // plane.factor, level.height // plane.factor
    # A whole number of plane pixels per overview pixel keeps blocks independent of each other.
    step = max(1, math.floor(mpp / (slide_mpp * plane.downsample) + 0.02))
    block_r = step * 2 ** max(0, int(math.log2(_BLOCK_R / step)))  # halves of it stay whole numbers of steps
    shape = math.ceil(height_r / step), math.ceil(width_r / step)
    canvas, unread = np.full((*shape, 3), 255, np.uint8), np.ones(shape, np.bool_)

    def paste(x_r: int, y_r: int, side_r: int) -> bool:
        w, h = min(side_r, width_r - x_r), min(side_r, height_r - y_r)
        try:
            block = slide.read(plane.level, plane.factor, x_r, y_r, w, h)
        except SlideError:
            return False
        area = np.s_[y_r // step : math.ceil((y_r + h) / step), x_r // step : math.ceil((x_r + w) / step)]
        canvas[area] = reduce(block, step)
        unread[area] = False
        return True

    # One damaged place must not hide everything around it: squares that fail are halved, round by round, so that the
    # few attempts there are go to all places alike.
    side_r, failures = block_r, 0
    pending = [(x, y) for y in range(0, height_r, side_r) for x in range(0, width_r, side_r)]
    while pending:
        failed = [corner for corner in pending if not paste(*corner, side_r)]
        failures += len(failed)
        side_r //= 2
        if side_r < _SMALLEST_BLOCK_R or side_r % step or failures >= _MOST_FAILED_READS:
            break
        corners = [(x + right, y + down) for x, y in failed for down in (0, side_r) for right in (0, side_r)]
        pending = [(x, y) for x, y in corners if x < width_r and y < height_r]
    downsample = plane.downsample * step
    return Overview(canvas, unread, downsample, downsample * slide_mpp)


def tissue_mask(overview: Overview, glasses: Sequence[Glass]) -> Mask:
    """Which overview pixels show tissue.

    Stain is coloured, so the spread between the channels of the light that passes is thresholded, relative to the glass
    of this slide: tinted glass is as colourless as white glass then. The threshold is the least that glass stays under,
    so that pale mucosa is kept. What is as bright as glass and what is near black is never tissue. Pieces under 50 × 50
    µm are dropped and holes of that size filled. What could not be read counts as tissue, so that it is looked at again
    in full resolution.

    Args:
        overview: of the slide.
        glasses: colours of bare glass; near-white stands for it where there are none.

    Returns:
        bool, [height, width].
    """
    mask: Mask = np.empty(overview.unread.shape, np.bool_)
    for top in range(0, len(mask), _BLOCK_ROWS):
        # With a row above and below, which smoothing looks at.
        rows = np.s_[max(0, top - 1) : top + _BLOCK_ROWS + 1]
        found = _is_stained(overview.pixels[rows], glasses or [Glass(NEAR_WHITE)])
        mask[top : top + _BLOCK_ROWS] = found[min(top, 1) :][:_BLOCK_ROWS]
    smallest = _MIN_PIECE_UM2 / overview.mpp**2
    mask = _drop_small(mask, smallest)
    filled: Mask = ~_drop_small(~mask, smallest)
    return filled | overview.unread


def _is_stained(pixels: Pixels, glasses: Sequence[Glass]) -> Mask:
    """Where pixels are coloured and darker than glass. Channel by channel: interleaved ones take ten times as long."""
    sharp = split(pixels)
    smooth = [np.asarray(cv2.blur(channel, (3, 3), borderType=cv2.BORDER_REFLECT), np.float32) for channel in sharp]
    mask: Mask = mean(smooth) > _DARK
    for glass in glasses:
        low, high = _CHROMA_RANGE
        mask &= chroma(smooth, glass.colour) > np.clip(glass.chroma_noise + 2, low, high)
        for channels, most in ((smooth, AS_BRIGHT), (sharp, _SURELY_GLASS)):
            mask &= mean([channel / full for channel, full in zip(channels, glass.colour, strict=True)]) < most
    return mask


def _drop_small(mask: Mask, smallest: float) -> Mask:
    count, pieces, facts, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=4)
    if count == 1:
        return mask
    areas = facts[:, cv2.CC_STAT_AREA]
    keep = areas >= smallest
    keep[0] = False
    kept: Mask = keep[pieces]
    return kept


class MaskIntegral:
    """Tissue share of any rectangle of a mask in constant time."""

    def __init__(self, mask: Mask, downsample: float) -> None:
        self._sums = cv2.integral(mask.view(np.uint8))
        self._downsample: float = downsample

    def fractions(self, x_l0: Places, y_l0: Places, size_l0: float) -> npt.NDArray[np.float64]:
        """Share of tissue, 0..1, in squares given in level-0 pixels; rounded outwards to whole mask pixels.

        Of a square that reaches over the edge, only the part on the slide counts.

        Args:
            x_l0: int, [squares]; left edges.
            y_l0: int, [squares]; upper edges.
            size_l0: side of all.

        Returns:
            float64, [squares].
        """
        sums = self._sums
        left, right = self._edges(x_l0, size_l0, sums.shape[1] - 1)
        top, bottom = self._edges(y_l0, size_l0, sums.shape[0] - 1)
        total = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
        shares: npt.NDArray[np.float64] = total / ((right - left) * (bottom - top))
        return shares

    def _edges(self, places_l0: Places, size_l0: float, length: int) -> tuple[Places, Places]:
        first = np.minimum((places_l0 / self._downsample).astype(np.int64), length - 1)
        last = np.ceil((places_l0 + size_l0) / self._downsample).astype(np.int64)
        return first, np.minimum(np.maximum(last, first + 1), length)
