"""A document as one HTML page that needs nothing else, and as Markdown with its figures beside it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from kdml_med.report.document import Gallery, Part, Picture, Section, Thumbnail
from kdml_med.report.figures import save_figure
from kdml_med.report.tables import code_fence, markdown_table, markdown_text
from kdml_med.report.vector import NO_XML, colour_variables, figure_pixels, inline_svg
from kdml_med.storage.files import write_atomically

FIGURES_DIR = "figures"
REPORT_NAME = "report"
LONG_TABLE = 25
"""Rows from which a table scrolls on its own, below a head that stays."""
MOST_PICTURE_BYTES = 6_000_000
"""Of the thumbnails of a page, which stays below 10 MB although letters need a third more; the rest is left out."""

_HALF = 500
"""Pixels up to which two figures fit side by side on paper."""


def write_html(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Write one HTML page that needs no other file and no network, and runs no script but its own.

    Thumbnails beyond ``MOST_PICTURE_BYTES`` are left out, and their gallery says so.

    Args:
        path: of the page, in an existing folder.
        title: its heading.
        sections: in the order in which they are read; those without parts are left out.
    """
    environment = _environment(autoescape=True)
    script = environment.get_template("report.js.jinja").render()
    text = environment.get_template("report.html.jinja").render(
        title=title,
        sections=_named(sections),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        colours=colour_variables(),
        svg=_numbered_svg(),
        pixels=figure_pixels,
        half=_HALF,
        blocks=_blocks,
        shown=_lookup(_within_budget(sections)),
        data=lambda item: f"data:image/{item.suffix};base64,{base64.b64encode(item.image).decode()}",
        long_table=LONG_TABLE,
    )
    write_atomically(path, NO_XML.sub("�", text).encode())


def write_pages(out: Path, title: str, sections: Sequence[Section]) -> list[str]:
    """Write the figures, report.md and report.html; figures that only an earlier report.md there shows are removed.

    Args:
        out: an existing folder.
        title: heading of the report.
        sections: in the order in which they are read; the names of their pictures differ.

    Returns:
        Names of the figures and thumbnails, relative to ``out``.
    """
    folder, page = out / FIGURES_DIR, out / f"{REPORT_NAME}.md"
    folder.mkdir(parents=True, exist_ok=True)
    earlier = page.read_text(encoding="utf-8", errors="replace") if page.is_file() else ""
    parts = [part for section in sections for part in section.parts]
    pictures = {part.name: part for part in parts if isinstance(part, Picture)}
    thumbnails = _thumbnail_names(parts)
    for name, picture in pictures.items():
        save_figure(picture.figure, folder / name)
    for item, name in thumbnails:
        write_atomically(folder / name, item.image)
    names = {*pictures, *(name for _, name in thumbnails)}
    for path in [*folder.glob("*.png"), *folder.glob("*.jpeg")]:
        if path.name not in names and f"({FIGURES_DIR}/{path.name})" in earlier:
            path.unlink()  # on other results; pictures that no report has made are somebody else's
    write_html(out / f"{REPORT_NAME}.html", title, sections)
    text = (
        _environment(autoescape=False)
        .get_template("report.md.jinja")
        .render(
            title=title,
            sections=[section for section in sections if section.parts],
            table=markdown_table,
            text=markdown_text,
            file=_lookup((item, f"{FIGURES_DIR}/{name}") for item, name in thumbnails),
            fence=code_fence,
        )
    )
    write_atomically(page, NO_XML.sub("�", text).encode())
    return [f"{FIGURES_DIR}/{name}" for name in sorted(names)]


def _environment(*, autoescape: bool) -> Environment:
    return Environment(
        loader=PackageLoader("kdml_med.report"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _named(sections: Sequence[Section]) -> list[tuple[str, Section]]:
    """Sections that say something, each with a name for links that no other one has."""
    named: dict[str, Section] = {}
    for section in sections:
        if section.parts:
            name = wanted = section.anchor or "section"
            number = 1
            while name in named:
                number += 1
                name = f"{wanted}-{number}"
            named[name] = section
    return list(named.items())


def _blocks(parts: Sequence[Part]) -> list[list[Part]]:
    """Parts from top to bottom; pictures that follow each other stand side by side where they fit."""
    blocks: list[list[Part]] = []
    for part in parts:
        if isinstance(part, Picture) and blocks and isinstance(blocks[-1][-1], Picture):
            blocks[-1].append(part)
        else:
            blocks.append([part])
    return blocks


def _numbered_svg() -> Any:
    drawn = 0

    def svg(picture: Picture) -> str:
        nonlocal drawn
        drawn += 1
        return inline_svg(picture.figure, drawn, picture.caption)

    return svg


def _within_budget(sections: Sequence[Section]) -> Iterator[tuple[Gallery, list[Thumbnail]]]:
    """What a page shows of each gallery."""
    left = MOST_PICTURE_BYTES
    for part in (part for section in sections for part in section.parts):
        if isinstance(part, Gallery):
            shown = []
            for item in part.items:
                left -= len(item.image)
                if left >= 0:
                    shown.append(item)
            yield part, shown


def _lookup(pairs: Iterable[tuple[Any, Any]]) -> Callable[[Any], Any]:
    """A mapping by identity: parts of a document hold lists, and cannot be keys."""
    values = {id(key): value for key, value in pairs}
    return lambda key: values[id(key)]


def _thumbnail_names(parts: Sequence[Part]) -> list[tuple[Thumbnail, str]]:
    galleries = [part for part in parts if isinstance(part, Gallery)]
    return [
        (item, f"gallery-{place}-{number:03d}.{item.suffix}")
        for place, gallery in enumerate(galleries, start=1)
        for number, item in enumerate(gallery.items, start=1)
    ]
