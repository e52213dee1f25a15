import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdml_med.colonoscopy.windows import Window, field_share, mucosa_windows, paired_windows, polyp_side
from tests.examples import examples

ALL = np.ones((60, 80), bool)


def generator(seed=0):
    return np.random.default_rng(seed)


def pairs(*boxes, field=ALL, per_polyp=1, margin=0.25, smallest=8, seed=0):
    how = {"per_polyp": per_polyp, "margin": margin, "smallest": smallest}
    return paired_windows(boxes, field, **how, generator=generator(seed))


def around(box, field=ALL, **how):
    return [pair.around for pair in pairs(box, field=field, **how)]


def alone(field=ALL, sides=(20,), count=3, smallest=8, seed=0):
    return mucosa_windows(field, sides=sides, count=count, smallest=smallest, generator=generator(seed))


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


@settings(max_examples=examples(100))
@given(frames(), st.floats(0, 1), st.integers(4, 20), st.integers(0, 1000))
def test_windows_of_a_polyp_hold_it_whole_or_lie_in_it_and_those_beside_are_as_large_and_touch_it_not(
    frame, margin, smallest, seed
):
    box, field = frame
    height, width = field.shape
    found = pairs(box, field=field, per_polyp=3, margin=margin, smallest=smallest, seed=seed)
    for pair in found:
        assert pair.around.side == pair.beside.side >= smallest
        for window in (pair.around, pair.beside):
            assert 0 <= window.x <= width - window.side
            assert 0 <= window.y <= height - window.side
        for low, high, start in ((box[0], box[2], pair.around.x), (box[1], box[3], pair.around.y)):
            inside = start - 1 < low and high < start + pair.around.side + 1
            within = low - 1 < start and start + pair.around.side < high + 1
            assert inside or within
        assert not touches(pair.beside, box)
        wanted, share = field_share(pair.around, field), field_share(pair.beside, field)
        assert abs(share - wanted) <= 0.0201 or share >= 0.9799
    assert found == pairs(box, field=field, per_polyp=3, margin=margin, smallest=smallest, seed=seed)


def test_the_first_window_of_a_polyp_is_in_its_middle_with_the_margin_on_each_side():
    assert around((20, 30, 40, 40)) == [Window(15, 20, 30)]
    assert polyp_side((20, 30, 40, 40), 0.25, 8) == 30
    assert polyp_side((20, 30, 22, 31), 0.25, 8) == 8


def test_further_windows_of_a_polyp_differ_and_hold_it_too():
    box = (30, 20, 44, 36)
    windows = around(box, np.ones((240, 320), bool), per_polyp=6)
    assert len(set(windows)) == 6
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


def test_windows_on_mucosa_share_little_with_each_other():
    windows = alone(count=20)
    assert len(windows) >= 9
    taken = np.zeros_like(ALL)
    for window in windows:
        assert taken[window.part].mean() <= 0.25
        taken[window.part] = True


def test_a_pair_shrinks_until_mucosa_has_a_place_and_is_left_out_where_it_has_none():
    # 16 columns are free on the right: 60, 48, … 24, 19, 15 (a fifth less, rounded down).
    (pair,) = pairs((0, 0, 64, 60))
    assert (pair.around.side, pair.beside.side) == (15, 15)
    assert pair.beside.x in (64, 65)
    assert pair.around.x + 15 <= 64
    assert pairs((0, 0, 75, 60)) == []


def test_a_window_of_a_frame_without_polyps_lies_in_the_field_and_shrinks_until_it_does():
    field = np.zeros((60, 80), bool)
    field[20:40, 20:40] = True
    (window,) = alone(field, sides=(25,), count=1)
    assert window == Window(20, 20, 20)  # 25, then a fifth less
    assert alone(field, sides=(9, 25), smallest=21) == []


def test_dark_corners_are_as_frequent_beside_polyps_as_around_them():
    field = np.ones((60, 160), bool)
    y, x = np.mgrid[:60, :160]
    field[x + y < 24] = False
    field[(159 - x) + y < 24] = False
    (pair,) = pairs((0, 0, 24, 24), field=field, margin=0)
    assert field_share(pair.around, field) < 0.6
    assert abs(field_share(pair.around, field) - field_share(pair.beside, field)) <= 0.02
