"""Stain vectors of a slide, and normalisation to reference stains.

Light that passes a stain is absorbed exponentially (Beer-Lambert), so optical densities of haematoxylin and eosin add.
A slide's two stain vectors are found once, from pixels all over it; normalising a tile is then one 3 × 3 transform of
its optical densities.

Source:
    Macenko et al. 2009, "A method for normalizing histology slides for quantitative analysis", ISBI.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdml_med.wsi.slide import Pixels

Floats = npt.NDArray[np.float64]

MIN_DENSITY = 0.15
"""Optical density (natural log) under which a pixel is too pale to say anything about its stain (Macenko's beta)."""

ANGLE_PERCENTILE = 1.0
"""Robust extreme of the angles, percent (Macenko's alpha)."""

MIN_PIXELS = 200
"""Stained pixels needed for a fit."""

_MIN_SPREAD_DEG = 3.0  # two vectors closer than this are one stain; inverting them would amplify noise

# Density of each grey level. 256 instead of 255, and one added, so that 0 has a finite density and white has none.
_DENSITY = -np.log((np.arange(256, dtype=np.float64) + 1.0) / 256.0)
_DENSITY_32 = _DENSITY.astype(np.float32)


@dataclass(frozen=True)
class StainFit:
    """Stains of a slide.

    Attributes:
        matrix: float64, [3, 2]; columns haematoxylin and eosin, rows red, green, blue; unit length.
        max_concentrations: float64, [2]; the 99th percentile of each stain's concentration.
    """

    matrix: Floats
    max_concentrations: Floats


REFERENCE = StainFit(
    np.array([[0.632, 0.089], [0.650, 0.902], [0.420, 0.422]]),
    np.array([1.86, 1.40]),
)
"""Target of the normalisation.

Stain vectors: mean of what ``fit_stains`` finds on two openly licensed slides, CMU-1-Small-Region.svs (OpenSlide test
data, CC0) and the crop of TCGA-CR-7395-01A-01-TS1 (TCGA open access). Concentrations: those of the second.
"""


def fit_stains(pixels: Pixels) -> StainFit | None:
    """Find the two stain vectors of a slide.

    The densities of stained pixels lie in a plane; within it, the extreme angles (1st and 99th percentile) are the two
    stains. The one that absorbs more red is haematoxylin.

    Args:
        pixels: uint8, [..., 3], RGB; a sample of the slide, background allowed.

    Returns:
        The fit, or None when fewer than ``MIN_PIXELS`` pixels are stained or only one stain is to be seen.

    Source:
        Macenko et al. 2009, section 2.2.
    """
    density = _DENSITY[pixels.reshape(-1, 3)]
    # Mean over the channels, where the paper asks each channel: pure eosin hardly absorbs red and would be dropped.
    density = density[density.mean(axis=1) > MIN_DENSITY]
    if len(density) < MIN_PIXELS:
        return None
    _, vectors = np.linalg.eigh(np.cov(density, rowvar=False))
    plane = vectors[:, [2, 1]]
    plane = plane * np.where(plane.sum(axis=0) < 0, -1.0, 1.0)
    first, second = (density @ plane).T
    angles = np.arctan2(second, first)
    low, high = np.percentile(angles, [ANGLE_PERCENTILE, 100.0 - ANGLE_PERCENTILE])
    if np.degrees(high - low) < _MIN_SPREAD_DEG:
        return None
    # A negative component would mean a stain that gives light off; noise at the extremes can suggest one.
    stains = [np.clip(plane @ (np.cos(angle), np.sin(angle)), 0.0, None) for angle in (low, high)]
    stains.sort(key=lambda stain: -stain[0] / np.linalg.norm(stain))
    matrix = np.stack([stain / np.linalg.norm(stain) for stain in stains], axis=1)
    concentrations = density @ np.linalg.pinv(matrix).T
    highest = np.percentile(concentrations, 99.0, axis=0)
    if not np.isfinite(highest).all() or (highest <= 0.05).any():
        return None
    return StainFit(matrix, highest)


def density_transform(fit: StainFit, target: StainFit = REFERENCE) -> npt.NDArray[np.float32]:
    """Matrix that takes a slide's densities to those of the target's stains.

    Returns:
        float32, [3, 3]; ``target_density = matrix @ density``.
    """
    scale = np.diag(target.max_concentrations / fit.max_concentrations)
    return (target.matrix @ scale @ np.linalg.pinv(fit.matrix)).astype(np.float32)


def normalise_stains(tile: Pixels, fit: StainFit, target: StainFit = REFERENCE) -> Pixels:
    """Give a tile the stain colours of the target.

    Args:
        tile: uint8, [height, width, 3], RGB; any content, white and black included.
        fit: stains of the slide that the tile comes from.
        target: stains to imitate.

    Returns:
        uint8, [height, width, 3].

    Source:
        Macenko et al. 2009, section 2.3.
    """
    density = _DENSITY_32[tile.reshape(-1, 3)]
    moved = density @ density_transform(fit, target).T
    np.negative(moved, out=moved)
    np.exp(moved, out=moved)
    moved *= 256.0
    moved -= 0.5  # the density table adds one; taking half of it away again leaves rounding to the integer cast
    np.clip(moved, 0.0, 255.0, out=moved)
    return moved.astype(np.uint8).reshape(tile.shape)
