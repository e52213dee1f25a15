"""A dataset of labelled crops, polyp or mucosa, from a dataset of frames with boxes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import pyarrow as pa

from kdml_med.colonoscopy.crops import CROP_CLASSES, POLYP, CropJob, CropOptions, CropsRecord, store_crops
from kdml_med.colonoscopy.frozen_splits import check_patients_are, check_patients_stay, check_sides
from kdml_med.colonoscopy.loose_frames import is_loose_name, refuse_gone
from kdml_med.colonoscopy.near_duplicates import Hashes, NearDuplicate, find_near_duplicates, hash_view
from kdml_med.colonoscopy.windows import polyp_side
from kdml_med.errors import InputError
from kdml_med.keys import Split
from kdml_med.program import progress_bar
from kdml_med.splits import check_replaceable, freeze_splits, read_splits
from kdml_med.storage.folder import DatasetFolder, describe_remade, list_versions
from kdml_med.storage.manifest import (
    FAILURES_FILE,
    SLIDES_FILE,
    TILE_COLUMNS,
    DatasetInfo,
    DatasetKind,
    image_root,
    owner_word,
    read_info,
    read_manifest,
    read_member,
    write_info,
)
from kdml_med.storage.shards import find_origins
from kdml_med.words import counted, named_failures, printable, verb
from kdml_med.workers import run_jobs

CROPS_FILE = "crops.csv"
NEAR_DUPLICATES_FILE = "near_duplicates.csv"
CUTTING_RULES = 1
"""Raised whenever the same frames and options give other crops than before."""
_CRASHED = "the decoder crashed on one of its frames"
_LIBRARIES = ("kdml_med", "pillow", "numpy", "scipy", "scikit-image")
_ORDER = {Split.TEST.value: 0, Split.VAL.value: 1, Split.TRAIN.value: 2}
"""Near duplicates go from the later one of two splits: a test set stays as it was."""
_QUANTILES = np.linspace(0.05, 0.95, 19)


@dataclass
class CropReport:
    """What a run did.

    Attributes:
        frames: of the dataset of frames.
        unlabelled: frames of which nothing is known; they are left out.
        crops: by label.
        sides: median side of windows in their frames by label, pixels.
        unpaired: windows of polyps left out because their frame has no room on mucosa for one like them.
        near_duplicates: frames left out because another split has nearly the same view.
        done: shards stored by this run.
        finished: shards that an earlier run had finished.
        remade: shards that were there, made from something else, and what is different.
        failures: rows of failures.csv, (frame, reason).
    """

    frames: int = 0
    unlabelled: int = 0
    crops: dict[str, int] = field(default_factory=dict)
    sides: dict[str, float] = field(default_factory=dict)
    unpaired: int = 0
    near_duplicates: list[NearDuplicate] = field(default_factory=list)
    done: int = 0
    finished: int = 0
    remade: dict[str, str] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)


def cut_crops(
    frames: Path, out: Path, options: CropOptions, *, workers: int = 1, force: bool = False, progress: bool = True
) -> CropReport:
    """Cut crops of polyps and of mucosa from the frames of a dataset, as a dataset of tiles.

    Splits are taken over. Frames of one split that show nearly the view of a frame of another are left out of training
    (or of validation, where the other one tests) and listed in near_duplicates.csv. What cannot be used is named in
    failures.csv, the place of every crop in crops.csv. The folder's bytes depend on frames, splits and options only.

    Args:
        frames: dataset folder with boxes, see ``kdml_med.colonoscopy.preparing.prepare_frames``.
        out: dataset folder of tiles; made when absent.
        options: settings; a folder made with others is refused.
        workers: processes.
        force: replace other frozen splits, and delete shards of frames that are not there any more.
        progress: show bars on standard error.

    Raises:
        InputError: no dataset of frames, none with polyps, its splits leak or are others than those frozen in ``out``,
            or that folder is in use or was made with other options. Nothing was written then. Or somebody joins or
            leaves the frozen splits because crops of a frame have become possible or impossible: the shards stay then,
            without manifest.
    """
    if workers < 1:
        raise InputError(f"--workers is {workers}, expected at least 1.")
    info, manifest, splits = _read_frames(Path(frames))
    root = image_root(Path(frames), info)
    report = CropReport(frames=len(manifest), unlabelled=int(manifest["label"].isna().sum()))
    labelled = manifest[manifest["label"].notna()]
    described = _describe(options, info, manifest)
    with DatasetFolder(Path(out), described, CropsRecord) as folder:
        if splits is not None and not force:
            check_sides(folder, _parts(splits), "the frames have it in")
        report.near_duplicates = _near_duplicates(root, labelled, splits, options, progress=progress)
        kept = labelled[~labelled["sample_id"].isin([one.sample_id for one in report.near_duplicates])]
        jobs = _make_jobs(root, kept, options, workers)
        strangers = folder.find_strangers([job.name for job in jobs], allowed=force, keeps=False)
        origins = {job.name: job.origin for job in jobs}
        if not force:
            _check_frames_stay(folder, set(manifest["sample_id"]))
            owners = {job.name: [(frame["sample_id"], frame["patient_id"]) for frame in job.frames] for job in jobs}
            check_patients_stay(folder, origins, owners)
        work = folder.plan(origins, strangers)
        pending = [job for job in jobs if job.name in work.pending]
        report.finished, report.remade = len(jobs) - len(pending), work.remade
        failures = work.tell_unread("crops")
        failures += _store_all(pending, folder, options, workers, progress=progress)
        report.done = folder.await_stored()
        folder.remove_leftovers()
        _write_tables(folder, report, failures, info, splits, force=force)
    return report


def _read_frames(frames: Path) -> tuple[DatasetInfo, pd.DataFrame, pd.DataFrame | None]:
    """Dataset, rows and splits of frames; None without splits."""
    info = read_info(frames)
    if info.kind != DatasetKind.FRAMES:
        raise InputError(
            f"{frames} is a dataset of {info.kind}, expected one of frames, as `kdml-med frames` makes it."
        )
    manifest = read_manifest(frames)
    if not (manifest["label"] == POLYP).any():
        raise InputError(f"{frames} has no frame with a polyp: give `kdml-med frames` the boxes as --annotations.")
    return info, manifest, read_splits(frames, manifest, info) if info.splits else None


def _check_frames_stay(folder: DatasetFolder[CropsRecord], frames: set[str]) -> None:
    """Check that no crops go because their frames are gone from a shard whose name says nothing about what is in it.

    Raises:
        InputError: some would go.
    """
    gone: set[str] = set()
    for name in filter(is_loose_name, folder.finished()):
        try:
            _, rows = folder.read(name)
        except InputError:  # damaged, made anew
            continue
        labelled = zip(rows.column("slide_id").to_pylist(), rows.column("label").to_pylist(), strict=True)
        gone |= {slide.removesuffix(f"/{label}") for slide, label in labelled} - frames
    refuse_gone(folder.path, gone, "pass --force to delete them")


def _describe(options: CropOptions, info: DatasetInfo, frames: pd.DataFrame) -> DatasetInfo:
    owner = owner_word(frames, info)
    return DatasetInfo(
        kind=DatasetKind.TILES.value,
        classes=list(CROP_CLASSES),
        tile_size_px=options.size_px,
        label_level="slide",
        options=asdict(options) | {"left_out": [list(part) for part in options.left_out]},  # as JSON gives it back
        made_by=list_versions("preprocessing.cut_crops", _LIBRARIES),
        owner=None if owner == "patient" else owner,
        synthetic=info.synthetic,
    )


def _parts(splits: pd.DataFrame) -> dict[str, str]:
    """Split or fold, as text, of each patient."""
    return {str(patient): str(part) for patient, part in splits.iloc[:, :2].itertuples(index=False, name=None)}


def _near_duplicates(
    root: Path, rows: pd.DataFrame, splits: pd.DataFrame | None, options: CropOptions, *, progress: bool
) -> list[NearDuplicate]:
    if splits is None or splits.iloc[:, 1].nunique() < 2:
        return []
    hashes: dict[str, Hashes] = {}
    with progress_bar(len(rows), what="comparing", unit="frame", show=progress) as bar:
        for frame in rows[["sample_id", "shard", "offset", "size"]].to_dict("records"):
            found = _hash(root, frame)
            if found is not None:
                hashes[str(frame["sample_id"])] = found
            bar.update()
    by_patient = _parts(splits)
    names = zip(rows["sample_id"], rows["patient_id"], strict=True)
    parts = {sample: by_patient[patient] for sample, patient in names if sample in hashes}
    order = {part: _ORDER[part] if part in _ORDER else int(part) for part in set(parts.values())}
    return find_near_duplicates(hashes, parts, order, limit=options.near_bits)


def _hash(root: Path, frame: Mapping[Any, Any]) -> Hashes | None:
    """None for a frame that cannot be read; cutting says why."""
    try:
        with PIL.Image.open(io.BytesIO(read_member(root, frame["shard"], frame["offset"], frame["size"]))) as image:
            image.draft("L", (128, 128))  # a JPEG is decoded at a fraction of its size
            return hash_view(image)
    except (InputError, OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError):
        return None


def _make_jobs(root: Path, rows: pd.DataFrame, options: CropOptions, threads: int) -> list[CropJob]:
    """One for each shard of frames."""
    sides = [polyp_side(tuple(box), options.margin, options.smallest) for boxes in rows["boxes"] for box in boxes]
    pool = tuple(int(side) for side in np.quantile(sides, _QUANTILES, method="nearest"))
    columns = ["sample_id", "patient_id", "site", "boxes", "width", "height", "shard", "offset", "size"]
    jobs = []
    for shard, own in rows.groupby("shard", observed=True, sort=True):
        frames = tuple(_plain(frame) for frame in own[columns].to_dict("records"))
        jobs.append(CropJob(Path(str(shard)).stem, root, frames, pool))
    files = {job.name: [(root / job.frames[0]["shard"], str(job.frames[0]["shard"]))] for job in jobs}
    facts = {job.name: job.facts for job in jobs}
    origins = find_origins(files, facts=facts, rules=CUTTING_RULES, full=True, threads=threads)
    return [replace(job, origin=origins[job.name]) for job in jobs]


def _plain(frame: Mapping[Any, Any]) -> dict[str, Any]:
    """A row of the manifest without types of NumPy or pandas."""
    site = frame["site"]
    return {
        **{name: str(frame[name]) for name in ("sample_id", "patient_id", "shard")},
        **{name: int(frame[name]) for name in ("width", "height", "offset", "size")},
        "site": str(site) if isinstance(site, str) else None,
        "boxes": [[float(edge) for edge in box] for box in frame["boxes"]],
    }


def _store_all(
    jobs: Sequence[CropJob],
    folder: DatasetFolder[CropsRecord],
    options: CropOptions,
    workers: int,
    *,
    progress: bool,
) -> list[tuple[str, str]]:
    """Make shards side by side; gives the frames of those that could not be made, and why."""
    failures: list[tuple[str, str]] = []
    store = partial(store_crops, out_dir=folder.path, options=options)
    with progress_bar(sum(len(job.frames) for job in jobs), what="cutting", unit="frame", show=progress) as bar:

        def count(frames: int) -> None:
            bar.update(frames)

        for job, failure in run_jobs(jobs, store, processes=workers, on_progress=count, crashed=_CRASHED):
            if failure is None:
                folder.take_stored(job.name)
            else:
                failures += [(frame["sample_id"], f"{job.name}: {failure}") for frame in job.frames]
    return failures


def _write_tables(
    folder: DatasetFolder[CropsRecord],
    report: CropReport,
    failures: list[tuple[str, str]],
    info: DatasetInfo,
    splits: pd.DataFrame | None,
    *,
    force: bool,
) -> None:
    tables: list[pa.Table] = []
    places: dict[str, list[int]] = {}
    for name in folder.finished():
        record, table = folder.read(name)
        tables.append(table)
        places |= record.places
        failures += record.failures
        report.unpaired += record.unpaired
    rows = pa.concat_tables(tables) if tables else TILE_COLUMNS.empty_table()
    report.failures = sorted(failures)
    manifest = rows.select(["sample_id", "patient_id", "slide_id", "label", "site"]).to_pandas()
    crops = _place_table(manifest, places)
    report.crops = {label: int((crops["label"] == label).sum()) for label in CROP_CLASSES}
    report.sides = {str(label): float(side) for label, side in crops.groupby("label")["side"].median().items()}
    slides = manifest.groupby("slide_id", sort=True).agg(
        patient_id=("patient_id", "first"), label=("label", "first"), site=("site", "first"), tiles=("label", "size")
    )
    own = splits[splits["patient_id"].isin(set(manifest["patient_id"]))] if splits is not None else None
    if own is not None and len(own):  # a manifest beside splits of others would be of no use
        check_replaceable(folder.path, own, force=force)
    elif not force:
        check_patients_are(folder, set(manifest["patient_id"]))
    _note_owner(folder)
    near = pd.DataFrame([asdict(one) for one in report.near_duplicates]) if report.near_duplicates else None
    folder.write_tables(
        rows,
        report.failures,
        {SLIDES_FILE: slides.reset_index(), CROPS_FILE: crops, NEAR_DUPLICATES_FILE: near},
    )
    if own is not None and len(own):
        _freeze(folder.path, own, info, force=force)


def _note_owner(folder: DatasetFolder[CropsRecord]) -> None:
    """Say whose crops these are; frames may name patients now, and earlier versions did not say it."""
    there = read_info(folder.path)
    if there.owner != folder.info.owner:
        write_info(folder.path, replace(there, owner=folder.info.owner))


def _place_table(manifest: pd.DataFrame, places: Mapping[str, Sequence[int]]) -> pd.DataFrame:
    """Where each crop lies in its frame: the columns of crops.csv."""
    table = manifest[["sample_id", "slide_id", "label"]].rename(columns={"slide_id": "frame"})
    table["frame"] = [
        slide.removesuffix(f"/{label}") for slide, label in zip(table["frame"], table["label"], strict=True)
    ]
    edges = np.array([places[sample] for sample in table["sample_id"]], np.int64).reshape(-1, 3)
    return table.assign(x=edges[:, 0], y=edges[:, 1], side=edges[:, 2])


def _freeze(out: Path, splits: pd.DataFrame, info: DatasetInfo, *, force: bool) -> None:
    """Freeze the splits of the frames, of those who have crops."""
    details = dict(info.splits or {})
    mode, seed = details.pop("mode"), details.pop("seed")
    frames_sha256 = details.pop("sha256")
    freeze_splits(out, splits, mode=mode, seed=seed, force=force, **details | {"frames_sha256": frames_sha256})


def describe_crop_report(report: CropReport, out: Path) -> list[str]:
    """Lines that tell a person what was cut and what to look at."""
    shown = ", ".join(
        f"{count:,} {label} (median side in the frame {report.sides.get(label, 0):g} px)"
        for label, count in report.crops.items()
    )
    lines = [
        f"{out}: {counted(sum(report.crops.values()), 'crop')} of {counted(report.frames, 'frame')}: {shown}",
        f"{counted(report.done, 'shard')} made, {report.finished:,} finished before",
        *describe_remade(report.remade),
    ]
    if report.unlabelled:
        are = verb(report.unlabelled, "is", "are")
        lines.append(f"{counted(report.unlabelled, 'unlabelled frame')} {are} left out")
    if report.unpaired:
        are = verb(report.unpaired, "is", "are")
        lines.append(
            f"{counted(report.unpaired, 'window')} of polyps {are} left out: no room for one like it on mucosa of the "
            "same frame"
        )
    if report.near_duplicates:
        are = verb(len(report.near_duplicates), "is", "are")
        lines.append(
            f"{counted(len(report.near_duplicates), 'frame')} {are} left out because another split has nearly the same "
            f"view, all in {out / NEAR_DUPLICATES_FILE}"
        )
    if report.failures:
        lines.append(f"{counted(len(report.failures), 'problem')}, all in {out / FAILURES_FILE}:")
        lines += named_failures(report.failures)
    return [printable(line) for line in lines]
