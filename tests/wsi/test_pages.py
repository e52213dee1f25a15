"""Which image of a file is the slide, and what a file must hold to be one."""

import itertools

import numpy as np
import pytest
import tifffile
from PIL import Image

from kdml_med.wsi.opening import open_slide
from kdml_med.wsi.options import TilingOptions
from kdml_med.wsi.scans import FieldSlide
from kdml_med.wsi.slide import SlideError
from kdml_med.wsi.tiff import is_reduction, jpeg_frame
from kdml_med.wsi.tiler import tile_slides
from tests.synthetic_slides import write_slide
from tests.wsi.test_tiler import contents
from tests.wsi.vendor_slides import CM, TILED, change_tag, jpeg, picture, write_tiff

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ROWS, TILE_WIDTH = 256, 257, 258, 259, 262, 278, 322


def reduced(pixels, factor):
    return np.ascontiguousarray(np.asarray(Image.fromarray(pixels).reduce(factor)))


@pytest.fixture(scope="module")
def scene():
    full = picture(1024)
    return full, reduced(full, 2), reduced(full, 4)


@pytest.fixture(scope="module")
def other():
    return picture(1024, seed=9)


def opened(path):
    slide = open_slide(path)
    slide.close()
    return slide


def whole(path):
    slide = open_slide(path)
    level = slide.levels[0]
    pixels = slide.read(0, 1, 0, 0, level.width, level.height)
    slide.close()
    return pixels


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flags", ["right", "none"])
@pytest.mark.parametrize("strips", ["none", "first", "last"])
def test_largest_image_is_level_0_whatever_the_order_of_pages(tmp_path, scene, order, flags, strips):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for place, index in enumerate(order):
            kind = {"subfiletype": int(index > 0)} if flags == "right" else {}
            striped = {"first": 0, "last": 2}.get(strips) == place
            density = 40_000 / 2**index
            options = {**TILED, **CM, "resolution": (density, density), **({"tile": None} if striped else {})}
            tiff.write(scene[index], **options, **kind)
    slide = opened(tmp_path / "a.tif")
    assert (slide.levels[0].width, slide.levels[0].downsample) == (1024, 1)
    assert slide.header_mpp == pytest.approx(0.25)
    assert slide.left_out == ""
    assert all(level.downsample in (1, 2, 4) for level in slide.levels)
    np.testing.assert_array_equal(whole(tmp_path / "a.tif"), scene[0])


def test_pages_below_a_thumbnail_are_found(tmp_path, scene):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(reduced(scene[0], 8), **{**TILED, "tile": None}, description="thumbnail", subifds=1)
        tiff.write(scene[0], **TILED, **CM)
    np.testing.assert_array_equal(whole(tmp_path / "a.tif"), scene[0])


@pytest.mark.parametrize("kind", ["same size", "larger", "exactly half", "another shape", "not coloured"])
@pytest.mark.parametrize("tile", [(256, 256), None])
def test_image_that_is_no_copy_of_the_slide_is_left_out_and_named(tmp_path, scene, other, kind, tile):
    second = {
        "same size": other,
        "larger": np.tile(other, (2, 2, 1)),
        "exactly half": reduced(other, 2),
        "another shape": np.ascontiguousarray(other[:300]),
        "not coloured": np.ascontiguousarray(other[..., 0]),
    }[kind]
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for pixels in (scene[0], second):
            photometric = "rgb" if pixels.ndim == 3 else "minisblack"
            tiff.write(pixels, **{**TILED, **CM, "tile": tile, "photometric": photometric})
    slide = opened(tmp_path / "a.tif")
    lost = scene[0] if kind == "larger" else second
    page = 0 if kind == "larger" else 1
    assert f"page {page}: {lost.shape[1]} × {lost.shape[0]} px" in slide.left_out
    assert [level.downsample for level in slide.levels] == [1]
    np.testing.assert_array_equal(whole(tmp_path / "a.tif"), second if kind == "larger" else scene[0])
    report = tile_slides([tmp_path / "a.tif"], tmp_path / "out", TilingOptions(tile_size_px=112), progress=False)
    assert report.done == 1
    assert "left out" in report.failures[0][1]
    before = contents(tmp_path / "out")
    again = tile_slides([tmp_path / "a.tif"], tmp_path / "out", TilingOptions(tile_size_px=112), progress=False)
    assert (again.skipped, again.failures, contents(tmp_path / "out")) == (1, report.failures, before)


