"""Tables of millions of rows as columns: words that repeat as codes, ids compared without a Python object for each."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

if TYPE_CHECKING:
    import pandas as pd

BATCH_ROWS = 2**20
"""Rows that are read or written at a time; a row group of the file."""
_HASH_ROWS = 2**17
_ODD = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)

Mask = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int64]


def compact_schema(columns: pa.Schema, repeated: Collection[str]) -> pa.Schema:
    """A schema as its columns are held in memory: words that repeat as codes, other text with 64-bit offsets.

    pandas keeps such text as it is, where that with 32-bit offsets would be copied.
    """
    text, codes = pa.large_string(), pa.dictionary(pa.int32(), pa.string())
    fields = [
        field.with_type(codes if field.name in repeated else text) if pa.types.is_string(field.type) else field
        for field in columns
    ]
    return pa.schema(fields)


def compact(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Columns of ``schema``, as ``compact_schema`` gives it, in that order.

    Raises:
        ArrowException, ValueError: a column has another type, or nulls where there must be none.
    """
    columns = []
    for field in schema:
        column = table.column(field.name)
        if pa.types.is_dictionary(field.type) and column.type != field.type:
            column = column.cast(pa.string()).dictionary_encode()
        columns.append(column)
    return pa.table(columns, names=schema.names).cast(schema)


def to_column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Column of values of plain Python, None where there is none.

    Text and numbers are laid out here: ``pyarrow.array`` imports pandas, which takes as long as tiling a small slide.

    Raises:
        ArrowException: a value is of another kind.
    """
    plain: dict[pa.DataType, tuple[type, ...]] = {pa.string(): (str,), pa.int64(): (int,), pa.float64(): (int, float)}
    there = [value is not None for value in values]
    if kind not in plain or not all(isinstance(value, plain[kind]) for value in values if value is not None):
        return pa.array(values, kind)
    valid = None if all(there) else pa.py_buffer(np.packbits(there, bitorder="little"))
    if kind == pa.string():
        words = [(value or "").encode() for value in values]
        ends = np.zeros(len(words) + 1, np.int64)
        np.cumsum([len(word) for word in words], out=ends[1:])
        if ends[-1] > np.iinfo(np.int32).max:
            return pa.array(values, kind)  # which says so
        buffers = [valid, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(b"".join(words))]
    else:
        numbers = [0 if value is None else value for value in values]
        buffers = [valid, pa.py_buffer(np.array(numbers, np.int64 if kind == pa.int64() else np.float64))]
    return pa.Array.from_buffers(kind, len(values), buffers)


def to_series(column: pa.ChunkedArray) -> pd.Series:
    """Series of a compact column; codes become categories in the order of their words, all of them in use.

    Sorting, grouping and comparing categories then go as those of the words themselves.
    """
    import pandas as pd

    if not pa.types.is_dictionary(column.type):
        values: pd.Series = column.to_pandas()
        return values
    column = column.unify_dictionaries()
    words = column.chunk(0).dictionary.to_pandas() if column.num_chunks else pd.Series(dtype="str")
    codes = np.concatenate([np.zeros(0, np.int32), *(_codes(chunk) for chunk in column.chunks)])
    used = np.flatnonzero(np.bincount(codes + 1, minlength=len(words) + 1)[1:])
    used = used[words.iloc[used].argsort().to_numpy()]
    places = np.full(len(words) + 1, -1, np.int16 if len(used) < 2**15 else np.int32)  # the last one is found by -1
    places[used] = np.arange(len(used))
    return pd.Series(pd.Categorical.from_codes(places[codes], pd.Index(words.iloc[used], dtype="str"), validate=False))


def distinct(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Combinations of some columns that occur, in order, and how often: columns ``names``, as text, and "rows".

    Nulls are a value of their own. What else is asked about groups of rows can be told from this much smaller table.
    """
    import pandas as pd

    found = frame.groupby(list(names), dropna=False, observed=True, sort=False).size().rename("rows").reset_index()
    return found.astype({name: "str" for name in names if isinstance(found[name].dtype, pd.CategoricalDtype)})


def first_empty(column: pa.ChunkedArray) -> int | None:
    """Number of the first row that is null or an empty text; None when no row is."""
    start = 0
    for chunk in column.chunks:
        if pa.types.is_dictionary(chunk.type):
            words = [*chunk.dictionary.to_pylist(), None]  # the last one is found where the code is null
            lacking = np.array([not word for word in words])
            wrong = np.flatnonzero(lacking[_codes(chunk)])
        else:
            wrong = np.flatnonzero((np.diff(_offsets(chunk)) == 0) | ~_valid(chunk))
        if len(wrong):
            return start + int(wrong[0])
        start += len(chunk)
    return None


