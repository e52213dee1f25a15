"""Measurements on one tile that tell usable tissue from glass, marker ink and blur."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdml_med.wsi.slide import Pixels


@dataclass(frozen=True)
class TileQuality:
    """Scores of one tile.

    Attributes:
        background_fraction: share of pixels as bright as glass, 0..1.
        pen_fraction: share of pixels coloured like marker ink, 0..1.
        sharpness: variance of the Laplacian of the grey image, grey levels squared.
    """

    background_fraction: float
    pen_fraction: float
    sharpness: float


def measure_quality(tile: Pixels, background_level: float) -> TileQuality:
    """Scores of a tile, on its own pixels (before any stain normalisation).

    Args:
        tile: uint8, [height, width, 3], RGB; at least 3 pixels on each side.
        background_level: a pixel whose mean over the channels reaches this is background.
    """
    planes = np.ascontiguousarray(tile.transpose(2, 0, 1))  # arithmetic on interleaved channels is ten times slower
    total = np.add(planes[0], planes[1], dtype=np.int16)
    total += planes[2]
    background = int(np.count_nonzero(total >= math.ceil(3 * background_level))) / total.size
    return TileQuality(background, _pen_fraction(planes), _sharpness(total))


def _pen_fraction(planes: Pixels) -> float:
    """Share of pixels coloured like blue, green, red or black marker ink.

    Haematoxylin and eosin run from violet to pink: red always exceeds green. Green and blue ink break that rule; red
    ink is redder than erythrocytes are; black ink is dark without colour. Every second pixel each way is looked at.

    Args:
        planes: uint8, [3, height, width]; red, green, blue.
    """
    red, green, blue = planes[:, ::2, ::2].astype(np.int16)
    coldest = np.maximum(green, blue)
    excess = coldest - red
    green_or_blue_ink = (excess > 40) & (green >= red)
    red_ink = (excess < -110) & (green < 60) & (red > 150)
    brightest = np.maximum(red, coldest)
    black_ink = (brightest < 50) & (brightest - np.minimum(np.minimum(red, green), blue) < 20)
    return int(np.count_nonzero(green_or_blue_ink | red_ink | black_ink)) / int(red.size)


def _sharpness(total: npt.NDArray[np.int16]) -> float:
    """Variance of the four-neighbour Laplacian of ``total / 3``, on every second row: half the work, same estimate."""
    centre = total[1:-1:2]
    rows = centre.shape[0]
    edges = total[0:-2:2][:rows, 1:-1] + total[2::2][:rows, 1:-1]
    edges += centre[:, :-2]
    edges += centre[:, 2:]
    edges -= 4 * centre[:, 1:-1]
    laplacian = edges.astype(np.float32).ravel()
    return float(np.dot(laplacian, laplacian)) / laplacian.size / 9.0 - (float(laplacian.mean()) / 3.0) ** 2
