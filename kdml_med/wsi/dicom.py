"""Which series a DICOM file belongs to: many files make one slide, and OpenSlide opens it by any of them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

_PREAMBLE = 128
_LIST = "DICOMDIR"
_SERIES = (0x0020, 0x000E)
_LONG = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV")
_UNDEFINED = 0xFFFFFFFF
_MARKS, _ITEM = 0xFFFE, 0xE000  # begin an item; other elements of the group end an item or a sequence
_HEAD, _SYNTAX = 0x0002, 0x0010
_IMPLICIT = b"1.2.840.10008.1.2"
_MAX_ELEMENTS = 100_000


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do, and is not the list of files that lies on DICOM media."""
    if path.name.upper() == _LIST or not path.is_file():  # a pipe would never answer
        return False
    try:
        with path.open("rb") as stream:
            return stream.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"
    except OSError:
        return False


def read_series(path: Path) -> str | None:
    """SeriesInstanceUID of a file; None when it is no DICOM file or is damaged before that."""
    if not is_dicom(path):
        return None
    try:
        with path.open("rb") as stream:
            stream.seek(_PREAMBLE + 4)
            return _find_series(stream)
    except (OSError, struct.error, ValueError):
        return None


def _find_series(stream: BinaryIO) -> str | None:
    implicit = _read_head(stream)
    depth = 0  # of sequences and items whose length is not stated
    for _ in range(_MAX_ELEMENTS):
        group, element, length = _read_element(stream, implicit)
        if group == _MARKS and element != _ITEM:
            depth -= 1
        elif length == _UNDEFINED:
            depth += 1
        elif depth == 0 and (group, element) == _SERIES:
            return stream.read(length).rstrip(b"\0 ").decode("ascii")
        elif depth == 0 and (group, element) > _SERIES:
            return None
        else:
            stream.seek(length, 1)
    return None


def _read_head(stream: BinaryIO) -> bool:
    """Read over the elements of the head; whether those that follow leave out their kinds."""
    implicit = False
    while True:
        start = stream.tell()
        group, element, length = _read_element(stream, False)
        if group != _HEAD:
            stream.seek(start)
            return implicit
        value = stream.read(length)
        if element == _SYNTAX:
            implicit = value.rstrip(b"\0 ") == _IMPLICIT


def _read_element(stream: BinaryIO, implicit: bool) -> tuple[int, int, int]:
    """Group, element and length of what follows, in little endian."""
    group, element, kind, short = struct.unpack("<HH2sH", stream.read(8))
    if implicit or group == _MARKS:
        return group, element, int.from_bytes(kind, "little") | short << 16
    if kind in _LONG:
        return group, element, int.from_bytes(stream.read(4), "little")
    return group, element, short
