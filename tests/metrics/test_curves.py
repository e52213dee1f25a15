"""Curves, areas and bands, against scikit-learn and pycocotools, and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn import metrics as reference

from kdml_med.metrics import average_precision, binary_auroc, bootstrap_interval, evaluate_detections
from kdml_med.metrics.bootstrap import resampled_weights
from kdml_med.metrics.box_matching import match_detections, read_frames
from kdml_med.metrics.curves import (
    Curve,
    detection_precision_recall,
    froc_with_band,
    precision_recall_curve,
    roc_curve,
)
from kdml_med.metrics.froc import froc_sensitivity
from tests.examples import examples
from tests.metrics.detection_tables import cases, cohort, detection_table, distinct, frame_table

answers = st.lists(st.tuples(st.booleans(), st.integers(0, 8).map(lambda level: level / 8)), min_size=2, max_size=25)
RESAMPLES = 200


def slides(patients: int = 25, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities with ties, and patients of slides, one to three of each patient."""
    generator = np.random.default_rng(seed)
    groups = np.repeat(np.arange(patients), generator.integers(1, 4, patients))
    labels = (groups % 3 == 0).astype(int)
    return labels, np.round(np.clip(generator.normal(0.4 + 0.2 * labels, 0.2), 0, 1), 2), groups


def undefined(curve: Curve) -> bool:
    figures = [curve.area, curve.area_low, curve.area_high, *curve.low, *curve.high]
    return len(curve.x) == len(curve.y) == len(curve.thresholds) == 0 and bool(np.isnan(figures).all())


@settings(max_examples=examples(60))
@given(answers)
def test_points_are_those_of_scikit_learn(pairs: list[tuple[bool, float]]) -> None:
    labels, values = (np.array(column) for column in zip(*pairs, strict=True))
    roc, precisions = (curve(labels, values, resamples=0) for curve in (roc_curve, precision_recall_curve))
    if labels.all() or not labels.any():
        assert undefined(roc)
        assert undefined(precisions)
        return
    false, true, thresholds = reference.roc_curve(labels, values, drop_intermediate=False)
    for found, expected in ((roc.x, false), (roc.y, true), (roc.thresholds, thresholds)):
        np.testing.assert_allclose(found, expected, atol=1e-9)
    assert roc.area == pytest.approx(reference.roc_auc_score(labels, values), abs=1e-9)
    assert roc.area == pytest.approx(np.trapezoid(roc.y, roc.x), abs=1e-9)  # the area under what is drawn
    precision, recall, thresholds = reference.precision_recall_curve(labels, values)
    for found, expected in ((precisions.x, recall[::-1]), (precisions.y, precision[::-1])):
        np.testing.assert_allclose(found, expected, atol=1e-9)
    np.testing.assert_allclose(precisions.thresholds[1:], thresholds[::-1], atol=1e-9)
    assert precisions.area == pytest.approx(reference.average_precision_score(labels, values), abs=1e-9)
    steps = np.diff(precisions.x) @ precisions.y[1:]
    assert precisions.area == pytest.approx(steps, abs=1e-9)
    assert (roc.chance, precisions.chance) == (0.5, labels.mean())


def sensitivity_of(labels: np.ndarray, values: np.ndarray, weights: np.ndarray, grid: np.ndarray) -> np.ndarray:
    false, true, _ = reference.roc_curve(labels, values, sample_weight=weights, drop_intermediate=False)
    return np.interp(grid + 1e-9, false, true)


def precision_of(labels: np.ndarray, values: np.ndarray, weights: np.ndarray, grid: np.ndarray) -> np.ndarray:
    precision, recall, _ = reference.precision_recall_curve(labels, values, sample_weight=weights)
    precision, recall = precision[::-1][1:], recall[::-1][1:]  # less the point that scikit-learn adds
    found = recall > 0
    return np.array([precision[found][np.argmax(recall[found] >= place - 1e-9)] for place in grid])


