"""A document as Markdown with its figures beside it, and as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from kdml_med.report.document import Picture, Section
from kdml_med.report.figures import save_figure
from kdml_med.report.tables import markdown_table
from kdml_med.storage.files import write_atomically

FIGURES_DIR = "figures"
REPORT_NAME = "report"


def write_pages(out: Path, title: str, sections: Sequence[Section]) -> list[str]:
    """Write the figures, report.md and report.html; figures of an earlier report in the same folder are removed.

    Args:
        out: an existing folder.
        title: heading of the report.
        sections: in the order in which they are read; the names of their pictures differ.

    Returns:
        Names of the figures, relative to ``out``.
    """
    folder = out / FIGURES_DIR
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [part for section in sections for part in section.parts if isinstance(part, Picture)]
    for picture in pictures:
        save_figure(picture.figure, folder / picture.name)
    names = {picture.name for picture in pictures}
    for path in folder.glob("*.png"):
        if path.name not in names:
            path.unlink()  # of an earlier report, on other results

    def image(name: str) -> str:
        return base64.b64encode((folder / name).read_bytes()).decode()

    for suffix in ("md", "html"):
        environment = Environment(
            loader=PackageLoader("kdml_med.report"),
            autoescape=suffix == "html",
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        template = environment.get_template(f"{REPORT_NAME}.{suffix}.jinja")
        text = template.render(title=title, sections=sections, table=markdown_table, image=image)
        write_atomically(out / f"{REPORT_NAME}.{suffix}", text.encode())
    return [f"{FIGURES_DIR}/{name}" for name in sorted(names)]
