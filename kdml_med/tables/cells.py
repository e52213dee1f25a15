"""The cells of a table file as people have it: CSV and TSV text in the encodings of the day, and Excel workbooks."""

from __future__ import annotations

import csv
import datetime
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from kdml_med.errors import InputError
from kdml_med.storage.cells import unguard
from kdml_med.tables.names import same_name_form

Row = tuple[int, list[str]]
"""Number of the row in the file, from 1, and its cells in one form (``same_name_form``)."""

ERROR_VALUES = frozenset({"#n/a", "#na", "#nv", "#ref!", "#value!", "#wert!", "#name?", "#div/0!", "#null!", "#num!"})
"""What spreadsheets show where a formula has no value, in lower case."""
_ZIP, _OLD_EXCEL = b"PK\x03\x04", b"\xd0\xcf\x11\xe0"
_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_SEPARATOR_LINE = re.compile(r'"?sep=([,;|\t])"?$', re.IGNORECASE)
_AS_TEXT = re.compile(r'^="([^"]*)"$')  # how programs keep a spreadsheet from making a number of an id
_FORMAT_SECTION = re.compile(r"""(?:"[^"]*"|\\.|[^;"\\])*(?=;|$)""")
_SIMPLE_FORMAT = re.compile(r"""(?:"[^"]*"|\\.|[-+() :!&'~{}^]|0|\#|General)*""")
_PART_OF_FORMAT = re.compile(r"""General|[0#]|"[^"]*"|\\.|.""")
_LINE_END = re.compile(r"\r\n|\r|\n")