@pytest.mark.parametrize("kind", ["scene of the same size", "scene of half the size", "cropped"])
def test_pyramid_of_a_vendor_with_a_level_that_shows_something_else(tmp_path, scene, other, kind):
    level = {
        "scene of the same size": other,
        "scene of half the size": reduced(other, 2),
        "cropped": np.ascontiguousarray(scene[1][:400]),
    }[kind]
    head = "Aperio Synthetic v1.0\r\n1024x1024 [0,0 1024x1024] (256x256)|MPP = 0.25"
    with tifffile.TiffWriter(tmp_path / "a.svs") as tiff:
        for pixels in (scene[0], level, scene[2]):
            tiff.write(pixels, **TILED, compression="jpeg", description=head)
    slide = opened(tmp_path / "a.svs")
    assert [level.downsample for level in slide.levels] == [1, 4]
    assert f"page 1: {level.shape[1]} × {level.shape[0]} px" in slide.left_out


def test_what_vendors_put_beside_a_slide_is_no_loss(tmp_path, scene, other):
    write_slide(tmp_path / "a.svs", picture=scene[0])
    assert opened(tmp_path / "a.svs").left_out == ""
    with tifffile.TiffWriter(tmp_path / "b.tif") as tiff:
        tiff.write(scene[0], **TILED, **CM)
        for number, name in enumerate(("label", "Macro image", "thumbnail", "<ImageType>Overview</ImageType>")):
            tiff.write(np.ascontiguousarray(other[: 100 + number]), photometric="rgb", description=name, metadata=None)
        tiff.write(np.ascontiguousarray(other[..., 0]) > 99, photometric="mask", subfiletype=4, metadata=None)
    assert opened(tmp_path / "b.tif").left_out == ""


@pytest.mark.parametrize(("name", "words"), [("label image", ""), ("scan 2", "page 1: 300 × 300 px")])
def test_images_of_an_ome_tiff_go_by_their_names(tmp_path, scene, other, name, words):
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as tiff:
        size = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25, "axes": "YXS"}
        tiff.write(scene[0], photometric="rgb", tile=(256, 256), subifds=1, metadata={**size, "Name": "scan 1"})
        tiff.write(scene[1], photometric="rgb", tile=(256, 256), subfiletype=1)
        tiff.write(np.ascontiguousarray(other[:300, :300]), photometric="rgb", metadata={**size, "Name": name})
    slide = opened(tmp_path / "a.ome.tif")
    assert (slide.header_mpp, slide.header_source) == (0.25, "OME-XML")
    assert words in slide.left_out
    assert bool(words) == bool(slide.left_out)
    np.testing.assert_array_equal(whole(tmp_path / "a.ome.tif"), scene[0])


@pytest.mark.parametrize("text", ["Overview of a biopsy", "label: CRC", "exported without its macro"])
@pytest.mark.parametrize("everywhere", [False, True])
def test_word_in_the_description_of_a_slide_does_not_make_it_a_label(tmp_path, scene, text, everywhere):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for place, pixels in enumerate(scene):
            tiff.write(pixels, **TILED, **CM, description=text if everywhere or place == 0 else None)
    np.testing.assert_array_equal(whole(tmp_path / "a.tif"), scene[0])
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as tiff:
        for pixels, name in ((scene[0], text), (scene[2], "scan 2")):
            tiff.write(pixels, photometric="rgb", tile=(256, 256), metadata={"Name": name, "axes": "YXS"})
    np.testing.assert_array_equal(whole(tmp_path / "a.ome.tif"), scene[0])


def test_macro_picture_larger_than_a_small_slide_is_not_the_slide(tmp_path, scene, other):
    with tifffile.TiffWriter(tmp_path / "a.svs") as tiff:
        tiff.write(scene[1], **TILED, compression="jpeg", description="Aperio Synthetic v1.0\r\n512x512|MPP = 0.25")
        tiff.write(other, photometric="rgb", description="Aperio Synthetic v1.0\r\nmacro 1024x1024", metadata=None)
    with tifffile.TiffWriter(tmp_path / "b.tif") as tiff:
        tiff.write(scene[1], **TILED, **CM)
        tiff.write(other, photometric="rgb", description="macro", metadata=None)
    for name in ("a.svs", "b.tif"):
        slide = opened(tmp_path / name)
        assert (slide.levels[0].width, slide.left_out) == (512, "")


def test_coloured_page_is_the_slide_before_a_mask_of_its_size_but_not_below_a_larger_one(tmp_path, scene):
    grey = np.ascontiguousarray(scene[0][..., 0])
    for name, colour in (("same.tif", scene[0]), ("smaller.tif", scene[1])):
        with tifffile.TiffWriter(tmp_path / name) as tiff:
            tiff.write(grey, **{**TILED, **CM, "photometric": "minisblack"})
            tiff.write(colour, **TILED, **CM)
    np.testing.assert_array_equal(whole(tmp_path / "same.tif"), scene[0])
    with pytest.raises(SlideError, match="is greyscale"):
        opened(tmp_path / "smaller.tif")


