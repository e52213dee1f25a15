"""What a report is made of, before it becomes Markdown or HTML."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}


@dataclass(frozen=True)
class Paragraph:
    """Plain text; ``lead`` is its first words, in bold."""

    text: str
    lead: str = ""
    kind = "paragraph"


@dataclass(frozen=True)
class Heading:
    """A heading within a section, for what belongs together in it."""

    text: str
    kind = "heading"


@dataclass(frozen=True)
class Bullets:
    """A list of plain texts."""

    items: Sequence[str]
    kind = "bullets"


@dataclass(frozen=True)
class Code:
    """Text that is typed as it stands, such as a command; lines stay lines."""

    text: str
    kind = "code"


@dataclass(frozen=True)
class Table:
    """Cells are texts; the first ``names`` columns are words, the others figures, which stand on the right.

    Attributes:
        columns: headings.
        rows: as many cells as columns.
        title: stands above the table.
        names: number of columns of words.
        sortable: the page lets people sort it by any column: numbers as numbers, cells that hold no figure last.
        filterable: the page lets people look for rows that hold some words.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    names: int = 1
    sortable: bool = False
    filterable: bool = False
    kind = "table"


@dataclass(frozen=True)
class Picture:
    """A figure with its file name and what it shows; the caption is read out to people who cannot see it."""

    name: str
    caption: str
    figure: Figure
    kind = "picture"


@dataclass(frozen=True)
class Thumbnail:
    """A small picture of a gallery.

    Attributes:
        image: content of a PNG or JPEG file.
        caption: stands below it; line breaks are kept.
        alt: what the picture shows, for people who cannot see it; the caption where it is empty.
    """

    image: bytes
    caption: str
    alt: str = ""

    @property
    def suffix(self) -> str:
        """Of a file with this content, and of its media type.

        Raises:
            ValueError: neither PNG nor JPEG.
        """
        for signature, suffix in _SIGNATURES.items():
            if self.image.startswith(signature):
                return suffix
        raise ValueError(f"A thumbnail is a PNG or JPEG file; these {len(self.image)} bytes are neither.")


@dataclass(frozen=True)
class Gallery:
    """Small pictures side by side, as many in a row as fit.

    Attributes:
        items: pictures.
        title: stands above them.
        wide: each picture holds two, which need the room of two.
    """

    items: Sequence[Thumbnail]
    title: str = ""
    wide: bool = False
    kind = "gallery"


Part = Paragraph | Heading | Bullets | Code | Table | Picture | Gallery


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; one without a title is an introduction.

    Attributes:
        title: its heading.
        parts: from top to bottom.
        banner: a warning that must not be missed.
        folded: only the heading is seen until somebody opens it; printed, it is open.
    """

    title: str
    parts: Sequence[Part]
    banner: bool = False
    folded: bool = False

    @property
    def anchor(self) -> str:
        """Name for links within the page; that of another section of the page can be the same."""
        return "-".join("".join(letter if letter.isalnum() else " " for letter in self.title.lower()).split())


def without_empty_columns(table: Table) -> Table:
    """A table less the columns that say nothing in any row."""
    kept = [place for place in range(len(table.columns)) if any(row[place] for row in table.rows)]
    rows = [[row[place] for place in kept] for row in table.rows]
    names = sum(place < table.names for place in kept)
    return dataclasses.replace(table, columns=[table.columns[place] for place in kept], rows=rows, names=names)
