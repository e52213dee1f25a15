"""What a report is made of, before it becomes Markdown or HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Paragraph:
    """Plain text; ``lead`` is its first words, in bold."""

    text: str
    lead: str = ""
    kind = "paragraph"


@dataclass(frozen=True)
class Bullets:
    """A list of plain texts."""

    items: Sequence[str]
    kind = "bullets"


@dataclass(frozen=True)
class Table:
    """Cells are texts; the first ``names`` columns are words, the others figures, which stand on the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    names: int = 1
    kind = "table"


@dataclass(frozen=True)
class Picture:
    """A figure with its file name and what it shows; the caption is read out to people who cannot see it."""

    name: str
    caption: str
    figure: Figure
    kind = "picture"


Part = Paragraph | Bullets | Table | Picture


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; ``banner`` sections are warnings that must not be missed."""

    title: str
    parts: Sequence[Part]
    banner: bool = False

    @property
    def anchor(self) -> str:
        """Name for links within the page."""
        return "-".join("".join(letter if letter.isalnum() else " " for letter in self.title.lower()).split())


def without_empty_columns(table: Table) -> Table:
    """A table less the columns that say nothing in any row."""
    kept = [place for place in range(len(table.columns)) if any(row[place] for row in table.rows)]
    rows = [[row[place] for place in kept] for row in table.rows]
    names = sum(place < table.names for place in kept)
    return Table([table.columns[place] for place in kept], rows, table.title, names)
