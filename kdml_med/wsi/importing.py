"""Datasets from tiles that exist already: nothing is copied, the manifest points into the source folder.

Two layouts: ``kather``, class folders inside train and test folders with TCGA barcodes in the file names, as in Zenodo
record 2530835; and ``csv``, any folder with a table that has one row per image.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from kdml_med.errors import InputError
from kdml_med.storage.files import content_hash
from kdml_med.tables.classes import parse_labels
from kdml_med.tables.images import ImageTable, TableColumns, read_image_table
from kdml_med.tables.labels import LabelLevel
from kdml_med.tables.names import is_tcga_normal, other_barcode, tcga_site, tcga_slide
from kdml_med.tables.usage import LabelSource, RowUse, describe_labels
from kdml_med.wsi.image_folders import (
    ImageIndex,
    class_folders,
    existing_folder,
    find_strays,
    name_problem,
    read_header,
    scan_images,
)
from kdml_med.wsi.imported import (
    ImportResult,
    Progress,
    check_mpp,
    common_side,
    contradiction,
    describe_import,
    frame_of,
    write_import,
)
from kdml_med.wsi.labelling import NORMAL_TISSUE

KATHER_MPP = 0.5  # Zenodo 2530835: 224 px are 112 µm
_BARCODE = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?![A-Za-z0-9])")


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
    tcga_normals: bool = False,
    force: bool = False,
    progress: Progress = iter,
) -> ImportResult:
    """Import class folders, such as CRC_DX_TRAIN/MSIMUT, whose file names carry TCGA barcodes.

    The barcode of a slide tells the slide; where a name has that of the patient alone, the patient is one slide. The
    train and test folders stay the split; validation patients are taken from train, stratified by label. A source that
    holds class folders directly has no official split, and none is written.

    Args:
        source: folder with <cohort>_TRAIN and <cohort>_TEST (or train and test), or with class folders.
        out: dataset folder to write.
        cohort: the part before _TRAIN; needed when the source holds several.
        classes: two class names, positive last, or the positive one alone; None for words of MSI.
        mpp: micrometres per pixel of the tiles.
        val_fraction: share of the train patients that validate; 0 for none.
        seed: of their choice.
        check_images: parse the header of every image, not only of the first, which else tells the size of all.
        tcga_normals: normal tissue has the label of its patient's tumour, too.
        force: replace other frozen splits.
        progress: wraps the list of images to show progress.

    Raises:
        InputError: no such folders, a patient with two labels or in train and test, or no usable image.
    """
    source = existing_folder(source)
    check_mpp(mpp)
    folders = class_folders(source, cohort)
    words = folders.set_index(folders["path"].map(lambda path: path.relative_to(source).as_posix()))["label"]
    labels, names = parse_labels(words.rename("class folder"), classes, where=f"the class folders of {source}")
    rows: list[dict[str, Any]] = []
    failures = find_strays(source, folders, cohort)
    images = [
        (shard, size, word, label, split)
        for path, word, label, split in zip(folders["path"], folders["label"], labels, folders["split"], strict=True)
        for shard, size in scan_images(path, source)
    ]
    shapes: dict[tuple[int, int], str] = {}
    for shard, size, _, label, split in progress(sorted(images, key=lambda image: image[0])):
        found = _BARCODE.search(Path(shard).stem)
        reason = name_problem(shard, size)
        if found is None:
            reason = reason or "no TCGA barcode in the file name; for other names use --layout csv with a table"
        elif other_barcode(Path(shard).stem[found.end() :], found.group()):
            reason = reason or "barcodes of two TCGA patients in the file name"
        elif label is not None and not tcga_normals and is_tcga_normal(Path(shard).stem):
            reason = reason or NORMAL_TISSUE
        if not reason and (check_images or not shapes):
            shape, reason = read_header(source / shard)
            if shape is not None:
                shapes.setdefault(shape, shard)
        if reason or found is None:
            failures.append((shard, reason or ""))
            continue
        patient = found.group()
        slide = tcga_slide(Path(shard).stem[found.start() :]) or patient  # what follows may be the place of the tile
        row = {"sample_id": shard, "patient_id": patient, "slide_id": slide, "label": label}
        rows.append(row | {"site": tcga_site(patient), "mpp": mpp, "shard": shard, "offset": 0, "size": size})
        rows[-1]["split"] = split
    options = {"layout": "kather", "cohort": cohort}
    info = describe_import(source, names, common_side(shapes), mpp, "patient", options)
    frame = frame_of(rows, failures, source)
    _check_folder_patients(frame)
    uses = Counter(RowUse.NO_CLASS if row["label"] is None else RowUse.USED for row in rows)
    uses[RowUse.UNUSABLE] = len(images) - len(rows)
    counts = Counter(word for _, _, word, _, _ in images)
    meant = dict(zip(folders["label"], labels, strict=True))
    found_words = LabelSource(words={word: (label, counts[word]) for word, label in meant.items()})
    info.labels = describe_labels(found_words, uses, frame, names, tcga_normals=tcga_normals)
    return write_import(out, info, frame, failures, val_fraction=val_fraction, seed=seed, force=force)


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
    tcga_normals: bool = False,
    force: bool = False,
    progress: Progress = iter,
) -> ImportResult:
    """Import the images that a table names, one row per image; the header of each is parsed.

    An image that is named by a path is that file below the source; a bare name is found in any folder (``ImageIndex``).
    Images that no row names are listed among the failures, unless a row names them that the conditions leave out.
    Without a slide column each image is its own slide at label level "slide", and a patient is one slide at level
    "patient".

    Args:
        source: folder with PNG or JPEG images, at any depth.
        out: dataset folder to write.
        table: CSV, TSV or XLSX file.
        columns: names of its columns. With a split column the split is kept; validation patients are taken from train
            when the column has none.
        where: column → value; only rows that have all of them are taken.
        classes: two class names, positive last, or the positive one alone; None for words of MSI.
        label_level: what carries one label.
        mpp: micrometres per pixel of the images, where the table has no such column.
        val_fraction: share of the train patients that validate, where it is needed.
        seed: of their choice.
        tcga_normals: at level "patient", normal tissue has the label of its patient's tumour, too.
        force: replace other frozen splits.
        progress: wraps the list of rows to show progress.

    Raises:
        InputError: a column or row of the table is unusable (the message names it), or no image is.
    """
    source = existing_folder(source)
    check_mpp(mpp)
    listed = read_image_table(table, columns or TableColumns(), where or {}, classes, label_level)
    normals = tcga_normals or label_level == "slide"
    found = _find_listed(source, str(table), listed, normals=normals, progress=progress)
    for row in found.rows:
        row["slide_id"] = row["slide_id"] or (row["patient_id"] if label_level == "patient" else row.pop("own"))
        row["mpp"] = mpp if row["mpp"] is None else row["mpp"]
    failures = found.failures + [(shard, f"no row of {Path(table).name} names it") for shard in found.unlisted]
    frame = frame_of(found.rows, failures, source)
    resolutions = set(frame["mpp"].dropna())
    common = resolutions.pop() if len(resolutions) == 1 and frame["mpp"].notna().all() else None
    options = {"layout": "csv", "table": Path(table).name, "table_sha256": content_hash(Path(table))}
    options["where"] = " and ".join(f"{name}={value}" for name, value in (where or {}).items())
    info = describe_import(source, listed.classes, common_side(found.shapes), common, label_level, options)
    info.labels = describe_labels(listed.source, found.uses, frame, listed.classes, tcga_normals=tcga_normals)
    result = write_import(out, info, frame, failures, val_fraction=val_fraction, seed=seed, force=force)
    result.unlisted, result.unused_split = len(found.unlisted), listed.unused_split
    return result


@dataclass
class _Listed:
    """What there is of the images that a table lists.

    Attributes:
        rows: of the manifest, of each image that can be used; "own" is the name of a slide that the image alone is.
        failures: name and reason of the others.
        unlisted: images that no row names.
        shapes: widths and heights in pixels, with the first image of each.
        uses: what became of the rows of the table.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)
    shapes: dict[tuple[int, int], str] = field(default_factory=dict)
    uses: Counter[RowUse] = field(default_factory=Counter)


