"""Sensitivity by size of the boxes, by hand and against the figures of an evaluation."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from kdml_med.metrics import evaluate_detections
from kdml_med.metrics.box_sizes import SIZE_NAMES, sensitivity_by_size
from tests.metrics.detection_tables import cohort, detection_table, frame_table


def sized(frames: pd.DataFrame, width: float = 100, height: float = 100) -> pd.DataFrame:
    return frames.assign(width=width, height=height)


# Of a frame of 100 x 100: 3.99 %, 4 %, 15.99 % and 16 % of its area.
SMALL, LEAST_MEDIUM, MOST_MEDIUM, LARGE = (0, 0, 19, 21), (0, 0, 20, 20), (0, 0, 39, 41), (0, 0, 40, 40)
BOXES = {"a": [SMALL], "b": [LEAST_MEDIUM], "c": [MOST_MEDIUM], "d": [LARGE], "e": []}


def test_sizes_by_hand() -> None:
    detected = {"a": [(0.9, SMALL)], "b": [(0.4, LEAST_MEDIUM)], "c": [(0.5, MOST_MEDIUM)], "e": [(0.9, LARGE)]}
    found = sensitivity_by_size(sized(frame_table(BOXES)), detection_table(detected), threshold=0.5, resamples=0)
    assert tuple(found) == SIZE_NAMES
    assert [(one.found, one.boxes) for one in found.values()] == [(1, 1), (1, 2), (0, 1)]
    assert [one.sensitivity for one in found.values()] == [1, 0.5, 0]


def test_sizes_do_not_depend_on_the_resolution_of_the_frames() -> None:
    frames, detections = cohort()
    corners = ["xmin", "ymin", "xmax", "ymax"]
    larger = frames.assign(boxes=[(3 * np.array(own).reshape(-1, 4)).tolist() for own in frames["boxes"]])
    once = sensitivity_by_size(sized(frames, 280, 280), detections, threshold=0.5, resamples=50)
    tripled = sensitivity_by_size(
        sized(larger, 840, 840), detections.assign(**{name: 3 * detections[name] for name in corners}),
        threshold=0.5, resamples=50,
    )  # fmt: skip
    assert once == tripled
    assert all(one.boxes for one in list(once.values())[:2])


@pytest.mark.parametrize("group", ["sequence", "frame"])
def test_sizes_add_up_to_the_recall_of_an_evaluation(group: str) -> None:
    frames, detections = cohort(sequences=12)
    by_size = sensitivity_by_size(sized(frames, 280, 280), detections, threshold=0.5, group=group, resamples=0)
    figures = evaluate_detections(frames, detections, threshold=0.5, group=group, resamples=200)["student_0"]
    boxes = sum(one.boxes for one in by_size.values())
    assert boxes == figures["n_boxes"]
    assert sum(one.found for one in by_size.values()) / boxes == pytest.approx(figures["recall"], abs=1e-9)
    # Boxes that are all of one size have the very interval of the recall.
    alone = sensitivity_by_size(sized(frames, 9e9, 9e9), detections, threshold=0.5, group=group, resamples=200)
    assert [alone["small"].low, alone["small"].high] == pytest.approx(figures["recall_ci95"], abs=1e-9)
    assert math.isnan(alone["large"].sensitivity)
    assert math.isnan(alone["large"].low)


def test_a_detector_that_diverged_has_no_sensitivity() -> None:
    detections = detection_table({"a": [(0.9, SMALL)]}).assign(score=math.nan)
    found = sensitivity_by_size(sized(frame_table(BOXES)), detections, threshold=0.5, resamples=20)
    assert all(math.isnan(one.sensitivity) and math.isnan(one.low) and one.found == 0 for one in found.values())
