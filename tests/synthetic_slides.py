"""Small slides with known content, written as real pyramidal TIFFs that OpenSlide opens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

Pixels = npt.NDArray[np.uint8]

GLASS = 243
TISSUE_SHARE = (0.15, 0.85)  # the tissue block spans this part of the slide, both ways


def tissue_picture(width: int, height: int, seed: int = 0) -> Pixels:
    """Glass with one block of violet dots on pink, [height, width, 3]."""
    rng = np.random.default_rng(seed)
    picture = np.full((height, width, 3), GLASS, np.float32)
    low, high = TISSUE_SHARE
    block = np.s_[int(height * low) : int(height * high), int(width * low) : int(width * high)]
    h, w = picture[block].shape[:2]
    coarse = rng.random((h // 16 + 2, w // 16 + 2)).astype(np.float32)
    texture = np.asarray(Image.fromarray(coarse).resize((w, h), Image.Resampling.BICUBIC))
    nuclei = np.asarray(
        Image.fromarray(rng.random((h // 14 + 2, w // 14 + 2)).astype(np.float32)).resize(
            (w, h), Image.Resampling.BICUBIC
        )
    )
    eosin = np.exp(-np.outer(0.6 + 0.5 * texture.ravel(), (0.10, 0.80, 0.40))).reshape(h, w, 3)
    haematoxylin = np.exp(-np.outer(np.clip(6.0 * (nuclei - 0.62), 0, 1.2).ravel(), (0.75, 0.65, 0.30)))
    picture[block] = 250 * eosin * haematoxylin.reshape(h, w, 3)
    return picture.clip(0, 255).astype(np.uint8)


def write_slide(
    path: Path,
    *,
    width: int = 2400,
    height: int = 1900,
    mpp: float | None = 0.25,
    downsamples: tuple[int, ...] = (1, 4),
    native_tile_px: int = 256,
    photometric: str = "rgb",
    picture: Pixels | None = None,
    seed: int = 0,
    quality: int = 90,
) -> Pixels:
    """Write a tiled JPEG pyramid in Aperio's dialect.

    Args:
        path: of the file.
        width: of level 0, pixels.
        height: of level 0, pixels.
        mpp: micrometres per level-0 pixel; None leaves it out.
        downsamples: of the levels.
        native_tile_px: side of the compressed tiles.
        photometric: "rgb" or "ycbcr": how the JPEG data are stored.
        picture: level-0 pixels; default ``tissue_picture``.
        seed: of that.
        quality: of the JPEG data, 1 to 100.

    Returns:
        Level-0 pixels before compression.
    """
    if picture is None:
        picture = tissue_picture(width, height, seed)
    height, width = picture.shape[:2]
    fields = [
        "Aperio Synthetic v1.0\r\n" + f"{width}x{height} [0,0 {width}x{height}] (256x256) JPEG Q=90",
        "AppMag = 40",
    ]
    if mpp is not None:
        fields.append(f"MPP = {mpp}")
    colour = {"subsampling": (2, 1)} if photometric == "ycbcr" else {"subsampling": (1, 1)}
    with tifffile.TiffWriter(path) as tiff:
        for downsample in downsamples:
            level = np.asarray(Image.fromarray(picture).reduce(downsample))
            level = np.ascontiguousarray(level[: height // downsample, : width // downsample])
            tiff.write(
                level,
                photometric="rgb",
                tile=(native_tile_px, native_tile_px),
                compression="jpeg",
                compressionargs={"level": quality, **({"outcolorspace": "rgb"} if photometric == "rgb" else {})},
                description="|".join(fields),
                metadata=None,
                **colour,
            )
            if downsample == 1:
                # The stripped thumbnail that Aperio puts second.
                tiff.write(
                    np.asarray(Image.fromarray(picture).reduce(16)),
                    photometric="rgb",
                    description=fields[0],
                    metadata=None,
                )
    return picture


def damage_native_tile(path: Path, number: int, level: int = 0) -> None:
    """Overwrite the data of one compressed tile, so that no decoder can read it."""
    with tifffile.TiffFile(path) as tiff:
        page = [page for page in tiff.pages if page.is_tiled][level]
        offset, count = page.dataoffsets[number], page.databytecounts[number]
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\x00" * count)
