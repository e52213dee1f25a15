"""Where in a slide the networks see what: heat maps as pictures, as an image layer and as shapes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

HEATMAP_FILE = "heatmap.png"
DISAGREEMENT_FILE = "disagreement.png"
LAYER_FILE = "heatmap.ome.tiff"
SHAPES_FILE = "tiles.geojson"


@dataclass(frozen=True, kw_only=True)
class SlidePicture:
    """A slide, and what the networks said of its tiles.

    Attributes:
        slide_id: any text.
        overview: uint8, [height, width, 3], RGB; the whole slide, reduced by ``downsample``.
        downsample: level-0 pixels per pixel of the overview.
        width_l0: of the slide, level-0 pixels.
        height_l0: likewise.
        mpp: micrometres per level-0 pixel.
        tiles: columns x_l0, y_l0, size_l0 (level-0 pixels, may be fractions), probability (of the positive class) and
            disagreement (NaN, or the column is absent, with one student).
        classes: names; the last one is the positive class.
        network: whose probabilities these are.
        synthetic: the slide or the training data are generated.
    """

    slide_id: str
    overview: npt.NDArray[np.uint8]
    downsample: float
    width_l0: int
    height_l0: int
    mpp: float
    tiles: pd.DataFrame
    classes: list[str]
    network: str
    synthetic: bool


def write_maps(folder: Path, picture: SlidePicture) -> list[str]:
    """Write heatmap.png, disagreement.png (where there is one), heatmap.ome.tiff and tiles.geojson.

    Args:
        folder: made when absent; a disagreement.png of an earlier prediction goes where there is none now.
        picture: of the slide; without tiles only the overview is shown.

    Returns:
        Names of the files that were written.

    Raises:
        InputError: a file cannot be written.
    """
    raise NotImplementedError