def _find_listed(source: Path, table: str, listed: ImageTable, *, normals: bool, progress: Progress) -> _Listed:
    sizes = dict(scan_images(source, source))
    index = ImageIndex(sizes, source)
    stems = Counter(shard.rsplit(".", 1)[0] for shard in sizes)
    first_row: dict[str, int] = {}
    numbers: list[int] = []
    found = _Listed(uses=Counter({RowUse.NOT_CHOSEN: len(listed.not_chosen)}))
    for number, row in progress(list(zip(listed.rows.index, listed.rows.to_dict("records"), strict=True))):
        shards = index.find(row["image"])
        if len(shards) != 1:
            found.failures.append((row["image"], f"row {number}: {_not_one(shards, source, row['image'])}"))
            found.uses[RowUse.UNUSABLE if shards else RowUse.NO_FILE] += 1
            continue
        shard = shards[0]
        if shard in first_row:
            raise InputError(f"{table}: rows {first_row[shard]} and {number} name the same image {shard}. Keep one.")
        first_row[shard] = number
        shape, reason = None, name_problem(shard, sizes[shard]) or contradiction(shard, row, normals=normals)
        if not reason:
            shape, reason = read_header(source / shard)
        if shape is None:
            found.failures.append((row["image"], f"row {number}: {reason}"))
            found.uses[RowUse.UNUSABLE] += 1
            continue
        found.uses[RowUse.NO_CLASS if row["label"] is None else RowUse.USED] += 1
        found.shapes.setdefault(shape, shard)
        stem = shard.rsplit(".", 1)[0]
        own = shard if stems[stem] > 1 else stem  # a.png and a.jpg are two slides
        place = {"sample_id": shard, "shard": shard, "offset": 0, "size": sizes[shard]}
        found.rows.append(row | place | {"own": own})
        numbers.append(number)
    _refuse_links(source, found, numbers)
    named = {shard for name in listed.not_chosen for shard in index.find(name)}
    found.unlisted = sorted(set(sizes) - set(first_row) - named)
    return found


