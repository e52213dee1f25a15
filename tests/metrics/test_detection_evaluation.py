import json
import time

import numpy as np
import pandas as pd
import pytest

from kdml_med.metrics.bootstrap import resampled_weights
from kdml_med.metrics.box_matching import match_detections, read_frames
from kdml_med.metrics.detection import average_precision
from kdml_med.metrics.detection_evaluation import FROC_NAMES, evaluate_detections, sequence_table
from tests.metrics.detection_tables import cohort, detection_table, frame_table

HIT, OTHER, MISS = (0, 0, 10, 10), (20, 0, 30, 10), (50, 50, 60, 60)
INTERVALS = [
    *["ap", "ap50", "ap75", "precision", "recall", "f1", *FROC_NAMES, "froc_mean"],
    *["sequence_sensitivity", "sequences_found", "polyps_found"],
    *["false_positives_per_frame", "false_positives_per_negative_frame"],
]
COUNTS = ["n_frames", "n_boxes", "n_negative_frames", "n_sequences", "n_polyps", "n_detections"]


def small() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Three sequences, three polyps (one in two sequences), a negative sequence."""
    frames = frame_table(
        {"a": [HIT, OTHER], "b": [HIT], "c": [HIT], "d": [], "e": []},
        sequence_id=["s", "s", "t", "u", "u"],
        patient_id=["p", "p", "p", "q", "q"],
        polyp_ids=[["x", "y"], ["x"], ["z"], [], None],
    )
    detections = detection_table(
        {"a": [(0.9, HIT), (0.2, OTHER)], "b": [(0.3, HIT)], "c": [(0.8, MISS)], "d": [(0.7, MISS), (0.6, MISS)]}
    )
    return frames, detections


def test_figures_by_hand() -> None:
    figures = evaluate_detections(*small(), threshold=0.5, resamples=0)["student_0"]
    assert [figures[name] for name in COUNTS] == [5, 4, 2, 3, 3, 4]
    expected = {
        "precision": 1 / 4,
        "recall": 1 / 4,
        "f1": 1 / 4,
        "sequence_sensitivity": (1 / 3 + 0) / 2,
        "sequences_found": 1 / 2,
        "polyps_found": 1 / 3,
        "false_positives_per_frame": 3 / 5,
        "false_positives_per_negative_frame": 1.0,
        "froc_sensitivity_0.1": 1 / 4,
        "froc_sensitivity_0.5": 1 / 4,
        "froc_sensitivity_1": 3 / 4,
        "froc_mean": 3 / 8,
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    lower = evaluate_detections(*small(), threshold=0.25, resamples=0)["student_0"]
    assert lower["polyps_found"] == pytest.approx(1 / 3)  # the second view of the same polyp
    assert lower["sequence_sensitivity"] == pytest.approx((2 / 3 + 0) / 2)


def test_result_is_json_with_the_documented_keys() -> None:
    frames, detections = cohort(networks=["student_0", "teacher"])
    result = evaluate_detections(frames, detections, threshold=0.4, resamples=50, networks=["ensemble"])
    json.dumps(result, allow_nan=False)
    assert list(result) == ["teacher", "student_0", "ensemble"]
    for figures in result.values():
        assert set(figures) == {*COUNTS, "threshold", *INTERVALS, *(f"{name}_ci95" for name in INTERVALS)}
        assert all(type(figures[name]) is int for name in COUNTS)
    for name in INTERVALS:
        low, high = result["teacher"][f"{name}_ci95"]
        assert low <= result["teacher"][name] <= high, name


def test_intervals_are_those_of_frames_copied_by_resampled_sequences() -> None:
    frames, detections = cohort(sequences=5, frames=3)
    result = evaluate_detections(frames, detections, threshold=0.5, resamples=30, seed=4)["student_0"]
    ordered = frames.sort_values("sample_id")
    drawn: dict[str, list[float]] = {name: [] for name in INTERVALS}
    for weights in resampled_weights(ordered["sequence_id"], len(ordered), resamples=30, seed=4):
        for row in weights:
            copies = ordered.loc[ordered.index.repeat(row)].copy()
            number = copies.groupby("sample_id").cumcount().astype(str)
            copied = detections.merge(copies[["sample_id"]].assign(copy=number), on="sample_id")
            copied["sample_id"] += "-" + copied.pop("copy")
            for column in ("sample_id", "sequence_id"):
                copies[column] += "-" + number
            polyps = zip(copies["polyp_ids"], number, strict=True)
            copies["polyp_ids"] = [[f"{name}-{copy}" for name in names] for names, copy in polyps]
            once = evaluate_detections(copies, copied, threshold=0.5, resamples=0)["student_0"]
            for name, values in drawn.items():
                values.append(np.nan if once[name] is None else once[name])
    for name, values in drawn.items():
        usable = np.array(values)[~np.isnan(values)]
        expected = np.quantile(usable, [0.025, 0.975]) if len(usable) >= 15 else [None, None]
        assert result[f"{name}_ci95"] == pytest.approx(list(expected)), name


def test_networks_see_the_same_resamples() -> None:
    frames, detections = cohort(networks=["student_0"])
    both = pd.concat([detections, detections.assign(network="student_1")])
    result = evaluate_detections(frames, both, threshold=0.5, resamples=40)
    assert result["student_0"] == result["student_1"]


def test_the_order_of_rows_does_not_matter() -> None:
    frames, detections = cohort()
    expected = evaluate_detections(frames, detections, threshold=0.5, resamples=40)
    shuffled = frames.sample(frac=1, random_state=0), detections.sample(frac=1, random_state=1)
    assert evaluate_detections(*shuffled, threshold=0.5, resamples=40) == expected


def test_frames_of_a_sequence_are_not_resampled_alone() -> None:
    frames, detections = cohort(sequences=20, frames=1)
    copies = pd.concat([frames.assign(sample_id=frames["sample_id"] + f"-{copy}") for copy in range(3)])
    copied = pd.concat([detections.assign(sample_id=detections["sample_id"] + f"-{copy}") for copy in range(3)])
    single = evaluate_detections(frames, detections, threshold=0.5, resamples=100)["student_0"]
    triple = evaluate_detections(copies, copied, threshold=0.5, resamples=100)["student_0"]
    by_frame = evaluate_detections(copies, copied, threshold=0.5, resamples=100, group="frame")["student_0"]
    for name in ("recall", "precision", "ap50", "froc_mean"):
        assert triple[f"{name}_ci95"] == pytest.approx(single[f"{name}_ci95"])
    width = np.diff(single["recall_ci95"])[0]
    assert np.diff(by_frame["recall_ci95"])[0] < 0.8 * width


def test_figures_of_sequences_and_polyps_have_intervals_where_each_lies_in_one_group() -> None:
    frames, detections = cohort()
    for group, sequences in (("patient", True), ("sequence", True), ("frame", False)):
        figures = evaluate_detections(frames, detections, threshold=0.5, resamples=30, group=group)["student_0"]
        for name in ("sequence_sensitivity", "sequences_found", "polyps_found"):
            assert figures[name] is not None
            assert (figures[f"{name}_ci95"] != [None, None]) is sequences
    shared = frames.assign(polyp_ids=[["everywhere"] * len(own) for own in frames["boxes"]])
    figures = evaluate_detections(shared, detections, threshold=0.5, resamples=30)["student_0"]
    assert (figures["n_polyps"], figures["polyps_found"], figures["polyps_found_ci95"]) == (1, 1.0, [None, None])


def test_what_is_counted_in_one_group_alone_has_no_interval() -> None:
    # Three boxes of one sequence, two of them found; a false alarm in one of two negative sequences.
    frames = frame_table(
        {"a": [HIT], "b": [HIT], "c": [HIT], "d": [], "e": []},
        sequence_id=["s", "s", "s", "t", "u"],
        polyp_ids=[["x"], ["x"], ["x"], [], []],
    )
    found = {"a": [(0.9, HIT)], "b": [(0.9, HIT)], "d": [(0.9, MISS)]}
    figures = evaluate_detections(frames, detection_table(found), threshold=0.5, resamples=60)["student_0"]
    known = {name for name in INTERVALS if figures[f"{name}_ci95"] != [None, None]}
    assert known == {"precision", "false_positives_per_frame", "false_positives_per_negative_frame"}
    assert all(figures[name] is not None for name in INTERVALS)
    by_frame = evaluate_detections(frames, detection_table(found), threshold=0.5, group="frame", resamples=60)
    assert None not in by_frame["student_0"]["recall_ci95"]
    alone = evaluate_detections(frames, detection_table(found | {"d": []}), threshold=0.5, resamples=60)["student_0"]
    assert (alone["precision"], alone["precision_ci95"]) == (1, [None, None])


def test_what_is_not_known_is_none() -> None:
    frames, detections = cohort()
    alone = frames.assign(sequence_id=frames["sample_id"], polyp_ids=None)
    figures = evaluate_detections(alone, detections, threshold=0.5, resamples=30)["student_0"]
    for name in ("sequence_sensitivity", "sequences_found", "polyps_found"):
        assert (figures[name], figures[f"{name}_ci95"]) == (None, [None, None])
    assert (figures["n_sequences"], figures["n_polyps"]) == (None, None)
    by_frame = evaluate_detections(frames, detections, threshold=0.5, resamples=30, group="frame")["student_0"]
    assert figures["ap50_ci95"] == by_frame["ap50_ci95"]
    positive = frames[[len(own) > 0 for own in frames["boxes"]]]
    seen = detections[detections["sample_id"].isin(positive["sample_id"])]
    figures = evaluate_detections(positive, seen, threshold=0.5, resamples=30)["student_0"]
    assert (figures["n_negative_frames"], figures["false_positives_per_negative_frame"]) == (0, None)


def test_defined_cases_of_all_figures() -> None:
    box = [(0, 0, 10, 10)]
    without_truth = evaluate_detections(
        frame_table({"a": [], "b": []}), detection_table({"a": [(0.9, HIT)]}), threshold=0.5, resamples=20
    )["student_0"]
    assert [without_truth[name] for name in ("ap", "recall", "f1", "froc_mean")] == [None] * 4
    assert (without_truth["precision"], without_truth["false_positives_per_negative_frame"]) == (0.0, 0.5)
    none = detection_table({})
    nothing = evaluate_detections(frame_table({"a": box, "b": box}), none, threshold={"teacher": 0.5}, resamples=20)
    assert [nothing["teacher"][name] for name in ("ap", "ap75", "recall", "f1", "froc_mean")] == [0.0] * 5
    assert nothing["teacher"]["ap_ci95"] == [0.0, 0.0]
    assert nothing["teacher"]["precision"] is None
    no_frames = evaluate_detections(frame_table({}), none, threshold=0.5, networks=["teacher"])["teacher"]
    assert (no_frames["n_frames"], no_frames["ap"], no_frames["false_positives_per_frame"]) == (0, None, None)


def test_a_network_that_diverged_has_no_figures() -> None:
    frames, detections = cohort(networks=["student_0", "teacher"])
    detections.loc[detections["network"].eq("teacher").idxmax(), "score"] = np.nan
    result = evaluate_detections(frames, detections, threshold=0.5, resamples=20)
    assert all(result["teacher"][name] is None for name in INTERVALS)
    assert all(result["teacher"][f"{name}_ci95"] == [None, None] for name in INTERVALS)
    assert result["student_0"]["ap"] is not None


def test_unlabelled_frames_are_left_out() -> None:
    frames, detections = cohort()
    label = np.where([len(own) > 0 for own in frames["boxes"]], "polyp", "negative").astype(object)
    known = frames["sequence_id"] != "s0"
    expected = evaluate_detections(
        frames[known], detections[detections["sample_id"].isin(frames["sample_id"][known])], threshold=0.5, resamples=20
    )
    partly = frames.assign(label=pd.Series(label, index=frames.index).where(known, None))
    assert evaluate_detections(partly, detections, threshold=0.5, resamples=20) == expected


def test_thresholds_are_by_network() -> None:
    frames, detections = cohort(networks=["student_0", "teacher"])
    result = evaluate_detections(frames, detections, threshold={"student_0": 0.3, "teacher": 0.6}, resamples=0)
    assert [figures["threshold"] for figures in result.values()] == [0.6, 0.3]
    with pytest.raises(ValueError, match=r"\['teacher'\] have no threshold"):
        evaluate_detections(frames, detections, threshold={"student_0": 0.3})
    with pytest.raises(ValueError, match="group 'site'"):
        evaluate_detections(frames, detections, threshold=0.5, group="site")


def test_sequence_table_by_hand() -> None:
    frames, detections = small()
    table = sequence_table(frames, detections, threshold={"student_0": 0.5, "teacher": 0.1})
    assert list(table.columns) == [
        *["sequence_id", "patient_id", "frames", "boxes", "sensitivity_teacher", "false_positives_teacher"],
        *["sensitivity_student_0", "false_positives_student_0"],
    ]
    assert table["sequence_id"].tolist() == ["s", "t", "u"]
    assert table["patient_id"].tolist() == ["p", "p", "q"]
    assert table["frames"].tolist() == [2, 1, 2]
    assert table["boxes"].tolist() == [3, 1, 0]
    np.testing.assert_allclose(table["sensitivity_student_0"], [1 / 3, 0, np.nan])
    assert table["false_positives_student_0"].tolist() == [0, 1, 2]
    np.testing.assert_allclose(table["sensitivity_teacher"], [0, 0, np.nan])


def test_sequence_table_sums_to_the_figures() -> None:
    frames, detections = cohort()
    table = sequence_table(frames, detections, threshold=0.5)
    figures = evaluate_detections(frames, detections, threshold=0.5, resamples=0)["student_0"]
    assert (table["frames"].sum(), table["boxes"].sum()) == (figures["n_frames"], figures["n_boxes"])
    assert table["sensitivity_student_0"].mean() == pytest.approx(figures["sequence_sensitivity"])
    rate = table["false_positives_student_0"].sum() / len(frames)
    assert rate == pytest.approx(figures["false_positives_per_frame"])


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    whole = cohort(sequences=400, frames=1, seed=9)
    truth = read_frames(whole[0])
    target = average_precision(match_detections(truth, whole[1]))[0]
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(30):
        picked = generator.choice(truth.sample_ids, 60, replace=False)
        part = [table[table["sample_id"].isin(picked)] for table in whole]
        low, high = evaluate_detections(part[0], part[1], threshold=0.5, resamples=100)["student_0"]["ap50_ci95"]
        covered += low <= target <= high
    assert covered >= 25


@pytest.mark.slow
def test_a_thousand_frames_and_four_networks_take_seconds() -> None:
    frames, detections = cohort(sequences=100, frames=10, networks=["a", "b", "c", "d"])
    start = time.perf_counter()
    evaluate_detections(frames, detections, threshold=0.5)
    assert time.perf_counter() - start < 15


def test_a_network_whose_scores_are_no_numbers_has_empty_cells_by_sequence():
    frames, detections = cohort(sequences=2, networks=("student_0", "student_1"))
    broken = detections.assign(score=detections["score"].mask(detections["network"] == "student_1"))
    table = sequence_table(frames, broken, threshold={"student_0": 0.5, "student_1": 0.5})
    assert table[["sensitivity_student_1", "false_positives_student_1"]].isna().all(axis=None)
    kept = ["sequence_id", "frames", "boxes", "sensitivity_student_0", "false_positives_student_0"]
    whole = sequence_table(frames, detections, threshold={"student_0": 0.5, "student_1": 0.5})
    pd.testing.assert_frame_equal(table[kept], whole[kept])