def read_cells(path: Path) -> list[Row]:
    """Rows of a CSV, TSV or XLSX file that have any content.

    Raises:
        InputError: no such file; not UTF-8 or UTF-16 text; a quotation mark that is not closed or closed too late; a
            cell that is too long; or a workbook that does not say which of its sheets is meant.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the table {path}: {error.strerror}.") from error
    if data.startswith(_OLD_EXCEL):
        raise InputError(f"{path} is a workbook of an old Excel (.xls): save it as CSV UTF-8 or as .xlsx.")
    rows = _read_workbook(path, data) if data.startswith(_ZIP) else _read_text(path, _decode(path, data))
    return [(number, cells) for number, cells in rows if any(cells)]


def _decode(path: Path, data: bytes) -> str:
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    if data.startswith(b"\xff\xfe\x00\x00"):
        encoding = "utf-32"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-8" and b"\x00" in data[:1000]:
            raise InputError(f"{path} is not a text table: save it as CSV UTF-8.") from error
        what = f"byte 0x{data[error.start]:02x} is not {encoding.upper()} text"
        kind = "; probably the file is Latin-1 or Windows-1252, as Excel's plain CSV is" if encoding == "utf-8" else ""
        row = _line_of(data[: error.start]) if encoding == "utf-8" else 1 + data[: error.start].count(b"\n")
        raise InputError(f"{path}, row {row}: {what}{kind}. Save it as 'CSV UTF-8'.") from error
    text = text.removeprefix("\ufeff")
    if "\x00" in text:
        row = _line_of(text[: text.index("\x00")].encode())
        raise InputError(
            f"{path}, row {row}: a zero byte; the file is damaged, or UTF-16 without its mark. Save it as CSV UTF-8."
        )
    return text


def _line_of(before: bytes) -> int:
    """Number of the line that follows some bytes, whatever the line ends."""
    return 1 + before.replace(b"\r\n", b"\n").replace(b"\r", b"\n").count(b"\n")


def _read_text(path: Path, text: str) -> Iterator[Row]:
    lines = _LINE_END.split(text)
    start = _count_remarks(lines)  # lines before this row, which begins where the one before it ended
    first = next((number for number in range(start, len(lines)) if lines[number].strip()), 0)
    stated = _SEPARATOR_LINE.match(lines[first].strip(" "))
    delimiter = stated.group(1) if stated else _delimiter(path, lines[first:])
    if '" ' in text:
        text = _without_spaces_after_quotes(text, delimiter)
    stream = io.StringIO(text, newline="")
    reader = csv.reader(stream, delimiter=delimiter, strict=True, skipinitialspace=True)
    for _ in range(start):
        stream.readline()
    skipped, least = start, 0
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(
                f"{path}, row {start + 1}: {_explain(error)}. Look for a quotation mark in this row that has no "
                'partner, and take it away or write it twice ("").'
            ) from error
        if least and any(_holds_rows(cell, delimiter, least) for cell in cells):
            raise InputError(
                f"{path}, row {start + 1}: a cell in quotation marks goes on over whole rows, to row "
                f"{skipped + reader.line_num}. Close it where it ends, or take the line breaks out of it."
            )
        if not (stated and start == first):
            # Our own tables are read, too: their guarded cells are what they were.
            found = [same_name_form(_AS_TEXT.sub(r"\1", unguard(cell))) for cell in cells]
            least = least or (len(found) if any(found) else 0)
            yield start + 1, found
        start = skipped + reader.line_num


def _count_remarks(lines: Sequence[str]) -> int:
    """How many lines before the header are remarks, as cBioPortal and other archives write them: they begin with #.

    One such line alone may be the header: "#,patient,label".
    """
    count = next((number for number, line in enumerate(lines) if line.strip() and not line.startswith("#")), 0)
    remarks = [line for line in lines[:count] if line.strip()]
    alone = len(remarks) == 1 and not remarks[0].startswith(("##", "# ")) and any(mark in remarks[0] for mark in ",;\t")
    return 0 if alone else count if remarks else 0


def _without_spaces_after_quotes(text: str, delimiter: str) -> str:
    """Spaces between a closing quotation mark and the end of its cell are no text."""
    mark = re.escape(delimiter)
    return re.sub(rf'((?:^|[{mark}\r\n]) *"[^"]*(?:""[^"]*)*") *(?=[{mark}\r\n]|\Z)', r"\1", text)


def _explain(error: csv.Error) -> str:
    if "field larger" in str(error):
        return (
            f"a cell of more than {csv.field_size_limit():,} characters; most likely its quotation mark is never closed"
        )
    if "unexpected end" in str(error):
        return "a quotation mark opens a cell and is never closed"
    return f"text follows the quotation mark that closes a cell ({error})"


def _holds_rows(cell: str, delimiter: str, columns: int) -> bool:
    """Whether a line within a cell looks like a row: then a stray quotation mark has swallowed it."""
    lines = _LINE_END.split(cell)[1:]
    return any(line.count(delimiter) >= max(columns - 1, 1) for line in lines) or (columns == 1 and len(lines) > 0)


def _delimiter(path: Path, lines: Sequence[str]) -> str:
    """The mark of which the header and the rows below it have equally many; a comma for a table with one column."""
    header, *rows = [re.sub(r'"[^"]*"', "", line) for line in islice((x for x in lines if x.strip()), 6)] or [""]
    if path.suffix.lower() in {".tsv", ".tab"} and "\t" in header:
        return "\t"
    return max(
        ",\t;",
        key=lambda mark: (
            mark in header and all(row.count(mark) == header.count(mark) for row in rows),
            header.count(mark),
        ),
    )


def _read_workbook(path: Path, data: bytes) -> Iterator[Row]:
    try:
        import openpyxl
    except ImportError as error:
        raise InputError(
            f"{path} is an Excel workbook, and openpyxl, which reads them, is not installed: `pip install "
            "'kdml_med[tables]'`, or save the table as CSV UTF-8."
        ) from error
    try:
        with warnings.catch_warnings():  # of extensions that carry no cells
            warnings.simplefilter("ignore")
            values, formulas = (openpyxl.load_workbook(io.BytesIO(data), data_only=only) for only in (True, False))
            sheets = {sheet.title: list(_sheet_rows(sheet, formulas[sheet.title], path)) for sheet in values.worksheets}
    except InputError:
        raise
    except Exception as error:  # whatever the library trips over: the file is damaged or no workbook
        if b"opendocument" in data[:200]:
            raise InputError(f"{path} is an OpenDocument table: save it as CSV UTF-8 or as .xlsx.") from error
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be read as an Excel workbook ({reason}): save it as CSV UTF-8.") from error
    filled = {title: rows for title, rows in sheets.items() if any(any(cells) for _, cells in rows)}
    if len(filled) > 1:
        raise InputError(
            f"{path} has several sheets with content, {list(filled)}: save the one that is meant as CSV UTF-8, or "
            "delete the others."
        )
    yield from next(iter(filled.values()), [])


def _sheet_rows(sheet: Any, formulas: Any, path: Path) -> Iterator[Row]:
    for cells in sheet.iter_rows():
        if sheet.row_dimensions[cells[0].row].hidden and any(cell.value is not None for cell in cells):
            raise InputError(
                f"{path}, row {cells[0].row} is hidden, by a filter or by hand, so it is not known whether it counts. "
                "Show all rows, and delete those that do not."
            )
        for cell in cells:
            if cell.value is None and formulas[cell.coordinate].data_type == "f":
                raise InputError(
                    f"{path}, row {cell.row}: the formula in {cell.coordinate} has no stored value or an empty one. "
                    "Put values in place of formulas, or save the table as CSV UTF-8."
                )
        yield cells[0].row, [_shown_value(cell, f"{path}, row {cell.row}") for cell in cells]


def _shown_value(cell: Any, where: str) -> str:
    """What a cell shows, as far as ids and labels go: 7 for 7.0, and 007 or P-007 where the format makes them."""
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int | float):
        if abs(value) >= 1e15:
            raise InputError(
                f"{where}: {cell.coordinate} is {value}, a number with more digits than Excel keeps. If it is an id, "
                "format the column as text and fill it in again."
            )
        return _shown_number(int(value), cell.number_format) if value == int(value) else repr(value)
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        value = value.date()
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    return same_name_form(str(value))


def _shown_number(value: int, number_format: str) -> str:
    """A whole number with the zeros and texts of its format; as it is where the format has more (decimals, %, E)."""
    section = _FORMAT_SECTION.match(number_format)
    shown = section.group() if section else ""
    others = number_format[len(shown) :].count(";")  # sections: the second is for numbers below 0, the third for 0
    if (value < 0 and others > 0) or (value == 0 and others > 1) or not _SIMPLE_FORMAT.fullmatch(shown):
        return str(value)
    parts = _PART_OF_FORMAT.findall(shown)
    places = [place for place, part in enumerate(parts) if part in ("0", "#", "General")]
    if not places:
        return str(value)
    digits = str(abs(value))
    written = [part[1:-1] if part.startswith('"') else part[-1] for part in parts]
    for place in reversed(places):  # from the last digit on; what is left stands at the first place
        count = len(digits) if place == places[0] or parts[place] == "General" else 1
        written[place] = digits[-count:] if digits else "0" * (parts[place] == "0")
        digits = digits[: len(digits) - count] if count <= len(digits) else ""
    return same_name_form("-" * (value < 0) + "".join(written))


def name_columns(path: Path, rows: list[Row]) -> tuple[list[str], list[Row]]:
    """Header without the columns that have no name, and the rows with as many cells.

    Nameless columns have to be empty; the first one may hold row names, as other programs write them.

    Raises:
        InputError: a column without a name has content, or a row has too many or too few cells.
    """
    names = [" ".join(cell.split()) for cell in rows[0][1]] if rows else []
    while names and not names[-1]:
        names.pop()
    kept = [place for place, name in enumerate(names) if name]
    full = []
    for number, cells in rows[1:]:
        beyond = next((place for place in range(len(names), len(cells)) if cells[place]), None)
        if (beyond is not None and len(rows[0][1]) <= beyond) or len(cells) < len(names):
            raise InputError(
                f"{path}, row {number}: {len(cells)} cells, but the header in row {rows[0][0]} has {len(names)}."
            )
        unnamed = [place for place, cell in enumerate(cells) if cell and place > 0 and place not in kept]
        if unnamed:
            raise InputError(
                f"{path}, row {number}: column {unnamed[0] + 1} holds {cells[unnamed[0]]!r}, but has no name in the "
                "header. Name it, or empty it."
            )
        full.append((number, [cells[place] for place in kept]))
    return [names[place] for place in kept], full
