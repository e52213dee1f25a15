"""Which subgroup each patient (or slide) belongs to: by hospital, and by columns of people's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdml_med.clinical.study import DatasetContent
from kdml_med.errors import InputError
from kdml_med.storage.columns import distinct
from kdml_med.tables.columns import find_column, is_blank, read_text_table
from kdml_med.tables.ids import check_ids
from kdml_med.tables.names import same_name_form, slide_keys, slide_name
from kdml_med.words import counted

SITE = "site"
NOT_GIVEN, OTHERS = "not given", "others"
MOST_GROUPS = 12
"""A column with more values is shown by its most frequent ones, numbers by thirds."""
_FEW_NUMBERS = 6
_PARTS = 3


@dataclass(frozen=True)
class LabelColumns:
    """Columns of people's tables that subgroups are made by.

    Attributes:
        tables: file names.
        by_patient: text by column and patient; patients in one form.
        by_slide: likewise by slide, of tables that have a slide column.
        of_patients: likewise by patient, of rows that name none: what they say is about all slides of a patient.
    """

    tables: list[str]
    by_patient: dict[str, dict[str, str]] = field(repr=False)
    by_slide: dict[str, dict[str, str]] = field(repr=False)
    of_patients: dict[str, dict[str, str]] = field(repr=False)

    def values(self, column: str, answers: pd.DataFrame, level: str) -> pd.Series[Any]:
        """What the tables say of each row of the answers; missing where no table has it."""
        patients = answers["patient_id"].map(same_name_form)
        if level != "slide":
            return patients.map(self.by_patient[column])
        # What is written beside another slide of the patient may be about that slide alone.
        own = answers["slide_id"].map(partial(_find, self.by_slide[column])).astype(object)
        return own.fillna(patients.map(self.of_patients[column]).astype(object))


def _find(known: Mapping[str, str], slide: str) -> str | None:
    """What is known of a slide, under any name that a table may have for it."""
    return next((known[key] for key in slide_keys(slide_name(slide)) if key in known), None)


def read_label_columns(tables: Sequence[str | Path], by: Sequence[str]) -> LabelColumns | None:
    """Read the columns that subgroups are asked for.

    Args:
        tables: CSV, TSV or XLSX files with a patient column.
        by: names of columns; each of them in one of the tables at least.

    Returns:
        None where neither is given.

    Raises:
        InputError: one is given without the other, a table cannot be read, no table has a column, or a patient or
            slide has two different values.
    """
    if not tables and not by:
        return None
    if not by:
        header = list(read_text_table(tables[0]).columns)
        raise InputError(f"--labels {tables[0]} is named, but no column: add --by COLUMN, one of {header}.")
    if not tables:
        raise InputError(f"--by {by[0]} needs a table with that column: name it with --labels.")
    read = {str(path): read_text_table(path) for path in tables}
    columns = {column: " ".join(same_name_form(column).split()) for column in by}
    for asked, column in columns.items():
        if not any(column in table for table in read.values()):
            known = "; ".join(f"{path} has {list(table.columns)}" for path, table in read.items())
            raise InputError(f"--by {asked}: no such column. {known}.")
    wanted = list(dict.fromkeys(columns.values()))
    found = LabelColumns(
        [Path(path).name for path in read],
        by_patient={name: {} for name in wanted},
        by_slide={name: {} for name in wanted},
        of_patients={name: {} for name in wanted},
    )
    rows: dict[tuple[str, str, str], tuple[str, str]] = {}
    for path, table in read.items():
        _take_rows(found, rows, path, table)
    return found


def _take_rows(
    found: LabelColumns, rows: dict[tuple[str, str, str], tuple[str, str]], path: str, table: pd.DataFrame
) -> None:
    """Add a table; what two rows say of one patient or slide must be the same.

    Args:
        found: gets the values.
        rows: value and place of what was read so far, by column, "patient" or "slide", and name.
        path: of the table.
        table: with the row in the file as its index.
    """
    patient = find_column(table.columns, "patient", None, required=True, where=path, nameable=False)
    assert patient is not None
    check_ids(table[patient], "patient id", path)
    slide = find_column(table.columns, "slide", None, required=False, where=path, nameable=False)
    for column in found.by_patient:
        if column not in table:
            continue
        images = [None] * len(table) if slide is None else [None if is_blank(one) else one for one in table[slide]]
        for row, name, image, value in zip(table.index, table[patient], images, table[column], strict=True):
            if is_blank(value) or value.strip().casefold() == NOT_GIVEN:
                continue
            owner = ("patient", name) if image is None else ("slide", slide_name(image))
            before, where = rows.setdefault((column, *owner), (value, f"{path}, row {row}"))
            if before != value:
                raise InputError(
                    f"{path}, row {row}: {owner[0]} {owner[1]!r} has {column} {value!r}, but {before!r} in {where}. "
                    "Correct the table."
                )
            by_owner = found.of_patients if image is None else found.by_slide
            by_owner[column][owner[1]] = value
            known = found.by_patient[column]
            # Slides of one patient may differ, as in their grade: then nothing can be said of the patient.
            known[name] = value if known.get(name, value) == value else "differs between slides"


def sites(data: DatasetContent | None, answers: pd.DataFrame, level: str) -> pd.Series[Any] | None:
    """Hospital of each row of the answers, by the manifest; None where fewer than two are known."""
    if data is None:
        return None
    key = f"{level}_id"
    known = distinct(data.manifest, list(dict.fromkeys(["patient_id", key, "site"]))).dropna(subset="site")
    repeated = known[key].duplicated(keep=False)
    by_name = known.assign(site=known["site"].where(~repeated, "several")).drop_duplicates(key).set_index(key)["site"]
    found: pd.Series[Any] = answers[key].map(by_name)
    return found if found.nunique() > 1 else None


def group_values(values: pd.Series[Any]) -> pd.Series[Any]:
    """Few groups of what may be many values: numbers by thirds, words by the most frequent ones.

    Args:
        values: text, missing where nothing is known.

    Returns:
        A categorical of the group of each row, in the order in which groups are shown. Values that people call "others"
        are in one group with the rare ones, behind all words; nothing known, or "not given", comes last.
    """
    known = values.notna() & ~_say(values, NOT_GIVEN)
    numbers = pd.to_numeric(values.where(known), errors="coerce").astype(np.float64)
    order: list[str]
    if known.any() and np.isfinite(numbers[known]).all() and values[known].nunique() > _FEW_NUMBERS:
        groups, order = _thirds(numbers, values)
    else:
        groups, order = _frequent(values, known)
    groups = groups.where(known, NOT_GIVEN)
    return pd.Series(pd.Categorical(groups, [*order, NOT_GIVEN]), values.index)


def _say(values: pd.Series[Any], word: str) -> pd.Series[bool]:
    """Which of them are a word, in any case: a report has words of its own, which must not name two groups."""
    return values.astype("str").str.strip().str.casefold().eq(word)


def _frequent(values: pd.Series[Any], known: pd.Series[bool]) -> tuple[pd.Series[Any], list[str]]:
    """Words as groups, the rare ones in one; with the order of the groups, none of them twice."""
    rest = _say(values, OTHERS)
    frequent = values[known & ~rest].value_counts()
    fit = len(frequent) + rest.any() <= MOST_GROUPS
    kept = list(frequent.index if fit else frequent.index[: MOST_GROUPS - 1])
    groups = values.where(values.isin(kept) | ~known, OTHERS)
    return groups, [*sorted(kept, key=_natural), *([OTHERS] if rest.any() or not fit else [])]


def _thirds(numbers: pd.Series[Any], texts: pd.Series[Any]) -> tuple[pd.Series[Any], list[str]]:
    """As equal in size as equal numbers allow; a group is called by its smallest and largest number.

    Numbers stand in names as in the table: shortened, those of two groups could look alike (dates such as 20190301).
    """
    edges = np.unique(np.quantile(numbers.dropna(), np.linspace(0, 1, _PARTS + 1))[1:-1])
    part = pd.Series(np.searchsorted(edges, numbers.to_numpy(), side="left"), numbers.index).where(numbers.notna())
    names = {}
    for place in sorted(part.dropna().unique()):
        own = np.flatnonzero(part == place)
        ends = (own[numbers.iloc[own].argmin()], own[numbers.iloc[own].argmax()])
        names[place] = " to ".join(texts.iloc[end].strip() for end in ends)
    return part.map(names).astype(object), list(names.values())


def _natural(text: str) -> tuple[int, float, str]:
    """Numbers by their size, before words."""
    number = pd.to_numeric(text, errors="coerce")
    return (1, 0.0, text) if np.isnan(number) else (0, float(number), text)


def check_known(columns: LabelColumns, tables: Mapping[str, pd.DataFrame], level: str) -> None:
    """Refuse tables that know nobody of any evaluation.

    Args:
        columns: of the tables.
        tables: rows of answers by evaluation.
        level: what carries a label.

    Raises:
        InputError: for a column, no patient or slide of any evaluation has a value.
    """
    for column in columns.by_patient:
        if not any(columns.values(column, table, level).notna().any() for table in tables.values()):
            if not columns.by_patient[column]:
                raise InputError(f"--by {column}: that column of {', '.join(columns.tables)} is empty.")
            what = "slide" if level == "slide" and columns.by_slide[column] else "patient"
            known = columns.by_slide[column] if what == "slide" else columns.by_patient[column]
            first = next(iter(tables.values()))[f"{what}_id"].iloc[0]
            names = "names" if what == "slide" else "ids"
            raise InputError(
                f"--by {column}: {', '.join(columns.tables)} gives it for none of the evaluated {what}s: the first is "
                f"{first!r}, the table has {next(iter(known))!r} ({counted(len(known), what)} in all). "
                f"{what.capitalize()}s are looked up by their {names} in the dataset: correct the table, or name the "
                "one that the dataset was made from."
            )
