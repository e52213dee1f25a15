import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdml_med.colonoscopy.boxes import FrameBoxes, FrameError, boxes_of_mask, check_boxes, keep_classes


def test_mask_over_columns_3_to_5_gives_edges_3_and_6():
    mask = np.zeros((10, 12), bool)
    mask[2:4, 3:6] = True
    assert boxes_of_mask(mask) == ((3.0, 2.0, 6.0, 4.0),)


def test_each_component_has_its_box_and_corners_join():
    mask = np.zeros((20, 20), bool)
    mask[0, 0] = mask[1, 1] = True
    mask[10:15, 4:20] = True
    assert boxes_of_mask(mask) == ((0.0, 0.0, 2.0, 2.0), (4.0, 10.0, 20.0, 15.0))
    assert boxes_of_mask(np.zeros((5, 5), bool)) == ()


@given(st.integers(0, 2**32 - 1))
def test_boxes_of_a_mask_hold_all_of_it_and_touch_it_on_every_side(seed):
    mask = np.random.default_rng(seed).random((12, 15)) < 0.15
    covered = np.zeros_like(mask)
    for xmin, ymin, xmax, ymax in (tuple(map(int, box)) for box in boxes_of_mask(mask)):
        covered[ymin:ymax, xmin:xmax] = True
        part = mask[ymin:ymax, xmin:xmax]
        assert part[0].any()
        assert part[-1].any()
        assert part[:, 0].any()
        assert part[:, -1].any()
    assert not (mask & ~covered).any()


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((1, 2, math.nan, 5), "not a number"),
        ((1, 2, math.inf, 5), "not a number"),
        ((5, 2, 5, 9), "inverted"),
        ((5, 9, 8, 2), "inverted"),
        ((-3, 2, 8, 9), "reaches out of the image of 100×80"),
        ((90, 2, 102, 9), "reaches out"),
        ((-0.9, 2, -0.1, 9), "lies outside"),
    ],
)
def test_wrong_boxes_are_refused_with_their_numbers(box, reason):
    with pytest.raises(FrameError, match=reason):
        check_boxes(FrameBoxes("a", (box,)), 100, 80)


def test_rounding_over_the_edge_is_clipped():
    assert check_boxes(FrameBoxes("a", ((-1, 0.5, 101, 80.4),)), 100, 80) == [(0, 0.5, 100, 80)]


def test_relative_boxes_become_pixels_and_another_size_is_refused():
    known = FrameBoxes("a", ((0.25, 0.5, 0.75, 1.0),), relative=True)
    assert check_boxes(known, 200, 80) == [(50, 40, 150, 80)]
    with pytest.raises(FrameError, match="640×480 pixels, but it has 200×80"):
        check_boxes(replace(known, width=640, height=480), 200, 80)
    with pytest.raises(FrameError, match="row 3 is bad"):
        check_boxes(replace(known, problem="row 3 is bad"), 200, 80)


def test_only_named_classes_stay_and_their_polyps_with_them():
    known = FrameBoxes("a", ((0, 0, 1, 1), (1, 1, 2, 2)), classes=("Polyp", "tool"), polyps=("p", "q"))
    assert keep_classes(known, ()) == known
    kept = keep_classes(known, ("polyp",))
    assert (kept.boxes, kept.classes, kept.polyps) == (((0, 0, 1, 1),), ("Polyp",), ("p",))
