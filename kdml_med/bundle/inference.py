"""Trained networks on new data: predictions for tiles, detections in images and videos."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from monai.engines import Evaluator

from kdml_med.bundle.evaluation import run_evaluator, write_tile_predictions
from kdml_med.bundle.evaluation_checks import check_target
from kdml_med.bundle.settings import Settings
from kdml_med.bundle.slides import save_slides
from kdml_med.bundle.workflow import is_command
from kdml_med.colonoscopy.boxes import FrameError
from kdml_med.colonoscopy.options import FrameOptions
from kdml_med.colonoscopy.preparing import prepare_frames
from kdml_med.data.frames import FrameDataset
from kdml_med.deploy.pictures.dataset_maps import discard_maps, write_dataset_maps
from kdml_med.deploy.polyps.annotate import SourceSize, source_size
from kdml_med.deploy.polyps.corrections import CORRECTIONS_DIR, check_untouched, list_images, write_corrections
from kdml_med.deploy.polyps.detection_chunks import CHUNKS_DIR, detect_frames, hash_parameters
from kdml_med.deploy.polyps.frames import annotate_sources, boxes_in_source, coco_dataset, count_frames, judge_frames
from kdml_med.deploy.slides.prediction_report import tell_seen
from kdml_med.deploy.slides.prediction_tables import SEEN_IN
from kdml_med.errors import ExitCode, InputError
from kdml_med.keys import NetworkName, Task
from kdml_med.runs import RunDescription, read_run_json, read_thresholds
from kdml_med.storage.files import write_json, write_table
from kdml_med.storage.manifest import FAILURES_FILE, owner_word
from kdml_med.storage.reading import read_table
from kdml_med.words import RESEARCH_ONLY, counted, named_failures, verb

INPUT_FILE = "input.json"
BOXES_FILE = "detections.csv"
COCO_FILE = "detections.coco.json"
FRAMES_FILE = "frames.csv"
FRAMES_DIR = "frames"

_WHOLE_FRAMES_PX = 8192  # where the run was trained on frames of any size
_OF_INPUT = ("source", "dataset_dir", "fps", "run_dir")
_OPTION = re.compile(r"--[a-z][a-z_-]+")


def save_inference(evaluator: Evaluator | None, settings: Settings) -> None:
    """Predict slides where settings name some; else run an evaluator on tiles, and write their predictions.

    Args:
        evaluator: with ``CohortPredictions``; its data loader has a ``TileDataset``. None for slides.
        settings: of the config. With ``maps``, see ``write_dataset_maps``, too.
    """
    if evaluator is None:
        save_slides(settings)
        return
    predictions = run_evaluator(evaluator)
    target, level = Path(settings["output_dir"]), settings["level"]
    run = RunDescription.read(settings["run_dir"], task=Task.CLASSIFICATION)
    dataset, networks = evaluator.data_loader.dataset, evaluator.network.networks
    patients = write_tile_predictions(target, predictions, dataset, level, settings["aggregation"], seen_by=run)
    tiles = predictions["sample_id"].nunique()
    owner = owner_word(dataset.rows, dataset.info) if level == "patient" else level
    print(f"\n{counted(tiles, 'tile')} of {counted(len(patients), owner)}. Written to {target}")
    print(*tell_seen(patients[SEEN_IN]), "", sep="\n")
    discard_maps(target)
    if settings["maps"]:
        names = run.choose(settings["network"])
        looked_into = {name: networks[name] for name in names}
        about: dict[str, Any] = {"classes": run.classes, "synthetic": run.synthetic, "device": settings["device"]}
        about |= {"network": names[0] if len(names) == 1 else NetworkName.ENSEMBLE.value}
        print(write_dataset_maps(target, dataset, predictions, looked_into, **about))


def prepare_source(settings: Settings) -> str:
    """Check what is asked for, and store the frames of new images and videos as the run's were stored.

    Args:
        settings: of the config. With a source, its frames go into the folder ``frames`` of ``output_dir``, and are used
            again.

    Returns:
        The dataset folder with the frames: the one that the settings name where there is no source.

    Raises:
        InputError: with a message for a person.
    """
    source, dataset_dir, output_dir = settings["source"], settings["dataset_dir"], settings["output_dir"]
    run = RunDescription.read(settings["run_dir"], task=Task.DETECTION)
    _check_network(run, settings)
    read_thresholds(settings["run_dir"])
    check_target(settings)
    _check_input(settings)
    if settings["corrections"] is not None:
        check_untouched(Path(output_dir) / CORRECTIONS_DIR)
    annotations = settings["annotations"]
    if source is None:
        if annotations is not None:
            raise InputError(
                "--annotations belongs to --source; a dataset folder has its boxes already: prepare its frames again "
                "with preprocessing.prepare_frames to give it others."
            )
        return str(dataset_dir)
    path, frames_dir = Path(source), Path(output_dir) / FRAMES_DIR
    if path.is_dir() and Path(output_dir).resolve().is_relative_to(path.resolve()):
        raise InputError(
            f"--output_dir {output_dir} lies in --source {source}, so that results would be taken for input next time: "
            "name a folder outside."
        )
    options = FrameOptions(size_px=run.frame_size_px or _WHOLE_FRAMES_PX, fps=settings["fps"], **run.frame_options)
    try:
        report = prepare_frames(
            [path],
            frames_dir,
            options,
            None if annotations is None else Path(annotations),
            workers=max(1, settings["num_workers"]),
        )
    except InputError as error:
        raise InputError(_without_other_options(str(error))) from error
    if not report.frames:
        name, reason = report.failures[0]
        raise InputError(
            f"no frame of {source} can be used; {name}: {reason}. All reasons: {frames_dir / FAILURES_FILE}."
        )
    return str(frames_dir)


def _without_other_options(message: str) -> str:
    """What the preparation of frames says, in the words of this command."""
    message = re.sub(r"choose another --out\b", "choose another --output_dir", message)
    others = sorted(set(_OPTION.findall(message)) - {"--output_dir", "--fps", "--annotations"})
    if others:
        return (
            f"{message} ({others[0]} is an option of preprocessing.prepare_frames: name its folder as --dataset_dir.)"
        )
    return message


def _check_network(run: RunDescription, settings: Settings) -> None:
    network = settings["network"]
    run.choose(network)
    if network == NetworkName.TEACHER and settings["students_only"]:
        raise InputError("--network teacher is asked for, but --students_only is on: leave --students_only out.")


def _describe_input(settings: Settings) -> dict[str, Any]:
    """Content of input.json: what was searched, and by whom."""
    run = {"run_dir": str(Path(settings["run_dir"]).resolve())}
    if settings["source"] is None:
        return {"dataset_dir": str(Path(settings["dataset_dir"]).resolve())} | run
    return {"source": str(Path(settings["source"]).resolve()), "fps": settings["fps"]} | run


def _check_input(settings: Settings) -> None:
    """Refuse an output folder that holds what was found in something else: half of it would stay there."""
    output_dir = Path(settings["output_dir"])
    if not (output_dir / INPUT_FILE).is_file():
        return
    before, now = read_run_json(output_dir, INPUT_FILE), _describe_input(settings)
    before = {"run_dir": now["run_dir"]} | before  # earlier versions did not name the run
    kept = [{name: one[name] for name in _OF_INPUT if name in one} for one in (before, now)]
    if kept[0] != kept[1]:
        shown = [", ".join(f"{name} {value}" for name, value in one.items()) for one in kept]
        raise InputError(
            f"{output_dir} holds the detections of {shown[0]}; this run has {shown[1]}: name another --output_dir."
        )


def _begin(target: Path, settings: Settings, weights: str) -> None:
    """Say whose results are in the folder, and take away what was drawn of those of other weights or networks."""
    drawn = {"weights": weights, "network": settings["network"]}
    path = target / INPUT_FILE
    before = read_run_json(target, INPUT_FILE) if path.is_file() else {}
    if any(before.get(name, value) != value for name, value in drawn.items()):
        for old in [*target.glob("*.annotated.mp4"), *target.glob("detections*.jpg")]:
            old.unlink()
    write_json(path, _describe_input(settings) | drawn)


def save_detections(evaluator: Evaluator, settings: Settings) -> None:
    """Run an evaluator on frames and write detections.csv, frames.csv and detections.coco.json.

    Args:
        evaluator: its data loader has a ``FrameDataset``.
        settings: of the config. With ``annotate``, boxes are drawn: a video for every video, and contact sheets of
            labelled frames and of images. With ``corrections``, boxes are written for an annotation tool.

    Raises:
        SystemExit: run as a command, the work is done, but some inputs could not be used (``ExitCode.SOME_FAILED``).
    """
    network, target = settings["network"], Path(settings["output_dir"])
    thresholds = read_thresholds(settings["run_dir"])
    threshold = thresholds[network]
    _begin(target, settings, hash_parameters(evaluator.network))
    run = RunDescription.read(settings["run_dir"])
    facts = {"networks": run.networks}
    found, names = detect_frames(evaluator, target / CHUNKS_DIR, facts)
    dataset: FrameDataset = evaluator.data_loader.dataset
    root = None if settings["source"] is None else Path(settings["source"])
    paths = {} if root is None else {name: _path_of(root, name) for name in dataset.rows["source"].unique()}
    sizes, unread = _sizes_of(paths)
    boxes = boxes_in_source(dataset.rows, found, thresholds, sizes)
    judged = judge_frames(dataset.rows, found, thresholds, names)
    judged_patients = dataset.rows.loc[dataset.rows["label"].notna(), "patient_id"].unique()
    seen = [patient for patient in judged_patients if run.has_seen(patient)]
    frames = count_frames(dataset.rows, boxes, names, judged, network, seen)
    warning = _warn_of_seen(frames)
    write_table(target / BOXES_FILE, boxes)
    write_table(target / FRAMES_FILE, frames)
    write_json(target / COCO_FILE, coco_dataset(dataset.rows, boxes, network, threshold, sizes))
    written = [BOXES_FILE, FRAMES_FILE, COCO_FILE]
    if settings["annotate"]:
        own = found[found["network"] == network]
        files, problems = annotate_sources(
            target, dataset, own, boxes, judged[network], paths, unread, network, threshold, settings["fps"], warning
        )
        written, unread = written + files, unread | problems
    if settings["corrections"] is not None:
        images = list_images(dataset, found, boxes, paths, sizes, network=network, threshold=threshold)
        report = write_corrections(
            target / CORRECTIONS_DIR, dataset, images, settings["corrections"], network=network, threshold=threshold,
            fps=settings["fps"], with_images=settings["correction_images"],
        )  # fmt: skip
        size = f", {report.image_bytes / 1e6:,.1f} MB" if settings["correction_images"] else ""
        written.append(
            f"{CORRECTIONS_DIR} ({counted(report.boxes, 'box', 'es')} in {counted(report.images, 'image')}{size})"
        )
    _print_summary(target, frames, names, thresholds, written, warning)
    if root is not None:
        _name_failures(dataset.dataset_dir / FAILURES_FILE, unread)


def _sizes_of(paths: Mapping[str, Path]) -> tuple[dict[str, SourceSize], dict[str, str]]:
    """Sizes of the sources that can be read, and why others cannot, whose frames were stored by an earlier run."""
    sizes, unread = {}, {}
    for name, path in paths.items():
        try:
            sizes[name] = source_size(path)
        except (OSError, FrameError) as error:
            unread[name] = str(getattr(error, "strerror", None) or error)
    return sizes, unread


def _path_of(root: Path, name: str) -> Path:
    return root / name if root.is_dir() else root


def _print_summary(
    target: Path,
    frames: pd.DataFrame,
    names: Sequence[str],
    thresholds: Mapping[str, float],
    written: Sequence[str],
    warning: str,
) -> None:
    print(f"\n{counted(len(frames), 'frame')} of {counted(frames['source'].nunique(), 'file')}. Frames with a polyp:")
    width = max(map(len, names))
    for name in names:
        count = int((frames[f"polyps_{name}"] > 0).sum())
        print(f"  {name.ljust(width)}  {count:,} (score of at least {thresholds[name]:.3f}){_judgement(frames, name)}")
    print(f"{warning}\n" * bool(warning) + f"{RESEARCH_ONLY}.\nWritten to {target}: {', '.join(written)}\n")


def _judgement(frames: pd.DataFrame, name: str) -> str:
    """What a network missed of what is annotated; nothing where nothing is."""
    if "annotated" not in frames:
        return ""
    found, missed, false = (int(frames[f"{column}_{name}"].sum()) for column in ("found", "missed", "false"))
    return f"; {found:,} of {found + missed:,} annotated boxes found, {missed:,} missed, {false:,} false"


def _warn_of_seen(frames: pd.DataFrame) -> str:
    """What is judged on frames of the training says nothing about new ones; empty where there is none."""
    labelled = frames[frames["label"].notna()]
    if labelled.empty or not (count := int(labelled["seen"].sum())):
        return ""
    return (
        f"{count:,} of {counted(len(labelled), 'annotated frame')} {verb(count, 'was', 'were')} seen by the run in "
        "training or choice, by the names of patients or sequences: of new ones less is found (column seen)."
    )


def _name_failures(path: Path, unread: Mapping[str, str]) -> None:
    """Name what could not be used, and end with the exit code that says so.

    Args:
        path: failures.csv of the frames.
        unread: why sources could not be read since these were prepared.
    """
    failures = read_table(path, ["input", "reason"], remedy="Run the same command again.")
    since = {name: reason for name, reason in unread.items() if name not in set(failures["input"])}
    if failures.empty and not since:
        return
    if len(failures):
        print(f"{counted(len(failures), 'problem')}, all in {path}:")
        print(*named_failures(failures[["input", "reason"]].itertuples(index=False)), sep="\n")
    if since:
        print(f"{counted(len(since), 'file')} could not be read any more, and what needs its pixels is left out:")
        print(*named_failures(since.items()), sep="\n")
    if is_command():
        raise SystemExit(int(ExitCode.SOME_FAILED))
