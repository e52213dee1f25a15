"""Shards: a tar of images that is read by byte range, and beside it a table of them with a record of the whole.

The tar gets its name first and the table last. A shard with both is finished; with one or none it is not.
"""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from kdml_med.errors import InputError, one_line
from kdml_med.storage.files import (
    Fingerprint,
    naming,
    publish,
    take_fingerprints,
    unfinished_path,
    write_atomically,
    write_json,
)
from kdml_med.storage.manifest import SHARDS_DIR, DatasetKind, manifest_table, validate_manifest

_RECORD_KEY = b"kdml_med.record"
_BUFFER_BYTES = 1 << 20

# A header of a tar in the USTAR format: name, …, size, time, check sum, the rest. Owner, group and time stay 0, so that
# the same tiles give the same file. Written anew for each member by tarfile, it takes as long as resampling a tile.
_BLANK = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)
_NAME_END, _SIZE, _SUM = 100, slice(124, 136), slice(148, 156)
_BLANK_SUM = sum(_BLANK) - sum(_BLANK[_SIZE]) - sum(_BLANK[_SUM]) + 8 * ord(" ")
_MOST_BYTES = 8**11 - 1


def _tar_header(name: str, size: int) -> bytes:
    """What comes before the data of a member, as tarfile writes it."""
    if not name.isascii() or not 0 < len(name) <= _NAME_END or size > _MOST_BYTES:
        header = tarfile.TarInfo(name)
        header.size = size
        return header.tobuf(tarfile.USTAR_FORMAT)
    coded, digits = name.encode(), b"%011o\0" % size
    checked = b"%06o\0 " % (_BLANK_SUM + sum(coded) + sum(digits))
    padded = coded.ljust(_NAME_END, b"\0")
    return b"".join(
        (padded, _BLANK[_NAME_END : _SIZE.start], digits, _BLANK[_SIZE.stop : _SUM.start], checked, _BLANK[_SUM.stop :])
    )


class ShardWriter:
    """Writes an uncompressed tar whose bytes depend on nothing but its members; it gets its name when whole.

    Used as a context manager: leaving it without an error publishes the file, with one removes what was written.

    Raises:
        InputError: on entering, adding or leaving: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with naming(path):
            self._temporary = unfinished_path(path)
            self._stream = self._temporary.open("wb", buffering=_BUFFER_BYTES)
        self._end = 0

    def add(self, name: str, data: bytes) -> int:
        """Append one member.

        Returns:
            Where its data begins in the file, bytes.
        """
        header = _tar_header(name, len(data))
        offset = self._end + len(header)
        padding = bytes(-len(data) % tarfile.BLOCKSIZE)
        with naming(self._path):
            self._stream.write(b"".join((header, data, padding)))
        self._end = offset + len(data) + len(padding)
        return offset

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        whole = False
        try:
            if error is None:
                with naming(self._path), self._stream as stream:
                    stream.write(bytes(2 * tarfile.BLOCKSIZE))
                with naming(self._path):
                    publish(self._temporary, self._path)
                whole = True
        finally:
            if not whole:
                for remove in (self._stream.close, self._temporary.unlink):
                    with contextlib.suppress(OSError):  # a full disk refuses the rest of the buffer once more
                        remove()


@dataclass(frozen=True)
class Origin:
    """What a shard is made from, apart from the options of the folder.

    Attributes:
        sources: files, in the order in which they are used.
        facts: what else decides the shard's bytes, such as annotations; any text that changes with it.
        rules: version of the rules by which they are read; 0 where none is counted.
    """

    sources: tuple[Fingerprint, ...] = ()
    facts: str = ""
    rules: int = 0

    @property
    def times(self) -> list[int | None]:
        """Times of the sources, None where the hash decides alone."""
        return [source.time_ns for source in self.sources]

    def to_content(self) -> dict[str, Any]:
        """JSON types, without times: the same files give the same bytes on every machine."""
        sources = [[file.name, file.size, file.digest] for file in self.sources]
        return {"sources": sources, "facts": self.facts} | ({"rules": self.rules} if self.rules else {})

    @classmethod
    def from_content(cls, content: Mapping[str, Any], times: Sequence[int | None]) -> Origin:
        """Read back what ``to_content`` gave, with the times that were stored apart; without these none are known."""
        known = [*times, *[None] * len(content["sources"])]
        files = zip(content["sources"], known, strict=False)
        sources = tuple(Fingerprint(name, size, digest, time) for (name, size, digest), time in files)
        return cls(sources, content["facts"], content.get("rules", 0))

    def find_unread(self, new: Origin) -> list[Fingerprint]:
        """Files of another origin that could be read when this one was taken, and cannot now."""
        known = {source.name for source in self.sources if not source.problem}
        return [source for source in new.sources if source.problem and source.name in known]

    def presume(self, new: Origin) -> Origin:
        """Another origin in which files that cannot be read now are what they were in this one.

        A share that answers late, or not at all, says nothing about the files on it.
        """
        known = {source.name: source for source in self.sources}
        sources = (known.get(source.name, source) if source.problem else source for source in new.sources)
        return replace(new, sources=tuple(sources))

    def tell_change(self, new: Origin) -> str | None:
        """What is different in another origin, for people; None when nothing is."""
        if self == new:
            return None
        before = {source.name: source for source in self.sources}
        for source in new.sources:
            old = before.pop(source.name, None)
            if old is None:
                return f"{source.name} is new"
            if (old.size, old.digest) != (source.size, source.digest):
                return f"{source.name} has changed"
            if old.time_ns != source.time_ns:
                return f"{source.name} has another time, and not all of its bytes were hashed (--full-hash does)"
        if before:
            return f"{next(iter(before))} is not among its inputs any more"
        if self.rules != new.rules:
            return "another version of this program made it, which read such files by other rules"
        return "what is known about it has changed" if self.facts != new.facts else "its inputs have another order"


def find_origins(
    files: Mapping[str, Sequence[tuple[Path, str]]],
    *,
    facts: Mapping[str, str] | None = None,
    rules: int = 0,
    full: bool = False,
    threads: int = 1,
    on_done: Callable[[], object] = lambda: None,
) -> dict[str, Origin]:
    """What shards are made from, read from their files.

    Args:
        files: path, and name within the input, of all files of each shard.
        facts: what else decides the bytes of a shard.
        rules: version of the rules by which files are read.
        full: hash all bytes of large files too.
        threads: that read side by side.
        on_done: called after each file.

    Returns:
        The origin of each shard, in the order of ``files``.
    """
    flat = [file for own in files.values() for file in own]
    found = iter(take_fingerprints(flat, full=full, threads=threads, on_done=on_done))
    known = facts or {}
    return {name: Origin(tuple(next(found) for _ in own), known.get(name, ""), rules) for name, own in files.items()}


@dataclass(kw_only=True)
class ShardRecord:
    """What is known about a shard beside its rows; each kind of shard adds to it.

    Attributes:
        origin: what it was made from; None for shards of earlier versions, which did not record it.
    """

    origin: Origin | None = None

    def to_content(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self) | {"origin": self.origin.to_content() if self.origin else None}

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> Self:
        """Make a record from what ``to_content`` gave; the origin is made already, and unknown keys are left out."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in content.items() if name in known})


