"""Where the compressed tiles of a TIFF pyramid lie, and one of them decoded."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from kdml_med.wsi.codecs import FACTORS, Codec, find_codec
from kdml_med.wsi.slide import Pixels, SlideError

Integers = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True)
class TileIndex:
    """Where the compressed tiles of one level are; strips are tiles as wide as the level.

    Attributes:
        offsets: int64, [rows × columns], bytes from the start of the file, row by row.
        counts: int64, [rows × columns], bytes; 0 for a tile that the scanner left out.
        columns: tiles side by side.
        width: of a tile, level pixels.
        height: of a tile, level pixels.
        factors: integer reductions that ``decode_tile`` offers, ascending; they divide ``width`` and ``height``.
        codec: what decodes a tile.
        planes: offsets and counts of the second and third colour where each is stored by itself.
    """

    offsets: Integers
    counts: Integers
    columns: int
    width: int
    height: int
    factors: tuple[int, ...]
    codec: Codec
    planes: Sequence[tuple[Integers, Integers]] = ()


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
    planes = [(index.offsets, index.counts), *index.planes]
    try:
        pieces = [file.read(int(offsets[number]), int(counts[number])) for offsets, counts in planes]
        tile = index.codec(pieces, number, factor)
    except Exception:  # whatever a decoder says about damaged data
        return None
    return tile if tile.shape == (index.height // factor, index.width // factor, 3) else None


def index_page(page: tifffile.TiffPage) -> TileIndex:
    """The tiles or strips of a page whose file is open.

    Raises:
        SlideError: the lists of them are too short.
    """
    width, height = (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)
    columns, planes = math.ceil(page.imagewidth / width), page.samplesperpixel if page.planarconfig == 2 else 1
    shape = (planes, columns * math.ceil(page.imagelength / height))
    offsets, counts = (np.asarray(values, np.int64) for values in (page.dataoffsets, page.databytecounts))
    if min(len(offsets), len(counts)) < math.prod(shape):
        raise SlideError(f"lists {min(len(offsets), len(counts))} of {math.prod(shape)} tiles or strips")
    first, *others = zip(*(values[: math.prod(shape)].reshape(shape) for values in (offsets, counts)), strict=True)
    missing = np.any([part == 0 for _, part in (first, *others)], axis=0)
    return TileIndex(
        offsets=first[0],
        counts=np.where(missing, 0, first[1]),
        columns=columns,
        width=width,
        height=height,
        factors=tuple(factor for factor in FACTORS if width % factor == 0 and height % factor == 0),
        codec=find_codec(page, width, height),
        planes=others,
    )
