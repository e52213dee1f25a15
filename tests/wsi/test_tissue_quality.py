import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from kdml_med.wsi.glass import measure_glass
from kdml_med.wsi.opening import open_slide
from kdml_med.wsi.quality import measure_quality
from kdml_med.wsi.slide import Level, SlideError
from kdml_med.wsi.tissue import MaskIntegral, Overview, read_overview, tissue_mask
from tests.examples import examples
from tests.synthetic_slides import TISSUE_SHARE, damage_native_tile, tissue_picture, write_slide


def find_tissue(overview):
    return tissue_mask(overview, measure_glass(overview.pixels, ~overview.unread))


def overview_of(pixels):
    return Overview(pixels, np.zeros(pixels.shape[:2], bool), 32.0, 8.0)


def stained(glass, noise=0.0, strength=1.0, seed=0):
    """Overview of 80 × 120 px and where its tissue is: the middle, by Beer and Lambert's law on the given glass."""
    rng = np.random.default_rng(seed)
    inside = np.zeros((80, 120), bool)
    inside[20:60, 30:90] = True
    density = rng.uniform(0.5, 1.0, (80, 120, 1)) * np.array([0.08, 0.75, 0.35]) * strength
    pixels = np.where(inside[..., None], np.exp(-density), 1.0) * np.array(glass, float)
    pixels += rng.normal(0, noise, (80, 120, 1))
    return overview_of(pixels.round().clip(0, 255).astype(np.uint8)), inside


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
    assert find_tissue(overview).mean() == pytest.approx((high - low) ** 2, abs=0.06)
    slide.close()


@pytest.mark.parametrize("grey", [250, 235, 128, 5])
def test_evenly_grey_slide_has_no_tissue(grey):
    rng = np.random.default_rng(0)
    pixels = (grey + rng.integers(-3, 4, (60, 80, 3))).clip(0, 255).astype(np.uint8)
    overview = overview_of(pixels)
    assert not find_tissue(overview).any()


def test_slide_full_of_tissue_is_all_tissue(tissue_tile):
    small = np.asarray(Image.fromarray(tissue_tile).reduce(4))
    overview = overview_of(small)
    assert find_tissue(overview).mean() > 0.95


def test_damage_in_the_overview_level_leaves_the_rest_and_counts_as_tissue(tmp_path):
    write_slide(tmp_path / "a.svs")
    damage_native_tile(tmp_path / "a.svs", 0, level=1)
    slide = open_slide(tmp_path / "a.svs")
    overview = read_overview(slide, 0.25)
    assert 0 < overview.unread.mean() < 0.4
    assert find_tissue(overview)[overview.unread].all()
    slide.close()


def test_fraction_of_a_square_is_the_mean_of_the_mask():
    mask = np.zeros((10, 10), bool)
    mask[:, 5:] = True
    shares = MaskIntegral(mask, 16.0)
    places = np.array([[0, 0], [80, 0], [48, 16]])
    np.testing.assert_array_equal(shares.fractions(places[:, 0], places[:, 1], 80)[:2], [0, 1])
    assert shares.fractions(places[:, 0], places[:, 1], 64)[2] == 0.5


def test_scores_of_good_tissue_pass(tissue_tile):
    quality = measure_quality(tissue_tile, 220)
    assert quality.background_fraction < 0.2
    assert quality.pen_fraction < 0.02
    assert quality.sharpness > 30


def test_glass_is_background():
    assert measure_quality(np.full((64, 64, 3), 240, np.uint8), 220).background_fraction == 1


@pytest.mark.parametrize("ink", [(30, 60, 190), (20, 120, 60), (200, 20, 30), (20, 20, 25)])
def test_marker_ink_is_found(tissue_tile, ink):
    inked = tissue_tile.copy()
    inked[:112] = ink
    assert measure_quality(inked, 220).pen_fraction == pytest.approx(0.5, abs=0.03)


def test_sharpness_is_the_variance_of_the_laplacian_and_falls_with_blur(tissue_tile):
    grey = tissue_tile.astype(float).mean(axis=2)
    kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    laplacian = ndimage.convolve(grey, kernel)[1:-1, 1:-1]
    assert measure_quality(tissue_tile, 220).sharpness == pytest.approx(laplacian.var(), rel=0.05)
    blurred = np.stack([ndimage.gaussian_filter(tissue_tile[..., c], 3) for c in range(3)], axis=2)
    assert measure_quality(blurred, 220).sharpness < 10


