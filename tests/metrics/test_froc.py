import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdml_med.metrics.box_matching import match_detections, read_frames
from kdml_med.metrics.froc import FALSE_POSITIVE_RATES, froc_curve, froc_sensitivity
from tests.examples import examples
from tests.metrics.detection_tables import cases, detection_table, frame_table
from tests.reference import froc_points

HITS = st.sampled_from(["iou", "centre"])


def sensitivities(annotated, detected, hit="iou", **options):
    matches = match_detections(
        read_frames(frame_table(annotated)), detection_table(detected), iou_thresholds=(0.5,), hit=hit
    )
    return froc_sensitivity(matches, iou_threshold=matches.thresholds[0], **options)


@settings(max_examples=examples(40), deadline=None)
@given(cases(), HITS)
def test_the_curve_is_that_of_matching_anew_at_every_threshold(case, hit) -> None:
    annotated, detected = case
    curve = froc_curve(frame_table(annotated), detection_table(detected), hit=hit)
    if curve.boxes == 0:
        assert np.isnan(curve.recall).all()
        return
    points = froc_points(list(annotated.values()), list(detected.values()), hit)
    # A threshold that adds only second hits of found polyps adds no point to the curve of the centre rule.
    expected = [point for point in points if hit == "iou" or point[0] in curve.score]
    found = np.stack([curve.score, curve.false_positives_per_frame, curve.recall], axis=1)
    np.testing.assert_allclose(found, np.reshape(expected, (-1, 3)))
    assert {point[1:] for point in points} <= {(0.0, 0.0), *(point[1:] for point in expected)}


@settings(max_examples=examples(40), deadline=None)
@given(cases(), HITS)
def test_sensitivity_is_the_best_of_all_thresholds_allowed(case, hit) -> None:
    annotated, detected = case
    if not any(annotated.values()):
        assert np.isnan(sensitivities(annotated, detected, hit)).all()
        return
    points = froc_points(list(annotated.values()), list(detected.values()), hit)
    for rate, found in zip(FALSE_POSITIVE_RATES, sensitivities(annotated, detected, hit), strict=True):
        assert found == pytest.approx(max([point[2] for point in points if point[1] <= rate], default=0))


def test_sensitivity_by_hand() -> None:
    hit, miss = (0, 0, 10, 10), (50, 50, 60, 60)
    annotated = {"a": [hit], "b": [hit], "c": [hit], "d": []}
    detected = {
        "a": [(0.9, hit)],
        "b": [(0.7, hit), (0.8, miss)],
        "c": [(0.4, hit), (0.4, miss)],  # one threshold takes both
        "d": [(0.6, miss)],
    }
    # Found 1, 2, 3 with 0, 1 and 3 false positives in 4 frames.
    assert sensitivities(annotated, detected) == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1])
    assert sensitivities(annotated, detected, rates=[0.2, 0.74, 0.75]) == pytest.approx([1 / 3, 2 / 3, 1])
    assert sensitivities(annotated, {}).tolist() == [0] * 4


def test_a_rate_is_reached_by_exactly_so_many_false_positives() -> None:
    hit, miss = (0, 0, 10, 10), (50, 50, 60, 60)
    annotated = {f"f{index:02}": [hit] for index in range(100)}
    detected = {name: [(0.9, miss)] for name in list(annotated)[:29]} | {"f99": [(0.5, hit)]}
    assert 0.29 * 100 < 29  # in floating point
    assert sensitivities(annotated, detected, rates=[0.28, 0.29]).tolist() == [0, 0.01]


@settings(max_examples=examples(40), deadline=None)
@given(cases(), HITS, st.data())
def test_weights_are_copies_of_frames(case, hit, data) -> None:
    annotated, detected = case
    matches = match_detections(
        read_frames(frame_table(annotated)), detection_table(detected), iou_thresholds=(0.5,), hit=hit
    )
    weights = data.draw(st.lists(st.integers(0, 3), min_size=len(annotated), max_size=len(annotated)))
    pairs = [(name, f"{name}-{copy}") for name, count in zip(annotated, weights, strict=True) for copy in range(count)]
    found = froc_sensitivity(matches, np.array([weights]), iou_threshold=matches.thresholds[0])[0]
    if not any(annotated[name] for name, _ in pairs):
        assert all(map(math.isnan, found))
        return
    copies = {copy: annotated[name] for name, copy in pairs}, {copy: detected[name] for name, copy in pairs}
    np.testing.assert_allclose(found, sensitivities(*copies, hit))
