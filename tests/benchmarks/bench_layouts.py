"""How much of the time is the codec's, for each way that slides store their tiles.

    python -m tests.benchmarks.bench_layouts [--side 12000] [--rounds 3] [--layout NAME …]

Slides of the same pixels are generated in every one of ``LAYOUTS``. "Codec" decodes each stored tile that is needed
once, at the size that the tiler decodes it at, and encodes each tile that is kept; "whole" is all that ``cut_slide``
does; the loop is OpenSlide's ``read_region`` with Pillow. Milliseconds of CPU for each tile, the least of the rounds,
in which they take turns.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pyarrow.parquet as pq
from PIL import Image

from kdml_med.storage.shards import ShardWriter, sidecar_path
from kdml_med.wsi.cutter import SlideJob, encode_tile
from kdml_med.wsi.grid import choose_plane
from kdml_med.wsi.native import NativeSlide
from kdml_med.wsi.opening import open_slide
from kdml_med.wsi.options import TilingOptions
from kdml_med.wsi.storing import cut_slide
from kdml_med.wsi.tile_index import decode_tile
from tests.synthetic_slides import GLASS, LAYOUTS, Pixels, tissue_picture, write_layout

MPP = 0.25  # of the slides
BLOCK_PX = 3000
OPTIONS = TilingOptions()


def make_picture(side_px: int) -> Pixels:
    whole = tissue_picture(round(BLOCK_PX / 0.7) + 2, round(BLOCK_PX / 0.7) + 2)
    low = round(0.15 * len(whole)) + 1
    block = whole[low : low + BLOCK_PX - 4, low : low + BLOCK_PX - 4]
    picture = np.full((side_px, side_px, 3), GLASS, np.uint8)
    inside = picture[side_px // 6 : -side_px // 6, side_px // 6 : -side_px // 6]
    repeats = -(-len(inside) // len(block))
    inside[:] = np.tile(block, (repeats, repeats, 1))[: len(inside), : len(inside)]
    return picture


def run_codec(slide: NativeSlide, tiles: pd.DataFrame, picture: Pixels) -> None:
    downsamples = [level.downsample for level in slide.levels]
    factors = [slide.factors(level) for level in range(len(downsamples))]
    plan = choose_plane(downsamples, factors, slide_mpp=MPP, mpp=OPTIONS.mpp)
    index = slide._indices[plan.level]
    touched = set()
    for x, y, size in tiles[["x_l0", "y_l0", "size_l0"]].itertuples(index=False):
        (left, top), (right, bottom) = (
            (int(v / downsamples[plan.level]) for v in p) for p in ((x, y), (x + size - 1, y + size - 1))
        )
        for row in range(top // index.height, bottom // index.height + 1):
            touched |= {row * index.columns + c for c in range(left // index.width, right // index.width + 1)}
    for number in sorted(touched):
        decode_tile(slide._file, index, number, plan.factor)
    middle = len(picture) // 2
    side = OPTIONS.tile_size_px
    tile = np.asarray(Image.fromarray(picture[middle : middle + 2 * side, middle : middle + 2 * side]).reduce(2))
    for _ in range(len(tiles)):
        encode_tile(tile, OPTIONS)


def run_loop(path: Path, tiles: pd.DataFrame, out: Path) -> None:
    with openslide.OpenSlide(path) as slide, ShardWriter(out / "loop.tar") as shard:
        for x, y, size in tiles[["x_l0", "y_l0", "size_l0"]].itertuples(index=False):
            region = slide.read_region((x, y), 0, (round(size), round(size))).convert("RGB")
            stream = io.BytesIO()
            tile = region.resize((OPTIONS.tile_size_px,) * 2, Image.Resampling.BICUBIC)
            tile.save(stream, "JPEG", quality=OPTIONS.jpeg_quality, subsampling=0)
            shard.add(f"{x}_{y}.jpg", stream.getvalue())


def cpu_seconds(method: Callable[[], object]) -> float:
    start = time.process_time()
    try:
        method()
    except openslide.OpenSlideError:
        return float("nan")  # not for OpenSlide
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=12_000, help="of the generated slides, pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layout", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS))
    arguments = parser.parse_args()
    picture = make_picture(arguments.side)
    print(
        "| stored as | tiles | codec, ms | whole, ms | share of the codec | times the loop |\n|---|---|---|---|---|---|"
    )
    for layout in arguments.layout:
        with tempfile.TemporaryDirectory() as folder:
            out, path = Path(folder), Path(folder) / "slide.tif"
            write_layout(path, layout, picture, downsamples=(1, 4, 16))
            job = SlideJob(path, "bench", "bench")
            cut_slide(job, out, OPTIONS)
            tiles = pq.read_table(sidecar_path(out, "bench")).to_pandas()
            slide = open_slide(path)
            assert isinstance(slide, NativeSlide)
            methods = (
                partial(run_codec, slide, tiles, picture),
                partial(cut_slide, job, out, OPTIONS),
                partial(run_loop, path, tiles, out),
            )
            rounds = [[cpu_seconds(method) for method in methods] for _ in range(arguments.rounds)]
            codec, whole, loop = np.min(rounds, axis=0) / len(tiles) * 1e3
            slide.close()
        print(
            f"| {layout} | {len(tiles)} | {codec:.2f} | {whole:.2f} | {codec / whole:.2f} | {loop / whole:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
