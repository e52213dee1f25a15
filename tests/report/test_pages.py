"""Pages of a small document that is about nothing."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kdml_med.report import pages
from kdml_med.report.document import Bullets, Gallery, Paragraph, Picture, Section, Table, Thumbnail
from kdml_med.report.figures import new_figure, style
from kdml_med.report.pages import write_html, write_pages
from tests.report.documents import HOSTILE, MARKUP, all_parts, image

VOID = {"meta", "link", "br", "img", "input"}


class Elements(HTMLParser):
    """Every element with its attributes, and the text of the page outside of style and script."""

    def __init__(self, page):
        super().__init__()
        self.found, self.open, self.words = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.found if name == tag]

    @property
    def text(self):
        return "\n".join(self.words)


def line(text=""):
    with style():
        figure, (axis,) = new_figure(1.5)
        axis.plot([0, 1], [0, 1])
        axis.set_title(text)
    return figure


def document():
    return [
        Section("Beware & be warned", [Paragraph("Nothing is known.", lead="Caution.")], banner=True),
        Section(MARKUP, [Paragraph(MARKUP, lead=MARKUP), Bullets([MARKUP, "second"])]),
        Section(
            "Figures",
            [Table(["name", MARKUP], [["a|b", "1"]], title=MARKUP), Picture("line.png", MARKUP, line(MARKUP))],
        ),
        Section("Nothing", []),
    ]


def page_of(tmp_path, sections, title="A title"):
    write_html(tmp_path / "page.html", title, sections)
    return (tmp_path / "page.html").read_text()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A document, in the folder of an earlier one with another figure."""
    out = tmp_path_factory.mktemp("pages")
    write_pages(out, "Before", [Section("Figures", [Picture("earlier.png", "before", line("before"))])])
    assert (out / "figures" / "earlier.png").is_file()
    assert write_pages(out, MARKUP, document()) == ["figures/line.png"]
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The page and the Markdown of a document with every part and hostile names in all of them."""
    out = tmp_path_factory.mktemp("whole")
    write_pages(out, MARKUP, all_parts())
    return Elements((out / "report.html").read_text()), (out / "report.md").read_text()


def test_pages_and_figures_are_the_same_bytes_twice(written, tmp_path):
    write_pages(tmp_path, MARKUP, document())
    names = sorted(path.relative_to(written).as_posix() for path in written.rglob("*.*"))
    assert names == ["figures/line.png", "report.html", "report.md"]
    for name in names:
        assert (written / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_pictures_that_no_report_has_made_stay(tmp_path):
    mine = tmp_path / "figures" / "figure_1_of_my_paper.png"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    for _ in range(2):
        write_pages(tmp_path, MARKUP, document())
    assert mine.read_bytes() == b"mine"


def test_the_page_needs_no_other_file(whole):
    targets = [value for _, attributes in whole[0].found for key, value in attributes.items() if key in ("src", "href")]
    assert len(targets) > 20
    assert all(re.match(r"#|data:(?:image/(?:png|jpeg);base64)?,", target) for target in targets)


def test_the_page_runs_its_own_script_alone_and_asks_the_network_for_nothing(written):
    page = (written / "report.html").read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [own["content"] for own in Elements(page).of("meta") if own.get("http-equiv")]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules == {
        "default-src": "'none'", "img-src": "data:", "style-src": "'unsafe-inline'", "base-uri": "'none'",
        "form-action": "'none'", "script-src": f"'sha256-{digest}'",
    }  # fmt: skip


def test_no_text_can_become_markup(whole):
    elements = whole[0]
    assert not elements.open
    assert len(elements.of("script")) == 1
    assert all("onerror" not in attributes for _, attributes in elements.found)
    assert len(elements.of("table")) == 2
    assert {attributes["alt"] for attributes in elements.of("img")} == set(HOSTILE[:5])


@pytest.mark.parametrize("text", HOSTILE[:5])
def test_hostile_names_are_shown_as_they_are(whole, text):
    # In a table of facts, a table of patients, a list, a paragraph and its lead, a block of code, and a gallery.
    assert whole[0].text.count(text) >= 7


def test_characters_that_no_page_can_hold_are_marked(tmp_path):
    page = page_of(tmp_path, [Section("\x00\udc80", [Paragraph("a\x1bb"), Picture("p.png", "\x01", line("c\x08d"))])])
    assert "a�b" in page
    assert not re.search("[\x00-\x08\x1b]", page)


def test_markdown_is_text_too(whole):
    markdown = whole[1]
    outside = re.sub(r"^(`{3,})text\n.*?^\1$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"(?<!\\)<[a-z/]", outside)
    assert "\\{" not in outside
    assert "{{ x }}" in outside
    assert "a & b \\&amp; c" in outside
    assert "(http://b)" not in outside.replace("\\](http://b)", "")
    rows = [row for row in markdown.splitlines() if row.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3, 6}


def test_every_part_is_there_in_both_pages(written):
    markdown, page = ((written / name).read_text() for name in ("report.md", "report.html"))
    assert "> **Caution.** Nothing is known." in markdown
    assert "- second" in markdown
    assert "a\\|b" in markdown
    assert "](figures/line.png)" in markdown
    assert '<section id="beware-be-warned" class="banner" role="note">' in page
    assert '<a href="#beware-be-warned">' in page
    assert "<strong>Caution.</strong> Nothing is known." in page
    assert "<li>second</li>" in page
    assert '<tr><th scope="row" class="n">a|b</th><td>1</td></tr>' in page


def test_sections_that_say_nothing_are_left_out(written):
    for name in ("report.md", "report.html"):
        assert "Nothing\n" not in (written / name).read_text().replace("Nothing is", "")
    assert "#nothing" not in (written / "report.html").read_text()


def test_links_and_names_within_a_page_lead_to_one_place(whole):
    names = [attributes["id"] for _, attributes in whole[0].found if "id" in attributes]
    assert len(names) == len(set(names))
    links = [attributes["href"][1:] for _, attributes in whole[0].found if attributes.get("href", "").startswith("#")]
    assert set(links) <= set(names)
    assert {"patients", "patients-2"} <= set(links)


def test_sections_without_letters_in_their_titles_can_be_linked(tmp_path):
    page = page_of(tmp_path, [Section("?", [Paragraph("a")]), Section("!", [Paragraph("b")])])
    assert re.findall(r'<section id="([^"]*)"', page) == ["section", "section-2"]


def test_an_introduction_has_no_heading_and_no_link(tmp_path):
    elements = Elements(page_of(tmp_path, [Section("", [Paragraph("Before all.")])]))
    assert not elements.of("h2")
    assert not elements.of("li")
    assert "Before all." in elements.text


def test_a_long_table_scrolls_on_its_own(tmp_path):
    for rows, long in ((pages.LONG_TABLE, False), (pages.LONG_TABLE + 1, True)):
        page = page_of(tmp_path, [Section("T", [Table(["a", "b"], [["x", "1"]] * rows)])])
        assert ('class="scroll long"' in page) is long


def test_only_tables_that_ask_for_it_sort_and_filter(tmp_path):
    tables = [Table(["a"], [["x"]], sortable=True), Table(["a"], [["x"]], filterable=True), Table(["a"], [["x"]])]
    found = Elements(page_of(tmp_path, [Section("T", tables)])).of("table")
    assert [("data-sortable" in table, "data-filterable" in table) for table in found] == [
        (True, False), (False, True), (False, False),
    ]  # fmt: skip


def test_pictures_that_follow_each_other_stand_side_by_side(tmp_path):
    parts = [
        Picture("a.png", "a", line()),
        Picture("b.png", "b", line()),
        Paragraph("."),
        Picture("c.png", "c", line()),
    ]
    page = page_of(tmp_path, [Section("P", parts)])
    assert [row.count("<figure") for row in page.split('<div class="figures">')[1:]] == [2, 1]


def test_thumbnails_beyond_the_budget_are_left_out_and_counted(tmp_path, monkeypatch):
    pictures = [Thumbnail(image("red"), f"picture {number}") for number in range(5)]
    monkeypatch.setattr(pages, "MOST_PICTURE_BYTES", 3 * len(pictures[0].image))
    gallery, second = Gallery(pictures[:4]), Gallery(pictures[4:])
    elements = Elements(page_of(tmp_path, [Section("G", [gallery, second])]))
    assert [own["alt"] for own in elements.of("img")] == ["picture 0", "picture 1", "picture 2"]
    assert elements.text.count("1 more picture is left out") == 2


def test_thumbnails_are_files_beside_markdown(tmp_path):
    items = [Thumbnail(image("red"), "first"), Thumbnail(image("blue", kind="JPEG"), "second", "a blue one")]
    names = write_pages(tmp_path, "G", [Section("G", [Gallery(items, title="Two")])])
    assert names == ["figures/gallery-1-001.png", "figures/gallery-1-002.jpeg"]
    assert [(tmp_path / name).read_bytes() for name in names] == [item.image for item in items]
    assert "- ![a blue one](figures/gallery-1-002.jpeg) second" in (tmp_path / "report.md").read_text()
    assert write_pages(tmp_path, "G", []) == []
    assert not list((tmp_path / "figures").iterdir())


def test_a_thumbnail_is_a_png_or_jpeg_file():
    with pytest.raises(ValueError, match="PNG or JPEG"):
        _ = Thumbnail(b"GIF89a", "a GIF").suffix


def test_figures_name_neither_program_nor_date(written):
    assert not re.search(rb"tEXt|iTXt|zTXt|tIME", (written / "figures/line.png").read_bytes())
    assert "matplotlib" not in (written / "report.html").read_text().lower()


def test_templates_are_part_of_the_package():
    names = {path.name for path in (Path(pages.__file__).parent / "templates").iterdir()}
    assert names == {"report.md.jinja", "report.html.jinja", "report.css.jinja", "report.js.jinja"}
