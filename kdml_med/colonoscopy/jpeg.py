"""Whether a JPEG file is whole. Decoders fill what is missing with grey, and shift what comes after it."""

from __future__ import annotations

import re

import simplejpeg

from kdml_med.colonoscopy.boxes import FrameError

_SOF_PROGRESSIVE, _DHT, _SOS, _EOI = 0xC2, 0xC4, 0xDA, 0xD9
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))
_HOLE = bytes(32)
_DAMAGED = "damaged, and a part of the picture is not what it was; bring a whole copy"


def check_jpeg(data: bytes) -> None:
    """Refuse a JPEG with a part that is missing, damaged or overwritten with zeros.

    Raises:
        FrameError: what was found.
    """
    try:
        printing = simplejpeg.decode_jpeg_header(data)[2] in ("CMYK", "YCCK")
        simplejpeg.decode_jpeg(
            data, colorspace="CMYK" if printing else "GRAY"
        )  # strictly, only to see whether it works
        hole = _find_hole(data)
    except (ValueError, IndexError) as error:
        raise FrameError(f"{_DAMAGED}: {error}") from error
    if hole is not None:
        raise FrameError(f"{_DAMAGED}: zeros from byte {hole} on")


def _find_hole(data: bytes) -> int | None:
    """Where zeros stand in the coded picture that no picture has; None where there are none.

    A decoder reads zeros as some blocks and then often falls into step again. Which blocks, the code tables say: zeros
    are always the first code. Where it stands for "nothing changes", they may be a flat area; else they are no picture.
    """
    first_symbols: dict[int, int] = {}  # of each table; class × 16 + number
    progressive, at = False, 2
    while at + 4 <= len(data):
        marker = data[at + 1]
        if data[at] != 0xFF or marker == _EOI:
            return None
        if marker in (0xFF, *_WITHOUT_LENGTH):
            at += 1 if marker == 0xFF else 2
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : end]
        progressive |= marker == _SOF_PROGRESSIVE
        if marker == _DHT:
            first_symbols |= _read_tables(body)
        if marker == _SOS:
            found = _NEXT_MARKER.search(data, end)
            stop = found.start() if found else len(data)
            hole = data.find(_HOLE, end, stop)
            if hole >= 0 and not _may_be_flat(body, first_symbols, progressive=progressive):
                return hole
            end = stop
        at = end
    return None


def _read_tables(body: bytes) -> dict[int, int]:
    """First symbol of each Huffman table of a segment."""
    symbols, at = {}, 0
    while at + 17 < len(body):
        symbols[body[at]] = body[at + 17]
        at += 17 + sum(body[at + 1 : at + 17])
    return symbols


def _may_be_flat(scan: bytes, first_symbols: dict[int, int], *, progressive: bool) -> bool:
    """Whether zeros may stand for an area without change in the scan with this header."""
    tables = scan[2]  # of its first component
    first, _, approximation = scan[1 + 2 * scan[0] :][:3]
    refined = approximation >> 4
    if refined:
        return True  # plain bits
    level = first_symbols.get(tables >> 4, 0) == 0  # no difference to the block before
    detail = first_symbols.get(0x10 + (tables & 0x0F), 0)
    if not progressive:
        return level and detail == 0  # the block ends
    return level if first == 0 else detail & 0x0F == 0  # a run of blocks ends
