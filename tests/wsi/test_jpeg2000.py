"""Codestreams without their finest details, against the reduction of the decoder's own library."""

import io

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from kdml_med.wsi.jpeg2000 import centred, is_subsampled, without_details
from tests.examples import examples
from tests.synthetic_slides import tissue_picture

PICTURE = tissue_picture(400, 400)[60:, 60:]
RESOLUTIONS_FIRST = ("RLCP", "RPCL")

# 64 × 64 px, YCbCr with colour at half the width, 5 levels: left half (200, 120, 170), right half (90, 60, 140).
SUBSAMPLED = bytes.fromhex(
    "ff4fff51002f000000000040000000400000000000000000000000400000004000000000000000000003070101070201070201ff52000c"
    "00000001000504040000ff5c002342772076f076f076c06f006f006ee067506750676850055005504757d357d35762ff90000a00000000"
    "012f0001ff93c1fa8400015b4aad3cc5dc7fc1fa818002737dc1fa8180019f53c1fa83800de7c83fb255f7c0fc80c00279a3c0fc80c009"
    "1f85c0fbc3c017ce806ce1e5ee73a96d60f289ed38c07d81001142a15ba18cff27c07d810013f282f517212a47c0fb05c02219f38ec126"
    "33215e24393cc7d2557f636684a5a66443c07d2300172c7f0636d001f8f06f1847c07d238017d88104c5760a41d7b5405ac10fc3ec1b00"
    "369e41e37d88325f3ba8432565b3880bd0d5929677170a88a88a8fc0f98700216e11530b9ad5a975f1635c687fc0f98900221a134dfd47"
    "b460758000015cf8181d685fc1f499005fa6c73fff79badb350300c23f566d037e06102a1ca821337fc07c634035f23fe2c0f4c3c7fa39"
    "4c9b87c07c6340369e41e2c0f4c3724dc94c9b87ffd9"
)


def encode(pixels, **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG2000", no_jp2=True, **options)
    return stream.getvalue()


def reduced_by_the_library(data, times):
    image = Jpeg2KImageFile(io.BytesIO(data))
    image.reduce = times
    return np.asarray(image)


@settings(max_examples=examples(40))
@given(
    size=st.tuples(*2 * [st.integers(4, 25).map(lambda eighth: 8 * eighth)]),  # the library fails at other ones
    progression=st.sampled_from(("LRCP", "RLCP", "RPCL", "PCRL", "CPRL")),
    layers=st.sampled_from(((40,), (60, 20, 5))),
    resolutions=st.integers(1, 6),
    precincts=st.sampled_from((None, (64, 64))),
    irreversible=st.booleans(),
    mct=st.integers(0, 1),
    plt=st.booleans(),
    times=st.integers(1, 3),
)
def test_what_is_left_is_what_the_library_makes_of_the_whole(
    size, progression, layers, resolutions, precincts, irreversible, mct, plt, times
):
    options = {"quality_mode": "rates", "quality_layers": list(layers), "num_resolutions": resolutions}
    if precincts:
        options["precinct_size"] = precincts
    data = encode(
        PICTURE[: size[0], : size[1]], progression=progression, irreversible=irreversible, mct=mct, plt=plt, **options
    )
    left, left_out = without_details(data, times)
    if progression in RESOLUTIONS_FIRST or (progression == "LRCP" and len(layers) == 1):
        assert left_out == min(times, resolutions - 1)
    else:
        assert left_out == 0
    if left_out == 0:
        assert left == data
    expected = reduced_by_the_library(data, left_out)
    np.testing.assert_array_equal(imagecodecs.jpeg2k_decode(left), expected)
    if left_out:
        assert expected.shape == (size[0] >> left_out, size[1] >> left_out, 3)


def test_codestream_of_several_tiles_stays_whole():
    data = encode(PICTURE, tile_size=(128, 128))
    assert without_details(data, 1) == (data, 0)


@pytest.mark.parametrize("marker", [0x53, 0x5E, 0x5F, 0x60, 0x50])  # COC, RGN, POC, PPM, CAP
def test_codestream_with_a_segment_of_unknown_effect_stays_whole(marker):
    data = encode(PICTURE)
    place = data.index(b"\xff\x52")
    altered = data[:place] + bytes([0xFF, marker, 0, 4, 0, 0]) + data[place:]
    assert without_details(altered, 1) == (altered, 0)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 5, 40, 60, 100])
def test_broken_codestream_is_left_to_the_decoder(length):
    data = encode(PICTURE)[:length]
    assert without_details(data, 1)[1] in (0, 1)
    assert not is_subsampled(data)
    assert without_details(b"\xff" * length, 2) == (b"\xff" * length, 0)


def test_pixels_without_details_are_moved_to_where_an_average_lies():
    """A ramp shows the place: its average over squares of f pixels is (f - 1) / 2 higher than every f-th pixel."""
    ramp = np.repeat(np.tile(np.arange(256, dtype=np.uint8), (256, 1))[..., None], 3, axis=2)
    data = imagecodecs.jpeg2k_encode(ramp, level=0, codecformat="j2k", mct=False)
    for times in (1, 2, 3):
        pixels = imagecodecs.jpeg2k_decode(without_details(data, times)[0])
        factor = 2**times
        average = np.asarray(Image.fromarray(ramp).reduce(factor)).astype(int)
        inside = np.s_[4:-4, 4:-4]
        assert np.abs(pixels.astype(int) - average)[inside].max() >= (factor - 1) / 2 - 0.5
        assert np.abs(centred(pixels, times).astype(int) - average)[inside].max() <= 1


def test_moving_keeps_brightness_and_an_even_picture():
    even = np.full((40, 30, 3), (200, 120, 170), np.uint8)
    for times in (0, 1, 2, 3):
        np.testing.assert_array_equal(centred(even, times), even)


def test_colour_at_half_the_width_is_seen():
    assert is_subsampled(SUBSAMPLED)
    assert not is_subsampled(encode(PICTURE))
