"""How fast slides become tiles, against the floor and against the plain OpenSlide loop.

    python -m tests.benchmarks.bench_tiling [--slide FILE] [--rounds 3] [--threads 1]

Without --slide, a 40× slide in Aperio's dialect is generated (levels 1/4/16, 256 px JPEG tiles 4:2:2 quality 70). All
methods make the same tiles and take turns within each round; medians are printed as a Markdown table. "Floor" decodes
each native tile that the tiles touch once and does nothing else. "ours" is everything that ``cut_slide`` does: opening,
tissue detection, stain fit, reading, scoring, encoding, storing, thumbnail.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pyarrow.parquet as pq
from PIL import Image

from kdml_med.storage.shards import ShardWriter, sidecar_path
from kdml_med.wsi.cutter import SlideJob
from kdml_med.wsi.native import NativeSlide
from kdml_med.wsi.opening import open_slide
from kdml_med.wsi.options import TilingOptions
from kdml_med.wsi.storing import cut_slide
from kdml_med.wsi.tile_index import decode_tile
from tests.synthetic_slides import tissue_picture, write_slide

BLOCK_PX = 3000


def make_slide(path: Path, side_px: int) -> None:
    picture = np.full((side_px, side_px, 3), 243, np.uint8)
    block = tissue_picture(round(BLOCK_PX / 0.7) + 2, round(BLOCK_PX / 0.7) + 2)
    low = round(0.15 * block.shape[0]) + 1
    block = block[low : low + BLOCK_PX - 4, low : low + BLOCK_PX - 4]
    inside = picture[side_px // 6 : -side_px // 6, side_px // 6 : -side_px // 6]
    repeats = -(-inside.shape[0] // block.shape[0])
    inside[:] = np.tile(block, (repeats, repeats, 1))[: inside.shape[0], : inside.shape[1]]
    write_slide(path, picture=picture, mpp=0.252, downsamples=(1, 4, 16), photometric="ycbcr", quality=70)


def decode_floor(path: Path, tiles: pd.DataFrame, factor: int) -> None:
    slide = open_slide(path)
    assert isinstance(slide, NativeSlide), "the floor needs a pyramid of JPEG tiles"
    index = slide._indices[0]
    touched = set()
    for x, y, size in tiles[["x_l0", "y_l0", "size_l0"]].itertuples(index=False):
        columns = range(int(x) // index.width, int(x + size - 1) // index.width + 1)
        rows = range(int(y) // index.height, int(y + size - 1) // index.height + 1)
        touched |= {row * index.columns + column for row in rows for column in columns}
    for number in sorted(touched):
        decode_tile(slide._file, index, number, factor)
    slide.close()


def openslide_loop(path: Path, tiles: pd.DataFrame, out: Path, options: TilingOptions) -> None:
    with openslide.OpenSlide(path) as slide, ShardWriter(out / "loop.tar") as shard:
        for x, y, size in tiles[["x_l0", "y_l0", "size_l0"]].itertuples(index=False):
            region = slide.read_region((x, y), 0, (round(size), round(size))).convert("RGB")
            tile = region.resize((options.tile_size_px,) * 2, Image.Resampling.BICUBIC)
            stream = io.BytesIO()
            tile.save(stream, "JPEG", quality=options.jpeg_quality, subsampling=0)
            shard.add(f"{x}_{y}.jpg", stream.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--side", type=int, default=14_000, help="of the generated slide, pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        path = arguments.slide or out / "generated.svs"
        if arguments.slide is None:
            make_slide(path, arguments.side)
        options = TilingOptions()
        job = SlideJob(path, "bench", "bench")
        record = cut_slide(job, out, options)
        tiles = pq.read_table(sidecar_path(out, "bench")).to_pandas()
        plain = replace(options, reader="openslide")
        methods: dict[str, Callable[[], object]] = {
            "floor: full decode": lambda: decode_floor(path, tiles, 1),
            "floor: half decode": lambda: decode_floor(path, tiles, 2),
            "ours": lambda: cut_slide(job, out, options, threads=arguments.threads),
            "ours, reader openslide": lambda: cut_slide(job, out, plain, threads=arguments.threads),
            "OpenSlide + Pillow loop": lambda: openslide_loop(path, tiles, out, options),
        }
        seconds: dict[str, list[float]] = {name: [] for name in methods}
        for _ in range(arguments.rounds):
            for name, method in methods.items():
                start = time.perf_counter()
                method()
                seconds[name].append(time.perf_counter() - start)
    floor = statistics.median(seconds["floor: full decode"])
    print(f"{record.width_l0} × {record.height_l0} px, {record.tiles} tiles, {arguments.threads} threads for ours\n")
    print("| method | tiles/s | of full floor | spread |\n|---|---|---|---|")
    for name, times in seconds.items():
        median = statistics.median(times)
        spread = (max(times) - min(times)) / median
        print(f"| {name} | {record.tiles / median:.0f} | {floor / median:.2f} | {spread:.0%} |")


if __name__ == "__main__":
    main()
