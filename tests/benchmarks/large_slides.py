"""Large slides in Aperio's dialect, generated tile by tile: the whole picture never is in memory.

An ellipse of repeated tissue lies on glass. Native tiles that look the same are encoded once, so that a slide of
100,000 × 100,000 px takes minutes and not hours.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from tests.synthetic_slides import GLASS, tissue_picture

Pixels = npt.NDArray[np.uint8]

NATIVE_PX = 256
DOWNSAMPLES = (1, 4, 16)
_BLOCK_PX = 4096  # of tissue, which repeats; in each level a whole number of native tiles


def _tissue_block() -> Image.Image:
    side = round(_BLOCK_PX / 0.7) + 64
    low = round(0.15 * side) + 8
    return Image.fromarray(np.ascontiguousarray(tissue_picture(side, side)[low:, low:][:_BLOCK_PX, :_BLOCK_PX]))


def _encode(tile: Pixels, quality: int) -> bytes:
    return bytes(
        imagecodecs.jpeg8_encode(tile, level=quality, colorspace="rgb", outcolorspace="ycbcr", subsampling=(2, 1))
    )


def _native_tiles(
    block: Pixels, width: int, height: int, downsample: int, quality: int, radius: float
) -> Iterator[bytes]:
    """Compressed tiles of a level, row by row.

    Args:
        block: the tissue at this level, uint8, [side, side, 3].
        width: of the slide, level-0 pixels.
        height: likewise.
        downsample: of the level.
        quality: of the JPEG data.
        radius: of the ellipse, in sides of the slide.
    """
    glass = _encode(np.full((NATIVE_PX, NATIVE_PX, 3), GLASS, np.uint8), quality)
    made: dict[tuple[int, int], bytes] = {}
    steps, side = np.arange(NATIVE_PX), len(block)
    for top in range(0, height // downsample, NATIVE_PX):
        across = (((top + steps) * downsample / height - 0.5) / radius) ** 2
        for left in range(0, width // downsample, NATIVE_PX):
            along = (((left + steps) * downsample / width - 0.5) / radius) ** 2
            if across.min() + along.min() >= 1:
                yield glass
                continue
            pixels = block[np.ix_((top + steps) % side, (left + steps) % side)]
            if across.max() + along.max() >= 1:
                tissue = across[:, None] + along[None] < 1
                yield _encode(np.where(tissue[..., None], pixels, np.uint8(GLASS)), quality)
                continue
            place = (top % side, left % side)
            if place not in made:
                made[place] = _encode(pixels, quality)
            yield made[place]


def write_large_slide(
    path: Path, width: int, height: int, *, mpp: float = 0.252, quality: int = 70, radius: float = 0.357
) -> None:
    """Write a pyramid of JPEG tiles, YCbCr 4:2:2, levels 1/4/16, as Aperio's 40× slides are.

    Args:
        path: of the file; it is there only when it is whole.
        width: of level 0, pixels.
        height: likewise.
        mpp: micrometres per level-0 pixel.
        quality: of the JPEG data, 1 to 100.
        radius: of the ellipse of tissue, in sides of the slide; the default gives 39 % of the tiles.
    """
    block = _tissue_block()
    title = f"Aperio Synthetic v1.0\r\n{width}x{height} [0,0 {width}x{height}] (256x256) JPEG Q={quality}"
    unfinished = path.with_suffix(".part")
    with tifffile.TiffWriter(unfinished, bigtiff=True) as tiff:
        for downsample in DOWNSAMPLES:
            pixels = np.asarray(block.reduce(downsample))
            tiff.write(
                _native_tiles(pixels, width, height, downsample, quality, radius),
                shape=(height // downsample, width // downsample, 3),
                dtype=np.uint8,
                photometric="ycbcr",
                tile=(NATIVE_PX, NATIVE_PX),
                compression="jpeg",
                subsampling=(2, 1),
                description=f"{title}|AppMag = {round(10 / mpp)}|MPP = {mpp}",
                metadata=None,
            )
            if downsample == 1:  # the stripped thumbnail that Aperio puts second
                thumbnail = np.full((height // 64, width // 64, 3), GLASS, np.uint8)
                tiff.write(thumbnail, photometric="rgb", description=title, metadata=None)
    unfinished.rename(path)
