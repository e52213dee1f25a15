import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdml_med.colonoscopy.windows import Window, field_share, mucosa_windows, polyp_side, polyp_windows
from tests.examples import examples

ALL = np.ones((60, 80), bool)


def generator(seed=0):
    return np.random.default_rng(seed)


def around(box, field=ALL, count=1, margin=0.25, smallest=8, seed=0):
    return polyp_windows(box, field, count=count, margin=margin, smallest=smallest, generator=generator(seed))


def beside(boxes, field=ALL, like=((20, 1.0),), count=3, smallest=8, seed=0):
    return mucosa_windows(boxes, field, like=like, count=count, smallest=smallest, generator=generator(seed))


def holds(window, box):
    return (
        window.x <= box[0]
        and window.y <= box[1]
        and box[2] <= window.x + window.side
        and box[3] <= window.y + window.side
    )


def touches(window, box):
    return (
        window.x < box[2] and box[0] < window.x + window.side and window.y < box[3] and box[1] < window.y + window.side
    )


@st.composite
def frames(draw):
    """A box and a field, which is a rectangle of the frame with any corner cut off."""
    height, width = draw(st.integers(20, 60)), draw(st.integers(20, 60))
    xmin, ymin = draw(st.floats(0, width - 2)), draw(st.floats(0, height - 2))
    box = (xmin, ymin, draw(st.floats(xmin + 1, width)), draw(st.floats(ymin + 1, height)))
    y, x = np.mgrid[:height, :width]
    field = x + y >= draw(st.integers(0, 30))
    return box, field


@settings(max_examples=examples(60))
@given(frames(), st.floats(0, 1), st.integers(4, 20), st.integers(0, 1000))
def test_windows_of_a_polyp_hold_it_whole_or_lie_in_it_and_stay_in_the_frame(frame, margin, smallest, seed):
    box, field = frame
    for window in around(box, field, count=3, margin=margin, smallest=smallest, seed=seed):
        height, width = field.shape
        assert 0 <= window.x <= width - window.side
        assert 0 <= window.y <= height - window.side
        assert window.side >= min(smallest, height, width)
        for low, high, start in ((box[0], box[2], window.x), (box[1], box[3], window.y)):
            inside = start - 1 < low and high < start + window.side + 1
            within = low - 1 < start and start + window.side < high + 1
            assert inside or within


def test_the_first_window_of_a_polyp_is_in_its_middle_with_the_margin_on_each_side():
    assert around((20, 30, 40, 40)) == [Window(15, 20, 30)]
    assert polyp_side((20, 30, 40, 40), 0.25, 8) == 30
    assert polyp_side((20, 30, 22, 31), 0.25, 8) == 8


def test_further_windows_of_a_polyp_differ_and_hold_it_too():
    box = (30, 20, 44, 36)
    windows = around(box, count=12)
    assert len(set(windows)) > 6
    assert all(holds(window, box) for window in windows)
    assert {window.side for window in windows} <= set(range(24, 32))


def test_a_polyp_at_the_edge_of_the_field_is_shifted_into_it_as_far_as_it_stays_whole():
    field = ALL.copy()
    field[:, :20] = False
    (window,) = around((22, 20, 42, 40), field)
    assert (window, field_share(window, field)) == (Window(20, 15, 30), 1.0)
    (window,) = around((16, 20, 36, 40), field)  # four columns of the box itself are outside
    assert window.x == 16
    assert field_share(window, field) == pytest.approx(26 / 30)


@settings(max_examples=examples(60))
@given(frames(), st.integers(4, 30), st.sampled_from([1.0, 0.9, 0.7]), st.integers(0, 1000))
def test_windows_on_mucosa_touch_no_box_and_have_the_share_of_the_field_that_was_asked_for(frame, side, share, seed):
    box, field = frame
    windows = beside([box], field, like=[(side, share)], smallest=4, seed=seed)
    for window in windows:
        assert not touches(window, box)
        assert 4 <= window.side <= side
        assert window.side <= min(field.shape)
        found = field_share(window, field)
        assert abs(found - share) <= 0.0201 or found >= 0.9799
    assert windows == beside([box], field, like=[(side, share)], smallest=4, seed=seed)


def test_windows_on_mucosa_share_little_with_each_other():
    windows = beside([], count=20)
    assert len(windows) >= 9
    taken = np.zeros_like(ALL)
    for window in windows:
        assert taken[window.part].mean() <= 0.25
        taken[window.part] = True


def test_a_window_shrinks_until_it_has_a_place_and_is_left_out_where_it_has_none():
    # 16 columns are free on the right: 20, 16 (a fifth less).
    assert beside([(0, 0, 64, 60)], count=1) == [Window(64, beside([(0, 0, 64, 60)], count=1)[0].y, 16)]
    assert beside([(0, 0, 75, 60)], count=1) == []


def test_dark_corners_are_as_frequent_beside_polyps_as_around_them():
    y, x = np.mgrid[:60, :80]
    field = x + y >= 30
    (window,) = beside([], field, like=[(20, 0.6)], count=1)
    assert abs(field_share(window, field) - 0.6) <= 0.02
