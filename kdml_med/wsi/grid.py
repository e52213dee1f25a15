"""Tile geometry on a slide, with no input or output in it.

Three coordinate planes, named by suffix; every pair is (x, y) and every size (width, height):

    _l0   pixels of level 0, the finest level of the slide
    _r    pixels of the plane that is read: a level, reduced once more by an integer factor while decoding
    _px   pixels of the stored tile
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kdml_med.errors import InputError

MIN_MPP, MAX_MPP = 0.1, 2.0
"""Plausible resolutions of a slide, micrometres per pixel; outside them a header is taken to be wrong."""

MAX_UPSAMPLING = 1.25
"""A slide coarser than the requested resolution by more than this factor is refused: detail cannot be invented."""

READ_TOLERANCE = 1.02
"""A plane up to this factor coarser than the tile may be read.

Scanners write 0.252 µm/px and mean 0.25: reading the half-scale plane for 0.5 µm/px then enlarges by 0.8 %, which
nobody can see, while refusing it would mean decoding four times the pixels.
"""


SNAP_TOLERANCE = 0.0025
"""A tile side within this share of a whole number of level-0 pixels is made whole.

Anyone can then read exactly the same square again, and a slide at 0.499 µm/px gives 0.5 µm/px tiles by copying pixels
instead of stretching 224.4 of them to 224. The manifest records the resolution that results.
"""

FINE_MPP = 0.35
"""Decoding at half size is as good as proper filtering only while pixels are finer than the optics resolve.

A 0.75 aperture resolves about 0.4 µm, so neighbouring 0.25 µm pixels differ little and any halving will do; at 0.5 µm
the picture holds detail up to the last pixel, and the crude filter of the JPEG decoder shows.
"""


@dataclass(frozen=True)
class TileGrid:
    """Square tiles on a slide, from the top left corner, without overlap.

    Origins lie on whole level-0 pixels. Neighbours are ``stride_l0`` apart, the next whole number from ``size_l0``, so
    that tiles never share tissue and the gap between them is less than one level-0 pixel. Tiles that would reach over
    the right or bottom edge are not made.

    Attributes:
        width_l0: of the slide, level-0 pixels.
        height_l0: of the slide, level-0 pixels.
        size_l0: side of a tile in level-0 pixels; whole unless that would miss the size by over ``SNAP_TOLERANCE``.
    """

    width_l0: int
    height_l0: int
    size_l0: float

    @property
    def stride_l0(self) -> int:
        """Distance between neighbouring origins, level-0 pixels."""
        return math.ceil(self.size_l0)

    @property
    def columns(self) -> int:
        """Number of tiles side by side."""
        return self._count(self.width_l0)

    @property
    def rows(self) -> int:
        """Number of tiles one above the other."""
        return self._count(self.height_l0)

    def __len__(self) -> int:
        return self.columns * self.rows

    def origins(self) -> Iterator[tuple[int, int]]:
        """Top left corners (x_l0, y_l0), row by row from the top, each row from the left."""
        stride, columns = self.stride_l0, self.columns
        for row in range(self.rows):
            for column in range(columns):
                yield column * stride, row * stride

    def rim(self) -> Iterator[tuple[int, int]]:
        """Top left corners (x_l0, y_l0) of the incomplete tiles at the right and lower edge, in the same order."""
        stride = self.stride_l0
        right, bottom = self.columns * stride, self.rows * stride
        for y_l0 in range(0, self.height_l0, stride):
            for x_l0 in range(0 if y_l0 >= bottom else right, self.width_l0, stride):
                yield x_l0, y_l0

    def _count(self, length_l0: int) -> int:
        if length_l0 < self.size_l0:
            return 0
        return 1 + int((length_l0 - self.size_l0) // self.stride_l0)


def make_grid(width_l0: int, height_l0: int, *, slide_mpp: float, mpp: float, tile_size_px: int) -> TileGrid:
    """Grid of tiles with a given physical size.

    Args:
        width_l0: of the slide, level-0 pixels.
        height_l0: of the slide, level-0 pixels.
        slide_mpp: micrometres per level-0 pixel.
        mpp: micrometres per pixel of the stored tile.
        tile_size_px: side of the stored tile, pixels.

    Raises:
        InputError: a size or a resolution is not positive, or the slide is too coarse (``MAX_UPSAMPLING``).
    """
    if min(slide_mpp, mpp, tile_size_px) <= 0:
        raise InputError(f"resolutions and tile size must be positive, got {slide_mpp}, {mpp} and {tile_size_px}.")
    if slide_mpp > mpp * MAX_UPSAMPLING:
        raise InputError(
            f"the slide has {slide_mpp:.4g} µm/px, {mpp:.4g} µm/px were asked for: enlarging by "
            f"{slide_mpp / mpp:.2f} is refused, {MAX_UPSAMPLING} is the limit. Ask for a coarser --mpp."
        )
    size_l0 = tile_size_px * mpp / slide_mpp
    if abs(round(size_l0) / size_l0 - 1) <= SNAP_TOLERANCE:
        size_l0 = float(round(size_l0))
    return TileGrid(width_l0, height_l0, size_l0)


@dataclass(frozen=True)
class ReadPlan:
    """The plane that tiles are read from.

    Attributes:
        level: index in the slide's pyramid.
        factor: integer reduction while decoding; 1 for none.
        downsample: of the plane, relative to level 0.
    """

    level: int
    factor: int
    downsample: float

    def box_r(self, x_l0: float, y_l0: float, size_l0: float) -> tuple[float, float, float, float]:
        """The square as (left, top, right, bottom) in the plane, not rounded."""
        left, top, side = x_l0 / self.downsample, y_l0 / self.downsample, size_l0 / self.downsample
        return left, top, left + side, top + side


def choose_plane(
    downsamples: Sequence[float],
    factors: Sequence[Sequence[int]],
    *,
    slide_mpp: float,
    mpp: float,
    fine_mpp: float = FINE_MPP,
) -> ReadPlan:
    """The coarsest plane that still has the detail that was asked for.

    Of planes equally coarse, the one on the coarsest level: fewer bytes are decoded.

    Args:
        downsamples: of each level, ascending, the first is 1.
        factors: for each level, the integer reductions that its decoder offers.
        slide_mpp: micrometres per level-0 pixel.
        mpp: micrometres per pixel wanted.
        fine_mpp: the last halving of a reduction must start from pixels at least as fine, micrometres.
    """
    wanted = mpp / slide_mpp
    planes = [
        ReadPlan(level, factor, downsample * factor)
        for level, (downsample, offered) in enumerate(zip(downsamples, factors, strict=True))
        for factor in offered
        if downsample * factor <= wanted * READ_TOLERANCE
        and (factor == 1 or downsample * factor / 2 * slide_mpp <= fine_mpp)
    ]
    if not planes:
        return ReadPlan(0, 1, downsamples[0])
    coarsest = max(plane.downsample for plane in planes)
    return max((p for p in planes if p.downsample > coarsest / READ_TOLERANCE), key=lambda p: p.level)


def true_downsample(width_l0: int, height_l0: int, width: int, height: int) -> float:
    """Downsample of a level from its size.

    Levels are cut to whole pixels, so 2,500 px at factor 8 becomes 312 px and the plain ratio 8.013. Where a whole
    factor explains both sides it is taken: the plain ratio would shift tiles by several pixels at the far edge.
    """
    ratio = (width_l0 / width + height_l0 / height) / 2
    whole = round(ratio)
    if whole >= 1 and all(abs(full / whole - part) <= 1 for full, part in ((width_l0, width), (height_l0, height))):
        return float(whole)
    return ratio
