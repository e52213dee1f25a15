import contextlib
import io
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.metrics import precision_recall_curve

from kdml_med.metrics.box_matching import match_detections, read_frames
from kdml_med.metrics.detection import (
    average_precision,
    choose_threshold,
    choose_thresholds,
    count_at,
    precision_recall_f1,
    score_curve,
)
from tests.examples import examples
from tests.metrics.detection_tables import cases, cohort, detection_table, distinct, frame_table


def coco_precisions(annotated, detected) -> np.ndarray:
    """AP at each IoU threshold by pycocotools; NaN where it says -1."""
    names = sorted(annotated)
    annotations = [
        {"image_id": image, "bbox": [x, y, right - x, bottom - y], "area": (right - x) * (bottom - y)}
        for image, name in enumerate(names, 1)
        for x, y, right, bottom in annotated[name]
    ]
    results = [
        {"image_id": image, "category_id": 1, "score": score, "bbox": [x, y, right - x, bottom - y]}
        for image, name in enumerate(names, 1)
        for score, (x, y, right, bottom) in detected.get(name, [])
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": image} for image in range(1, len(names) + 1)],
            "categories": [{"id": 1}],
            "annotations": [
                entry | {"id": index, "category_id": 1, "iscrowd": 0} for index, entry in enumerate(annotations, 1)
            ],
            "info": {},
        }
        truth.createIndex()
        found = COCO()
        found.dataset = truth.dataset | {
            "annotations": [
                entry | {"id": index, "area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0}
                for index, entry in enumerate(results, 1)
            ]
        }
        found.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, 0, 0, 2]  # all areas, 100 detections
    return np.where((precision < 0).any(axis=1), np.nan, precision.mean(axis=1))


def precisions(annotated, detected) -> np.ndarray:
    return average_precision(match_detections(read_frames(frame_table(annotated)), detection_table(detected)))


@settings(max_examples=examples(60), deadline=None)
@given(cases())
def test_average_precision_is_that_of_pycocotools(case) -> None:
    np.testing.assert_allclose(precisions(*case), coco_precisions(*case), rtol=0, atol=1e-9)


def crowded_case(seed: int):
    """Frames with up to 12 boxes and 150 detections, some without either; scores with two decimals, so with ties."""
    generator = np.random.default_rng(seed)
    annotated, detected = {}, {}
    for index in range(12):
        corner = generator.integers(0, 300, (int(generator.integers(0, 13)) * (index % 4 > 0), 2))
        own = np.hstack([corner, corner + generator.integers(20, 90, corner.shape)]).tolist()
        near = [np.add(box, generator.integers(-9, 9, 4)).tolist() for box in own for _ in range(4)]
        corner = generator.integers(0, 300, (100 * (index % 5 > 0), 2))
        far = np.hstack([corner, corner + generator.integers(20, 90, corner.shape)]).tolist()
        annotated[f"f{index:02}"] = own
        detected[f"f{index:02}"] = [(round(float(generator.uniform()), 2), box) for box in near + far]
    return annotated, detected


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_that_of_pycocotools_with_many_boxes_and_ties(seed: int) -> None:
    annotated, detected = crowded_case(seed)
    assert max(len(own) for own in detected.values()) > 100
    found = precisions(annotated, detected)
    np.testing.assert_allclose(found, coco_precisions(annotated, detected), rtol=0, atol=1e-9)
    assert (found > 0.05).any()


def test_average_precision_by_hand() -> None:
    boxes = {"a": [(0, 0, 10, 10), (20, 0, 30, 10)], "b": []}
    hit, other, miss = (0, 0, 10, 10), (20, 0, 30, 10), (50, 50, 60, 60)
    assert precisions(boxes, {"a": [(0.9, hit), (0.8, other)]}).tolist() == [1] * 10
    # Precision 1 up to recall 0.5 (51 levels), then 2/3 (50 levels).
    expected = (51 + 50 * 2 / 3) / 101
    assert precisions(boxes, {"a": [(0.9, hit), (0.7, other)], "b": [(0.8, miss)]}) == pytest.approx([expected] * 10)
    # The same box with an IoU of 0.8 counts at the seven thresholds up to 0.8.
    near = precisions(boxes, {"a": [(0.9, hit), (0.8, (20, 0, 30, 8))]})
    assert near == pytest.approx([1] * 7 + [51 / 101] * 3)


def test_defined_cases_of_average_precision() -> None:
    box = (0, 0, 10, 10)
    assert np.isnan(precisions({"a": [], "b": []}, {"a": [(0.5, box)]})).all()
    assert np.isnan(precisions({"a": []}, {})).all()
    assert precisions({"a": [box]}, {}).tolist() == [0] * 10
    assert precisions({"a": [box], "b": []}, {"b": [(0.5, box)]}).tolist() == [0] * 10
    # A false positive on a negative frame costs what one beside a polyp costs.
    with_negative = precisions({"a": [box], "b": []}, {"a": [(0.5, box)], "b": [(0.9, box)]})
    assert with_negative == pytest.approx([0.5] * 10)


