"""Tables as people write them, and columns recognised by their usual names."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdml_med.errors import InputError
from kdml_med.tables.cells import ERROR_VALUES, Row, name_columns, read_cells
from kdml_med.tables.names import same_name_form, slide_name

if TYPE_CHECKING:
    import pandas as pd

KNOWN_COLUMNS: dict[str, tuple[str, ...]] = {
    "patient": ("patient", "patient_id", "patientid", "patient_uuid", "case", "case_id", "bcr_patient_barcode"),
    "slide": ("slide", "slide_id", "slideid", "slide_name", "image", "image_id", "file", "filename", "file_name"),
    "image": ("image", "image_id", "image_path", "tile", "tile_id", "file", "filename", "file_name", "path"),
    "label": ("label", "msistatus", "msi_status", "msi", "ismsih", "status", "grade"),
    "site": ("site", "tissue_source_site", "hospital", "center", "centre"),
    "mpp": ("mpp", "slide_mpp", "mpp_x"),
}
"""Names recognised for each role; case does not matter, and space, "-" and "." count as "_"."""

FINEST_MPP, COARSEST_SLIDE_MPP, COARSEST_TILE_MPP = 0.05, 9.0, 100.0
"""Micrometres per pixel that can be: 10, 20 and 40 of a slide are its magnification."""
_NUMBER = re.compile(r"\d*\.?\d+([eE][+-]?\d+)?|\d+\.")
_BLANK = frozenset({"", "na", "n/a", "nan", "null", "unknown"})


def is_blank(value: str) -> bool:
    """Whether a cell says nothing: empty, NA, N/A, NaN, null or unknown, in any case."""
    return value.strip().lower() in _BLANK


def read_text_table(path: Path | str) -> pd.DataFrame:
    """Read a CSV, TSV or XLSX file; every cell is text in one form (``kdml_med.tables.names.same_name_form``).

    Returns:
        Columns as in the header; the index is the row in the file (the header is row 1, unless lines precede it). Empty
        rows are left out.

    Raises:
        InputError: the file cannot be read as a table (``kdml_med.tables.cells``); it has no rows; a column is repeated
            or has no name; or a row has too many or too few cells.
    """
    import pandas as pd

    path = Path(path)
    header, rows = name_columns(path, read_cells(path))
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise InputError(f"{path}: the columns {repeated} occur more than once in the header; rename one.")
    if not rows:
        raise InputError(f"{path} has no rows below its header.")
    _check_remarks(path, rows)
    return pd.DataFrame([cells for _, cells in rows], columns=header, index=[row for row, _ in rows], dtype=object)


def _check_remarks(path: Path, rows: Sequence[Row]) -> None:
    """A row that somebody took out by a "#" before it is not to come in; where all have one, it belongs to the ids."""
    first = [(number, cells[0]) for number, cells in rows if cells]
    # A file called "#1.png" is there or is missed by name: no need to ask.
    marked = [
        (number, cell)
        for number, cell in first
        if cell.startswith("#") and cell.lower() not in ERROR_VALUES and slide_name(cell) == cell
    ]
    if marked and len(marked) < len(rows):
        raise InputError(
            f"{path}, row {marked[0][0]} begins with {marked[0][1]!r}: delete it if it is to be left out, else take "
            f"the # away ({len(marked)} such rows)."
        )


def find_column(
    columns: Iterable[str], role: str, named: str | None, *, required: bool, where: str, nameable: bool = True
) -> str | None:
    """Column that plays a role such as "patient" or "label".

    Args:
        columns: the header.
        role: key of ``KNOWN_COLUMNS``.
        named: the column that the caller asks for; None to recognise it by its name.
        required: whether its absence is an error.
        where: the file, for messages.
        nameable: whether the program has an option that names the column.

    Raises:
        InputError: the named column is not there, none is recognised but one is required, or several are.
    """
    columns = list(columns)
    option = f"--{role}-column"
    if named is not None:
        named = " ".join(same_name_form(named).split())
        if named not in columns:
            raise InputError(f"{where} has no column {named!r} ({option}); its columns are {columns}.")
        return named
    known = KNOWN_COLUMNS[role]
    found = [name for name in columns if re.sub(r"[ \-.]", "_", name.strip().lower()) in known]
    if len(found) > 1:
        raise InputError(
            f"{where}: {found} could each be the {role} column; "
            f"{f'name one with {option}' if nameable else 'rename all but one'}. Columns: {columns}."
        )
    if not found and required:
        raise InputError(
            f"{where}: no {role} column recognised; {f'name it with {option}' if nameable else 'rename it'}, or add "
            "the header if it is missing. "
            f"Columns: {columns}; recognised names: {list(known)}."
        )
    return found[0] if found else None


def check_roles(columns: Mapping[str, str | None], where: str) -> dict[str, str]:
    """The columns that were found, by role.

    Args:
        columns: column of each role, None where it has none.
        where: the file, for messages.

    Raises:
        InputError: the label column plays another role, too.
    """
    found = {role: name for role, name in columns.items() if name is not None}
    other = next((role for role, name in found.items() if role != "label" and name == found["label"]), None)
    if other is not None:
        raise InputError(
            f"{where}: column {found['label']!r} is named for the label and for the {other}; name another one with "
            f"--label-column or --{other}-column."
        )
    return found


def parse_mpp(values: pd.Series[str], keys: Iterable[str], where: str, *, coarsest: float) -> dict[str, float]:
    """Micrometres per pixel by key, for the cells that are not blank.

    Args:
        values: text; the index is the row in the file, the name is the column.
        keys: what each row is about.
        where: the file, for messages.
        coarsest: that can be; a magnification or nanometres in this column are not.

    Raises:
        InputError: a value is no number from ``FINEST_MPP`` to the coarsest.
    """
    resolutions = {}
    for (row, text), key in zip(values.items(), keys, strict=True):
        if is_blank(text):
            continue
        mpp = float(text) if _NUMBER.fullmatch(text) else math.nan
        if not FINEST_MPP <= mpp <= coarsest:
            raise InputError(
                f"{where}, row {row}: {values.name} is {text!r}, expected micrometres per pixel such as 0.25, with a "
                f"decimal point, from {FINEST_MPP} to {coarsest:g}, or a blank."
            )
        resolutions[key] = mpp
    return resolutions
