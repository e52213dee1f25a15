"""What detectors found in new frames, led back to the pixels of their sources: tables, COCO, drawn boxes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from kdml_med.colonoscopy.planning import shard_name
from kdml_med.colonoscopy.video import VIDEO_SUFFIXES
from kdml_med.data.frames import FrameDataset
from kdml_med.deploy.annotate import (
    RESEARCH_ONLY,
    Detected,
    SourceSize,
    choose_frames,
    write_annotated_video,
    write_detection_sheet,
)
from kdml_med.keys import DetectionColumn, network_order
from kdml_med.metrics.box_matching import BOX_COLUMNS

SHEET_FILE = "detections.jpg"

_FRAME_COLUMNS = ["source", "frame_index", "sample_id", "sequence_id"]


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


def annotate_sources(
    target: Path,
    dataset: FrameDataset,
    found: pd.DataFrame,
    boxes: pd.DataFrame,
    paths: Mapping[str, Path],
    network: str,
    threshold: float,
    fps: float,
) -> list[str]:
    """Draw the boxes of one network: a video for every video, and a contact sheet of the other frames.

    Args:
        target: folder for the files.
        dataset: the frames, a ``FrameDataset``.
        found: detections of the network, columns of ``DetectionColumn``, pixels of the stored frames.
        boxes: from ``boxes_in_source``.
        paths: of the sources, by name; empty for a dataset folder.
        network: whose boxes they are.
        threshold: score from which a detection is drawn.
        fps: frames per second that were taken from videos.

    Returns:
        Names of the files.
    """
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
