import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdml_med.pixels import resize
from tests.examples import examples

TOLERANCE_PX = 1 / 16  # of the picture that is resampled


def waves(height, width, period_px=24.0):
    """A slow wave along each axis, as a function of the place in pixels."""
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    return wave_at(x, period_px)[None, :] + wave_at(y, period_px)[:, None]


def wave_at(place, period_px=24.0):
    return 63.75 * (1 + np.sin(2 * np.pi * place / period_px))


@settings(max_examples=examples(60))
@given(
    left=st.sampled_from([0, 3, 0.5, 0.25, 5.7]),
    top=st.sampled_from([0, 2, 0.5, 0.75, 1.3]),
    side=st.one_of(st.integers(90, 200), st.floats(90, 200), st.just(123.5)),
    size=st.integers(64, 128),
    colours=st.sampled_from([None, 3]),
    reduction=st.sampled_from(["area", "bicubic"]),
)
def test_pixels_show_what_is_at_their_place(left, top, side, size, colours, reduction):
    picture = waves(240, 250).round().astype(np.uint8)
    if colours:
        picture = np.stack([picture, 255 - picture, picture], axis=2)
    found = resize(picture, size, size, (left, top, left + side, top + side), reduction=reduction)
    assert found.shape == ((size, size, colours) if colours else (size, size))
    found = found if colours is None else found[..., 0]
    scale = side / size
    x, y = (corner + (np.arange(size) + 0.5) * scale for corner in (left, top))
    wanted = wave_at(x)[None, :] + wave_at(y)[:, None]
    # At the edges of the box nothing outside of it is looked at. A wave rises by at most 17 grey levels per pixel.
    inside = np.s_[3:-3, 3:-3]
    difference = found[inside].astype(float) - wanted[inside]
    slope = 2 * np.pi / 24 * 63.75
    blur = 63.75 * 2 * (1 - np.sinc(scale / 24)) + 1.0
    assert np.abs(difference).max() <= 2 * TOLERANCE_PX * slope + blur
    # A shift would show in the part of the difference that goes with the slope.
    along = np.cos(2 * np.pi * x / 24)[None, 3:-3] * np.ones((size - 6, 1))
    assert abs((difference * along).sum() / (along**2).sum()) <= TOLERANCE_PX * slope


def test_whole_picture_in_its_own_size_is_left_as_it_is():
    picture = waves(20, 30).astype(np.uint8)
    assert resize(picture, 30, 20) is picture or np.array_equal(resize(picture, 30, 20), picture)
    np.testing.assert_array_equal(resize(picture, 10, 8, (4, 6, 14, 14)), picture[6:14, 4:14])


def test_whole_reduction_is_the_mean_over_squares():
    picture = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    means = picture.reshape(20, 3, 30, 3, 3).mean(axis=(1, 3))
    assert np.abs(resize(picture, 30, 20) - means).max() <= 0.51


@pytest.mark.parametrize(
    ("side", "reduction", "least_db"),
    [(222, "area", 42), (223.5, "area", 42), (228, "bicubic", 42), (280, "area", 32), (280, "bicubic", 42)],
)
def test_result_is_close_to_lanczos(side, reduction, least_db):
    rng = np.random.default_rng(1)
    rough = Image.fromarray(rng.integers(0, 256, (200, 200), np.uint8))
    picture = np.asarray(rough.resize((640, 640), Image.Resampling.BICUBIC))
    box = (0, 0, side, side)
    lanczos = Image.fromarray(picture.astype(np.float32)).resize((224, 224), Image.Resampling.LANCZOS, box=box)
    error = resize(picture, 224, 224, box, reduction=reduction).astype(float) - np.clip(np.asarray(lanczos), 0, 255)
    assert 10 * np.log10(255**2 / (error**2).mean()) > least_db


def test_opencv_starts_no_threads():
    assert cv2.getNumThreads() == 1
