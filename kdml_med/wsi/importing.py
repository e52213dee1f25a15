"""Datasets from tiles that exist already: nothing is copied, the manifest points into the source folder.

Two layouts: ``kather``, class folders inside train and test folders with TCGA barcodes in the file names, as in Zenodo
record 2530835; and ``csv``, any folder with a table that has one row per image.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import PIL
from PIL import Image

import kdml_med
from kdml_med.errors import InputError
from kdml_med.keys import Split
from kdml_med.splits import check_replaceable, freeze_splits, make_splits
from kdml_med.storage.files import content_hash, write_table
from kdml_med.storage.manifest import (
    DATASET_FILE,
    FAILURES_FILE,
    MANIFEST_FILE,
    SLIDES_FILE,
    DatasetInfo,
    manifest_table,
    read_info,
    write_info,
    write_manifest,
)
from kdml_med.tables.images import TableColumns, read_image_table
from kdml_med.tables.labels import LabelLevel, parse_labels
from kdml_med.tables.names import tcga_site

KATHER_MPP = 0.5  # Zenodo 2530835: 224 px are 112 µm
_IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})
_FORMATS = ("PNG", "JPEG")
_PART_FOLDER = re.compile(r"^(?:(?P<cohort>.+?)[_-])?(?P<part>train|test)(?:[_-](?P<label>.+))?$", re.IGNORECASE)
_BARCODE = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?![A-Za-z0-9])")
Progress = Callable[[Sequence[Any]], Iterable[Any]]


@dataclass
class ImportResult:
    """What an import did.

    Attributes:
        tiles: rows of the manifest.
        patients: distinct patients among them.
        unlisted: images in the folder that the table does not name; they are left out, which is not a failure.
        failures: input and reason of every image that was asked for and could not be used.
    """

    tiles: int
    patients: int
    unlisted: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)


def import_tile_folders(
    source: Path,
    out: Path,
    *,
    cohort: str | None = None,
    classes: Sequence[str] | None = None,
    mpp: float | None = KATHER_MPP,
    val_fraction: float = 0.15,
    seed: int = 0,
    check_images: bool = False,
    force: bool = False,
    progress: Progress = iter,
) -> ImportResult:
    """Import class folders, such as CRC_DX_TRAIN/MSIMUT, whose file names carry TCGA barcodes.

    The train and test folders stay the split; validation patients are taken from train, stratified by label. A source
    that holds class folders directly has no official split, and none is written.

    Args:
        source: folder with <cohort>_TRAIN and <cohort>_TEST (or train and test), or with class folders.
        out: dataset folder to write.
        cohort: the part before _TRAIN; needed when the source holds several.
        classes: two class names, positive last; None takes MSS and MSI, or the two folder names, sorted.
        mpp: micrometres per pixel of the tiles.
        val_fraction: share of the train patients that validate; 0 for none.
        seed: of their choice.
        check_images: parse the header of every image, not only of the first.
        force: replace other frozen splits.
        progress: wraps the list of images to show progress.

    Raises:
        InputError: no such folders, a patient with two labels or in train and test, or no usable image.
    """
    source = _existing_folder(source)
    folders = _class_folders(source, cohort)
    labels, names = parse_labels(folders["label"], classes, where=f"the class folders of {source}")
    rows: list[dict[str, Any]] = []
    failures: list[tuple[str, str]] = []
    images = [
        (shard, size, label, split)
        for path, label, split in zip(folders["path"], labels, folders["split"], strict=True)
        for shard, size in _scan(path, source)
    ]
    side: int | None = None
    for shard, size, label, split in progress(sorted(images)):
        found = _BARCODE.search(Path(shard).stem)
        reason = _name_problem(shard, size)
        if found is None:
            reason = reason or "no TCGA barcode in the file name; for other names use --layout csv with a table"
        if not reason and (check_images or side is None):
            shape, reason = _read_header(source / shard)
            side = side or (shape[0] if shape and shape[0] == shape[1] else None)
        if reason or found is None:
            failures.append((shard, reason or ""))
            continue
        patient = found.group()
        row = {"sample_id": shard, "patient_id": patient, "slide_id": Path(shard).stem[found.start() :], "label": label}
        rows.append(row | {"site": tcga_site(patient), "mpp": mpp, "shard": shard, "offset": 0, "size": size})
        rows[-1]["split"] = split
    options = {"layout": "kather", "cohort": cohort}
    info = _info(source, names, side, mpp, "patient", options)
    frame = _frame(rows, failures, source)
    _check_folder_patients(frame)
    return _write(out, info, frame, failures, val_fraction=val_fraction, seed=seed, force=force)


def import_tile_table(
    source: Path,
    out: Path,
    table: Path,
    *,
    columns: TableColumns | None = None,
    where: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
    label_level: LabelLevel = "patient",
    mpp: float | None = None,
    val_fraction: float = 0.15,
    seed: int = 0,
    force: bool = False,
    progress: Progress = iter,
) -> ImportResult:
    """Import the images that a table names, one row per image; the header of each is parsed.

    An image is found by its path below the source, else by its file name, else by its name without suffix. Without a
    slide column each image is its own slide at label level "slide", and a patient is one slide at level "patient".

    Args:
        source: folder with PNG or JPEG images, at any depth.
        out: dataset folder to write.
        table: CSV or TSV file.
        columns: names of its columns. With a split column the split is kept; validation patients are taken from train
            when the column has none.
        where: column → value; only rows that have all of them are taken.
        classes: two class names, positive last; None as for ``read_labels``.
        label_level: what carries one label.
        mpp: micrometres per pixel of the images, where the table has no such column.
        val_fraction: share of the train patients that validate, where it is needed.
        seed: of their choice.
        force: replace other frozen splits.
        progress: wraps the list of rows to show progress.

    Raises:
        InputError: a column or row of the table is unusable (the message names it), or no image is.
    """
    source = _existing_folder(source)
    listed, names = read_image_table(table, columns or TableColumns(), where or {}, classes, label_level)
    sizes = dict(_scan(source, source))
    index = _index_names(sizes)
    rows: list[dict[str, Any]] = []
    failures: list[tuple[str, str]] = []
    shapes: set[tuple[int, int]] = set()
    first_row: dict[str, int] = {}
    for number, row in progress(list(zip(listed.index, listed.to_dict("records"), strict=True))):
        shards = _find_image(row["image"], index)
        if len(shards) != 1:
            reason = f"its name fits {len(shards)} files, such as {shards[:2]}" if shards else f"not found in {source}"
            failures.append((row["image"], f"row {number}: {reason}"))
            continue
        shard = shards[0]
        if shard in first_row:
            raise InputError(f"{table}: rows {first_row[shard]} and {number} name the same image {shard}. Keep one.")
        first_row[shard] = number
        reason = _name_problem(shard, sizes[shard])
        shape = None
        if not reason:
            shape, reason = _read_header(source / shard)
        if shape is None:
            failures.append((row["image"], f"row {number}: {reason}"))
            continue
        shapes.add(shape)
        slide = row["slide_id"] or (row["patient_id"] if label_level == "patient" else shard.rsplit(".", 1)[0])
        resolution = mpp if row["mpp"] is None else row["mpp"]
        place = {"sample_id": shard, "slide_id": slide, "mpp": resolution, "shard": shard, "offset": 0}
        rows.append(row | place | {"size": sizes[shard]})
    frame = _frame(rows, failures, source)
    resolutions = set(frame["mpp"].dropna())
    common = resolutions.pop() if len(resolutions) == 1 and frame["mpp"].notna().all() else None
    width, height = shapes.pop() if len(shapes) == 1 else (0, 1)
    options = {"layout": "csv", "table": Path(table).name, "table_sha256": content_hash(Path(table))}
    options["where"] = " and ".join(f"{name}={value}" for name, value in (where or {}).items())
    info = _info(source, names, width if width == height else None, common, label_level, options)
    result = _write(out, info, frame, failures, val_fraction=val_fraction, seed=seed, force=force)
    result.unlisted = len(sizes) - len(first_row)
    return result


def _existing_folder(source: Path) -> Path:
    if not Path(source).is_dir():
        raise InputError(f"{source} is not a folder; expected the folder that holds the images.")
    return Path(source).resolve()


def _class_folders(source: Path, cohort: str | None) -> pd.DataFrame:
    """Columns path, label (folder name) and split ("train", "test" or None); sorted by path."""
    children = sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
    parts = [(path, found) for path in children if (found := _PART_FOLDER.match(path.name))]
    cohorts = sorted({found["cohort"] or "" for _, found in parts})
    if cohort is not None and cohort not in cohorts:
        raise InputError(
            f"{source} has no folders {cohort}_TRAIN and {cohort}_TEST; found {[p.name for p in children]}."
        )
    if cohort is None and len(cohorts) > 1:
        raise InputError(f"{source} holds several cohorts, {cohorts}: name one with --cohort.")
    chosen = [(path, found) for path, found in parts if cohort is None or (found["cohort"] or "") == cohort]
    if chosen and len({found["part"].lower() for _, found in chosen}) == 1:
        raise InputError(
            f"{source} has {[path.name for path, _ in chosen]} but not its counterpart; expected a train and a test "
            "folder. To import one of them without an official split, give that folder as the source."
        )
    rows: list[tuple[Path, str, str | None]] = []
    for path, found in chosen:
        split = found["part"].lower()
        inner = [(path, found["label"])] if found["label"] else [(sub, sub.name) for sub in _subfolders(path)]
        rows += [(folder, label, split) for folder, label in inner]
    if not chosen:
        rows = [(path, path.name, None) for path in children]
    if not rows:
        raise InputError(f"{source} holds no class folders; expected such as CRC_DX_TRAIN/MSIMUT or MSIMUT and MSS.")
    return pd.DataFrame(rows, columns=["path", "label", "split"], dtype=object)


def _subfolders(path: Path) -> list[Path]:
    return sorted(sub for sub in path.iterdir() if sub.is_dir() and not sub.name.startswith("."))


def _scan(folder: Path, source: Path) -> list[tuple[str, int]]:
    """Path below the source, "/" as separator, and size in bytes of every image file; sorted."""
    found: list[tuple[str, int]] = []
    pending = [(str(folder), "" if folder == source else folder.relative_to(source).as_posix() + "/")]
    seen: set[tuple[int, int]] = set()
    while pending:
        path, prefix = pending.pop()
        state = Path(path).stat()
        if (state.st_dev, state.st_ino) in seen:
            continue  # a link back to a folder above it
        seen.add((state.st_dev, state.st_ino))
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    pending.append((entry.path, f"{prefix}{entry.name}/"))
                elif os.path.splitext(entry.name)[1].lower() in _IMAGE_SUFFIXES:  # noqa: PTH122 - ten times as fast
                    size = entry.stat().st_size if entry.is_file() else 0
                    found.append((prefix + entry.name, size))
    return sorted(found)


def _index_names(shards: Iterable[str]) -> dict[str, list[str]]:
    """Files by path, by name, and by either without suffix."""
    index: dict[str, list[str]] = {}
    for shard in shards:
        name = shard.rsplit("/", 1)[-1]
        for key in {shard, name, shard.rsplit(".", 1)[0], name.rsplit(".", 1)[0]}:
            index.setdefault(key, []).append(shard)
    return index


def _find_image(name: str, index: Mapping[str, list[str]]) -> list[str]:
    path = name.replace("\\", "/").removeprefix("./")
    found = index.get(path) or index.get(path.rsplit("/", 1)[-1]) or []
    return [path] if path in found else found


def _name_problem(shard: str, size: int) -> str:
    if not shard.lower().endswith((".png", ".jpg", ".jpeg")):
        return "not PNG or JPEG; convert it"
    return "the file is empty or a broken link" if size == 0 else ""


def _read_header(path: Path) -> tuple[tuple[int, int] | None, str]:
    """Width and height in pixels, or None and what is wrong."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return image.size, ""
    except PIL.UnidentifiedImageError:
        return None, "its header is not that of a PNG or JPEG image"
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        return None, f"cannot be read: {error}"


