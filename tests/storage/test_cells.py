"""Cells that a spreadsheet would run, and that the same texts are read back."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdml_med.storage.cells import guard, unguard
from kdml_med.storage.files import table_bytes, write_table
from kdml_med.storage.reading import parse_table, read_table
from tests.examples import examples

RUN_BY_SPREADSHEETS = ("=", "+", "-", "@", "\t", "\r", "\n")
texts = st.text(st.sampled_from("=+-@\t\r\n'\"|; ,aé1.e＝"), max_size=6)


@given(texts)
@settings(max_examples=examples(300))
def test_no_text_is_written_as_a_formula_and_every_text_is_read_back(text: str) -> None:
    written = guard(text)
    assert unguard(written) == text
    if written.startswith(RUN_BY_SPREADSHEETS):
        float(written)  # a plain number, which a spreadsheet shows as it is


@given(texts, texts)
@settings(max_examples=examples(200))
def test_different_texts_stay_different(one: str, other: str) -> None:
    assert (guard(one) == guard(other)) == (one == other)


@given(st.lists(texts.filter(lambda text: "\r" not in text), min_size=1, max_size=4))
@settings(max_examples=examples(100))
def test_tables_come_back_cell_by_cell(cells: list[str]) -> None:
    table = pd.DataFrame({"patient_id": cells, "=sum": cells})
    content = table_bytes(table)
    assert parse_table(content, Path("t.csv"), remedy="").to_dict("list") == table.to_dict("list")
    for row in csv.reader(content.decode().splitlines(keepends=True)):
        assert not any(cell.startswith(("=", "@")) for cell in row)


@pytest.mark.parametrize("text", ["-3", "+1.5", "-1e-05", "-.5", "-inf"])
def test_a_text_that_is_a_number_stays_one(text: str) -> None:
    assert guard(text) == text


@pytest.mark.parametrize(
    "text", ["=1+1", "-1+1", "+cmd|' /C calc'!A0", "@SUM(A1)", "-3 ", "-٣", "--1", "-0x1", "\t1", "'=1"]
)
def test_anything_else_gets_an_apostrophe(text: str) -> None:
    assert guard(text) == f"'{text}"


def test_numbers_and_missing_values_are_written_as_before(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": [-1.5, None], "n": pd.array([-2, None], dtype="Int64"), "b": [True, False]})
    write_table(tmp_path / "t.csv", table.assign(text=["-x", None]))
    assert (tmp_path / "t.csv").read_text() == "a,n,b,text\n-1.5,-2,True,'-x\n,,False,\n"


def test_a_table_is_not_changed_by_writing_it(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": ["=1"]})
    write_table(tmp_path / "t.csv", table)
    assert table["a"].tolist() == ["=1"]
    assert read_table(tmp_path / "t.csv", ["a"], remedy="")["a"].tolist() == ["=1"]


@given(st.lists(texts, min_size=2, max_size=4), st.sampled_from([",", ";", "\t"]))
@settings(max_examples=examples(300))
def test_no_cell_is_run_whatever_a_spreadsheet_takes_for_the_separator(cells: list[str], separator: str) -> None:
    content = table_bytes(pd.DataFrame([cells], columns=[f"c{place}" for place in range(len(cells))])).decode()
    for row in csv.reader(content.splitlines(keepends=True), delimiter=separator):
        # The quotation mark that ends a text of several lines opens a cell where it begins a line, of a line end only.
        for cell in (one.lstrip("\r\n") for one in row):
            if cell.startswith(RUN_BY_SPREADSHEETS):
                float(cell)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a;=1+1", "a;'=1+1"),
        ("a;-1", "a;-1"),
        ("a;-1;b", "a;'-1;b"),
        ('a;"=1', "a;\"'=1"),
        ("a, -b (c=d)", "a, -b (c=d)"),
        ("a; =1", "a; =1"),
        ("\t=1", "'\t'=1"),
    ],
)
def test_what_begins_a_cell_elsewhere_gets_its_apostrophe_there(text: str, written: str) -> None:
    assert guard(text) == written
    assert unguard(written) == text
