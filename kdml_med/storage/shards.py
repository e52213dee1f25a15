"""Tars of images that are read by byte range, a table beside each, and the folder that only one run may write to."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from kdml_med.errors import InputError
from kdml_med.storage.files import write_atomically
from kdml_med.storage.manifest import DatasetKind, manifest_table, validate_manifest

Record = TypeVar("Record")

_RECORD_KEY = b"kdml_med.record"


class ShardWriter:
    """Writes an uncompressed tar whose bytes depend on nothing but its members; renamed into place when whole.

    Used as a context manager: leaving it without an error publishes the file, with one removes what was written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self._temporary.open("wb")

    def add(self, name: str, data: bytes) -> int:
        """Append one member.

        Returns:
            Where its data begins in the file, bytes.
        """
        header = tarfile.TarInfo(name)
        header.size = len(data)  # owner, group and time stay 0: the same tiles give the same file
        self._stream.write(header.tobuf(tarfile.USTAR_FORMAT))
        offset = self._stream.tell()
        self._stream.write(data)
        self._stream.write(bytes(-len(data) % tarfile.BLOCKSIZE))
        return offset

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stream as stream:
            if kind is None:
                stream.write(bytes(2 * tarfile.BLOCKSIZE))
                stream.flush()
                os.fsync(stream.fileno())
        if kind is None:
            self._temporary.replace(self._path)
        else:
            self._temporary.unlink(missing_ok=True)


def write_sidecar(path: Path, rows: Sequence[Mapping[str, Any]], record: Mapping[str, Any], kind: DatasetKind) -> None:
    """Write the table beside a tar: the last step, which makes a shard finished.

    Args:
        path: of the table.
        rows: of the manifest, for the images in the tar.
        record: what else is known about the shard; JSON types.
        kind: of the rows.

    Raises:
        InputError: the rows break the contract of the manifest.
    """
    table = manifest_table(rows, kind)
    validate_manifest(table, str(path))
    table = table.replace_schema_metadata({_RECORD_KEY: json.dumps(record, sort_keys=True).encode()})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    write_atomically(path, sink.getvalue())


def read_sidecar(path: Path, record: type[Record], kind: DatasetKind) -> tuple[Record, pa.Table]:
    """Read back what ``write_sidecar`` wrote.

    Args:
        path: of the table.
        record: made from the record by its keys.
        kind: of the rows.

    Returns:
        The record, and the rows with the columns of the manifest.

    Raises:
        InputError: the file is damaged or not from this program.
    """
    try:
        table = pq.read_table(path)
        content = record(**json.loads(table.schema.metadata[_RECORD_KEY]))
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}). Delete it and run the same command again.") from error
    return content, table.replace_schema_metadata(None).select(kind.columns.names).cast(kind.columns)
