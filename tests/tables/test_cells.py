import datetime
import sys
import unicodedata
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdml_med.errors import InputError
from kdml_med.tables.columns import read_text_table
from kdml_med.tables.names import same_name_form, slide_name
from tests.examples import examples


def table(folder: Path, content: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(folder: Path, content: str | bytes, name: str = "t.csv") -> list[list[str]]:
    frame = read_text_table(table(folder, content, name))
    return [list(frame.columns), *frame.to_numpy().tolist()]


def refused(folder: Path, content: str | bytes, message: str, name: str = "t.csv") -> None:
    with pytest.raises(InputError, match=message):
        read(folder, content, name)


PLAIN = [["patient", "label"], ["Müller", "MSI"], ["007", "MSS"]]
TEXT = "patient;label\nMüller;MSI\n007;MSS\n"


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        TEXT.replace("\n", "\r").encode(),
        TEXT.replace("\n", "\r\n\r\n").encode(),
        ("sep=;\n" + TEXT).encode(),
        ('\ufeff"SEP=;"\r\n' + TEXT).encode(),
        TEXT.replace(";", "|").replace("patient", "sep=|\npatient").encode(),
        TEXT.replace("\n", ";;\n").encode(),
        TEXT.replace("\n", ";\n").replace("label;", "label").encode(),  # only the rows end in a separator
        unicodedata.normalize("NFD", TEXT).encode(),
        TEXT.replace("Müller", "\u00a0Müller\u200b ").encode(),
        TEXT.replace("Müller", ' "Müller"').encode(),
        TEXT.replace("Müller", '"Müller"  ').replace("MSS", '"MSS" ').encode(),
        ("# made by a program; 2024\n" + TEXT).encode(),
        ("#A;B\n#what;it is\n#STRING;STRING\n" + TEXT).encode(),
        TEXT.replace("007", '="007"').encode(),
        TEXT.replace("Müller", "\u202aMül\u200bler\u202c").encode(),
    ],
)
def test_one_table_in_many_dresses(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path, content) == PLAIN


@pytest.mark.parametrize("rows", [5, 20_000])
@pytest.mark.parametrize("wrong", [2, 4])
def test_open_quotation_mark_is_named_by_its_row_and_loses_nobody(tmp_path: Path, rows: int, wrong: int) -> None:
    notes = {wrong: '"ok'}
    lines = [f"{n}.png,P{n},{'MSI' if n % 2 else 'MSS'},{notes.get(n, 'ok')}" for n in range(2, rows + 2)]
    refused(tmp_path, "\n".join(["image,patient,label,note", *lines]), f"row {wrong}: .*quotation mark")


@settings(max_examples=examples(60))
@given(st.integers(2, 8), st.integers(2, 8), st.integers(0, 2))
def test_two_stray_quotation_marks_never_hide_the_rows_between(
    tmp_path_factory: pytest.TempPathFactory, one: int, other: int, column: int
) -> None:
    """Whatever the two rows: either every row is read, or the first of them is named."""
    first, last = sorted((one, other))
    lines = [["P" + str(row), "MSS", "ok"] for row in range(2, 9)]
    lines[first - 2][column] = '"' + lines[first - 2][column]
    lines[last - 2][2] += '"'
    content = "\n".join(["patient,label,note", *(",".join(cells) for cells in lines)])
    folder = tmp_path_factory.mktemp("t")
    try:
        found, said = len(read(folder, content)), ""
    except InputError as error:
        found, said = 0, str(error)
    assert found == 8 or f"row {first}:" in said


