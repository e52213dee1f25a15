import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdml_med.errors import InputError
from kdml_med.storage import rows as manifest_rows
from kdml_med.storage.columns import code_of, compact, distinct, first_repeated, hash_text, to_column, to_series
from kdml_med.storage.files import write_parquet
from kdml_med.storage.manifest import (
    MANIFEST_FILE,
    TILE_COLUMNS,
    DatasetKind,
    manifest_table,
    read_manifest,
    validate_manifest,
    write_manifest,
)
from kdml_med.storage.rows import compact_rows, same_rows
from tests.examples import examples

WORDS = st.lists(st.sampled_from(["", "a", "b", "aa", "ä", "a" * 8, "a" * 9, "b" * 16, "a\0"]), max_size=30)
LAYOUT = DatasetKind.TILES.layout


def chunked(words: list[Any], pieces: int, kind: Any = None) -> pa.ChunkedArray:
    """Words in chunks that begin in the middle of their buffers."""
    array = pa.array(["", *words], kind or pa.large_string())
    cuts = np.linspace(1, len(array), pieces + 1).astype(int)
    return pa.chunked_array([array.slice(a, b - a) for a, b in pairwise(cuts)], array.type)


@settings(max_examples=examples(100), deadline=None)
@given(WORDS, st.integers(1, 4))
def test_the_first_repeated_text_is_that_of_a_plain_loop(words, pieces):
    expected = next((word for place, word in enumerate(words) if word in words[:place]), None)
    assert first_repeated(chunked(words, pieces)) == expected


def test_texts_whose_hashes_agree_are_still_told_apart(monkeypatch):
    monkeypatch.setattr("kdml_med.storage.columns.hash_text", lambda column: np.zeros(len(column), np.uint64))
    assert first_repeated(chunked(["a", "b", "c"], 2)) is None
    assert first_repeated(chunked(["a", "b", "c", "b", "a"], 2)) == "b"


def test_hashes_of_many_ids_differ_and_do_not_depend_on_chunks():
    ids = [f"TCGA-{slide:04d}_x{x:07d}" for slide in range(40) for x in range(500)]
    hashes = hash_text(chunked(ids, 1))
    assert len(set(hashes.tolist())) == len(ids)
    np.testing.assert_array_equal(hashes, hash_text(chunked(ids, 7)))
    np.testing.assert_array_equal(hashes, hash_text(chunked(ids, 3, pa.string())))


@settings(max_examples=examples(50), deadline=None)
@given(st.lists(st.sampled_from(["b", "a", "Z", None]), min_size=1, max_size=20), st.integers(1, 3))
def test_categories_are_the_words_in_use_in_their_order(words, pieces):
    column = chunked(words, pieces, pa.string())
    schema = pa.schema([pa.field("a", pa.dictionary(pa.int32(), pa.string()))])
    series = to_series(compact(pa.table({"a": column}), schema).column(0))
    assert [None if pd.isna(word) else word for word in series] == words
    assert list(series.cat.categories) == sorted({word for word in words if word is not None})


@settings(max_examples=examples(50), deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["x", "y", None])), max_size=20), st.booleans())
def test_distinct_rows_are_counted(pairs, categorical):
    frame = pd.DataFrame(pairs, columns=["a", "b"]).astype("category" if categorical else "str")
    found = [(a, None if pd.isna(b) else b, n) for a, b, n in distinct(frame, ["a", "b"]).itertuples(index=False)]
    assert found == [(a, b, n) for (a, b), n in Counter(pairs).items()]


def test_words_become_their_places():
    for kind in ("str", "category"):
        words = pd.Series(["b", None, "c", "a"], dtype=kind)
        assert code_of(words, ["a", "b"], unknown=-1).tolist() == [1, -1, -1, 0]


def tile(number: int, **changes: Any) -> dict[str, Any]:
    slide = f"s{number // 3}"
    row = {"sample_id": f"t{number}", "patient_id": f"p{number // 6}", "slide_id": slide, "offset": number, "size": 3}
    return row | {"label": [None, "MSI"][number % 2], "shard": f"shards/{slide}.tar", "x_l0": number} | changes


@pytest.fixture
def small_groups(monkeypatch):
    monkeypatch.setattr(manifest_rows, "BATCH_ROWS", 4)


