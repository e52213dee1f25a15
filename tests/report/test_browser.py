"""Pages as people see and use them, in a real browser."""

import re

import pytest

from kdml_med.report.document import Paragraph, Picture, Section, Table
from kdml_med.report.figures import new_figure, style
from kdml_med.report.pages import write_html
from tests.report.browser import DARK, needs_browser, open_page, print_page, widths_of
from tests.report.documents import HOSTILE, MARKUP, all_parts

pytestmark = [pytest.mark.slow, needs_browser]

VALUES = ["0.9", "–", "0.10 (0.05–0.20)", "−0.5", "1,200", "not defined", "", "80 %", "< 0.001", "– (one class)"]
ASCENDING = ["−0.5", "< 0.001", "0.10 (0.05–0.20)", "0.9", "80 %", "1,200", "–", "not defined", "", "– (one class)"]
DESCENDING = ["1,200", "80 %", "0.9", "0.10 (0.05–0.20)", "< 0.001", "−0.5", "–", "not defined", "", "– (one class)"]
NAMES = ["patient-10", "Patient-9", "patient-1", "", "patient-100", "Änne", "zoë", "3", "20", MARKUP]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with every part, and hostile names in all of them."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_html(path, MARKUP, all_parts())
    return path.read_text()


@pytest.fixture
def sortable(tmp_path):
    """A page with one table."""
    rows = [[name, value] for name, value in zip(NAMES, VALUES, strict=True)]
    table = Table(["name", "value"], rows, sortable=True, filterable=True)
    write_html(tmp_path / "sortable.html", "T", [Section("T", [table])])
    return (tmp_path / "sortable.html").read_text()


@pytest.mark.parametrize("flags", [(), (DARK,)])
def test_a_page_opens_without_errors_and_asks_for_nothing(page, tmp_path, flags):
    opened = open_page(page, tmp_path, *flags)
    assert opened.console == []
    assert opened.requests == []
    assert all(f"patient-{number}" in opened.dom for number in range(len(HOSTILE), 60))


def test_a_page_is_whole_without_its_script(page, tmp_path):
    script = """
        const seen = (selector) => [...document.querySelectorAll(selector)].filter((one) => one.offsetHeight).length;
        return ["tbody tr", "button", "input", "figure", "summary"].map(seen);
    """
    without = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    rows = page.count('<tr><th scope="row"')
    assert open_page(without, tmp_path, script=script).result == [rows, 0, 0, page.count("<figure"), 2]


def test_what_a_page_asks_for_would_be_noticed(page, tmp_path):
    outside = "http://127.0.0.1:9/outside.png"
    asking = page.replace("<h1>", f'<img src="{outside}"><script>console.log("run")</script><h1>')
    (tmp_path / "refused").mkdir()
    refused = open_page(asking, tmp_path / "refused")
    assert refused.requests == []
    assert len(refused.console) >= 2
    (tmp_path / "allowed").mkdir()
    allowed = open_page(re.sub(r"<meta http-equiv[^>]*>", "", asking), tmp_path / "allowed")
    assert outside in allowed.requests


def test_no_hostile_name_is_run(page, tmp_path):
    script = "return [document.scripts.length, document.querySelectorAll('[onerror]').length, document.title]"
    assert open_page(page, tmp_path, script=script).result == [2, 0, MARKUP]


def test_a_page_is_never_wider_than_its_window(page, tmp_path):
    taken = widths_of(page, tmp_path, [320, 390, 768, 1100, 1600])
    assert [own for own, given in taken if own > given] == []
    (tmp_path / "wide").mkdir()
    wide = page.replace("<h1>", '<div style="width: 900px">wide</div><h1>')
    assert [own > given for own, given in widths_of(wide, tmp_path / "wide", [320, 1600])] == [True, False]


def test_figures_follow_light_and_dark(page, tmp_path):
    script = """
        const seen = (selector, what) => getComputedStyle(document.querySelector(selector))[what];
        return [seen("body", "backgroundColor"), seen("svg text", "fill"), seen("body", "color")];
    """
    shown = []
    for name, flags in (("light", ()), ("dark", (DARK,))):
        (tmp_path / name).mkdir()
        shown.append(open_page(page, tmp_path / name, *flags, script=script).result)
    assert shown[0] == ["rgb(255, 255, 255)", "rgb(34, 34, 34)", "rgb(27, 28, 31)"]
    assert shown[1] == ["rgb(23, 24, 26)", "rgb(230, 230, 233)", "rgb(231, 231, 234)"]


def test_letters_of_a_figure_keep_their_distance(tmp_path):
    with style():
        figure, (axis,) = new_figure(2)
        axis.text(0, 0, "a     b")
        axis.text(0, 1, "a b")
    write_html(tmp_path / "figure.html", "T", [Section("T", [Picture("f.png", "F", figure)])])
    script = """
        const texts = [...document.querySelectorAll("svg text")].filter((one) => one.textContent.startsWith("a"));
        return texts.map((one) => one.getComputedTextLength());
    """
    wide, narrow = open_page((tmp_path / "figure.html").read_text(), tmp_path, script=script).result
    assert wide > 1.5 * narrow


