"""Many slides into one dataset folder: what is still to do, who does it, and the tables at the end."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import pyarrow as pa

from kdml_med.errors import InputError
from kdml_med.program import progress_bar
from kdml_med.storage.files import Fingerprint, Rows, not_alone
from kdml_med.storage.folder import FULL_HASH, DatasetFolder, list_versions
from kdml_med.storage.manifest import SLIDES_FILE, TILE_COLUMNS, DatasetInfo, read_info, write_info
from kdml_med.storage.rows import compact_rows
from kdml_med.storage.shards import find_origins, write_record
from kdml_med.tables.labels import LabelTable
from kdml_med.tables.names import slide_name
from kdml_med.tables.usage import describe_labels
from kdml_med.words import counted, printable
from kdml_med.workers import Workers, reach_cluster, run_jobs
from kdml_med.wsi.copies import find_copies
from kdml_med.wsi.cutter import SlideJob
from kdml_med.wsi.labelling import count_rows, find_absent, find_standing, make_job, place_of, remake_job
from kdml_med.wsi.opening import find_crop
from kdml_med.wsi.options import PIXEL_RULES, TilingOptions
from kdml_med.wsi.overview import THUMBNAILS_DIR
from kdml_med.wsi.shards import SlideRecord, slide_rows
from kdml_med.wsi.slide import ASSUMED, FROM_TABLE, SlideError
from kdml_med.wsi.sources import FoundSlides, find_slides, list_files
from kdml_med.wsi.storing import cut_slide

_CRASHED = "the reader crashed on this file"
_LIBRARIES = (
    "kdml_med",
    "openslide-python",
    "openslide-bin",
    "tifffile",
    "simplejpeg",
    "opencv-python-headless",
    "imagecodecs",
    "pillow",
    "numpy",
)


@dataclass
class TilingReport:
    """What a run did.

    Attributes:
        done: slides tiled by this run.
        skipped: slides that an earlier run had finished.
        remade: slides that were there, made from something else, and what is different.
        kept: slides that this run does not name and that stay.
        failures: (file name, reason) of slides that have a problem; with the next three the rows of failures.csv.
        absent: (slide or patient, reason) of rows of the label table that ask for a slide which is not there.
        without_slide: (patient, reason) of patients of the label table who have no slide; that is no problem.
        standing: (input, reason) of earlier runs, of inputs that this run does not name; no problem of this run.
        left_out: pictures of slides beside them, which are no slides, (name, reason).
        tiles: in the whole dataset.
        rim: incomplete tiles with tissue at the right and lower edge of slides, in the whole dataset; they are not cut.
    """

    done: int = 0
    skipped: int = 0
    remade: dict[str, str] = field(default_factory=dict)
    kept: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    absent: list[tuple[str, str]] = field(default_factory=list)
    without_slide: list[tuple[str, str]] = field(default_factory=list)
    standing: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    tiles: int = 0
    rim: int = 0


def tile_slides(
    inputs: Sequence[Path],
    out_dir: Path,
    options: TilingOptions,
    *,
    labels: LabelTable | None = None,
    tcga_normals: bool = False,
    workers: int = 1,
    progress: bool = True,
    synthetic: bool = False,
    full_hash: bool = False,
    keep: bool = False,
    force: bool = False,
    scheduler: str | None = None,
) -> TilingReport:
    """Tile slides into a dataset folder; slides that are finished there are left alone.

    A slide whose file has changed is tiled anew. A slide that cannot be used is named in failures.csv and tried again
    by the next run; so is one whose file cannot be read any more, and its tiles stay. Byte copies of one slide for
    several patients or classes are refused, where one is tiled already only the others. Otherwise the folder's bytes
    depend on slides, labels and options only, not on ``workers`` nor on how often the work was cut off and taken up
    again.

    Args:
        inputs: slides, and folders that are searched for slides.
        out_dir: dataset folder; made when absent.
        options: settings; a folder made with others is refused.
        labels: patients and labels; None makes a dataset for inference.
        tcga_normals: normal tissue has the label of its patient's tumour, too, where labels belong to patients.
        workers: cores to use, for slides side by side and for rows within a slide; with a scheduler, of each worker.
        progress: show a bar on standard error.
        synthetic: the slides are generated; recorded in dataset.json.
        full_hash: tell slides apart by all of their bytes; recorded in dataset.json.
        keep: slides in the folder that this run does not name stay, and none is replaced; so do rows of failures.csv.
        force: slides in the folder that this run does not name are deleted.
        scheduler: address of a Dask scheduler whose workers tile the slides instead, one each at a time; they have to
            see slides and ``out_dir`` under the same names.

    Raises:
        InputError: inputs are missing or share a name, or the folder is in use, was made with other options, or holds
            slides that this run does not name, or the workers cannot be used. Nothing was written then. Or the
            scheduler is lost on the way.
    """
    if workers < 1:
        raise InputError(f"--workers is {workers}, expected at least 1.")
    out_dir = Path(out_dir)
    inputs = [Path(path) for path in inputs]
    found = find_slides(inputs, out_dir)
    info = _describe(options, labels, synthetic, full_hash)
    report = TilingReport(left_out=found.left_out)
    needed = [path if path.is_dir() else path.parent for path in inputs]
    with (
        reach_cluster(scheduler, folders=[*needed, out_dir], libraries=_LIBRARIES, crashed=_CRASHED) as cluster,
        DatasetFolder(out_dir, info, SlideRecord, changeable=_unused_options, pictures=THUMBNAILS_DIR) as folder,
    ):
        earlier = folder.read_failures() if keep else []
        jobs: list[SlideJob] = []
        for path in found.slides:
            job = make_job(path, place_of(path, inputs), labels, tcga_normals=tcga_normals)
            if isinstance(job, SlideJob):
                jobs.append(job)
            else:
                report.failures.append((path.name, job))
        named = [*(slide_name(path.name) for path in found.slides), *found.lost]
        strangers = folder.find_strangers(named, allowed=keep or force)
        jobs = with_origins(jobs, full_hash, workers, progress)
        copies = find_copies(jobs, folder, strangers if keep else (), labels, tcga_normals=tcga_normals)
        report.failures += copies.values()
        jobs = [job for job in jobs if job.slide_id not in copies]
        mpps = {job.slide_id: job.table_mpp for job in jobs}
        work = folder.plan(
            {job.slide_id: job.origin for job in jobs},
            strangers,
            keep=keep,
            outdated=lambda record: mpp_change(record, mpps[record.slide_id]),
        )
        _check_kept(folder, work.kept, labels)
        pending = [job for job in jobs if job.slide_id in work.pending]
        report.skipped, report.remade, report.kept = len(jobs) - len(pending), work.remade, len(work.kept)
        _cut_all(pending, folder, options, workers, report, progress, cluster)
        folder.remove_leftovers()
        report.standing = find_standing(earlier, found, folder.finished())
        there = [*(slide_name(path.name) for path in found.slides), *found.lost, *folder.finished()]
        there += [slide_name(name) for name, _ in report.standing]
        if labels is not None:
            report.absent, report.without_slide = find_absent(labels, there, found.files, found.slides)
        unread = {name: tell_unread(name, files, "tiles") for name, files in work.unread.items()}
        older = {slide_name(path.name): path for path in found.slides if slide_name(path.name) not in work.pending}
        _write_tables(folder, labels, report, found, there, copies, unread, older, tcga_normals=tcga_normals)
    return report


def _cut_all(
    jobs: Sequence[SlideJob],
    folder: DatasetFolder[SlideRecord],
    options: TilingOptions,
    workers: int,
    report: TilingReport,
    progress: bool,
    cluster: Workers | None,
) -> None:
    with contextlib.closing(SlideProgress(len(jobs), report.skipped, progress)) as bar:
        for job, failure in cut_slides(jobs, folder.path, options, workers, bar.add_tiles, cluster):
            bar.end_slide(job, failure)
            if failure is None:
                folder.take_stored(job.slide_id)
            else:
                report.failures.append((job.path.name, failure))
    report.done = folder.await_stored()


def cut_slides(
    jobs: Sequence[SlideJob],
    out_dir: Path,
    options: TilingOptions,
    workers: int,
    on_tiles: Callable[[int], None],
    cluster: Workers | None = None,
) -> Iterator[tuple[SlideJob, str | None]]:
    """Tile slides on some cores, or on a cluster.

    As many slides as there are workers are tiled side by side; when there are fewer slides, each gets several threads.

    Args:
        jobs: slides to tile.
        out_dir: dataset folder.
        options: of the run.
        workers: cores to use.
        on_tiles: told from time to time how many more tiles were looked at.
        cluster: workers elsewhere, each of which tiles one slide at a time on ``workers`` cores.

    Yields:
        Each slide as it ends, and why it could not be tiled; None when it is stored.

    Raises:
        InputError: the output cannot be written.
    """
    processes = max(1, min(workers, len(jobs)))
    threads = max(1, workers // processes) if cluster is None else workers
    cut = partial(_cut, out_dir=out_dir, options=options, threads=threads)
    yield from run_jobs(jobs, cut, processes=processes, on_progress=on_tiles, crashed=_CRASHED, cluster=cluster)


def _cut(
    job: SlideJob, on_tiles: Callable[[int], None], *, out_dir: Path, options: TilingOptions, threads: int
) -> str | None:
    try:
        with not_alone():
            cut_slide(job, out_dir, options, threads=threads, on_tiles=on_tiles)
    except SlideError as error:
        return str(error)
    return None


def with_origins(jobs: Sequence[SlideJob], full_hash: bool, threads: int, progress: bool) -> list[SlideJob]:
    """Jobs that know what tells their files from others; folders do not count, since a slide goes by its file name."""
    files = {job.slide_id: list_files(job.path) for job in jobs}
    with progress_bar(sum(map(len, files.values())), what="comparing", unit="file", show=progress) as bar:
        origins = find_origins(files, rules=PIXEL_RULES, full=full_hash, threads=threads, on_done=bar.update)
    return [replace(job, origin=origins[job.slide_id]) for job in jobs]


def _describe(options: TilingOptions, labels: LabelTable | None, synthetic: bool, full_hash: bool) -> DatasetInfo:
    return DatasetInfo(
        classes=list(labels.classes) if labels else [],
        tile_size_px=options.tile_size_px,
        mpp=options.mpp,
        label_level=labels.label_level if labels else "patient",
        options=asdict(options) | {"labels": labels is not None} | ({FULL_HASH: True} if full_hash else {}),
        made_by=list_versions("preprocessing.tile_slides", _LIBRARIES),
        synthetic=synthetic,
    )


def _unused_options(folder: DatasetFolder[SlideRecord]) -> Collection[str]:
    """The usual second run: slides without a resolution were refused, now it is stated. No finished slide changes."""
    records = (folder.read(name)[0] for name in folder.finished())
    return () if any(record.mpp_source == ASSUMED for record in records) else ("assume_mpp",)


def mpp_change(record: SlideRecord, table_mpp: float | None) -> str | None:
    """Why a slide has to be tiled anew though its file is the same: it got its resolution from the label table."""
    if record.mpp_source == FROM_TABLE and table_mpp != record.mpp:
        stated = "none" if table_mpp is None else f"{table_mpp:.6g}"
        return f"the label table gave {record.mpp:.6g} µm/px, now {stated}"
    if record.mpp_source == ASSUMED and table_mpp is not None:
        return f"{record.mpp:.6g} µm/px was assumed, now the label table gives {table_mpp:.6g}"
    return None


def _check_kept(folder: DatasetFolder[SlideRecord], kept: Sequence[str], labels: LabelTable | None) -> None:
    for slide_id in kept:
        record = folder.read(slide_id)[0]
        change = mpp_change(record, labels.mpp(slide_id) if labels else None)
        if change is None and record.origin is not None:
            change = record.origin.tell_change(replace(record.origin, rules=PIXEL_RULES))
        if change is not None:
            raise InputError(f"slide {slide_id!r} is kept as it was tiled, but {change}: name it among the inputs too.")


class SlideProgress:
    """The bar on standard error: slides done, tiles looked at, tiles per second."""

    def __init__(self, total: int, skipped: int, show: bool, *, what: str = "tiling") -> None:
        self._bar = progress_bar(total + skipped, what=what, unit="slide", done=skipped, show=show)
        self._show, self._tiles, self._started = show, 0, time.monotonic()

    def add_tiles(self, count: int) -> None:
        """So many more tiles were looked at."""
        self._tiles += count
        seconds = max(time.monotonic() - self._started, 1e-6)
        self._bar.set_postfix_str(f"{self._tiles} tiles, {self._tiles / seconds:.0f} tiles/s", refresh=False)
        self._bar.update(0)

    def end_slide(self, job: SlideJob, failure: str | None) -> None:
        """A slide has ended; why it failed, or None."""
        self._bar.update()
        if failure is not None and self._show:
            self._bar.write(printable(f"{job.path.name}: {failure}"), file=sys.stderr)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


def _write_tables(
    folder: DatasetFolder[SlideRecord],
    labels: LabelTable | None,
    report: TilingReport,
    found: FoundSlides,
    there: Sequence[str],
    copies: Collection[str],
    unread: Mapping[str, str],
    older: Mapping[str, Path],
    *,
    tcga_normals: bool,
) -> None:
    """Bring what is stored into line with the label table, and join it into the tables of the dataset."""
    records: list[SlideRecord] = []
    tables: list[pa.Table] = []
    problems = dict(report.failures)
    lost = (set(found.lost) - {slide_name(path.name) for path in found.slides}) | set(copies)
    for slide_id in folder.finished():
        record, table = folder.read(slide_id)
        if record.file_name in problems or slide_id in lost:
            continue
        job = remake_job(record, labels, tcga_normals=tcga_normals)
        if isinstance(job, str):
            problems[record.file_name] = job
            continue
        record, table = _relabel(folder, record, table, job)
        record, table = _add_bounds(folder, record, table, older.get(slide_id))
        partial_loss = "; ".join(filter(None, (unread.get(slide_id), describe_loss(record))))
        if partial_loss:
            problems[record.file_name] = partial_loss
        records.append(record)
        tables.append(compact_rows(table, folder.kind.layout))
    manifest = pa.concat_tables(tables) if tables else TILE_COLUMNS.empty_table()
    report.tiles = manifest.num_rows
    report.rim = sum(record.rim for record in records)
    report.failures = sorted([*problems.items(), *found.problems])
    rows = slide_rows(records)
    slides = Rows(list(rows[0] if rows else EMPTY_RECORD.to_row()), [list(row.values()) for row in rows])
    if labels is not None:
        uses = count_rows(labels, there, [record.slide_id for record in records])
        labelled = manifest.select(["patient_id", "label"]).to_pandas()
        info = read_info(folder.path)
        info.labels = describe_labels(labels.source, uses, labelled, labels.classes, tcga_normals=tcga_normals)
        write_info(folder.path, info)
    failures = sorted(report.failures + report.absent + report.without_slide + report.standing)
    folder.write_tables(manifest, failures, {SLIDES_FILE: slides})


def tell_unread(slide_id: str, files: Sequence[Fingerprint], kept: str) -> str:
    """What is said of a finished slide whose files cannot be read now, so that they may be others."""
    name = "" if slide_name(files[0].name) == slide_id else f"{printable(files[0].name)} "
    return f"{name}cannot be read: {files[0].problem}; its {kept} of an earlier run stay"


def describe_loss(record: SlideRecord) -> str:
    """What is missing of a slide whose other tiles are in the dataset; "" when nothing is."""
    unread = ""
    if record.unreadable:
        unread = f"{counted(record.unreadable, 'tile')} unreadable (the other tiles are in the dataset)"
    return "; ".join(filter(None, (unread, record.left_out)))


EMPTY_RECORD = SlideRecord("", "", "", 0, 0, 0.0, "")
"""For the columns of a table without slides."""


def _relabel(
    folder: DatasetFolder[SlideRecord], record: SlideRecord, table: pa.Table, job: SlideJob
) -> tuple[SlideRecord, pa.Table]:
    """Follow a label table that was corrected since the slide was tiled; the tiles stay as they are."""
    wanted = {"patient_id": job.patient_id, "label": job.label, "site": job.site}
    if all(table.column(name)[0].as_py() == value for name, value in wanted.items()):
        return record, table
    folder.withdraw_manifest()
    rows = [row | wanted for row in table.to_pylist()]
    record.patient_id = job.patient_id
    write_record(folder.path, record.slide_id, record, rows, folder.kind)
    return folder.read(record.slide_id)


def _add_bounds(
    folder: DatasetFolder[SlideRecord], record: SlideRecord, table: pa.Table, path: Path | None
) -> tuple[SlideRecord, pa.Table]:
    """Say which part of the plane was scanned, which earlier versions did not record; the tiles stay as they are."""
    bounds = None if record.bounds is not None or path is None else find_crop(path)
    if bounds is None:
        return record, table
    record.bounds = bounds
    write_record(folder.path, record.slide_id, record, table.to_pylist(), folder.kind)
    return folder.read(record.slide_id)
