"""Regions of interest: areas that a person drew on a slide, read from GeoJSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Ring = npt.NDArray[np.float64]
"""float64, [points, 2], (x, y), level-0 pixels; closed without repeating the first point."""


@dataclass(frozen=True)
class Regions:
    """Areas of a slide, level-0 pixels.

    Attributes:
        path: file that they were read from.
        polygons: each a list of rings, the outline first, then its holes.
        skipped: what of the file is no area, in words, for people.
    """

    path: Path
    polygons: list[list[Ring]]
    skipped: list[str]

    def mask(self, width: int, height: int, downsample: float) -> npt.NDArray[np.bool_]:
        """Where a pixel of a reduced slide has its centre in a region.

        Args:
            width: of the mask, pixels.
            height: likewise.
            downsample: level-0 pixels per pixel of the mask.

        Returns:
            bool, [height, width].

        Raises:
            InputError: all regions lie outside.
        """
        raise NotImplementedError


def read_regions(path: Path) -> Regions:
    """Read the areas of a GeoJSON file, as QuPath exports them.

    Raises:
        InputError: names the file and the feature, and what was expected.
    """
    raise NotImplementedError
