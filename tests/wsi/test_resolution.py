import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdml_med.wsi.grid import MAX_MPP, MIN_MPP
from kdml_med.wsi.opening import open_slide
from kdml_med.wsi.options import TilingOptions
from kdml_med.wsi.resolution import Resolution, agree, from_imagej, from_ome, from_properties, from_tags
from kdml_med.wsi.slide import SlideError, resolve_mpp
from kdml_med.wsi.tiler import tile_slides
from tests.examples import examples
from tests.synthetic_slides import write_slide
from tests.wsi.vendor_slides import change_tag, ome_xml, picture, write_tiff

X, Y, UNIT = 282, 283, 296
SIGNED, DOUBLE = 10, 12  # TIFF types


@pytest.fixture(scope="module")
def pixels():
    return picture(512)


def stated(path, table_mpp=None):
    slide = open_slide(path)
    try:
        return resolve_mpp(slide, table_mpp=table_mpp, assumed_mpp=None)
    finally:
        slide.close()


@pytest.fixture(params=["plain", "tiled"])
def write(request, pixels):
    """Writes one image as a plain TIFF, which Pillow reads, or as a tiled one, which OpenSlide reads."""

    def write_it(path, **options):
        write_tiff(path, pixels, **({"tile": None} if request.param == "plain" else {}), **options)

    return write_it


@pytest.mark.parametrize(
    ("code", "value", "dtype", "words"),
    [
        (X, (-40_000, 1), SIGNED, "XResolution says -40000"),
        (Y, (-40_000, 1), SIGNED, "YResolution says -40000"),
        (X, (0, 1), None, "XResolution says 0"),
        (Y, (40_000, 0), None, "YResolution says nan"),
        (Y, float("nan"), DOUBLE, "YResolution says nan"),
        (X, None, None, "XResolution is missing"),
        (Y, None, None, "YResolution is missing"),
        (UNIT, None, None, "ResolutionUnit is missing"),
        (UNIT, 9, None, "ResolutionUnit says 9"),
        (UNIT, 1, None, "no resolution in the file"),
    ],
)
def test_tag_that_cannot_be_meant_is_named_unless_a_resolution_is_stated(tmp_path, write, code, value, dtype, words):
    write(tmp_path / "a.tif")
    assert stated(tmp_path / "a.tif")[0] == pytest.approx(0.25)
    change_tag(tmp_path / "a.tif", code, value, dtype=dtype)
    with pytest.raises(SlideError, match=words):
        stated(tmp_path / "a.tif")
    assert stated(tmp_path / "a.tif", 0.3) == (0.3, "label table")


@pytest.mark.parametrize("sides", [(40_000, 20_000), (40_000, 72), (39_000, 40_000)])
def test_pixels_that_are_not_square_are_refused_whatever_is_stated(tmp_path, write, sides):
    write(tmp_path / "a.tif", resolution=sides)
    with pytest.raises(SlideError, match=r"not square: .* µm \(XResolution, YResolution\)"):
        stated(tmp_path / "a.tif", 0.3)
    report = tile_slides([tmp_path / "a.tif"], tmp_path / "out", TilingOptions(assume_mpp=0.3), progress=False)
    assert "not square" in report.failures[0][1]


@settings(max_examples=examples(60))
@given(st.floats(MIN_MPP, MAX_MPP), st.floats(0.5, 2), st.sampled_from([(2, 25_400.0), (3, 10_000.0)]))
def test_tags_give_the_size_of_a_square_pixel_and_nothing_else(mpp, ratio, unit):
    code, um = unit
    x, y = um / mpp, um / (mpp * ratio)
    if max(ratio, 1 / ratio) > 1.0101:
        with pytest.raises(SlideError, match="not square"):
            from_tags(x, y, code)
    elif max(ratio, 1 / ratio) < 1.0099:
        assert from_tags(x, y, code).mpp == pytest.approx(mpp * (1 + ratio) / 2)


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"openslide.mpp-x": "0.25"}, "mpp-y is missing"),
        ({"openslide.mpp-y": "0.25"}, "mpp-x is missing"),
        ({"openslide.mpp-x": "a", "openslide.mpp-y": "0.25"}, "mpp-x says a"),
        ({"openslide.mpp-x": "-1", "openslide.mpp-y": "-1"}, "mpp-x says -1"),
        ({"openslide.mpp-x": "inf", "openslide.mpp-y": "inf"}, "mpp-x says inf"),
        ({"aperio.MPP": "unknown"}, "aperio.MPP says 'unknown'"),
    ],
)
def test_property_of_a_vendor_that_cannot_be_meant_is_named(properties, words):
    found = from_properties(properties)
    assert found.mpp is None
    assert words in found.problem


