from hypothesis import given
from hypothesis import strategies as st

from kdml_med.report.document import Table, without_empty_columns
from kdml_med.report.tables import markdown_table, text_table

CELLS = st.text(st.characters(categories=["L", "N"], include_characters="| .-"), max_size=12).map(str.strip)
SHAPES = st.integers(1, 4).flatmap(
    lambda columns: st.lists(st.lists(CELLS, min_size=columns, max_size=columns), min_size=1, max_size=5)
)


def test_a_table_in_markdown_has_words_on_the_left_and_figures_on_the_right():
    table = Table(["arm", "AUROC"], [["a|b", "0.9"], ["one", "0.85"]], title="All")
    assert markdown_table(table).splitlines() == [
        "**All**",
        "",
        "| arm  | AUROC |",
        "| ---- | ----: |",
        "| a\\|b |   0.9 |",
        "| one  |  0.85 |",
    ]


@given(SHAPES)
def test_every_line_of_a_table_in_markdown_is_equally_long_and_keeps_its_cells(rows):
    lines = markdown_table(Table(rows[0], rows[1:], names=1)).splitlines()
    assert len({len(line) for line in lines}) == 1
    for line, row in zip([lines[0], *lines[2:]], rows, strict=True):
        cells = [cell.strip() for cell in line.replace("\\|", "\0").split("|")[1:-1]]
        assert [cell.replace("\0", "|") for cell in cells] == row


def test_a_table_for_a_terminal_is_aligned_and_has_its_note_below():
    table = text_table(["network", "n"], [["teacher", "12"], ["a", ""]], note="Few.")
    assert table.splitlines() == ["network  n", "-------  --", "teacher  12", "a", "", "Few."]


@given(SHAPES)
def test_columns_of_a_table_for_a_terminal_stand_below_each_other(rows):
    lines = text_table(rows[0], rows[1:]).split("\n")
    widths = [len(rule) for rule in lines[1].split("  ")] if lines[1] else [0]
    if min(widths) == 0:  # a column of empty cells has no rule to be found by
        return
    for line, row in zip([lines[0], *lines[2:]], rows, strict=True):
        start = 0
        for cell, width in zip(row, widths, strict=True):
            assert line[start : start + width].rstrip() == cell
            start += width + 2


def test_columns_that_say_nothing_are_left_out():
    table = Table(["arm", "of", "n", "p"], [["a", "", "1", ""], ["b", "", "", ""]], title="All", names=2)
    assert without_empty_columns(table) == Table(["arm", "n"], [["a", "1"], ["b", ""]], title="All", names=1)
