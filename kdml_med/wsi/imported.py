"""What imports of tiles that exist have in common: rows, their splits, and the dataset folder that points to them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from kdml_med.errors import InputError
from kdml_med.keys import Split
from kdml_med.splits import check_replaceable, freeze_splits, make_splits
from kdml_med.storage.folder import DatasetFolder, list_versions
from kdml_med.storage.manifest import SLIDES_FILE, DatasetInfo, manifest_table, validate_manifest, write_info
from kdml_med.storage.shards import ShardRecord
from kdml_med.tables.columns import COARSEST_TILE_MPP, FINEST_MPP
from kdml_med.tables.names import is_tcga_normal, other_barcode
from kdml_med.words import printable, storable
from kdml_med.wsi.labelling import NORMAL_TISSUE

logger = logging.getLogger(__name__)

_SHOWN_SIZES = 3

Progress = Callable[[Sequence[Any]], Iterable[Any]]


@dataclass
class ImportResult:
    """What an import did.

    Attributes:
        tiles: rows of the manifest.
        patients: distinct patients among them.
        unlisted: images in the folder that no row of the table names; they are among the failures.
        failures: input and reason of every image that could not be used, and of rows without an image.
        same: an earlier import gave the same rows.
        unused_split: column of the table that looks like a split and was not asked for; None where there is none.
    """

    tiles: int
    patients: int
    unlisted: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    same: bool = False
    unused_split: str | None = None


def check_mpp(mpp: float | None) -> None:
    """Refuse a resolution that tiles cannot have.

    Raises:
        InputError: it is out of range.
    """
    if mpp is not None and not FINEST_MPP <= mpp <= COARSEST_TILE_MPP:
        raise InputError(
            f"--mpp is {mpp}, expected micrometres per pixel of the tiles such as 0.5, from {FINEST_MPP} to "
            f"{COARSEST_TILE_MPP:g}."
        )


def contradiction(shard: str, row: dict[str, Any], *, normals: bool) -> str:
    """Why an image cannot have the patient or the label of its row, as far as its TCGA barcode tells; "" otherwise."""
    name = Path(shard).stem
    for what, text in (("file name", name), ("slide", row["slide_id"] or "")):
        other = other_barcode(text, row["patient_id"])
        if other is not None:
            return f"the table says patient {row['patient_id']}, the {what} {other}"
    is_normal = row["label"] is not None and (is_tcga_normal(name) or is_tcga_normal(row["slide_id"] or ""))
    return NORMAL_TISSUE if is_normal and not normals else ""


def frame_of(rows: list[dict[str, Any]], failures: list[tuple[str, str]], source: Path) -> pd.DataFrame:
    """Rows of a manifest in order.

    Raises:
        InputError: there are none.
    """
    if not rows:
        reason = f"; the first of {len(failures)}, {failures[0][0]}: {failures[0][1]}" if failures else ""
        raise InputError(f"no usable image in {source}{reason}.")
    return pd.DataFrame(rows, dtype=object).sort_values("sample_id", kind="stable")


def common_side(shapes: Mapping[tuple[int, int], str]) -> int | None:
    """Side of images, pixels; None where they differ, which is said, or are no squares.

    Args:
        shapes: widths and heights in pixels, with an image of each.
    """
    (width, height), *others = shapes or [(0, 1)]
    if others:
        shown = ", ".join(f"{w} x {h} px ({printable(shapes[w, h])})" for w, h in list(shapes)[:_SHOWN_SIZES])
        more = ", …" * (len(shapes) > _SHOWN_SIZES)
        logger.info("images differ in size: %s%s; training needs --image-size", shown, more)
    return width if width == height and not others else None


def describe_import(
    source: Path,
    classes: list[str],
    side: int | None,
    mpp: float | None,
    label_level: str,
    options: dict[str, Any],
) -> DatasetInfo:
    """What dataset.json says of an import.

    Args:
        source: folder that the shards are in.
        classes: in index order.
        side: of the tiles, pixels; None where they differ or are no squares.
        mpp: micrometres per pixel; None where they differ or are unknown.
        label_level: what carries one label.
        options: of the program.
    """
    return DatasetInfo(
        classes=classes,
        tile_size_px=side,
        mpp=mpp,
        image_root=str(source),
        label_level=label_level,
        options=options,
        made_by=list_versions("preprocessing.import_tiles", ("kdml_med", "pillow")),
    )


def write_import(
    out: Path,
    info: DatasetInfo,
    frame: pd.DataFrame,
    failures: list[tuple[str, str]],
    *,
    val_fraction: float,
    seed: int,
    force: bool,
) -> ImportResult:
    """Write the dataset folder, the manifest last, so that an interrupted import is not taken for a whole one.

    Everything is made anew each time, so whatever changed in the source or the table is followed.

    Args:
        out: dataset folder; made when absent.
        info: of it.
        frame: rows of the manifest, with their "split" (None for none).
        failures: (input, reason) of what could not be used.
        val_fraction: share of the train patients that validate, where there are splits without validation.
        seed: of their choice.
        force: replace other frozen splits.

    Raises:
        InputError: splits leak or others are frozen, or the folder is in use or something else. Nothing was written.
    """
    failures = [(storable(name), storable(reason)) for name, reason in failures]
    splits = _official_splits(frame, info.classes, val_fraction, seed)
    columns = [name for name in frame.columns if name not in ("split", "image", "own")]
    names = [str(name) for name in columns]
    rows = (dict(zip(names, values, strict=True)) for values in frame[columns].itertuples(index=False, name=None))
    manifest = manifest_table(rows)
    validate_manifest(manifest, "the import")
    slides = frame.groupby("slide_id", sort=True).agg(
        patient_id=("patient_id", "first"), label=("label", "first"), site=("site", "first"), tiles=("shard", "size")
    )
    with DatasetFolder(out, info, ShardRecord, compare=lambda described: {"source": described.image_root}) as folder:
        if splits is not None:
            check_replaceable(out, splits, force=force)
        same = folder.holds(manifest)
        if not same:
            folder.withdraw_manifest()
        write_info(out, folder.info)
        if splits is not None:
            freeze_splits(out, splits, mode="official", seed=seed, force=force, val_fraction=val_fraction)
        folder.write_tables(manifest, sorted(failures), {SLIDES_FILE: slides.reset_index()})
    return ImportResult(len(frame), frame["patient_id"].nunique(), failures=failures, same=same)


def _official_splits(frame: pd.DataFrame, classes: list[str], val_fraction: float, seed: int) -> pd.DataFrame | None:
    """The split that came with the images, with validation patients from train where it has none."""
    if frame["split"].isna().all():
        return None
    splits = frame[["patient_id", "split"]].drop_duplicates().sort_values("patient_id")
    twice = splits["patient_id"][splits["patient_id"].duplicated()]
    if len(twice):
        raise InputError(f"patient {twice.iloc[0]!r} is in two splits ({len(twice)} such patients): this would leak.")
    if not 0 <= val_fraction < 1:
        raise InputError(f"--val-fraction is {val_fraction}, expected at least 0 and below 1.")
    train = splits["split"] == Split.TRAIN
    if val_fraction == 0 or not train.any() or (splits["split"] == Split.VAL).any():
        return splits
    tiles = frame[frame["split"] == Split.TRAIN]
    chosen = make_splits(tiles, classes=classes, fractions=(1 - val_fraction, val_fraction, 0.0), seed=seed)
    return pd.concat([splits[~train], chosen]).sort_values("patient_id").reset_index(drop=True)
