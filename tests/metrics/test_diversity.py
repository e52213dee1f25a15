import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, matthews_corrcoef

from kdml_med.metrics import (
    agreement,
    detection_calibration,
    disagreement,
    error_correlation,
    found_by_network,
    found_disagreement,
    found_error_correlation,
)
from tests.metrics.detection_tables import cohort, detection_table, frame_table


def test_disagreement_by_hand() -> None:
    found = {"a": [0.9, 0.9, 0.1, 0.1], "b": [0.8, 0.2, 0.2, 0.2], "c": [0.4, 0.5, 0.6, 0.3]}
    # a and b differ in 1 of 4 samples, a and c in 2, b and c in 3; a probability of 0.5 decides for the class.
    assert disagreement(found) == pytest.approx((1 + 2 + 3) / 12)
    assert disagreement({name: found[name] for name in "ab"}, threshold=0.85) == 0.5
    assert agreement(found["a"], found["b"]) == 0.75


def test_error_correlation_by_hand() -> None:
    labels = [0, 0, 1, 1]
    # Errors 0.1, 0.3, −0.1, −0.3 and 0.2, 0.6, −0.2, −0.6: the same but for their size.
    assert error_correlation(labels, {"a": [0.1, 0.3, 0.9, 0.7], "b": [0.2, 0.6, 0.8, 0.4]}) == pytest.approx(1)
    # Errors 0.1, 0.3, 0, 0 and 0.3, 0.1, 0, 0 around 0.1: products 0 + 0 + 0.01 + 0.01 by squares 0.06.
    assert error_correlation(labels, {"a": [0.1, 0.3, 1, 1], "b": [0.3, 0.1, 1, 1]}) == pytest.approx(1 / 3)


@given(st.integers(0, 1000), st.integers(2, 4))
def test_error_correlation_is_the_mean_of_numpys(seed: int, networks: int) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, 12)
    found = {str(index): generator.uniform(size=12) for index in range(networks)}
    matrix = np.corrcoef([values - labels for values in found.values()])
    assert error_correlation(labels, found) == pytest.approx(matrix[np.triu_indices(networks, 1)].mean())


def test_what_is_not_defined_is_nan() -> None:
    values = [0.2, 0.7, 0.4]
    for found in ({}, {"a": values}, {"a": [], "b": []}, {"a": values, "b": [0.1, math.nan, 0.3]}):
        assert math.isnan(disagreement(found))
        labels = [0, 1, 1][: len(next(iter(found.values()), []))]
        assert math.isnan(error_correlation(labels, found))
    # The first network is wrong by 0.1 everywhere.
    assert math.isnan(error_correlation([0, 0, 0], {"a": [0.1, 0.1, 0.1], "b": values}))
    assert math.isnan(agreement([], []))
    with pytest.raises(ValueError, match="one length"):
        disagreement({"a": values, "b": [0.5]})


def test_found_boxes_are_compared_at_the_thresholds_of_their_networks() -> None:
    corners = [(0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10), (60, 0, 70, 10)]
    frames = frame_table({"f": corners[:3], "g": corners[3:], "h": []})
    first = {"f": [(0.9, corners[0]), (0.8, corners[1]), (0.2, corners[2])]}
    # The second box is met with an IoU of 0.4 only.
    second = {"f": [(0.3, corners[0]), (0.3, (20, 0, 30, 4))], "g": [(0.3, corners[3])], "h": [(0.9, corners[0])]}
    table = pd.concat([detection_table(first, "student_0"), detection_table(second, "student_1")])
    found = found_by_network(frames, table, {"student_0": 0.5, "student_1": 0.3, "teacher": 0.5})
    assert {name: values.tolist() for name, values in found.items()} == {
        "student_0": [1, 1, 0, 0],
        "student_1": [1, 0, 0, 1],
        "teacher": [0, 0, 0, 0],
    }
    students = {name: found[name] for name in ("student_0", "student_1")}
    assert found_disagreement(students) == 0.5
    assert found_error_correlation(students) == pytest.approx(0)
    assert agreement(found["student_0"], found["teacher"]) == 0.5
    assert math.isnan(found_error_correlation(found))  # the teacher misses all boxes


def test_found_error_correlation_is_phi() -> None:
    frames, detections = cohort(networks=["student_0", "student_1"])
    found = found_by_network(frames, detections, {"student_0": 0.6, "student_1": 0.5})
    missed = [values == 0 for values in found.values()]
    assert found_error_correlation(found) == pytest.approx(matthews_corrcoef(*missed))
    assert found_disagreement(found) == np.mean(missed[0] != missed[1]) > 0


def test_a_detector_that_diverged_has_no_diversity() -> None:
    frames, detections = cohort(networks=["student_0", "student_1"])
    detections.loc[detections["network"] == "student_1", "score"] = math.nan
    found = found_by_network(frames, detections, {"student_0": 0.5, "student_1": 0.5})
    assert math.isnan(found_disagreement(found))
    assert math.isnan(found_error_correlation(found))
    own = detections[detections["network"] == "student_1"]
    figures = detection_calibration(frames, own)
    assert figures["n"] == len(own)
    assert math.isnan(figures["ece"])


def test_calibration_of_detections_by_hand() -> None:
    box, far = (0, 0, 10, 10), (50, 50, 60, 60)
    frames = frame_table({"f": [box], "g": []})
    # A second detection of the box is wrong, whatever its IoU.
    table = detection_table({"f": [(0.9, box), (0.6, box), (0.02, far)], "g": [(0.3, far)]})
    found = detection_calibration(frames, table)
    errors = [0.1, 0.6, 0.02, 0.3]  # each in a bin of its own
    assert found["n"] == 4
    assert found["brier"] == pytest.approx(np.mean(np.square(errors)))
    assert found["brier"] == pytest.approx(brier_score_loss([1, 0, 0, 0], [0.9, 0.6, 0.02, 0.3]))
    assert found["ece"] == pytest.approx(np.mean(errors))
    high = detection_calibration(frames, table, min_score=0.3)
    assert (high["n"], high["ece"]) == (3, pytest.approx(1 / 3))
    assert math.isnan(detection_calibration(frames, table.iloc[:0])["brier"])
