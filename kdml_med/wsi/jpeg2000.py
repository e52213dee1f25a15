"""JPEG 2000 codestreams without their finest details: what is left decodes at half the size, for half the price.

A wavelet transform stores a picture as a small copy and the details that double its size, again and again. Where the
details come in that order, the header can say that the picture is the smaller one, and a decoder stops reading there.

Source:
    ITU-T T.800 (2002), annex A (marker segments), B.12 (progression orders), F (wavelet transform).
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator

import cv2
import numpy as np

from kdml_med.wsi.slide import Pixels

_SOC, _SOT = 0x4F, 0x90
_SIZ, _COD, _QCD, _QCC = 0x51, 0x52, 0x5C, 0x5D
_KEPT = (_SIZ, _COD, _QCD, _QCC)
_WITHOUT_EFFECT = (0x55, 0x57, 0x58, 0x63, 0x64)  # TLM, PLM, PLT, CRG, COM: lengths of parts, registration, comments
_LAYERS_FIRST, _RESOLUTIONS_FIRST = 0, (1, 2)  # progressions LRCP; RLCP, RPCL
_LOBES = 3  # of the Lanczos kernel


class _Header:
    """Main header of a codestream of one tile.

    Attributes:
        segments: marker and content of what a decoder needs, each with its own length.
        body: from the first tile-part on.
        halvings: how often the finest details can be left out.
    """

    def __init__(self, data: bytes) -> None:
        self.segments: list[tuple[int, bytes]] = []
        self.halvings, place, known = 0, 2, data[:2] == bytes([0xFF, _SOC])
        for marker, segment, after in _segments(data, place):
            place = after
            known = known and marker in (*_KEPT, *_WITHOUT_EFFECT)
            if marker in _KEPT:
                self.segments.append((marker, segment))
        self.body = data[place:]
        found = dict(self.segments)
        part = _segments(self.body, 2 + int.from_bytes(self.body[2:4]))
        if not known or _SIZ not in found or _COD not in found or self.body[:2] != bytes([0xFF, _SOT]):
            return
        width, height, x, y, tile_width, tile_height, tile_x, tile_y = struct.unpack(">8I", found[_SIZ][4:36])
        order, layers, levels = found[_COD][3], int.from_bytes(found[_COD][4:6]), found[_COD][7]
        whole = not (x or y or tile_x or tile_y) and tile_width >= width and tile_height >= height
        ordered = order in _RESOLUTIONS_FIRST or (order == _LAYERS_FIRST and layers == 1)
        if whole and ordered and all(marker in _WITHOUT_EFFECT for marker, _, _ in part):
            self.halvings = levels

    def halved(self, times: int) -> bytes:
        """The codestream of the picture at ``2 ** -times`` of its size."""
        out = bytearray([0xFF, _SOC])
        for marker, segment in self.segments:
            content = bytearray(segment)
            if marker == _SIZ:
                for place in (4, 8, 20, 24):  # sides of the picture and of its only tile
                    side = int.from_bytes(content[place : place + 4])
                    content[place : place + 4] = (-(-side >> times)).to_bytes(4)
            if marker == _COD:
                content[7] -= times
                if content[2] & 1:  # sizes of precincts, one for each resolution
                    del content[-times:]
                    content[:2] = len(content).to_bytes(2)
            out += bytes([0xFF, marker]) + content
        return bytes(out) + self.body


def _segments(data: bytes, place: int) -> Iterator[tuple[int, bytes, int]]:
    """Marker, content with its length in front, and the place after it, up to where a tile-part or its data begin."""
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] not in (_SOT, 0x93):
        length = int.from_bytes(data[place + 2 : place + 4])
        yield data[place + 1], data[place + 2 : place + 2 + length], place + 2 + length
        place += 2 + length


def jpeg2000_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of what a decoder gets memory for, by the first codestream; None when there is none."""
    place = data.find(bytes([0xFF, _SOC, 0xFF, _SIZ]))
    if place < 0 or len(data) < place + 24:
        return None
    width, height, x, y = struct.unpack_from(">4I", data, place + 8)
    return width - x, height - y


def is_subsampled(data: bytes) -> bool:
    """Whether a component of a codestream has fewer samples than the picture has pixels."""
    marker, content, _ = next(_segments(data, 2), (0, b"", 0))
    steps = content[39::3] + content[40::3]  # across and down, for each component after its depth
    return marker == _SIZ and any(step > 1 for step in steps)


def without_details(data: bytes, times: int) -> tuple[bytes, int]:
    """A codestream without up to ``times`` levels of details, and how many were left out.

    None are where the order of the data or a part of the header does not allow for it.
    """
    if times == 0:
        return data, 0
    header = _Header(data)
    times = min(times, header.halvings)
    return (header.halved(times), times) if times else (data, 0)


def centred(pixels: Pixels, times: int) -> Pixels:
    """A picture without details, moved to where an average over squares lies.

    Its pixels lie on every second one of the larger picture, not between two of them: a quarter of a pixel off at half
    the size. Half-sample symmetry at the rim, as the transform itself has it.
    """
    if times == 0:
        return pixels
    kernel = _kernel((2**times - 1) / 2 ** (times + 1))
    anchor = (_LOBES - 1, _LOBES - 1)
    return np.asarray(
        cv2.sepFilter2D(pixels, -1, kernel, kernel, anchor=anchor, borderType=cv2.BORDER_REFLECT), np.uint8
    )


@functools.lru_cache
def _kernel(shift: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Lanczos weights of the pixels around one that lies ``shift`` pixels further on."""
    distance = np.arange(1 - _LOBES, 1 + _LOBES) - shift
    weights = np.sinc(distance) * np.sinc(distance / _LOBES)
    return np.asarray(weights / weights.sum(), np.float32)
