"""Detections in new images and videos: frames prepared as in training, boxes led back to the pixels of the source."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from monai.engines import Evaluator

from kdml_med.bundle.command_line import check_command_line, errors_for_people
from kdml_med.bundle.results import run_evaluator
from kdml_med.colonoscopy.options import FrameOptions
from kdml_med.colonoscopy.planning import shard_name
from kdml_med.colonoscopy.preparing import prepare_frames
from kdml_med.colonoscopy.video import VIDEO_SUFFIXES
from kdml_med.data.frames import FrameDataset
from kdml_med.deploy.annotate import (
    RESEARCH_ONLY,
    Detected,
    SourceSize,
    choose_frames,
    source_size,
    write_annotated_video,
    write_detection_sheet,
)
from kdml_med.errors import ExitCode, InputError
from kdml_med.keys import DetectionColumn, NetworkName, network_order
from kdml_med.metrics.box_matching import BOX_COLUMNS
from kdml_med.runs import COHORT_FILE, METRICS_FILE, read_run_json
from kdml_med.storage.files import write_json, write_table
from kdml_med.storage.manifest import FAILURES_FILE

INPUT_FILE = "input.json"
BOXES_FILE = "detections.csv"
COCO_FILE = "detections.coco.json"
FRAMES_FILE = "frames.csv"
SHEET_FILE = "detections.jpg"
FRAMES_DIR = "frames"

_WHOLE_FRAMES_PX = 8192  # where the run was trained on frames of any size
_SHOWN = 10  # failures that are named; failures.csv has them all
_FRAME_COLUMNS = ["source", "frame_index", "sample_id", "sequence_id"]


def prepare_source(
    source: Any,
    dataset_dir: str,
    *,
    run_dir: str,
    output_dir: str,
    network: str,
    students_only: bool,
    fps: float,
    workers: int = 1,
) -> str:
    """Check what is asked for, and store the frames of new images and videos as the run's were stored.

    Args:
        source: image, video, or a folder with them; None takes a dataset folder that is there.
        dataset_dir: that folder.
        run_dir: folder of the run.
        output_dir: where results go; frames of a source go into its folder ``frames``, and are used again.
        network: whose detections are drawn and written as COCO.
        students_only: whether the teacher is left out.
        fps: frames per second taken from videos; 0 for all.
        workers: processes that prepare frames.

    Returns:
        The dataset folder with the frames.

    Raises:
        SystemExit: with a message for a person.
    """
    with errors_for_people():
        check_command_line()
        description = read_run_json(Path(run_dir), COHORT_FILE)
        _check_network(description, run_dir, network, students_only)
        _read_thresholds(run_dir)
        _check_input(Path(output_dir), source, dataset_dir, fps)
        if source is None:
            return dataset_dir
        path, frames_dir = Path(str(source)), Path(output_dir) / FRAMES_DIR
        if path.is_dir() and Path(output_dir).resolve().is_relative_to(path.resolve()):
            raise InputError(
                f"--output_dir {output_dir} lies in --source {source}, so that results would be taken for input next "
                "time: name a folder outside."
            )
        options = FrameOptions(
            size_px=description["frame_size_px"] or _WHOLE_FRAMES_PX, fps=fps, **description["frame_options"]
        )
        try:
            report = prepare_frames([path], frames_dir, options, None, workers=max(1, workers))
        except InputError as error:
            raise InputError(str(error).replace("choose another --out", "choose another --output_dir")) from error
        if not report.frames:
            name, reason = report.failures[0]
            raise InputError(
                f"no frame of {source} can be used; {name}: {reason}. All reasons: {frames_dir / FAILURES_FILE}."
            )
    return str(frames_dir)


def _check_network(description: Mapping[str, Any], run_dir: str, network: str, students_only: bool) -> None:
    known = [*sorted(description["networks"], key=network_order), NetworkName.ENSEMBLE.value]
    if network not in known:
        raise InputError(f"--network is {network!r}; the run {run_dir} has: {', '.join(known)}.")
    if network == NetworkName.TEACHER and students_only:
        raise InputError("--network teacher is asked for, but --students_only is on: leave --students_only out.")


def _read_thresholds(run_dir: str) -> dict[str, float]:
    thresholds: dict[str, float] = read_run_json(Path(run_dir), METRICS_FILE)["thresholds"]
    return thresholds


def _describe_input(source: Any, dataset_dir: str, fps: float) -> dict[str, Any]:
    if source is None:
        return {"dataset_dir": str(Path(dataset_dir).resolve())}
    return {"source": str(Path(str(source)).resolve()), "fps": fps}


def _check_input(output_dir: Path, source: Any, dataset_dir: str, fps: Any) -> None:
    """Refuse an output folder that holds what was found in something else: half of it would stay there."""
    if isinstance(fps, bool) or not isinstance(fps, int | float):
        raise InputError(f"--fps is {fps!r}, expected frames per second; 0 takes every frame of a video.")
    if not (output_dir / INPUT_FILE).is_file():
        return
    before, now = read_run_json(output_dir, INPUT_FILE), _describe_input(source, dataset_dir, fps)
    if before != now:
        shown = [", ".join(f"{name} {value}" for name, value in one.items()) for one in (before, now)]
        raise InputError(
            f"{output_dir} holds the detections of {shown[0]}; this run has {shown[1]}: name another --output_dir."
        )


def save_detections(
    evaluator: Evaluator,
    output_dir: str,
    *,
    run_dir: str,
    source: Any,
    dataset_dir: str,
    network: str,
    fps: float,
    annotate: bool,
) -> None:
    """Run an evaluator on frames and write detections.csv, frames.csv and detections.coco.json.

    Args:
        evaluator: with ``CohortDetections``; its data loader has a ``FrameDataset``.
        output_dir: where the files go.
        run_dir: folder of the run, whose validation chose the thresholds.
        source: image, video, or a folder with them that the frames come from; None for a dataset folder.
        dataset_dir: that folder.
        network: whose detections are drawn and written as COCO.
        fps: frames per second that were taken from videos.
        annotate: draw the boxes: a video for every video, and a contact sheet of the other frames.

    Raises:
        SystemExit: the work is done, but some inputs could not be used (``ExitCode.SOME_FAILED``).
    """
    found = run_evaluator(evaluator)
    names = sorted(evaluator.state.networks, key=network_order)
    thresholds = _read_thresholds(run_dir)
    dataset: FrameDataset = evaluator.data_loader.dataset
    root = None if source is None else Path(str(source))
    paths = {} if root is None else {name: _path_of(root, name) for name in dataset.rows["source"].unique()}
    sizes = {name: source_size(path) for name, path in paths.items()}
    boxes = boxes_in_source(dataset.rows, found, thresholds, sizes)
    frames = count_frames(dataset.rows, boxes, names)
    target = Path(output_dir)
    write_json(target / INPUT_FILE, _describe_input(source, dataset_dir, fps))
    write_table(target / BOXES_FILE, boxes)
    write_table(target / FRAMES_FILE, frames)
    write_json(target / COCO_FILE, coco_dataset(dataset.rows, boxes, network, thresholds[network], sizes))
    written = [BOXES_FILE, FRAMES_FILE, COCO_FILE]
    if annotate:
        own = found[found["network"] == network]
        written += _annotate(target, dataset, own, boxes, paths, network, thresholds[network], fps)
    _print_summary(target, frames, names, thresholds, written)
    if source is not None:
        _name_failures(dataset.dataset_dir / FAILURES_FILE)


def _path_of(root: Path, name: str) -> Path:
    return root / name if root.is_dir() else root


def boxes_in_source(
    rows: pd.DataFrame, found: pd.DataFrame, thresholds: Mapping[str, float], sizes: Mapping[str, SourceSize]
) -> pd.DataFrame:
    """Table of detections.csv: one row for each box of each network, frame by frame, the best first.

    Args:
        rows: of the manifest.
        found: columns of ``DetectionColumn``, pixels of the stored frames.
        thresholds: of each network.
        sizes: of the sources, where they are known; boxes are cut to them, because rounding can lead a pixel out.
    """
    place = dict(zip(rows["sample_id"], range(len(rows)), strict=True))
    order = found["network"].map(network_order)
    sorted_found = found.assign(_frame=found["sample_id"].map(place), _network=order)
    sorted_found = sorted_found.sort_values(
        ["_frame", "_network", "score"], ascending=[True, True, False], kind="stable"
    )
    frame = rows.iloc[sorted_found["_frame"].to_numpy(np.intp)].reset_index(drop=True)
    sorted_found = sorted_found.reset_index(drop=True)
    table = frame[_FRAME_COLUMNS].copy()
    table["frame_index"] = table["frame_index"].astype("Int64")
    table[["network", "score"]] = sorted_found[["network", "score"]]
    unknown = SourceSize(np.iinfo(np.int64).max, np.iinfo(np.int64).max)
    for axis, corner in (("x", "crop_x"), ("y", "crop_y")):
        limit = np.array([sizes.get(name, unknown)[axis == "y"] for name in frame["source"]], np.float64)
        for side in ("min", "max"):
            moved = sorted_found[f"{axis}{side}"] / frame["scale"] + frame[corner]
            table[f"{axis}{side}"] = np.minimum(moved, limit).round(2)
    table = table[[*_FRAME_COLUMNS, "network", "score", *BOX_COLUMNS]]
    needed = sorted_found["network"].map(thresholds).astype(np.float64)
    return table.assign(above_threshold=sorted_found["score"] >= needed)


def count_frames(rows: pd.DataFrame, boxes: pd.DataFrame, networks: Sequence[str]) -> pd.DataFrame:
    """Table of frames.csv: for each frame and network the number of boxes above the threshold and the best score.

    Args:
        rows: of the manifest.
        boxes: from ``boxes_in_source``.
        networks: names, also of those that found nothing.
    """
    table = rows[[*_FRAME_COLUMNS, "label"]].reset_index(drop=True)
    table["frame_index"] = table["frame_index"].astype("Int64")
    for name in networks:
        groups = boxes[boxes["network"] == name].groupby("sample_id")
        above = groups["above_threshold"].sum()
        table[f"polyps_{name}"] = table["sample_id"].map(above).fillna(0).astype(np.int64)
        table[f"score_{name}"] = table["sample_id"].map(groups["score"].max()).fillna(0.0).astype(np.float64)
    return table


def coco_dataset(
    rows: pd.DataFrame, boxes: pd.DataFrame, network: str, threshold: float, sizes: Mapping[str, SourceSize]
) -> dict[str, Any]:
    """Detections of one network as a COCO dataset, pixels of the source; all of them, with their scores.

    Args:
        rows: of the manifest.
        boxes: from ``boxes_in_source``.
        network: whose boxes are taken.
        threshold: of that network, for the record.
        sizes: of the sources, where they are known.
    """
    numbers = {name: number for number, name in enumerate(rows["sample_id"], start=1)}
    images = []
    for name, source, index in zip(rows["sample_id"], rows["source"], rows["frame_index"], strict=True):
        image = {"id": numbers[name], "file_name": name, "source": source}
        image |= {} if pd.isna(index) else {"frame_index": int(index)}
        images.append(image | (sizes[source]._asdict() if source in sizes else {}))
    annotations = []
    own = boxes[boxes["network"] == network]
    columns = own[["sample_id", "score", *BOX_COLUMNS]].itertuples(index=False)
    for number, (name, score, xmin, ymin, xmax, ymax) in enumerate(columns, start=1):
        width, height = round(xmax - xmin, 2), round(ymax - ymin, 2)
        annotations.append(
            {
                "id": number,
                "image_id": numbers[name],
                "category_id": 1,
                "bbox": [xmin, ymin, width, height],
                "area": round(width * height, 2),
                "iscrowd": 0,
                "score": score,
            }
        )
    return {
        "info": {"description": f"{RESEARCH_ONLY}. Detections of {network}.", "threshold": threshold},
        "images": images,
        "categories": [{"id": 1, "name": "polyp"}],
        "annotations": annotations,
    }


def _annotate(
    target: Path,
    dataset: FrameDataset,
    found: pd.DataFrame,
    boxes: pd.DataFrame,
    paths: Mapping[str, Path],
    network: str,
    threshold: float,
    fps: float,
) -> list[str]:
    """Draw the boxes of one network; returns the names of the files."""
    own = boxes[(boxes["network"] == network) & boxes["above_threshold"]]
    videos = {name: path for name, path in paths.items() if path.suffix.lower() in VIDEO_SUFFIXES}
    files = name_videos(list(videos))
    for name, file in files.items():
        detected = _by(own[own["source"] == name], "frame_index")
        footer = f"{network}, scores from {threshold:.2f}"
        write_annotated_video(target / file, videos[name], fps, detected, footer)
    written = list(files.values())
    stills = np.flatnonzero(~dataset.rows["source"].isin(list(videos)))
    if len(stills):
        by_sample = _by(found, DetectionColumn.SAMPLE_ID)
        chosen = choose_frames(dataset.rows.iloc[stills], by_sample)
        positions = [int(stills[position]) for position in chosen]
        write_detection_sheet(target / SHEET_FILE, dataset, positions, by_sample, threshold)
        written.append(SHEET_FILE)
    return written


def name_videos(names: Sequence[str]) -> dict[str, str]:
    """File name of the annotated video for each source, all in one folder."""
    files: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        stem = shard_name(str(PurePosixPath(name).with_suffix("")))
        if stem.lower() in taken:  # in other folders, or with another suffix
            stem = f"{stem}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        taken.add(stem.lower())
        files[name] = f"{stem}.annotated.mp4"
    return files


def _by(table: pd.DataFrame, key: str) -> dict[Any, list[Detected]]:
    result: dict[Any, list[Detected]] = {}
    for name, score, *box in table[[key, "score", *BOX_COLUMNS]].itertuples(index=False):
        xmin, ymin, xmax, ymax = box
        result.setdefault(name, []).append(Detected((xmin, ymin, xmax, ymax), score))
    return result


def _print_summary(
    target: Path, frames: pd.DataFrame, names: Sequence[str], thresholds: Mapping[str, float], written: Sequence[str]
) -> None:
    print(f"\n{_number(len(frames), 'frame')} of {_number(frames['source'].nunique(), 'file')}. Frames with a polyp:")
    width = max(map(len, names))
    for name in names:
        count = int((frames[f"polyps_{name}"] > 0).sum())
        print(f"  {name.ljust(width)}  {count:,} (score of at least {thresholds[name]:.3f})")
    print(f"{RESEARCH_ONLY}.\nWritten to {target}: {', '.join(written)}\n")


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _name_failures(path: Path) -> None:
    """Name what could not be used, and end with the exit code that says so."""
    failures = pd.read_csv(path, dtype=str, keep_default_na=False)
    if failures.empty:
        return
    print(f"{_number(len(failures), 'problem')}, all in {path}:")
    for name, reason in failures.head(_SHOWN).itertuples(index=False):
        print(f"  {name}: {reason}")
    if len(failures) > _SHOWN:
        print("  …")
    raise SystemExit(int(ExitCode.SOME_FAILED))