@pytest.mark.parametrize("flags", [(), (DARK,)])
def test_words_have_the_contrast_that_readers_need(page, tmp_path, flags):
    """WCAG 2.2, 1.4.3: at least 4.5 to 1, on the ground that is painted below them."""
    script = """
        const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
        const light = (colour) => {
            const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
            const [r, g, b] = parts(colour).map((c) => linear(c / 255));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const ground = (one) => {
            for (let at = one; at; at = at.parentElement) {
                const colour = getComputedStyle(at).backgroundColor;
                if ((parts(colour)[3] ?? 1) === 1) return colour;
            }
            return "rgb(255, 255, 255)";
        };
        const said = (one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
        document.querySelectorAll("details").forEach((one) => { one.open = true; });
        const seen = {};
        for (const one of document.querySelectorAll("body *")) {
            if (!said(one) || one.closest("script")) continue;
            const style = getComputedStyle(one);
            const [x, y] = [light(one.closest("svg") ? style.fill : style.color), light(ground(one))];
            const ratio = (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
            const name = one.closest("svg") ? "svg" : one.tagName.toLowerCase();
            seen[name] = Math.min(seen[name] ?? 21, ratio);
        }
        return seen;
    """
    seen = open_page(page, tmp_path, *flags, script=script).result
    assert {"p", "td", "th", "figcaption", "a", "svg", "button"} <= set(seen)
    assert {name: ratio for name, ratio in seen.items() if ratio < 4.5} == {}


def test_tables_sort_by_a_click_or_a_key(sortable, tmp_path):
    script = """
        const column = (place) => [...document.querySelectorAll("tbody tr")].map((row) => row.cells[place].textContent);
        const heads = [...document.querySelectorAll("thead th")];
        const said = () => heads.map((head) => head.getAttribute("aria-sort"));
        const found = { values: [], names: [], sorts: [said()], focus: [] };
        for (let click = 0; click < 3; click++) {
            heads[1].querySelector("button").click();
            found.values.push(column(1));
            found.sorts.push(said());
        }
        heads[0].querySelector("button").click();
        found.names = column(0);
        found.sorts.push(said());
        for (const head of heads) {
            head.querySelector("button").focus();
            found.focus.push(document.activeElement.textContent);
        }
        return found;
    """
    found = open_page(sortable, tmp_path, script=script).result
    assert found["values"] == [ASCENDING, DESCENDING, VALUES]
    assert found["sorts"] == [
        ["none", "none"], ["none", "ascending"], ["none", "descending"], ["none", "none"], ["ascending", "none"],
    ]  # fmt: skip
    assert found["names"] == [
        MARKUP, "3", "20", "Änne", "patient-1", "Patient-9", "patient-10", "patient-100", "zoë", "",
    ]  # fmt: skip
    assert found["focus"] == ["name", "value"]


def test_tables_show_the_rows_that_are_looked_for_and_count_them(sortable, tmp_path):
    script = """
        const input = document.querySelector("input[type=search]");
        const rows = [...document.querySelectorAll("tbody tr")];
        const shown = () => [
            rows.filter((row) => row.offsetHeight).map((row) => row.cells[0].textContent),
            document.querySelector("output").textContent,
        ];
        const found = [shown()];
        for (const text of ["PATIENT-1", "patient 1,2", "<script>", "nobody"]) {
            input.value = text;
            input.dispatchEvent(new Event("input"));
            found.push(shown());
        }
        input.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
        found.push(shown());
        return found;
    """
    whole = [NAMES, "10 rows"]
    assert open_page(sortable, tmp_path, script=script).result == [
        whole,
        [["patient-10", "patient-1", "patient-100"], "3 of 10 rows"],
        [["patient-100"], "1 of 10 rows"],
        [[MARKUP], "1 of 10 rows"],
        [[], "0 of 10 rows"],
        whole,
    ]


def test_folded_sections_open_for_a_link_and_for_printing(page, tmp_path):
    script = """
        const folded = () => [...document.querySelectorAll("details")].map((one) => one.open);
        const found = [folded()];
        dispatchEvent(new Event("beforeprint"));
        found.push(folded());
        dispatchEvent(new Event("afterprint"));
        found.push(folded());
        const followed = new Promise((done) => addEventListener("hashchange", done));
        document.querySelector("nav a[href='#commands']").click();
        await followed;
        found.push(folded());
        return found;
    """
    expected = [[False, False], [True, True], [False, False], [True, False]]
    assert open_page(page, tmp_path, script=script).result == expected


def test_what_is_folded_is_printed(tmp_path):
    sheets = []
    for name, folded in (("open", False), ("folded", True)):
        (tmp_path / name).mkdir()
        section = Section("Long", [Paragraph("Words.")] * 300, folded=folded)
        write_html(tmp_path / "long.html", "T", [section])
        sheets.append(print_page((tmp_path / "long.html").read_text(), tmp_path / name))
    assert sheets[0] == sheets[1] > 3


def test_a_table_of_ten_thousand_patients_opens_and_sorts(tmp_path):
    rows = [[f"patient-{number}", *[f"{number * 7919 % 10_000 / 10_000:.4f}"] * 10] for number in range(10_000)]
    columns = ["patient", *[f"figure {number}" for number in range(10)]]
    table = Table(columns, rows, sortable=True, filterable=True)
    write_html(tmp_path / "table.html", "T", [Section("T", [table])])
    page = (tmp_path / "table.html").read_text()
    assert len(page) < 5_000_000
    script = """
        document.querySelectorAll("thead button")[1].click();
        return [...document.querySelectorAll("tbody tr")].slice(0, 3).map((row) => row.cells[1].textContent);
    """
    assert open_page(page, tmp_path, script=script).result == ["0.0000", "0.0001", "0.0002"]
