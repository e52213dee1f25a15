import numpy as np
import pytest
from PIL import Image

from kdml_med.wsi.native import NativeSlide
from kdml_med.wsi.opening import open_slide
from kdml_med.wsi.scans import FieldSlide, OpenSlideSlide
from kdml_med.wsi.slide import SlideError, resolve_mpp
from tests.synthetic_slides import damage_native_tile, write_slide


@pytest.mark.parametrize("photometric", ["rgb", "ycbcr"])
def test_fast_reader_shows_what_openslide_shows(tmp_path, photometric):
    path = tmp_path / "a.svs"
    write_slide(path, photometric=photometric)
    fast, slow = open_slide(path), open_slide(path, fast=False)
    assert isinstance(fast, NativeSlide)
    assert isinstance(slow, OpenSlideSlide)
    for level, box in ((0, (700, 300, 513, 401)), (0, (2300, 1800, 100, 100)), (1, (0, 0, 600, 475))):
        np.testing.assert_array_equal(fast.read(level, 1, *box), slow.read(level, 1, *box))
    fast.close()
    slow.close()


def test_reduced_decoding_agrees_with_averaging(tmp_path):
    path = tmp_path / "a.svs"
    write_slide(path)
    fast = open_slide(path)
    full = fast.read(0, 1, 600, 400, 400, 400)
    half = fast.read(0, 2, 300, 200, 200, 200)
    averaged = np.asarray(Image.fromarray(full).reduce(2))
    assert np.abs(half.astype(int) - averaged).mean() < 1.5
    fast.close()


@pytest.mark.parametrize("fast", [True, False])
def test_damaged_native_tile_spoils_only_its_own_region(tmp_path, fast):
    path = tmp_path / "a.svs"
    write_slide(path)
    damage_native_tile(path, 10 * 3 + 3)  # columns 768..1023, rows 768..1023
    slide = open_slide(path, fast=fast)
    for _ in range(2):
        with pytest.raises(SlideError):
            slide.read(0, 1, 800, 800, 64, 64)
        assert slide.read(0, 1, 300, 300, 64, 64).shape == (64, 64, 3)
    slide.close()


def test_header_resolution_wins_when_it_is_plausible(tmp_path):
    path = tmp_path / "a.svs"
    write_slide(path, mpp=0.25)
    slide = open_slide(path)
    assert resolve_mpp(slide, table_mpp=None, assumed_mpp=0.8) == (0.25, "slide header")
    assert resolve_mpp(slide, table_mpp=0.2501, assumed_mpp=0.8) == (0.25, "slide header")
    slide.close()


@pytest.mark.parametrize("table_mpp", [0.5, 0.125, 0.256])
def test_header_and_label_table_that_contradict_each_other_are_refused_with_both_values(tmp_path, table_mpp):
    path = tmp_path / "a.svs"
    write_slide(path, mpp=0.25)
    slide = open_slide(path)
    with pytest.raises(SlideError, match=rf"header says 0\.25 µm/px, the label table {table_mpp}: correct .* or leave"):
        resolve_mpp(slide, table_mpp=table_mpp, assumed_mpp=None)
    slide.close()


def test_silent_header_falls_back_to_table_then_assumption_then_refusal(tmp_path):
    path = tmp_path / "a.svs"
    write_slide(path, mpp=None)
    slide = open_slide(path)
    assert resolve_mpp(slide, table_mpp=0.9, assumed_mpp=0.8) == (0.9, "label table")
    assert resolve_mpp(slide, table_mpp=None, assumed_mpp=0.8) == (0.8, "assumed")
    with pytest.raises(SlideError, match=r"no resolution.*--assume-mpp"):
        resolve_mpp(slide, table_mpp=None, assumed_mpp=None)
    slide.close()


def test_absurd_header_is_refused_with_its_value_unless_a_resolution_is_stated(tmp_path):
    path = tmp_path / "a.svs"
    write_slide(path, mpp=896.0)
    slide = open_slide(path)
    with pytest.raises(SlideError, match="896"):
        resolve_mpp(slide, table_mpp=None, assumed_mpp=None)
    assert resolve_mpp(slide, table_mpp=None, assumed_mpp=0.25)[0] == 0.25
    with pytest.raises(SlideError, match="label table gives 50"):
        resolve_mpp(slide, table_mpp=50.0, assumed_mpp=None)
    slide.close()


def test_plain_tiff_resolution_needs_an_explicit_unit(tmp_path):
    picture = Image.fromarray(np.full((50, 60, 3), 200, np.uint8))
    picture.save(tmp_path / "unit.tif", resolution_unit=3, resolution=20_000.0)
    picture.save(tmp_path / "none.tif", resolution_unit=1, resolution=20_000.0)
    with_unit = open_slide(tmp_path / "unit.tif")
    assert with_unit.header_mpp == pytest.approx(0.5)
    assert with_unit.header_source == "TIFF resolution tag"
    assert open_slide(tmp_path / "none.tif").header_mpp is None


def test_transparency_becomes_white(tmp_path):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2, :, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    pixels = FieldSlide(tmp_path / "a.png").read(0, 1, 0, 0, 4, 4)
    assert (pixels[:2] == 0).all()
    assert (pixels[2:] == 255).all()


@pytest.mark.parametrize("name", ["a.svs", "a.png", "a.tif", "a.jpg"])
def test_file_that_is_no_image_is_named_as_such(tmp_path, name):
    (tmp_path / name).write_bytes(b"this is a letter, not a slide" * 20)
    with pytest.raises(SlideError, match="neither a slide"):
        open_slide(tmp_path / name)


def test_truncated_png_is_refused(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3), np.uint8)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(SlideError, match="cannot be read as an image"):
        open_slide(tmp_path / "a.png")


def test_sixteen_bit_image_is_refused(tmp_path):
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(SlideError, match="expected 8-bit RGB"):
        open_slide(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["svs", "tif", "ndpi", "png", "dcm"])
def test_file_of_no_bytes_is_said_to_be_empty(tmp_path, suffix):
    (tmp_path / f"a.{suffix}").touch()
    with pytest.raises(SlideError, match="is empty"):
        open_slide(tmp_path / f"a.{suffix}")
