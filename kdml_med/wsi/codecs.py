"""Decoders of the compressed pieces of a TIFF, with the reduction that each of them does best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
import simplejpeg
import tifffile

from kdml_med.pixels import reduce
from kdml_med.wsi.jpeg2000 import centred, is_subsampled, jpeg2000_size, without_details
from kdml_med.wsi.slide import Pixels
from kdml_med.wsi.tiff import jpeg_frame

Codec = Callable[[Sequence[bytes], int, int], Pixels]
"""Decodes a piece from its bytes, one string for each plane, its number and the factor of reduction.

uint8, [height / factor, width / factor, 3], RGB. Damaged data are an exception of any kind, or another shape."""

FACTORS = (1, 2, 4, 8)
JPEG = 7
_JPEG2000_YCBCR = 33003  # as Aperio writes it
_JPEG2000_RGB = (33004, 33005, 34712)
_PICTURES: dict[int, Callable[..., Any]] = {
    50001: imagecodecs.webp_decode,
    50002: imagecodecs.jpegxl_decode,
    52546: imagecodecs.jpegxl_decode,
}
_RGB, _YCBCR = 2, 6  # PhotometricInterpretation
_PREMULTIPLIED = 1  # ExtraSamples: colours are multiplied by the transparency already
_JPEG_START, _CODESTREAM = b"\xff\xd8", b"\xff\x4f\xff\x51"

# Levels of wavelets that are left out, by factor: where it takes more than one halving, the last is an average, which
# aliases less.
_LEFT_OUT = {1: 0, 2: 1, 4: 1, 8: 2}


def find_codec(page: tifffile.TiffPage, width: int, height: int) -> Codec:
    """What decodes the pieces of a page whose file is open, of a size in pixels; any that the library knows."""
    codec = _choose(page, width, height)
    if page.compression == JPEG:
        return SizedCodec(codec, jpeg_frame, width, height)
    if page.compression in (_JPEG2000_YCBCR, *_JPEG2000_RGB):
        return SizedCodec(codec, jpeg2000_size, width, height)
    return codec


def _choose(page: tifffile.TiffPage, width: int, height: int) -> Codec:
    plain = page.samplesperpixel == 3 and page.bitspersample == 8 and page.planarconfig == 1 and page.is_tiled
    if plain and page.compression == JPEG and page.photometric in (_RGB, _YCBCR):
        tables = page.jpegtables or _JPEG_START + b"\xff\xd9"
        return JpegCodec(tables[:-2] + _adobe_marker(page.photometric), width, height)
    if plain and page.compression in (_JPEG2000_YCBCR, *_JPEG2000_RGB):
        return Jpeg2000Codec(ycbcr=page.compression == _JPEG2000_YCBCR)
    if plain and page.compression in _PICTURES:
        return PictureCodec(_PICTURES[page.compression], width, height)
    return TiffCodec(page.decode, page.jpegtables, _PREMULTIPLIED in page.extrasamples, height)


@dataclass(frozen=True)
class SizedCodec:
    """Refuses a piece that says it is larger than the page has them, for which the decoder would get memory.

    Attributes:
        codec: decodes the others.
        find_size: of a piece by its own header, (width, height, …); None where it is not found.
        width: of a piece, pixels.
        height: of a piece, pixels.
    """

    codec: Codec
    find_size: Callable[[bytes], tuple[int, ...] | None]
    width: int
    height: int

    def __call__(self, pieces: Sequence[bytes], number: int, factor: int) -> Pixels:
        """See ``Codec``."""
        for data in pieces:
            size = self.find_size(data)
            if size is None or size[0] > self.width or size[1] > self.height:
                raise ValueError(f"has the size {size}")
        return self.codec(pieces, number, factor)


@dataclass(frozen=True)
class JpegCodec:
    """Baseline JPEG in three colours; a part of the coefficients makes a smaller picture.

    Attributes:
        head: what a tile needs before its own data: start of image, shared tables, colour marker.
        width: of a tile, pixels.
        height: of a tile, pixels.
    """

    head: bytes
    width: int
    height: int

    def __call__(self, pieces: Sequence[bytes], number: int, factor: int) -> Pixels:
        """See ``Codec``."""
        data = pieces[0]
        if data[:2] != _JPEG_START:
            raise ValueError("is no JPEG")
        # min_factor alone is without effect: the decoder also wants to know how small the picture may become.
        tile: Pixels = simplejpeg.decode_jpeg(
            self.head + data[2:],
            "RGB",
            min_height=self.height // factor,
            min_width=self.width // factor,
            min_factor=factor,
        )
        return tile


@dataclass(frozen=True)
class Jpeg2000Codec:
    """JPEG 2000 in three colours; without its finest details it makes a smaller picture.

    Attributes:
        ycbcr: whether the samples are YCbCr. The library sees that only of colours that are stored at half the size.
    """

    ycbcr: bool

    def __call__(self, pieces: Sequence[bytes], number: int, factor: int) -> Pixels:
        """See ``Codec``."""
        data = pieces[0]
        if data[:4] == _CODESTREAM:
            data, halvings = without_details(data, _LEFT_OUT[factor])
        else:
            halvings = 0  # inside a file format of its own
        pixels = centred(imagecodecs.jpeg2k_decode(data), halvings)
        if self.ycbcr and not is_subsampled(data):
            # The library goes by Cr before Cb.
            swapped = np.ascontiguousarray(pixels[..., [0, 2, 1]])
            pixels = np.asarray(cv2.cvtColor(swapped, cv2.COLOR_YCrCb2RGB), np.uint8)
        return reduce(pixels, factor >> halvings)


@dataclass(frozen=True)
class PictureCodec:
    """WebP and JPEG XL in three colours, decoded into memory of the right size: one pixel more is an error.

    Attributes:
        decode: of the library.
        width: of a tile, pixels.
        height: of a tile, pixels.
    """

    decode: Callable[..., Any]
    width: int
    height: int

    def __call__(self, pieces: Sequence[bytes], number: int, factor: int) -> Pixels:
        """See ``Codec``."""
        pixels: Pixels = np.empty((self.height, self.width, 3), np.uint8)
        self.decode(pieces[0], out=pixels)
        return reduce(pixels, factor)


@dataclass(frozen=True)
class TiffCodec:
    """Whatever else the library reads: any compression with any predictor, planes, 8 and 16 bits, transparency.

    Attributes:
        decode: of the library, for one page; works on its arguments alone, so that threads can share it.
        tables: shared ones of JPEG.
        premultiplied: whether colours are multiplied by their transparency.
        height: of a piece, pixels; the last strip of a page can have less.
    """

    decode: Callable[..., tuple[npt.NDArray[Any] | None, object, object]]
    tables: bytes | None
    premultiplied: bool
    height: int

    def __call__(self, pieces: Sequence[bytes], number: int, factor: int) -> Pixels:
        """See ``Codec``."""
        planes: list[npt.NDArray[Any]] = []
        for data in pieces:
            found = self.decode(data, number, jpegtables=self.tables)[0]
            if found is None:
                raise ValueError("holds no data")
            planes.append(found[0])
        pixels: npt.NDArray[Any] = planes[0] if len(planes) == 1 else np.asarray(cv2.merge(planes))
        if pixels.dtype.itemsize == 2:
            pixels = (pixels >> 8).astype(np.uint8)
        if pixels.shape[2] == 4:
            pixels = _on_white(pixels, premultiplied=self.premultiplied)
        if len(pixels) < self.height:
            pixels = np.pad(pixels, ((0, self.height - len(pixels)), (0, 0), (0, 0)), constant_values=255)
        return reduce(pixels, factor)


def _adobe_marker(photometric: int) -> bytes:
    """APP14 segment that says whether the three components are RGB or YCbCr; TIFF leaves that to its own tag."""
    transform = 0 if photometric == _RGB else 1
    return b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])


def _on_white(pixels: Pixels, *, premultiplied: bool) -> Pixels:
    """Colours of [height, width, 4] with what is transparent turned white."""
    if pixels[..., 3].min() == 255:
        return np.ascontiguousarray(pixels[..., :3])
    weight = pixels[..., 3:].astype(np.uint16)
    colours = pixels[..., :3].astype(np.uint16)
    if not premultiplied:
        colours = (colours * weight + 127) // 255
    blended: Pixels = np.minimum(colours + (255 - weight), 255).astype(np.uint8)
    return blended
