"""Tables as text: in Markdown, and aligned for a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from kdml_med.report.document import Table


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table, values by column."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


# What has a meaning in the middle of a line, where it has it: "p < 0.001" and "student_0" stay as they are.
_MARKDOWN = re.compile(
    r"[`*\[\]|$~]|\\(?=[!-/:-@\[-`{-~])|<(?=[A-Za-z/!?])|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])",
)
_MARKDOWN_START = re.compile(r"^(?:[#>=+-]|\d+(?=[.)](?:\s|$)))")


def markdown_text(text: str) -> str:
    """Text on one line that Markdown shows as it stands."""
    escaped = _MARKDOWN.sub(lambda found: f"\\{found[0]}", " ".join(text.split()))
    return _MARKDOWN_START.sub(lambda found: found[0] + "\\" if found[0].isdigit() else f"\\{found[0]}", escaped)


def code_fence(text: str) -> str:
    """Backticks around a block of code: more of them than it has itself."""
    return "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))


def markdown_table(table: Table) -> str:
    """A table in Markdown, its columns as wide as their cells."""
    rows = [[_markdown_cell(cell) for cell in row] for row in [table.columns, *table.rows]]
    widths = [max(3, *(len(row[place]) for row in rows)) for place in range(len(table.columns))]

    def line(row: list[str]) -> str:
        cells = [
            cell.ljust(width) if place < table.names else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * width if place < table.names else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    lines = [line(rows[0]), f"| {' | '.join(rule)} |", *map(line, rows[1:])]
    return "\n".join([*([f"**{markdown_text(table.title)}**", ""] if table.title else []), *lines])


def _markdown_cell(text: str) -> str:
    """Nothing has a meaning at the beginning of a cell: "-0.5" and "+0.5" stay as they are."""
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", " ".join(text.split()))


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, note: str = "") -> str:
    """A table for a terminal, its columns as wide as their cells; ``note`` stands below it, after an empty line."""
    every = [header, *rows]
    widths = [max(len(row[column]) for row in every) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in every]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, *(["", note] if note else [])])
