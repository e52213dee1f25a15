"""Columns of ids in tables: what no id can be, and two spellings of one."""

from __future__ import annotations

import re

import pandas as pd

from kdml_med.errors import InputError
from kdml_med.tables.columns import is_blank
from kdml_med.tables.names import is_barcode, similar_form

_NO_ID = frozenset({"none", "<na>", "#n/a", "#na", "#ref!", "#value!", "#name?", "#div/0!", "#null!", "#num!"})
_ROUNDED = re.compile(r"\d([.,]\d+)?e\+\d+", re.IGNORECASE)


def check_ids(values: pd.Series[str], what: str, where: str) -> None:
    """Check a column of ids or names.

    Args:
        values: text; the index is the row in the file, the name is the column.
        what: they are, such as "patient id".
        where: the file, for messages.

    Raises:
        InputError: one is blank or the error value of a program, or a spreadsheet made a rounded number of it.
    """
    empty = values.index[values.map(lambda value: is_blank(value) or value.lower() in _NO_ID)]
    if len(empty):
        raise InputError(f"{where}, row {empty[0]}: no {what} in column {values.name!r} ({len(empty)} such rows).")
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
        InputError: they are not, two ids differ only by case, spaces or the kind of hyphen, or two are TCGA samples of
            one patient. One patient under two ids could be in training and test.
    """
    check_ids(values, f"{what} id", where)
    first = values[~values.duplicated()]
    spelled = first.map(similar_form)
    _refuse_twins(first, spelled, f"differ only by case, space or hyphen. Write one id for one {what}", where, what)
    samples = spelled.map(lambda form: form[:12] if is_barcode(form) else form)
    problem = "are TCGA samples of one patient. Name the column with the barcodes of patients"
    _refuse_twins(first, samples, problem, where, what)


def _refuse_twins(ids: pd.Series[str], forms: pd.Series[str], problem: str, where: str, what: str) -> None:
    twins = forms[forms.duplicated()]
    if len(twins):
        row = twins.index[0]
        other = forms.index[forms == twins.iloc[0]][0]
        raise InputError(f"{where}: the {what}s {ids[other]!r} (row {other}) and {ids[row]!r} (row {row}) {problem}.")
