"""Which detected box found which annotated box: done once for each network, used by every detection metric.

Frames are sorted by ``sample_id`` and detections by score (equal scores: by frame, then in the order of their rows), so
that no figure depends on the order in which frames were loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from kdml_med.keys import DetectionColumn

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Hit = Literal["iou", "centre"]
Group = Literal["sequence", "patient", "frame"]

COCO_IOU_THRESHOLDS: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""0.50, 0.55, …, 0.95, the very floating point numbers of pycocotools."""
MAX_DETECTIONS = 100
BOX_COLUMNS = [
    column.value for column in (DetectionColumn.XMIN, DetectionColumn.YMIN, DetectionColumn.XMAX, DetectionColumn.YMAX)
]

_FRAME_COLUMNS = ("sample_id", "sequence_id", "patient_id", "boxes")
_NEARLY_ONE = 1 - 1e-10  # pycocotools' ceiling of the IoU threshold: equal boxes match even when rounding costs a bit


def box_iou(first: npt.ArrayLike, second: npt.ArrayLike) -> Floats:
    """Intersection over union of every pair of boxes.

    Args:
        first: [n, 4], xmin, ymin, xmax, ymax, pixels.
        second: [m, 4].

    Returns:
        float64, [n, m], 0..1; 0 for boxes without an area.
    """
    one = np.asarray(first, dtype=np.float64).reshape(-1, 4)
    other = np.asarray(second, dtype=np.float64).reshape(-1, 4)
    return _paired_iou(one[:, None], other[None])


def _paired_iou(first: Floats, second: Floats) -> Floats:
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    shared: Floats = np.clip(sides, 0, None).prod(axis=-1)
    areas = (first[..., 2:] - first[..., :2]).prod(axis=-1) + (second[..., 2:] - second[..., :2]).prod(axis=-1)
    result: Floats = np.divide(shared, areas - shared, out=np.zeros_like(shared), where=shared > 0)
    return result


@dataclass(frozen=True)
class AnnotatedFrames:
    """The ground truth of labelled frames in flat arrays, frames sorted by ``sample_id``.

    Attributes:
        sample_ids: [frames].
        sequences: [frames].
        patients: [frames].
        boxes: float64, [boxes, 4], xmin, ymin, xmax, ymax, pixels; frame by frame.
        box_frame: [boxes], index of the frame.
        polyps: object, [boxes], None where unknown.
        unlabelled: frames that are not evaluated.
    """

    sample_ids: npt.NDArray[Any]
    sequences: npt.NDArray[Any]
    patients: npt.NDArray[Any]
    boxes: Floats
    box_frame: Indices
    polyps: npt.NDArray[Any]
    unlabelled: frozenset[str]

    @property
    def boxes_per_frame(self) -> Indices:
        """[frames]."""
        return np.bincount(self.box_frame, minlength=len(self.sample_ids)).astype(np.intp)

    def groups(self, group: Group) -> npt.NDArray[Any]:
        """What each frame is resampled with, [frames].

        Raises:
            ValueError: unknown group.
        """
        if group not in get_args(Group):
            raise ValueError(f"group {group!r}: expected one of {list(get_args(Group))}.")
        return {"sequence": self.sequences, "patient": self.patients, "frame": self.sample_ids}[group]


def read_frames(frames: pd.DataFrame) -> AnnotatedFrames:
    """Take the ground truth from rows of a manifest of frames.

    A frame is labelled when its ``label`` is there, or, in a table without that column, its ``boxes``.

    Args:
        frames: one row for each frame: sample_id, sequence_id, patient_id, boxes (``[n, 4]`` or a list of n lists, or
            None), and if known label and polyp_ids (one for each box, or None).

    Raises:
        ValueError: a column is missing, a frame occurs twice, a box has not four finite corners with
            xmin ≤ xmax and ymin ≤ ymax, or polyp_ids are not one for each box.
    """
    missing = [name for name in _FRAME_COLUMNS if name not in frames]
    if missing:
        raise ValueError(f"the frames lack the columns {missing}; they have {list(frames.columns)}.")
    repeated = frames["sample_id"][frames["sample_id"].duplicated()]
    if len(repeated):
        raise ValueError(f"frame {repeated.iloc[0]!r} occurs more than once.")
    labelled = frames["label" if "label" in frames else "boxes"].notna()
    used = frames[labelled].sort_values("sample_id", kind="stable")
    boxes = [_box_array(cell, name) for cell, name in zip(used["boxes"], used["sample_id"], strict=True)]
    cells = used["polyp_ids"] if "polyp_ids" in used else [None] * len(used)
    polyps: list[Any] = []
    for name, own, cell in zip(used["sample_id"], boxes, cells, strict=True):
        known = [None] * len(own) if cell is None or (np.ndim(cell) == 0 and pd.isna(cell)) else list(cell)
        if len(known) != len(own):
            raise ValueError(f"frame {name!r} has {len(own)} boxes and {len(known)} polyp_ids, expected one each.")
        polyps += known
    return AnnotatedFrames(
        sample_ids=used["sample_id"].to_numpy(dtype=object),
        sequences=used["sequence_id"].to_numpy(dtype=object),
        patients=used["patient_id"].to_numpy(dtype=object),
        boxes=np.concatenate([np.empty((0, 4)), *boxes]),
        box_frame=np.repeat(np.arange(len(used)), [len(own) for own in boxes]).astype(np.intp),
        polyps=np.array([None if pd.isna(name) else name for name in polyps], dtype=object),
        unlabelled=frozenset(frames["sample_id"][~labelled]),
    )


