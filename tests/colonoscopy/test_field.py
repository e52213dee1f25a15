import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdml_med.colonoscopy.field import find_field, find_overlays
from kdml_med.colonoscopy.frames import prepare_image
from kdml_med.colonoscopy.options import FrameOptions
from tests.colonoscopy.pictures import frame, octagon
from tests.examples import examples

SAME_SIZE = FrameOptions(size_px=4096)


@st.composite
def fields(draw):
    width, height = draw(st.integers(120, 220)), draw(st.integers(100, 180))
    xmin, ymin = draw(st.integers(0, width // 5)), draw(st.integers(0, height // 5))
    xmax, ymax = width - draw(st.integers(0, width // 5)), height - draw(st.integers(0, height // 5))
    return width, height, (xmin, ymin, xmax, ymax)


@settings(max_examples=examples(40), deadline=None)
@given(fields(), st.integers(12, 30), st.integers(0, 25), st.integers(0, 99))
def test_crop_is_the_field_exactly_and_loses_none_of_its_pixels(known, cut, border, seed):
    width, height, field = known
    picture = frame(width, height, field, cut=cut, border=border, seed=seed)
    prepared = prepare_image(picture, SAME_SIZE)
    assert prepared.kept == field
    left, top, right, bottom = field
    np.testing.assert_array_equal(prepared.pixels, picture[top:bottom, left:right])
    outside = picture.copy()
    outside[top:bottom, left:right] = border
    assert (outside == border).all()


@settings(max_examples=examples(40), deadline=None)
@given(fields(), st.data())
def test_a_box_moves_with_its_pixels(known, data):
    width, height, field = known
    picture = frame(width, height, field, cut=20)
    x = data.draw(st.integers(field[0] + 20, field[2] - 30))
    y = data.draw(st.integers(field[1] + 20, field[3] - 30))
    picture[y : y + 8, x : x + 9] = (0, 255, 0)
    prepared = prepare_image(picture, SAME_SIZE)
    ((xmin, ymin, xmax, ymax),) = prepared.placement.to_stored([(x, y, x + 9, y + 8)])
    rows, columns = np.nonzero((prepared.pixels == (0, 255, 0)).all(axis=2))
    assert (xmin, ymin, xmax, ymax) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert prepared.placement.to_source([(xmin, ymin, xmax, ymax)]) == [(x, y, x + 9, y + 8)]


@pytest.mark.parametrize(
    "picture",
    [
        frame(200, 160, (0, 0, 200, 160), cut=0),  # bright to the edge
        np.zeros((160, 200, 3), np.uint8),
        frame(200, 160, (80, 60, 130, 100), cut=5),  # too small to be a field
        np.random.default_rng(0).integers(0, 255, (160, 200, 3), dtype=np.uint8),
    ],
    ids=["no border", "black", "small light", "noise"],
)
def test_nothing_is_cropped_without_a_clear_border(picture):
    prepared = prepare_image(picture, SAME_SIZE)
    assert not prepared.cropped
    np.testing.assert_array_equal(prepared.pixels, picture)


def test_wide_black_side_with_text_is_cut_off():
    picture = frame(300, 160, (110, 10, 290, 150), text=(20, 60))
    assert prepare_image(picture, SAME_SIZE).kept == (110, 10, 290, 150)


def test_two_bright_halves_that_fill_the_frame_are_not_cropped_to_one():
    picture = frame(200, 160, (0, 0, 200, 160), cut=30)
    picture[:, 80:95] = 0  # a dark lumen from edge to edge
    assert not prepare_image(picture, SAME_SIZE).cropped


def test_text_in_a_dark_corner_is_painted_black_and_nothing_else():
    plain = frame(240, 200, (5, 5, 235, 195), cut=70)
    picture = frame(240, 200, (5, 5, 235, 195), cut=70, text=(10, 10))
    assert (picture != plain).any()
    prepared = prepare_image(picture, SAME_SIZE)
    np.testing.assert_array_equal(prepared.pixels, plain[5:195, 5:235])
    kept = prepare_image(picture, FrameOptions(size_px=4096, mask_overlays=False))
    np.testing.assert_array_equal(kept.pixels, picture[5:195, 5:235])


def test_no_crop_keeps_the_border_but_not_its_text():
    picture = frame(300, 160, (110, 10, 290, 150), text=(20, 60))
    prepared = prepare_image(picture, FrameOptions(size_px=4096, crop=False))
    assert prepared.pixels.shape == picture.shape
    assert not prepared.pixels[:, :100].any()


def test_text_inside_the_field_and_highlights_beyond_a_dark_lumen_stay():
    picture = frame(240, 200, (5, 5, 235, 195), cut=40, text=(110, 100))
    picture[5:80, 5:120] = np.where(octagon(240, 200, (5, 5, 235, 195), 40)[5:80, 5:120, None], 4, 0)
    picture[30:34, 60:66] = 255  # a wet spot in the dark quarter
    field = find_field(picture)
    assert field is not None
    assert find_overlays(field) is None


def test_lost_share_counts_what_was_cut_off_and_painted_over():
    prepared = prepare_image(frame(240, 200, (40, 5, 235, 195), cut=70), SAME_SIZE)
    assert prepared.lost_share((100, 50, 120, 70)) == 0
    assert prepared.lost_share((30, 50, 50, 70)) == 0.5
    assert prepared.lost_share((0, 0, 10, 10)) == 1
