"""Records of one size, kept by keys that say all about them, which many processes read and add to at the same time.

Every process appends to files of its own, ``<name>.values`` and ``<name>.keys``, and reads those that others had when
it began. A key is written behind its record, which ends with a checksum: what a process that was killed has begun, or
a power failure has left half written, is no record.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

logger = logging.getLogger(__name__)

KEY_BYTES = 16
Bytes = npt.NDArray[np.uint8]

_CHECKSUM_BYTES = 4
_HELD_BACK = 2 * 2**30
"""Bytes that are left free on the disk, which may be that of the run: for checkpoints, which cannot be done without."""
_MOST_NEW = 2**16
"""Own records whose keys are looked up one by one, before they are put in order with the others."""


class RecordStore:
    """Records of a folder.

    A key has to say all about its record: which of several under the same key is read is open.

    Args:
        folder: where the files are; made with the first record.
        size: bytes of a record.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self._stored = size + _CHECKSUM_BYTES
        self._paths: list[Path] = []
        self._starts: list[int] = []
        self._count = 0
        self._keys = np.empty((0, 2), np.uint64)  # by their first halves
        self._numbers = np.empty(0, np.int64)
        self._new: dict[bytes, int] = {}
        self._own: Path | None = None
        self._full = False
        others = [self._keys_of(path) for path in sorted(folder.glob("*.keys"))]
        self._put_in_order(np.concatenate([self._keys, *others]), np.arange(self._count))

    def __len__(self) -> int:
        """Records that this process knows of."""
        return self._count

    def read(self, keys: Sequence[bytes]) -> tuple[npt.NDArray[np.bool_], Bytes]:
        """The records of some keys.

        Args:
            keys: of ``KEY_BYTES`` each.

        Returns:
            Which of them are there, bool [keys], and the records, uint8 [keys, size]; 0 for those that are not.
        """
        there = np.zeros(len(keys), np.bool_)
        records = np.zeros((len(keys), self.size), np.uint8)
        for position, (key, number) in enumerate(zip(keys, self._look_up(keys), strict=True)):
            record = None if number is None else self._read(key, number)
            if record is not None:
                there[position], records[position] = True, record
        return there, records

    def write(self, keys: Sequence[bytes], records: Bytes) -> None:
        """Keep records. Where they cannot be written, or fill the disk, that is said once, and nothing more is kept.

        Args:
            keys: of ``KEY_BYTES`` each.
            records: uint8, [keys, size].
        """
        if self._full:
            return
        checksums = [_checksum(key, bytes(record)) for key, record in zip(keys, records, strict=True)]
        tails = np.array(checksums, "<u4").view(np.uint8).reshape(-1, _CHECKSUM_BYTES)
        content = np.concatenate([records, tails], axis=1).tobytes()
        try:
            if self._own is None:
                self._own = self._begin()
            if shutil.disk_usage(self.folder).free < _HELD_BACK + len(content):
                self._end(f"less than {_HELD_BACK / 2**30:.0f} GiB of its disk are free")
                return
            _append(self._own.with_suffix(".values"), content)
            _append(self._own, b"".join(keys))
        except OSError as error:
            self._end(error.strerror)
            return
        self._new |= {key: self._count + place for place, key in enumerate(keys)}
        self._count += len(keys)
        if len(self._new) > _MOST_NEW:
            self._put_in_order(_halves(list(self._new)), np.fromiter(self._new.values(), np.int64))
            self._new = {}

    def _end(self, reason: str | None) -> None:
        self._full = True
        logger.warning("cannot write to %s (%s): no more is kept there", self.folder, reason)

    def _begin(self) -> Path:
        """Files of this process, which nobody else adds to."""
        self.folder.mkdir(parents=True, exist_ok=True)
        own = self.folder / f"{secrets.token_hex(8)}.keys"
        self._paths.append(own.with_suffix(".values"))
        self._starts.append(self._count)
        return own

    def _keys_of(self, path: Path) -> npt.NDArray[np.uint64]:
        """Keys of the records that others have kept, as far as both of their files go."""
        values = path.with_suffix(".values")
        try:
            content, whole = path.read_bytes(), values.stat().st_size
        except OSError:  # removed meanwhile
            return self._keys[:0]
        count = min(len(content) // KEY_BYTES, whole // self._stored)
        self._paths.append(values)
        self._starts.append(self._count)
        self._count += count
        return np.frombuffer(content, "<u8", 2 * count).reshape(-1, 2)

    def _put_in_order(self, keys: npt.NDArray[np.uint64], numbers: npt.NDArray[np.int64]) -> None:
        """Add keys, before others like them: a record that was found damaged is kept anew."""
        keys, numbers = np.concatenate([keys, self._keys]), np.concatenate([numbers, self._numbers])
        order = np.argsort(keys[:, 0], kind="stable")
        self._keys, self._numbers = keys[order], numbers[order]

    def _look_up(self, keys: Sequence[bytes]) -> list[int | None]:
        """Numbers of records; None where there is none."""
        wanted = _halves(keys)
        places = np.searchsorted(self._keys[:, 0], wanted[:, 0])
        inside = np.minimum(places, max(len(self._keys) - 1, 0))
        fits = (self._keys[inside] == wanted).all(axis=1) if len(self._keys) else np.zeros(len(keys), np.bool_)
        return [
            self._new.get(key, int(self._numbers[place]) if fit else None)
            for key, place, fit in zip(keys, inside.tolist(), fits.tolist(), strict=True)
        ]

    def _read(self, key: bytes, number: int) -> Bytes | None:
        """A record; None where it is damaged or gone."""
        segment = bisect_right(self._starts, number) - 1
        try:
            with self._paths[segment].open("rb") as stream:
                stream.seek((number - self._starts[segment]) * self._stored)
                content = stream.read(self._stored)
        except OSError:
            return None
        record, checksum = content[: self.size], content[self.size :]
        if len(content) < self._stored or int.from_bytes(checksum, "little") != _checksum(key, record):
            return None
        return np.frombuffer(record, np.uint8)


def _checksum(key: bytes, record: bytes) -> int:
    return zlib.crc32(record, zlib.crc32(key))


def _halves(keys: Sequence[bytes]) -> npt.NDArray[np.uint64]:
    return np.frombuffer(b"".join(keys), "<u8").reshape(-1, 2)


def _append(path: Path, content: bytes) -> None:
    with path.open("ab") as stream:
        stream.write(content)
