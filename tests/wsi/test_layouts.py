"""Slides by how their tiles are stored: the fast reader against OpenSlide, or tifffile where that reads none."""

import struct
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import imagecodecs
import numpy as np
import pytest
import simplejpeg
import tifffile
from PIL import Image

from kdml_med.storage.manifest import read_manifest
from kdml_med.wsi import codecs, native
from kdml_med.wsi.native import NativeSlide
from kdml_med.wsi.opening import open_slide
from kdml_med.wsi.options import TilingOptions
from kdml_med.wsi.scans import OpenSlideSlide
from kdml_med.wsi.slide import SlideError
from kdml_med.wsi.tiler import tile_slides
from tests.synthetic_slides import LAYOUTS, damage_native_tile, tissue_picture, write_layout
from tests.wsi.test_jpeg2000 import SUBSAMPLED
from tests.wsi.test_tiler import stored
from tests.wsi.vendor_slides import change_tag

WIDTH, HEIGHT, TILE = 520, 408, 128  # no whole number of tiles
FOR_TIFFFILE = ("JPEG 2000 in plain TIFF", "WebP", "JPEG XL")
CHECKED = [name for name in LAYOUTS if name != "uncompressed"]  # damage can be seen there
COUNTS = 325

# Grey levels, mean and largest, that a reduced tile may lie from the mean over squares of its pixels.
OF_COEFFICIENTS = {"JPEG RGB": (0.1, 2), "JPEG YCbCr": (2.4, 30), "SubIFDs, JPEG": (0.5, 16), "JPEG 2000": (0.7, 33)}
OF_PIXELS = (0.5, 1)


