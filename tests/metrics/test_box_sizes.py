import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdml_med.metrics.box_sizes import SIZE_NAMES, sensitivity_by_size
from kdml_med.metrics.detection_evaluation import evaluate_detections
from tests.examples import examples
from tests.metrics.detection_tables import cohort, detection_table, frame_table


def sized(boxes, **columns):
    """Frames of 100 × 100 px, so that a side is a tenth of the root of the share of the area."""
    return frame_table(boxes, width=[100] * len(boxes), height=[100] * len(boxes), **columns)


def square(side, corner=0):
    return [corner, corner, corner + side, corner + side]


def test_sizes_by_hand():
    frames = sized({"a": [square(19)], "b": [square(20)], "c": [square(39), square(40, 50)], "d": []})
    found = detection_table({"a": [(0.9, square(19))], "b": [(0.4, square(20))], "c": [(0.8, square(40, 50))], "d": []})
    sizes = sensitivity_by_size(frames, found, threshold=0.5, resamples=0)
    assert list(sizes) == list(SIZE_NAMES)
    # 20 px is 4 % of the area, where medium begins; 40 px is 16 %, where large does.
    assert [(one.boxes, one.found, one.sensitivity) for one in sizes.values()] == [
        (1, 1, 1.0),
        (2, 0, 0.0),
        (1, 1, 1.0),
    ]
    at_less = sensitivity_by_size(frames, found, threshold=0.4, resamples=0)
    assert at_less["medium"].found == 1


def test_a_size_that_nobody_has_is_not_defined():
    sizes = sensitivity_by_size(sized({"a": [square(10)], "b": []}), detection_table({}), threshold=0.5)
    assert math.isnan(sizes["large"].sensitivity)
    assert math.isnan(sizes["large"].low)
    assert (sizes["small"].sensitivity, sizes["small"].boxes) == (0.0, 1)


def test_scores_that_are_no_numbers_give_no_figures():
    found = detection_table({"a": [(math.nan, square(10)), (0.9, square(10))]})
    sizes = sensitivity_by_size(sized({"a": [square(10)], "b": [square(50)]}), found, threshold=0.5)
    assert all(math.isnan(one.sensitivity) and math.isnan(one.high) and one.found == 0 for one in sizes.values())
    assert [one.boxes for one in sizes.values()] == [1, 0, 1]


def test_boxes_of_one_sequence_have_no_interval():
    small, large = square(10), square(50)
    frames = sized({"a": [small], "b": [small], "c": [large], "d": [large]}, sequence_id=["s", "s", "t", "u"])
    found = detection_table({"a": [(0.9, small)], "c": [(0.9, large)]})
    sizes = sensitivity_by_size(frames, found, threshold=0.5, resamples=50)
    assert (sizes["small"].sensitivity, sizes["large"].sensitivity) == (0.5, 0.5)
    assert math.isnan(sizes["small"].low)
    assert math.isnan(sizes["small"].high)
    assert (sizes["large"].low, sizes["large"].high) == (0, 1)


@pytest.mark.parametrize("group", ["sequence", "patient", "frame"])
def test_boxes_of_one_size_have_the_sensitivity_and_interval_of_all_boxes(group):
    frames, found = cohort()
    frames = frames.assign(width=10_000, height=10_000)
    small = sensitivity_by_size(frames, found, threshold=0.5, group=group, resamples=200)["small"]
    whole = evaluate_detections(frames, found, threshold=0.5, group=group, resamples=200)["student_0"]
    assert small.sensitivity == whole["recall"]
    assert [small.low, small.high] == whole["recall_ci95"]


@settings(max_examples=examples(10))
@given(seed=st.integers(0, 1000), threshold=st.floats(0, 1))
def test_sizes_divide_the_boxes(seed, threshold):
    frames, found = cohort(sequences=4, frames=4, seed=seed)
    sides = np.random.default_rng(seed).integers(100, 400, (len(frames), 2))
    frames = frames.assign(width=sides[:, 0], height=sides[:, 1])
    shuffled = frames.sample(frac=1, random_state=seed)
    sizes = sensitivity_by_size(shuffled, found, threshold=threshold, resamples=0)
    whole = evaluate_detections(frames, found, threshold=threshold, resamples=0)["student_0"]
    assert sum(one.boxes for one in sizes.values()) == whole["n_boxes"]
    assert sum(one.found for one in sizes.values()) == round((whole["recall"] or 0) * whole["n_boxes"])


def test_unlabelled_frames_are_left_out():
    frames = sized({"a": [square(10)], "b": [square(50)]}, label=["polyp", None])
    sizes = sensitivity_by_size(frames, detection_table({"b": [(0.9, square(50))]}), threshold=0.5)
    assert [one.boxes for one in sizes.values()] == [1, 0, 0]
