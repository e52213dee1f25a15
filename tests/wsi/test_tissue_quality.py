import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from kdml_med.wsi.opening import open_slide
from kdml_med.wsi.quality import measure_quality
from kdml_med.wsi.slide import SlideError
from kdml_med.wsi.tissue import MaskIntegral, Overview, read_overview, tissue_mask
from tests.synthetic_slides import TISSUE_SHARE, damage_native_tile, tissue_picture, write_slide


@pytest.fixture(scope="module")
def tissue_tile():
    return tissue_picture(800, 800)[300:524, 300:524]


@pytest.mark.parametrize("fast", [True, False])
def test_mask_finds_the_block_of_tissue(tmp_path, fast):
    write_slide(tmp_path / "a.svs")
    slide = open_slide(tmp_path / "a.svs", fast=fast)
    overview = read_overview(slide, 0.25)
    assert overview.mpp == pytest.approx(8.0, rel=0.05)
    low, high = TISSUE_SHARE
    assert tissue_mask(overview).mean() == pytest.approx((high - low) ** 2, abs=0.06)
    slide.close()


@pytest.mark.parametrize("grey", [250, 235, 128, 5])
def test_evenly_grey_slide_has_no_tissue(grey):
    rng = np.random.default_rng(0)
    pixels = (grey + rng.integers(-3, 4, (60, 80, 3))).clip(0, 255).astype(np.uint8)
    overview = Overview(pixels, np.zeros((60, 80), bool), 32.0, 8.0)
    assert not tissue_mask(overview).any()


def test_slide_full_of_tissue_is_all_tissue(tissue_tile):
    small = np.asarray(Image.fromarray(tissue_tile).reduce(4))
    overview = Overview(small, np.zeros(small.shape[:2], bool), 32.0, 8.0)
    assert tissue_mask(overview).mean() > 0.95


def test_damage_in_the_overview_level_leaves_the_rest_and_counts_as_tissue(tmp_path):
    write_slide(tmp_path / "a.svs")
    damage_native_tile(tmp_path / "a.svs", 0, level=1)
    slide = open_slide(tmp_path / "a.svs")
    overview = read_overview(slide, 0.25)
    assert 0 < overview.unread.mean() < 0.4
    assert tissue_mask(overview)[overview.unread].all()
    slide.close()


def test_fraction_of_a_square_is_the_mean_of_the_mask():
    mask = np.zeros((10, 10), bool)
    mask[:, 5:] = True
    shares = MaskIntegral(mask, 16.0)
    assert shares.fraction(0, 0, 80) == 0
    assert shares.fraction(80, 0, 80) == 1
    assert shares.fraction(48, 16, 64) == 0.5


def test_scores_of_good_tissue_pass(tissue_tile):
    quality = measure_quality(tissue_tile)
    assert quality.background_fraction < 0.2
    assert quality.pen_fraction < 0.02
    assert quality.sharpness > 30


def test_glass_is_background():
    assert measure_quality(np.full((64, 64, 3), 240, np.uint8)).background_fraction == 1


@pytest.mark.parametrize("ink", [(30, 60, 190), (20, 120, 60), (200, 20, 30), (20, 20, 25)])
def test_marker_ink_is_found(tissue_tile, ink):
    inked = tissue_tile.copy()
    inked[:112] = ink
    assert measure_quality(inked).pen_fraction == pytest.approx(0.5, abs=0.03)


def test_sharpness_is_the_variance_of_the_laplacian_and_falls_with_blur(tissue_tile):
    grey = tissue_tile.astype(float).mean(axis=2)
    kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    laplacian = ndimage.convolve(grey, kernel)[1:-1, 1:-1]
    assert measure_quality(tissue_tile).sharpness == pytest.approx(laplacian.var(), rel=0.05)
    blurred = np.stack([ndimage.gaussian_filter(tissue_tile[..., c], 3) for c in range(3)], axis=2)
    assert measure_quality(blurred).sharpness < 10


def test_unreadable_slide_error_is_not_an_oserror():
    assert not issubclass(SlideError, OSError)  # write errors are handled differently and must not mix with it
