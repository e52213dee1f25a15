"""Files of images and masks: the pixels that were meant, or a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from kdml_med.colonoscopy.boxes import FrameError, boxes_of_mask
from kdml_med.colonoscopy.images import read_image, read_mask
from tests.colonoscopy.pictures import frame, save, save_mask
from tests.examples import examples

WIDTH, HEIGHT = 200, 160


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".jpg"])
def test_common_formats_are_read(tmp_path, suffix):
    picture = frame()
    path = save(tmp_path / f"a{suffix}", picture)
    read = read_image(path)
    assert (read.shape, read.dtype) == (picture.shape, np.uint8)
    if suffix != ".jpg":
        np.testing.assert_array_equal(read, picture)


def test_unusable_images_are_named_by_their_fault(tmp_path):
    good = save(tmp_path / "good.jpg").read_bytes()
    sixteen, turned, pages = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(sixteen, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 8)).save(turned, "JPEG", exif=exif)
    Image.new("RGB", (8, 8)).save(pages, "TIFF", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    cases = {
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"hello", "not a JPEG"),
        "cut.jpg": (good[: len(good) // 2], "truncated"),
        "sixteen.png": (sixteen.getvalue(), "8 bits"),
        "turned.jpg": (turned.getvalue(), "EXIF"),
        "pages.tif": (pages.getvalue(), "2 pages"),
    }
    for name, (data, reason) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(FrameError, match=reason):
            read_image(tmp_path / name)
    with pytest.raises(FrameError, match="cannot be read"):
        read_image(tmp_path / "absent.jpg")


@pytest.mark.parametrize("orientation", range(9))
def test_a_picture_that_exif_does_not_turn_is_read(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    Image.new("RGB", (8, 6)).save(path, exif=exif)
    if orientation > 1:
        with pytest.raises(FrameError, match="EXIF data turn it"):
            read_image(path)
    else:  # 0 says nothing
        assert read_image(path).shape == (6, 8, 3)


def png_of_16_bits(levels):
    """A PNG of 16 bits per channel, which Pillow cannot write in colour; levels are [height, width, 3]."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = levels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff_of_16_bits(levels):
    """The smallest TIFF of 16 bits per channel."""
    height, width, _ = levels.shape
    pixels, at = levels.astype("<u2").tobytes(), 8
    bits = at + len(pixels)
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, bits), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, at), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, len(pixels))]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", bits + 6) + pixels + struct.pack("<HHH", 16, 16, 16) + directory


@pytest.mark.parametrize("scale", [1, 16, 257])
@pytest.mark.parametrize("write", [png_of_16_bits, tiff_of_16_bits])
def test_sixteen_bits_in_colour_are_refused_in_images_and_masks(tmp_path, write, scale):
    path = tmp_path / "deep.img"
    path.write_bytes(write(frame(40, 30, (5, 5, 35, 25), cut=3).astype(np.uint16) * scale))
    with pytest.raises(FrameError, match="16 bits per channel"):
        read_image(path)
    with pytest.raises(FrameError, match="16 bits per channel"):
        read_mask(path)


KINDS_OF_JPEG = [{}, {"optimize": True}, {"progressive": True}, {"keep_rgb": True}]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("how", KINDS_OF_JPEG)
def test_whole_jpegs_of_every_kind_are_read_also_flat_ones(tmp_path, mode, how):
    for picture in (frame(), np.zeros((160, 200, 3), np.uint8), np.full((160, 200, 3), 128, np.uint8)):
        Image.fromarray(picture).convert(mode).save(tmp_path / "a.jpg", **how)
        assert read_image(tmp_path / "a.jpg").shape == (160, 200, 3)


@settings(max_examples=examples(15))
@given(st.integers(0, 10**6), st.integers(40, 600), st.sampled_from(KINDS_OF_JPEG[:2]), st.sampled_from(["RGB", "L"]))
def test_a_jpeg_with_a_run_of_zeros_is_refused(tmp_path_factory, place, length, how, mode):
    path = tmp_path_factory.mktemp("jpeg") / "a.jpg"
    Image.fromarray(frame(seed=1)).convert(mode).save(path, quality=90, **how)
    data = bytearray(path.read_bytes())
    start = data.index(b"\xff\xda") + 20
    at = start + place % (len(data) - 4 - length - start)
    data[at : at + length] = bytes(length)
    path.write_bytes(data)
    with pytest.raises(FrameError, match="damaged"):
        read_image(path)