def test_aperio_file_with_words_for_a_number_names_them(tmp_path):
    write_slide(tmp_path / "a.svs", width=600, height=600, mpp="n/a")
    with pytest.raises(SlideError, match=r"aperio\.MPP says 'n/a'"):
        stated(tmp_path / "a.svs")


@pytest.mark.parametrize(
    ("size", "unit", "expected"),
    [("0.25", None, 0.25), ("0.25", "µm", 0.25), ("0.25", "μm", 0.25), ("250", "nm", 0.25), ("0.00025", "mm", 0.25)],
)
def test_ome_tiff_says_its_resolution_in_its_xml_only(tmp_path, pixels, size, unit, expected):
    words = {"PhysicalSizeX": size, "PhysicalSizeY": size}
    words |= {} if unit is None else {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    for name, tile in (("tiled", (256, 256)), ("plain", None)):
        xml = ome_xml(512, 512, **words).encode()
        write_tiff(
            tmp_path / f"{name}.ome.tif", pixels, tile=tile, resolution=None, resolutionunit=None, description=xml
        )
        assert stated(tmp_path / f"{name}.ome.tif") == (pytest.approx(expected), "OME-XML")


def test_words_of_ome_that_are_no_resolution():
    def read(**words):
        return from_ome(ome_xml(512, 512, **words), 512, 512)

    assert read() == Resolution()
    both = {"PhysicalSizeX": "1", "PhysicalSizeY": "1"}
    assert read(**both, PhysicalSizeXUnit="pixel", PhysicalSizeYUnit="pixel") == Resolution()
    assert "PhysicalSizeXUnit says 'furlong'" in read(**both, PhysicalSizeXUnit="furlong").problem
    assert "PhysicalSizeY is missing" in read(PhysicalSizeX="0.25").problem
    assert "PhysicalSizeX says 0," in read(PhysicalSizeX="0", PhysicalSizeY="0.25").problem
    assert from_ome(ome_xml(512, 512, **both), 511, 512) == Resolution()
    assert "cannot be read" in from_ome("<OME", 512, 512).problem
    with pytest.raises(SlideError, match=r"not square: 0\.25 by 0\.5"):
        read(PhysicalSizeX="0.25", PhysicalSizeY="0.5")
    with pytest.raises(SlideError, match=r"not square: 0\.25 by 250"):
        read(PhysicalSizeX="0.25", PhysicalSizeY="0.25", PhysicalSizeYUnit="mm")


def test_places_that_contradict_each_other_are_refused(tmp_path, pixels):
    xml = ome_xml(512, 512, PhysicalSizeX="0.5", PhysicalSizeY="0.5").encode()
    write_tiff(tmp_path / "a.ome.tif", pixels, description=xml)
    with pytest.raises(SlideError, match=r"TIFF resolution tag says 0\.25 µm/px, OME-XML 0\.5"):
        stated(tmp_path / "a.ome.tif", 0.5)
    assert agree(Resolution(352.8, "dots per inch"), Resolution(0.25, "OME-XML")).source == "OME-XML"
    assert agree(Resolution(problem="broken"), Resolution(0.25, "OME-XML")).mpp == 0.25
    assert agree(Resolution(problem="broken"), Resolution()).problem == "broken"


@pytest.mark.parametrize(
    ("unit", "mpp"), [("micron", 0.25), ("um", 0.25), ("\\u00B5m", 0.25), ("nm", 0.00025), ("pixel", None)]
)
def test_imagej_counts_its_tags_in_the_unit_that_it_names(tmp_path, pixels, unit, mpp):
    found = from_imagej(f"ImageJ=1.53t\nunit={unit}\n", (4, 1), (4, 1))
    assert found.mpp == (None if mpp is None else pytest.approx(mpp))
    tifffile.imwrite(
        tmp_path / "a.tif", np.asarray(pixels), imagej=True, resolution=(4, 4), metadata={"unit": "um", "axes": "YXS"}
    )
    assert stated(tmp_path / "a.tif") == (0.25, "ImageJ description")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
def test_density_of_a_plain_image_counts_where_a_slide_can_have_it(tmp_path, suffix):
    for side, dpi, mpp in (("a", (50_800, 50_800), 0.5), ("b", (96, 72), None), ("c", (300, 300), None)):
        path = tmp_path / f"{side}.{suffix}"
        Image.fromarray(np.full((32, 32, 3), 200, np.uint8)).save(path, dpi=dpi)
        slide = open_slide(path)
        assert slide.header_problem == ""
        assert slide.header_mpp == (None if mpp is None else pytest.approx(mpp, rel=1e-4))
    Image.fromarray(np.full((32, 32, 3), 200, np.uint8)).save(path, dpi=(50_800, 25_400))
    with pytest.raises(SlideError, match="not square"):
        open_slide(path)
