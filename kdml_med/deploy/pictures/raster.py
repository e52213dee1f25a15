"""Values of tiles on a plane of pixels, and the colours of values."""

from __future__ import annotations

import functools
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd

Plane = npt.NDArray[np.float32]
"""float32, [height, width]; NaN where there is no tile."""

HEAT = "viridis"
"""Of probabilities: equal steps look equal, lightness alone tells them apart, and no stain has its colours."""
DIFFERENCE = "magma_r"
"""Of disagreement: as even, and not to be taken for a probability."""

_PARTS = (4, 2)
_WANTED_PX = 4096
_LARGEST_PX = 16384


def choose_pitch(tiles: pd.DataFrame, width_l0: int, height_l0: int) -> float:
    """Side of a map's pixel, level-0 pixels: a quarter of the distance of neighbouring tiles, or the distance itself.

    Args:
        tiles: columns x_l0, y_l0, size_l0.
        width_l0: of the slide; a map gets at most ``_WANTED_PX`` pixels for the sake of a finer pitch.
        height_l0: likewise.
    """
    longest = max(width_l0, height_l0)
    if tiles.empty:
        return longest / min(longest, 256)
    size = float(tiles["size_l0"].min())
    steps = np.concatenate([np.diff(np.unique(tiles[name].to_numpy(np.float64))) for name in ("x_l0", "y_l0")])
    # Origins are whole pixels and sides need not be; tiles that lie anyhow have no distance.
    step = float(np.clip(steps.min(initial=size), size / 8, np.ceil(size)))
    fitting = [step / parts for parts in _PARTS if longest * parts <= _WANTED_PX * step]
    return max([*fitting, step][0], longest / _LARGEST_PX)


def rasterise(
    tiles: pd.DataFrame, value: str, shape: tuple[int, int], pitch_l0: tuple[float, float]
) -> npt.NDArray[np.float32]:
    """Draw a value of tiles: each pixel has the mean of the tiles that its centre lies in.

    A tile that holds no centre gets the pixel around its own; gaps of a fraction of a level-0 pixel are closed.

    Args:
        tiles: columns x_l0, y_l0, size_l0 and that of the value; rows without a value are left out.
        value: name of its column.
        shape: [height, width] of the plane.
        pitch_l0: (x, y), level-0 pixels per pixel of the plane.

    Returns:
        float32, [height, width], NaN where there is no tile.
    """
    said = tiles[tiles[value].notna()]
    left, right = _span(said["x_l0"], said["size_l0"], pitch_l0[0], shape[1])
    top, bottom = _span(said["y_l0"], said["size_l0"], pitch_l0[1], shape[0])
    values = said[value].to_numpy(np.float64)
    total = np.zeros((shape[0] + 1, shape[1] + 1))
    count = np.zeros((shape[0] + 1, shape[1] + 1), np.int64)
    # A square is the sum over rows and columns of its four corners.
    for rows, columns, sign in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
        np.add.at(total, (rows, columns), sign * values)
        np.add.at(count, (rows, columns), sign)
    covered = count.cumsum(axis=0).cumsum(axis=1)[:-1, :-1]
    sums = total.cumsum(axis=0).cumsum(axis=1)[:-1, :-1]
    plane = np.full(shape, np.nan, np.float32)
    np.divide(sums, covered, out=plane, where=covered > 0, casting="unsafe")
    # Sums of far tiles leave traces in the last digits.
    low, high = (values.min(), values.max()) if len(values) else (0.0, 0.0)
    return np.clip(plane, np.float32(low), np.float32(high))


def within(tiles: pd.DataFrame, shape: tuple[int, int], pitch_l0: float) -> pd.DataFrame:
    """Tiles that ``rasterise`` draws for what lies on the plane, where some may lie beside it.

    A tile that holds the centre of a pixel, or has its own centre on the plane, is there.

    Args:
        tiles: columns x_l0, y_l0, size_l0, from the corner of the plane.
        shape: [height, width] of the plane.
        pitch_l0: level-0 pixels per pixel of the plane.
    """
    there = np.ones(len(tiles), np.bool_)
    for name, length in (("x_l0", shape[1]), ("y_l0", shape[0])):
        begin = tiles[name].to_numpy(np.float64) / pitch_l0
        end = begin + np.ceil(tiles["size_l0"].to_numpy(np.float64)) / pitch_l0
        own = (begin + end) / 2
        there &= ((end > 0.5) & (begin <= length - 0.5)) | ((own >= 0) & (own < length))
    return tiles[there]


def _span(
    start: pd.Series, size: pd.Series, pitch: float, length: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First pixel, and the one after the last, whose centres lie in each tile, within the plane."""
    begin = start.to_numpy(np.float64)
    end = begin + np.ceil(size.to_numpy(np.float64))
    first, last = (np.ceil(edge / pitch - 0.5) for edge in (begin, end))
    own = np.floor((begin + end) / 2 / pitch)
    none = last <= first
    first, last = np.where(none, own, first), np.where(none, own + 1, last)
    first = np.clip(first, 0, length - 1).astype(np.int64)
    return first, np.maximum(np.clip(last, 0, length).astype(np.int64), first + 1)


def halve(plane: Plane) -> Plane:
    """Half the size: means of two by two pixels, of those that have a tile; an odd last row or column stands alone."""
    height, width = plane.shape
    even = np.pad(plane, ((0, height % 2), (0, width % 2)), constant_values=np.nan)
    blocks = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2)
    count = np.isfinite(blocks).sum(axis=(1, 3))
    mean = np.full(count.shape, np.nan, np.float32)
    np.divide(np.nansum(blocks, axis=(1, 3)), count, out=mean, where=count > 0)
    return mean


@functools.cache
def colours(name: str) -> npt.NDArray[np.uint8]:
    """A colour map of matplotlib, uint8, [256, 3]."""
    table: Any = mpl.colormaps[name](np.arange(256), bytes=True)
    found: npt.NDArray[np.uint8] = table[:, :3]
    return found


def colour_of(values: npt.NDArray[Any], name: str, highest: float = 1.0) -> npt.NDArray[np.uint8]:
    """Colours of values from 0 to ``highest``, uint8, [..., 3]; those of NaN mean nothing."""
    place = np.nan_to_num(np.clip(np.asarray(values, np.float64) / highest, 0, 1)) * 255
    return colours(name)[np.rint(place).astype(np.uint8)]
