"""Where the compressed JPEG tiles of a TIFF pyramid lie, and one of them decoded."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
import tifffile

from kdml_med.wsi.scans import OpenSlideSlide
from kdml_med.wsi.slide import Pixels

_JPEG = 7
_RGB, _YCBCR = 2, 6  # TIFF PhotometricInterpretation
_DCT_FACTORS = (1, 2, 4, 8)
_START = b"\xff\xd8"


def _adobe_marker(photometric: int) -> bytes:
    """APP14 segment that says whether the three components are RGB or YCbCr; TIFF leaves that to its own tag."""
    transform = 0 if photometric == _RGB else 1
    return b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])


@dataclass(frozen=True)
class TileIndex:
    """Where the compressed tiles of one level are.

    Attributes:
        offsets: int64, [rows × columns], bytes from the start of the file, row by row.
        counts: int64, [rows × columns], bytes; 0 for a tile that the scanner left out.
        columns: tiles side by side.
        width: of a tile, level pixels.
        height: of a tile, level pixels.
        head: what a tile needs before its own data: start of image, shared tables, colour marker.
        factors: integer reductions that ``decode_tile`` offers, ascending; they divide ``width`` and ``height``.
    """

    offsets: np.ndarray[tuple[int], np.dtype[np.int64]]
    counts: np.ndarray[tuple[int], np.dtype[np.int64]]
    columns: int
    width: int
    height: int
    head: bytes
    factors: tuple[int, ...]


class TileBytes:
    """A file read at any place by several threads. Not a mapping: a file that shrinks would end the whole process."""

    def __init__(self, path: Path) -> None:
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read(self, start: int, count: int) -> bytes:
        """Bytes from a place on; fewer where the file ends or cannot be read."""
        try:
            return os.pread(self._descriptor, count, start)
        except OSError:
            return b""


def decode_tile(file: TileBytes, index: TileIndex, number: int, factor: int) -> Pixels | None:
    """Decode one compressed tile at ``1 / factor`` of its size; None when its data are damaged."""
    data = file.read(int(index.offsets[number]), int(index.counts[number]))
    if data[:2] != _START:
        return None
    shape = (index.height // factor, index.width // factor, 3)
    try:
        # min_factor alone is without effect: the decoder also wants to know how small the picture may become.
        tile: Pixels = simplejpeg.decode_jpeg(
            index.head + data[2:], "RGB", min_height=shape[0], min_width=shape[1], min_factor=factor
        )
    except ValueError:
        return None
    return tile if tile.shape == shape else None


def read_indices(base: OpenSlideSlide) -> dict[int, TileIndex]:
    """Tile indices of the levels that consist of 8-bit JPEG tiles in three colours."""
    indices: dict[int, TileIndex] = {}
    with tifffile.TiffFile(Path(base.path)) as tiff:
        for page in tiff.pages:
            if not isinstance(page, tifffile.TiffPage):
                continue
            fits = (
                page.is_tiled
                and page.compression == _JPEG
                and page.photometric in (_RGB, _YCBCR)
                and page.samplesperpixel == 3
                and page.bitspersample == 8
                and page.planarconfig == 1
            )
            level = next(
                (i for i, v in enumerate(base.levels) if (v.height, v.width) == page.shape[:2] and i not in indices),
                None,
            )
            if not fits or level is None:
                continue
            columns = math.ceil(page.imagewidth / page.tilewidth)
            tables = page.jpegtables or _START + b"\xff\xd9"
            indices[level] = TileIndex(
                offsets=np.asarray(page.dataoffsets, np.int64),
                counts=np.asarray(page.databytecounts, np.int64),
                columns=columns,
                width=page.tilewidth,
                height=page.tilelength,
                head=tables[:-2] + _adobe_marker(page.photometric),
                factors=tuple(f for f in _DCT_FACTORS if page.tilewidth % f == 0 and page.tilelength % f == 0),
            )
            if len(indices[level].counts) != columns * math.ceil(page.imagelength / page.tilelength):
                del indices[level]
    return indices
