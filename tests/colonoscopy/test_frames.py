import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kdml_med.colonoscopy.frames import Placement, encode_image, resize_down
from kdml_med.colonoscopy.options import FrameOptions
from kdml_med.errors import InputError
from tests.colonoscopy.pictures import frame


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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"size_px": 8}, "--size is 8"), ({"unlisted": "x"}, "--unlisted is 'x'"), ({"split": "dev"}, "--split is 'dev'")],
)
def test_wrong_options_are_explained(wrong, message):
    with pytest.raises(InputError, match=message):
        FrameOptions(**wrong)
