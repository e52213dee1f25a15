"""Arms with intervals and in pairs, against sklearn and the metrics that they are made of."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

from kdml_med.errors import InputError
from kdml_med.experiments import comparison
from kdml_med.experiments.comparison import comparison_table, gain_table, summary_table
from kdml_med.experiments.plan import Cell, Plan
from kdml_med.experiments.report.writing import find
from kdml_med.experiments.results import collect
from kdml_med.keys import Task
from kdml_med.metrics.detection_evaluation import evaluate_detections
from kdml_med.metrics.paired import holm
from kdml_med.metrics.power import detectable_difference
from tests.experiments import folders
from tests.experiments.test_results import ARMS, row


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "RESAMPLES", dict.fromkeys(Task, 50))
    monkeypatch.setattr(comparison, "PERMUTATIONS", dict.fromkeys(Task, 50))


def patients_of(cell: Cell, network: str, evaluation: str = "test", **options: bool) -> pd.DataFrame:
    """Label and mean probability of each patient in made-up predictions."""
    made = folders.with_ensemble(folders.random_tiles(cell, evaluation, **options))
    own = made[made["network"] == network]
    return own.groupby("patient_id").agg(label=("label", "first"), probability=("probability", "mean"))


def auroc(table: pd.DataFrame) -> float:
    return float(roc_auc_score(table["label"], table["probability"]))


def cell_of(arm: str, seed: int, fold: int | None = None) -> Cell:
    return Cell("edge", arm, seed, fold, {})


def test_roles_are_means_over_seeds_and_over_single_students(tmp_path):
    plan = folders.tile_plan(tmp_path, arms=ARMS, seeds=[0, 1, 2])
    folders.write_results(plan, tmp_path)
    table = summary_table(collect(plan, tmp_path))
    own = {
        (seed, name): auroc(patients_of(cell_of("kdml", seed), name))
        for seed, name in itertools.product(plan.seeds, [*folders.ALL, "ensemble"])
    }
    roles = {"teacher": ["teacher"], "students": folders.STUDENTS, "ensemble": ["ensemble"]}
    for role, names in roles.items():
        found = row(table, arm="kdml", role=role, metric="auroc")
        expected = np.mean([own[seed, name] for seed in plan.seeds for name in names])
        assert found["value"] == pytest.approx(expected)
        assert found["low"] <= found["value"] <= found["high"]
        assert (found["unit"], found["units"], found["seeds"]) == ("patient", 8, 3)
        assert pd.isna(found["folds"])
    shown = set(zip(table["arm"], table["role"], strict=True))
    assert {role for arm, role in shown if arm == "teacher_only"} == {"teacher"}
    assert {role for arm, role in shown if arm == "independent"} == {"students", "ensemble"}


def test_tile_auroc_ranks_tiles_and_counts_patients(tmp_path):
    plan = folders.tile_plan(tmp_path, arms=ARMS)
    folders.write_results(plan, tmp_path)
    found = row(summary_table(collect(plan, tmp_path)), arm="kdml", role="ensemble", metric="tile_auroc")
    tiles = folders.with_ensemble(folders.random_tiles(cell_of("kdml", 0), "test"))
    tiles = tiles[tiles["network"] == "ensemble"]
    assert found["value"] == pytest.approx(auroc(tiles))
    assert found["units"] == 8 < len(tiles)


def test_folds_with_samples_of_their_own_are_ranked_fold_by_fold(tmp_path):
    plan = folders.tile_plan(tmp_path, arms=["independent", "kdml"], seeds=[0, 1], folds=[0, 1, 2])
    folders.write_results(plan, tmp_path)
    found = row(summary_table(collect(plan, tmp_path)), arm="independent", role="ensemble", metric="auroc")
    values = []
    for seed in plan.seeds:
        tables = [patients_of(cell_of("independent", seed, fold), "ensemble") for fold in plan.folds]
        pairs = [int(table["label"].sum() * (1 - table["label"]).sum()) for table in tables]
        values.append(np.average([auroc(table) for table in tables], weights=pairs))
    assert found["value"] == pytest.approx(np.mean(values))
    assert (found["units"], found["seeds"], found["folds"]) == (24, 2, 3)


def test_a_test_set_that_all_folds_share_is_averaged_over_folds(tmp_path):
    def make(cell: Cell, evaluation: str) -> pd.DataFrame:
        return folders.random_tiles(cell, evaluation, shared=evaluation == "other")

    other = {"dataset_dir": str(tmp_path / "others"), "split": "test"}
    plan = folders.tile_plan(
        tmp_path,
        arms=["independent", "kdml"],
        seeds=[0, 1],
        folds=[0, 1],
        evaluations={"test": {"split": "test"}, "other": other},
    )
    folders.write_results(plan, tmp_path, make)
    results = collect(plan, tmp_path)
    found = row(summary_table(results), arm="kdml", role="ensemble", metric="auroc", evaluation="other")
    values = [
        auroc(patients_of(cell_of("kdml", seed, fold), "ensemble", "other", shared=True))
        for seed, fold in itertools.product(plan.seeds, plan.folds)
    ]
    assert found["value"] == pytest.approx(np.mean(values))
    assert (found["units"], found["seeds"], found["folds"]) == (8, 2, 2)
    compared = row(comparison_table(results), arm="independent", role="students", evaluation="other")
    assert compared["seeds"] == 2
    assert compared["units"] == 8
    evaluations = find(results, {}).evaluations
    assert evaluations["other"].samples == "8 patients"
    assert evaluations["test"].samples == "16 patients"


def test_folds_that_share_some_samples_are_refused(tmp_path):
    def make(cell: Cell, evaluation: str) -> pd.DataFrame:
        return folders.random_tiles(cell, evaluation, patients=8 + (cell.fold or 0), shared=True)

    plan = folders.tile_plan(tmp_path, arms=ARMS, folds=[0, 1])
    folders.write_results(plan, tmp_path, make)
    with pytest.raises(InputError, match="folds share some of their samples"):
        summary_table(collect(plan, tmp_path))


def test_a_comparison_uses_the_seeds_that_both_arms_have(tmp_path):
    plan = folders.tile_plan(tmp_path, arms=ARMS, seeds=[0, 1, 2], folds=[0, 1])
    without = ["kdml/seed2-fold0", "independent/seed0-fold1"]
    folders.write_results(plan, tmp_path, without=without)
    results = collect(plan, tmp_path)
    summary, table = summary_table(results), comparison_table(results)
    assert row(summary, arm="kdml", role="ensemble", metric="auroc")["seeds"] == 2
    assert row(summary, arm="kd_offline", role="ensemble", metric="auroc")["seeds"] == 3
    found = row(table, arm="independent", role="ensemble")
    assert found["seeds"] == 1
    values = []
    for arm in ("kdml", "independent"):
        tables = [patients_of(cell_of(arm, 1, fold), "ensemble") for fold in (0, 1)]
        pairs = [int(table["label"].sum() * (1 - table["label"]).sum()) for table in tables]
        values.append(np.average([auroc(table) for table in tables], weights=pairs))
    assert [found["value_reference"], found["value_arm"]] == pytest.approx(values)
    assert found["difference"] == pytest.approx(values[0] - values[1])
    assert row(table, arm="kd_offline", role="ensemble")["seeds"] == 2


@pytest.mark.parametrize(("arm", "named"), [("kdml", "kdml"), ("independent", "kdml and independent")])
def test_trainings_on_other_samples_are_not_compared(tmp_path, arm, named):
    def make(cell: Cell, evaluation: str) -> pd.DataFrame:
        other = cell.arm == arm and (arm != "kdml" or cell.seed == 1)
        return folders.random_tiles(cell, evaluation, patients=9 if other else 8)

    plan = folders.tile_plan(tmp_path, arms=["independent", "kdml"], seeds=[0, 1])
    folders.write_results(plan, tmp_path, make)
    results = collect(plan, tmp_path)
    with pytest.raises(InputError, match=rf"trainings of {named} were not evaluated on the same samples \(test\)"):
        comparison_table(results) if arm == "independent" else summary_table(results)


def test_an_arm_without_a_common_seed_has_no_comparison(tmp_path):
    plan = folders.tile_plan(tmp_path, arms=ARMS, seeds=[0, 1])
    folders.write_results(plan, tmp_path, without=["kdml/seed1", "independent/seed0", "kd_offline/seed0", "only/seed0"])
    results = collect(plan, tmp_path)
    table = comparison_table(results)
    assert table.empty
    assert table["difference"].dtype == float
    assert set(summary_table(results)["arm"]) == {"independent", "kd_offline", "kdml", "teacher_only"}


def test_holm_counts_the_arms_of_one_role(tmp_path):
    plan = folders.tile_plan(tmp_path, arms=ARMS, evaluations={"test": {"split": "test"}, "val": {"split": "val"}})
    folders.write_results(plan, tmp_path)
    table = comparison_table(collect(plan, tmp_path))
    order = list(zip(table["evaluation"], table["role"], table["arm"], strict=True))
    assert order == list(itertools.product(["test", "val"], ["ensemble", "students"], ARMS[:-1]))
    for _, family in table.groupby(["evaluation", "role"]):
        assert family["p_holm"].tolist() == pytest.approx(holm(family["p_value"]).tolist())
    assert (table["p_holm"] > table["p_value"]).any()


def test_every_endpoint_is_compared_and_corrected_for_itself(tmp_path):
    plan = folders.tile_plan(tmp_path, arms=ARMS, seeds=[0, 1, 2], endpoints=["students", "ensemble_brier"])
    folders.write_results(plan, tmp_path)
    results = collect(plan, tmp_path)
    table = comparison_table(results)
    order = list(zip(table["role"], table["metric"], table["arm"], strict=True))
    places = [("students", "auroc"), ("ensemble", "brier")]
    assert order == [(*place, arm) for place in places for arm in ARMS[:-1]]
    for _, family in table.groupby(["role", "metric"]):
        assert family["p_holm"].tolist() == pytest.approx(holm(family["p_value"]).tolist())
    briers = {
        arm: [
            brier_score_loss(own["label"], own["probability"])
            for own in (patients_of(cell_of(arm, seed), "ensemble") for seed in plan.seeds)
        ]
        for arm in ("kdml", "independent")
    }
    found = row(table, arm="independent", role="ensemble")
    assert found["difference"] == pytest.approx(np.mean(briers["kdml"]) - np.mean(briers["independent"]))
    spread = np.std(np.subtract(briers["kdml"], briers["independent"]), ddof=1)
    assert found["seed_sd"] == pytest.approx(spread)
    assert found["pairs"] == 3
    assert found["detectable"] == pytest.approx(detectable_difference(spread, 3, alpha=0.05 / 3))
    assert "brier" in set(summary_table(results)["metric"])


def test_further_pairs_are_corrected_among_themselves(tmp_path):
    pairs = [["kd_offline", "independent"], ["teacher_only", "independent"]]
    plan = folders.tile_plan(tmp_path, arms=ARMS, seeds=[0, 1], endpoints=["ensemble"], contrasts=pairs)
    folders.write_results(plan, tmp_path)
    table = comparison_table(collect(plan, tmp_path))
    assert list(zip(table["reference"], table["arm"], strict=True)) == [
        *(("kdml", arm) for arm in ARMS[:-1]),
        *map(tuple, pairs),
    ]
    further = table[table["reference"] != "kdml"]
    assert further["p_holm"].tolist() == pytest.approx(holm(further["p_value"]).tolist())
    values = [
        np.mean([auroc(patients_of(cell_of(arm, seed), "ensemble")) for seed in plan.seeds])
        for arm in ("kd_offline", "independent")
    ]
    assert further["difference"].iloc[0] == pytest.approx(values[0] - values[1])


def test_the_gain_of_an_ensemble_is_over_the_mean_of_its_students(tmp_path):
    plan = folders.tile_plan(tmp_path, arms=ARMS, seeds=[0, 1])
    folders.write_results(plan, tmp_path)
    table = gain_table(collect(plan, tmp_path))
    assert table["arm"].tolist() == ["independent", "kd_offline", "kdml"]
    found = row(table, arm="kdml")
    values = {
        name: np.mean([auroc(patients_of(cell_of("kdml", seed), name)) for seed in plan.seeds])
        for name in ("ensemble", *folders.STUDENTS)
    }
    assert found["value_ensemble"] == pytest.approx(values["ensemble"])
    assert found["value_students"] == pytest.approx(np.mean([values[name] for name in folders.STUDENTS]))
    assert found["difference"] == pytest.approx(found["value_ensemble"] - found["value_students"])
    assert found["low"] <= found["difference"] <= found["high"]


def test_the_teacher_trained_alone_is_compared_in_both_roles(tmp_path):
    plan = folders.tile_plan(tmp_path, arms=ARMS)
    folders.write_results(plan, tmp_path)
    table = comparison_table(collect(plan, tmp_path))
    teacher = auroc(patients_of(cell_of("teacher_only", 0), "student_0"))
    for role in ("ensemble", "students"):
        assert row(table, arm="teacher_only", role=role)["value_arm"] == pytest.approx(teacher)
    students = [auroc(patients_of(cell_of("kdml", 0), name)) for name in folders.STUDENTS]
    assert row(table, arm="teacher_only", role="students")["value_reference"] == pytest.approx(np.mean(students))


def test_another_metric_and_reference_are_those_of_the_plan(tmp_path):
    plan = folders.tile_plan(tmp_path, arms=ARMS, metric="tile_auroc", reference="teacher_only")
    folders.write_results(plan, tmp_path)
    results = collect(plan, tmp_path)
    assert list(dict.fromkeys(summary_table(results)["metric"])) == ["tile_auroc", "auroc"]
    table = comparison_table(results)
    assert set(table["metric"]) == {"tile_auroc"}
    assert set(table["reference"]) == {"teacher_only"}
    assert not (table["arm"] == "teacher_only").any()


def test_slides_are_ranked_and_patients_resampled(tmp_path):
    plan = folders.tile_plan(tmp_path, arms=["independent", "kdml"])
    folders.write_results(plan, tmp_path, level="slide")
    found = row(summary_table(collect(plan, tmp_path)), arm="kdml", role="ensemble", metric="auroc")
    assert found["value"] == pytest.approx(auroc(patients_of(cell_of("kdml", 0), "ensemble")))
    assert found["unit"] == "patient"


def test_tables_of_nothing_have_their_columns(tmp_path):
    results = collect(folders.tile_plan(tmp_path, arms=ARMS), tmp_path)
    assert list(summary_table(results)) == list(comparison._SUMMARY)
    assert list(comparison_table(results)) == list(comparison._COMPARISON)


def detection_plan(tmp_path: Path) -> tuple[Plan, pd.DataFrame]:
    plan = folders.frame_plan(tmp_path, arms=["teacher_only", "independent", "kdml"])
    frames = folders.frames_tested(plan)
    folders.write_results(plan, tmp_path, folders.detections_on(frames), frames=frames)
    return plan, frames


def test_detectors_are_compared_on_the_frames_of_their_dataset(tmp_path):
    plan, frames = detection_plan(tmp_path)
    results = collect(plan, tmp_path)
    summary, table = summary_table(results), comparison_table(results)
    made = folders.detections_on(frames)
    figures = {
        arm: evaluate_detections(frames, made(cell_of(arm, 0), "test"), threshold=0.4, resamples=0)
        for arm in results.arms
    }
    for metric in ("ap50", "ap75", "ap"):
        found = row(summary, arm="kdml", role="students", metric=metric)
        expected = np.mean([figures["kdml"][name][metric] for name in folders.STUDENTS])
        assert found["value"] == pytest.approx(expected)
        assert (found["unit"], found["units"]) == ("patient", 4)
    found = row(table, arm="teacher_only", role="ensemble")
    assert found["metric"] == "ap50"
    assert found["value_arm"] == pytest.approx(figures["teacher_only"]["student_0"]["ap50"])
    assert found["value_reference"] == pytest.approx(figures["kdml"]["ensemble"]["ap50"])
    assert bool(found["exact"])
    assert found["permutations"] == 16
    assert not math.isnan(found["p_value"])


def test_detectors_are_not_judged_on_a_dataset_that_has_changed(tmp_path):
    plan, _ = detection_plan(tmp_path)
    record = tmp_path / "cells/edge/kdml/seed0/cell.json"
    manifest = results_hash(record)
    record.write_text(record.read_text().replace(manifest, "0" * 64))
    with pytest.raises(InputError, match="frames has changed since detectors were evaluated on it"):
        summary_table(collect(plan, tmp_path))


def results_hash(record: Path) -> str:
    """Hash of the manifest in a cell.json."""
    return str(pd.read_json(record, typ="series")["datasets"][""]["manifest_sha256"])
