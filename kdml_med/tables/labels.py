"""Label tables: which patient a slide belongs to, and what is known about that patient or slide.

A table is CSV, TSV or XLSX with a header. Column names are recognised where they are usual (``KNOWN_COLUMNS``), or
named by the caller. Every value is text: a patient "007" stays "007".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kdml_med.errors import InputError
from kdml_med.tables.classes import parse_labels
from kdml_med.tables.columns import COARSEST_SLIDE_MPP, check_roles, find_column, parse_mpp, read_text_table
from kdml_med.tables.ids import check_ids, check_patients, site_names
from kdml_med.tables.names import (
    folders_agree,
    folders_of,
    is_absolute,
    same_name_form,
    similar_form,
    slide_keys,
    slide_name,
    tcga_patient,
)
from kdml_med.tables.usage import LabelSource, count_words
from kdml_med.words import printable

if TYPE_CHECKING:
    import pandas as pd

LabelLevel = Literal["patient", "slide"]


@dataclass(frozen=True)
class LabelMatch:
    """What the table says about one slide.

    Attributes:
        patient_id: as written in the table.
        label: class name; None when the status is blank.
        site: tissue source site or hospital; None when unknown.
        row: in the file.
        name: slide or patient as written in the table.
    """

    patient_id: str
    label: str | None
    site: str | None = None
    row: int = field(default=0, compare=False)
    name: str = field(default="", compare=False)


@dataclass(frozen=True)
class LabelTable:
    """A checked label table; make one with ``read_labels``.

    Attributes:
        classes: the two class names in index order; the last one is the positive class.
        label_level: "patient" or "slide": what carries one label.
        by_slide: True when the table has a slide column, so that only the slides it lists are known.
        matches: what is known, by slide name without suffix (``by_slide``) or by patient id.
        resolutions: micrometres per pixel, by the same keys; only where the table gives them.
        source: what was read, for dataset.json.
    """

    classes: list[str]
    label_level: LabelLevel
    by_slide: bool
    matches: dict[str, LabelMatch] = field(repr=False)
    resolutions: dict[str, float] = field(default_factory=dict, repr=False)
    source: LabelSource = field(default_factory=LabelSource, repr=False)

    def match(self, slide: str, inside: str = "") -> LabelMatch | None:
        """Patient, label and site of a slide, or None when the table does not know it.

        With a slide column, names are compared without image suffix, and the folders that both have must agree. Without
        one, the patient id is the slide name or a beginning of it that ends before a character that is neither letter
        nor digit; the longest wins.

        Args:
            slide: its path below the input, or its name.
            inside: name of the folder that was the input.
        """
        key = self.key(slide)
        if key is None or not self._same_folder(self.matches[key].name, slide, inside):
            return None
        return self.matches[key]

    def match_patient(self, patient: str) -> LabelMatch | None:
        """What a table without a slide column says of a patient, who may be named by the barcode of a TCGA sample."""
        return self.matches.get(same_name_form(patient)) or self.matches.get(tcga_patient(patient) or "")

    def explain(self, slide: str, inside: str = "") -> str:
        """Why ``match`` gives nothing for a slide; printable, whatever the name."""
        key, name = self.key(slide), slide_name(slide)
        if key is not None:
            listed = self.matches[key]
            return (
                f"row {listed.row} of the label table is about {listed.name}, which is in another folder than "
                f"{printable(f'{inside}/' * bool(inside) + slide)}. If they are one slide, name it there without "
                "folders"
            )
        return f"no row in the label table for {printable(name)}{self._hint(name, *self._keys(name))}"

    def explain_patient(self, patient: str) -> str:
        """Why ``match_patient`` gives nothing; printable."""
        return f"no row in the label table for the patient {printable(patient)}{self._hint(patient, patient)}"

    def _hint(self, name: str, *keys: str) -> str:
        """The row of a key that differs little from those of a name, to be added to what is said of the name."""
        forms = [*map(_mangled_form, keys), _mangled_form(tcga_patient(name) or "")]
        similar = next((self._similar[form] for form in forms if form in self._similar), "")
        return f"; row {self.matches[similar].row} has {similar!r}" if similar else ""

    def key(self, slide: str) -> str | None:
        """Key of ``matches`` that a slide has by its name, wherever it lies."""
        return next((key for key in self._keys(slide_name(slide)) if key in self.matches), None)

    def mpp(self, slide_id: str) -> float | None:
        """Micrometres per pixel (level 0) that the table gives for a slide, or None."""
        key = self.key(slide_id)
        return None if key is None else self.resolutions.get(key)

    def _keys(self, name: str) -> Iterator[str]:
        """Keys that a slide of this name could have, the best first."""
        if self.by_slide:
            yield from slide_keys(name)
        else:
            yield name
            # A mark over a letter belongs to the letter: the id does not end before it.
            ends = (
                i for i in range(len(name) - 1, 0, -1) if not name[i].isalnum() and not unicodedata.combining(name[i])
            )
            yield from (name[:end] for end in ends)

    def _same_folder(self, listed: str, slide: str, inside: str) -> bool:
        if not self.by_slide:
            return True
        theirs, below = folders_of(listed), folders_of(slide)
        # An archive may move as a whole: the name of the input counts against folders in which listed slides differ.
        own = theirs[len(self._common_folders) :] if is_absolute(listed) else theirs
        return folders_agree(theirs, below) and folders_agree(own, [*([inside] if inside else []), *below])

    @cached_property
    def _common_folders(self) -> list[str]:
        """Folders that all listed slides are in, where they are listed by absolute paths."""
        levels = zip(*(folders_of(match.name) for match in self.matches.values()), strict=False)
        return [names[0] for names in takewhile(lambda names: len(set(names)) == 1, levels)]

    @cached_property
    def _similar(self) -> dict[str, str]:
        barcodes = {_mangled_form(name): key for key in self.matches if (name := tcga_patient(key))}
        return barcodes | {form: key for key in self.matches if (form := _mangled_form(key))}


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
        path: CSV, TSV or XLSX file with a header.
        patient_column: name of a column; None recognises it by its name. So for the other columns.
        slide_column: slide or image names; without one, slides are found by the beginning of their name.
        label_column: status or class.
        site_column: hospital; without one, the site comes from TCGA barcodes.
        mpp_column: micrometres per pixel at level 0.
        classes: two class names, the positive one last, or that of the positive class alone; None for words of MSI.
        label_level: what carries one label.

    Raises:
        InputError: a column is not found or ambiguous; the classes are not two; or a row has no patient, an unknown
            value, a bad mpp, repeats a patient or slide, or contradicts another row; or two patients differ only by
            case, space or hyphen. The message names the row.
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

    columns = {"patient": patient_name, "slide": slide, "label": label_name, "site": site_name, "mpp": mpp_name}
    roles = check_roles(columns, where)
    patients = frame[patient_name]
    check_patients(patients, where)
    labels, class_names = parse_labels(frame[label_name], classes, where=where)
    source = LabelSource(Path(path).name, roles, count_words(frame[label_name], labels))
    if label_level == "patient":
        labels = owner_labels(patients, labels, owner="patient", where=where)
    if slide is None:
        written = keys = patients
        _check_unique(
            keys, patients, "patient", "Keep one row per patient, or name a slide column with --slide-column", where
        )
    else:
        written = frame[slide]
        check_ids(written, "slide name", where)
        keys = written.map(slide_name)
        _check_unique(keys, written, "slide", "Keep one row per slide, and give slides different names", where)
    sites = site_names(None if site_name is None else frame[site_name], patients)
    matches = {
        key: LabelMatch(patient, label, site, row, name)
        for row, key, patient, label, site, name in zip(
            frame.index, keys, patients, labels, sites, written, strict=True
        )
    }
    resolutions = {} if mpp_name is None else parse_mpp(frame[mpp_name], keys, where, coarsest=COARSEST_SLIDE_MPP)
    return LabelTable(class_names, label_level, slide is not None, matches, resolutions, source)


def _mangled_form(name: str) -> str:
    """What is left of a name that a spreadsheet or a careless hand changed: no leading zeros, spaces or case."""
    without_zeros = re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"\.0$", "", similar_form(name)))
    return re.sub(r"[\s._/-]", "", without_zeros)


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
    import pandas as pd

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


def _check_unique(keys: pd.Series[str], written: pd.Series[str], what: str, advice: str, where: str) -> None:
    repeated = keys[keys.duplicated()]
    if len(repeated):
        same = keys == repeated.iloc[0]
        names = list(dict.fromkeys(written[same]))
        shown = "" if len(names) == 1 else f", as {' and '.join(map(repr, names[:3]))}"
        raise InputError(f"{where}: {what} {repeated.iloc[0]!r} is in rows {list(keys.index[same])}{shown}. {advice}.")