def first_divided(groups: pa.ChunkedArray, owners: pa.ChunkedArray) -> tuple[str, int] | None:
    """The first group whose rows have several owners, and how many; None when there is none.

    Args:
        groups: codes of one dictionary, none null.
        owners: likewise.
    """
    if not len(groups):
        return None
    group, owner = (np.concatenate([_codes(chunk) for chunk in column.chunks]) for column in (groups, owners))
    names = groups.chunk(0).dictionary
    first = np.zeros(len(names), group.dtype)
    first[group[::-1]] = owner[::-1]  # the last assignment counts
    other = np.flatnonzero(first[group] != owner)
    if not len(other):
        return None
    code = group[other[0]]
    return names[int(code)].as_py(), len(np.unique(owner[group == code]))


def first_repeated(column: pa.ChunkedArray) -> str | None:
    """The first text that was there before; None when all differ. There must be no nulls.

    64-bit hashes are compared first, 80 MB for 10 million rows, and then the few texts whose hash occurs twice.
    """
    hashes = hash_text(column)
    ordered = np.sort(hashes)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(repeated):
        return None
    texts = column.filter(pa.array(np.isin(hashes, repeated))).to_pandas()
    again = texts[texts.duplicated()]
    return str(again.iloc[0]) if len(again) else None


def hash_text(column: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """64-bit hash of each text, [rows]; equal texts have equal hashes. There must be no nulls.

    Eight bytes at a time are mixed in by an odd factor and a shift, for all texts of one length at once.
    """
    pieces = [chunk.slice(start, _HASH_ROWS) for chunk in column.chunks for start in range(0, len(chunk), _HASH_ROWS)]
    return np.concatenate([np.zeros(0, np.uint64), *map(_hash_piece, pieces)])


def _hash_piece(array: pa.Array) -> npt.NDArray[np.uint64]:
    offsets = _offsets(array)
    buffer = array.buffers()[2]
    data = np.frombuffer(buffer, np.uint8) if buffer is not None else np.zeros(0, np.uint8)
    lengths = np.diff(offsets)
    order = np.argsort(lengths, kind="stable")
    bounds = np.flatnonzero(np.diff(lengths[order])) + 1
    result = np.empty(len(array), np.uint64)
    for rows in np.split(order, bounds):
        length = int(lengths[rows[0]])
        text = np.zeros((len(rows), -(-length // 8) * 8), np.uint8)
        if len(rows) == len(array):
            text[:, :length] = data[offsets[0] : offsets[-1]].reshape(len(rows), length)
        else:
            text[:, :length] = data[offsets[rows][:, None] + np.arange(length)]
        mixed = np.full(len(rows), length, np.uint64)
        for word in text.view(np.uint64).T:
            mixed = (mixed ^ word) * _ODD
            mixed ^= mixed >> _HALF
        result[rows] = mixed
    return result


def _offsets(array: pa.Array) -> Codes:
    kind = np.int64 if pa.types.is_large_string(array.type) else np.int32
    if not len(array):
        return np.zeros(1, np.int64)
    return np.frombuffer(array.buffers()[1], kind)[array.offset : array.offset + len(array) + 1].astype(np.int64)


def _valid(array: pa.Array) -> Mask:
    if not array.null_count:
        return np.ones(len(array), np.bool_)
    bits = np.unpackbits(np.frombuffer(array.buffers()[0], np.uint8), bitorder="little")
    return bits[array.offset : array.offset + len(array)].astype(np.bool_)


def _codes(array: pa.DictionaryArray) -> npt.NDArray[Any]:
    """Codes of an array, −1 for null."""
    codes, kind = array.indices, array.indices.type.to_pandas_dtype()
    if not len(codes):
        return np.zeros(0, kind)
    found = np.frombuffer(codes.buffers()[1], kind)[codes.offset : codes.offset + len(codes)]
    return np.where(_valid(codes), found, kind(-1)) if codes.null_count else found


def code_of(words: pd.Series, names: Sequence[str], *, unknown: int) -> npt.NDArray[np.int64]:
    """Place of each word in ``names``, int64 [rows]; ``unknown`` for null and for other words."""
    categories = words.astype("category").cat
    places = {name: place for place, name in enumerate(names)}
    table = np.array([*(places.get(name, unknown) for name in categories.categories), unknown], dtype=np.int64)
    return np.asarray(table[categories.codes.to_numpy()])
