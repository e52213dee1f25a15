"""Why arms differ: whether students differ from each other and from a teacher, are calibrated, and learn from what.

As in ``kdml_med.experiments.comparison``, only seeds count of which every fold is done. Each figure is computed for
each training on its own, so that networks of different folds are never mixed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kdml_med.errors import InputError
from kdml_med.experiments.arms import TEACHER_ONLY
from kdml_med.experiments.plan import Cell
from kdml_med.experiments.results import Results
from kdml_med.experiments.scores import (
    TILE,
    at_level,
    evaluated_frames,
    read_detections,
    read_predictions,
    role_networks,
)
from kdml_med.keys import LossColumn, LossTerm, NetworkName, Task
from kdml_med.metrics import diversity
from kdml_med.metrics.box_matching import Floats
from kdml_med.metrics.calibration import brier_score, expected_calibration_error
from kdml_med.program import progress_bar
from kdml_med.runs import read_losses

MIN_SCORE = 0.1
"""Of detections whose calibration is judged. Nobody is shown boxes below, but most have such scores, and would rule."""
OWN_TEACHER = "own"

_DIAGNOSTICS = {
    "version": "str",
    "evaluation": "str",
    "arm": "str",
    "diagnostic": "str",
    "teacher": "str",
    "value": "float64",
    "smallest": "float64",
    "largest": "float64",
    "runs": "Int64",
}
_SOURCES = {term.value: term.source for term in LossTerm.parts()}
_SHARES = {
    "version": "str",
    "arm": "str",
    "epoch": "Int64",
    "term": "str",
    "loss": "float64",
    "share": "float64",
}


@dataclass(frozen=True)
class _Figure:
    """A diagnostic of one training; teacher is "" unless the diagnostic is about one."""

    name: str
    value: float
    teacher: str = ""


def diagnostics_table(results: Results) -> pd.DataFrame:
    """How alike and how well calibrated the networks of each arm are.

    Classification, with "_tile" and with "_slide" or "_patient" behind the name, decisions at a probability of 0.5:
    disagreement and error_correlation of students; agreement_with_teacher, mean over students; brier and ece of the
    ensemble. Detection: disagreement_box, error_correlation_box and agreement_with_teacher_box are about which
    annotated boxes are found at the threshold of each network; brier_detection and ece_detection of the ensemble are
    about detections with a score from ``MIN_SCORE`` being right. Where the teacher is trained alone, calibration is the
    teacher's.

    Returns:
        One row for each version, evaluation, arm and diagnostic, in the order of the plan: mean, smallest and largest
        value over ``runs`` trainings (seeds and folds) in which it is defined; NaN where there is none. teacher is
        "own" where students are compared with the teacher of their own cohort, "teacher_only" where that is the one
        trained alone with the same seed and fold, "" for diagnostics without a teacher.

    Raises:
        InputError: see ``kdml_med.experiments.scores``; or two cells were evaluated on other samples.
    """
    figures = _classification if results.plan.task is Task.CLASSIFICATION else _detection
    work = [
        (version, evaluation, arm)
        for version in results.plan.versions
        for evaluation in results.evaluations
        for arm in results.arms
    ]
    values: dict[tuple[str, str, str, str, str], list[float]] = {}
    with progress_bar(len(work), what="diagnostics", unit="arm") as bar:
        for version, evaluation, arm in work:
            for cell in results.whole_cells(version, arm):
                for figure in figures(results, cell, evaluation):
                    key = (version, evaluation, arm, figure.name, figure.teacher)
                    values.setdefault(key, []).append(figure.value)
            bar.update()
    rows = [(*key, *_spread(found)) for key, found in values.items()]
    return pd.DataFrame(rows, columns=list(_DIAGNOSTICS)).astype(_DIAGNOSTICS)


def _spread(values: Sequence[float]) -> tuple[float, float, float, int]:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return math.nan, math.nan, math.nan, 0
    return math.fsum(known) / len(known), min(known), max(known), len(known)


def _teacher_cell(results: Results, cell: Cell) -> tuple[Cell, str] | None:
    """Cell whose teacher students are compared with, and what to call it."""
    if results.trains_teacher_alone(cell.arm):
        return None
    if NetworkName.TEACHER in results.networks(cell):
        return cell, OWN_TEACHER
    alone = TEACHER_ONLY in results.arms and results.find(cell.version, TEACHER_ONLY, cell.seed, cell.fold)
    return (alone, TEACHER_ONLY) if alone else None


def _judged(results: Results, cell: Cell) -> str:
    """Network whose calibration is judged: what is used in the end."""
    return role_networks(results, cell, "teacher" if results.trains_teacher_alone(cell.arm) else "ensemble")[0]


def _classification(results: Results, cell: Cell, evaluation: str) -> Iterator[_Figure]:
    students = role_networks(results, cell, "students")
    teacher = _teacher_cell(results, cell)
    predictions = read_predictions(results, cell, evaluation)
    taught = predictions
    if teacher is not None and teacher[0] is not cell:
        taught = read_predictions(results, teacher[0], evaluation)
    for level in (TILE, str(results.metrics(cell, evaluation)["level"])):
        table = at_level(results, cell, evaluation, predictions, level)
        wide = _wide(table)
        labels = table.drop_duplicates("sample_id").set_index("sample_id")["label"][wide.index].to_numpy(dtype=np.int64)
        columns = {name: wide[name].to_numpy() for name in wide}
        if len(students) > 1:
            own = {name: columns[name] for name in students}
            yield _Figure(f"disagreement_{level}", diversity.disagreement(own))
            yield _Figure(f"error_correlation_{level}", diversity.error_correlation(labels, own))
        if teacher is not None:
            others = _wide(at_level(results, teacher[0], evaluation, taught, level))[NetworkName.TEACHER.value]
            if not others.index.equals(wide.index):
                raise InputError(
                    f"{cell.path} and {teacher[0].path} were evaluated on different samples ({evaluation}): the "
                    "dataset has changed in between. Run the plan again with another --out."
                )
            alike = [diversity.agreement(columns[name], others.to_numpy()) for name in students]
            yield _Figure(f"agreement_with_teacher_{level}", float(np.mean(alike)), teacher[1])
        judged = columns[_judged(results, cell)]
        yield _Figure(f"brier_{level}", brier_score(labels, judged))
        yield _Figure(f"ece_{level}", expected_calibration_error(labels, judged))


def _wide(table: pd.DataFrame) -> pd.DataFrame:
    """Probabilities by sample and network, samples sorted."""
    return table.pivot(index="sample_id", columns="network", values="probability").sort_index()


def _detection(results: Results, cell: Cell, evaluation: str) -> Iterator[_Figure]:
    students = role_networks(results, cell, "students")
    frames = evaluated_frames(results, cell, evaluation)
    detections = read_detections(results, cell, evaluation)
    teacher = _teacher_cell(results, cell)
    found = _found(results, cell, evaluation, frames, students)
    if len(students) > 1:
        yield _Figure("disagreement_box", diversity.found_disagreement(found))
        yield _Figure("error_correlation_box", diversity.found_error_correlation(found))
    if teacher is not None:
        name = NetworkName.TEACHER.value
        others = _found(results, teacher[0], evaluation, frames, [name])[name]
        alike = [diversity.agreement(own, others) for own in found.values()]
        yield _Figure("agreement_with_teacher_box", float(np.mean(alike)), teacher[1])
    judged = detections[detections["network"] == _judged(results, cell)]
    calibration = diversity.detection_calibration(frames, judged, min_score=MIN_SCORE)
    yield _Figure("brier_detection", calibration["brier"])
    yield _Figure("ece_detection", calibration["ece"])


def _found(
    results: Results, cell: Cell, evaluation: str, frames: pd.DataFrame, names: Sequence[str]
) -> dict[str, Floats]:
    """Which annotated boxes some networks of a cell find at their thresholds."""
    stored, thresholds = results.networks(cell), results.metrics(cell, evaluation)["thresholds"]
    detections = read_detections(results, cell, evaluation)
    return diversity.found_by_network(frames, detections, {name: thresholds[stored[name]] for name in names})


def loss_shares(results: Results) -> pd.DataFrame:
    """How much of what students minimise comes from where, epoch by epoch.

    Returns:
        One row for each version, arm, epoch and term that the arm has: "labels", "teacher", "peers", and terms of a
        loss of one's own under their names. loss is the weighted term, with the weight in force in the epoch; share is
        its part of the student's weighted sum. Both are means over students, seeds and folds, and the shares of an
        epoch add up to 1. The teacher's own loss is not part of it.
    """
    tables = []
    for version in results.plan.versions:
        for arm in results.arms:
            parts = [_weighted(results, cell) for cell in results.whole_cells(version, arm)]
            students = [part for part in parts if len(part)]
            if not students or results.trains_teacher_alone(arm):
                continue
            tables.append(_mean_shares(pd.concat(students)).assign(version=version, arm=arm))
    empty = pd.DataFrame(columns=list(_SHARES))
    table = pd.concat(tables, ignore_index=True) if tables else empty
    return table[list(_SHARES)].astype(_SHARES)


def _weighted(results: Results, cell: Cell) -> pd.DataFrame:
    """Columns epoch, student (unique among cells), term, loss, share; students of one cell."""
    losses = read_losses(results.folder(cell))
    networks = losses[LossColumn.NETWORK]
    own = losses[(networks != "") & (networks != NetworkName.TEACHER)]
    table = pd.DataFrame(
        {
            "epoch": own[LossColumn.EPOCH],
            "student": cell.path + "/" + own[LossColumn.NETWORK],
            "term": own[LossColumn.TERM].map(lambda term: _SOURCES.get(term, term)),
            "loss": own[LossColumn.WEIGHT] * own[LossColumn.VALUE],
        }
    )
    total = table.groupby(["epoch", "student"])["loss"].transform("sum")
    return table.assign(share=table["loss"] / total.where(total > 0))


def _mean_shares(table: pd.DataFrame) -> pd.DataFrame:
    """Means over students by epoch and term; a term that a student does not have counts as 0."""
    rows = []
    terms = dict.fromkeys([*_SOURCES.values(), *table["term"]])
    for epoch, own in table.groupby("epoch", sort=True):
        count = own["student"].nunique()
        for term in terms:
            part = own[own["term"] == term]
            if len(part):
                means: Mapping[str, float] = {name: float(part[name].sum()) / count for name in ("loss", "share")}
                rows.append({"epoch": epoch, "term": term, **means})
    return pd.DataFrame(rows)