def test_line_breaks_within_a_quoted_cell_are_kept_and_rows_are_counted_as_in_the_file(tmp_path: Path) -> None:
    frame = read_text_table(table(tmp_path, 'patient,note,label\nP1,"two\nlines",MSI\nP2,,MSS\n'))
    assert frame["note"].tolist() == ["two\nlines", ""]
    assert frame.index.tolist() == [2, 4]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("patient,label\nP1,MSI\nM\u00fcller,MSS\n".encode("latin-1"), r"row 3: byte 0xfc .*Latin-1.*'CSV UTF-8'"),
        ("patient,label\rP1,MSI\rM\u00fcller,MSS\r".encode("cp1252"), "row 3: byte 0xfc"),
        (TEXT.encode("utf-16-le"), "UTF-8"),
        (TEXT.encode("utf-32"), None),
        (b"patient,label\nP1,MS\x00I\n", "row 2: a zero byte"),
        (b"\xff\xfe\x00\xd8\x00", "is not UTF-16 text"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", r"old Excel \(\.xls\)"),
        (b"PK\x03\x04\xff\xfe", "cannot be read as an Excel workbook"),
        (b"PK\x03\x04....mimetypeapplication/vnd.oasis.opendocument.spreadsheet", "an OpenDocument table"),
        (f"patient,label\nP1,{'x' * 140_000}\n", "row 2: a cell of more than 131,072 characters"),
        ("patient,,label\nP1,x,MSI\n", "row 2: column 2 holds 'x', but has no name"),
        ("patient,label,\nP1,MSI,x\n", "row 2: column 3 holds 'x', but has no name"),
        ("patient,label\nP1,MSI,x\n", "row 2: 3 cells, but the header in row 1 has 2"),
        ("patient,label\nP1\n", "row 2: 1 cells"),
        ('patient,label\n"P1"x,MSI\n', "row 2: text follows the quotation mark"),
        ("sep=;\n", "no rows"),
    ],
)
def test_what_cannot_be_read_is_named_by_its_row(tmp_path: Path, content: str | bytes, message: str | None) -> None:
    if message is None:
        assert read(tmp_path, content) == PLAIN
    else:
        refused(tmp_path, content, message)


def test_row_names_of_other_programs_are_no_column(tmp_path: Path) -> None:
    assert read(tmp_path, ",patient,label\n0,P1,MSI\n1,P2,MSS\n") == [
        ["patient", "label"],
        ["P1", "MSI"],
        ["P2", "MSS"],
    ]


@given(st.text(max_size=20))
def test_a_name_has_one_form(text: str) -> None:
    form = same_name_form(text)
    assert same_name_form(form) == form == same_name_form(f"\u00a0{unicodedata.normalize('NFD', text)} \ufeff")
    assert slide_name(unicodedata.normalize("NFD", text)) == slide_name(text)


def workbook(path: Path, rows: list[list[Any]], *more: list[list[Any]]) -> Path:
    book = openpyxl.Workbook()
    for number, content in enumerate((rows, *more)):
        sheet = book.active if number == 0 else book.create_sheet()
        for row in content:
            sheet.append(row)
    book.save(path)
    return path


def test_workbook_is_read_as_it_shows(tmp_path: Path) -> None:
    rows = [["patient", "label", "seen", "ok", None], [7.0, "MSI", datetime.date(2024, 3, 1), True, None]]
    path = workbook(tmp_path / "t.xlsx", [*rows, [None] * 5, [0.25, " M\u0308SS", None, 12, None]], [])
    frame = read_text_table(path)
    assert frame.to_numpy().tolist() == [["7", "MSI", "2024-03-01", "TRUE"], ["0.25", "M\u0308SS", "", "12"]]
    assert frame.index.tolist() == [2, 4]


def test_zeros_that_only_the_format_of_a_workbook_shows_are_kept(tmp_path: Path) -> None:
    book = openpyxl.load_workbook(workbook(tmp_path / "t.xlsx", [["patient"], [7]]))
    book.active["A2"].number_format = "000"
    book.save(tmp_path / "t.xlsx")
    assert read_text_table(tmp_path / "t.xlsx")["patient"].tolist() == ["007"]


@pytest.mark.parametrize(
    ("number", "number_format", "shown"),
    [
        (1, '"P"000', "P001"),
        (1, "\\P000", "P001"),
        (12001, "00\\-000", "12-001"),
        (12001, "00-000", "12-001"),
        (1, "00\\-000", "00-001"),
        (1234567, "00\\-000", "1234-567"),  # what is too long stands before the first place
        (7, '"P"General', "P7"),
        (7, '"P"#', "P7"),
        (7, '"a;b"00;-00', "a;b07"),
        (-7, "000", "-007"),
        (-7, "000;-0", "-7"),
        (7, "#,##0.00", "7"),
        (7, "0.0", "7"),
        (7, "0%", "7"),
        (0, "#", "0"),
    ],
)
def test_texts_that_only_the_format_of_a_workbook_shows_are_kept(
    tmp_path: Path, number: int, number_format: str, shown: str
) -> None:
    book = openpyxl.load_workbook(workbook(tmp_path / "t.xlsx", [["patient"], [number]]))
    book.active["A2"].number_format = number_format
    book.save(tmp_path / "t.xlsx")
    assert read_text_table(tmp_path / "t.xlsx")["patient"].tolist() == [shown]


