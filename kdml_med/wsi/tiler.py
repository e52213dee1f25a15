"""Many slides into one dataset folder: what is still to do, who does it, and the tables at the end."""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from kdml_med.errors import InputError
from kdml_med.program import progress_bar
from kdml_med.storage.files import write_table
from kdml_med.storage.folder import sole_user
from kdml_med.storage.manifest import (
    DATASET_FILE,
    FAILURES_FILE,
    MANIFEST_FILE,
    SLIDES_FILE,
    TILE_COLUMNS,
    DatasetInfo,
    read_info,
    write_info,
    write_manifest,
)
from kdml_med.tables.names import SLIDE_SUFFIXES, slide_name, tcga_site
from kdml_med.wsi.cutter import SlideJob
from kdml_med.wsi.options import TilingOptions
from kdml_med.wsi.pool import Outcome, run_jobs
from kdml_med.wsi.shards import SlideRecord, finished_slides, read_record, sidecar_path, write_record
from kdml_med.wsi.slide import ASSUMED

_LIBRARIES = (
    "kdml_med",
    "openslide-python",
    "openslide-bin",
    "tifffile",
    "simplejpeg",
    "imagecodecs",
    "pillow",
    "numpy",
)


class Match(Protocol):
    """What a label table says about a slide."""

    @property
    def patient_id(self) -> str:
        """Whom the slide belongs to."""
        ...

    @property
    def label(self) -> str | None:
        """Class name, None when blank."""
        ...

    @property
    def site(self) -> str | None:
        """Tissue source site, None when unknown."""
        ...


class Labels(Protocol):
    """The part of ``kdml_med.tables.labels.LabelTable`` that tiling uses."""

    @property
    def classes(self) -> list[str]:
        """Class names in index order."""
        ...

    @property
    def label_level(self) -> str:
        """What carries one label: "patient" or "slide"."""
        ...

    def match(self, slide_id: str) -> Match | None:
        """What is known about a slide."""
        ...

    def mpp(self, slide_id: str) -> float | None:
        """Micrometres per level-0 pixel that the table gives."""
        ...


@dataclass
class TilingReport:
    """What a run did.

    Attributes:
        done: slides tiled by this run.
        skipped: slides that an earlier run had finished.
        failures: rows of failures.csv, (file name, reason).
        tiles: in the whole dataset.
    """

    done: int = 0
    skipped: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    tiles: int = 0


def tile_slides(
    inputs: Sequence[Path],
    out_dir: Path,
    options: TilingOptions,
    *,
    labels: Labels | None = None,
    workers: int = 1,
    progress: bool = True,
    synthetic: bool = False,
) -> TilingReport:
    """Tile slides into a dataset folder; slides that are finished there are left alone.

    A slide that cannot be used is named in failures.csv and tried again by the next run. The folder's bytes depend on
    slides, labels and options only, not on ``workers`` nor on how often the work was cut off and taken up again.

    Args:
        inputs: slides, and folders that are searched for slides.
        out_dir: dataset folder; made when absent.
        options: settings; a folder made with others is refused.
        labels: patients and labels; None makes a dataset for inference.
        workers: cores to use, for slides side by side and for bands within a slide.
        progress: show a bar on standard error.
        synthetic: the slides are generated; recorded in dataset.json.

    Raises:
        InputError: inputs are missing or share a name, or the folder is in use or was made with other options.
    """
    if workers < 1:
        raise InputError(f"--workers is {workers}, expected at least 1.")
    out_dir = Path(out_dir)
    paths = find_slides([Path(path) for path in inputs], out_dir)
    info = _describe(options, labels, synthetic)
    report = TilingReport()
    with sole_user(out_dir):
        _open_folder(out_dir, info)
        _remove_leftovers(out_dir)
        jobs: list[SlideJob] = []
        for path in paths:
            job = _make_job(path, labels)
            if isinstance(job, SlideJob):
                jobs.append(job)
            else:
                report.failures.append((path.name, job))
        finished = set(finished_slides(out_dir))
        pending = [job for job in jobs if job.slide_id not in finished]
        report.skipped = len(jobs) - len(pending)
        bar = _Progress(len(pending), report.skipped, progress)
        with contextlib.closing(bar):
            for outcome in run_jobs(pending, out_dir, options, workers, bar.add_tiles):
                bar.end_slide(outcome)
                if outcome.failure is None:
                    report.done += 1
                else:
                    report.failures.append((outcome.job.path.name, outcome.failure))
        _remove_leftovers(out_dir)
        _write_tables(out_dir, labels, report)
    return report