def _refuse_links(source: Path, found: _Listed, numbers: Sequence[int]) -> None:
    """Take out images that are one file under several paths, by links, for several patients or labels.

    Args:
        source: folder of the images.
        found: is changed.
        numbers: of each of its rows in the table.
    """
    same: dict[str, list[int]] = {}
    for place, row in enumerate(found.rows):
        same.setdefault(os.path.realpath(source / row["shard"]), []).append(place)
    wrong: set[int] = set()
    for places in same.values():
        owners = {place: (found.rows[place]["patient_id"], found.rows[place]["label"]) for place in places}
        for place in places if len(set(owners.values())) > 1 else ():
            other = next(other for other in places if owners[other] != owners[place])
            row, its = found.rows[place], found.rows[other]
            found.failures.append(
                (
                    row["image"],
                    f"row {numbers[place]}: is the same file as {its['shard']}, which row {numbers[other]} lists for "
                    f"patient {its['patient_id']} with {_label_of(its)}, and this one for patient {row['patient_id']} "
                    f"with {_label_of(row)}: correct the table, or remove one of the two",
                )
            )
            found.uses[RowUse.NO_CLASS if row["label"] is None else RowUse.USED] -= 1
            found.uses[RowUse.UNUSABLE] += 1
            wrong.add(place)
    found.rows = [row for place, row in enumerate(found.rows) if place not in wrong]


def _label_of(row: Mapping[str, Any]) -> str:
    return "no label" if row["label"] is None else f"the label {row['label']}"


def _not_one(shards: list[str], source: Path, name: str) -> str:
    """Why a name in the table is not exactly one image."""
    if shards:
        return f"its name fits {len(shards)} files, such as {shards[:2]}; name it by its path below {source}"
    path = " by that path" if "/" in name or "\\" in name else ""
    return f"not found in {source}{path}"


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
