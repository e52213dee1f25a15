"""The demo cohorts as dataset folders, made on first use."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from kdml_med.colonoscopy.options import FrameOptions
from kdml_med.colonoscopy.preparing import prepare_frames
from kdml_med.demo.clips import ANNOTATIONS_FILE, FRAMES, SEQUENCES, write_demo_clips
from kdml_med.demo.slides import PATIENTS, write_demo_cohort
from kdml_med.errors import InputError
from kdml_med.splits import DEFAULT_FRACTIONS, freeze_splits, make_splits
from kdml_med.storage.manifest import DATASET_FILE, DatasetKind, read_info, read_manifest
from kdml_med.tables.labels import read_labels
from kdml_med.wsi.options import TilingOptions
from kdml_med.wsi.tiler import tile_slides

logger = logging.getLogger(__name__)

# The field of view is that of the public MSI tiles (112 µm); the resolution is coarse so that a CPU trains in minutes.
TILE_SIZE_PX = 64
MPP = 1.75
TILES_PER_SLIDE = 16
FRACTIONS = (0.5, 0.2, 0.3)
"""Of the patients for training, validation and test: curves and figures of few patients would jump."""
# About half the pixels of the generated pictures, for the same reason; the shortest side of a polyp is then 10 px.
FRAME_SIZE_PX = 192
LEAST_BOX_PX = 8.0
_SHOWN = {DatasetKind.TILES: "slides", DatasetKind.FRAMES: "colonoscopy-like clips"}


def ensure_demo_dataset(dataset_dir: Path, *, patients: int = PATIENTS, seed: int = 0, workers: int = 2) -> None:
    """Make the demo dataset of tiles unless it is there: slides, tiles and frozen splits.

    Can be interrupted at any point and called again.

    Raises:
        InputError: the folder holds a dataset that is not the demo, or a generated slide could not be tiled.
    """

    def prepare(slides_dir: Path) -> list[tuple[str, str]]:
        write_demo_cohort(slides_dir, patients=patients, seed=seed)
        labels = read_labels(slides_dir / "labels.csv")
        options = TilingOptions(mpp=MPP, tile_size_px=TILE_SIZE_PX, limit_tiles=TILES_PER_SLIDE)
        slides = sorted((slides_dir / "slides").glob("*.svs"))
        return tile_slides(slides, dataset_dir, options, labels=labels, workers=workers, synthetic=True).failures

    _ensure(dataset_dir, DatasetKind.TILES, "slides", prepare, seed, FRACTIONS)


def ensure_demo_frames(
    dataset_dir: Path, *, sequences: int = SEQUENCES, frames: int = FRAMES, seed: int = 0, workers: int = 2
) -> None:
    """Make the demo dataset of colonoscopy frames unless it is there: clips, frames with boxes and frozen splits.

    Can be interrupted at any point and called again.

    Raises:
        InputError: the folder holds a dataset that is not the demo, or a generated frame could not be used.
    """

    def prepare(clips_dir: Path) -> list[tuple[str, str]]:
        write_demo_clips(clips_dir, sequences=sequences, frames=frames, seed=seed, workers=workers)
        options = FrameOptions(size_px=FRAME_SIZE_PX, min_box_px=LEAST_BOX_PX)
        images, annotations = [clips_dir / "frames"], clips_dir / ANNOTATIONS_FILE
        return prepare_frames(images, dataset_dir, options, annotations, workers=workers, synthetic=True).failures

    _ensure(dataset_dir, DatasetKind.FRAMES, "clips", prepare, seed, DEFAULT_FRACTIONS)


def _ensure(
    dataset_dir: Path,
    kind: DatasetKind,
    what: str,
    prepare: Callable[[Path], list[tuple[str, str]]],
    seed: int,
    fractions: tuple[float, float, float],
) -> None:
    """Make a demo dataset unless it is there.

    Args:
        dataset_dir: folder of the dataset.
        kind: of its rows.
        what: is generated, in a folder of this name beside the dataset.
        prepare: fills both folders, from the path of the generated one; gives what could not be used.
        seed: of the splits.
        fractions: of the patients for training, validation and test.
    """
    if _is_finished(dataset_dir, kind):
        return
    _announce(dataset_dir, _SHOWN[kind])
    raw_dir = dataset_dir.with_name(f"{dataset_dir.name}_{what}")
    failures = prepare(raw_dir)
    if failures:
        raise InputError(f"demo {what} could not be used: {failures}. Remove {raw_dir} and try again.")
    classes = read_info(dataset_dir).classes
    splits = make_splits(read_manifest(dataset_dir), classes=classes, fractions=fractions, seed=seed)
    freeze_splits(dataset_dir, splits, mode="fractions", seed=seed, fractions=list(fractions))


def _is_finished(dataset_dir: Path, kind: DatasetKind) -> bool:
    """Whether the demo of this kind is there with its splits.

    Raises:
        InputError: another dataset is.
    """
    if not (dataset_dir / DATASET_FILE).is_file():
        return False
    info = read_info(dataset_dir)
    if not info.synthetic or info.kind != kind:
        raise InputError(
            f"{dataset_dir} is the place of the demo cohort of {kind.value}, but holds another dataset: move it away."
        )
    return info.splits is not None


def _announce(dataset_dir: Path, what: str) -> None:
    print(
        f"The default dataset is the built-in demo cohort of generated {what}. It shows that the pipeline\n"
        f"works; its figures say nothing about accuracy. Making it once in {dataset_dir} (about a minute) ...",
        flush=True,
    )
