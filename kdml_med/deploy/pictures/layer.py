"""Maps as an image layer: pyramidal OME-TIFF of probabilities, to lay over the slide in a viewer."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from kdml_med.deploy.pictures.raster import Plane, halve
from kdml_med.storage.files import writing
from kdml_med.words import printable

_TILE_PX = 128
_SPACE = uuid.UUID("b0a5f1a2-5b0b-5a53-8f43-1d6c0a7e9a10")


def write_layer(path: Path, channels: Mapping[str, Plane], *, pixel_um: float, name: str, description: str) -> None:
    """Write planes as one OME-TIFF: float32, tiled, deflate, levels of half the size below (SubIFDs) down to one tile.

    The same planes give the same bytes.

    Args:
        path: of the file; written atomically.
        channels: planes of one size by the name of their channel, NaN where there is no value.
        pixel_um: side of a pixel, micrometres; with it a viewer lays the layer over the slide, upper left corners (of
            the part that was scanned, where the slide names one) upon each other.
        name: of the image, any text.
        description: of the image, any text.

    Raises:
        InputError: it cannot be written.
    """
    levels = [np.stack(list(channels.values()))]
    while max(levels[-1].shape[1:]) > _TILE_PX:
        levels.append(np.stack([halve(plane) for plane in levels[-1]]))
    metadata: dict[str, Any] = {
        "axes": "CYX",
        "Name": printable(name),  # XML has no control characters
        "Description": printable(description),
        "Channel": {"Name": [printable(channel) for channel in channels]},
        "PhysicalSizeX": pixel_um,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": pixel_um,
        "PhysicalSizeYUnit": "µm",
        "UUID": str(uuid.uuid5(_SPACE, printable(name))),  # a new one each time would make every file differ
    }
    settings: dict[str, Any] = {
        "tile": (_TILE_PX, _TILE_PX),
        "photometric": "minisblack",
        "compression": "zlib",
        "software": False,
    }
    with writing(path) as temporary, tifffile.TiffWriter(temporary, ome=True) as writer:
        writer.write(levels[0], subifds=len(levels) - 1, metadata=metadata, **settings)
        for level in levels[1:]:
            writer.write(level, subfiletype=1, **settings)