def test_wider_page_of_a_smaller_area_is_not_the_slide(tmp_path, scene, other):
    wide = np.ascontiguousarray(np.tile(other, (1, 2, 1))[:200])
    write_tiff(tmp_path / "a.tif", scene[0], wide, flags=(0, 1))
    np.testing.assert_array_equal(whole(tmp_path / "a.tif"), scene[0])
    assert "page 1: 2048 × 200 px" in opened(tmp_path / "a.tif").left_out


@pytest.mark.parametrize(("fast", "downsamples"), [(True, [1, 2]), (False, [1])])
def test_of_two_pages_of_one_size_only_the_one_that_shows_the_slide_is_read(tmp_path, scene, other, fast, downsamples):
    """OpenSlide does not say which of the two it reads, so that through it neither is."""
    write_tiff(tmp_path / "a.tif", scene[0], reduced(other, 2), scene[1], flags=(0, 1, 1))
    slide = open_slide(tmp_path / "a.tif", fast=fast)
    assert [level.downsample for level in slide.levels] == downsamples
    assert "page 1: 512 × 512 px" in slide.left_out
    if fast:
        np.testing.assert_array_equal(slide.read(1, 1, 0, 0, 512, 512), scene[1])
    slide.close()


def test_pages_are_read_as_openslide_reads_them(tmp_path, scene):
    """The same picture as level 0 of a file that OpenSlide takes, and behind a small page, where it does not."""
    for options in (
        {"compression": "deflate", "predictor": True},
        {"compression": "jpeg", "compressionargs": {"level": 95}},
        {"compression": "zstd", "bigtiff": True},
        {"planarconfig": "separate"},
        {"tile": (128, 64)},
    ):
        big = options.pop("bigtiff", False)
        planes = np.ascontiguousarray(np.moveaxis(scene[0], 2, 0)) if "planarconfig" in options else scene[0]
        for name in ("direct", "behind"):
            with tifffile.TiffWriter(tmp_path / f"{name}.tif", bigtiff=big) as tiff:
                if name == "behind":
                    tiff.write(scene[2], **TILED, **CM)
                tiff.write(planes, **{**TILED, **CM, **options})
        pair = [whole(tmp_path / f"{name}.tif").astype(int) for name in ("direct", "behind")]
        assert np.abs(pair[0] - pair[1]).max() <= 3
        assert np.abs(pair[1] - scene[0]).mean() < 3


@pytest.mark.parametrize("alpha", ["unassalpha", "assocalpha"])
def test_transparency_of_pages_becomes_white(tmp_path, scene, alpha):
    clear = np.full(scene[0].shape[:2], 255, np.uint8)
    clear[:400] = 0
    colours = scene[0] * (clear[..., None] > 0) if alpha == "assocalpha" else scene[0]
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(scene[2], **TILED, **CM)
        tiff.write(np.dstack([colours, clear]), **TILED, **CM, extrasamples=alpha)
    shown = whole(tmp_path / "a.tif")
    assert (shown[:400] == 255).all()
    np.testing.assert_array_equal(shown[400:], scene[0][400:])


def test_pages_with_damage_lose_only_what_is_damaged(tmp_path, scene):
    write_tiff(tmp_path / "a.tif", scene[2], scene[0], compression="deflate")
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        offset, count = tiff.pages[1].dataoffsets[5], tiff.pages[1].databytecounts[5]
    with (tmp_path / "a.tif").open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\xff" * count)
    slide = open_slide(tmp_path / "a.tif")
    with pytest.raises(SlideError, match="cannot be decoded"):
        slide.read(0, 1, 300, 300, 50, 50)
    np.testing.assert_array_equal(slide.read(0, 1, 600, 600, 50, 50), scene[0][600:650, 600:650])
    slide.close()


def alter(path, options, changes, pixels):
    write_tiff(path, pixels, **options)
    for code, value in changes.items():
        change_tag(path, code, value, dtype=4)


