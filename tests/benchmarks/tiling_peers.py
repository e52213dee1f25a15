"""Other libraries cutting the same tiles, in an environment of their own (peers.txt), without any of the project.

    python -m tests.benchmarks.tiling_peers METHOD --slide FILE --places FILE --out DIR [--part 0] [--parts 1] …

Slides are opened, and tissue is found, before the start. Tiles become JPEG of quality 90, 4:2:0, in a tar, by Pillow;
hs2p has its own grid, resampling and writer.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("VIPS_CONCURRENCY", "1")

from PIL import Image

from tests.benchmarks.racing import take_part

TILE_PX, TILE_MPP, QUALITY = 224, 0.5, 90
_BATCH = 16

Places = list[tuple[int, int, int]]


def _cucim(slide: Path, places: Places) -> Iterator[Image.Image]:
    import numpy as np
    from cucim import CuImage

    image = CuImage(str(slide))
    side = places[0][2]
    yield Image.new("RGB", (1, 1))  # opened
    corners = [(x, y) for x, y, _ in places]
    left = len(corners)
    for batch in image.read_region(corners, (side, side), level=0, num_workers=1, batch_size=_BATCH):
        pixels = np.asarray(batch).reshape(-1, side, side, 3)
        for tile in pixels[: min(left, _BATCH)]:
            yield Image.fromarray(tile)
        left -= _BATCH


def _vips(slide: Path, places: Places) -> Iterator[Image.Image]:
    import pyvips

    region = pyvips.Region.new(pyvips.Image.new_from_file(str(slide)))  # its wheel reads level 0 without OpenSlide
    yield Image.new("RGB", (1, 1))
    for x, y, side in places:
        yield Image.frombuffer("RGB", (side, side), region.fetch(x, y, side, side), "raw", "RGB", 0, 1)


def _fastslide(slide: Path, places: Places) -> Iterator[Image.Image]:
    from fastslide import FastSlide

    image = FastSlide.from_file_path(str(slide))
    yield Image.new("RGB", (1, 1))
    for x, y, side in places:
        yield Image.fromarray(image.read_region(location=(x, y), level=0, size=(side, side)).numpy()[..., :3])


def _tiatoolbox(slide: Path, places: Places) -> Iterator[Image.Image]:
    from tiatoolbox.wsicore.wsireader import WSIReader

    reader = WSIReader.open(slide)
    yield Image.new("RGB", (1, 1))
    for x, y, _ in places:
        yield Image.fromarray(reader.read_rect((x, y), (TILE_PX, TILE_PX), resolution=TILE_MPP, units="mpp"))


READERS = {"cucim": _cucim, "pyvips": _vips, "fastslide": _fastslide, "tiatoolbox": _tiatoolbox}


def _reading(arguments: argparse.Namespace) -> Callable[[], float]:
    """Tiles that a library reads, scaled where it did not, into a tar."""
    with arguments.places.open() as stream:
        rows = [(int(x), int(y), round(float(size))) for x, y, size in csv.reader(stream)]
    count = round(len(rows) * arguments.share)
    places = rows[count * arguments.part // arguments.parts : count * (arguments.part + 1) // arguments.parts]
    tiles = READERS[arguments.method](arguments.slide, places)
    next(tiles)

    def work() -> float:
        with tarfile.open(arguments.out / f"{arguments.method}_{arguments.part}.tar", "w") as archive:
            for (x, y, _), tile in zip(places, tiles, strict=True):
                if tile.size != (TILE_PX, TILE_PX):
                    tile = tile.resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC)
                stream = io.BytesIO()
                tile.save(stream, "JPEG", quality=QUALITY)
                member = tarfile.TarInfo(f"{x}_{y}.jpg")
                member.size = stream.tell()
                stream.seek(0)
                archive.addfile(member, stream)
        return len(places)

    return work


def _hs2p(arguments: argparse.Namespace) -> Callable[[], float]:
    """Tiles of hs2p's own grid and tissue, written by its own function."""
    from hs2p import FilterConfig, SegmentationConfig, SlideSpec, TilingConfig, tile_slide
    from hs2p.api import extract_tiles_to_tar

    config = TilingConfig(
        requested_spacing_um=TILE_MPP,
        requested_tile_size_px=TILE_PX,
        tolerance=0.05,
        overlap=0.0,
        backend=arguments.method.removeprefix("hs2p-"),
    )
    found: Any = tile_slide(
        SlideSpec(sample_id="slide", image_path=arguments.slide, spacing_at_level_0=arguments.mpp),
        tiling=config,
        segmentation=SegmentationConfig(method="hsv"),
        filtering=FilterConfig(),
    )
    count = round(len(found.x) * arguments.share)
    part = slice(count * arguments.part // arguments.parts, count * (arguments.part + 1) // arguments.parts)
    tiles = replace(
        found.tiles,
        x=found.x[part],
        y=found.y[part],
        tissue_fractions=found.tissue_fractions[part],
        tile_index=found.tile_index[part],
    )
    chosen = replace(found, tiles=tiles)
    out = arguments.out / f"{arguments.method}_{arguments.part}"

    def work() -> float:
        extract_tiles_to_tar(chosen, out, num_workers=1)
        return len(chosen.x)

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method")
    parser.add_argument("--slide", type=Path, required=True)
    parser.add_argument("--places", type=Path, required=True, help="x, y and side of the tiles, level-0 pixels")
    parser.add_argument("--mpp", type=float, help="of the slide, which some readers do not find")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--share", type=float, default=1.0, help="of the tiles, from the first")
    arguments = parser.parse_args()
    prepare = _hs2p if arguments.method.startswith("hs2p-") else _reading
    take_part(prepare(arguments))


if __name__ == "__main__":
    main()
