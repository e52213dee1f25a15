"""Files that are whole or not there: atomic writes of bytes, JSON and tables, and hashes that tell files apart."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from kdml_med.errors import cannot_write
from kdml_med.storage.cells import guard, guarded
from kdml_med.storage.columns import BATCH_ROWS

if TYPE_CHECKING:
    import pandas as pd


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old bytes or all of the new ones, never a part.

    Raises:
        InputError: it cannot be written; what is there stays.
    """
    with writing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a file to write to, which gets its name when the block is left without an error and else goes.

    Yields:
        The path to write to.

    Raises:
        InputError: it cannot be written (a full disk, a folder that is read-only or gone); what was there stays.
    """
    with naming(path):
        temporary = unfinished_path(path)
        try:
            yield temporary
            publish(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):  # room for others on a full disk
                temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn errors of the system into ones for people, who are told which file could not be written."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


_NOT_ALONE: ContextVar[bool] = ContextVar("_NOT_ALONE", default=False)
_SHOWN_LETTERS = 50  # of at most four bytes; file systems take names of 255


@contextlib.contextmanager
def not_alone() -> Iterator[None]:
    """In this block unfinished files have names of their own, because others may be writing the same files.

    After a network was cut in two, a worker that is taken for lost goes on while another does its job. Whoever is done
    last publishes the same bytes once more. Left-overs do not get overwritten, so that somebody has to remove them.
    """
    token = _NOT_ALONE.set(True)
    try:
        yield
    finally:
        _NOT_ALONE.reset(token)


def unfinished_path(path: Path) -> Path:
    """Where to write a file that ``publish`` gives its name; the folder is made when absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f"{path.name[:_SHOWN_LETTERS]}.{secrets.token_hex(8)}" if _NOT_ALONE.get() else path.name
    return path.with_name(f".{own}.part")


def publish(temporary: Path, path: Path) -> None:
    """Give a file that is whole its name, so that it is there with all of its bytes even after the power was cut.

    The bytes go to the disk first, then the file is renamed, then its folder, which holds the name, goes to the disk.
    """
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(folder)


def write_if_changed(path: Path, data: bytes) -> None:
    """Write a file atomically, unless it holds these bytes: work that changes nothing touches nothing."""
    if not path.is_file() or path.stat().st_size != len(data) or path.read_bytes() != data:
        write_atomically(path, data)


@dataclass(frozen=True)
class Rows:
    """A table as plain Python has it: without pandas, whose import takes as long as tiling a small slide.

    Attributes:
        names: of the columns.
        rows: text, numbers or None, one value for each column.
    """

    names: Sequence[str]
    rows: Iterable[Sequence[object]]


def write_table(path: Path, table: pd.DataFrame | Rows) -> None:
    """Write a CSV file atomically, see ``table_bytes``; the same content touches nothing."""
    write_if_changed(path, table_bytes(table))


def table_bytes(table: pd.DataFrame | Rows) -> bytes:
    """A table as a CSV file: Unix line ends, no index column, and no cell that a spreadsheet would run."""
    if not isinstance(table, Rows):
        text: str = guarded(table).to_csv(index=False, lineterminator="\n")
        return text.encode()
    stream = io.StringIO()
    lines = csv.writer(stream, lineterminator="\n")
    for row in (table.names, *table.rows):
        lines.writerow([guard(value) if isinstance(value, str) else value for value in row])
    return stream.getvalue().encode()


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, keys sorted, so that equal content gives equal bytes, which touch nothing."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_if_changed(path, (text + "\n").encode())