def find_slides(inputs: Sequence[Path], out_dir: Path) -> list[Path]:
    """Slide files among the inputs; folders are searched below, in order, leaving out hidden files and ``out_dir``.

    Raises:
        InputError: an input does not exist, no slide is found, or two files would get the same slide id.
    """
    paths: list[Path] = []
    for path in inputs:
        if path.is_dir():
            found = (p for p in path.rglob("*") if p.suffix.lower() in SLIDE_SUFFIXES and p.is_file())
            inside = sorted(p for p in found if not p.name.startswith(".") and not _is_below(p, out_dir))
            if not inside:
                raise InputError(f"{path} holds no slide; known suffixes: {' '.join(SLIDE_SUFFIXES)}.")
            paths.extend(inside)
        elif path.is_file():
            paths.append(path)
        else:
            raise InputError(f"{path} does not exist. Check the path of the slide or folder.")
    names: dict[str, Path] = {}
    for path in paths:
        other = names.setdefault(slide_name(path.name), path)
        if other is not path:
            raise InputError(
                f"{other} and {path} would both be slide {slide_name(path.name)!r}: rename one, or name only one."
            )
    if not paths:
        raise InputError("no input was given: name slides, or folders with slides.")
    return paths


def _is_below(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def _make_job(path: Path, labels: Labels | None) -> SlideJob | str:
    """A job, or the reason why there is none."""
    slide_id = slide_name(path.name)
    if labels is None:
        site = tcga_site(slide_id)
        return SlideJob(path, slide_id, slide_id[:12] if site else slide_id, site=site)
    match = labels.match(slide_id)
    if match is None:
        return f"no row in the label table for {slide_id}"
    if match.label is None:
        return f"label is blank for {slide_id} (patient {match.patient_id})"
    return SlideJob(path, slide_id, match.patient_id, match.label, match.site, labels.mpp(slide_id))


def _describe(options: TilingOptions, labels: Labels | None, synthetic: bool) -> DatasetInfo:
    return DatasetInfo(
        classes=list(labels.classes) if labels else [],
        tile_size_px=options.tile_size_px,
        mpp=options.mpp,
        label_level=labels.label_level if labels else "patient",
        options=asdict(options) | {"labels": labels is not None},
        made_by={"program": "preprocessing.tile_slides"}
        | {name: importlib.metadata.version(name) for name in _LIBRARIES},
        synthetic=synthetic,
    )


def _open_folder(out_dir: Path, info: DatasetInfo) -> None:
    """Write dataset.json, or check that the one there was made with the same options."""
    if not (out_dir / DATASET_FILE).exists():
        strangers = sorted(path.name for path in out_dir.iterdir() if not path.name.endswith(".part"))
        if strangers:
            raise InputError(
                f"{out_dir} is not empty (it holds {strangers[0]}) and not a dataset: choose another --out."
            )
        write_info(out_dir, info)
        return
    there = read_info(out_dir)
    if there.made_by.get("program") != info.made_by["program"]:
        raise InputError(f"{out_dir} was made by {there.made_by.get('program')}: choose another --out.")
    old: dict[str, Any] = there.options | {
        "classes": there.classes,
        "label_level": there.label_level,
        "synthetic": there.synthetic,
    }
    new: dict[str, Any] = info.options | {
        "classes": info.classes,
        "label_level": info.label_level,
        "synthetic": info.synthetic,
    }
    # The usual second run: slides without a resolution were refused, now it is stated. No finished slide changes.
    stated = old.get("assume_mpp") != new["assume_mpp"] and not _any_assumed(out_dir)
    if stated:
        old["assume_mpp"] = there.options["assume_mpp"] = new["assume_mpp"]
    for name in dict.fromkeys(["labels", *new, *old]):
        if old.get(name) != new.get(name):
            raise InputError(
                f"{out_dir} was made with {name} = {old.get(name)!r}, this run has {new.get(name)!r}: "
                "use the same options, or choose another --out."
            )
    if stated:
        write_info(out_dir, there)


def _any_assumed(out_dir: Path) -> bool:
    records = (read_record(out_dir, slide_id)[0] for slide_id in finished_slides(out_dir))
    return any(record.mpp_source == ASSUMED for record in records)


def _remove_leftovers(out_dir: Path) -> None:
    """Delete the unfinished files of a run that was killed."""
    for path in out_dir.rglob(".*.part"):
        path.unlink(missing_ok=True)
    for path in (out_dir / "shards").glob("*.tar"):
        if not sidecar_path(out_dir, path.stem).exists():
            path.unlink(missing_ok=True)


class _Progress:
    """The bar on standard error: slides done, tiles looked at, tiles per second."""

    def __init__(self, total: int, skipped: int, show: bool) -> None:
        self._bar = progress_bar(total + skipped, what="tiling", unit="slide", done=skipped, show=show)
        self._show, self._tiles, self._started = show, 0, time.monotonic()

    def add_tiles(self, count: int) -> None:
        self._tiles += count
        seconds = max(time.monotonic() - self._started, 1e-6)
        self._bar.set_postfix_str(f"{self._tiles} tiles, {self._tiles / seconds:.0f} tiles/s", refresh=False)
        self._bar.update(0)

    def end_slide(self, outcome: Outcome) -> None:
        self._bar.update()
        if outcome.failure is not None and self._show:
            self._bar.write(f"{outcome.job.path.name}: {outcome.failure}", file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


def _write_tables(out_dir: Path, labels: Labels | None, report: TilingReport) -> None:
    """Bring what is stored into line with the label table, and join it into the tables of the dataset."""
    records: list[SlideRecord] = []
    tables: list[pa.Table] = []
    failures = dict(report.failures)
    for slide_id in finished_slides(out_dir):
        record, table = read_record(out_dir, slide_id)
        if record.file_name in failures:
            continue
        job = _make_job(Path(record.file_name), labels)
        if isinstance(job, str):
            failures[record.file_name] = job
            continue
        record, table = _relabel(out_dir, record, table, job)
        if record.unreadable:
            failures[record.file_name] = f"{record.unreadable} tiles unreadable (the other tiles are in the dataset)"
        records.append(record)
        tables.append(table)
    manifest = pa.concat_tables(tables) if tables else TILE_COLUMNS.empty_table()
    report.tiles = manifest.num_rows
    report.failures = sorted(failures.items())
    if not _holds(out_dir / MANIFEST_FILE, manifest):
        write_manifest(out_dir / MANIFEST_FILE, manifest)
    rows = [record.to_row() for record in records]
    columns = list(_EMPTY_RECORD.to_row())
    for name, frame in (
        (SLIDES_FILE, pd.DataFrame(rows, columns=columns)),
        (FAILURES_FILE, pd.DataFrame(report.failures, columns=["input", "reason"])),
    ):
        path, text = out_dir / name, frame.to_csv(index=False, lineterminator="\n")
        if not path.is_file() or path.read_bytes() != text.encode():
            write_table(path, frame)


def _holds(path: Path, table: pa.Table) -> bool:
    """Whether a parquet file is already what it should be: a run with nothing to do should touch nothing."""
    try:
        return bool(pq.read_table(path).equals(table))
    except (OSError, pa.ArrowException):
        return False


_EMPTY_RECORD = SlideRecord("", "", "", 0, 0, 0.0, "")


def _relabel(out_dir: Path, record: SlideRecord, table: pa.Table, job: SlideJob) -> tuple[SlideRecord, pa.Table]:
    """Follow a label table that was corrected since the slide was tiled; the tiles stay as they are."""
    wanted = {"patient_id": job.patient_id, "label": job.label, "site": job.site}
    if all(table.column(name)[0].as_py() == value for name, value in wanted.items()):
        return record, table
    rows = [row | wanted for row in table.to_pylist()]
    record.patient_id = job.patient_id
    write_record(out_dir, record, rows)
    return read_record(out_dir, record.slide_id)
