"""The tiles that a network is surest about, to look at: contact sheets of the highest and the lowest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

TOP_FILE = "tiles_top.png"
BOTTOM_FILE = "tiles_bottom.png"
SHEET_TILES = 12
"""On each sheet, unless others are asked for."""


@dataclass(frozen=True, kw_only=True)
class SheetTile:
    """A tile on a contact sheet.

    Attributes:
        image: uint8, [height, width, 3], RGB.
        probability: of the positive class.
        x_l0: left edge, level-0 pixels.
        y_l0: upper edge, level-0 pixels.
        cam: float, [height, width], 0..1, see ``kdml_med.deploy.grad_cam``; None without one.
    """

    image: npt.NDArray[np.uint8]
    probability: float
    x_l0: float
    y_l0: float
    cam: npt.NDArray[np.float32] | None = None


def write_tile_sheets(
    folder: Path,
    slide_id: str,
    top: Sequence[SheetTile],
    bottom: Sequence[SheetTile],
    *,
    positive: str,
    network: str,
    synthetic: bool = False,
) -> list[str]:
    """Write tiles_top.png and tiles_bottom.png.

    Args:
        folder: made when absent.
        slide_id: any text.
        top: tiles with the highest probabilities, the highest first.
        bottom: tiles with the lowest probabilities, the lowest first.
        positive: name of the positive class.
        network: whose probabilities these are.
        synthetic: the slide or the training data are generated.

    Returns:
        Names of the files that were written.

    Raises:
        InputError: a file cannot be written.
    """
    raise NotImplementedError