def write_parquet(path: Path, frame: pd.DataFrame) -> None:
    """Write a table as parquet atomically, without its index; the same rows and dtypes give the same bytes."""
    schema = pa.Schema.from_pandas(frame, preserve_index=False).remove_metadata()
    for place, own in enumerate(schema):
        if pa.types.is_dictionary(own.type):  # text that is held as categories is written as text
            schema = schema.set(place, own.with_type(pa.large_string()))
    with parquet_writer(path, schema) as writer:
        for start in range(0, max(len(frame), 1), BATCH_ROWS):
            piece = pa.Table.from_pandas(frame.iloc[start : start + BATCH_ROWS], preserve_index=False)
            writer.write_table(piece.replace_schema_metadata(None).cast(schema), row_group_size=BATCH_ROWS)


@contextlib.contextmanager
def parquet_writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Write a parquet file atomically, table by table.

    Raises:
        InputError: it cannot be written; what is there stays.
    """
    # A stream of Python's has errors of the system as they are, Arrow's own words them at length.
    with (
        writing(path) as temporary,
        temporary.open("wb") as stream,
        pq.ParquetWriter(stream, schema, compression="zstd") as writer,
    ):
        yield writer


def content_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


WHOLE_BYTES = 16 * 2**20
"""Files up to this size are always hashed wholly."""
_ENDS_BYTES = 2**20
_BLOCK_BYTES = 2**16
_BLOCKS = 32
_WHOLE, _SAMPLED, _UNREADABLE = "sha256:", "sampled:", "unreadable: "


@dataclass(frozen=True)
class Fingerprint:
    """What tells a file from what may be in its place later.

    Attributes:
        name: path within the input, "/" as separator.
        size: bytes; -1 where the file could not be read.
        digest: "sha256:…" of all bytes, "sampled:…" of some, or "unreadable: " and why.
        time_ns: of the last change, where only some bytes are hashed; None where the digest decides alone.
    """

    name: str
    size: int
    digest: str
    time_ns: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all bytes were hashed."""
        return self.digest.startswith(_WHOLE)

    @property
    def problem(self) -> str:
        """Why the file could not be read; "" where it could."""
        return self.digest.removeprefix(_UNREADABLE) if self.size < 0 else ""


def source_fingerprint(path: Path, name: str, *, full: bool = False) -> Fingerprint:
    """Fingerprint of a file.

    Up to ``WHOLE_BYTES`` all bytes are hashed; of larger files both ends and blocks evenly spread in between, and the
    time of the last change stands for the rest.

    Args:
        path: of the file.
        name: path within the input.
        full: hash all bytes, whatever the size.
    """
    try:
        with path.open("rb") as stream:
            state = os.fstat(stream.fileno())  # before reading: who writes into the file meanwhile changes its time
            if full or state.st_size <= WHOLE_BYTES:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
                return Fingerprint(name, state.st_size, f"{_WHOLE}{digest}")
            return Fingerprint(name, state.st_size, f"{_SAMPLED}{_sample(stream, state.st_size)}", state.st_mtime_ns)
    except OSError as error:
        return Fingerprint(name, -1, f"{_UNREADABLE}{error.strerror}")


def take_fingerprints(
    files: Iterable[tuple[Path, str]],
    *,
    full: bool = False,
    threads: int = 1,
    on_done: Callable[[], object] = lambda: None,
) -> list[Fingerprint]:
    """Fingerprints of several files, in order; reading and hashing leave the interpreter to other threads.

    Args:
        files: path, and name within the input.
        full: hash all bytes of large files too.
        threads: that read side by side.
        on_done: called after each file.
    """
    found = []
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for fingerprint in pool.map(lambda file: source_fingerprint(*file, full=full), files):
            found.append(fingerprint)
            on_done()
    return found


def _sample(stream: BinaryIO, size: int) -> str:
    digest = hashlib.sha256()
    blocks = [(0, _ENDS_BYTES), (max(0, size - _ENDS_BYTES), _ENDS_BYTES)]
    blocks += [(size * number // (_BLOCKS + 1), _BLOCK_BYTES) for number in range(1, _BLOCKS + 1)]
    for start, length in blocks:
        stream.seek(start)
        digest.update(stream.read(length))
    return digest.hexdigest()