@pytest.mark.parametrize(
    ("options", "changes", "words"),
    [
        ({}, {WIDTH: 10**9, HEIGHT: 10**9}, "takes .* tiles or strips, and lists 16"),
        ({}, {HEIGHT: 1100}, "takes 20 tiles or strips, and lists 16"),
        ({"tile": None, "rowsperstrip": 64}, {HEIGHT: 1100}, "takes 18 tiles or strips, and lists 16"),
        ({"tile": None, "rowsperstrip": 1024}, {ROWS: 10**9, HEIGHT: 10**9}, "pieces of 1024 × 1000000000"),
        ({"tile": None, "rowsperstrip": 1024}, {ROWS: 1100, HEIGHT: 1100}, "holds only .* bytes of pixels"),
        ({"compression": "deflate"}, {TILE_WIDTH: 10**9}, "which no reader can take"),
        ({"compression": "jpeg"}, {TILE_WIDTH: 512, 323: 512}, "JPEG tiles of 256 × 256 px, its tags say 512 × 512"),
    ],
)
def test_size_that_the_data_do_not_bear_out_is_refused(tmp_path, scene, options, changes, words):
    alter(tmp_path / "a.tif", options, changes, scene[0])
    with pytest.raises(SlideError, match=words):
        opened(tmp_path / "a.tif")


@pytest.mark.parametrize("tile", [(256, 256), None])
def test_copy_that_was_cut_off_is_refused(tmp_path, scene, tile):
    options = {"tile": tile, "rowsperstrip": 64} if tile is None else {"tile": tile}
    write_tiff(tmp_path / "a.tif", scene[0], compression="deflate", **options)
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(data[: len(data) * 3 // 4])
    with pytest.raises(SlideError, match=r"is incomplete: .*copy it again"):
        opened(tmp_path / "a.tif")


def test_level_that_was_cut_off_is_refused(tmp_path, scene):
    write_tiff(tmp_path / "a.tif", *scene, flags=(0, 1, 1), compression="deflate")
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        tag = tiff.pages[1].tags[325]
        counts = list(tag.value)
    change_tag(tmp_path / "a.tif", 325, [10**9, *counts[1:]], page=1)
    with pytest.raises(SlideError, match="is incomplete"):
        opened(tmp_path / "a.tif")


@pytest.mark.parametrize("code", [WIDTH, HEIGHT])
def test_page_that_lost_its_size_is_not_passed_over(tmp_path, scene, code):
    write_tiff(tmp_path / "a.tif", scene[0], scene[1], flags=(0, 1))
    change_tag(tmp_path / "a.tif", code, None)
    with pytest.raises(SlideError, match="page 0 has no size"):
        opened(tmp_path / "a.tif")


def test_pages_that_lead_back_to_the_first_are_no_endless_list(tmp_path, scene):
    write_tiff(tmp_path / "a.tif", scene[0])
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        page = tiff.pages[0]
        start, link = page.offset, page.offset + 2 + 12 * len(page.tags)
    with (tmp_path / "a.tif").open("r+b") as stream:
        stream.seek(link)
        stream.write(start.to_bytes(4, "little"))
    with pytest.raises(SlideError, match="leads back"):
        opened(tmp_path / "a.tif")


@pytest.mark.parametrize("bigtiff", [False, True])
def test_list_of_pages_that_breaks_off_before_the_largest_is_refused(tmp_path, scene, bigtiff):
    write_tiff(tmp_path / "a.tif", *scene[::-1], bigtiff=bigtiff)
    data = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        page, form = tiff.pages[1], tiff.tiff
        link = page.offset + form.tagnosize + form.tagsize * len(page.tags)
        data[link : link + form.offsetsize] = (len(data) + 9).to_bytes(form.offsetsize, "little")
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(SlideError, match="leads beyond its end"):
        opened(tmp_path / "a.tif")


def test_pages_below_that_are_cut_off_are_not_passed_over(tmp_path, scene):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(scene[2], **TILED, **CM, subifds=1)
        tiff.write(scene[0], **TILED, **CM)
    change_tag(tmp_path / "a.tif", 330, 2**31)
    with pytest.raises(SlideError, match="below page 0 lie beyond its end"):
        opened(tmp_path / "a.tif")


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("tile", [(256, 256), None])
def test_slide_that_is_to_be_shown_turned_is_read_as_it_is_stored(tmp_path, scene, orientation, tile):
    pixels = np.ascontiguousarray(scene[0][:700])
    write_tiff(tmp_path / "a.tif", pixels, tile=tile, extratags=[(274, "H", 1, orientation, True)])
    np.testing.assert_array_equal(whole(tmp_path / "a.tif"), pixels)


@pytest.mark.parametrize("compression", ["jpeg2000", "aperio_jp2000_rgb", "webp", "jpegxl"])
@pytest.mark.parametrize("tile", [(256, 256), None])
def test_compressions_that_openslide_does_not_know_are_read(tmp_path, scene, compression, tile):
    write_tiff(tmp_path / "a.tif", scene[1], tile=tile, compression=compression)
    np.testing.assert_array_equal(whole(tmp_path / "a.tif"), scene[1])


@pytest.mark.parametrize("compression", [None, "lzw", "aperio_jp2000_ycbc"])
def test_page_whose_decoder_would_leave_ycbcr_is_refused(tmp_path, scene, compression):
    write_tiff(tmp_path / "a.tif", scene[2], scene[0], compression=compression)
    if compression != "aperio_jp2000_ycbc":
        change_tag(tmp_path / "a.tif", PHOTOMETRIC, 6, page=1)
    with pytest.raises(SlideError, match="has YCbCr samples"):
        opened(tmp_path / "a.tif")


def test_tiles_that_were_never_written_stay_white(tmp_path, scene):
    write_tiff(tmp_path / "a.tif", scene[0], compression="deflate")
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        counts = list(tiff.pages[0].tags[325].value)
    change_tag(tmp_path / "a.tif", 325, [0, *counts[1:]])
    assert opened(tmp_path / "a.tif").levels[0].width == 1024


@pytest.mark.parametrize("tile", [(256, 256), None])
@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (lambda a: a[..., 1], {"photometric": "minisblack"}, "is greyscale"),
        (lambda a: a[..., 1], {"photometric": "miniswhite"}, "is greyscale"),
        (lambda a: a[..., 1].astype(np.uint16) * 16, {"photometric": "minisblack"}, "is greyscale .*16 bits"),
        (lambda a: a.astype(np.uint16) * 16, {}, "16-bit samples that reach about"),
        (lambda a: a.astype(np.uint16) * 4, {}, "16-bit samples that reach about"),
        (lambda a: a.astype(np.float32) / 255, {}, "samples of 32 bits that are not whole numbers"),
        (lambda a: np.dstack([a, a[..., 0]]), {"photometric": "separated"}, "CMYK"),
        (lambda a: np.dstack([a, 0 * a[..., 0]]), {"extrasamples": "unspecified"}, "fourth channel .* unspecified"),
        (lambda a: np.dstack([a, a]), {"extrasamples": ["unspecified"] * 3}, "has 6 channels"),
        (
            lambda a: a,
            {"photometric": "minisblack", "planarconfig": "contig"},
            "3 channels that are flagged as MINISBLACK",
        ),
        (lambda a: a, {"photometric": "cielab"}, "is CIELab"),
        (
            lambda a: a[..., 1] // 128,
            {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)},
            "is palette",
        ),
    ],
)
def test_channels_that_are_not_rgb_are_refused_by_name(tmp_path, scene, make, options, words, tile):
    write_tiff(tmp_path / "a.tif", np.ascontiguousarray(make(scene[0])), **{"tile": tile, **options})
    with pytest.raises(SlideError, match=words):
        opened(tmp_path / "a.tif")


