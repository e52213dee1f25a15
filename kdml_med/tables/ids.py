"""Columns of ids in tables: what no id can be, and two spellings of one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kdml_med.errors import InputError
from kdml_med.tables.cells import ERROR_VALUES
from kdml_med.tables.classes import is_missing
from kdml_med.tables.names import is_barcode, similar_form, tcga_site

if TYPE_CHECKING:
    import pandas as pd

_ROUNDED = re.compile(r"\d([.,]\d+)?e\+\d+", re.IGNORECASE)
_AS_NUMBER = re.compile(r"([0-9]+)[.,]0+")
_FIRST_ZEROS = re.compile(r"(?<![0-9.,])0+(?=[0-9])")


def check_ids(values: pd.Series[str], what: str, where: str) -> None:
    """Check a column of ids or names.

    Args:
        values: text; the index is the row in the file, the name is the column.
        what: they are, such as "patient id".
        where: the file, for messages.

    Raises:
        InputError: one is blank or the error value of a program, or a spreadsheet made a rounded number of it.
    """
    empty = values[values.map(lambda value: is_missing(value) or value.lower() in ERROR_VALUES)]
    if len(empty):
        found = f", but {empty.iloc[0]!r}" if empty.iloc[0] else ""
        raise InputError(
            f"{where}, row {empty.index[0]}: no {what} in column {values.name!r}{found} ({len(empty)} such rows). Fill "
            "it in, or delete the row."
        )
    rounded = values[values.map(lambda value: _ROUNDED.fullmatch(value) is not None)]
    if len(rounded):
        raise InputError(
            f"{where}, row {rounded.index[0]}: the {what} {rounded.iloc[0]!r} is a number that a spreadsheet rounded. "
            f"Format column {values.name!r} as text and fill it in again ({len(rounded)} such rows)."
        )


def check_patients(values: pd.Series[str], where: str, what: str = "patient") -> None:
    """Check a column of patient ids: they are ids (``check_ids``), and no two look like one patient.

    Args:
        values: text; the index is the row in the file, the name is the column.
        where: the file, for messages.
        what: is kept together in a split, such as "sequence".

    Raises:
        InputError: they are not, two ids differ only by case, spaces, the kind of hyphen or a "#" before one, by zeros
            before a number or a ".0" behind it, or two are TCGA samples of one patient. One patient under two ids could
            be in training and test.
    """
    check_ids(values, f"{what} id", where)
    first = values[~values.duplicated()]
    spelled = first.map(_same_patient_form)
    problem = f"differ only by case, space, hyphen or a #. Write one id for one {what}"
    _refuse_twins(first, spelled, problem, where, what)
    problem = (
        "differ only by zeros before a number or a .0 behind it, as spreadsheets change ids. Write one id for one "
        f"{what}; if they are two {what}s, rename one"
    )
    _refuse_twins(first, spelled.map(_number_form), problem, where, what)
    samples = spelled.map(_barcode_or_form)
    problem = "are TCGA samples of one patient. Name the column with the barcodes of patients"
    _refuse_twins(first, samples, problem, where, what)


def same_patient(one: str, other: str) -> bool:
    """Whether two ids may be those of one patient: ``check_patients`` refuses them in one column."""
    first, second = _same_patient_form(one), _same_patient_form(other)
    return any(form(first) == form(second) for form in (str, _number_form, _barcode_or_form))


def _same_patient_form(value: str) -> str:
    """An id without what may be written otherwise; "#7" is 7, where somebody meant to leave out the row."""
    return similar_form(value).lstrip("#").strip()


def _number_form(form: str) -> str:
    """An id as a spreadsheet leaves it: 007 and P-07 without zeros before a number, 7.0 without its decimals.

    What separates numbers stays, so that 1-11 is not 11-1; decimals count only where all of the id is a number.
    """
    return _FIRST_ZEROS.sub("", _AS_NUMBER.sub(r"\1", form) if _AS_NUMBER.fullmatch(form) else form)


def _barcode_or_form(form: str) -> str:
    """The patient of a TCGA barcode, also as R (TCGA.AA.3672) or a file name (TCGA_AA_3672) writes it."""
    barcode = re.sub(r"[._ ]", "-", form)
    return barcode[:12] if is_barcode(barcode) else form


def site_names(values: pd.Series[str] | None, patients: pd.Series[str]) -> list[str | None]:
    """Hospital of each row: of the column, in one spelling for each, else from TCGA barcodes; None where unknown.

    Args:
        values: text; None without a column.
        patients: their ids, with the same index.
    """
    spellings: dict[str, str] = {}
    stated = [""] * len(patients) if values is None else ["" if is_missing(value) else value for value in values]
    sites = (spellings.setdefault(similar_form(site), site) for site in stated)
    return [site or tcga_site(patient) for site, patient in zip(sites, patients, strict=True)]


def _refuse_twins(ids: pd.Series[str], forms: pd.Series[str], problem: str, where: str, what: str) -> None:
    twins = forms[forms.duplicated()]
    if len(twins):
        row = twins.index[0]
        other = forms.index[forms == twins.iloc[0]][0]
        raise InputError(f"{where}: the {what}s {ids[other]!r} (row {other}) and {ids[row]!r} (row {row}) {problem}.")
