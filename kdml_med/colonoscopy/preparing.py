"""Images, videos and annotations into one dataset folder: what is to do, who does it, and the tables at the end."""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from kdml_med.colonoscopy.annotations import Annotations, find_format, read_annotations
from kdml_med.colonoscopy.contact_sheet import write_contact_sheet
from kdml_med.colonoscopy.options import FrameOptions
from kdml_med.colonoscopy.planning import Plan, make_plan
from kdml_med.colonoscopy.report import DUPLICATES_FILE, PreparationReport
from kdml_med.colonoscopy.sources import Source, find_sources
from kdml_med.colonoscopy.storing import NEGATIVE, POLYP, ShardRecord, is_finished, read_record, shard_path, store_shard
from kdml_med.errors import InputError
from kdml_med.program import progress_bar
from kdml_med.splits import check_replaceable, freeze_splits
from kdml_med.storage.files import write_table
from kdml_med.storage.folder import sole_user
from kdml_med.storage.manifest import (
    DATASET_FILE,
    FAILURES_FILE,
    FRAME_CLASSES,
    FRAME_COLUMNS,
    MANIFEST_FILE,
    SHARDS_DIR,
    SPLITS_FILE,
    DatasetInfo,
    DatasetKind,
    read_info,
    read_manifest,
    write_info,
    write_manifest,
)
from kdml_med.workers import run_jobs

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
    force: bool = False,
    progress: bool = True,
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
        force: replace other frozen splits, and delete shards of inputs that are not named any more.
        progress: show a bar on standard error.

    Raises:
        InputError: an input or annotation file is missing or unusable as a whole, a sequence or patient is in two
            splits, or the folder is in use or was made with other options. Nothing was written then.
    """
    if workers < 1:
        raise InputError(f"--workers is {workers}, expected at least 1.")
    sources, known = _read_inputs([Path(path) for path in inputs], out, options, annotations)
    plan = make_plan(sources, known, options)
    info = _describe(options, plan, synthetic)
    report = PreparationReport(classes=known.classes, skipped=plan.skipped, label_level=plan.label_level)
    with sole_user(out):
        _open_folder(out, info, plan, force=force)
        _remove_leftovers(out, plan, force=force)
        failures = list(plan.failures)
        pending = [job for job in plan.jobs if not is_finished(out, job)]
        if pending:
            (out / MANIFEST_FILE).unlink(missing_ok=True)  # until the end it would point into shards that change
        report.kept = len(plan.jobs) - len(pending)
        with progress_bar(len(plan.jobs), what="preparing", unit="shard", done=report.kept, show=progress) as bar:
            looked_at = Counter[str]()

            def count(frames: int) -> None:
                looked_at["frames"] += frames
                bar.set_postfix_str(f"{looked_at['frames']} frames", refresh=False)
                bar.update(0)

            store = partial(store_shard, out_dir=out, options=options)
            for job, failure in run_jobs(pending, store, processes=workers, on_progress=count, crashed=_CRASHED):
                bar.update()
                report.done += failure is None
                if failure is not None:
                    failures += [(item.source.name, f"{job.name}: {failure}") for item in job.items]
        _write_tables(out, plan, info, report, failures, force=force)
    return report


def _read_inputs(
    inputs: Sequence[Path], out: Path, options: FrameOptions, annotations: Path | None
) -> tuple[list[Source], Annotations]:
    if annotations is None:
        if options.polyp_classes:
            raise InputError("--polyp-class needs --annotations: name what it is about.")
        return find_sources(inputs, [out]), Annotations()
    kind = find_format(annotations, inputs, options)
    sources = find_sources(inputs, [out, annotations] if kind == "masks" else [out])
    return sources, read_annotations(annotations, kind, sources, options)


def _describe(options: FrameOptions, plan: Plan, synthetic: bool) -> DatasetInfo:
    return DatasetInfo(
        kind=DatasetKind.FRAMES.value,
        classes=list(FRAME_CLASSES),
        frame_size_px=options.size_px,
        label_level=plan.label_level,
        options=asdict(options) | {"polyp_classes": list(options.polyp_classes)},
        made_by={"program": "preprocessing.prepare_frames"}
        | {name: importlib.metadata.version(name) for name in _LIBRARIES},
        synthetic=synthetic,
    )


def _open_folder(out: Path, info: DatasetInfo, plan: Plan, *, force: bool) -> None:
    """Write dataset.json, or check that the one there was made with the same options and splits."""
    if not (out / DATASET_FILE).exists():
        strangers = sorted(path.name for path in out.iterdir() if not path.name.endswith(".part"))
        if strangers:
            raise InputError(f"{out} is not empty (it holds {strangers[0]}) and not a dataset: choose another --out.")
        write_info(out, info)
        return
    there = read_info(out)
    if there.made_by.get("program") != info.made_by["program"]:
        raise InputError(f"{out} was made by {there.made_by.get('program')}: choose another --out.")
    old: dict[str, Any] = there.options | {"label_level": there.label_level, "synthetic": there.synthetic}
    new: dict[str, Any] = info.options | {"label_level": info.label_level, "synthetic": info.synthetic}
    for name in dict.fromkeys([*new, *old]):
        if old.get(name) != new.get(name):
            raise InputError(
                f"{out} was made with {name} = {old.get(name)!r}, this run has {new.get(name)!r}: "
                "use the same options, or choose another --out."
            )
    info.splits = there.splits
    if there.splits and plan.splits is not None and not force:
        frozen = pd.read_csv(out / SPLITS_FILE, dtype=str, keep_default_na=False)
        for patient, split in frozen.iloc[:, :2].itertuples(index=False):
            if plan.splits.get(patient, split) != split:
                raise InputError(
                    f"{out / SPLITS_FILE} has {patient!r} in {split}, this run in {plan.splits[patient]}. "
                    "Results on other splits cannot be compared with earlier ones; to replace them anyway pass --force."
                )


def _remove_leftovers(out: Path, plan: Plan, *, force: bool) -> None:
    """Delete the unfinished files of a run that was killed; with ``force`` also shards that are not in the plan."""
    for path in out.rglob(".*.part"):
        path.unlink(missing_ok=True)
    names = {job.name for job in plan.jobs}
    tables = {path.stem for path in (out / SHARDS_DIR).glob("*.parquet")}
    strangers = sorted(tables - names)
    if strangers and not force:
        raise InputError(
            f"{out} holds {len(strangers)} shards, such as {strangers[0]}, that are not among the inputs of this run. "
            "Name all inputs in one run, choose another --out, or pass --force to delete them."
        )
    for path in (*(out / SHARDS_DIR).glob("*.tar"), *(out / SHARDS_DIR).glob("*.parquet")):
        if path.stem not in names or path.stem not in tables:
            path.unlink(missing_ok=True)


def _write_tables(
    out: Path, plan: Plan, info: DatasetInfo, report: PreparationReport, failures: list[tuple[str, str]], *, force: bool
) -> None:
    tables: list[pa.Table] = []
    hashes: list[dict[str, str]] = []
    for job in plan.jobs:
        if not is_finished(out, job):
            shard_path(out, job.name).unlink(missing_ok=True)
            continue
        record, table = read_record(out, job.name)
        tables.append(table)
        hashes.append(record.hashes)
        failures += record.failures
        _add_counts(report, record)
    write_manifest(out / MANIFEST_FILE, pa.concat_tables(tables) if tables else FRAME_COLUMNS.empty_table())
    manifest = read_manifest(out)
    report.failures = sorted(failures)
    _count_frames(report, manifest)
    report.duplicates = _find_duplicates(manifest, hashes)
    write_table(out / FAILURES_FILE, pd.DataFrame(report.failures, columns=["input", "reason"]))
    if report.duplicates:
        write_table(out / DUPLICATES_FILE, pd.DataFrame(report.duplicates, columns=["sample_id", "same_as"]))
    else:
        (out / DUPLICATES_FILE).unlink(missing_ok=True)
    write_contact_sheet(out, manifest)
    write_info(out, info)
    if plan.splits is not None and len(manifest):
        patients = sorted(set(manifest["patient_id"]))
        splits = pd.DataFrame({"patient_id": patients, "split": [plan.splits[patient] for patient in patients]})
        check_replaceable(out, splits, force=force)
        freeze_splits(out, splits, mode="official", seed=None, force=force)
        report.has_splits = True


def _add_counts(report: PreparationReport, record: ShardRecord) -> None:
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
