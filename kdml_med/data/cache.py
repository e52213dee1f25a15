"""Decoded pixels of a dataset's rows in one memory-mapped file, for sets that are small and read many times."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from kdml_med.data.images import DECODERS, Pixels
from kdml_med.data.reading import ImageSource, Positions
from kdml_med.errors import InputError
from kdml_med.program import progress_bar
from kdml_med.storage.columns import hash_text
from kdml_med.storage.files import naming, writing

logger = logging.getLogger(__name__)

NO_CACHE, ON_DISK = "none", "disk"
CACHE_DIR = "cache"
"""Below the dataset folder, where "disk" puts it."""
_VERSION = 2
_TRIED = 5
"""Tiles that tell how large the others are."""
_HELD_BACK = 64 * 2**20
"""Bytes that a cache leaves free on the disk."""

Sizes = npt.NDArray[np.int64]


def with_cache(
    source: ImageSource, rows: pd.DataFrame, root: Path, *, where: str, dataset_dir: Path, part: str, what: str
) -> ImageSource:
    """The source that a setting ``cache`` asks for; a cache that has to be made takes the place of that of before.

    Args:
        source: decodes the rows.
        rows: of a manifest.
        root: folder that the column ``shard`` starts from.
        where: "none"; "disk", below the dataset folder; or a folder.
        dataset_dir: dataset folder.
        part: what of the dataset the rows are, such as "train"; begins the names of the files.
        what: word for a row.

    Raises:
        InputError: the cache cannot be written.
    """
    if where == NO_CACHE or rows.empty:
        return source
    folder, name = dataset_dir / CACHE_DIR, part
    if where != ON_DISK:  # where other datasets may have theirs
        folder, name = Path(where), f"{part}-{hashlib.sha256(bytes(dataset_dir.resolve())).hexdigest()[:8]}"
    path = folder / f"{name}-{cache_key(rows, root)}.pixels"
    if _sizes_of(path, len(rows)) is None:
        with naming(path):
            folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            if _sizes_of(path, len(rows)) is None:  # unless another process made it meanwhile
                _discard_earlier(folder, name)
                _build(path, source, rows, what)
    sizes = _sizes_of(path, len(rows))
    if sizes is None:
        raise InputError(f"{path} was removed while it was made: run the same command again.")
    return CachedImages(path, sizes, source)


def cache_key(rows: pd.DataFrame, root: Path) -> str:
    """What the pixels of rows depend on, as 32 hexadecimal digits: ids, byte ranges, shards as they are now, decoders.

    A shard is told from another by its size and the times of its last change: that of its content, which can be set,
    and that of its entry in the file system, which cannot.
    """
    digest = hashlib.sha256(f"{_VERSION} {root} {DECODERS}".encode())
    codes, shards = pd.factorize(rows["shard"])
    for numbers in (codes, rows["offset"], rows["size"]):
        digest.update(np.asarray(numbers, np.int64).tobytes())
    digest.update(hash_text(pa.chunked_array([pa.array(rows["sample_id"], pa.large_string())])).tobytes())
    for shard in shards:
        try:
            state = (root / shard).stat()
            digest.update(f"{shard} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}\n".encode())
        except OSError:  # reading it will say so
            digest.update(f"{shard} absent\n".encode())
    return digest.hexdigest()[:32]


class CachedImages:
    """Pixels from a cache; those that could not be decoded when it was made are left to the source, which says why.

    Processes share the memory of the file, and it is the system's to keep or to read again. Where it is gone before a
    process has mapped it, images are decoded as without.

    Args:
        path: of the pixels, one image after the other, uint8, [height, width, 3] each.
        sizes: int64, [images, 2], height and width; 0 where there are no pixels.
        source: of the same rows.
    """

    def __init__(self, path: Path, sizes: Sizes, source: ImageSource) -> None:
        self._path, self._source = path, source
        ends = np.cumsum(3 * sizes.prod(axis=1))
        self._places = np.column_stack([ends - 3 * sizes.prod(axis=1), sizes])
        self._pixels: npt.NDArray[np.uint8] | None = None
        self._gone = False

    def read(self, position: int) -> Pixels:
        """Pixels of a row, see ``ImageSource``."""
        start, height, width = self._places[position]
        if self._pixels is None and height and not self._gone:
            try:
                self._pixels = np.memmap(self._path, np.uint8, "r").view(np.ndarray)
            except OSError as error:
                self._gone = True
                logger.warning("cannot read %s any more (%s): images are decoded again", self._path, error.strerror)
        if self._pixels is None or not height:
            return self._source.read(position)
        return self._pixels[start : start + 3 * height * width].reshape(height, width, 3)

    def select(self, positions: Positions) -> Self:
        """The pixels of some of the rows."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._places = self._places[np.asarray(positions, np.intp)]
        other._source = self._source.select(positions)
        return other

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pixels": None}  # a process that is started anew maps the file itself


