"""Diagnostics on predictions small enough to work out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kdml_med.errors import InputError
from kdml_med.experiments.diagnostics import diagnostics_table, loss_shares
from kdml_med.experiments.plan import Cell, Plan
from kdml_med.experiments.results import Results, collect
from tests.experiments import folders
from tests.experiments.test_results import row

LABELS = {"A": 0, "B": 0, "C": 1, "D": 1}
# One tile of each patient. Students differ about B; the teacher alone is wrong about D, that of a cohort about nothing.
STUDENT_0 = [0.1, 0.2, 0.8, 0.9]
STUDENT_1 = [0.1, 0.6, 0.8, 0.9]
COHORT_TEACHER = [0.0, 0.4, 0.6, 1.0]
LONE_TEACHER = [0.2, 0.2, 0.8, 0.4]


def tiles(cell: Cell, evaluation: str) -> pd.DataFrame:
    said = {"teacher": COHORT_TEACHER, "student_0": STUDENT_0, "student_1": STUDENT_1}
    if cell.arm == "teacher_only":
        said = {"student_0": LONE_TEACHER}
    elif cell.arm == "independent":
        del said["teacher"]
    if cell.seed == 1:
        said["student_0"] = [1 - value for value in said["student_0"]]
    return folders.tile_table(
        LABELS, {name: dict(zip(LABELS, ([value] for value in own), strict=True)) for name, own in said.items()}
    )


def made_up(tmp_path: Path, **content: object) -> Results:
    plan = folders.tile_plan(tmp_path, arms=["teacher_only", "independent", "kdml"], **content)
    folders.write_results(plan, tmp_path, tiles)
    return collect(plan, tmp_path)


def value(table: pd.DataFrame, arm: str, diagnostic: str) -> float:
    return float(row(table, arm=arm, diagnostic=diagnostic)["value"])


def test_students_differ_in_decisions_and_errors(tmp_path):
    table = diagnostics_table(made_up(tmp_path))
    errors = np.array([STUDENT_0, STUDENT_1]) - np.array(list(LABELS.values()))
    for level in ("tile", "patient"):
        assert value(table, "kdml", f"disagreement_{level}") == 0.25
        assert value(table, "kdml", f"error_correlation_{level}") == pytest.approx(np.corrcoef(errors)[0, 1])
    assert "disagreement_tile" not in set(table[table["arm"] == "teacher_only"]["diagnostic"])


def test_students_are_compared_with_their_own_teacher_or_the_one_trained_alone(tmp_path):
    table = diagnostics_table(made_up(tmp_path))
    own = row(table, arm="kdml", diagnostic="agreement_with_teacher_tile")
    assert (own["teacher"], own["value"]) == ("own", (1 + 0.75) / 2)
    alone = row(table, arm="independent", diagnostic="agreement_with_teacher_tile")
    assert (alone["teacher"], alone["value"]) == ("teacher_only", (0.75 + 0.5) / 2)
    assert set(table[~table["diagnostic"].str.startswith("agreement")]["teacher"]) == {""}
    assert not table[table["arm"] == "teacher_only"]["diagnostic"].str.startswith("agreement").any()


def test_without_a_teacher_to_compare_with_there_is_no_agreement(tmp_path):
    plan = folders.tile_plan(tmp_path, arms=["independent", "kdml"])
    folders.write_results(plan, tmp_path, tiles)
    table = diagnostics_table(collect(plan, tmp_path))
    assert set(table[table["diagnostic"].str.startswith("agreement")]["arm"]) == {"kdml"}


def test_calibration_is_that_of_the_ensemble_and_of_the_teacher_alone(tmp_path):
    table = diagnostics_table(made_up(tmp_path))
    labels = np.array(list(LABELS.values()))
    ensemble = np.mean([STUDENT_0, STUDENT_1], axis=0)
    assert value(table, "kdml", "brier_tile") == pytest.approx(np.mean((ensemble - labels) ** 2))
    assert value(table, "teacher_only", "brier_patient") == pytest.approx(np.mean((LONE_TEACHER - labels) ** 2))
    # Each probability is alone in its bin, but for 0.2 twice.
    assert value(table, "teacher_only", "ece_tile") == pytest.approx((0.4 + 0.2 + 0.6) / 4)


def test_a_figure_is_the_mean_over_trainings_with_its_range(tmp_path):
    found = row(diagnostics_table(made_up(tmp_path, seeds=[0, 1])), arm="kdml", diagnostic="disagreement_tile")
    assert (found["value"], found["smallest"], found["largest"], found["runs"]) == (0.5, 0.25, 0.75, 2)


def test_trainings_on_different_samples_are_not_compared(tmp_path):
    def make(cell: Cell, evaluation: str) -> pd.DataFrame:
        table = tiles(cell, evaluation)
        return table[table["patient_id"] != "A"] if cell.arm == "teacher_only" else table

    plan = folders.tile_plan(tmp_path, arms=["teacher_only", "independent", "kdml"])
    folders.write_results(plan, tmp_path, make)
    with pytest.raises(InputError, match="were evaluated on different samples"):
        diagnostics_table(collect(plan, tmp_path))


def detections(plan: Plan, frames: pd.DataFrame) -> folders.Tables:
    """student_0 finds every box, student_1 and the teacher alone none but the first; all are sure of what they say."""

    def make(cell: Cell, evaluation: str) -> pd.DataFrame:
        boxes = [
            (item.sample_id, item.sequence_id, item.patient_id, box)
            for item in frames.itertuples()
            for box in item.boxes
        ]
        shown = {"student_0": boxes, "student_1": boxes[:1], "ensemble": boxes, "teacher": boxes}
        if cell.arm == "teacher_only":
            shown = {"student_0": boxes[:1], "ensemble": boxes[:1]}
        rows = [
            (sample, sequence, patient, network, 0.5, *box)
            for network, own in shown.items()
            if network in ("ensemble", *folders.networks_of(cell))
            for sample, sequence, patient, box in own
        ]
        far = (*rows[0][:3], "ensemble", 0.05, 0.0, 0.0, 1.0, 1.0)  # too unsure to be judged
        return folders.detection_table([*rows, far])

    return make


def test_detectors_are_compared_by_the_boxes_they_find(tmp_path):
    plan = folders.frame_plan(tmp_path, arms=["teacher_only", "independent", "kdml"])
    frames = folders.frames_tested(plan)
    folders.write_results(plan, tmp_path, detections(plan, frames), frames=frames)
    table = diagnostics_table(collect(plan, tmp_path))
    count = sum(len(boxes) for boxes in frames["boxes"])
    missed = (count - 1) / count
    assert value(table, "kdml", "disagreement_box") == pytest.approx(missed)
    own = row(table, arm="kdml", diagnostic="agreement_with_teacher_box")
    assert (own["teacher"], own["value"]) == ("own", pytest.approx((1 + 1 - missed) / 2))
    alone = row(table, arm="independent", diagnostic="agreement_with_teacher_box")
    assert (alone["teacher"], alone["value"]) == ("teacher_only", pytest.approx((1 - missed + 1) / 2))
    assert row(table, arm="kdml", diagnostic="error_correlation_box")["runs"] == 0  # student_0 misses nothing
    assert value(table, "kdml", "brier_detection") == pytest.approx(0.25)
    assert value(table, "teacher_only", "ece_detection") == pytest.approx(0.5)


def test_loss_shares_are_of_the_weighted_terms_of_students(tmp_path):
    table = loss_shares(made_up(tmp_path, seeds=[0, 1]))
    assert set(table["arm"]) == {"independent", "kdml"}
    sums = table.groupby(["version", "arm", "epoch"])["share"].sum()
    assert sums.tolist() == pytest.approx([1] * len(sums))
    only = row(table, arm="independent", epoch=1)
    assert (only["term"], only["loss"], only["share"]) == ("labels", 0.6, 1.0)
    # Epoch 1: 0.6 of labels; of the teacher half of 0.2 and of 0.4.
    first = row(table, arm="kdml", epoch=1, term="teacher")
    assert first["loss"] == pytest.approx(0.15)
    assert first["share"] == pytest.approx((0.1 / 0.7 + 0.2 / 0.8) / 2)
    assert row(table, arm="kdml", epoch=2, term="teacher")["loss"] == pytest.approx(0.3)


def test_shares_count_terms_of_losses_of_ones_own_under_their_names(tmp_path, monkeypatch):
    known = folders.loss_rows

    def with_norm(networks: Sequence[str], **options: bool) -> list[tuple[object, ...]]:
        norms = [(epoch, 5, name, "answer_norm", 0.5, 1.2) for epoch in (1, 2) for name in networks]
        return [*norms, *known(networks, **options), (1, 5, "", "regulariser", 1.0, 9.0)]

    monkeypatch.setattr(folders, "loss_rows", with_norm)
    table = loss_shares(made_up(tmp_path))
    own = table[(table["arm"] == "kdml") & (table["epoch"] == 1)]
    assert own["term"].tolist() == ["labels", "teacher", "answer_norm"]
    # Labels and norm count 0.6 each; of the teacher, one student learns 0.1 and the other 0.2.
    equal, taught = (0.6 / 1.3 + 0.6 / 1.4) / 2, (0.1 / 1.3 + 0.2 / 1.4) / 2
    assert own["share"].tolist() == pytest.approx([equal, taught, equal])


def test_tables_of_nothing_have_their_columns(tmp_path):
    results = collect(folders.tile_plan(tmp_path, arms=["kdml"]), tmp_path)
    assert list(diagnostics_table(results))[3:5] == ["diagnostic", "teacher"]
    assert list(loss_shares(results)) == ["version", "arm", "epoch", "term", "loss", "share"]