@pytest.mark.parametrize(
    ("curve", "statistic", "slow"),
    [(roc_curve, binary_auroc, sensitivity_of), (precision_recall_curve, average_precision, precision_of)],
)
@pytest.mark.parametrize("grouped", [True, False])
def test_bands_are_percentiles_of_curves_of_resampled_patients(
    curve: Callable[..., Curve], statistic: Callable[..., float], slow: Callable[..., Any], grouped: bool
) -> None:
    labels, values, patients = slides()
    groups = patients if grouped else None
    found = curve(labels, values, groups=groups, resamples=RESAMPLES, seed=3)
    drawn = [
        slow(labels, values, weights, found.grid)
        for chunk in resampled_weights(groups, len(labels), resamples=RESAMPLES, seed=3)
        for weights in chunk
        if 0 < (weights * labels).sum() < weights.sum()
    ]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(found.low, low, atol=1e-9)
    np.testing.assert_allclose(found.high, high, atol=1e-9)
    interval = bootstrap_interval(statistic, labels, values, groups=groups, resamples=RESAMPLES, seed=3)
    assert (found.area_low, found.area_high) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_a_band_by_hand() -> None:
    # Both patients are alike: a positive above a negative. Any resample of them gives the same curve.
    curve = roc_curve([1, 0, 1, 0], [0.8, 0.2, 0.8, 0.2], groups=["a", "a", "b", "b"], resamples=50)
    np.testing.assert_array_equal(curve.low, 1.0)
    np.testing.assert_array_equal(curve.high, 1.0)
    assert (curve.area, curve.area_low, curve.area_high) == (1, 1, 1)


@pytest.mark.parametrize("curve", [roc_curve, precision_recall_curve])
def test_what_is_not_defined_is_nan(curve: Callable[..., Curve]) -> None:
    for labels, values in (([], []), ([1, 1], [0.5, 0.6]), ([0, 0], [0.5, 0.6]), ([0, 1], [0.5, math.nan])):
        assert undefined(curve(labels, values, resamples=20))
    # One patient; a class of one patient; and four, of whom an eighth of the resamples lacks a class: it is left out.
    for groups, known in (("aaaa", False), ("abcc", False), ("aabc", False), ("abcd", True)):
        few = curve([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], groups=list(groups), resamples=400)
        assert few.area == 1
        assert (~np.isnan([few.area_low, few.area_high, *few.low, *few.high]) == known).all()
    assert np.isnan(curve([0, 1], [0.2, 0.8], resamples=0).low).all()


def test_ten_thousand_patients_have_a_band() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 10_000)
    curve = roc_curve(labels, generator.normal(labels), resamples=60)
    assert curve.area_low < curve.area < curve.area_high
    assert (curve.low <= curve.high).all()


@pytest.mark.parametrize("group", ["sequence", "patient", "frame"])
def test_areas_of_detectors_are_the_figures_of_an_evaluation(group: Any) -> None:
    frames, detections = cohort()
    figures = evaluate_detections(frames, detections, threshold=0.5, group=group, resamples=RESAMPLES, seed=2)
    options = {"group": group, "resamples": RESAMPLES, "seed": 2}
    for name, curve in (
        ("froc_mean", froc_with_band(frames, detections, **options)),
        ("ap50", detection_precision_recall(frames, detections, **options)),
    ):
        own = figures["student_0"]
        assert curve.area == own[name]
        assert [curve.area_low, curve.area_high] == own[f"{name}_ci95"]
        assert math.isnan(curve.chance)
    froc = froc_with_band(frames, detections, **options)
    for rate in (0.1, 0.5, 1):
        place = int(np.argmin(np.abs(froc.grid - rate)))
        assert froc.grid[place] == pytest.approx(rate)
        assert [froc.low[place], froc.high[place]] == pytest.approx(own[f"froc_sensitivity_{rate}_ci95"], abs=1e-9)


@settings(max_examples=examples(30))
@given(cases())
def test_points_of_a_froc_curve_are_what_its_thresholds_give(case: Any) -> None:
    annotated, detected = case
    frames, detections = frame_table(annotated), detection_table(detected)
    curve = froc_with_band(frames, detections, resamples=0)
    if not any(annotated.values()):
        assert undefined(curve)
        return
    assert (curve.x[0], curve.y[0], curve.thresholds[0]) == (0, 0, math.inf)
    assert (np.diff([curve.x, curve.y]) >= 0).all()
    matches = match_detections(read_frames(frames), detections, iou_thresholds=(0.5,))
    # At the rate of a point, no threshold with so few false positives finds more than the last such point.
    best = froc_sensitivity(matches, rates=curve.x.tolist())
    last = np.searchsorted(curve.x, curve.x, side="right") - 1
    np.testing.assert_allclose(best, curve.y[last], atol=1e-9)


@settings(max_examples=examples(15))
@given(cases())
def test_precision_of_detectors_is_that_of_pycocotools(case: Any) -> None:
    annotated, detected = case[0], distinct(case[1])
    curve = detection_precision_recall(frame_table(annotated), detection_table(detected), group="frame", resamples=0)
    if not any(annotated.values()):
        assert undefined(curve)
        return
    expected = coco_precision(annotated, detected)
    at = np.searchsorted(curve.x[1:], curve.grid - 1e-12)
    found = np.concatenate([curve.y[1:], [0.0]])[at]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert curve.area == pytest.approx(expected.mean(), abs=1e-9)


