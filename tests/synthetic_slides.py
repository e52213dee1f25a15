"""Small slides with known content, written as real pyramidal TIFFs that OpenSlide opens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
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


_APERIO = "aperio"  # written in that dialect; all others are plain TIFF
LAYOUTS: dict[str, dict[str, Any]] = {
    "JPEG RGB 4:4:4": {"dialect": _APERIO, "compression": "jpeg", "compressionargs": {"outcolorspace": "rgb"}},
    "JPEG YCbCr 4:2:2": {"compression": "jpeg", "subsampling": (2, 1)},
    "JPEG 2000 RGB": {"dialect": _APERIO, "compression": 33005},
    "JPEG 2000 YCbCr": {"dialect": _APERIO, "compression": 33003},
    "JPEG 2000 in plain TIFF": {"compression": 34712},
    "uncompressed": {},
    "LZW": {"compression": "lzw"},
    "LZW, predictor": {"compression": "lzw", "predictor": True},
    "Deflate": {"compression": "deflate"},
    "Deflate, predictor": {"compression": "deflate", "predictor": True},
    "Deflate, planes": {"compression": "deflate", "planarconfig": "separate"},
    "Deflate, 16 bit": {"compression": "deflate", "bits": 16},
    "ZSTD": {"compression": "zstd"},
    "WebP": {"compression": "webp", "compressionargs": {"level": 95}},
    "JPEG XL": {"compression": "jpegxl", "compressionargs": {"level": 95}},
    "OME-TIFF, SubIFDs, JPEG": {"dialect": "ome", "compression": "jpeg", "compressionargs": {"level": 95}},
    "OME-TIFF, SubIFDs, Deflate": {"dialect": "ome", "compression": "deflate"},
}
"""How tiles and levels are stored, by what people call it."""


def write_layout(
    path: Path, layout: str, picture: Pixels, *, downsamples: tuple[int, ...] = (1, 4), native_tile_px: int = 256
) -> None:
    """Write a tiled pyramid at 0.25 µm/px in one of ``LAYOUTS``."""
    options = {"photometric": "rgb", "metadata": None, **LAYOUTS[layout], "tile": (native_tile_px, native_tile_px)}
    dialect, bits = options.pop("dialect", ""), options.pop("bits", 8)
    levels = [np.ascontiguousarray(np.asarray(Image.fromarray(picture).reduce(d))) for d in downsamples]
    if dialect == _APERIO:
        options["description"] = (
            f"Aperio Synthetic v1.0\r\n{picture.shape[1]}x{picture.shape[0]}|AppMag = 40|MPP = 0.25"
        )
    with tifffile.TiffWriter(path, ome=dialect == "ome") as tiff:
        for number, level in enumerate(levels):
            place = {"resolution": (40_000 / downsamples[number],) * 2, "resolutionunit": "CENTIMETER"}
            if dialect == "ome" and number == 0:
                place = {
                    "subifds": len(levels) - 1,
                    "metadata": {"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25},
                }
            if number:
                place["subfiletype"] = 1
            data: Any = level if bits == 8 else level.astype(np.uint16) * 257
            if options.get("planarconfig"):
                data = np.moveaxis(data, 2, 0)
            if options.get("compression") in (33003, 33005, 34712):
                ycbcr = options["compression"] == 33003
                data = _jpeg2000_tiles(level, native_tile_px, ycbcr=ycbcr)
                place.update({"shape": level.shape, "dtype": np.uint8})
            tiff.write(data, **{**options, **place})


def _jpeg2000_tiles(picture: Pixels, side: int, *, ycbcr: bool) -> Iterator[bytes]:
    height, width = picture.shape[:2]
    for y in range(0, height, side):
        for x in range(0, width, side):
            part = picture[y : y + side, x : x + side]
            tile = np.pad(part, ((0, side - part.shape[0]), (0, side - part.shape[1]), (0, 0)), mode="edge")
            if ycbcr:
                tile = np.asarray(Image.fromarray(tile).convert("YCbCr"))
            yield imagecodecs.jpeg2k_encode(tile, level=42, codecformat="j2k", mct=not ycbcr, reversible=False)


def damage_native_tile(path: Path, number: int, level: int = 0) -> None:
    """Overwrite the data of one compressed tile, so that no decoder can read it."""
    with tifffile.TiffFile(path) as tiff:
        page = [page for page in tiff.pages if page.is_tiled][level]
        offset, count = page.dataoffsets[number], page.databytecounts[number]
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\x00" * count)