def test_a_number_that_lost_digits_is_refused_in_whatever_format(tmp_path: Path) -> None:
    book = openpyxl.load_workbook(workbook(tmp_path / "t.xlsx", [["patient"], [1234567890123456789]]))
    book.active["A2"].number_format = "0"  # chosen so that the digits show
    book.save(tmp_path / "t.xlsx")
    with pytest.raises(InputError, match=r"row 2: A2 is 1.*more digits than Excel keeps"):
        read_text_table(tmp_path / "t.xlsx")


@pytest.mark.parametrize(
    ("sheets", "message"),
    [
        (([["patient"], ["P1"]], [["patient"], ["P2"]]), r"several sheets with content, \['Sheet', 'Sheet1'\]"),
        (([["patient", "label"], ["P1", "=A1"]],), "row 2: the formula in B2 has no stored value"),
        (([["patient"], [1234567890123456789]],), "row 2: A2 is 1.*more digits than Excel keeps"),
        (([],), "no rows"),
    ],
)
def test_workbook_that_leaves_doubt_is_refused(tmp_path: Path, sheets: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_text_table(workbook(tmp_path / "t.xlsx", *sheets))


def test_workbook_without_its_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = workbook(tmp_path / "t.xlsx", [["patient"], ["P1"]])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(InputError, match=r"kdml_med\[tables\]"):
        read_text_table(path)


@given(st.lists(st.text(alphabet='a", ;\n', max_size=6), min_size=2, max_size=2), st.integers(0, 2))
def test_spaces_after_a_closing_quotation_mark_change_no_cell(
    tmp_path_factory: pytest.TempPathFactory, cells: list[str], spaces: int
) -> None:
    quoted = [f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in cells]
    folder = tmp_path_factory.getbasetemp()
    try:
        plain = read(folder, f"one,two\n{quoted[0]},{quoted[1]}\nx,y\n")
    except InputError:
        return
    gap = " " * spaces
    assert read(folder, f"one,two\n{quoted[0]}{gap},{quoted[1]}{gap}\nx,y\n") == plain


def test_row_numbers_count_the_remarks_before_the_header(tmp_path: Path) -> None:
    refused(tmp_path, "# a\n# b\np,l\n1,2\n1\n", "row 5: 1 cells, but the header in row 3 has 2")


@pytest.mark.parametrize("header", ["#,patient", "#patient,label", "#1;#2"])
def test_one_line_that_begins_with_a_number_sign_may_be_the_header(tmp_path: Path, header: str) -> None:
    mark = ";" if ";" in header else ","
    assert read(tmp_path, f"{header}\nx{mark}y\n") == [header.split(mark), ["x", "y"]]


def test_a_row_that_somebody_took_out_by_a_number_sign_does_not_come_in(tmp_path: Path) -> None:
    refused(tmp_path, "patient,label\nP1,MSI\n#P3,MSI\n", "row 3 begins with '#P3': delete it if")
    assert read(tmp_path, "patient,label\n#1,MSI\n#2,MSS\n")[1:] == [["#1", "MSI"], ["#2", "MSS"]]
    assert read(tmp_path, "image,label\n#1.png,MSI\n2.png,MSS\n")[1] == ["#1.png", "MSI"]
    assert read(tmp_path, "note,label\n#N/A,MSI\nb,MSS\n")[1] == ["#N/A", "MSI"]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_the_separator_is_the_one_that_rows_have_as_often_as_the_header(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, "patient;label, final\nP1;MSI\nP2;MSS\n", name)[0] == ["patient", "label, final"]
    assert read(tmp_path, "patient,note; text\nP1,a\nP2,b\n", name)[0] == ["patient", "note; text"]


def test_a_hidden_row_of_a_workbook_is_not_taken_without_a_word(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in (["patient", "label"], ["P1", "MSI"], ["P2", "MSS"]):
        book.active.append(row)
    book.active.row_dimensions[3].hidden = book.active.row_dimensions[9].hidden = True
    book.save(tmp_path / "t.xlsx")
    with pytest.raises(InputError, match="row 3 is hidden"):
        read_text_table(tmp_path / "t.xlsx")
    book.active.row_dimensions[3].hidden = False
    book.save(tmp_path / "t.xlsx")
    assert len(read_text_table(tmp_path / "t.xlsx")) == 2
