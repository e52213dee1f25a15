"""Fast reader for TIFF pyramids, as Aperio and many converters write them.

The TIFF tags say where each compressed tile lies; tiles are read and decoded directly, each one once for
neighbouring requests and, where that is enough, at a fraction of its size: decoders of JPEG and JPEG 2000 make a
half-size picture from a part of the coefficients, for less than the price of the full one.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np

from kdml_med.pixels import reduce
from kdml_med.wsi.slide import Pixels, Slide, SlideError, bounds_of
from kdml_med.wsi.tile_index import TileBytes, TileIndex, decode_tile


@dataclass(frozen=True)
class _Row:
    """Decoded tiles of a row by their column, None for damaged ones; who adds one holds the lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    tiles: dict[int, Pixels | None] = field(default_factory=dict)


class _DecodedRows:
    """Rows of one plane that may be asked for again by a slide or its clones, which go down it side by side.

    Whoever asks for a row above its last one begins anew, and so do all.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._plane = (-1, -1)
        self._rows: dict[int, _Row] = {}
        self._places: dict[object, int] = {}  # the row that each of them is at

    def find(self, reader: object, plane: tuple[int, int], first: int, last: int) -> list[_Row]:
        """Some rows; those above the first row that anybody is at are forgotten."""
        with self._lock:
            if plane != self._plane or first < self._places.get(reader, 0):
                self._plane = plane
                self._rows.clear()
                self._places.clear()
            if first != self._places.get(reader):
                self._places[reader] = first
                needed = min(self._places.values())
                for row in [row for row in self._rows if row < needed]:
                    del self._rows[row]
            return [self._rows.get(row) or self._rows.setdefault(row, _Row()) for row in range(first, last + 1)]

    def leave(self, reader: object) -> None:
        """It asks no more."""
        with self._lock:
            self._places.pop(reader, None)
            if not self._places:
                self._rows.clear()


class NativeSlide:
    """A slide whose tiles are decoded directly. Not for several threads at once: each takes a ``clone``.

    Args:
        base: reads levels without an index, and knows what to show where a tile was never written.
        indices: of the tiles of levels.
        file: that holds them.
        decoded: tiles shared with the slide that this is a clone of.
    """

    def __init__(
        self, base: Slide, indices: dict[int, TileIndex], file: TileBytes, decoded: _DecodedRows | None = None
    ) -> None:
        self._base, self._indices, self._file = base, indices, file
        self._decoded = decoded or _DecodedRows()
        self.path = base.path
        self.levels = base.levels
        self.bounds = bounds_of(base)
        self.header_mpp, self.header_source = base.header_mpp, base.header_source
        self.header_problem, self.left_out = base.header_problem, base.left_out
        self._scratch: Pixels = np.empty((0, 0, 3), np.uint8)

    def factors(self, level: int) -> tuple[int, ...]:
        """See ``Slide.factors``."""
        index = self._indices.get(level)
        if index is None:
            return self._base.factors(level)
        return index.factors

    def read(self, level: int, factor: int, x_r: int, y_r: int, width_r: int, height_r: int) -> Pixels:
        """See ``Slide.read``. Requests in reading order decode each tile once."""
        if level not in self._indices:
            return self._base.read(level, factor, x_r, y_r, width_r, height_r)
        return self._assemble(level, factor, x_r, y_r, np.empty((height_r, width_r, 3), np.uint8))

    def peek(self, level: int, factor: int, x_r: int, y_r: int, width_r: int, height_r: int) -> Pixels:
        """The same as ``read``, in memory that the next call overwrites: new memory costs as much as copying."""
        if level not in self._indices:
            return self._base.read(level, factor, x_r, y_r, width_r, height_r)
        if self._scratch.shape != (height_r, width_r, 3):
            self._scratch = np.empty((height_r, width_r, 3), np.uint8)
        return self._assemble(level, factor, x_r, y_r, self._scratch)

    def _assemble(self, level: int, factor: int, x_r: int, y_r: int, out: Pixels) -> Pixels:
        """Fill a picture with the parts of the compressed tiles that it shows."""
        index = self._indices[level]
        height_r, width_r = out.shape[:2]
        tile_w, tile_h = index.width // factor, index.height // factor
        first_row, last_row = y_r // tile_h, (y_r + height_r - 1) // tile_h
        first_column, last_column = x_r // tile_w, (x_r + width_r - 1) // tile_w
        for row, held in enumerate(self._decoded.find(self, (level, factor), first_row, last_row), first_row):
            top = row * tile_h - y_r
            y, skip_y, end_y = max(0, top), max(0, -top), min(tile_h, height_r - top)
            strip = out[y : y + end_y - skip_y]
            for column in range(first_column, last_column + 1):
                tile = held.tiles.get(column)
                if tile is None:
                    tile = self._decode(held, index, level, factor, row, column)
                left = column * tile_w - x_r
                end_x = min(tile_w, width_r - left)
                if left >= 0:
                    strip[:, left : left + end_x] = tile[skip_y:end_y, :end_x]
                else:
                    strip[:, : left + end_x] = tile[skip_y:end_y, -left:end_x]
        return out

    def clone(self) -> NativeSlide:
        """See ``Slide.clone``."""
        return NativeSlide(self._base.clone(), self._indices, self._file, self._decoded)

    def close(self) -> None:
        """See ``Slide.close``. The file is closed with its last user."""
        self._decoded.leave(self)
        self._base.close()

    def _decode(self, held: _Row, index: TileIndex, level: int, factor: int, row: int, column: int) -> Pixels:
        """Decode a tile into its row; one that cannot be decoded is tried once."""
        with held.lock:
            if column not in held.tiles:
                number = row * index.columns + column
                if index.counts[number] == 0:
                    held.tiles[column] = self._missing_tile(index, level, factor, row, column)
                else:
                    held.tiles[column] = decode_tile(self._file, index, number, factor)
            tile = held.tiles[column]
        if tile is None:
            raise SlideError(f"tile {column}, {row} of level {level} cannot be decoded")
        return tile

    def _missing_tile(self, index: TileIndex, level: int, factor: int, row: int, column: int) -> Pixels | None:
        """A tile that was never written; what to show there depends on the format, and OpenSlide knows."""
        x, y = column * index.width, row * index.height
        width = min(index.width, self.levels[level].width - x)
        height = min(index.height, self.levels[level].height - y)
        whole = np.full((index.height, index.width, 3), 255, np.uint8)
        try:
            whole[:height, :width] = self._base.read(level, 1, x, y, width, height)
        except SlideError:
            return None
        return reduce(whole, factor)
