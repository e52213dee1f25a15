"""The floors, the tiler and the plain loop, each as a process that takes part in a race; see ``bench_tiling``.

python -m tests.benchmarks.tiling_methods METHOD --slide FILE --tiles FILE --out DIR [--part 0] [--parts 1] …
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pyarrow.parquet as pq
import simplejpeg
from PIL import Image

from kdml_med.storage.manifest import read_member
from kdml_med.storage.shards import ShardWriter, sidecar_path
from kdml_med.wsi import cutter
from kdml_med.wsi.cutter import SlideJob
from kdml_med.wsi.native import NativeSlide
from kdml_med.wsi.opening import open_slide
from kdml_med.wsi.options import TilingOptions
from kdml_med.wsi.storing import cut_slide
from kdml_med.wsi.tile_index import decode_tile
from tests.benchmarks.racing import take_part

REFERENCE = "reference"
_PIXELS = "pixels.npy"  # uint8, [tiles, height, width, 3]
PLAIN_QUALITY = 90
"""The encoder of the plain loop as it is usually written: Pillow's JPEG, quality 90, its default 4:2:0."""


def cut_reference(slide: Path, out: Path) -> int:
    """All tiles without loss: where they are, and what the floors have to encode; returns their number."""
    cut_slide(SlideJob(slide, REFERENCE, REFERENCE), out, TilingOptions(image_format="png"))
    rows = pq.read_table(sidecar_path(out, REFERENCE), columns=["shard", "offset", "size"]).to_pylist()
    files = (io.BytesIO(read_member(out, row["shard"], row["offset"], row["size"])) for row in rows)
    np.save(out / _PIXELS, np.stack([np.asarray(Image.open(file)) for file in files]))
    return len(rows)


def tile_places(tiles: Path) -> list[tuple[int, int, float]]:
    """(x_l0, y_l0, size_l0) of the tiles of a reference, in reading order."""
    table = pq.read_table(sidecar_path(tiles, REFERENCE), columns=["x_l0", "y_l0", "size_l0"])
    return list(zip(*(table[name].to_pylist() for name in ("x_l0", "y_l0", "size_l0")), strict=True))


def _encode_plain(tile: np.ndarray[Any, np.dtype[np.uint8]], options: TilingOptions) -> bytes:
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(tile), PLAIN_QUALITY, "RGB", "420"))


def _options(encoder: str) -> TilingOptions:
    """Settings for an encoder: ours by default, "png", or "plain", that of the plain loop."""
    if encoder == "plain":
        cutter.encode_tile = _encode_plain
    return TilingOptions(image_format="png" if encoder == "png" else "jpeg")


def _floor(arguments: argparse.Namespace) -> Callable[[], float]:
    """Decode each native tile that the tiles touch once, and encode the stored tiles; nothing else."""
    factor = arguments.factor
    slide = open_slide(arguments.slide)
    assert isinstance(slide, NativeSlide), "the floor needs a pyramid of JPEG tiles"
    index, file = slide._indices[0], slide._file
    places = tile_places(arguments.tiles)
    touched = set()
    for x, y, size in places:
        columns = range(x // index.width, int(x + size - 1) // index.width + 1)
        rows = range(y // index.height, int(y + size - 1) // index.height + 1)
        touched |= {row * index.columns + column for row in rows for column in columns}
    needed = _part(sorted(touched), arguments)
    options = _options(arguments.encoder)
    pixels = []
    if arguments.encode:
        pixels = [tile.copy() for tile in _part(np.load(arguments.tiles / _PIXELS, mmap_mode="r"), arguments)]

    def work() -> float:
        for number in needed:
            decode_tile(file, index, number, factor)
        for tile in pixels:
            cutter.encode_tile(tile, options)
        return len(_part(places, arguments))

    return work


def _ours(arguments: argparse.Namespace) -> Callable[[], float]:
    """All that the tiler does with a slide, in a process that has tiled one before."""
    options = _options(arguments.encoder)
    cut_slide(
        SlideJob(arguments.warm_up, f"warm_{arguments.part}", "warm"), arguments.out, options, threads=arguments.threads
    )
    job = SlideJob(arguments.slide, f"ours_{arguments.part}", "bench")
    return lambda: cut_slide(job, arguments.out, options, threads=arguments.threads).tiles


def _command(arguments: argparse.Namespace) -> Callable[[], float]:
    """The whole command, with the start of Python and all imports."""
    out = arguments.out / "command"
    line = [sys.executable, "-m", "kdml_med.cli", "tile", str(arguments.slide), "--out", str(out)]
    places = tile_places(arguments.tiles)

    def work() -> float:
        done = subprocess.run([*line, "--workers", str(arguments.threads)], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr.strip() or done.stdout.strip())
        return len(places)

    return work


def _loop(arguments: argparse.Namespace) -> Callable[[], float]:
    """What one writes without a library for tiling: OpenSlide, Pillow, one file after the other."""
    options = _options("default")
    places = _part(tile_places(arguments.tiles), arguments)
    slide = openslide.OpenSlide(arguments.slide)
    shard = ShardWriter(arguments.out / f"loop_{arguments.part}.tar")
    settings: dict[str, Any] = {
        "default": {"format": "JPEG", "quality": options.jpeg_quality, "subsampling": 0},
        "plain": {"format": "JPEG", "quality": PLAIN_QUALITY},
        "png": {"format": "PNG"},
    }[arguments.encoder]

    def work() -> float:
        with shard as archive:
            for x, y, size in places:
                region = slide.read_region((x, y), 0, (round(size), round(size))).convert("RGB")
                tile = region.resize((options.tile_size_px,) * 2, Image.Resampling.BICUBIC)
                stream = io.BytesIO()
                tile.save(stream, **settings)
                archive.add(f"{x}_{y}.{settings['format'].lower()}", stream.getvalue())
        return len(places)

    return work


def _part(items: Any, arguments: argparse.Namespace) -> Any:
    """The neighbouring items that this process has to do, of the first ``share`` of all."""
    count = round(len(items) * arguments.share)
    return items[count * arguments.part // arguments.parts : count * (arguments.part + 1) // arguments.parts]


METHODS = {"floor": _floor, "ours": _ours, "command": _command, "loop": _loop}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that the peers have too."""
    parser.add_argument("method")
    parser.add_argument("--slide", type=Path, required=True)
    parser.add_argument("--tiles", type=Path, required=True, help="reference dataset")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--share", type=float, default=1.0, help="of the tiles, from the first")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--encoder", choices=("default", "plain", "png"), default="default")
    parser.add_argument("--encode", action="store_true", help="the floor encodes too")
    parser.add_argument("--factor", type=int, default=2, help="that the floor reduces by")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--warm-up", type=Path, help="small slide")
    arguments = parser.parse_args()
    take_part(METHODS[arguments.method](arguments))


if __name__ == "__main__":
    main()
