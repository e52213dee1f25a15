"""Whether an exported detector is the one that was evaluated: both on the same real frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from monai.transforms import Compose

from kdml_med.data.frames import FrameDataset, PlaceFrame
from kdml_med.data.samples import SampleLoader
from kdml_med.data.transforms import NormalizeColourd
from kdml_med.deploy.export.drawing import Drawn, usable_evaluation
from kdml_med.deploy.export.runtimes import Answer
from kdml_med.engines.detection import DetectionEvaluator
from kdml_med.handlers.detection import CohortDetections
from kdml_med.keys import BatchKey, DetectionColumn, NetworkName
from kdml_med.metrics.box_matching import BOX_COLUMNS
from kdml_med.metrics.detection_evaluation import evaluate_detections
from kdml_med.runs import METRICS_FILE, RunDescription, load_cohort, read_run_json, read_thresholds

BEFORE, AFTER = "evaluated", "exported"
FIGURES = ("ap", "ap50", "ap75")
SAME_BOX = 0.7
"""Overlap of two boxes from which they are one; of one network, no two overlap more than 0.6."""
SCORE_TOLERANCE, BOX_TOLERANCE_PX = 1e-3, 0.1
"""Largest differences that the arithmetic of another runtime explains."""
_BOXES_TO_ONE_BEYOND = 1000


def may_be_chance(beyond: int, pairs: int) -> bool:
    """Whether boxes that differ by more than the tolerances are so few that the suppression explains them.

    Where two candidates overlap by its threshold to the last digit, or have one score, either is kept, and what that
    one suppresses in turn is not. A file that computes another network differs in most boxes.

    Args:
        beyond: boxes of both sides that differ by more.
        pairs: boxes of both sides.
    """
    return beyond == 0 or beyond <= max(1, pairs // _BOXES_TO_ONE_BEYOND) < pairs


RESAMPLES = 1000
_BATCH = 16


def compare_detector(
    run_dir: Path, run: RunDescription, frames: Drawn[FrameDataset], answers: Mapping[str, Answer], *, network: str
) -> dict[str, Any]:
    """Content of parity.json: differences of scores and boxes, changed decisions, average precision before and after.

    Args:
        run_dir: folder of the run.
        run: its description.
        frames: labelled.
        answers: the exported file by the runtime that computes it; the first one counts.
        network: which network the file is, or "ensemble".
    """
    dataset = frames.dataset
    before = evaluated_boxes(run_dir, run, dataset, network)
    found = {name: exported_boxes(dataset, answer).assign(network=name) for name, answer in answers.items()}
    runtime, after = next(iter(found.items()))
    threshold = read_thresholds(run_dir)[network]
    level: Any = dataset.info.label_level
    figures = evaluate_detections(
        dataset.rows,
        pd.concat([before, *found.values()]),
        threshold=dict.fromkeys((BEFORE, *found), threshold),
        group=level,
        resamples=RESAMPLES,
    )
    folder, problem = None, ""
    if frames.whole:
        folder, problem = usable_evaluation(run_dir, frames.split, run.choose(network), dataset.dataset_dir)
    by_side = {BEFORE: figures[BEFORE], AFTER: figures[runtime]}
    return {
        "split": frames.split,
        "n_frames": len(frames),
        "n_frames_of_split": frames.available,
        "whole": frames.whole,
        "n_patients": frames.patients,
        "n_boxes": figures[BEFORE]["n_boxes"],
        "threshold": threshold,
        "runtime": runtime,
        **differences(before, after, threshold),
        "runtimes": {
            name: differences(before, boxes, threshold) | {figure: figures[name][figure] for figure in FIGURES}
            for name, boxes in found.items()
        },
        "precision": {
            name: {side: {"value": one[name], "ci95": one[f"{name}_ci95"]} for side, one in by_side.items()}
            | {"change": _change(by_side[BEFORE][name], by_side[AFTER][name])}
            for name in FIGURES
        },
        "recorded": None if folder is None else _recorded(folder, network),
        "not_compared": problem,
        "bootstrap": {"resamples": RESAMPLES, "unit": level, "confidence": 0.95, "interval": "percentile"},
        "synthetic": run.synthetic,
    }


def compare_boxes_on_noise(before: Answer, after: Answer) -> dict[str, Any]:
    """Largest differences on frames of noise, in which nothing is found that means anything."""
    images = np.random.default_rng(0).integers(0, 256, (4, 200, 300, 3), dtype=np.uint8)
    first, second = _noise_boxes(before(images)), _noise_boxes(after(images))
    return {"split": None, "n_frames": len(images)} | differences(first, second, 1.0)


def _noise_boxes(answer: Sequence[npt.NDArray[Any]]) -> pd.DataFrame:
    boxes, scores, frame = answer
    return pd.DataFrame(boxes, columns=BOX_COLUMNS).assign(score=scores, sample_id=frame)


def evaluated_boxes(run_dir: Path, run: RunDescription, dataset: FrameDataset, network: str) -> pd.DataFrame:
    """What the evaluation of the run finds in frames, columns of ``DetectionColumn``."""
    collector = CohortDetections()
    transform = Compose([PlaceFrame(run.image_size), NormalizeColourd(BatchKey.IMAGE)])
    dataset.transform = transform
    try:
        evaluator = DetectionEvaluator(
            device="cpu",
            val_data_loader=SampleLoader(dataset, batch_size=_BATCH),
            network=load_cohort(run_dir, students_only=network != NetworkName.TEACHER),
            val_handlers=[collector],
            fusion=run.fusion or "anchors",
        )
        evaluator.run()
    finally:
        dataset.transform = None
    table = collector.table()
    return table[table[DetectionColumn.NETWORK] == network].assign(network=BEFORE)


def exported_boxes(dataset: FrameDataset, answer: Answer) -> pd.DataFrame:
    """What a file finds in frames, likewise."""
    rows: list[tuple[Any, ...]] = []
    for position, row in enumerate(dataset.rows.itertuples()):
        boxes, scores, _ = answer(dataset.read(position)[None])
        identifiers = (row.sample_id, row.sequence_id, row.patient_id, AFTER)
        rows += [(*identifiers, score, *box) for score, box in zip(scores.tolist(), boxes.tolist(), strict=True)]
    table = pd.DataFrame(rows, columns=[str(column) for column in DetectionColumn])
    return table.astype(dict.fromkeys(["score", *BOX_COLUMNS], "float64"))


def differences(before: pd.DataFrame, after: pd.DataFrame, threshold: float) -> dict[str, Any]:
    """How far boxes that both have are apart, how many only one has, and in how many frames decisions change.

    Args:
        before: columns of ``DetectionColumn``, one network.
        after: likewise.
        threshold: score from which a box counts.
    """
    score, corner, pairs, beyond, alone, alone_score, changed = 0.0, 0.0, 0, 0, 0, 0.0, 0
    sides, allowed = ["score", *BOX_COLUMNS], np.array([SCORE_TOLERANCE, *[BOX_TOLERANCE_PX] * len(BOX_COLUMNS)])
    own = {name: rows[sides].to_numpy(np.float64) for name, rows in after.groupby("sample_id")}
    names = sorted({*before["sample_id"], *own})
    theirs = {name: rows[sides].to_numpy(np.float64) for name, rows in before.groupby("sample_id")}
    for name in names:
        first, second = theirs.get(name, np.zeros((0, 5))), own.get(name, np.zeros((0, 5)))
        partner = _partners(first[:, 1:], second[:, 1:])
        found = partner >= 0
        difference = np.abs(first[found] - second[partner[found]])
        if len(difference):
            score, corner = max(score, difference[:, 0].max()), max(corner, difference[:, 1:].max())
            beyond += int((difference > allowed).any(axis=1).sum())
        pairs += int(found.sum())
        lonely = [*first[~found, 0], *np.delete(second, partner[found], axis=0)[:, 0]]
        alone, alone_score = alone + len(lonely), max([alone_score, *lonely])
        changed += int((first[:, 0] >= threshold).sum() != (second[:, 0] >= threshold).sum())
    return {
        "boxes_of_both": pairs,
        "largest_score_difference": float(score),
        "largest_box_difference_px": float(corner),
        "boxes_beyond_tolerance": beyond,
        "boxes_of_one": alone,
        "highest_score_of_one": float(alone_score),
        "frames_with_changed_decisions": changed,
    }


def _partners(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """For each box the place of the one that overlaps it most, each used once; -1 where none overlaps enough."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    overlap = shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-12)
    partners = np.full(len(first), -1, dtype=np.intp)
    for flat in np.argsort(-overlap, axis=None, kind="stable"):
        row, column = np.unravel_index(flat, overlap.shape)
        if overlap[row, column] < SAME_BOX:
            break
        if partners[row] < 0 and column not in partners:
            partners[row] = column
    return partners


def _recorded(folder: Path, network: str) -> dict[str, float] | None:
    """Average precisions that an evaluation of the run wrote down; None where it had no such network."""
    figures = read_run_json(folder, METRICS_FILE).get("networks", {}).get(network)
    return None if figures is None else {name: figures[name] for name in FIGURES}


def _change(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before
