"""The rows of a manifest: read as columns, checked, and written, some row groups at a time."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from kdml_med.errors import InputError, one_line
from kdml_med.storage.columns import (
    BATCH_ROWS,
    Mask,
    compact,
    compact_schema,
    first_divided,
    first_empty,
    first_repeated,
    to_series,
)
from kdml_med.storage.files import parquet_writer

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Layout:
    """Columns of a manifest, and what readers rely on.

    Attributes:
        columns: names and types.
        group: column of what rows are cut from, of which each has one patient.
        remedy: what a person can do about a damaged file.
    """

    columns: pa.Schema
    group: str
    remedy: str

    @property
    def ids(self) -> tuple[str, ...]:
        """Columns that no row leaves empty; the first one's values are unique."""
        return ("sample_id", "patient_id", self.group)

    @property
    def repeated(self) -> tuple[str, ...]:
        """Columns whose words repeat, and so are held as codes: categories in a data frame."""
        return ("patient_id", self.group, "label", "site", "shard")

    def compact(self, names: Collection[str]) -> pa.Schema:
        """Some columns as they are held in memory, in the order of the manifest."""
        return compact_schema(pa.schema([own for own in self.columns if own.name in names]), self.repeated)

    def check_columns(self, names: Collection[str], where: str) -> None:
        """Refuse a table that lacks columns."""
        missing = [name for name in self.columns.names if name not in names]
        if missing:
            raise InputError(f"{where} lacks the columns {missing}; expected {self.columns.names}.")


def check_rows(table: pa.Table, layout: Layout, where: str) -> None:
    """Check the rules that readers rely on.

    Raises:
        InputError: a column is missing, an id is empty, a sample_id occurs twice, or a slide or sequence has two
            patients.
    """
    layout.check_columns(table.column_names, where)
    schema = layout.compact(layout.ids)
    ids = compact(table, pa.schema([own.with_nullable(True) for own in schema])).unify_dictionaries()
    for name in layout.ids:
        _check_filled(ids.column(name), name, where)
    _check_unique(ids.column("sample_id"), where)
    _check_owners(ids.column(layout.group), ids.column("patient_id"), layout, where)


def _check_filled(column: pa.ChunkedArray, name: str, where: str) -> None:
    row = first_empty(column)
    if row is not None:
        raise InputError(f"{where}: row {row} has no {name}.")


def _check_unique(samples: pa.ChunkedArray, where: str) -> None:
    repeated = first_repeated(samples)
    if repeated is not None:
        raise InputError(f"{where}: sample_id {repeated!r} occurs more than once.")


def _check_owners(groups: pa.ChunkedArray, patients: pa.ChunkedArray, layout: Layout, where: str) -> None:
    divided = first_divided(groups, patients)
    if divided is not None:
        what = layout.group.removesuffix("_id")
        raise InputError(f"{where}: {what} {divided[0]!r} belongs to {divided[1]} patients, expected one.")


def compact_rows(table: pa.Table, layout: Layout) -> pa.Table:
    """Rows whose text that repeats is held as codes, for joining those of many shards."""
    return compact(table, layout.compact(layout.columns.names))


def read_rows(path: Path, layout: Layout, names: Collection[str], keep: Mask | None) -> pd.DataFrame:
    """Some columns of a manifest file, see ``kdml_med.storage.manifest.read_manifest``.

    Column by column, so that hardly more is in memory at a time than what is returned.
    """
    import pandas as pd

    try:
        with pq.ParquetFile(path, read_dictionary=list(layout.repeated)) as file:
            if keep is not None and len(keep) != file.metadata.num_rows:
                raise InputError(f"{path} was replaced while it was read: run the same command again.")
            checked = {} if keep is not None else _read_checked(file, path, layout, names)
            columns = {}
            for own in layout.compact(names):
                column = checked.pop(own.name, None)
                columns[own.name] = to_series(_read_column(file, path, layout, own, keep) if column is None else column)
    except InputError:
        raise
    except (OSError, pa.ArrowException, ValueError) as error:
        raise unreadable(path, layout, error) from error
    pa.default_memory_pool().release_unused()
    return pd.DataFrame(columns, copy=False)


def unreadable(path: Path, layout: Layout, error: Exception) -> InputError:
    """What a damaged file says to a person."""
    return InputError(f"{path} cannot be read as parquet ({one_line(error)}). {layout.remedy}")


def _read_checked(
    file: pq.ParquetFile, path: Path, layout: Layout, names: Collection[str]
) -> dict[str, pa.ChunkedArray]:
    """Columns of ids, checked; those of ``names`` stay."""
    found = {}
    for own in layout.compact(layout.ids):
        column = _read_column(file, path, layout, own)
        _check_filled(column, own.name, str(path))
        if own.name == "sample_id":
            _check_unique(column, str(path))
        if own.name != "sample_id" or own.name in names:
            found[own.name] = column
    _check_owners(found[layout.group], found["patient_id"], layout, str(path))
    return found


def _read_column(
    file: pq.ParquetFile, path: Path, layout: Layout, own: pa.Field, keep: Mask | None = None
) -> pa.ChunkedArray:
    schema = pa.schema([own])
    pieces = [schema.empty_table()]
    start = 0
    for group in range(file.num_row_groups):
        piece = file.read_row_group(group, columns=[own.name])
        if keep is not None and not (own_rows := keep[start : start + len(piece)]).all():
            piece = piece.filter(pa.array(own_rows))
        start += file.metadata.row_group(group).num_rows
        try:
            pieces.append(compact(piece, schema))
        except (pa.ArrowException, ValueError) as error:
            raise InputError(f"{path} has columns of other types ({one_line(error)}). {layout.remedy}") from error
    pa.default_memory_pool().release_unused()
    return pa.concat_tables(pieces).unify_dictionaries().column(0)


def write_rows(path: Path, table: pa.Table, layout: Layout) -> None:
    """Write rows to a parquet file atomically, row group by row group; the same rows give the same bytes."""
    columns = layout.columns
    with parquet_writer(path, columns) as writer:
        for start in range(0, max(table.num_rows, 1), BATCH_ROWS):
            piece = table.slice(start, BATCH_ROWS).select(columns.names)
            writer.write_table(piece.cast(columns), row_group_size=BATCH_ROWS)


def same_rows(path: Path, table: pa.Table, layout: Layout) -> bool:
    """Whether a parquet file has exactly these rows."""
    columns = layout.columns
    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows != table.num_rows or not file.schema_arrow.equals(columns):
                return False
            start = 0
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                own = table.slice(start, batch.num_rows).select(columns.names).cast(columns)
                if not pa.Table.from_batches([batch]).equals(own):
                    return False
                start += batch.num_rows
    except (OSError, pa.ArrowException):
        return False
    return True