def test_a_manifest_of_many_row_groups_comes_back(tmp_path: Path, small_groups: None) -> None:
    rows = [tile(number) for number in range(18)]
    rows[7]["x_l0"] = None
    write_manifest(tmp_path / MANIFEST_FILE, manifest_table(rows))
    assert pq.ParquetFile(tmp_path / MANIFEST_FILE).num_row_groups == 5
    frame = read_manifest(tmp_path)
    for name in ("sample_id", "patient_id", "slide_id", "shard", "offset"):
        assert frame[name].tolist() == [row[name] for row in rows]
    assert frame["label"].cat.codes.tolist() == [number % 2 - 1 for number in range(18)]
    assert frame["x_l0"].isna().tolist() == [number == 7 for number in range(18)]
    keep = np.arange(18) % 5 == 2
    pd.testing.assert_frame_equal(
        read_manifest(tmp_path, ["slide_id", "offset"], keep=keep).astype({"slide_id": "str"}),
        frame.loc[keep, ["slide_id", "offset"]].reset_index(drop=True).astype({"slide_id": "str"}),
    )
    with pytest.raises(InputError, match="was replaced while it was read"):
        read_manifest(tmp_path, keep=keep[:-1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({17: {"sample_id": "t0"}}, "sample_id 't0' occurs more than once"),
        ({13: {"slide_id": ""}}, "row 13 has no slide_id"),
        ({17: {"patient_id": "p0"}}, "slide 's5' belongs to 2 patients"),
    ],
)
def test_rules_hold_across_row_groups(tmp_path: Path, small_groups: None, changes: Any, message: str) -> None:
    table = manifest_table([tile(number, **changes.get(number, {})) for number in range(18)])
    with pytest.raises(InputError, match=message):
        validate_manifest(table, "somewhere")
    pq.write_table(table, tmp_path / MANIFEST_FILE, row_group_size=4)
    for columns in (None, ["offset"], ["sample_id"]):
        with pytest.raises(InputError, match=message):
            read_manifest(tmp_path, columns)


def test_compact_rows_are_written_as_the_rows_themselves(tmp_path: Path) -> None:
    tables = [manifest_table([tile(number) for number in range(start, start + 3)]) for start in (0, 3, 6)]
    plain, joined = pa.concat_tables(tables), pa.concat_tables([compact_rows(table, LAYOUT) for table in tables])
    write_manifest(tmp_path / "plain", plain)
    write_manifest(tmp_path / "compact", joined)
    pq.write_table(plain, tmp_path / "whole", compression="zstd")
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "compact").read_bytes()
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "whole").read_bytes()
    assert same_rows(tmp_path / "plain", joined, LAYOUT)
    assert not same_rows(tmp_path / "plain", joined.slice(1), LAYOUT)
    assert not same_rows(tmp_path / "plain", pa.concat_tables([joined.slice(1), joined.slice(0, 1)]), LAYOUT)
    assert not same_rows(tmp_path / "absent", joined, LAYOUT)
    empty = TILE_COLUMNS.empty_table()
    write_manifest(tmp_path / "empty", empty)
    assert same_rows(tmp_path / "empty", empty, LAYOUT)


def test_categories_are_written_as_text(tmp_path: Path) -> None:
    plain = pd.DataFrame({"a": ["x", "y", None], "n": [1, 2, 3]})
    write_parquet(tmp_path / "plain", plain)
    write_parquet(tmp_path / "categories", plain.astype({"a": "category"}))
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "categories").read_bytes()


@given(
    st.sampled_from(
        [
            (pa.string(), st.text(max_size=5)),
            (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
            (pa.float64(), st.floats() | st.integers(-9, 9)),
            (pa.int64(), st.sampled_from([1.0, 2])),
            (pa.list_(pa.string()), st.lists(st.text(max_size=2), max_size=3)),
        ]
    ).flatmap(lambda pair: st.tuples(st.just(pair[0]), st.lists(st.none() | pair[1], max_size=20)))
)
@settings(max_examples=examples(100))
def test_columns_of_plain_values_are_those_of_the_library(pair: tuple[pa.DataType, list[Any]]) -> None:
    kind, values = pair
    found, wanted = to_column(values, kind), pa.array(values, kind)
    found.validate(full=True)
    assert (found.type, found.null_count) == (wanted.type, wanted.null_count)
    assert repr(found.to_pylist()) == repr(wanted.to_pylist())


def test_values_that_do_not_fit_a_column_are_refused() -> None:
    for values, kind in ((["a"], pa.float64()), ([3], pa.string()), ([2**63], pa.int64())):
        with pytest.raises((pa.ArrowException, TypeError, OverflowError)):
            to_column(values, kind)


def test_rows_are_checked_and_written_without_pandas() -> None:
    code = """
import io, sys
import pyarrow.parquet as pq
from kdml_med.storage.manifest import manifest_table, validate_manifest
ids = dict.fromkeys(("sample_id", "patient_id", "slide_id", "shard"), "a")
table = manifest_table([ids | {"offset": 0, "size": 1}, ids | {"offset": 0, "size": 1, "sample_id": "b"}])
validate_manifest(table, "here")
pq.write_table(table, io.BytesIO())
sys.exit("pandas" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
