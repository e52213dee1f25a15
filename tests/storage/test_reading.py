"""JSON, CSV and parquet files that were cut short, edited or replaced: one line that names file, key and remedy."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdml_med.errors import InputError
from kdml_med.storage.reading import build, damaged, parse_table, read_json, read_rows, read_table, take
from tests.examples import examples


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Thing:
    """One attribute of every kind that files have."""

    name: str
    count: int
    share: float
    on: bool
    colour: Colour
    kinds: list[str]
    scores: dict[str, float]
    level: Literal["low", "high"] | None = None
    size: int | list[int] = 1
    more: dict[str, Any] = field(default_factory=dict)


WHOLE = Thing("a", 1, 0.5, True, Colour.RED, ["x"], {"y": 1.0}, "low", [1, 2], {"z": [None]})
WRONG: dict[str, list[Any]] = {
    "name": [1, None, ["a"], {}, True],
    "count": [1.5, "1", None, True, [1], 1.0],
    "share": ["0.5", None, True, [0.5]],
    "on": [1, "true", None, []],
    "colour": ["green", None, 3, ["red"]],
    "kinds": ["x", [1], {"x": 1}, None, [["x"]]],
    "scores": [{"y": "1"}, [1.0], {"y": None}, "y"],
    "level": ["middle", 3, ["low"]],
    "size": ["1", [1.5], {"a": 1}, None],
    "more": [[], "z", None],
}


def content() -> dict[str, Any]:
    return json.loads(json.dumps(asdict(WHOLE)))


def refused(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as caught:
        build(Thing, read_json(path, remedy="Do this."), str(path), remedy="Do this.")
    message = str(caught.value)
    assert str(path) in message
    assert message.endswith("Do this.")
    assert "\n" not in message
    return message


def test_what_was_written_is_read_back() -> None:
    read = build(Thing, content(), "f", remedy="")
    assert read == WHOLE
    assert isinstance(read.colour, Colour)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_value_of_another_type_is_refused_by_its_key(tmp_path: Path, name: str, value: Any) -> None:
    message = refused(tmp_path / "f.json", json.dumps(content() | {name: value}))
    assert f": {name} is {value!r}, expected " in message


def test_keys_too_many_too_few_and_twice_are_named(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    assert "unknown key 'nmae'; known: name, count" in refused(path, json.dumps(content() | {"nmae": 1}))
    for name in ("name", "scores"):
        left = {key: value for key, value in content().items() if key != name}
        assert f"lacks {name}" in refused(path, json.dumps(left))
    assert "'name' occurs more than once" in refused(path, '{"name": "a", "name": "b"}')
    assert "'y' occurs more than once" in refused(path, '{"scores": {"y": 1, "y": 2}}')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("[1]", "holds a list, expected an object"),
        ("3", "holds a whole number, expected an object"),
        ("null", "holds null"),
        ('"a"', "holds a text"),
        ('{"share": NaN}', "NaN is no JSON"),
        ('{"share": -Infinity}', "-Infinity is no JSON"),
        (b'{"name": "\xe9"}', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("<html></html>", "is not JSON"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert message in refused(tmp_path / "f.json", text)


def test_a_byte_order_mark_of_an_editor_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_bytes(b"\xef\xbb\xbf{}")
    assert read_json(tmp_path / "f.json", remedy="") == {}


@given(st.integers(0, 10_000))
@settings(max_examples=examples(60))
def test_json_cut_short_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory, place: int) -> None:
    text = json.dumps(content(), indent=2).encode()
    refused(tmp_path_factory.getbasetemp() / "cut.json", text[: place % len(text)])


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for read in (read_json, read_table, read_rows):
        with pytest.raises(InputError, match=r"nothing\.x.*No such file"):
            read(tmp_path / "nothing.x", remedy="Do this.")
    with pytest.raises(InputError, match="Is a directory"):
        read_json(tmp_path, remedy="Do this.")


def test_one_value_is_taken_by_its_type() -> None:
    assert take({"a": {"b": 1}}, "a", dict[str, float], "f", remedy="") == {"b": 1}
    with pytest.raises(InputError, match="f lacks c"):
        take({}, "c", int, "f", remedy="")
    with pytest.raises(InputError, match="f: a is 'x', expected an object, each value a number"):
        take({"a": "x"}, "a", dict[str, float], "f", remedy="")


def test_long_values_are_cut() -> None:
    with pytest.raises(InputError) as caught:
        take({"a": "x" * 10_000}, "a", int, "f", remedy="")
    assert len(str(caught.value)) < 200


def test_errors_of_those_who_use_a_file_are_its_damage_but_messages_stay() -> None:
    for error in (KeyError("a"), ValueError("two\nlines"), TypeError("t"), IndexError("i")):
        with pytest.raises(InputError, match=r"f does not hold what was written there \(.*\)\. Do this\.$") as caught, \
            damaged("f", remedy="Do this."):  # fmt: skip
            raise error
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"^mine$"), damaged("f", remedy=""):
        raise InputError("mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is empty"),
        (b"a;b\n1;2\n", "lacks the columns ['a', 'b']"),
        (b"a,b\n1,2,3\n", "line 2: 3 cells, but the header has 2"),
        (b"a,b\n1,2\n1,2,3\n", "line 3: 3 cells"),
        (b"a,b\n1,2\n3\n", "line 3: 1 cells"),
        (b"a,b\n\xe9,2\n", "cannot be read as a CSV table"),
        (b'a,b\n"1,2\n', "cannot be read as a CSV table"),
    ],
)
def test_damaged_tables_are_refused(text: bytes, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_table(text, Path("t.csv"), ["a", "b"], remedy="Do this.")
    assert message in str(caught.value)
    assert str(caught.value).startswith("t.csv")
    assert str(caught.value).endswith("Do this.")
    assert "\n" not in str(caught.value)


def test_line_ends_marks_and_words_of_missing_values_of_a_table_are_text() -> None:
    table = parse_table(b"\xef\xbb\xbfa,b\r\nNA,\r\n007,nan\r\n", Path("t.csv"), ["a", "b"], remedy="")
    assert table.to_dict("list") == {"a": ["NA", "007"], "b": ["", "nan"]}


def test_parquet_cut_short_or_without_a_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pd.DataFrame({"a": range(100)}).to_parquet(path)
    assert len(read_rows(path, ["a"], remedy="")) == 100
    with pytest.raises(InputError, match=r"lacks the columns \['b'\].*Do this\.$"):
        read_rows(path, ["b"], remedy="Do this.")
    whole = path.read_bytes()
    for size in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"t\.parquet cannot be read as parquet .*Do this\.$"):
            read_rows(path, remedy="Do this.")