@dataclass(kw_only=True)
class FailuresRecord(ShardRecord):
    """A record of a shard that is stored without what could not be used.

    Attributes:
        failures: (input, reason), in order.
    """

    failures: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> Self:
        """Make a record from what ``to_content`` gave."""
        record = super().from_content(content)
        record.failures = [(name, reason) for name, reason in record.failures]
        return record


Record = TypeVar("Record", bound=ShardRecord)


def shard_path(dataset_dir: Path, name: str) -> Path:
    """Where the images of a shard are."""
    return dataset_dir / SHARDS_DIR / f"{name}.tar"


def sidecar_path(dataset_dir: Path, name: str) -> Path:
    """Where the table of a shard is."""
    return dataset_dir / SHARDS_DIR / f"{name}.parquet"


def times_path(dataset_dir: Path, name: str) -> Path:
    """Where the times of a shard's sources are, if any counts. They are kept apart because they are no result."""
    return dataset_dir / SHARDS_DIR / f"{name}.times.json"


def write_record(
    dataset_dir: Path, name: str, record: ShardRecord, rows: Sequence[Mapping[str, Any]], kind: DatasetKind
) -> None:
    """Write the table beside a tar: the last step, which makes a shard finished.

    Args:
        dataset_dir: dataset folder.
        name: of the shard.
        record: what else is known about it.
        rows: of the manifest, for the images in the tar.
        kind: of the rows.

    Raises:
        InputError: the rows break the contract of the manifest.
    """
    path = sidecar_path(dataset_dir, name)
    table = manifest_table(rows, kind)
    validate_manifest(table, str(path))
    content = json.dumps(record.to_content(), sort_keys=True)
    table = table.replace_schema_metadata({_RECORD_KEY: content.encode()})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    times = record.origin.times if record.origin else []
    if any(time is not None for time in times):
        write_json(times_path(dataset_dir, name), times)
    write_atomically(path, sink.getvalue())


def read_record(dataset_dir: Path, name: str, record: type[Record], kind: DatasetKind) -> tuple[Record, pa.Table]:
    """Read back what ``write_record`` wrote.

    Args:
        dataset_dir: dataset folder.
        name: of the shard.
        record: class of its record.
        kind: of the rows.

    Returns:
        The record, and the rows with the columns of the manifest.

    Raises:
        InputError: the file is damaged or not from this program.
    """
    path = sidecar_path(dataset_dir, name)
    try:
        with pq.ParquetFile(path) as file:  # the library's read_table imports pandas
            table = file.read()
        content = json.loads(table.schema.metadata[_RECORD_KEY])
        if content.get("origin") is not None:
            content["origin"] = Origin.from_content(content["origin"], _read_times(dataset_dir, name))
        found = record.from_content(content)
        rows = table.replace_schema_metadata(None).select(kind.columns.names).cast(kind.columns)
    except (OSError, pa.ArrowException, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({one_line(error)}). Delete it and run the same command again.") from error
    return found, rows


def _read_times(dataset_dir: Path, name: str) -> list[int | None]:
    path = times_path(dataset_dir, name)
    return list(json.loads(path.read_text())) if path.is_file() else []