def _box_array(cell: Any, name: str) -> Floats:
    if cell is None or (np.ndim(cell) == 0 and pd.isna(cell)):
        return np.empty((0, 4))
    rows = [np.asarray(box, dtype=np.float64) for box in cell]
    boxes = np.stack(rows) if rows and all(row.shape == (4,) for row in rows) else np.empty((0, 4))
    if len(boxes) != len(rows) or not np.isfinite(boxes).all() or (boxes[:, 2:] < boxes[:, :2]).any():
        raise ValueError(f"frame {name!r} has boxes {cell!r}; expected [xmin, ymin, xmax, ymax] each.")
    return boxes


@dataclass(frozen=True)
class Matches:
    """The detections of one network beside what they found, highest score first.

    Attributes:
        score: [detections], falling.
        frame: [detections], index of the frame.
        box: [thresholds, detections], index of the annotated box that was found; -1 for a false positive.
        boxes_per_frame: [frames].
        thresholds: of the IoU; a single 0 where a centre in the box is a hit.
    """

    score: Floats
    frame: Indices
    box: Indices
    boxes_per_frame: Indices
    thresholds: tuple[float, ...]

    def row(self, iou_threshold: float) -> Indices:
        """``box`` at one threshold, [detections].

        Raises:
            ValueError: nothing was matched at this threshold.
        """
        for threshold, row in zip(self.thresholds, self.box, strict=True):
            if abs(threshold - iou_threshold) < 1e-9:
                found: Indices = row
                return found
        raise ValueError(f"matched at {self.thresholds}, not at an IoU of {iou_threshold}.")

    def of_frames(self, frames: Indices) -> Matches:
        """What remains when these frames, rising indices, are the only ones; boxes are numbered anew."""
        place = np.full(len(self.boxes_per_frame), -1, dtype=np.intp)
        place[frames] = np.arange(len(frames))
        kept = place[self.frame] >= 0
        frame, box = self.frame[kept], self.box[:, kept]
        first = np.cumsum(self.boxes_per_frame) - self.boxes_per_frame
        own = self.boxes_per_frame[frames]
        moved = (np.cumsum(own) - own)[place[frame]] - first[frame]
        return Matches(self.score[kept], place[frame], np.where(box < 0, -1, box + moved), own, self.thresholds)


def match_detections(
    truth: AnnotatedFrames,
    detections: pd.DataFrame,
    *,
    iou_thresholds: Sequence[float] = COCO_IOU_THRESHOLDS,
    hit: Hit = "iou",
    max_detections: int = MAX_DETECTIONS,
) -> Matches:
    """Match one network's detections to the annotated boxes, greedily by falling score.

    With hit "iou" a detection takes the free box of its frame with the highest IoU of at least the threshold (equal
    IoU: the later box, as pycocotools does); a second detection of a box is a false positive. With hit "centre" it
    takes a free box that its centre lies in (several: the one with the nearest centre), and further detections inside
    a box that was found are left out, neither right nor wrong, as the MICCAI 2015 challenge counts.

    A detection's match depends on higher scores only, so that one matching serves every score threshold.

    Args:
        truth: from ``read_frames``.
        detections: one row for each detected box, columns of ``DetectionColumn``; of one network. Rows of unlabelled
            frames are left out.
        iou_thresholds: [thresholds]; not used with hit "centre".
        hit: when a detection finds a box.
        max_detections: boxes of a frame that count, highest scores first.

    Raises:
        ValueError: unknown hit, a column is missing, rows of two networks, a score or corner that is not finite, or a
            frame that ``truth`` does not know.

    Source:
        Lin et al. 2014, arXiv:1405.0312, and pycocotools' ``COCOeval.evaluateImg``; Bernal et al. 2017, IEEE
        Transactions on Medical Imaging 36(6), for "centre".
    """
    if hit not in get_args(Hit):
        raise ValueError(f"hit {hit!r}: expected one of {list(get_args(Hit))}.")
    frame, score, boxes = _sorted_detections(truth, detections, max_detections)
    detection, box = _candidate_pairs(truth, frame)
    thresholds = tuple(iou_thresholds) if hit == "iou" else (0.0,)
    if hit == "iou":
        closeness = _paired_iou(boxes[detection], truth.boxes[box])
        limits = np.minimum(np.asarray(thresholds, dtype=np.float64), _NEARLY_ONE)
        near = closeness >= limits.min(initial=np.inf)
    else:
        centres = (boxes[detection, :2] + boxes[detection, 2:]) / 2
        near = ((centres >= truth.boxes[box, :2]) & (centres <= truth.boxes[box, 2:])).all(axis=1)
        middle = (truth.boxes[box, :2] + truth.boxes[box, 2:]) / 2
        closeness, limits = -np.linalg.norm(centres - middle, axis=1), np.array([-np.inf])
    found = _match_greedily(detection[near], box[near], closeness[near], limits, len(frame), len(truth.boxes))
    kept = np.ones(len(frame), dtype=bool)
    if hit == "centre":
        kept[detection[near]] = found[0, detection[near]] >= 0
    return Matches(score[kept], frame[kept], found[:, kept], truth.boxes_per_frame, thresholds)


