"""Pages of a small document that is about nothing."""

import base64
import re
from pathlib import Path

import pytest

from kdml_med.report import pages
from kdml_med.report.document import Bullets, Paragraph, Picture, Section, Table
from kdml_med.report.figures import new_figure, style
from kdml_med.report.pages import write_pages

MARKUP = "<script>alert(1)</script>"


def document():
    with style():
        figure, (axis,) = new_figure(1.5)
        axis.plot([0, 1], [0, 1])
    return [
        Section("Beware & be warned", [Paragraph("Nothing is known.", lead="Caution.")], banner=True),
        Section(MARKUP, [Paragraph(MARKUP, lead=MARKUP), Bullets([MARKUP, "second"])]),
        Section(
            "Figures", [Table(["name", MARKUP], [["a|b", "1"]], title=MARKUP), Picture("line.png", MARKUP, figure)]
        ),
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A document, with a figure of an earlier one left in its folder."""
    out = tmp_path_factory.mktemp("pages")
    (out / "figures").mkdir()
    (out / "figures" / "earlier.png").write_bytes(b"")
    assert write_pages(out, MARKUP, document()) == ["figures/line.png"]
    return out


def test_pages_and_figures_are_the_same_bytes_twice(written, tmp_path):
    write_pages(tmp_path, MARKUP, document())
    names = sorted(path.relative_to(written).as_posix() for path in written.rglob("*.*"))
    assert names == ["figures/line.png", "report.html", "report.md"]
    for name in names:
        assert (written / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_the_page_needs_no_other_file(written):
    page = (written / "report.html").read_text()
    targets = re.findall(r"(?:src|href)=\"([^\"]*)\"|url\(([^)]*)\)|@import", page)
    assert targets
    for target in (first or second for first, second in targets):
        assert target.startswith(("#", "data:image/png;base64,"))
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)
    assert base64.b64encode((written / "figures/line.png").read_bytes()).decode() in page


def test_no_text_can_become_markup(written):
    page = (written / "report.html").read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 8


def test_every_part_is_there_in_both_pages(written):
    markdown, page = ((written / name).read_text() for name in ("report.md", "report.html"))
    assert "> **Caution.** Nothing is known." in markdown
    assert "- second" in markdown
    assert "a\\|b" in markdown
    assert "](figures/line.png)" in markdown
    assert '<section id="beware-be-warned" class="banner" role="alert">' in page
    assert '<a href="#beware-be-warned">' in page
    assert "<strong>Caution.</strong> Nothing is known." in page
    assert "<li>second</li>" in page
    assert '<td class="figure">1</td>' in page


def test_figures_name_neither_program_nor_date(written):
    assert not re.search(rb"tEXt|iTXt|zTXt|tIME", (written / "figures/line.png").read_bytes())


def test_templates_are_part_of_the_package():
    names = {path.name for path in (Path(pages.__file__).parent / "templates").iterdir()}
    assert names == {"report.md.jinja", "report.html.jinja"}