@pytest.mark.parametrize("tile", [(256, 256), None])
def test_full_range_of_16_bits_is_read(tmp_path, scene, tile):
    write_tiff(tmp_path / "a.tif", scene[0].astype(np.uint16) * 257, tile=tile)
    assert np.abs(whole(tmp_path / "a.tif").astype(int) - scene[0]).max() <= 1


@pytest.mark.parametrize(
    ("mode", "words"), [("L", "greyscale"), ("LA", "greyscale"), ("P", "palette"), ("1", "black and")]
)
def test_plain_image_without_three_colours_is_refused_by_name(tmp_path, scene, mode, words):
    Image.fromarray(scene[2]).convert(mode).save(tmp_path / "a.png")
    with pytest.raises(SlideError, match=f"{words}.*expected 8-bit RGB"):
        FieldSlide(tmp_path / "a.png")


def test_shape_of_a_copy():
    assert is_reduction((2500, 1900), (312, 237))
    assert is_reduction((100_000, 80_001), (6250, 5000))
    assert not is_reduction((2500, 1900), (625, 400))
    assert not is_reduction((2500, 1900), (2600, 1900))
    assert is_reduction((2500, 1900), (632, 480), loose=True)


def test_size_that_a_jpeg_says_of_itself():
    assert jpeg_frame(jpeg(picture(64)[:40])) == (64, 40, 3)
    assert jpeg_frame(jpeg(picture(64), progressive=True)) == (64, 64, 3)
    filled = jpeg(picture(64)).replace(b"\xff\xc0", b"\xff\xff\xff\xc0")
    assert jpeg_frame(filled) == (64, 64, 3)
    assert jpeg_frame(b"\xff\xd8\xff") is None
    assert jpeg_frame(b"\xff\xd8" + b"\xff" * 100) is None
    assert jpeg_frame(b"no picture at all") is None
