"""Cells of CSV files that a spreadsheet would run as formulas, written so that it does not, and read as they were.

A text that starts with =, +, -, @, a tab or a line end gets an apostrophe in front, unless it is a plain number; and so
does what follows a semicolon, a tab or a line end within a text, where a spreadsheet that takes those for separators
begins a new cell (OWASP, "CSV Injection"; in much of Europe Excel separates cells by semicolons). Reading takes it
away, so that a patient called "=1+1" is the same patient in every file. A text that has such an apostrophe already gets
one more, so that nothing is read back as another text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


_STARTS = r"[=+\-@\t\r\n＝＋－＠]"  # the wide ones are run as well in East Asian settings
_BREAKS = r"[;\t\r\n]"
_NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]inf"
# A break is taken together with the quotation marks behind it, which a reader of cells leaves out.
_RUN = re.compile(rf"(\A|{_BREAKS})(\"*)(?='*{_STARTS})(?!(?:{_NUMBER})\Z)")
_GUARDED = re.compile(rf"(\A|{_BREAKS})(\"*)'(?='*{_STARTS})")


def guard(text: str) -> str:
    """A text as it is written into a cell."""
    return _RUN.sub(r"\1\2'", text)


def unguard(text: str) -> str:
    """A text as it was before it was written into a cell."""
    return _GUARDED.sub(r"\1\2", text)


def guarded(table: pd.DataFrame) -> pd.DataFrame:
    """A table as it is written; only texts change, numbers do not."""
    return _map_texts(table, guard)


def unguarded(table: pd.DataFrame) -> pd.DataFrame:
    """A table as it was before it was written."""
    return _map_texts(table, unguard)


def _map_texts(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    import pandas as pd

    def changed(value: Any) -> Any:
        return change(value) if isinstance(value, str) else value

    result = table.rename(columns=changed)
    for place, kind in enumerate(table.dtypes):
        if pd.api.types.is_object_dtype(kind) or isinstance(kind, pd.StringDtype | pd.CategoricalDtype):
            column = table.iloc[:, place]
            new = column.map(changed)
            if not new.equals(column):
                result.isetitem(place, new.array)
    return result
