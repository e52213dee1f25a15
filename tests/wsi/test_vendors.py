"""Formats of vendors, generated: OpenSlide takes them for such, and they show what was put in, at its size."""

import numpy as np
import openslide
import pytest

from kdml_med.wsi.opening import open_slide
from kdml_med.wsi.slide import SlideError, resolve_mpp
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