def test_a_png_with_a_wrong_checksum_is_refused(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(frame()).save(path, compress_level=0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF  # stored without compression: one grey level is another, and nothing else
    path.write_bytes(data)
    with pytest.raises(FrameError, match="cannot be read"):
        read_image(path)


def test_transparent_parts_are_refused_and_opaque_pictures_are_not(tmp_path):
    picture = np.dstack([frame(), np.full((160, 200), 255, np.uint8)])
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", picture)), frame())
    picture[:9, :9, 3] = 0
    with pytest.raises(FrameError, match="transparent"):
        read_image(save(tmp_path / "b.png", picture))


def _plain(mask, levels, mode="L", **how):
    image = Image.fromarray(np.where(mask, np.uint8(levels[1]), np.uint8(levels[0]))).convert(mode)
    return image, how


def _palette(mask, colours, values=(0, 1), **how):
    image = Image.fromarray(np.where(mask, np.uint8(values[1]), np.uint8(values[0])), "L")
    image = Image.frombytes("P", image.size, image.tobytes())
    table = [0] * 768
    for value, colour in zip(values, colours, strict=True):
        table[3 * value : 3 * value + 3] = colour
    image.putpalette(table)
    return image, how


def _alpha(mask, colour=(255, 255, 255), levels=(0, 255)):
    alpha = np.where(mask, np.uint8(levels[1]), np.uint8(levels[0]))
    return Image.fromarray(np.dstack([np.broadcast_to(np.uint8(colour), (*mask.shape, 3)), alpha])), {}


def _void(mask):
    rim = np.zeros(mask.shape, bool)
    rows, columns = np.where(mask)
    rim[max(0, rows.min() - 2) : rows.max() + 3, max(0, columns.min() - 2) : columns.max() + 3] = True
    image, how = _palette(mask, ((0, 0, 0), (128, 0, 0)))
    image.putpalette([*image.getpalette()[:765], 224, 224, 192])
    values = np.array(image)
    values[rim & ~mask] = 255
    table = image.getpalette()
    image = Image.frombytes("P", image.size, values.tobytes())
    image.putpalette(table)
    return image, how


def _rimmed(mask):
    picture = np.uint8(mask) * 255
    picture[0] = picture[-1] = picture[:, 0] = picture[:, -1] = 255
    return Image.fromarray(picture), {}


def _labels(mask, low=1, high=2):
    picture = np.uint8(mask) * np.uint8(low)
    right = np.arange(mask.shape[1]) >= np.where(mask.any(axis=0))[0].mean()
    picture[mask & right] = high
    return Image.fromarray(picture), {}


def _wide(mask):
    return Image.fromarray(mask.astype(np.uint16)), {}


READ = {
    "white on black": lambda mask: _plain(mask, (0, 255)),
    "one bit": lambda mask: _plain(mask, (0, 255), "1"),
    "1 on 0": lambda mask: _plain(mask, (0, 1)),
    "128 on 0": lambda mask: _plain(mask, (0, 128)),
    "1 on 0 in colour": lambda mask: _plain(mask, (0, 1), "RGB"),
    "palette": lambda mask: _palette(mask, ((0, 0, 0), (128, 0, 0))),
    "palette that counts backwards": lambda mask: _palette(mask, ((0, 0, 0), (255, 255, 255)), (1, 0)),
    "palette of 1 on 0": lambda mask: _palette(mask, ((0, 0, 0), (1, 1, 1))),
    "background of a palette transparent": lambda mask: _palette(mask, ((9, 9, 9), (0, 200, 0)), transparency=0),
    "transparency alone": _alpha,
    "transparency of black": lambda mask: _alpha(mask, (0, 0, 0)),
    "half transparent": lambda mask: _alpha(mask, (255, 0, 0), (0, 128)),
    "VOC with its rim": _void,
}
REFUSED = {
    "inverted": lambda mask: _plain(mask, (255, 0)),
    "0 on 1": lambda mask: _plain(mask, (1, 0)),
    "inverted palette": lambda mask: _palette(mask, ((255, 255, 255), (0, 0, 0))),
    "inverted transparency": lambda mask: _alpha(~mask),
    "palette of one colour": lambda mask: _palette(mask, ((0, 0, 0), (0, 0, 0))),
    "white rim": _rimmed,
    "labels 1 and 2": _labels,
    "labels 1 and 255": lambda mask: _labels(mask, 1, 255),
    "labels 200 and 255": lambda mask: _labels(mask, 200, 255),
    "labels 250 and 255": lambda mask: _labels(mask, 250, 255),
    "labels 128 and 255": lambda mask: _labels(mask, 128, 255),
    "16 bits": _wide,
    "grey": lambda mask: _plain(mask, (0, 60)),
    "two colours": lambda mask: (
        Image.fromarray(np.where(mask[:, :, None], np.uint8((0, 0, 255)), np.uint8((255, 0, 0)))),
        {},
    ),
    "dithered": lambda mask: (Image.fromarray(np.uint8(mask) * 70 + 30).convert("1"), {}),
    "all transparent": lambda mask: _alpha(np.zeros_like(mask)),
}


@st.composite
def places(draw):
    """A box that is well inside of the picture or touches one edge, and large enough to survive JPEG."""
    width, height = draw(st.integers(16, 100)), draw(st.integers(16, 90))
    x, y = draw(st.integers(0, WIDTH - width)), draw(st.integers(0, HEIGHT - height))
    return x, y, x + width, y + height


def _mask(place):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    xmin, ymin, xmax, ymax = place
    mask[ymin:ymax, xmin:xmax] = True
    return mask


@pytest.mark.parametrize("kind", READ)
@settings(max_examples=examples(6))
@given(place=places())
def test_masks_of_every_usual_kind_give_the_box(tmp_path_factory, kind, place):
    image, how = READ[kind](_mask(place))
    path = tmp_path_factory.mktemp("mask") / "m.png"
    image.save(path, **how)
    assert boxes_of_mask(read_mask(path)) == (place,)


@pytest.mark.parametrize("kind", REFUSED)
@settings(max_examples=examples(6))
@given(place=places())
def test_masks_that_would_be_a_guess_are_refused(tmp_path_factory, kind, place):
    place = (min(place[0], 80), *place[1:2], max(place[2], 120), place[3])  # so that two labels share it
    image, how = REFUSED[kind](_mask(place))
    path = tmp_path_factory.mktemp("mask") / "m.png"
    image.save(path, **how)
    with pytest.raises(FrameError, match=r"its mask m\.png: .*(expected|convert)"):
        read_mask(path)


@pytest.mark.parametrize(
    "kind", ["white on black", "128 on 0", "1 on 0", "inverted", "white rim", "labels 1 and 2", "palette"]
)
@settings(max_examples=examples(6))
@given(place=places(), quality=st.sampled_from([30, 75, 95]))
@example(place=(0, 0, 26, 16), quality=30)  # noise of few levels
def test_a_mask_as_jpeg_gives_the_box_to_a_pixel_or_is_refused_and_is_never_empty(
    tmp_path_factory, kind, place, quality
):
    image, _ = {**READ, **REFUSED}[kind](_mask(place))
    path = tmp_path_factory.mktemp("mask") / "m.jpg"
    image.convert("RGB").save(path, quality=quality)
    try:
        (box,) = boxes_of_mask(read_mask(path))
    except FrameError:
        assert kind not in ("white on black", "128 on 0")
        return
    np.testing.assert_allclose(box, place, atol=1)


def test_black_masks_are_empty_unless_their_encoding_may_have_emptied_them(tmp_path):
    black = np.zeros((40, 40), np.uint8)
    assert not read_mask(save(tmp_path / "a.png", black)).any()
    assert not read_mask(save(tmp_path / "a.jpg", black)).any()
    Image.fromarray(black).save(tmp_path / "coarse.jpg", quality=30)
    with pytest.raises(FrameError, match="in which polyps may be lost"):
        read_mask(tmp_path / "coarse.jpg")
    with pytest.raises(FrameError, match="in which polyps may be lost"):
        read_mask(save(tmp_path / "noisy.jpg", np.full((40, 40, 3), 2, np.uint8)))


def test_smooth_edges_do_not_matter(tmp_path):
    mask = Image.fromarray(np.uint8(_mask((41, 30, 101, 80))) * 255)
    for size in ((80, 64), (500, 400)):
        path = tmp_path / "m.png"
        mask.resize(size, Image.Resampling.BICUBIC).save(path)
        (box,) = boxes_of_mask(read_mask(path))
        scale = size[0] / WIDTH
        np.testing.assert_allclose(box, [41 * scale, 30 * scale, 101 * scale, 80 * scale], atol=1)


def test_a_box_that_is_nearly_the_picture_or_a_ring_around_it_is_refused(tmp_path):
    for name, boxes in (("whole", [(1, 1, 199, 159)]), ("side", [(0, 0, 3, 160), (50, 50, 80, 80)])):
        with pytest.raises(FrameError, match="inverted or have a white rim"):
            read_mask(save_mask(tmp_path / f"{name}.png", boxes))
    field = np.uint8(_mask((10, 10, 180, 150))) * 255
    field[40:80, 60:110] = 0  # a black polyp on a white field in a black border
    rim = np.uint8(_mask((10, 10, 190, 150)) ^ _mask((12, 12, 188, 148)) | _mask((50, 50, 90, 90))) * 255
    for name, picture in (("field", field), ("rim", rim)):
        with pytest.raises(FrameError, match="holes"):
            read_mask(save(tmp_path / f"{name}.png", picture))


@pytest.mark.parametrize("low", [2, 20, 60, 100, 200, 240])
@pytest.mark.parametrize("quality", [50, 75, 95])
def test_labels_are_refused_in_a_jpeg_too(tmp_path, low, quality):
    image, _ = _labels(_mask((20, 20, 100, 70)), low, 255)
    image.convert("RGB").save(tmp_path / "m.jpg", quality=quality, subsampling=2)
    with pytest.raises(FrameError, match=r"it has (areas of grey|the levels)"):
        read_mask(tmp_path / "m.jpg")
