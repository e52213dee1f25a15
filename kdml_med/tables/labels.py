"""Label tables: which patient a slide belongs to, and what is known about that patient or slide.

A table is CSV or TSV with a header. Column names are recognised where they are usual (``KNOWN_COLUMNS``), or named by
the caller. Every value is text: a patient "007" stays "007".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd

from kdml_med.errors import InputError
from kdml_med.tables.classes import parse_labels
from kdml_med.tables.columns import find_column, is_blank, parse_mpp, read_text_table
from kdml_med.tables.names import is_barcode, slide_name, tcga_site

LabelLevel = Literal["patient", "slide"]


@dataclass(frozen=True)
class LabelMatch:
    """What the table says about one slide.

    Attributes:
        patient_id: as written in the table.
        label: class name; None when the status is blank.
        site: tissue source site or hospital; None when unknown.
    """

    patient_id: str
    label: str | None
    site: str | None


@dataclass(frozen=True)
class LabelTable:
    """A checked label table; make one with ``read_labels``.

    Attributes:
        classes: the two class names in index order; the last one is the positive class.
        label_level: "patient" or "slide": what carries one label.
        by_slide: True when the table has a slide column, so that only the slides it lists are known.
        matches: what is known, by slide name without suffix (``by_slide``) or by patient id.
        resolutions: micrometres per pixel, by the same keys; only where the table gives them.
    """

    classes: list[str]
    label_level: LabelLevel
    by_slide: bool
    matches: dict[str, LabelMatch] = field(repr=False)
    resolutions: dict[str, float] = field(default_factory=dict, repr=False)

    def match(self, slide_id: str) -> LabelMatch | None:
        """Patient, label and site of a slide, or None when the table does not know it.

        With a slide column, names are compared without folder and image suffix. Without one, the patient id is the
        slide name or a beginning of it that ends before a character that is neither letter nor digit; the longest wins.
        """
        key = self._key(slide_id)
        return None if key is None else self.matches[key]

    def mpp(self, slide_id: str) -> float | None:
        """Micrometres per pixel (level 0) that the table gives for a slide, or None."""
        key = self._key(slide_id)
        return None if key is None else self.resolutions.get(key)

    @property
    def patient_ids(self) -> list[str]:
        """Sorted ids of all patients in the table."""
        return sorted({match.patient_id for match in self.matches.values()})

    def _key(self, slide_id: str) -> str | None:
        name = slide_name(slide_id)
        if self.by_slide:
            candidates = [name]
            if is_barcode(name):
                candidates.append(name.split(".")[0])  # tables often list the barcode without the file's UUID
        else:
            ends = [len(name), *(i for i in range(len(name) - 1, 0, -1) if not name[i].isalnum())]
            candidates = [name[:end] for end in ends]
        return next((key for key in candidates if key in self.matches), None)


def read_labels(
    path: Path | str,
    *,
    patient_column: str | None = None,
    slide_column: str | None = None,
    label_column: str | None = None,
    site_column: str | None = None,
    mpp_column: str | None = None,
    classes: Sequence[str] | None = None,
    label_level: LabelLevel = "patient",
) -> LabelTable:
    """Read and check a label table.

    Words become classes as ``kdml_med.tables.classes.parse_labels`` says. At patient level a labelled row speaks for
    all rows of its patient.

    Args:
        path: CSV or TSV file with a header.
        patient_column: name of a column; None recognises it by its name. So for the other columns.
        slide_column: slide or image names; without one, slides are found by the beginning of their name.
        label_column: status or class.
        site_column: hospital; without one, the site comes from TCGA barcodes.
        mpp_column: micrometres per pixel at level 0.
        classes: two class names, the positive one last, or that of the positive class alone; None for words of MSI.
        label_level: what carries one label.

    Raises:
        InputError: a column is not found or ambiguous; the classes are not two; or a row has no patient, an unknown
            value, a bad mpp, repeats a patient or slide, or contradicts another row. The message names the row.
    """
    if label_level not in ("patient", "slide"):
        raise InputError(f'label level {label_level!r}: expected "patient" or "slide".')
    where = str(path)
    frame = read_text_table(path)
    patient_name = find_column(frame.columns, "patient", patient_column, required=True, where=where)
    label_name = find_column(frame.columns, "label", label_column, required=True, where=where)
    slide = find_column(frame.columns, "slide", slide_column, required=label_level == "slide", where=where)
    site_name = find_column(frame.columns, "site", site_column, required=False, where=where)
    mpp_name = find_column(frame.columns, "mpp", mpp_column, required=False, where=where)

    patients = frame[patient_name]
    _check_ids(patients, "patient id", where)
    labels, class_names = parse_labels(frame[label_name], classes, where=where)
    if label_level == "patient":
        labels = owner_labels(patients, labels, owner="patient", where=where)
    if slide is None:
        keys = patients
        _check_unique(keys, "patient", "Keep one row per patient, or name a slide column with --slide-column", where)
    else:
        _check_ids(frame[slide], "slide name", where)
        keys = frame[slide].map(slide_name)
        _check_unique(keys, "slide", "Keep one row per slide", where)
    sites = [None] * len(frame) if site_name is None else [None if is_blank(s) else s for s in frame[site_name]]
    matches = {
        key: LabelMatch(patient, label, site or tcga_site(patient))
        for key, patient, label, site in zip(keys, patients, labels, sites, strict=True)
    }
    resolutions = {} if mpp_name is None else parse_mpp(frame[mpp_name], keys, where)
    return LabelTable(class_names, label_level, slide is not None, matches, resolutions)


def owner_labels(owners: pd.Series[str], labels: pd.Series[str], *, owner: LabelLevel, where: str) -> pd.Series[str]:
    """Give every row the label of its patient or slide: a labelled row speaks for the blank ones of the same owner.

    Args:
        owners: patient or slide of each row; the index is the row in the file.
        labels: class names, None where blank; the same index.
        owner: what carries the label, for messages.
        where: the file, for messages.

    Raises:
        InputError: an owner has two labels.
    """
    known = pd.DataFrame({"owner": owners, "label": labels}).dropna()
    first = known[~known["owner"].duplicated()]
    other = known["owner"].map(first.set_index("owner")["label"]) != known["label"]
    if other.any():
        row = known.index[other][0]
        name, label = known.loc[row, "owner"], known.loc[row, "label"]
        start = first[first["owner"] == name]
        advice = ", or use --label-level slide if labels belong to slides" if owner == "patient" else ""
        raise InputError(
            f"{where}: {owner} {name!r} has the labels {start['label'].iloc[0]!r} (row {start.index[0]}) and "
            f"{label!r} (row {row}). Correct the table{advice}."
        )
    mapped = owners.map(first.set_index("owner")["label"])
    return mapped.astype(object).where(mapped.notna(), None)


def _check_ids(values: pd.Series[str], what: str, where: str) -> None:
    empty = values.index[values.map(is_blank)]
    if len(empty):
        raise InputError(f"{where}, row {empty[0]}: no {what} in column {values.name!r} ({len(empty)} such rows).")


def _check_unique(keys: pd.Series[str], what: str, advice: str, where: str) -> None:
    repeated = keys[keys.duplicated()]
    if len(repeated):
        rows = list(keys.index[keys == repeated.iloc[0]])
        raise InputError(f"{where}: {what} {repeated.iloc[0]!r} is in rows {rows}. {advice}.")
