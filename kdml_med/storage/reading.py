"""JSON and CSV files of datasets and runs, read so that one that was cut short or edited is refused by name."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from kdml_med.errors import InputError, foreseen, one_line
from kdml_med.storage.cells import unguarded

if TYPE_CHECKING:
    import pandas as pd

Content = TypeVar("Content")


def read_json(path: Path, *, remedy: str) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: of the file.
        remedy: what to do when it is damaged, one sentence.

    Raises:
        InputError: it cannot be read, is not UTF-8 or not JSON, names a key twice, holds NaN or infinity, or no object.
    """
    data = _read_bytes(path)
    try:
        text = data.decode("utf-8-sig")
        content = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError, too
        what = f"is not JSON ({error})" if data else "is empty"
        raise InputError(f"{path} {what}: it was edited or cut short. {remedy}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {describe(content)}, expected an object. {remedy}")
    return content


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} occurs more than once")
    return content


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def build(kind: type[Content], content: Mapping[str, Any], where: str, *, remedy: str) -> Content:
    """Make a dataclass from the content of a file, checked by the types of its attributes.

    Args:
        kind: the dataclass; attributes of enumerations get their members.
        content: values by name.
        where: the file, for messages.
        remedy: what to do when it does not fit, one sentence.

    Raises:
        InputError: a key is unknown, missing or of another type; names it, what was found and what was expected.
    """
    hints = get_type_hints(kind)
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    for name in content:
        if name not in known:
            raise InputError(f"{where} has the unknown key {name!r}; known: {', '.join(known)}. {remedy}")
    required = [name for name, item in known.items() if item.default is item.default_factory is MISSING]
    missing = [name for name in required if name not in content]
    if missing:
        raise InputError(f"{where} lacks {', '.join(missing)}. {remedy}")
    return kind(**{name: _checked(value, hints[name], name, where, remedy) for name, value in content.items()})


def take(content: Mapping[str, Any], name: str, hint: Any, where: Path | str, *, remedy: str) -> Any:
    """One value of the content of a file, checked by a type such as ``dict[str, float]``.

    Raises:
        InputError: it is missing or of another type.
    """
    if name not in content:
        raise InputError(f"{where} lacks {name}. {remedy}")
    return _checked(content[name], hint, name, str(where), remedy)


def _checked(value: Any, hint: Any, name: str, where: str, remedy: str) -> Any:
    if not fits(value, hint):
        raise InputError(f"{where}: {name} is {_short(value)}, expected {words(hint)}. {remedy}")
    return hint(value) if isinstance(hint, type) and issubclass(hint, Enum) else value


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON is of a type. True is no number; NaN and infinity are none either."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in inner)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin is list:
        return isinstance(value, list) and all(fits(item, inner[0]) for item in value)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, dict) and all(fits(item, inner[1]) for item in value.values())
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return value in list(hint)
    return isinstance(value, hint)


_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}


def words(hint: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(words(part) for part in inner)
    if origin is Literal:
        return f"one of {', '.join(inner)}"
    if origin is list:
        return "a list" if inner[0] is Any else f"a list, each of it {words(inner[0])}"
    if origin is not None and issubclass(origin, Mapping):
        return "an object" if inner[1] is Any else f"an object, each value {words(inner[1])}"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return f"one of {', '.join(hint)}"
    return _WORDS.get(hint, str(hint))


def describe(value: Any) -> str:
    """What a value of JSON is, in words."""
    if isinstance(value, list):
        return "a list"
    return "an object" if isinstance(value, dict) else words(type(value))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]} …"


@contextlib.contextmanager
def damaged(path: Path | str, *, remedy: str) -> Iterator[None]:
    """Take any error of a block that does nothing but use the content of a file for damage of that file."""
    try:
        yield
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} does not hold what was written there ({type(error).__name__}: {one_line(error)}). {remedy}"
        ) from error


def read_table(path: Path, columns: Sequence[str] = (), *, remedy: str) -> pd.DataFrame:
    """Read a CSV file that ``write_table`` wrote; every cell is text, as it was before it was written.

    Args:
        path: of the file.
        columns: that it must have.
        remedy: what to do when it is damaged, one sentence.

    Raises:
        InputError: it cannot be read, is no UTF-8 text or no table, or lacks a column or a cell.
    """
    return parse_table(_read_bytes(path), path, columns, remedy=remedy)


def parse_table(content: bytes, path: Path, columns: Sequence[str] = (), *, remedy: str) -> pd.DataFrame:
    """Likewise, of bytes that were read already."""
    import pandas as pd

    try:
        # Not pandas, which fills up short rows and takes surplus cells for an index.
        lines = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        rows = [(lines.line_num, cells) for cells in lines if cells]
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a CSV table ({one_line(error)}). {remedy}") from error
    if not rows:
        raise InputError(f"{path} is empty: it was edited or cut short. {remedy}")
    (_, header), *rows = rows
    for number, cells in rows:
        if len(cells) != len(header):
            raise InputError(f"{path}, line {number}: {len(cells)} cells, but the header has {len(header)}. {remedy}")
    table = unguarded(pd.DataFrame([cells for _, cells in rows], columns=header, dtype=object))
    _check_columns(table, columns, path, remedy)
    return table


def read_rows(path: Path, columns: Sequence[str] = (), *, remedy: str) -> pd.DataFrame:
    """Read a parquet file that ``write_parquet`` wrote.

    Raises:
        InputError: it cannot be read, or lacks a column.
    """
    import pandas as pd

    content = _read_bytes(path)
    try:
        table = pd.read_parquet(io.BytesIO(content))
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise InputError(f"{path} cannot be read as parquet ({one_line(error)}). {remedy}") from error
    _check_columns(table, columns, path, remedy)
    return table


def _read_bytes(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise foreseen(error) or error from error


def _check_columns(table: pd.DataFrame, columns: Sequence[str], path: Path, remedy: str) -> None:
    missing = [name for name in columns if name not in table]
    if missing:
        raise InputError(f"{path} lacks the columns {missing}; it has {list(table.columns)}. {remedy}")
