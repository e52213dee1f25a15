"""The long table against the predictions it comes from."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from kdml_med.errors import InputError
from kdml_med.experiments.plan import Plan, expand
from kdml_med.experiments.results import NOT_DONE, collect, results_table, write_results
from kdml_med.storage.files import write_table
from tests.experiments import folders

ARMS = ["teacher_only", "independent", "kd_offline", "kdml"]


def small_plan(tmp_path: Path, **content: object) -> Plan:
    return folders.tile_plan(tmp_path, arms=ARMS, **content)


def row(table: pd.DataFrame, **wanted: object) -> pd.Series:
    """The only row with these values."""
    chosen = table
    for name, value in wanted.items():
        chosen = chosen[chosen[name] == value]
    assert len(chosen) == 1, (wanted, chosen)
    return chosen.iloc[0]


def test_figures_are_those_of_the_predictions(tmp_path):
    plan = small_plan(tmp_path, folds=[0, 2])
    folders.write_results(plan, tmp_path / "out")
    results = collect(plan, tmp_path / "out")
    table = results_table(results)
    for cell in expand(plan):
        made = folders.with_ensemble(folders.random_tiles(cell, "test"))
        for network, stored in results.networks(cell).items():
            tiles = made[made["network"] == stored]
            patients = tiles.groupby("patient_id").agg(label=("label", "first"), probability=("probability", "mean"))
            for level, own in {"tile": tiles, "patient": patients}.items():
                place = {"arm": cell.arm, "seed": cell.seed, "fold": cell.fold, "network": network, "level": level}
                found = row(table, **place, metric="auroc", evaluation="test")
                assert found["value"] == pytest.approx(roc_auc_score(own["label"], own["probability"]))
                assert found["low"] <= found["value"] <= found["high"]
                assert found["n"] == len(own)
                assert math.isnan(row(table, **place, metric="brier", evaluation="test")["low"])


def test_the_teacher_trained_alone_is_called_teacher_and_has_no_ensemble(tmp_path):
    plan = small_plan(tmp_path)
    folders.write_results(plan, tmp_path)
    table = results_table(collect(plan, tmp_path))
    networks = {arm: list(dict.fromkeys(own["network"])) for arm, own in table.groupby("arm")}
    assert networks == {
        "teacher_only": ["teacher"],
        "independent": ["student_0", "student_1", "ensemble"],
        "kd_offline": ["teacher", "student_0", "student_1", "ensemble"],
        "kdml": ["teacher", "student_0", "student_1", "ensemble"],
    }
    assert list(dict.fromkeys(table["arm"])) == ARMS


def test_networks_cost_what_they_cost_and_the_ensemble_what_its_students_cost(tmp_path):
    plan = small_plan(tmp_path)
    folders.write_results(plan, tmp_path)
    table = results_table(collect(plan, tmp_path))
    costs = table[table["level"] == "network"]
    assert (costs["evaluation"] == "").all()
    assert costs["n"].isna().all()
    wide = costs.pivot(index=["arm", "network"], columns="metric", values="value")
    assert wide.loc[("kdml", "teacher"), ["parameters", "bytes_on_disk", "steps", "best_epoch"]].tolist() == [
        50,
        500,
        10,
        2,
    ]
    assert wide.loc[("kdml", "ensemble"), ["parameters", "bytes_on_disk", "steps", "best_epoch"]].tolist() == [
        30,
        300,
        10,
        2,
    ]
    work = wide["multiply_accumulates"]
    assert work["kdml", "ensemble"] == work["kdml", "student_0"] + work["kdml", "student_1"] > 0
    # Frozen, so not trained there.
    assert math.isnan(wide.loc[("kd_offline", "teacher"), "steps"])
    assert wide.loc[("kd_offline", "teacher"), "parameters"] == 50


def test_steps_are_updates_where_several_batches_make_one(tmp_path):
    plan = small_plan(tmp_path)
    plan = replace(plan, settings={**plan.settings, "accumulate": 2})
    folders.write_results(plan, tmp_path)
    table = results_table(collect(plan, tmp_path))
    steps = table[(table["metric"] == "steps") & (table["arm"] == "kdml")]
    assert set(steps["value"]) == {6}  # two epochs of five batches: two and two, and the last one alone


def test_missing_cells_are_named_with_the_reason_where_it_is_known(tmp_path):
    plan = small_plan(tmp_path, seeds=[0, 1])
    folders.write_results(plan, tmp_path, without=["kdml/seed0", "ml/seed1", "kdml/seed1"])
    write_table(tmp_path / "failures.csv", pd.DataFrame({"cell": ["cells/edge/kdml/seed0"], "reason": ["no memory"]}))
    results = collect(plan, tmp_path)
    assert [(cell.path, reason) for cell, reason in results.missing] == [
        ("cells/edge/kdml/seed0", "no memory"),
        ("cells/edge/kdml/seed1", NOT_DONE),
    ]
    assert len(results.finished) == 6
    assert results.whole_seeds("edge", "kdml") == []


def test_a_seed_is_whole_when_all_its_folds_are_done(tmp_path):
    plan = small_plan(tmp_path, seeds=[0, 1], folds=[0, 1])
    folders.write_results(plan, tmp_path, without=["kdml/seed0-fold1"])
    results = collect(plan, tmp_path)
    assert results.whole_seeds("edge", "kdml") == [1]
    assert results.whole_seeds("edge", "independent") == [0, 1]
    assert {cell.seed for cell in results.whole_cells("edge", "kdml")} == {1}


def test_the_same_cells_give_the_same_bytes_wherever_they_lie(tmp_path):
    plan = small_plan(tmp_path)
    written = []
    for name in ("first", "second"):
        folders.write_results(plan, tmp_path / name)
        write_results(tmp_path / name / "results.parquet", results_table(collect(plan, tmp_path / name)))
        written.append((tmp_path / name / "results.parquet").read_bytes())
    assert written[0] == written[1]
    assert str(tmp_path).encode() not in written[0]
    assert pd.read_parquet(tmp_path / "first/results.parquet")["fold"].isna().all()


def test_a_plan_without_results_gives_an_empty_table(tmp_path):
    table = results_table(collect(small_plan(tmp_path), tmp_path))
    assert table.empty
    assert table["seed"].dtype == "Int64"


def test_cells_of_another_plan_are_refused(tmp_path):
    plan = small_plan(tmp_path)
    folders.write_results(plan, tmp_path)
    path = tmp_path / "cells/edge/kdml/seed0/cell.json"
    record = json.loads(path.read_text())
    record["cell"]["settings"]["beta"] = 2.0
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"kdml/seed0 was done with another cell than the plan's.*'beta': 2\.0"):
        collect(plan, tmp_path)


def test_figures_of_detectors_are_at_frame_level(tmp_path):
    plan = folders.frame_plan(tmp_path, arms=["teacher_only", "kdml"])
    frames = folders.frames_tested(plan)
    folders.write_results(plan, tmp_path, folders.detections_on(frames), frames=frames)
    table = results_table(collect(plan, tmp_path))
    found = row(table, arm="kdml", network="ensemble", metric="ap50")
    assert (found["level"], found["n"], found["evaluation"]) == ("frame", 16, "test")
    assert 0 < found["low"] <= found["value"] <= found["high"]
    assert row(table, arm="teacher_only", metric="n_boxes")["network"] == "teacher"
    assert row(table, arm="kdml", network="teacher", metric="multiply_accumulates")["value"] > 0


def emptied(text: str) -> str:
    return ""


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("metrics.json", emptied),
        ("metrics.json", lambda text: "[1]"),
        ("metrics.json", lambda text: '{"networks": {}}'),
        ("metrics.json", lambda text: text.replace("parameters", "parameter")),
        ("evaluation_test/metrics.json", lambda text: text[:-20]),
        ("evaluation_test/metrics.json", lambda text: '{"networks": 3, "level": "patient"}'),
        ("evaluation_test/metrics.json", lambda text: text.replace('"auroc":', '"auroc": "high", "more":')),
        ("evaluation_test/metrics.json", lambda text: text.replace('"n":', '"number":')),
        ("evaluation_test/metrics.json", lambda text: text.replace("aggregation", "aggregated")),
        ("evaluation_test/metrics.json", lambda text: text.replace('"unit":', '"units":')),
        ("evaluation_test/metrics.json", lambda text: text.replace('"n":', '"n": [], "number":')),
        ("losses.csv", emptied),
        ("losses.csv", lambda text: text.replace("epoch", "time")),
        ("losses.csv", lambda text: text[:-4] + "x\n"),
        ("cohort.json", lambda text: text.replace('"classes"', '"klasses"')),
        ("cell.json", lambda text: text[: len(text) // 2]),
    ],
)
def test_a_damaged_file_of_a_cell_stops_the_report_in_one_line_with_its_folder(tmp_path, name, damage):
    plan = small_plan(tmp_path)
    folders.write_results(plan, tmp_path / "out")
    cell = expand(plan)[-1]
    path = tmp_path / "out" / cell.path / name
    text = path.read_text()
    assert damage(text) != text
    path.write_text(damage(text))
    with pytest.raises(InputError, match=rf"{cell.path}[^\n]*$") as caught:
        results_table(collect(plan, tmp_path / "out"))
    assert "\n" not in str(caught.value)