def coco_precision(annotated: Any, detected: Any) -> np.ndarray:
    """Precision at 101 recalls and an IoU of 0.5, by pycocotools."""
    truth, found = COCO(), COCO()
    names = list(annotated)
    images = [{"id": place, "width": 100, "height": 100} for place in range(len(names))]
    rows = [(place, box) for place, name in enumerate(names) for box in annotated[name]]
    truth.dataset = {"images": images, "categories": [{"id": 1}], "annotations": [
        {"id": number, "image_id": place, "category_id": 1, "iscrowd": 0, "bbox": _coco(box), "area": 1}
        for number, (place, box) in enumerate(rows, 1)
    ]}  # fmt: skip
    scored = [(place, score, box) for place, name in enumerate(names) for score, box in detected.get(name, ())]
    found.dataset = {"images": images, "categories": [{"id": 1}], "annotations": [
        {"id": number, "image_id": place, "category_id": 1, "score": score, "bbox": _coco(box), "area": 1, "iscrowd": 0}
        for number, (place, score, box) in enumerate(scored, 1)
    ]}  # fmt: skip
    truth.createIndex()
    found.createIndex()
    evaluation = COCOeval(truth, found, "bbox")
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    precision: np.ndarray = evaluation.eval["precision"][0, :, 0, 0, -1]
    return precision.clip(0)


def _coco(box: Any) -> list[float]:
    return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]


def test_the_band_of_a_detector_holds_its_curve_of_all_frames() -> None:
    frames, detections = cohort(sequences=12)
    curve = detection_precision_recall(frames, detections, resamples=RESAMPLES)
    at = np.searchsorted(curve.x[1:], curve.grid - 1e-12)
    drawn = np.concatenate([curve.y[1:], [0.0]])[at]
    inside = (curve.low - 1e-9 <= drawn) & (drawn <= curve.high + 1e-9)
    assert inside.mean() > 0.9


@pytest.mark.parametrize("make", [froc_with_band, detection_precision_recall])
def test_polyps_of_one_sequence_have_no_band(make: Callable[..., Curve]) -> None:
    frames, detections = cohort(sequences=4)
    alone = frames["sequence_id"] == "s0"
    frames["boxes"] = [own if kept else [] for own, kept in zip(frames["boxes"], alone, strict=True)]
    frames["polyp_ids"] = None
    found = make(frames, detections, resamples=30)
    assert found.area > 0
    assert np.isnan([found.area_low, found.area_high, *found.low, *found.high]).all()
    by_frame = make(frames, detections, group="frame", resamples=30)
    assert np.isfinite([by_frame.area_low, by_frame.area_high]).all()


@pytest.mark.parametrize("make", [froc_with_band, detection_precision_recall])
def test_a_detector_that_diverged_has_no_curve(make: Callable[..., Curve]) -> None:
    frames, detections = cohort(sequences=4)
    assert undefined(make(frames, detections.assign(score=math.nan)))
    nothing = make(frames, detections.iloc[:0], resamples=10)
    assert nothing.area == 0
    assert nothing.y.max() == 0


@settings(max_examples=examples(100))
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=0, max_size=12))
def test_the_corners_of_a_curve_are_the_same_curve(steps: list[tuple[int, int]]) -> None:
    """Along axis-parallel steps, places between corners are places on the curve, and each is there once."""
    whole = np.cumsum(np.array([(x, 0) if x else (0, y) for x, y in steps], dtype=float).reshape(-1, 2), axis=0)
    curve = Curve(whole[:, 0], whole[:, 1], -np.arange(len(whole), dtype=float), 0.5, 0.4, 0.6)
    thin = curve.corners()
    own = np.stack([thin.x, thin.y], axis=1)
    assert (thin.area, thin.area_low, thin.area_high) == (0.5, 0.4, 0.6)
    for point in whole:
        between = [
            (np.minimum(a, b) <= point).all() and (point <= np.maximum(a, b)).all() and (a == b).any()
            for a, b in pairwise(own)
        ]
        assert any(between) or (own == point).all(axis=1).any()
    assert len(np.unique(own, axis=0)) == len(own)
    if len(whole):
        assert (own[[0, -1]] == whole[[0, -1]]).all()
    places = (-thin.thresholds).astype(int)
    assert (whole[places] == own).all()
