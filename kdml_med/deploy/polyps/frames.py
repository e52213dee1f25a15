"""What detectors found in new frames, led back to the pixels of their sources: tables, COCO, drawn boxes."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from kdml_med.colonoscopy.boxes import Box, FrameError
from kdml_med.colonoscopy.frames import Placement
from kdml_med.colonoscopy.planning import shard_name
from kdml_med.colonoscopy.video import is_video
from kdml_med.data.frames import FrameDataset
from kdml_med.deploy.polyps.annotate import Detected, SourceSize, write_annotated_video
from kdml_med.deploy.polyps.frame_sheet import collect_frames, write_sheets
from kdml_med.keys import DetectionColumn, network_order
from kdml_med.metrics.box_matching import BOX_COLUMNS, match_detections, read_frames
from kdml_med.metrics.detection import by_network, count_at, found_boxes
from kdml_med.program import progress_bar
from kdml_med.words import RESEARCH_ONLY

SHEET_FILE = "detections.jpg"

_FRAME_COLUMNS = ["source", "frame_index", "sample_id", "sequence_id"]
_JUDGED = ["found", "missed", "false"]


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
    table = _number_frames(frame[_FRAME_COLUMNS])
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


def judge_frames(
    rows: pd.DataFrame, found: pd.DataFrame, thresholds: Mapping[str, float], networks: Sequence[str]
) -> dict[str, pd.DataFrame]:
    """Compare what each network found at its threshold with the annotation, by the rule of the metrics (IoU of 0.5).

    Args:
        rows: of the manifest; a frame without a label is not judged.
        found: columns of ``DetectionColumn``, pixels of the stored frames.
        thresholds: of each network.
        networks: names, also of those that found nothing.

    Returns:
        By network, a row for each of ``rows``: ``found``, ``missed`` and ``false``, numbers of boxes (Int64, missing
        without a label), and ``missed_boxes``, one bool for each annotated box (None without a label).
    """
    truth = read_frames(rows)
    ends = np.cumsum(truth.boxes_per_frame)
    places = pd.Index(truth.sample_ids, dtype=object).get_indexer(rows["sample_id"].astype(object))
    judged = {}
    for name, table in by_network(found, networks).items():
        matches = match_detections(truth, table, iou_thresholds=(0.5,))
        counts, hit = count_at(matches, thresholds[name]), found_boxes(matches, thresholds[name])
        missed = [None if place < 0 else ~hit[ends[place] - counts.boxes[place] : ends[place]] for place in places]
        columns = {"found": counts.found, "missed": counts.boxes - counts.found, "false": counts.false_positives}
        judged[name] = pd.DataFrame(
            {
                column: pd.array([pd.NA if place < 0 else int(values[place]) for place in places], dtype="Int64")
                for column, values in columns.items()
            }
        ).assign(missed_boxes=pd.Series(missed, dtype=object))
    return judged


def count_frames(
    rows: pd.DataFrame,
    boxes: pd.DataFrame,
    networks: Sequence[str],
    judged: Mapping[str, pd.DataFrame],
    first: str | None = None,
    seen: Collection[str] = (),
) -> pd.DataFrame:
    """Table of frames.csv: for each frame and network the number of boxes above the threshold and the best score.

    Where any frame is labelled, also ``annotated``, the number of annotated boxes, and for each network what of these
    it ``found_`` and ``missed_``, how many of its boxes are ``false_``; and whether the training has ``seen`` its
    patient.

    Args:
        rows: of the manifest.
        boxes: from ``boxes_in_source``.
        networks: names, also of those that found nothing.
        judged: from ``judge_frames``.
        first: network whose frames with missed polyps come first, then those with false alarms; None keeps the order.
            Without any label the order is kept, too.
        seen: patients of the training.
    """
    table = _number_frames(rows[[*_FRAME_COLUMNS, "label"]].reset_index(drop=True))
    labelled = bool(rows["label"].notna().any())
    if labelled:
        some = judged[networks[0]]
        table["annotated"] = some["found"] + some["missed"]
        table["seen"] = rows["patient_id"].isin(seen).to_numpy()
    for name in networks:
        groups = boxes[boxes["network"] == name].groupby("sample_id")
        above = groups["above_threshold"].sum()
        table[f"polyps_{name}"] = table["sample_id"].map(above).fillna(0).astype(np.int64)
        table[f"score_{name}"] = table["sample_id"].map(groups["score"].max()).fillna(0.0).astype(np.float64)
        if labelled:
            table[[f"{column}_{name}" for column in _JUDGED]] = judged[name][_JUDGED]
    if first is None or not labelled:
        return table
    missed, false = (table[f"{column}_{first}"].fillna(0).to_numpy(np.int64) > 0 for column in ("missed", "false"))
    group = np.select([missed, false], [0, 1], 2)
    return table.iloc[np.argsort(group, kind="stable")].reset_index(drop=True)


def _number_frames(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose ``frame_index`` is a number in a video; of images a manifest has their place in the sequence."""
    numbers = table["frame_index"].astype("Int64")
    return table.assign(frame_index=numbers.where(table["source"].map(is_video).astype(np.bool_)))


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
    numbered = _number_frames(rows[_FRAME_COLUMNS])
    for name, source, index in zip(rows["sample_id"], rows["source"], numbered["frame_index"], strict=True):
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
    judged: pd.DataFrame,
    paths: Mapping[str, Path],
    unread: Collection[str],
    network: str,
    threshold: float,
    fps: float,
    warning: str = "",
) -> tuple[list[str], dict[str, str]]:
    """Draw the boxes of one network: a video for every video, and contact sheets of labelled and of all other frames.

    Args:
        target: folder for the files.
        dataset: the frames, a ``FrameDataset``.
        found: detections of the network, columns of ``DetectionColumn``, pixels of the stored frames.
        boxes: from ``boxes_in_source``.
        judged: of the network, from ``judge_frames``.
        paths: of the sources, by name; empty for a dataset folder.
        unread: sources that cannot be read now. Of these no video is drawn, and one that was drawn before stays.
        network: whose boxes they are.
        threshold: score from which a detection is drawn.
        fps: frames per second that were taken from videos.
        warning: for the heads of the sheets.

    Returns:
        Names of the files; and why further videos cannot be read, by source.
    """
    rows, written = dataset.rows, []
    problems: dict[str, str] = {}
    own = boxes[(boxes["network"] == network) & boxes["above_threshold"]]
    videos = {name: path for name, path in paths.items() if is_video(path)}
    footer = f"{network}, scores from {threshold:.2f}"
    drawn = int(rows["source"].isin([name for name in videos if name not in unread]).sum())
    with progress_bar(drawn, what="drawing", unit="frame", show=drawn > 0) as bar:
        done = 0
        for name, file in name_videos(list(videos)).items():
            if name in unread:
                continue
            detected, truth = _by(own[own["source"] == name], "frame_index"), _boxes_by_frame(rows, name)
            words = f"{footer}, yellow: annotated" if truth else footer
            try:
                write_annotated_video(
                    target / file, videos[name], fps, detected, words, annotated=truth, on_frame=bar.update
                )
                written.append(file)
            except FrameError as error:
                problems[name] = str(error)
            done += int((rows["source"] == name).sum())
            bar.update(done - bar.n)  # a video that was drawn before is not drawn again
    shown = np.flatnonzero(~rows["source"].isin(list(videos)) | rows["label"].notna())
    frames = collect_frames(rows, shown.tolist(), _by(found, DetectionColumn.SAMPLE_ID), judged, threshold)
    sheets = write_sheets(target / SHEET_FILE, dataset, frames, network=network, threshold=threshold, warning=warning)
    return written + sheets, problems


def _boxes_by_frame(rows: pd.DataFrame, source: str) -> dict[int, list[Box]]:
    """Annotated boxes of the frames of a video, in its pixels."""
    own = rows[(rows["source"] == source) & rows["label"].notna()]
    columns = own[["frame_index", "boxes", "crop_x", "crop_y", "scale", "width", "height"]]
    return {
        int(index): Placement(int(x), int(y), float(scale), int(width), int(height)).to_source(map(tuple, boxes))
        for index, boxes, x, y, scale, width, height in columns.itertuples(index=False)
    }


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
