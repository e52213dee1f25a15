"""Datasets from WebDataset tars that exist already: nothing is copied, rows are byte ranges of the tars."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from kdml_med.errors import InputError
from kdml_med.storage.files import content_hash
from kdml_med.storage.manifest import read_member
from kdml_med.tables.images import TableColumns, check_image_table
from kdml_med.tables.labels import LabelLevel, LabelTable, read_labels
from kdml_med.tables.names import same_name_form
from kdml_med.tables.usage import RowUse, describe_labels
from kdml_med.wsi.image_folders import read_header
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
from kdml_med.wsi.labelling import count_keys
from kdml_med.wsi.sample_facts import ask_table, compile_pattern, list_facts, name_classes, name_owners
from kdml_med.wsi.sample_tars import Sample, find_tars, read_tar


@dataclass
class _Found:
    """Samples by their names in the dataset, with the tar that each is in, and what cannot be used."""

    samples: dict[str, tuple[str, Sample]] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)
    shard_bytes: dict[str, int] = field(default_factory=dict)


def import_samples(
    source: Path,
    out: Path,
    *,
    labels: Path | None = None,
    columns: TableColumns | None = None,
    key_pattern: str | None = None,
    where: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
    label_level: LabelLevel = "patient",
    mpp: float | None = None,
    val_fraction: float = 0.15,
    seed: int = 0,
    check_images: bool = False,
    tcga_normals: bool = False,
    force: bool = False,
    progress: Progress = iter,
) -> ImportResult:
    """Import the samples of tars in the WebDataset convention (``kdml_med.wsi.sample_tars``).

    What is known of a sample are the values of its .json, the text of its .cls and .txt, and what the pattern finds in
    its key, which comes first. A number in .cls counts the classes from 0. With a label table the patient, label and
    site are those of its slide or patient there; a sample that names another patient is left out. A sample is called
    by its tar and key.

    Args:
        source: folder with tars at any depth, or one tar.
        out: dataset folder to write.
        labels: table of slides or patients as for tiling; None where the samples have their labels themselves.
        columns: names of values in .json, or of columns of ``labels``, where those of ``mpp`` and ``split`` are looked
            for only if no sample has them; ``image`` is what the image is called in the samples, such as "tile.png";
            None recognises them.
        key_pattern: regular expression that is searched in keys, with groups named patient, slide or site.
        where: value in .json → text; only samples that have all of them are taken.
        classes: two class names, positive last, or the positive one alone; None for words of MSI.
        label_level: what carries one label.
        mpp: micrometres per pixel of the images, where samples do not say it.
        val_fraction: share of the train patients that validate, where samples name a split without validation.
        seed: of their choice.
        check_images: parse the header of every image, not only of the first, which else tells the size of all.
        tcga_normals: at level "patient", normal tissue has the label of its patient's tumour, too.
        force: replace other frozen splits.
        progress: wraps the list of tars to show progress.

    Raises:
        InputError: there are no tars, nothing tells patients or labels, two samples contradict each other, or no sample
            can be used.
    """
    check_mpp(mpp)
    columns = columns or TableColumns()
    pattern = compile_pattern(key_pattern)
    root, tars, problems = find_tars(Path(source))
    found = _read_all(root, tars, columns.image, progress, check_images=check_images)
    found.failures += problems
    table = None if labels is None else _read_table(labels, columns, classes, label_level)
    name = f"the samples of {source}"
    known = list_facts(found.samples, pattern, columns, table, found.failures, name)
    if not known.frame.empty and table is None:
        known = name_owners(known, found.failures, name)
    elif not known.frame.empty and table is not None and labels is not None:
        known = ask_table(known, found.samples, table, labels, found.failures, name)
    if known.frame.empty:
        frame_of([], found.failures, root)  # which says why
    named = classes if table is None else table.classes
    if known.columns.label == "cls":
        known.frame["cls"] = name_classes(known.frame["cls"], named)
    listed = check_image_table(known.frame, name, "samples", known.columns, where or {}, named, label_level)
    normals = tcga_normals or label_level == "slide"
    uses: Counter[RowUse] = Counter({RowUse.NOT_CHOSEN: len(listed.not_chosen)})
    rows: list[dict[str, Any]] = []
    for values in listed.rows.itertuples(index=False, name=None):
        row: dict[str, Any] = dict(zip(listed.rows.columns, values, strict=True))
        sample_id = row["image"]
        shard, sample = found.samples[sample_id]
        reason = contradiction(sample_id, row, normals=normals)
        if reason:
            found.failures.append((sample_id, reason))
            uses[RowUse.UNUSABLE] += 1
            continue
        uses[RowUse.NO_CLASS if row["label"] is None else RowUse.USED] += 1
        row["slide_id"] = row["slide_id"] or (row["patient_id"] if label_level == "patient" else sample_id)
        row["mpp"] = mpp if row["mpp"] is None else row["mpp"]
        place = {"sample_id": sample_id, "shard": shard, "offset": sample.offset, "size": sample.size}
        rows.append(row | place)
    frame = frame_of(rows, found.failures, root)
    shard, sample = found.samples[frame["sample_id"].iloc[0]]
    first, reason = read_header(BytesIO(read_member(root, shard, sample.offset, sample.size)))
    if first is None:
        raise InputError(f"{frame['sample_id'].iloc[0]}: {reason}. Find others like it with --check-images.")
    shapes = {first: frame["sample_id"].iloc[0]}
    for sample_id in frame["sample_id"] if check_images else ():
        shapes.setdefault(found.samples[sample_id][1].shape or first, sample_id)
    resolutions = set(frame["mpp"].dropna())
    common = resolutions.pop() if len(resolutions) == 1 and frame["mpp"].notna().all() else None
    options = {"layout": "webdataset", "key_pattern": key_pattern, "image_field": columns.image}
    options["where"] = " and ".join(f"{name}={value}" for name, value in (where or {}).items())
    if labels is not None:
        options |= {"table": Path(labels).name, "table_sha256": content_hash(Path(labels))}
    info = describe_import(root, listed.classes, common_side(shapes), common, label_level, options)
    used = set(frame["shard"])
    info.shard_bytes = {name: size for name, size in sorted(found.shard_bytes.items()) if name in used}
    word_source = listed.source
    if table is not None:
        word_source = known.source
        there, taken, left_out = (
            {known.table_keys[sample_id] for sample_id in names}
            for names in (listed.rows["image"], frame["sample_id"], listed.not_chosen)
        )
        uses = count_keys(table, there, taken, left_out)
    info.labels = describe_labels(word_source, uses, frame, listed.classes, tcga_normals=tcga_normals)
    result = write_import(out, info, frame, found.failures, val_fraction=val_fraction, seed=seed, force=force)
    result.unused_split = listed.unused_split
    return result


def _read_table(
    path: Path, columns: TableColumns, classes: Sequence[str] | None, label_level: LabelLevel
) -> LabelTable:
    return read_labels(
        path,
        patient_column=columns.patient,
        slide_column=columns.slide,
        label_column=columns.label,
        site_column=columns.site,
        classes=classes,
        label_level=label_level,
    )


def _read_all(root: Path, tars: Sequence[Path], image: str | None, progress: Progress, *, check_images: bool) -> _Found:
    found = _Found()
    first: dict[tuple[str, int], tuple[str, Sample]] = {}  # by key and size of the image
    for path in progress(tars):
        shard = path.relative_to(root).as_posix()
        contents = read_tar(path, image=image, check_images=check_images)
        stem = shard[: -len(".tar")]
        found.failures += [
            (name if name == path.name else f"{stem}/{name}", reason) for name, reason in contents.problems
        ]
        if contents.samples:
            found.shard_bytes[shard] = path.stat().st_size
        for sample in contents.samples:
            sample_id = same_name_form(f"{stem}/{sample.key}")
            if any("\ud800" <= letter <= "\udfff" for letter in sample_id):
                found.failures.append((sample_id, "its name is not UTF-8: write the tar again"))
                continue
            other, twin = first.setdefault((sample.key, sample.size), (shard, sample))
            if other != shard and _same_image(root, (other, twin), (shard, sample)):
                found.failures.append((sample_id, f"the same key and image are in {other}: one of them is taken"))
                continue
            if sample_id in found.samples:
                found.failures.append((sample_id, f"another sample has this name, in {found.samples[sample_id][0]}"))
                continue
            found.samples[sample_id] = (shard, sample)
    return found


def _same_image(root: Path, *samples: tuple[str, Sample]) -> bool:
    first, second = (read_member(root, shard, sample.offset, sample.size) for shard, sample in samples)
    return first == second
