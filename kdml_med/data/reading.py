"""Stored images of the rows of a dataset folder, decoded."""

from __future__ import annotations

import os
import resource
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from kdml_med.data.images import Pixels, decode_image
from kdml_med.errors import InputError
from kdml_med.storage.manifest import read_member

Positions = Sequence[int] | npt.NDArray[np.integer[Any]]

OPEN_SHARDS = 256
"""Shards that a process keeps open at most."""


class ImageSource(Protocol):
    """Where the pixels of a dataset's rows come from."""

    def read(self, position: int) -> Pixels:
        """Pixels of a row as they are stored: uint8, [height, width, 3], RGB; not to be written to.

        Raises:
            InputError: they cannot be had; names the row and the file.
        """
        ...

    def select(self, positions: Positions) -> Self:
        """The source of some of the rows, in that order."""
        ...


def open_shards_allowed() -> int:
    """Shards to keep open: a quarter of the files that the system allows, as validation has a source of its own."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return OPEN_SHARDS if limit == resource.RLIM_INFINITY else max(1, min(OPEN_SHARDS, limit // 4))


class ShardReader:
    """Reads the byte ranges of rows from their shards and decodes them; the source that every dataset folder has.

    Shards stay open, the least recently used is closed for the next; processes that are forked share the handles
    safely, as ranges are read without moving a file position. Files are not mapped: one that is cut short while it is
    mapped would end the process, where reading names it.

    Args:
        root: folder that the column ``shard`` starts from.
        rows: of a manifest.
        what: word for a row in errors.
        open_shards: most shards that are kept open; None for ``open_shards_allowed``.
    """

    def __init__(self, root: Path, rows: pd.DataFrame, what: str, *, open_shards: int | None = None) -> None:
        self._root, self._what, self._most = root, what, open_shards or open_shards_allowed()
        self._names = rows["sample_id"].array
        self._shards, self._shard_names = pd.factorize(rows["shard"])
        self._offsets = rows["offset"].to_numpy(np.int64)
        self._sizes = rows["size"].to_numpy(np.int64)
        self._open: OrderedDict[int, tuple[int, str]] = OrderedDict()  # handle and path by number of a shard

    def read(self, position: int) -> Pixels:
        """Pixels of a row, see ``ImageSource``."""
        place = int(self._shards[position]), int(self._offsets[position]), int(self._sizes[position])
        try:
            data, path = self._read_range(*place)
            return decode_image(data, where=path)
        except InputError as error:
            raise InputError(f"{self._what} {self._names[position]!r}: {error}") from error

    def select(self, positions: Positions) -> Self:
        """A reader of some of the rows, with handles of its own."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__getstate__())
        keep = np.asarray(positions, np.intp)
        other._names, other._shards = self._names.take(keep), self._shards[keep]
        other._offsets, other._sizes = self._offsets[keep], self._sizes[keep]
        return other

    def close(self) -> None:
        """Close all shards; reading opens them again."""
        while self._open:
            os.close(self._open.popitem()[1][0])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}  # handles belong to a process

    def __del__(self) -> None:
        self.close()

    def _read_range(self, number: int, offset: int, size: int) -> tuple[bytes, str]:
        """Bytes of a shard, and its path."""
        shard = self._shard_names[number]
        if shard.endswith(".tar"):  # else imported: a file of its own, read once in an epoch
            handle, path = self._handle(number)
            data = _pread(handle, size, offset)
            if len(data) == size:
                return data, path
        return read_member(self._root, shard, offset, size), str(self._root / shard)  # which says what is wrong

    def _handle(self, number: int) -> tuple[int, str]:
        """Handle, negative where it cannot be opened, and path of a shard, which stays open."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        path = str(self._root / self._shard_names[number])
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return -1, path
        self._open[number] = handle, path
        if len(self._open) > self._most:
            os.close(self._open.popitem(last=False)[1][0])
        return handle, path


def _pread(handle: int, size: int, offset: int) -> bytes:
    try:
        return os.pread(handle, size, offset)
    except OSError:
        return b""
