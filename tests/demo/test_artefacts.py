import numpy as np

from kdml_med.demo.artefacts import INKS, BlurRegion, PenStroke, apply_blur, apply_pen, pen_mask
from kdml_med.demo.fields import block_mean


def test_pen_is_painted_where_the_mask_says_and_nowhere_else() -> None:
    image = np.full((256, 256, 3), 240, dtype=np.uint8)
    strokes = [PenStroke("green", [(40.0, 60.0), (200.0, 60.0)], 30.0)]
    apply_pen(image, strokes)
    mask = pen_mask(strokes, 256)
    assert mask[60, 120]
    assert not mask[120, 120]
    assert (image[~mask] == 240).all()
    assert np.abs(image[mask].mean(0) - INKS["green"]).max() < 30


def test_pen_mask_is_the_same_at_a_lower_resolution() -> None:
    strokes = [PenStroke("blue", [(40.0, 40.0), (200.0, 150.0)], 40.0)]
    full, coarse = block_mean(pen_mask(strokes, 256), 8) > 0.5, pen_mask(strokes, 256, 8)
    assert (full != coarse).mean() < 0.03


def test_blur_stays_inside_its_region() -> None:
    image = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)
    before = image.copy()
    apply_blur(image, [BlurRegion(x=100, y=60, radius_px=40, sigma_px=6.0)])
    y, x = np.mgrid[:256, :256]
    distance = np.hypot(y - 60, x - 100)
    assert image[distance < 30].std() < 0.2 * before[distance < 30].std()
    assert (image[distance > 45] == before[distance > 45]).all()
