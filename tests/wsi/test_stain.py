import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from kdml_med.wsi.stain import REFERENCE, StainFit, fit_stains, normalise_stains
from tests.examples import examples


def _unit(matrix):
    return matrix / np.linalg.norm(matrix, axis=0)


TRUE = _unit(np.array([[0.70, 0.10], [0.60, 0.85], [0.35, 0.50]]))


def mixed_pixels(matrix, seed=0, count=20_000):
    """Pixels of two stains in random amounts, made by the law that the fit inverts."""
    rng = np.random.default_rng(seed)
    amounts = rng.gamma(1.2, 0.5, (count, 2)) * (rng.random((count, 2)) < 0.75)
    density = amounts @ matrix.T
    return (256 * np.exp(-density) - 1 + rng.normal(0, 1, density.shape)).clip(0, 255).round().astype(np.uint8)


def angle_deg(a, b):
    return np.degrees(np.arccos(np.clip(a @ b, -1, 1)))


@pytest.mark.parametrize("seed", range(3))
def test_fit_recovers_the_stains_that_made_the_pixels(seed):
    fit = fit_stains(mixed_pixels(TRUE, seed))
    assert angle_deg(fit.matrix[:, 0], TRUE[:, 0]) < 4  # haematoxylin first
    assert angle_deg(fit.matrix[:, 1], TRUE[:, 1]) < 4


def test_fit_is_not_moved_by_glass():
    pixels = mixed_pixels(TRUE)
    with_glass = np.concatenate([pixels, np.full((60_000, 3), 244, np.uint8)])
    np.testing.assert_allclose(fit_stains(with_glass).matrix, fit_stains(pixels).matrix, atol=1e-9)


@pytest.mark.parametrize("grey", [0, 128, 244, 255])
def test_pixels_without_two_stains_give_no_fit(grey):
    assert fit_stains(np.full((300, 300, 3), grey, np.uint8)) is None


def test_single_stain_gives_no_fit():
    amounts = np.linspace(0.3, 2, 5000)[:, None]
    pixels = (256 * np.exp(-amounts * TRUE[:, 0]) - 1).round().astype(np.uint8)
    assert fit_stains(pixels) is None


def test_normalising_brings_different_slides_together():
    other = _unit(np.array([[0.55, 0.05], [0.75, 0.95], [0.40, 0.25]]))
    images = [mixed_pixels(matrix, seed=1).reshape(100, 200, 3) for matrix in (TRUE, other)]
    before = np.abs(images[0].astype(int) - images[1]).mean()
    normal = [normalise_stains(image, fit_stains(image)) for image in images]
    after = np.abs(normal[0].astype(int) - normal[1]).mean()
    assert after < 0.5 * before
    refit = fit_stains(normal[0])
    assert angle_deg(refit.matrix[:, 0], _unit(REFERENCE.matrix)[:, 0]) < 5


def test_normalising_to_its_own_stains_changes_nothing():
    image = mixed_pixels(REFERENCE.matrix).reshape(100, 200, 3)
    # The reference has two stains and the noise three dimensions: what lies outside their plane is lost.
    assert np.abs(normalise_stains(image, REFERENCE).astype(int) - image).mean() < 1.5


@settings(max_examples=examples(30), deadline=None)
@given(arrays(np.uint8, (6, 5, 3)))
def test_any_tile_can_be_normalised(tile):
    fit = StainFit(TRUE, np.array([1.5, 1.0]))
    out = normalise_stains(tile, fit)
    assert out.shape == tile.shape
    assert out.dtype == np.uint8


def test_white_stays_white():
    fit = StainFit(TRUE, np.array([1.5, 1.0]))
    assert (normalise_stains(np.full((8, 8, 3), 255, np.uint8), fit) == 255).all()
