"""Values of tiles on planes of pixels, and the colours that stand for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.color import deltaE_ciede2000, rgb2lab

from kdml_med.deploy.pictures.raster import DIFFERENCE, HEAT, choose_pitch, colour_of, colours, halve, rasterise
from tests.examples import examples


def tile_frame(places: list[tuple[float, float, float]], values: list[float]) -> pd.DataFrame:
    return pd.DataFrame(places, columns=["x_l0", "y_l0", "size_l0"]).assign(value=values)


def slow_raster(tiles: pd.DataFrame, shape: tuple[int, int], pitch: tuple[float, float]) -> Any:
    """The mean of the tiles that a pixel's centre lies in, pixel by pixel."""
    total, count = np.zeros(shape), np.zeros(shape)
    for x, y, size, value in tiles.itertuples(index=False):
        side = np.ceil(size)
        columns = [i for i in range(shape[1]) if x <= (i + 0.5) * pitch[0] < x + side]
        rows = [i for i in range(shape[0]) if y <= (i + 0.5) * pitch[1] < y + side]
        columns = columns or [min(shape[1] - 1, int((x + side / 2) / pitch[0]))]
        rows = rows or [min(shape[0] - 1, int((y + side / 2) / pitch[1]))]
        for row in rows:
            for column in columns:
                total[row, column] += value
                count[row, column] += 1
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


@settings(max_examples=examples(60))
@given(
    places=st.lists(st.tuples(st.integers(0, 90), st.integers(0, 60), st.floats(0.5, 30)), max_size=12),
    pitch=st.tuples(st.sampled_from([1.0, 3.7, 10.0]), st.sampled_from([1.0, 4.1, 10.0])),
    seed=st.integers(0, 9),
)
def test_pixels_have_the_mean_of_the_tiles_that_their_centre_lies_in(places: Any, pitch: Any, seed: int) -> None:
    tiles = tile_frame(places, np.random.default_rng(seed).random(len(places)).tolist())
    shape = int(np.ceil(60 / pitch[1])), int(np.ceil(90 / pitch[0]))
    found = rasterise(tiles, "value", shape, pitch)
    np.testing.assert_allclose(found, slow_raster(tiles, shape, pitch), atol=1e-6)


def test_tiles_of_a_grid_of_fractional_sides_leave_no_seams() -> None:
    side, stride = 254.54, 255
    places = [(x * stride, y * stride, side) for x in range(40) for y in range(30)]
    tiles = tile_frame(places, [0.3] * len(places))
    width, height = 40 * stride + 7, 30 * stride + 100
    pitch = choose_pitch(tiles, width, height)
    assert stride / pitch == pytest.approx(4, abs=0.1)
    plane = rasterise(tiles, "value", (int(height / pitch), int(width / pitch)), (pitch, pitch))
    assert np.isfinite(plane[: int(30 * stride / pitch), : int(40 * stride / pitch)]).all()


@pytest.mark.parametrize(("width", "parts"), [(100_000, 4), (400_000, 2), (1_000_000, 1)])
def test_a_map_has_at_least_a_pixel_for_each_tile_and_no_more_than_fit(width: int, parts: int) -> None:
    tiles = tile_frame([(0, 0, 224.0), (224, 0, 224.0)], [0.0, 1.0])
    assert choose_pitch(tiles, width, 1000) == 224 / parts


def test_the_pitch_follows_overlapping_tiles_and_survives_odd_places() -> None:
    assert choose_pitch(tile_frame([(0, 0, 100.0), (50, 0, 100.0)], [0, 0]), 1000, 1000) == 12.5
    assert choose_pitch(tile_frame([(0, 0, 100.0), (1, 0, 100.0)], [0, 0]), 1000, 1000) == 100 / 8 / 4
    assert choose_pitch(tile_frame([], []), 1000, 5000) == pytest.approx(5000 / 256)
    assert 10**7 / choose_pitch(tile_frame([(0, 0, 1.0)], [0]), 10**7, 10) <= 16384


def test_tiles_without_a_value_are_left_out() -> None:
    plane = rasterise(tile_frame([(0, 0, 2.0), (2, 0, 2.0)], [np.nan, 0.5]), "value", (2, 4), (1.0, 1.0))
    np.testing.assert_array_equal(np.isnan(plane), [[True, True, False, False]] * 2)


def test_halving_averages_what_there_is() -> None:
    plane = np.array([[0, 1, np.nan], [1, np.nan, np.nan], [0.25, np.nan, np.nan]], np.float32)
    np.testing.assert_allclose(halve(plane), [[2 / 3, np.nan], [0.25, np.nan]], rtol=1e-6)


@pytest.mark.parametrize(("name", "sign"), [(HEAT, 1), (DIFFERENCE, -1)])
def test_equal_steps_look_equal_and_grow_or_fade_throughout(name: str, sign: int) -> None:
    lab = rgb2lab(colours(name)[None] / 255)[0][::16]
    lightness = sign * np.diff(lab[:, 0])  # all that who sees no hues has
    assert 0 < lightness.max() < 1.6 * lightness.min()
    seen = deltaE_ciede2000(lab[:-1], lab[1:])
    assert seen.max() < 2.5 * seen.min()


def test_values_beyond_the_scale_get_its_ends() -> None:
    ends = colours(HEAT)[[0, 255]]
    np.testing.assert_array_equal(colour_of(np.array([-1, 0, 1, 7]), HEAT), ends[[0, 0, 1, 1]])
    np.testing.assert_array_equal(colour_of(np.array([0.1]), HEAT, 0.1)[0], ends[1])
