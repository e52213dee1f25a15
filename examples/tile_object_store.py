"""Tile slides of an object store: a few at a time are fetched, tiled and removed again.

python examples/tile_object_store.py s3://archive/crc /scratch/slides data/crc

Any address that fsspec knows will do (s3:// needs the package s3fs, gs:// gcsfs, abfs:// adlfs). Only slides of
one file each. The same command goes on where it was cut off.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from itertools import islice
from pathlib import Path, PurePosixPath

import fsspec

from kdml_med.errors import ExitCode
from kdml_med.tables.labels import LabelTable
from kdml_med.tables.names import slide_name
from kdml_med.wsi.options import TilingOptions
from kdml_med.wsi.tiler import tile_slides

SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".scn", ".bif")


def tile_object_store(
    url: str,
    scratch: Path,
    out: Path,
    options: TilingOptions,
    *,
    labels: LabelTable | None = None,
    at_a_time: int = 16,
    workers: int = 1,
    scheduler: str | None = None,
) -> dict[str, str]:
    """Tile every slide below an address into one dataset folder.

    Args:
        url: folder in the store.
        scratch: folder for the slides in work; emptied. With a scheduler all workers have to see it.
        out: dataset folder.
        options: of all slides.
        labels: patients and labels.
        at_a_time: slides that are fetched before they are tiled; all tables are written anew after each such group, and
            failures.csv keeps what it says of others.
        workers: cores to use.
        scheduler: address of a Dask scheduler.

    Returns:
        Why slides could not be used, by file name, or by path where several have one name.
    """
    store, folder = fsspec.core.url_to_fs(url)
    slides = sorted(path for path in store.find(folder) if PurePosixPath(path).suffix.lower() in SUFFIXES)
    finished = {path.stem for path in (out / "shards").glob("*.parquet")}
    # Slides are told apart by their names; in the scratch folder one would go over the other.
    shared = {name for name, times in Counter(map(slide_name, slides)).items() if times > 1}
    failures = {path: "another slide has this name, too: rename one" for path in slides if slide_name(path) in shared}
    waiting = iter([path for path in slides if slide_name(path) not in shared | finished])
    while group := list(islice(waiting, at_a_time)):
        scratch.mkdir(parents=True, exist_ok=True)
        try:
            for path in group:
                store.get_file(path, str(scratch / PurePosixPath(path).name))
            report = tile_slides(
                [scratch], out, options, labels=labels, workers=workers, scheduler=scheduler, keep=True
            )
        finally:
            shutil.rmtree(scratch)
        failures |= dict(report.failures)
    return failures


if __name__ == "__main__":
    failed = tile_object_store(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), TilingOptions())
    for name, reason in failed.items():
        print(f"{name}: {reason}")
    raise SystemExit(int(ExitCode.SOME_FAILED if failed else ExitCode.OK))
