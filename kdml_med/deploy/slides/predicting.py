"""From slides to predictions, in one go: tiles are cut as for the training of the run, answered, and dropped."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from kdml_med.deploy.slides.classifier import ClassifierPlan, Runtime, plan_classifier
from kdml_med.deploy.slides.one_slide import PredictionJob, SlideSettings, predict_slide
from kdml_med.deploy.slides.prediction_folder import TILES_FILE, Finished, PredictionFolder
from kdml_med.deploy.slides.prediction_report import PredictionReport
from kdml_med.deploy.slides.prediction_tables import could_be_of, join_slides
from kdml_med.engines.evaluator import AVERAGES
from kdml_med.errors import InputError
from kdml_med.keys import NetworkName, Task
from kdml_med.metrics.aggregation import AggregationMethod, Level
from kdml_med.runs import PATIENTS_FILE, RunDescription
from kdml_med.storage.files import content_hash, write_parquet, write_table
from kdml_med.storage.folder import failure_rows, list_versions
from kdml_med.storage.manifest import FAILURES_FILE, SLIDES_FILE
from kdml_med.tables.labels import LabelTable, read_labels
from kdml_med.tables.names import slide_name
from kdml_med.words import RESEARCH_ONLY
from kdml_med.workers import run_jobs
from kdml_med.wsi.cutter import SlideJob
from kdml_med.wsi.labelling import find_absent, make_job, place_of
from kdml_med.wsi.opening import find_crop
from kdml_med.wsi.options import TilingOptions
from kdml_med.wsi.regions import Regions, read_regions
from kdml_med.wsi.slide import ASSUMED
from kdml_med.wsi.sources import FoundSlides, find_slides
from kdml_med.wsi.tiler import SlideProgress, describe_loss, mpp_change, tell_unread, with_origins

_CRASHED = "the reader crashed on this file"
_LIBRARIES = ("kdml_med", "torch", "monai", "openslide-python", "openslide-bin", "simplejpeg", "pillow", "numpy")
_SAME = ("network", "runtime", "weights", "networks", "tiling")
"""Parts of prediction.json that decide every probability."""
_NOT_TAKEN_OVER = ("assume_mpp", "limit_tiles", "seed", "preset", "reader")
"""Options of tiling that belong to the slides of the training; a prediction looks at every tile of tissue."""


def predict_slides(
    run_dir: str | Path,
    inputs: Sequence[str | Path],
    output_dir: str | Path,
    *,
    network: str = NetworkName.ENSEMBLE.value,
    device: str = "cpu",
    workers: int = 1,
    batch_size: int = 16,
    assume_mpp: float | None = None,
    roi: str | Path | None = None,
    labels: LabelTable | str | Path | None = None,
    maps: bool = True,
    runtime: Runtime = "auto",
    level: Level | None = None,
    aggregation: AggregationMethod | None = None,
    ensemble_average: str | None = None,
    progress: bool = True,
) -> PredictionReport:
    """Predict slides with the networks of a run.

    Slides are found, tiles cut and problems reported as by ``kdml_med.wsi.tiler.tile_slides`` with the options of the
    tiles that the run was trained on; every tile of tissue counts. A slide that is finished in ``output_dir`` is left
    alone, unless its file has changed. What is written does not depend on ``workers``, nor on how often the work was
    cut off and taken up again.

    Args:
        run_dir: folder of a finished run for classification.
        inputs: slides, and folders that are searched for slides.
        output_dir: made when absent; one that holds a prediction by other networks or options is refused.
        network: "ensemble" of all students, "student_0" and so on, or "teacher".
        device: of torch.
        workers: cores to use, for slides side by side and for reading and answering within a slide.
        batch_size: tiles that are answered together.
        assume_mpp: micrometres per level-0 pixel of slides whose header says nothing or nonsense.
        roi: GeoJSON with regions outside of which tissue does not count; a folder with <slide id>.geojson for each of
            several slides.
        labels: label table, or its path, that says patients and labels.
        maps: write heat maps and sheets of tiles.
        runtime: see ``kdml_med.deploy.slides.classifier.plan_classifier``.
        level: what tiles are aggregated to, "patient" or "slide"; None as the run says.
        aggregation: how; None as the run says.
        ensemble_average: see ``kdml_med.engines.evaluator.ensemble_probabilities``; None as the run says.
        progress: show a bar on standard error.

    Raises:
        InputError: no run, one of another task, an unknown network, inputs that are missing or share a name, or an
            output folder that cannot be used. Nothing was predicted then. Or the disk is full, say: what is finished
            stays, and the same call goes on.
    """
    run_dir, output_dir, paths = Path(run_dir), Path(output_dir), [Path(path) for path in inputs]
    _check_numbers(workers=workers, batch_size=batch_size)
    _check_words("level", level, (None, *get_args(Level)))
    _check_words("aggregation", aggregation, (None, *get_args(AggregationMethod)))
    _check_words("ensemble_average", ensemble_average, (None, *AVERAGES))
    run = RunDescription.read(run_dir, task=Task.CLASSIFICATION)
    run = replace(
        run,
        level=level or run.level,
        aggregation=aggregation or run.aggregation,
        ensemble_average=ensemble_average or run.ensemble_average,
    )
    options = _tiling_options(run_dir, run, assume_mpp)
    names = run.choose(network)
    table = _read_labels(labels, run)
    found = _find(paths, output_dir)
    regions = _find_regions(roi, found)
    with tempfile.TemporaryDirectory(prefix="kdml_med_") as folder:
        plan = plan_classifier(run_dir, run, names, device=device, runtime=runtime, folder=Path(folder))
        settings = SlideSettings(
            out_dir=output_dir,
            options=options,
            normalise=run.stain == "macenko" and options.stain == "none",
            classifier=plan,
            network=names[0] if len(names) == 1 else NetworkName.ENSEMBLE.value,
            classes=run.classes,
            batch_size=batch_size,
            maps=maps,
            synthetic=run.synthetic,
        )
        content = _describe(run_dir, run, network, settings) | {
            "input": {
                "slides": [path.name for path in found.slides],
                "assume_mpp": assume_mpp,
                "roi": None if roi is None else Path(roi).name,
                "labels": None if table is None else table.source.table,
            }
        }
        with PredictionFolder(output_dir, content, _SAME) as target:
            report = PredictionReport(
                output_dir, left_out=found.left_out, positive=run.classes[-1], network=settings.network
            )
            jobs = _make_jobs(found, paths, table, regions, report, workers, progress)
            work = target.plan(
                {job.slide.slide_id: job.slide.origin for job in jobs},
                [*(slide_name(path.name) for path in found.slides), *found.lost],
                partial(_tell_outdated, {job.slide.slide_id: job.slide for job in jobs}, assume_mpp, maps),
            )
            pending = [job for job in jobs if job.slide.slide_id in work.pending]
            report.remade, report.skipped = work.remade, len(jobs) - len(pending)
            paths_of = {job.slide.slide_id: job.slide.path for job in jobs}
            report.failures += [
                (paths_of[name].name, tell_unread(name, files, "predictions")) for name, files in work.unread.items()
            ]
            _predict_all(pending, settings, workers, report, progress)
            _write_tables(target, jobs, run, names, table, found, report)
    return report


def _check_numbers(**numbers: int) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"--{name} is {value!r}, expected a whole number from 1.")


def _check_words(name: str, value: object, known: Sequence[str | None]) -> None:
    if value not in known:
        words = ", ".join(str(word) for word in known)
        raise InputError(f"--{name} is {value!r}, expected one of {words}.")


def _tiling_options(run_dir: Path, run: RunDescription, assume_mpp: float | None) -> TilingOptions:
    """How tiles of new slides have to be cut."""
    unknown = [name for name in ("mpp", "tile_size_px") if getattr(run, name) is None]
    if run.mpp is None or run.tile_size_px is None:
        raise InputError(
            f"the run {run_dir} does not know {' and '.join(unknown)} of its tiles, so that new slides cannot be cut "
            "alike: it was trained on imported tiles without a resolution or of several sizes. Import them again with "
            "--mpp and train again; or tile the slides yourself, and predict the dataset folder."
        )
    options = {name: value for name, value in run.tile_options.items() if name not in _NOT_TAKEN_OVER}
    return TilingOptions(mpp=run.mpp, tile_size_px=run.tile_size_px, assume_mpp=assume_mpp, **options)


def _read_labels(labels: LabelTable | str | Path | None, run: RunDescription) -> LabelTable | None:
    if labels is None:
        return None
    if not isinstance(labels, LabelTable):
        labels = read_labels(labels, classes=run.classes, label_level=run.level or "patient")
    if labels.classes != run.classes:
        raise InputError(
            f"the run knows the classes {run.classes}, the label table has {labels.classes}; they must be the same and "
            "in the same order."
        )
    if run.level == "patient" and labels.label_level == "slide":
        raise InputError("slides carry the labels, and the run aggregates to patients: use --level slide.")
    return labels


def _find(paths: Sequence[Path], output_dir: Path) -> FoundSlides:
    try:
        return find_slides(paths, output_dir)
    except InputError as error:
        words = str(error).replace("--out is", "the output folder is")
        raise InputError(words.replace("choose another --out", "name another output folder")) from error


def _find_regions(roi: str | Path | None, found: FoundSlides) -> dict[str, Regions | str]:
    """Regions of each slide, or why it has none that can be used; empty where whole slides count."""
    if roi is None:
        return {}
    place, slides = Path(roi), [slide_name(path.name) for path in found.slides]
    if not place.is_dir():
        if len(slides) > 1:
            raise InputError(
                f"--roi {place} is one file, and there are {len(slides)} slides: name one slide, or a folder with "
                f"{slides[0]}.geojson and so on."
            )
        return dict.fromkeys(slides, read_regions(place))
    regions: dict[str, Regions | str] = {}
    for name in slides:
        path = place / f"{name}.geojson"
        try:
            regions[name] = read_regions(path)
        except InputError as error:
            regions[name] = str(error) if path.is_file() else f"the folder {place} of --roi has no {path.name}"
    return regions


def _tell_skipped(skipped: Sequence[str]) -> str:
    more = f", and {len(skipped) - 1} more" if len(skipped) > 1 else ""
    return f"left out: {skipped[0]}{more}"


def _make_jobs(
    found: FoundSlides,
    inputs: Sequence[Path],
    labels: LabelTable | None,
    regions: Mapping[str, Regions | str],
    report: PredictionReport,
    workers: int,
    progress: bool,
) -> list[PredictionJob]:
    """A job for each slide that can be used; the others go to the report."""
    slides: list[SlideJob] = []
    for path in found.slides:
        job = make_job(path, place_of(path, inputs), labels)
        roi = regions.get(slide_name(path.name))
        problem = job if isinstance(job, str) else roi if isinstance(roi, str) else None
        if isinstance(job, SlideJob) and problem is None:
            slides.append(job)
        else:
            report.failures.append((path.name, problem or ""))
    jobs = []
    for slide in with_origins(slides, False, workers, progress):
        roi = regions.get(slide.slide_id)
        if isinstance(roi, Regions):
            origin = replace(slide.origin, facts=f"regions {content_hash(roi.path)}")
            jobs.append(PredictionJob(replace(slide, origin=origin), roi))
            report.notes += [f"{roi.path}: {_tell_skipped(roi.skipped)}"] if roi.skipped else []
        else:
            jobs.append(PredictionJob(slide))
    return jobs


def _tell_outdated(slides: Mapping[str, SlideJob], assume_mpp: float | None, maps: bool, there: Finished) -> str | None:
    """Why a slide has to be predicted anew though its file is the same."""
    record = there.record
    change = mpp_change(record, slides[record.slide_id].table_mpp)
    if change is None and record.mpp_source == ASSUMED and record.mpp != assume_mpp:
        return f"{record.mpp:.6g} µm/px was assumed, now {assume_mpp}"
    if change is None and maps and not there.pictures:
        return "it has no maps yet"
    if change is None and _is_misplaced(there, slides[record.slide_id].path):
        return "an earlier version did not count its shapes and regions from the corner that QuPath shows"
    return change


def _is_misplaced(there: Finished, path: Path) -> bool:
    """Whether shapes were written, or regions read, without regard to the part of the plane that was scanned."""
    record = there.record
    placed = there.pictures or (record.origin is not None and record.origin.facts)
    # Most records hold no bounds because there are none; only the file can tell.
    return record.bounds is None and bool(placed) and find_crop(path) is not None


def _predict_all(
    jobs: Sequence[PredictionJob], settings: SlideSettings, workers: int, report: PredictionReport, progress: bool
) -> None:
    processes = max(1, min(workers, len(jobs)))
    predict = partial(predict_slide, settings=settings, threads=max(1, workers // processes))
    with contextlib.closing(SlideProgress(len(jobs), report.skipped, progress, what="predicting")) as bar:
        for job, failure in run_jobs(jobs, predict, processes=processes, on_progress=bar.add_tiles, crashed=_CRASHED):
            bar.end_slide(job.slide, failure)
            if failure is None:
                report.done += 1
            else:
                report.failures.append((job.slide.path.name, failure))


def _describe(run_dir: Path, run: RunDescription, network: str, settings: SlideSettings) -> dict[str, Any]:
    """Content of prediction.json, but for the input."""
    plan: ClassifierPlan = settings.classifier
    tiling = {name: value for name, value in asdict(settings.options).items() if name not in _NOT_TAKEN_OVER}
    return {
        "research_only": f"{RESEARCH_ONLY}.",
        "run": {
            "name": run_dir.resolve().name,
            "version": run.version,
            "kdml_med": run.kdml_med,
            "synthetic": run.synthetic,
            "classes": run.classes,
            "positive_class": run.classes[-1],
        },
        "network": network,
        "runtime": plan.runtime,
        "weights": dict(zip(plan.names, plan.weights, strict=True)),
        "networks": {
            "image_size": plan.image_size,
            "ensemble_average": plan.average,
            "stain": run.stain,
        },
        "tiling": tiling,
        "level": run.level,
        "aggregation": run.aggregation,
        "versions": list_versions("kdml_med.deploy.slides.predicting", _LIBRARIES),
    }


def _write_tables(
    target: PredictionFolder,
    jobs: Sequence[PredictionJob],
    run: RunDescription,
    names: Sequence[str],
    labels: LabelTable | None,
    found: FoundSlides,
    report: PredictionReport,
) -> None:
    """Join what is known of all slides into the tables of the folder."""
    finished = set(target.finished())
    slides = {job.slide.slide_id: job.slide for job in jobs if job.slide.slide_id in finished}
    there = {slide_id: target.read(slide_id) for slide_id in sorted(slides)}
    seen_in = {slide_id: run.seen_in(could_be_of(job, labelled=labels is not None)) for slide_id, job in slides.items()}
    tables = join_slides(there, slides, names, run, seen_in)
    report.slides, report.tiles, report.patients = len(there), len(tables.tiles), tables.patients
    report.slides_of = tables.slides_of
    report.pictures = {slide_id: slide.pictures for slide_id, slide in there.items()}
    losses = {slides[slide_id].path.name: describe_loss(slide.record) for slide_id, slide in there.items()}
    problems = dict(report.failures) | {
        name: loss.replace("in the dataset", "predicted") for name, loss in losses.items() if loss
    }
    report.failures = sorted([*problems.items(), *found.problems])
    unused: list[tuple[str, str]] = []
    if labels is not None:
        known = [*(slide_name(path.name) for path in found.slides), *found.lost]
        report.absent, unused = find_absent(labels, known, found.files, found.slides)
    failures = sorted([*report.failures, *report.absent, *unused])
    write_parquet(target.path / TILES_FILE, tables.tiles)
    write_table(target.path / SLIDES_FILE, tables.slides)
    write_table(target.path / FAILURES_FILE, failure_rows(failures))
    write_table(target.path / PATIENTS_FILE, tables.patients)
