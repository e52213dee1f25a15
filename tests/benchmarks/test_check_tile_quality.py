from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.benchmarks.check_tile_quality import Error, lanczos_weights, reference_tile
from tests.benchmarks.large_slides import write_large_slide
from tests.examples import examples


@given(st.integers(8, 60), st.integers(2, 40), st.data())
@settings(max_examples=examples(20))
def test_the_reference_filter_is_the_one_that_pillow_has(available: int, wanted: int, data: st.DataObject) -> None:
    size = data.draw(st.floats(available - 0.99, available))
    picture = np.random.default_rng(0).uniform(0, 255, (1, available)).astype(np.float32)
    judge = Image.fromarray(picture).resize((wanted, 1), Image.Resampling.LANCZOS, box=(0, 0, size, 1))
    own = lanczos_weights(0.0, size, available, wanted) @ picture[0].astype(np.float64)
    # Pillow's window ends at the box, that of the reference at the last whole pixel.
    inner = slice(0, max(1, int((size - 3 * max(size / wanted, 1)) / size * wanted)))
    assert np.allclose(own[inner], np.asarray(judge)[0][inner], atol=1e-2)


def test_psnr_is_that_of_the_textbook() -> None:
    error = Error()
    error.add(np.full((2, 2, 3), 10, np.uint8), np.full((2, 2, 3), 15.0))
    assert error.psnr() == pytest.approx(20 * np.log10(255 / 5))
    assert Error(0.0, 4).psnr() == float("inf")


@pytest.mark.slow
def test_a_large_slide_is_an_aperio_pyramid_with_tissue_in_its_middle(tmp_path: Path) -> None:
    path = tmp_path / "large.svs"
    write_large_slide(path, 1500, 1300)
    with openslide.OpenSlide(path) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert slide.level_dimensions == ((1500, 1300), (375, 325), (93, 81))
        assert float(slide.properties["openslide.mpp-x"]) == 0.252
        middle = np.asarray(slide.read_region((700, 600), 0, (64, 64)).convert("RGB"))
        reference = reference_tile(slide, 700, 600, 64.0, 64)
    assert middle.mean() < 220
    assert np.abs(reference - middle).max() < 1e-9
