"""Images, videos and annotations into one dataset folder: what is to do, who does it, and the tables at the end."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from kdml_med.colonoscopy.annotations import Annotations, find_format, read_annotations
from kdml_med.colonoscopy.contact_sheet import write_contact_sheet
from kdml_med.colonoscopy.frozen_splits import (
    check_patients_are,
    check_patients_stay,
    check_sides,
    frozen_splits,
    inputs_of,
)
from kdml_med.colonoscopy.loose_frames import check_loose_stay, number_behind, read_loose
from kdml_med.colonoscopy.options import FrameOptions
from kdml_med.colonoscopy.planning import Plan, ShardJob, make_plan, owner_of
from kdml_med.colonoscopy.readers import FORMATS
from kdml_med.colonoscopy.report import DUPLICATES_FILE, PreparationReport
from kdml_med.colonoscopy.sources import Source, find_sources
from kdml_med.colonoscopy.storing import NEGATIVE, POLYP, FramesRecord, store_shard
from kdml_med.colonoscopy.video import expected_frames
from kdml_med.errors import InputError
from kdml_med.program import progress_bar
from kdml_med.splits import check_replaceable, freeze_splits
from kdml_med.storage.folder import FULL_HASH, DatasetFolder, list_options, list_versions
from kdml_med.storage.manifest import FRAME_CLASSES, FRAME_COLUMNS, DatasetInfo, DatasetKind
from kdml_med.storage.shards import find_origins
from kdml_med.workers import Workers, reach_cluster, run_jobs

READING_RULES = 1
"""Raised whenever the same files and annotations give other frames, boxes, labels or reasons than before."""
_CRASHED = "the decoder crashed on one of its files"
_LIBRARIES = ("kdml_med", "av", "pillow", "numpy", "scipy", "scikit-image")


def prepare_frames(
    inputs: Sequence[Path],
    out: Path,
    options: FrameOptions,
    annotations: Path | None,
    *,
    workers: int = 1,
    synthetic: bool = False,
    full_hash: bool = False,
    keep: bool = False,
    force: bool = False,
    progress: bool = True,
    scheduler: str | None = None,
) -> PreparationReport:
    """Turn images, videos and annotations into a dataset folder; shards that are finished there are left alone.

    What cannot be used is named in failures.csv. The folder's bytes depend on inputs, annotations and options only, not
    on ``workers`` nor on how often the work was cut off and taken up again. A shard whose inputs or annotations changed
    is made anew.

    Args:
        inputs: images, videos, and folders that are searched for them.
        out: dataset folder; made when absent.
        options: settings; a folder made with others is refused.
        annotations: masks or VOC or YOLO folder, COCO or CSV file; None leaves every frame unlabelled.
        workers: processes.
        synthetic: the frames are generated; recorded in dataset.json.
        full_hash: tell videos and other large files apart by all of their bytes; recorded in dataset.json.
        keep: what is not named stays, and no shard is replaced. Frames without a sequence go into further shards then.
        force: replace other frozen splits, and, without ``keep``, delete what is not named.
        progress: show a bar on standard error.
        scheduler: address of a Dask scheduler whose workers make the shards instead; they have to see inputs,
            annotations and ``out`` under the same names.

    Raises:
        InputError: an input or annotation file is missing or unusable as a whole, a sequence or patient is in two
            splits, or in another one than the folder has frozen, or joins or leaves these, or the folder is in use, was
            made with other options, or holds frames of inputs that are not named, or the workers cannot be used.
            Nothing was written then. Or the scheduler is lost on the way, or somebody joins or leaves frozen splits
            because a file that could not be used can be now, or the other way: the shards stay then, without manifest.
    """
    if workers < 1:
        raise InputError(f"--workers is {workers}, expected at least 1.")
    sources, known = _read_inputs([Path(path) for path in inputs], out, options, annotations)
    plan = make_plan(sources, known, options)
    info = _describe(options, plan, synthetic, full_hash)
    compare = list_options if annotations is not None else _list_unlabelled
    report = PreparationReport(classes=known.classes, skipped=plan.skipped, label_level=plan.label_level)
    report.folders = tuple(plan.folders)
    named = [Path(path) for path in (*inputs, *([] if annotations is None else [annotations]))]
    needed = [path if path.is_dir() else path.parent for path in named]
    with (
        reach_cluster(scheduler, folders=[*needed, out], libraries=_LIBRARIES, crashed=_CRASHED) as cluster,
        DatasetFolder(out, info, FramesRecord, compare=compare) as folder,
    ):
        if plan.splits is not None and not force:
            check_sides(folder, plan.splits, "this run in")
        report.standing = _read_others(folder, {source.name for source in sources}) if keep else []
        loose = read_loose(folder)
        if keep:
            plan.jobs = number_behind(plan.jobs, loose, folder.finished())
        names = [job.name for job in plan.jobs]
        strangers = folder.find_strangers(names if keep else [*names, *loose], allowed=keep or force)
        plan.jobs = jobs = _with_origins(plan.jobs, full_hash, workers, progress)
        origins = {job.name: job.origin for job in jobs}
        if keep:
            _check_kept(folder, strangers, plan)
        elif not force:
            check_loose_stay(folder.path, loose, plan)
        if not force:
            owners = {job.name: [(item.source.name, owner_of(item)) for item in job.items] for job in jobs}
            check_patients_stay(folder, origins, owners, strangers)
        unnamed = sorted({*strangers, *loose} - set(names))
        work = folder.plan(origins, unnamed, keep=keep)
        pending = [job for job in jobs if job.name in work.pending]
        report.finished, report.remade, report.kept = len(jobs) - len(pending), work.remade, len(work.kept)
        failures = work.tell_unread("frames")
        failures += plan.failures
        failures += _store_all(pending, folder, options, workers, report, progress, cluster)
        folder.remove_leftovers()
        _write_tables(folder, plan, report, failures, force=force)
    return report


def _with_origins(jobs: Sequence[ShardJob], full_hash: bool, threads: int, progress: bool) -> list[ShardJob]:
    """Jobs that know what tells their files and annotations from others."""
    files, facts = {job.name: job.files for job in jobs}, {job.name: job.facts for job in jobs}
    with progress_bar(sum(map(len, files.values())), what="comparing", unit="file", show=progress) as bar:
        origins = find_origins(
            files, facts=facts, rules=READING_RULES, full=full_hash, threads=threads, on_done=bar.update
        )
    return [replace(job, origin=origins[job.name]) for job in jobs]


def _store_all(
    jobs: Sequence[ShardJob],
    folder: DatasetFolder[FramesRecord],
    options: FrameOptions,
    workers: int,
    report: PreparationReport,
    progress: bool,
    cluster: Workers | None,
) -> list[tuple[str, str]]:
    """Make shards side by side; gives the inputs of those that could not be made, and why."""
    failures: list[tuple[str, str]] = []
    ended, total = report.finished, len(jobs) + report.finished
    with progress_bar(_count_expected(jobs, options), what="preparing", unit="frame", show=progress) as bar:
        bar.set_postfix_str(f"{ended} of {total} shards", refresh=False)
        store = partial(store_shard, out_dir=folder.path, options=options)

        def count(frames: int) -> None:  # not shards: a video is one shard, and can take many minutes
            bar.update(frames)

        for job, failure in run_jobs(
            jobs, store, processes=workers, on_progress=count, crashed=_CRASHED, cluster=cluster
        ):
            if failure is None:
                folder.take_stored(job.name)
            else:
                failures += [(item.source.name, f"{job.name}: {failure}") for item in job.items]
            ended += 1
            bar.set_postfix_str(f"{ended} of {total} shards", refresh=False)
        bar.total = bar.n  # headers of videos promise more or less than there is
        bar.refresh()
    report.done = folder.await_stored()
    return failures


def _count_expected(jobs: Sequence[ShardJob], options: FrameOptions) -> int:
    """About how many frames will be looked at."""
    sources = [item.source for job in jobs for item in job.items]
    return sum(expected_frames(source.path, options.fps) if source.is_video else 1 for source in sources)


def _read_inputs(
    inputs: Sequence[Path], out: Path, options: FrameOptions, annotations: Path | None
) -> tuple[list[Source], Annotations]:
    if annotations is None:
        if options.polyp_classes:
            raise InputError("--polyp-class needs --annotations: name what it is about.")
        sources, failures = find_sources(inputs, [out])
        return sources, Annotations(failures=failures)
    kind = find_format(annotations, inputs, options)
    sources, failures = find_sources(inputs, [out, annotations] if FORMATS[kind].pictures else [out])
    known = read_annotations(annotations, kind, sources, options)
    known.failures += failures
    return sources, known


def _describe(options: FrameOptions, plan: Plan, synthetic: bool, full_hash: bool) -> DatasetInfo:
    settings = asdict(options) | {"polyp_classes": list(options.polyp_classes)}
    return DatasetInfo(
        kind=DatasetKind.FRAMES.value,
        classes=list(FRAME_CLASSES),
        frame_size_px=options.size_px,
        label_level=plan.label_level,
        options=settings | ({FULL_HASH: True} if full_hash else {}),
        made_by=list_versions("preprocessing.prepare_frames", _LIBRARIES),
        synthetic=synthetic,
    )


def _list_unlabelled(info: DatasetInfo) -> dict[str, Any]:
    """``list_options`` without what carries one label: where there is none, that tells the kinds of files only."""
    return {name: value for name, value in list_options(info).items() if name != "label_level"}


def _check_kept(folder: DatasetFolder[FramesRecord], kept: Sequence[str], plan: Plan) -> None:
    """Check that what stays in the folder goes together with what this run adds."""
    names = {item.source.name for job in plan.jobs for item in job.items}
    known = frozen_splits(folder) | (plan.splits or {})
    for shard in kept:
        _, table = folder.read(shard)
        twice = sorted(names & set(table.column("source").to_pylist()))
        if twice:
            raise InputError(
                f"{folder.path} holds an input called {twice[0]} already, in the shard {shard}, which is kept: leave "
                "it out, give this one another name or folder, or choose another --out."
            )
        lost = sorted(set(table.column("patient_id").to_pylist()) - set(known)) if plan.splits is not None else []
        if lost:
            raise InputError(
                f"{folder.path} keeps frames of {lost[0]!r}, whose split is not known, while this run tells splits: "
                "name all inputs in one run, or choose another --out."
            )


def _read_others(folder: DatasetFolder[FramesRecord], named: Collection[str]) -> list[tuple[str, str]]:
    """Failures of earlier runs about other inputs, which are no better for a run that only adds some."""
    return [row for row in folder.read_failures() if inputs_of(row[0]).isdisjoint(named)]


def _write_tables(
    folder: DatasetFolder[FramesRecord],
    plan: Plan,
    report: PreparationReport,
    failures: list[tuple[str, str]],
    *,
    force: bool,
) -> None:
    tables: list[pa.Table] = []
    hashes: list[dict[str, str]] = []
    for name in folder.finished():
        record, table = folder.read(name)
        tables.append(table)
        hashes.append(record.hashes)
        failures += record.failures
        _add_counts(report, record)
    rows = pa.concat_tables(tables) if tables else FRAME_COLUMNS.empty_table()
    manifest = rows.to_pandas()
    report.failures = sorted(failures)
    known = {*manifest["source"], *(name for name, _ in failures)}
    report.standing = [row for row in report.standing if known.isdisjoint(inputs_of(row[0]))]
    _count_frames(report, manifest)
    report.duplicates = _find_duplicates(manifest, hashes)
    duplicates = pd.DataFrame(report.duplicates, columns=["sample_id", "same_as"]) if report.duplicates else None
    splits = _official_splits(folder, plan, manifest)
    if splits is not None:  # a manifest beside splits of others would be of no use
        check_replaceable(folder.path, splits, force=force)
    elif not force:
        check_patients_are(folder, set(manifest["patient_id"]))
    write_contact_sheet(folder.path, manifest)
    folder.write_tables(rows, sorted(failures + report.standing), {DUPLICATES_FILE: duplicates})
    if splits is not None:
        freeze_splits(folder.path, splits, mode="official", seed=None, force=force)
        report.has_splits = True


def _official_splits(folder: DatasetFolder[FramesRecord], plan: Plan, manifest: pd.DataFrame) -> pd.DataFrame | None:
    """The splits that the annotations or the options tell; of patients who are kept, those that were frozen."""
    if plan.splits is None or manifest.empty:
        return None
    known = frozen_splits(folder) | plan.splits
    patients = sorted(set(manifest["patient_id"]))
    return pd.DataFrame({"patient_id": patients, "split": [known[patient] for patient in patients]})


def _add_counts(report: PreparationReport, record: FramesRecord) -> None:
    report.unlisted += record.unlisted
    report.passed_over += record.passed_over
    report.cropped += record.cropped
    report.painted += record.painted


def _count_frames(report: PreparationReport, manifest: pd.DataFrame) -> None:
    report.frames = len(manifest)
    report.polyps = int((manifest["label"] == POLYP).sum())
    report.negatives = int((manifest["label"] == NEGATIVE).sum())
    report.unlabelled = report.frames - report.polyps - report.negatives
    report.boxes = int(manifest["boxes"].map(len).sum())
    report.sequences = manifest["sequence_id"].nunique()
    report.patients = manifest["patient_id"].nunique()


def _find_duplicates(manifest: pd.DataFrame, hashes: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Frames whose source pixels were seen before in another sequence, and the first such frame."""
    sequences = dict(zip(manifest["sample_id"], manifest["sequence_id"], strict=True))
    first: dict[str, str] = {}
    found = []
    for sample, digest in (pair for table in hashes for pair in table.items()):
        other = first.setdefault(digest, sample)
        if sequences[other] != sequences[sample]:
            found.append((sample, other))
    return sorted(found)
