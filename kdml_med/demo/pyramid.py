"""Write an image as a pyramidal TIFF in the layout of Aperio's SVS, which OpenSlide opens as such."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from kdml_med.demo.fields import block_mean

NATIVE_TILE_PX = 240  # TCGA's Aperio slides have 240 px tiles
JPEG_QUALITY = 88
LEVEL_STEP = 4  # Aperio keeps levels 1, 4, 16, …; there is no level at 2
SMALLEST_LEVEL_PX = 256


def downsampled(image: npt.NDArray[np.uint8], factor: int) -> npt.NDArray[np.uint8]:
    """Box average; what is left over at the right and lower border is cut off. uint8, [rows, columns, 3]."""
    rows, columns = (side // factor * factor for side in image.shape[:2])
    cut = image[:rows, :columns]
    return np.stack([np.rint(block_mean(cut[..., c], factor)) for c in range(3)], axis=-1).astype(np.uint8)


def write_svs(path: Path, image: npt.NDArray[np.uint8], *, mpp: float, app_mag: int) -> None:
    """Write level 0, a thumbnail, and levels 4 and 16 as far as they are ``SMALLEST_LEVEL_PX`` wide.

    The file holds no time stamp, so the same image gives the same bytes.

    Args:
        path: file to write; not atomic, hand in a temporary name.
        image: uint8, [rows, columns, 3], RGB.
        mpp: micrometres per pixel of ``image``.
        app_mag: objective power to state.
    """
    rows, columns = image.shape[:2]
    head = f"Aperio Image Library v11.2.1 \r\n{columns}x{rows}"
    facts = f"AppMag = {app_mag}|MPP = {mpp:.4f}|ScanScope ID = DEMO|Filename = generated"
    jpeg: dict[str, Any] = {
        "photometric": "rgb",  # of the array handed in; the file holds YCbCr 4:2:0
        "compression": "jpeg",
        "compressionargs": {"level": JPEG_QUALITY},
        "metadata": None,
        "software": False,
        "maxworkers": 1,
    }
    tile = (NATIVE_TILE_PX, NATIVE_TILE_PX)
    with tifffile.TiffWriter(path) as tiff:
        note = f"[0,0 {columns}x{rows}] ({tile[1]}x{tile[0]}) JPEG/YCC Q={JPEG_QUALITY}"
        tiff.write(image, tile=tile, description=f"{head} {note}|{facts}", **jpeg)
        levels = []
        factor = LEVEL_STEP
        while min(rows, columns) // factor >= SMALLEST_LEVEL_PX:
            levels.append(downsampled(image, factor))
            factor *= LEVEL_STEP
        thumbnail = downsampled(image, 2 * LEVEL_STEP)
        small = f"{thumbnail.shape[1]}x{thumbnail.shape[0]}"
        tiff.write(thumbnail, rowsperstrip=16, description=f"{head} -> {small} - |{facts}", **jpeg)
        for level in levels:
            note = f"({tile[1]}x{tile[0]}) -> {level.shape[1]}x{level.shape[0]} JPEG/YCC Q={JPEG_QUALITY}"
            tiff.write(level, tile=tile, subfiletype=0, description=f"{head} {note}", **jpeg)
