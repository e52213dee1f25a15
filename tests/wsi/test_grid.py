import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdml_med.errors import InputError
from kdml_med.wsi.grid import MAX_UPSAMPLING, READ_TOLERANCE, choose_plane, make_grid, true_downsample

slide_mpps = st.floats(0.1, 2.0)
ratios = st.floats(1 / MAX_UPSAMPLING, 8.0)
sides_px = st.integers(16, 512)
lengths_l0 = st.integers(1, 60_000)


@given(lengths_l0, lengths_l0, slide_mpps, ratios, sides_px)
def test_grid_lies_inside_the_slide_and_has_the_physical_size(width, height, slide_mpp, ratio, side_px):
    mpp = slide_mpp * ratio
    grid = make_grid(width, height, slide_mpp=slide_mpp, mpp=mpp, tile_size_px=side_px)
    assert math.isclose(grid.size_l0 * slide_mpp, side_px * mpp, rel_tol=0.005)
    if len(grid):
        right, bottom = (grid.columns - 1) * grid.stride_l0, (grid.rows - 1) * grid.stride_l0
        assert right + grid.size_l0 <= width
        assert bottom + grid.size_l0 <= height


@given(lengths_l0, lengths_l0, slide_mpps, ratios, sides_px)
def test_grid_covers_all_but_a_rim_and_gaps_under_one_pixel(width, height, slide_mpp, ratio, side_px):
    grid = make_grid(width, height, slide_mpp=slide_mpp, mpp=slide_mpp * ratio, tile_size_px=side_px)
    assert 0 <= grid.stride_l0 - grid.size_l0 < 1  # no overlap, and no gap of a pixel
    assert grid.columns * grid.stride_l0 + grid.size_l0 > width  # one more would not fit
    assert grid.rows * grid.stride_l0 + grid.size_l0 > height


@given(st.integers(100, 3000), st.integers(100, 3000), st.integers(16, 300))
def test_origins_are_unique_and_in_reading_order(width, height, side_px):
    grid = make_grid(width, height, slide_mpp=0.25, mpp=0.5, tile_size_px=side_px)
    origins = list(grid.origins())
    assert len(origins) == len(grid) == len(set(origins))
    assert origins == sorted(origins, key=lambda origin: (origin[1], origin[0]))


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(16, 300))
def test_rim_is_what_whole_tiles_leave_uncovered(width, height, side_px):
    grid = make_grid(width, height, slide_mpp=0.25, mpp=0.25, tile_size_px=side_px)
    cells = [(x, y) for y in range(0, height, side_px) for x in range(0, width, side_px)]
    assert sorted([*grid.origins(), *grid.rim()]) == sorted(cells)
    assert all(x + side_px > width or y + side_px > height for x, y in grid.rim())


def test_whole_ratio_gives_a_whole_size():
    assert make_grid(4480, 448, slide_mpp=0.25, mpp=0.5, tile_size_px=224).size_l0 == 448
    assert len(make_grid(4480, 448, slide_mpp=0.25, mpp=0.5, tile_size_px=224)) == 10


def test_side_close_to_a_whole_number_is_made_whole():
    assert make_grid(2220, 2967, slide_mpp=0.499, mpp=0.5, tile_size_px=224).size_l0 == 224
    assert make_grid(2220, 2967, slide_mpp=0.46, mpp=0.5, tile_size_px=16).size_l0 == pytest.approx(17.391, abs=1e-3)


def test_enlarging_beyond_the_limit_is_refused_with_both_resolutions():
    make_grid(5000, 5000, slide_mpp=0.624, mpp=0.5, tile_size_px=224)
    with pytest.raises(InputError, match=r"0\.65 µm/px, 0\.5 µm/px.*1\.30"):
        make_grid(5000, 5000, slide_mpp=0.65, mpp=0.5, tile_size_px=224)


def test_level_without_its_twofold_neighbour_is_skipped():
    # 40× Aperio slides have levels 1, 4 and 16: 0.5 µm/px must come from level 0, never from level 1.
    plane = choose_plane([1, 4, 16], [(1,), (1,), (1,)], slide_mpp=0.25, mpp=0.5)
    assert (plane.level, plane.factor, plane.downsample) == (0, 1, 1)


def test_reduction_while_decoding_is_used_and_the_coarser_level_preferred():
    factors = [(1, 2, 4, 8)] * 3
    assert choose_plane([1, 4, 16], factors, slide_mpp=0.252, mpp=0.5).factor == 2
    assert choose_plane([1, 4, 16], factors, slide_mpp=0.5, mpp=1.0).factor == 1  # too coarse for the decoder's filter
    assert choose_plane([1, 2, 4], factors, slide_mpp=0.25, mpp=0.5) == choose_plane(
        [1, 2, 4], [(1,)] * 3, slide_mpp=0.25, mpp=0.5
    )


@given(slide_mpps, ratios, st.lists(st.floats(1.5, 4.5), max_size=4))
def test_chosen_plane_never_loses_detail_that_the_slide_has(slide_mpp, ratio, steps):
    downsamples = [1.0]
    for step in steps:
        downsamples.append(downsamples[-1] * step)
    plane = choose_plane(downsamples, [(1, 2, 4, 8)] * len(downsamples), slide_mpp=slide_mpp, mpp=slide_mpp * ratio)
    assert plane.downsample <= max(1.0, ratio * READ_TOLERANCE * (1 + 1e-9))


def test_downsample_of_a_level_cut_to_whole_pixels_is_whole():
    assert true_downsample(2500, 2500, 312, 312) == 8
    assert true_downsample(4443, 3567, 2221, 1783) == 2
    assert true_downsample(1000, 1000, 400, 400) == 2.5
