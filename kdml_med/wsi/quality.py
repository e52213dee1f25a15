"""Measurements on one tile that tell usable tissue from glass, marker ink and blur."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from kdml_med.wsi.slide import Pixels

Plane = npt.NDArray[np.uint8]

_LARGE_PX = 192


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
    red, green, blue = cv2.split(tile)  # arithmetic on interleaved channels is ten times slower
    total = np.add(red, green, dtype=np.int16)
    total += blue
    background = int(np.count_nonzero(total >= math.ceil(3 * background_level))) / total.size
    # Ink comes in strokes: every second pixel each way is looked at.
    pen = _pen_fraction(*(np.ascontiguousarray(plane[::2, ::2], np.uint8) for plane in (red, green, blue)))
    return TileQuality(background, pen, _sharpness(total))


def _pen_fraction(red: Plane, green: Plane, blue: Plane) -> float:
    """Share of pixels coloured like blue, green, red or black marker ink.

    Haematoxylin and eosin run from violet to pink: red always exceeds green. Green and blue ink break that rule; red
    ink is redder than erythrocytes are; black ink is dark without colour.

    Args:
        red: uint8, [height, width].
        green: the same.
        blue: the same.
    """
    coldest = np.maximum(green, blue)
    brightest = np.maximum(red, coldest)
    # Differences that would be negative are 0.
    ink = (cv2.subtract(coldest, red) > 40) & (green >= red)
    for found, more in (
        ((cv2.subtract(red, coldest) > 110) & (red > 150), lambda: green < 60),
        (brightest < 50, lambda: cv2.subtract(brightest, np.minimum(np.minimum(red, green), blue)) < 20),
    ):
        if found.any():
            ink |= found & more()
    return int(np.count_nonzero(ink)) / ink.size


def _sharpness(total: npt.NDArray[np.int16]) -> float:
    """Variance of the four-neighbour Laplacian of ``total / 3``; on every third row of a large tile.

    Not on every second or fourth: edges of the 8 × 8 blocks of a JPEG would always or never be looked at.
    """
    step = 3 if total.shape[0] >= _LARGE_PX else 1
    centre = total[1:-1:step]
    rows = centre.shape[0]
    edges = total[0:-2:step][:rows, 1:-1] + total[2::step][:rows, 1:-1]
    edges += centre[:, :-2]
    edges += centre[:, 2:]
    edges -= 4 * centre[:, 1:-1]
    laplacian = edges.astype(np.float32).ravel()
    mean = float(laplacian.sum()) / laplacian.size
    return (float(np.dot(laplacian, laplacian)) / laplacian.size - mean**2) / 9.0