def _frame(rows: list[dict[str, Any]], failures: list[tuple[str, str]], source: Path) -> pd.DataFrame:
    if not rows:
        reason = f"; the first of {len(failures)}, {failures[0][0]}: {failures[0][1]}" if failures else ""
        raise InputError(f"no usable image in {source}{reason}.")
    return pd.DataFrame(rows, dtype=object).sort_values("sample_id", kind="stable")


def _check_folder_patients(frame: pd.DataFrame) -> None:
    for column, problem in (("label", "has tiles of the classes"), ("split", "is in the folders")):
        values = frame.groupby("patient_id")[column].unique()
        several = values[values.map(len) > 1]
        if len(several):
            shards = [
                frame["shard"][(frame["patient_id"] == several.index[0]) & (frame[column] == value)].iloc[0]
                for value in several.iloc[0]
            ]
            raise InputError(
                f"patient {several.index[0]!r} {problem} {sorted(several.iloc[0])} ({len(several)} such patients): "
                f"{' and '.join(shards)}. A patient needs one label and one side of the split."
            )


def _info(
    source: Path,
    classes: list[str],
    side: int | None,
    mpp: float | None,
    label_level: str,
    options: dict[str, Any],
) -> DatasetInfo:
    return DatasetInfo(
        classes=classes,
        tile_size_px=side,
        mpp=mpp,
        image_root=str(source),
        label_level=label_level,
        options=options,
        made_by={
            "program": "preprocessing.import_tiles",
            "kdml_med": kdml_med.__version__,
            "pillow": PIL.__version__,
        },
    )


