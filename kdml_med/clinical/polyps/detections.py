"""Evaluations of detectors beside the annotation that they were judged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from kdml_med.clinical.answers import check_patients, split_of
from kdml_med.clinical.rules import Point, Rules
from kdml_med.clinical.study import Evaluation, Role, Study
from kdml_med.errors import InputError
from kdml_med.keys import DetectionColumn, NetworkName, network_order
from kdml_med.metrics.box_matching import Group, read_frames
from kdml_med.metrics.detection import by_network
from kdml_med.runs import DETECTIONS_FILE, METRICS_FILE, SEQUENCES_FILE, SPEED_FILE, RunDescription
from kdml_med.storage.reading import damaged, read_json, read_rows, read_table, take

_AGAIN = "Evaluate again."


@dataclass(frozen=True)
class DetectorEvaluation:
    """One evaluation of detectors, judged at the thresholds that training chose on its validation split.

    Attributes:
        evaluation: its files and where they lie.
        thresholds: score from which a detection counts, by network.
        figures: of metrics.json, by network, in the order of the page.
        detections: columns of ``DetectionColumn``, by network.
        frames: rows of the manifest that were evaluated; None where they cannot be read any more.
        without_frames: then, the reason, one sentence.
        sequences: rows of sequences.csv; cells are texts.
        speed: content of speed.json; empty without one.
    """

    evaluation: Evaluation
    thresholds: Mapping[str, float]
    figures: Mapping[str, Mapping[str, Any]] = field(repr=False)
    detections: Mapping[str, pd.DataFrame] = field(repr=False)
    frames: pd.DataFrame | None = field(repr=False)
    without_frames: str
    sequences: pd.DataFrame = field(repr=False)
    speed: Mapping[str, Any] = field(repr=False)

    @property
    def title(self) -> str:
        """Name for people."""
        return self.evaluation.title

    @property
    def networks(self) -> list[str]:
        """Teacher first, ensemble last."""
        return list(self.figures)

    @property
    def unit(self) -> Group:
        """What intervals resample: "patient", "sequence" or "frame"."""
        unit: Group = self.evaluation.metrics["bootstrap"]["unit"]
        return unit

    @property
    def resamples(self) -> int:
        """Of the bootstrap."""
        return int(self.evaluation.metrics["bootstrap"]["resamples"])


def judged_detectors(study: Study, rules: Rules) -> list[DetectorEvaluation]:
    """Evaluations on frames that chose nothing; where there is none yet, that on the validation split.

    Args:
        study: of the run.
        rules: of the run, chosen on its validation frames.

    Raises:
        InputError: a file of an evaluation is damaged, it was judged at other thresholds than those of the run, or its
            patients are not those of its split.
    """
    thresholds = {name: own[Point.BEST_F1] for name, own in rules.thresholds.items()}
    return [_judge(one, thresholds, study.description) for one in study.judged or [study.validation]]


def _judge(evaluation: Evaluation, thresholds: Mapping[str, float], run: RunDescription) -> DetectorEvaluation:
    folder, metrics = evaluation.folder, evaluation.metrics
    where = folder / METRICS_FILE
    used = take(metrics, "thresholds", dict[str, float], where, remedy=_AGAIN)
    names = sorted(metrics["networks"], key=network_order)
    other = [name for name in names if used.get(name) != thresholds.get(name)]
    if other:
        raise InputError(
            f"{where}: the threshold of {other[0]} is {used.get(other[0])}, training chose {thresholds.get(other[0])} "
            f"on its validation split: these are figures of another training. {_AGAIN}"
        )
    detections = read_rows(folder / DETECTIONS_FILE, list(DetectionColumn), remedy=_AGAIN)
    sequences = read_table(folder / SEQUENCES_FILE, ["sequence_id", "patient_id", "frames", "boxes"], remedy=_AGAIN)
    for table in (detections, sequences):
        check_patients(run, metrics, split_of(metrics, where), table["patient_id"], folder)
    speed = folder / SPEED_FILE
    with damaged(folder / DETECTIONS_FILE, remedy=_AGAIN):
        tables = by_network(detections, names)
    frames, reason = _evaluated_frames(evaluation, detections)
    return DetectorEvaluation(
        evaluation=evaluation,
        thresholds={name: thresholds[name] for name in names},
        figures={name: metrics["networks"][name] for name in names},
        detections={name: tables[name] for name in names},
        frames=frames,
        without_frames=reason,
        sequences=sequences,
        speed=read_json(speed, remedy=_AGAIN) if speed.is_file() else {},
    )


def _evaluated_frames(evaluation: Evaluation, detections: pd.DataFrame) -> tuple[pd.DataFrame | None, str]:
    """Rows of the manifest that were evaluated; or None, and why not."""
    dataset = evaluation.dataset
    if dataset is None:
        return None, evaluation.without_dataset
    if dataset.split is None:
        return None, f"{dataset.folder} has no splits any more."
    rows = dataset.manifest[(dataset.split == evaluation.split).to_numpy() & dataset.manifest["label"].notna()]
    frames: pd.DataFrame = rows.reset_index(drop=True)
    some: Mapping[str, Any] = next(iter(evaluation.metrics["networks"].values()), {})
    truth = read_frames(frames)
    same = (len(truth.sample_ids), len(truth.boxes)) == (some.get("n_frames"), some.get("n_boxes"))
    if not same or not set(detections[DetectionColumn.SAMPLE_ID]) <= set(frames["sample_id"]):
        return None, f"{dataset.folder} holds other frames or boxes than were evaluated: it was changed since."
    return frames, ""


def is_validation(judged: DetectorEvaluation) -> bool:
    """Whether its thresholds were chosen on these very frames."""
    return judged.evaluation.role is Role.VALIDATION


def main_network(judged: DetectorEvaluation) -> str:
    """The network whose figures come first: the ensemble, or the last one where there is none."""
    return NetworkName.ENSEMBLE.value if NetworkName.ENSEMBLE in judged.figures else judged.networks[-1]
