"""The tiles of one slide into its shard, its table and its thumbnail."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from kdml_med.storage.manifest import SHARDS_DIR, DatasetKind
from kdml_med.storage.shards import ShardWriter, shard_path, write_record
from kdml_med.wsi.cutter import CutTile, SlideCutter, SlideJob, open_cutter, tile_name
from kdml_med.wsi.options import TilingOptions
from kdml_med.wsi.overview import DETAIL_PX, NOT_DRAWN, write_thumbnail
from kdml_med.wsi.shards import SlideRecord
from kdml_med.wsi.slide import SlideError


def cut_slide(
    job: SlideJob,
    out_dir: Path,
    options: TilingOptions,
    *,
    threads: int = 1,
    on_tiles: Callable[[int], None] = lambda count: None,
) -> SlideRecord:
    """Tile one slide into its shard, its table and its thumbnail.

    Args:
        job: the slide.
        out_dir: dataset folder.
        options: of the run.
        threads: that read rows of the slide at the same time; the result does not depend on it.
        on_tiles: called with a number of tiles whenever so many more were looked at.

    Raises:
        SlideError: nothing can be made of this slide; the message says why.
        InputError: the output cannot be written.
    """
    with open_cutter(job, options, threads=threads) as cutter:
        try:
            rows = _write_shard(out_dir, cutter, cutter.tiles(on_tiles), options)
        except SlideError:
            _write_thumbnail(out_dir, cutter)  # it shows why no tile is left
            raise
        _write_thumbnail(out_dir, cutter)
    write_record(out_dir, job.slide_id, cutter.record, rows, DatasetKind.TILES)
    return cutter.record


def _write_shard(
    out_dir: Path, cutter: SlideCutter, tiles: Iterable[CutTile], options: TilingOptions
) -> list[dict[str, Any]]:
    rows = []
    with ShardWriter(shard_path(out_dir, cutter.job.slide_id)) as shard:
        for tile in tiles:
            if tile.data is not None:
                offset = shard.add(f"{tile_name(tile.candidate)}.{options.suffix}", tile.data)
                rows.append(_row(cutter, tile, offset, len(tile.data)))
    return rows


def _row(cutter: SlideCutter, tile: CutTile, offset: int, size: int) -> dict[str, Any]:
    job = cutter.job
    return {
        "sample_id": f"{job.slide_id}_{tile_name(tile.candidate)}",
        "patient_id": job.patient_id,
        "slide_id": job.slide_id,
        "label": job.label,
        "site": job.site,
        "size_l0": cutter.grid.size_l0,
        "mpp": cutter.tile_mpp,
        "shard": f"{SHARDS_DIR}/{job.slide_id}.tar",
        "offset": offset,
        "size": size,
        **vars(tile.candidate),
        **vars(tile.quality),
    }


def _write_thumbnail(out_dir: Path, cutter: SlideCutter) -> None:
    # A small slide is read once more, finer than for its tissue: enlarged, its overview would be a blur.
    overview = cutter.picture(DETAIL_PX)
    not_drawn = {(one.x_l0, one.y_l0): NOT_DRAWN for one in cutter.candidates}
    write_thumbnail(out_dir, cutter.job.slide_id, overview, cutter.grid, not_drawn | cutter.reasons)