def _write(
    out: Path,
    info: DatasetInfo,
    frame: pd.DataFrame,
    failures: list[tuple[str, str]],
    *,
    val_fraction: float,
    seed: int,
    force: bool,
) -> ImportResult:
    """Write the dataset folder; dataset.json last, so that an interrupted import is not taken for a whole one."""
    splits = _official_splits(frame, info.classes, val_fraction, seed)
    if (out / DATASET_FILE).is_file():
        present = read_info(out)
        if present.image_root != info.image_root:
            raise InputError(f"{out} holds a dataset of {present.image_root}; choose another folder for this one.")
        info.splits = present.splits
        if splits is not None:
            check_replaceable(out, splits, force=force)
    columns = [name for name in frame.columns if name not in ("split", "image")]
    names = [str(name) for name in columns]
    rows = (dict(zip(names, values, strict=True)) for values in frame[columns].itertuples(index=False, name=None))
    write_manifest(out / MANIFEST_FILE, manifest_table(rows))
    slides = frame.groupby("slide_id", sort=True).agg(
        patient_id=("patient_id", "first"), label=("label", "first"), site=("site", "first"), tiles=("shard", "size")
    )
    write_table(out / SLIDES_FILE, slides.reset_index())
    write_table(out / FAILURES_FILE, pd.DataFrame(sorted(failures), columns=["input", "reason"]))
    write_info(out, info)
    if splits is not None:
        freeze_splits(out, splits, mode="official", seed=seed, force=force, val_fraction=val_fraction)
    return ImportResult(len(frame), frame["patient_id"].nunique(), failures=failures)


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
    if val_fraction == 0 or (splits["split"] == Split.VAL).any():
        return splits
    train = splits["split"] == Split.TRAIN
    tiles = frame[frame["split"] == Split.TRAIN]
    chosen = make_splits(tiles, classes=classes, fractions=(1 - val_fraction, val_fraction, 0.0), seed=seed)
    return pd.concat([splits[~train], chosen]).sort_values("patient_id").reset_index(drop=True)
