import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kdml_med.colonoscopy.boxes import FrameError
from kdml_med.colonoscopy.frames import Placement, encode_image, load_frames, read_image, read_mask, resize_down
from kdml_med.colonoscopy.options import FrameOptions
from kdml_med.errors import InputError
from tests.colonoscopy.pictures import frame, save, save_mask, save_video


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


def test_masks_are_black_and_white_or_0_and_1(tmp_path):
    assert read_mask(save_mask(tmp_path / "a.png", [(3, 4, 20, 30)])).sum() == 17 * 26
    ones = np.zeros((20, 20), np.uint8)
    ones[5:7, 5:7] = 1
    assert read_mask(save(tmp_path / "b.png", np.dstack([ones] * 3))).sum() == 4
    noisy = np.full((40, 40, 3), 2, np.uint8)
    assert not read_mask(save(tmp_path / "c.jpg", noisy)).any()
    with pytest.raises(FrameError, match=r"d\.png has grey levels up to 60"):
        read_mask(save(tmp_path / "d.png", np.full((9, 9, 3), 60, np.uint8)))


@given(st.integers(1, 400), st.integers(1, 400), st.integers(32, 200))
def test_longest_side_is_brought_to_size_and_nothing_is_enlarged(width, height, size):
    resized = resize_down(np.zeros((height, width, 3), np.uint8), size)
    assert max(resized.shape[:2]) == min(size, max(width, height))
    assert resized.shape[1] == max(1, round(width * min(1, size / max(width, height))))


def test_resizing_smooths_instead_of_folding_detail():
    stripes = np.zeros((200, 200, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.ptp(resize_down(stripes, 64)[:, 4:-4].astype(int)) < 12


@given(st.integers(0, 50), st.integers(0, 50), st.floats(0.05, 1), st.lists(st.floats(0, 90), min_size=4, max_size=4))
def test_boxes_go_to_the_stored_frame_and_back(x, y, scale, edges):
    placement = Placement(x, y, scale, 10_000, 10_000)
    box = (x + edges[0], y + edges[1], x + edges[0] + edges[2], y + edges[1] + edges[3])
    np.testing.assert_allclose(placement.to_source(placement.to_stored([box])), [box], atol=1e-9)


def test_jpeg_keeps_colours_and_png_every_bit():
    picture = frame()
    png = Image.open(io.BytesIO(encode_image(picture, FrameOptions(image_format="png"))))
    np.testing.assert_array_equal(np.asarray(png), picture)
    jpeg = np.asarray(Image.open(io.BytesIO(encode_image(picture, FrameOptions())))).astype(int)
    assert np.abs(jpeg - picture).mean() < 3


def test_frames_are_loaded_as_they_are_stored(tmp_path):
    paths = [save(tmp_path / "a.png"), save_video(tmp_path / "b.mp4", frames=25)]
    loaded = list(load_frames(paths, FrameOptions(size_px=64, fps=5)))
    assert [item.frame_index for item in loaded] == [None, 0, 5, 10, 15, 20]
    assert loaded[0].frame.placement.crop_x == 30
    assert all(max(item.frame.pixels.shape) == 64 for item in loaded)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"size_px": 8}, "--size is 8"), ({"unlisted": "x"}, "--unlisted is 'x'"), ({"split": "dev"}, "--split is 'dev'")],
)
def test_wrong_options_are_explained(wrong, message):
    with pytest.raises(InputError, match=message):
        FrameOptions(**wrong)