def finite(detections: pd.DataFrame) -> bool:
    """Whether all scores and corners are numbers; a network that diverged has others."""
    return bool(np.isfinite(detections[["score", *BOX_COLUMNS]].to_numpy(dtype=np.float64)).all())


def _sorted_detections(
    truth: AnnotatedFrames, detections: pd.DataFrame, max_detections: int
) -> tuple[Indices, Floats, Floats]:
    missing = [name for name in ("sample_id", "score", *BOX_COLUMNS) if name not in detections]
    if missing:
        raise ValueError(f"the detections lack the columns {missing}; they have {list(detections.columns)}.")
    if "network" in detections and detections["network"].nunique() > 1:
        raise ValueError(f"expected detections of one network, got {sorted(detections['network'].unique())}.")
    if not finite(detections):
        raise ValueError("a detection has a score or a corner that is not a finite number.")
    frame = pd.Index(truth.sample_ids, dtype=object).get_indexer(detections["sample_id"].astype(object))
    unknown = set(detections["sample_id"][frame < 0]) - truth.unlabelled
    if unknown:
        raise ValueError(f"there are detections of {len(unknown)} frames that are not in frames: {min(unknown)!r}, ….")
    score = detections["score"].to_numpy(dtype=np.float64)
    order = np.lexsort((-score, frame))  # stable: rows decide between equal scores of a frame
    order = order[frame[order] >= 0]
    # Rank in the frame: the distance from the first row of the same frame.
    rank = np.arange(len(order)) - np.searchsorted(frame[order], frame[order], side="left")
    order = order[rank < max_detections]
    order = order[np.argsort(-score[order], kind="stable")]
    boxes = detections[BOX_COLUMNS].to_numpy(dtype=np.float64).reshape(-1, 4)
    return frame[order].astype(np.intp), score[order], boxes[order]


def _candidate_pairs(truth: AnnotatedFrames, frame: Indices) -> tuple[Indices, Indices]:
    """Each detection with each annotated box of its frame, detection by detection."""
    counts = truth.boxes_per_frame
    starts = np.cumsum(counts) - counts
    per_detection = counts[frame]
    detection = np.repeat(np.arange(len(frame)), per_detection)
    first = np.cumsum(per_detection) - per_detection
    within = np.arange(len(detection)) - np.repeat(first, per_detection)
    return detection.astype(np.intp), (starts[frame][detection] + within).astype(np.intp)


def _match_greedily(
    detection: Indices, box: Indices, closeness: Floats, limits: Floats, detections: int, boxes: int
) -> Indices:
    """Box found by each detection at each limit, [limits, detections]; -1 for none.

    Few detections are near a box, so a loop over those, with all limits at once, is fast enough.
    """
    found = np.full((len(limits), detections), -1, dtype=np.intp)
    taken = np.zeros((len(limits), boxes), dtype=bool)
    edges = np.flatnonzero(np.diff(detection, prepend=-1, append=detections))
    for start, stop in pairwise(edges):
        candidates = box[start:stop][::-1]  # argmax takes the first of equals: this makes it the later box
        near = closeness[start:stop][::-1]
        free = (near >= limits[:, None]) & ~taken[:, candidates]
        rows = np.flatnonzero(free.any(axis=1))
        best = candidates[np.where(free, near, -np.inf)[rows].argmax(axis=1)]
        found[rows, detection[start]] = best
        taken[rows, best] = True
    return found