def _sizes_path(path: Path) -> Path:
    return path.with_suffix(".sizes.npy")


def _sizes_of(path: Path, images: int) -> Sizes | None:
    """Sizes of the images of a finished cache; None where there is none. The sizes are written last."""
    try:
        sizes: Sizes = np.load(_sizes_path(path), allow_pickle=False)
        whole = path.stat().st_size
    except (OSError, ValueError, EOFError):
        return None
    fits = sizes.dtype == np.int64 and sizes.shape == (images, 2) and whole == 3 * int(sizes.prod(axis=1).sum())
    return sizes if fits else None


def _discard_earlier(folder: Path, name: str) -> None:
    """Remove caches of the same part of a dataset as it was, and what a build of one that was killed has left.

    A process that has mapped one keeps it, others decode.
    """
    key = "?" * 32
    for pattern in (f"{name}-{key}.pixels", f"{name}-{key}.sizes.npy", f".{name}-{key}.*.part"):
        for path in folder.glob(pattern):
            with naming(path):
                path.unlink(missing_ok=True)


def _build(path: Path, source: ImageSource, rows: pd.DataFrame, what: str) -> None:
    _check_room(path, source, rows, what)
    sizes = np.zeros((len(rows), 2), np.int64)
    lost = 0
    with (
        writing(path) as temporary,
        temporary.open("wb") as stream,
        progress_bar(len(rows), what="caching", unit=what) as bar,
    ):
        for position in range(len(rows)):
            try:
                image = source.read(position)
            except InputError:
                lost += 1
            else:
                sizes[position] = image.shape[:2]
                stream.write(np.ascontiguousarray(image).data)
            bar.update()
    if lost:
        logger.warning("%d of %d %ss cannot be decoded and are not in %s", lost, len(rows), what, path)
    with writing(_sizes_path(path)) as temporary, temporary.open("wb") as stream:
        np.save(stream, sizes, allow_pickle=False)


def _check_room(path: Path, source: ImageSource, rows: pd.DataFrame, what: str) -> None:
    """Refuse a cache that will not fit, before it is begun."""
    if "width" in rows:
        needed = 3 * int((rows["width"] * rows["height"]).sum())
    else:  # tiles usually have one size, which nothing tells before they are decoded
        found = []
        for position in np.unique(np.linspace(0, len(rows) - 1, _TRIED).astype(np.intp)):
            with contextlib.suppress(InputError):
                found.append(source.read(int(position)).nbytes)
        needed = len(rows) * sum(found) // max(len(found), 1)
    free = shutil.disk_usage(path.parent).free
    if needed + _HELD_BACK > free:
        raise InputError(
            f"the cache of {len(rows)} {what}s takes {needed / 2**30:.1f} GiB, and {path.parent} has "
            f"{free / 2**30:.1f} GiB free: free some space, name a folder of another disk by --cache, or leave it out."
        )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process makes a cache in a folder, and keep others waiting; it leaves no file."""
    with naming(folder):
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("another process makes a cache in %s: waiting for it", folder)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # NFS, say
            logger.warning("%s is on a file system without locks: let two trainings not make one cache", folder)
        yield
    finally:
        os.close(handle)