def test_unreadable_slide_error_is_not_an_oserror():
    assert not issubclass(SlideError, OSError)  # write errors are handled differently and must not mix with it


@settings(max_examples=examples(30))
@given(
    glass=st.tuples(st.integers(215, 250), st.integers(205, 250), st.integers(185, 250)),
    noise=st.floats(0, 1.0),
    strength=st.floats(0.3, 1.5),
)
def test_tint_and_greyness_of_the_glass_do_not_change_the_mask(glass, noise, strength):
    assume(min(glass[0], glass[2]) - glass[1] <= 20)  # a strong pink cast is stain, see below
    overview, inside = stained(glass, noise, strength)
    mask = find_tissue(overview)
    ring = ndimage.binary_dilation(inside, iterations=2) & ~ndimage.binary_erosion(inside, iterations=2)
    assert mask[inside & ~ring].all()
    assert not mask[~inside & ~ring].any()


def test_smoothing_does_not_make_tissue_of_the_glass_around_it():
    overview, inside = stained((243, 243, 243))
    np.testing.assert_array_equal(find_tissue(overview), inside)


def test_colour_of_glass_is_measured_next_to_what_the_scanner_filled_in_white():
    overview, _ = stained((222, 214, 196))
    pixels = overview.pixels.copy()
    pixels[:, :25] = 255
    (glass,) = measure_glass(pixels)
    np.testing.assert_allclose(glass.colour, (222, 214, 196), atol=1)
    assert not find_tissue(overview_of(pixels))[:, :20].any()


def test_two_tints_of_glass_on_one_slide_are_both_glass():
    overview, _ = stained((240, 240, 240))
    pixels = overview.pixels.copy()
    pixels[70:] = (214, 210, 188)
    assert len(measure_glass(pixels)) == 2
    mask = find_tissue(overview_of(pixels))
    assert not mask[72:].any()
    assert mask[25:55, 35:85].all()


def test_even_pink_areas_are_stain_and_not_glass():
    overview, _ = stained((243, 243, 243))
    pixels = overview.pixels.copy()
    pixels[40:] = (225, 150, 190)  # colloid or muscle without texture, half of the picture
    mask = find_tissue(overview_of(pixels))
    assert mask[42:].all()
    pixels[:] = (225, 150, 190)
    assert measure_glass(pixels) == []
    assert find_tissue(overview_of(pixels)).all()


def test_pale_mucosa_is_tissue():
    rng = np.random.default_rng(0)
    pixels = np.full((80, 120, 3), 243, np.uint8)
    pixels[20:60, 30:90] = np.array([236, 222, 236]) + rng.integers(-6, 7, (40, 60, 1))
    assert find_tissue(overview_of(pixels))[22:58, 32:88].all()


class BrokenSlide:
    """Every read that touches a damaged square fails, as with a file that lost its data; reads are counted."""

    def __init__(self, side, damaged):
        self.levels = [Level(side, side, 1.0)]
        self.damaged, self.failures = damaged, 0

    def factors(self, level):
        return (1,)

    def read(self, level, factor, x_r, y_r, width_r, height_r):
        for left, top, right, bottom in self.damaged:
            if x_r < right and x_r + width_r > left and y_r < bottom and y_r + height_r > top:
                self.failures += 1
                raise SlideError("unreadable region")
        return np.full((height_r, width_r, 3), 100, np.uint8)


def test_slide_that_is_damaged_all_over_is_not_probed_down_to_its_pixels():
    slide = BrokenSlide(8192, [(0, 0, 8192, 8192)])
    overview = read_overview(slide, 8.0)
    assert overview.unread.all()
    assert slide.failures < 700  # a reader may need milliseconds to open the file again after each


def test_damaged_places_are_fenced_in_and_the_rest_is_read():
    damaged = [(100, 100, 140, 140), (5000, 3000, 5040, 3040)]
    overview = read_overview(BrokenSlide(8192, damaged), 8.0)
    for left, top, right, bottom in damaged:
        assert overview.unread[top:bottom, left:right].all()
    assert overview.unread.mean() < 0.001
    assert (overview.pixels[~overview.unread] == 100).all()