@settings(max_examples=examples(60), deadline=None)
@given(cases(), st.data())
def test_weights_are_copies_of_frames(case, data) -> None:
    annotated, detected = case[0], distinct(case[1])
    matches = match_detections(read_frames(frame_table(annotated)), detection_table(detected))
    weights = data.draw(st.lists(st.integers(0, 3), min_size=len(annotated), max_size=len(annotated)))
    copies = [
        (name, f"{name}-{copy}")
        for name, count in zip(sorted(annotated), weights, strict=True)
        for copy in range(count)
    ]
    found = average_precision(matches, np.array([weights, np.ones(len(weights), dtype=int)]))
    np.testing.assert_allclose(found[1], average_precision(matches), rtol=0, atol=1e-12)
    if not copies:
        assert np.isnan(found[0]).all()
        return
    expected = precisions(
        {copy: annotated[name] for name, copy in copies}, {copy: detected[name] for name, copy in copies}
    )
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-12)


@settings(max_examples=examples(30), deadline=None)
@given(cases(levels=4))
def test_precision_and_recall_are_those_of_scikit_learn(case) -> None:
    annotated, detected = case
    matches = match_detections(read_frames(frame_table(annotated)), detection_table(detected), iou_thresholds=(0.5,))
    curve, hits = score_curve(matches), matches.row(0.5) >= 0
    if not hits.any():
        assert not curve.found.any()
        return
    precision, recall, scores = precision_recall_curve(hits, matches.score)
    np.testing.assert_array_equal(curve.score, scores[::-1])
    np.testing.assert_allclose(curve.precision, precision[:-1][::-1])
    # scikit-learn knows only the boxes that were found at all.
    np.testing.assert_allclose(curve.recall, recall[:-1][::-1] * hits.sum() / curve.boxes)
    for score, *expected in zip(curve.score, curve.precision, curve.recall, curve.f1, strict=True):
        at = precision_recall_f1(count_at(matches, score))
        assert [float(at[name][0]) for name in ("precision", "recall", "f1")] == pytest.approx(expected)


def test_counts_at_a_threshold_by_hand() -> None:
    hit, miss = (0, 0, 10, 10), (50, 50, 60, 60)
    truth = read_frames(frame_table({"a": [hit, (20, 0, 30, 10)], "b": [], "c": [hit]}))
    detections = detection_table({"a": [(0.9, hit), (0.4, miss)], "b": [(0.5, miss)], "c": [(0.3, hit)]})
    counts = count_at(match_detections(truth, detections), 0.4)
    assert (counts.boxes.tolist(), counts.detected.tolist(), counts.found.tolist()) == ([2, 0, 1], [2, 1, 0], [1, 0, 0])
    assert counts.false_positives.tolist() == [1, 1, 0]
    figures = {name: float(value[0]) for name, value in precision_recall_f1(counts).items()}
    assert figures == pytest.approx({"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3})


def test_defined_cases_at_a_threshold() -> None:
    box = (0, 0, 10, 10)

    def figures(annotated, detected):
        counts = count_at(match_detections(read_frames(frame_table(annotated)), detection_table(detected)), 0.5)
        return [float(value[0]) for value in precision_recall_f1(counts).values()]

    np.testing.assert_equal(figures({"a": [box]}, {}), [math.nan, 0, 0])
    np.testing.assert_equal(figures({"a": []}, {}), [math.nan] * 3)
    np.testing.assert_equal(figures({"a": []}, {"a": [(0.9, box)]}), [0, math.nan, math.nan])


@settings(max_examples=examples(30), deadline=None)
@given(cases())
def test_the_chosen_threshold_has_the_best_f1_and_is_the_highest_such(case) -> None:
    annotated, detected = case
    frames, detections = frame_table(annotated), detection_table(detected)
    matches = match_detections(read_frames(frames), detections)
    scores = sorted({score for own in detected.values() for score, _ in own})
    values = {score: float(precision_recall_f1(count_at(matches, score))["f1"][0]) for score in scores}
    best = max(values.values(), default=math.nan)
    chosen = choose_threshold(frames, detections, default=-1)
    if math.isnan(best) or best == 0:
        assert chosen == -1
    else:
        assert chosen == max(score for score, value in values.items() if value == best)


def test_a_threshold_is_chosen_for_every_network() -> None:
    frames, detections = cohort(networks=["student_0", "teacher"])
    chosen = choose_thresholds(frames, detections, networks=["ensemble"])
    assert list(chosen) == ["teacher", "student_0", "ensemble"]
    assert chosen["ensemble"] == 0.5
    only = detections[detections["network"] == "teacher"]
    assert chosen["teacher"] == choose_threshold(frames, only)
    assert choose_threshold(frames, only.assign(score=np.nan)) == 0.5
    assert choose_threshold(frames, only.iloc[:0]) == 0.5
    with pytest.raises(ValueError, match="one network"):
        choose_threshold(frames, detections)
    with pytest.raises(ValueError, match="'network'"):
        choose_thresholds(frames, detections.drop(columns="network"))
    with pytest.raises(ValueError, match="no network"):
        choose_thresholds(frames, pd.concat([only, only.assign(network=None)]))