@pytest.fixture(scope="module")
def picture():
    return tissue_picture(WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def files(tmp_path_factory, picture):
    folder = tmp_path_factory.mktemp("layouts")
    found = {}
    for number, layout in enumerate(LAYOUTS):
        found[layout] = folder / f"{number}.tif"
        write_layout(found[layout], layout, picture, native_tile_px=TILE)
    return found


def judge(path, layout):
    """Level 0 as another library reads it."""
    if layout in FOR_TIFFFILE:
        return tifffile.imread(path, key=0)
    slide = OpenSlideSlide(path)
    pixels = slide.read(0, 1, 0, 0, WIDTH, HEIGHT)
    slide.close()
    return pixels


def difference(first, second):
    distance = np.abs(first.astype(int) - second)
    return distance.mean(), distance.max()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tiles_of_any_layout_are_decoded_directly_to_what_others_read(files, picture, layout):
    slide = open_slide(files[layout])
    assert isinstance(slide, NativeSlide)
    assert [(level.width, level.height) for level in slide.levels] == [(WIDTH, HEIGHT), (WIDTH // 4, HEIGHT // 4)]
    assert (slide.header_mpp, slide.left_out) == (pytest.approx(0.25), "")
    shown = slide.read(0, 1, 0, 0, WIDTH, HEIGHT)
    mean, largest = difference(shown, judge(files[layout], layout))
    assert mean < 0.05
    assert largest <= 1
    assert difference(shown, picture)[0] < 3
    level = slide.read(1, 1, 0, 0, WIDTH // 4, HEIGHT // 4)
    assert difference(level, np.asarray(Image.fromarray(picture).reduce(4)))[0] < 3
    slide.close()


def test_level_that_looks_otherwise_through_openslide_is_left_to_it(files, monkeypatch):
    monkeypatch.setattr(codecs, "_JPEG2000_YCBCR", 0)  # so that nothing converts the colours
    assert isinstance(open_slide(files["JPEG 2000 YCbCr"]), OpenSlideSlide)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reduced_tiles_of_any_layout_are_close_to_means_over_their_pixels(files, layout):
    slide = open_slide(files[layout])
    full = Image.fromarray(slide.read(0, 1, 0, 0, WIDTH, HEIGHT))
    bounds = next((bounds for name, bounds in OF_COEFFICIENTS.items() if name in layout), OF_PIXELS)
    assert slide.factors(0) == (1, 2, 4, 8)
    for factor in (2, 4, 8):
        reduced = slide.read(0, factor, 0, 0, WIDTH // factor, HEIGHT // factor)
        mean, largest = difference(reduced, np.asarray(full.reduce(factor))[: HEIGHT // factor, : WIDTH // factor])
        assert mean <= bounds[0]
        assert largest <= bounds[1]
    slide.close()


@pytest.mark.parametrize("layout", ["JPEG 2000 RGB", "LZW, predictor", "OME-TIFF, SubIFDs, Deflate"])
def test_each_tile_is_decoded_once_for_requests_in_reading_order(files, layout, monkeypatch):
    slide, calls = open_slide(files[layout]), []

    def counted(file, index, number, factor):
        calls.append((number, factor))
        return decode(file, index, number, factor)

    decode = native.decode_tile
    monkeypatch.setattr(native, "decode_tile", counted)
    for y in (0, 45, 90, 135):
        for x in (0, 45, 90, 135, 180):
            slide.read(0, 2, x, y, 50, 50)
    assert sorted(calls) == [(row * 5 + column, 2) for row in range(3) for column in range(4)]
    slide.close()


@pytest.mark.parametrize("layout", CHECKED)
@pytest.mark.parametrize("factor", [1, 2])
def test_damaged_tile_of_any_layout_spoils_only_its_own_region(tmp_path, picture, layout, factor):
    write_layout(tmp_path / "a.tif", layout, picture, native_tile_px=TILE)
    damage_native_tile(tmp_path / "a.tif", 1 * 5 + 2)  # columns 256..383, rows 128..255
    slide = open_slide(tmp_path / "a.tif")
    whole = slide.read(0, factor, 0, 0, WIDTH // factor, TILE // factor)
    for _ in range(2):
        with pytest.raises(SlideError, match="cannot be decoded"):
            slide.read(0, factor, 300 // factor, 150 // factor, 20, 20)
        np.testing.assert_array_equal(slide.read(0, factor, 0, 0, WIDTH // factor, TILE // factor), whole)
        assert slide.read(0, factor, 150 // factor, 150 // factor, 20, 20).shape == (20, 20, 3)
    slide.close()


def larger_jpeg(tile, side):
    place = tile.index(b"\xff\xc0") + 5
    return tile[:place] + struct.pack(">2H", side, side) + tile[place + 4 :]


def larger_jpeg_2000(tile, side):
    place = tile.index(b"\xff\x4f\xff\x51") + 8
    return tile[:place] + struct.pack(">2I", side, side) + tile[place + 8 :]


def wide_jpeg_xl(_, side):
    return imagecodecs.jpegxl_encode(np.zeros((64, side, 3), np.uint8), lossless=False, effort=1)


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize(
    ("compression", "photometric", "enlarge"),
    [
        (7, "ycbcr", larger_jpeg),
        (34712, "rgb", larger_jpeg_2000),
        (33005, "rgb", larger_jpeg_2000),
        (50002, "rgb", wide_jpeg_xl),
    ],
)
def test_tile_that_says_it_is_huge_costs_no_memory(
    tmp_path, picture, monkeypatch, compression, photometric, enlarge, factor
):
    encode = {7: imagecodecs.jpeg_encode, 50002: imagecodecs.jpegxl_encode}.get(compression, imagecodecs.jpeg2k_encode)
    options = {"codecformat": "j2k", "level": 40} if encode is imagecodecs.jpeg2k_encode else {"level": 90}
    sound = encode(np.ascontiguousarray(picture[:128, :128]), **options)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(
            iter([sound, sound, sound, enlarge(sound, 20_000)]),
            shape=(256, 256, 3),
            dtype=np.uint8,
            tile=(128, 128),
            photometric=photometric,
            compression=compression,
            metadata=None,
        )
    slide = open_slide(tmp_path / "a.tif")
    assert slide.read(0, factor, 0, 0, 60, 60).shape == (60, 60, 3)
    decoded = []
    for library, name in ((simplejpeg, "decode_jpeg"), (imagecodecs, "jpeg2k_decode")):
        monkeypatch.setattr(library, name, lambda *args, **kwargs: decoded.append(args))
    tracemalloc.start()
    with pytest.raises(SlideError, match="cannot be decoded"):
        slide.read(0, factor, 130 // factor, 130 // factor, 20, 20)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert decoded == []
    slide.close()


@pytest.mark.parametrize("layout", ["JPEG RGB 4:4:4", "JPEG 2000 RGB", "LZW, predictor", "WebP", "Deflate, 16 bit"])
def test_clones_in_threads_read_what_one_reads(files, layout):
    slide = open_slide(files[layout])
    whole = slide.read(0, 1, 0, 0, WIDTH, HEIGHT)

    def read(_):
        clone = slide.clone()
        pixels = clone.read(0, 1, 0, 0, WIDTH, HEIGHT)
        clone.close()
        return pixels

    with ThreadPoolExecutor(8) as pool:
        for pixels in pool.map(read, range(24)):
            np.testing.assert_array_equal(pixels, whole)
    slide.close()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tile_that_was_never_written_shows_what_openslide_shows_there(tmp_path, picture, layout):
    path = tmp_path / "a.tif"
    write_layout(path, layout, picture, native_tile_px=TILE)
    with tifffile.TiffFile(path) as tiff:
        counts = list(tiff.pages[0].databytecounts)
    counts[1 * 5 + 2] = 0
    change_tag(path, COUNTS, counts)
    slide = open_slide(path)
    expected = np.full((100, 100, 3), 255, np.uint8)
    if layout not in FOR_TIFFFILE:
        expected = OpenSlideSlide(path).read(0, 1, 260, 150, 100, 100)
    np.testing.assert_array_equal(slide.read(0, 1, 260, 150, 100, 100), expected)
    reduced = np.asarray(Image.fromarray(expected).reduce(2))
    assert difference(slide.read(0, 2, 130, 75, 50, 50), reduced)[1] <= 1
    slide.close()


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("planarconfig", ["contig", "separate"])
@pytest.mark.parametrize(("tile", "compression"), [((128, 128), None), ((128, 128), "lzw"), (None, None)])
def test_16_bit_samples_with_transparency_are_read_whatever_their_order(
    tmp_path, picture, byteorder, planarconfig, tile, compression
):
    clear = np.full(picture.shape[:2], 255, np.uint8)
    clear[:100] = 0
    samples = np.dstack([picture, clear]).astype(np.uint16) * 257
    if planarconfig == "separate":
        samples = np.moveaxis(samples, 2, 0)
    with tifffile.TiffWriter(tmp_path / "a.tif", byteorder=byteorder) as tiff:
        options = {"photometric": "rgb", "metadata": None, "extrasamples": "unassalpha"}
        tiff.write(samples, tile=tile, compression=compression, planarconfig=planarconfig, **options)
    slide = open_slide(tmp_path / "a.tif")
    shown = slide.read(0, 1, 0, 0, WIDTH, HEIGHT)
    assert (shown[:100] == 255).all()
    np.testing.assert_array_equal(shown[100:], picture[100:])
    slide.close()


def test_colour_of_jpeg_2000_at_half_the_width_is_as_openslide_shows_it(tmp_path):
    options = {"photometric": "rgb", "tile": (64, 64), "compression": 33003, "metadata": None}
    with tifffile.TiffWriter(tmp_path / "a.svs") as tiff:
        tiff.write(
            iter([SUBSAMPLED] * 6),
            shape=(128, 192, 3),
            dtype=np.uint8,
            description="Aperio Synthetic v1.0\r\n192x128|MPP = 0.25",
            **options,
        )
    fast, slow = open_slide(tmp_path / "a.svs"), open_slide(tmp_path / "a.svs", fast=False)
    assert isinstance(fast, NativeSlide)
    shown = fast.read(0, 1, 0, 0, 192, 128)
    assert difference(shown, slow.read(0, 1, 0, 0, 192, 128))[1] <= 1
    halves = np.repeat([[200, 120, 170], [90, 60, 140]], 32, axis=0)
    assert difference(shown[:64, :64], np.broadcast_to(halves, (64, 64, 3)))[1] <= 4
    assert difference(fast.read(0, 2, 0, 0, 96, 64)[:32, :32], np.broadcast_to(halves[::2], (32, 32, 3)))[0] < 3
    for slide in (fast, slow):
        slide.close()


@pytest.mark.parametrize("layout", ["JPEG 2000 RGB", "JPEG RGB 4:4:4", "LZW, predictor", "OME-TIFF, SubIFDs, Deflate"])
def test_both_readers_cut_the_same_tiles(tmp_path, files, layout):
    datasets = []
    for reader in ("auto", "openslide"):
        options = TilingOptions(tile_size_px=32, image_format="png", reader=reader)
        report = tile_slides([files[layout]], tmp_path / reader, options, progress=False)
        assert report.failures == []
        datasets.append(read_manifest(tmp_path / reader))
    first, second = datasets
    assert len(first) > 20
    np.testing.assert_array_equal(first[["x_l0", "y_l0"]], second[["x_l0", "y_l0"]])
    for (_, fast), (_, slow) in zip(first.iterrows(), second.iterrows(), strict=True):
        assert difference(stored(tmp_path / "auto", fast), stored(tmp_path / "openslide", slow))[0] < 2
