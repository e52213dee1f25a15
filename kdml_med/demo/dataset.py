"""The demo cohort as a dataset folder, made on first use."""

from __future__ import annotations

import logging
from pathlib import Path

from kdml_med.demo.slides import write_demo_cohort
from kdml_med.errors import InputError
from kdml_med.labels import read_labels
from kdml_med.manifest import DATASET_FILE, read_info, read_manifest
from kdml_med.splits import freeze_splits, make_splits
from kdml_med.wsi.options import TilingOptions
from kdml_med.wsi.tiler import tile_slides

logger = logging.getLogger(__name__)

# The field of view is that of the public MSI tiles (112 µm); the resolution is coarse so that a CPU trains in minutes.
TILE_SIZE_PX = 64
MPP = 1.75
TILES_PER_SLIDE = 24


def ensure_demo_dataset(dataset_dir: Path, *, patients: int = 36, seed: int = 0, workers: int = 2) -> None:
    """Make the demo dataset unless it is there: slides, tiles and frozen splits.

    Can be interrupted at any point and called again.

    Raises:
        InputError: the folder holds a dataset that is not the demo, or a generated slide could not be tiled.
    """
    if (dataset_dir / DATASET_FILE).is_file():
        info = read_info(dataset_dir)
        if not info.synthetic:
            raise InputError(f"{dataset_dir} is the place of the demo cohort, but holds another dataset: move it away.")
        if info.splits is not None:
            return
    print(
        "The default dataset is the built-in demo cohort of generated slides. It shows that the pipeline\n"
        f"works; its figures say nothing about accuracy. Making it once in {dataset_dir} (about a minute) ...",
        flush=True,
    )
    slides_dir = dataset_dir.with_name(dataset_dir.name + "_slides")
    write_demo_cohort(slides_dir, patients=patients, seed=seed)
    labels = read_labels(slides_dir / "labels.csv")
    options = TilingOptions(mpp=MPP, tile_size_px=TILE_SIZE_PX, limit_tiles=TILES_PER_SLIDE)
    slides = sorted((slides_dir / "slides").glob("*.svs"))
    report = tile_slides(slides, dataset_dir, options, labels=labels, workers=workers, synthetic=True)
    if report.failures:
        raise InputError(f"demo slides could not be tiled: {report.failures}. Remove {slides_dir} and try again.")
    manifest = read_manifest(dataset_dir)
    splits = make_splits(manifest, classes=read_info(dataset_dir).classes, seed=seed)
    freeze_splits(dataset_dir, splits, mode="fractions", seed=seed)
