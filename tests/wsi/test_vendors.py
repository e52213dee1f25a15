"""Formats of vendors, generated: OpenSlide takes them for such, and they show what was put in, at its size."""

import numpy as np
import openslide
import pytest

from kdml_med.wsi.opening import find_crop, open_slide
from kdml_med.wsi.scans import OpenSlideSlide
from kdml_med.wsi.slide import SlideError, bounds_of, crop_of, resolve_mpp
from tests.synthetic_slides import write_slide
from tests.wsi.vendor_slides import (
    picture,
    write_dicom,
    write_mirax,
    write_ndpi,
    write_philips,
    write_scn,
    write_ventana,
    write_vms,
)

SIDE = 1280


@pytest.fixture(scope="module")
def pixels():
    return picture(SIDE)


@pytest.mark.parametrize(
    ("vendor", "name", "write", "corner"),
    [
        ("dicom", "d", write_dicom, 0),
        ("hamamatsu", "v.vms", write_vms, 0),
        ("hamamatsu", "n.ndpi", write_ndpi, 0),
        ("leica", "l.scn", write_scn, 4),
        ("mirax", "m.mrxs", write_mirax, 0),
        ("philips", "p.tiff", write_philips, 0),
        ("ventana", "b.bif", write_ventana, 0),
    ],
)
@pytest.mark.parametrize("mpp", [0.25, 0.5])
def test_slide_of_a_vendor_shows_what_was_put_in(tmp_path, pixels, vendor, name, write, corner, mpp):
    write(tmp_path / name, pixels, mpp=mpp)
    file = next((tmp_path / name).iterdir()) if name == "d" else tmp_path / name
    assert openslide.OpenSlide.detect_format(file) == vendor
    slide = open_slide(tmp_path / name)
    assert resolve_mpp(slide, table_mpp=None, assumed_mpp=None) == (pytest.approx(mpp, rel=1e-4), "slide header")
    assert slide.left_out == ""
    assert len(slide.levels) > 1
    for x, y in ((0, 0), (600, 500), (SIDE - 200, SIDE - 200)):
        shown = slide.read(0, 1, x + corner, y + corner, 200, 200)
        assert np.abs(shown.astype(int) - pixels[y : y + 200, x : x + 200]).mean() < 3
    slide.close()


def test_second_region_of_a_leica_slide_lies_on_the_same_plane(tmp_path, pixels):
    second = picture(SIDE, seed=5)
    write_scn(tmp_path / "l.scn", pixels, second=second)
    slide = open_slide(tmp_path / "l.scn")
    for region, corner in ((pixels, 4), (second, SIDE + 4)):
        shown = slide.read(0, 1, corner + 500, corner + 500, 200, 200)
        assert np.abs(shown.astype(int) - region[500:700, 500:700]).mean() < 3
    slide.close()


def test_a_slide_says_which_part_of_its_plane_was_scanned(tmp_path, pixels):
    write_scn(tmp_path / "l.scn", pixels[:512, :768], corner_px=(256, 128))
    slide = open_slide(tmp_path / "l.scn")
    assert (slide.levels[0].width, slide.levels[0].height) == (1536, 1024)
    assert bounds_of(slide) == bounds_of(slide.clone()) == crop_of(slide) == (256, 128, 768, 512)
    assert find_crop(tmp_path / "l.scn") == (256, 128, 768, 512)
    slide.close()


@pytest.mark.parametrize("fast", [True, False])
def test_a_slide_without_bounds_was_scanned_as_a_whole(tmp_path, fast):
    write_slide(tmp_path / "a.svs", width=900, height=800)
    slide = open_slide(tmp_path / "a.svs", fast=fast)
    assert bounds_of(slide) == (0, 0, 900, 800)
    assert crop_of(slide) is find_crop(tmp_path / "a.svs") is None
    slide.close()


@pytest.mark.parametrize(
    ("found", "bounds"),
    [
        (("0", "0", "1280", "1280"), (0, 0, 1280, 1280)),
        (("280", "80", "1001", "1200"), (280, 80, 1000, 1200)),  # a pixel behind the plane: rounded to the outside
        (("-1", "0", "10", "10"), (0, 0, 1280, 1280)),
        (("1280", "0", "10", "10"), (0, 0, 1280, 1280)),
        (("3", "3", "0", "10"), (0, 0, 1280, 1280)),
        (("3", "3", "wide", "10"), (0, 0, 1280, 1280)),
        (("3", "3", "10"), (0, 0, 1280, 1280)),
    ],
)
def test_bounds_that_make_no_sense_are_the_whole_plane(tmp_path, pixels, monkeypatch, found, bounds):
    write_vms(tmp_path / "v.vms", pixels)
    sound = dict(openslide.OpenSlide(tmp_path / "v.vms").properties)
    names = [f"openslide.bounds-{name}" for name in ("x", "y", "width", "height")]
    properties = sound | dict(zip(names, found, strict=False))
    monkeypatch.setattr(openslide.OpenSlide, "properties", properties)
    assert OpenSlideSlide(tmp_path / "v.vms").bounds == bounds


def test_dicom_slide_whose_pixels_are_not_square_is_refused(tmp_path, pixels):
    write_dicom(tmp_path / "d", pixels, mpp=0.25, mpp_y=0.5)
    with pytest.raises(SlideError, match="not square"):
        open_slide(tmp_path / "d")


def test_folder_without_dicom_is_no_slide(tmp_path):
    with pytest.raises(SlideError, match="cannot be opened"):
        open_slide(tmp_path)


def test_header_of_a_size_that_no_slide_has_is_refused(tmp_path, pixels, monkeypatch):
    write_vms(tmp_path / "v.vms", pixels)
    monkeypatch.setattr(openslide.OpenSlide, "level_dimensions", ((10**9, -5), (10, 10)))
    with pytest.raises(SlideError, match="declares 1000000000 × -5 px, which no slide has"):
        open_slide(tmp_path / "v.vms")
