"""Who and what came into a study of detectors: patients, sequences, frames and boxes, and what did not."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from kdml_med.clinical.study import DatasetContent, Role, Study
from kdml_med.keys import Split
from kdml_med.metrics.box_matching import AnnotatedFrames, read_frames
from kdml_med.report.document import Paragraph, Part, Section, Table
from kdml_med.words import counted

TITLE = "Cohort flow"
SHOWN_INPUTS = 50
"""Inputs that are named on the page; failures.csv of the dataset has them all."""
_SPLITS = {Split.TRAIN: "training", Split.VAL: "validation", Split.TEST: "test"}
_COLUMNS = ["patients", "sequences", "frames", "with polyps", "without", "boxes", "polyps", "unlabelled frames"]
_UNKNOWN = "–"
_DASH = (
    "A dash: the source does not say which frames belong to one patient, one sequence or one polyp. Where not even "
    "sequences are known, frames count as independent, and intervals may be too narrow."
)


def flow_section(study: Study) -> Section:
    """Frames of the training's dataset by split, those of every external one, and what was left out of each."""
    parts: list[Part] = []
    rows: list[list[str]] = []
    datasets: list[tuple[str, DatasetContent]] = []
    if study.dataset is None:
        parts.append(Paragraph(study.without_dataset, "The dataset of the training cannot be counted:"))
    else:
        datasets.append(("Dataset of the training", study.dataset))
        rows += [_row(words, study.dataset, _split(study.dataset, name)) for name, words in _SPLITS.items()]
    for one in study.judged:
        if one.role is Role.EXTERNAL and one.dataset is not None:
            datasets.append((one.title, one.dataset))
            rows.append(_row(one.title, one.dataset, _split(one.dataset, one.split)))
        elif one.dataset is None and study.dataset is not None:
            parts.append(Paragraph(one.without_dataset, f"{one.title} cannot be counted:"))
    if rows:
        parts.insert(0, Table(["frames of", *_COLUMNS], rows))
        if any(dataset.info.label_level != "patient" for _, dataset in datasets):
            parts.insert(1, Paragraph(_DASH))
    for title, dataset in datasets:
        parts += _left_out(title, dataset)
    return Section(TITLE, parts)


def _split(dataset: DatasetContent, name: str) -> pd.DataFrame:
    if dataset.split is None:
        return dataset.manifest.iloc[:0]
    rows: pd.DataFrame = dataset.manifest[(dataset.split == name).to_numpy()]
    return rows


def _row(words: str, dataset: DatasetContent, rows: pd.DataFrame) -> list[str]:
    level = dataset.info.label_level
    truth = read_frames(rows)
    with_boxes = int((truth.boxes_per_frame > 0).sum())
    known = {name for name in truth.polyps if name is not None}
    numbers = [
        rows["patient_id"].nunique() if level == "patient" else None,
        rows["sequence_id"].nunique() if _has_sequences(truth) else None,
        len(rows),
        with_boxes,
        len(truth.sample_ids) - with_boxes,
        len(truth.boxes),
        len(known) or None,
        len(truth.unlabelled),
    ]
    return [words, *(_UNKNOWN if number is None else f"{int(number):,}" for number in numbers)]


def _has_sequences(truth: AnnotatedFrames) -> bool:
    """Whether any frame belongs to a sequence that is more than itself."""
    return bool((truth.sequences != truth.sample_ids).any())


def _left_out(title: str, dataset: DatasetContent) -> list[Part]:
    """What preparation could not use, or not wholly, with its reasons."""
    found = list(zip(dataset.failures["input"], dataset.failures["reason"], strict=True))
    if not found:
        return [Paragraph("Preparation left nothing out.", f"{title}.")]
    text = f"Preparation could not use {counted(len(found), 'input')}, or not wholly."
    if len(found) > SHOWN_INPUTS:
        text += f" The first {SHOWN_INPUTS} are named; failures.csv of the dataset has them all."
    return [Paragraph(text, f"{title}."), Table(["input", "reason"], _listed(found), names=2)]


def _listed(found: Sequence[tuple[str, str]]) -> list[list[str]]:
    return [[name, reason] for name, reason in found[:SHOWN_INPUTS]]
