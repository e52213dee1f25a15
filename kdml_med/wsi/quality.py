"""Measurements on one tile that tell usable tissue from glass, marker ink and blur."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdml_med.wsi.slide import Pixels

BACKGROUND_LEVEL = 220
"""A pixel whose mean over the channels reaches this is background (rule of the published MSI tile sets)."""


@dataclass(frozen=True)
class TileQuality:
    """Scores of one tile.

    Attributes:
        background_fraction: share of pixels with a mean of at least ``BACKGROUND_LEVEL``, 0..1.
        pen_fraction: share of pixels coloured like marker ink, 0..1.
        sharpness: variance of the Laplacian of the grey image, grey levels squared.
    """

    background_fraction: float
    pen_fraction: float
    sharpness: float


def measure_quality(tile: Pixels) -> TileQuality:
    """Scores of a tile, on its own pixels (before any stain normalisation).

    Args:
        tile: uint8, [height, width, 3], RGB; at least 3 pixels on each side.
    """
    wide = tile.astype(np.int16)
    total = wide[..., 0] + wide[..., 1] + wide[..., 2]
    background = np.count_nonzero(total >= 3 * BACKGROUND_LEVEL) / total.size
    return TileQuality(background, pen_fraction(tile), _sharpness(total))


def pen_fraction(tile: Pixels) -> float:
    """Share of pixels coloured like blue, green, red or black marker ink.

    Haematoxylin and eosin run from violet to pink: red always exceeds green. Green and blue ink break that rule; red
    ink is redder than erythrocytes are; black ink is dark without colour. Every second pixel each way is looked at.

    Args:
        tile: uint8, [height, width, 3], RGB.
    """
    sample = tile[::2, ::2].astype(np.int16)
    red, green, blue = sample[..., 0], sample[..., 1], sample[..., 2]
    green_or_blue_ink = (green >= red) & (np.maximum(green, blue) - red > 40)
    red_ink = (red - np.maximum(green, blue) > 110) & (green < 60) & (red > 150)
    brightest = sample.max(axis=2)
    black_ink = (brightest < 50) & (brightest - sample.min(axis=2) < 20)
    return float(np.count_nonzero(green_or_blue_ink | red_ink | black_ink)) / red.size


def _sharpness(total: np.ndarray[tuple[int, ...], np.dtype[np.int16]]) -> float:
    """Variance of the four-neighbour Laplacian of ``total / 3``, on every second row: half the work, same estimate."""
    centre = total[1:-1:2]
    rows = centre.shape[0]
    edges = total[0:-2:2][:rows, 1:-1] + total[2::2][:rows, 1:-1] + centre[:, :-2] + centre[:, 2:]
    laplacian = (edges - 4 * centre[:, 1:-1]).astype(np.float32)
    return float(laplacian.var()) / 9.0
