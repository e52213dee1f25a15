"""Tables with one row per image: the label table of tiles that exist already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdml_med.errors import InputError
from kdml_med.keys import Split
from kdml_med.tables.classes import parse_labels
from kdml_med.tables.columns import COARSEST_TILE_MPP, check_roles, find_column, parse_mpp, read_text_table
from kdml_med.tables.ids import check_ids, check_patients, site_names
from kdml_med.tables.labels import LabelLevel, owner_labels
from kdml_med.tables.names import folders_agree, folders_of, same_name_form, slide_name
from kdml_med.tables.usage import LabelSource, count_words

if TYPE_CHECKING:
    import pandas as pd

_SPLIT_NAMES = {
    "train": Split.TRAIN.value,
    "training": Split.TRAIN.value,
    "val": Split.VAL.value,
    "valid": Split.VAL.value,
    "validation": Split.VAL.value,
    "test": Split.TEST.value,
    "testing": Split.TEST.value,
}

_SPLIT_COLUMNS = frozenset({"split", "set", "subset", "partition"})


@dataclass(frozen=True)
class TableColumns:
    """Column names of an image table; None recognises a column by its name, except for ``split``."""

    image: str | None = None
    patient: str | None = None
    slide: str | None = None
    label: str | None = None
    site: str | None = None
    mpp: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class ImageTable:
    """A checked image table.

    Attributes:
        rows: columns image, patient_id, slide_id, label, site, mpp and split, None where unknown; the index is the row
            in the file.
        classes: class names in index order.
        source: what was read, for dataset.json.
        not_chosen: images of the rows that the conditions leave out.
        unused_split: a column that looks like a split and was not asked for.
    """

    rows: pd.DataFrame
    classes: list[str]
    source: LabelSource
    not_chosen: list[str]
    unused_split: str | None = None


def read_image_table(
    table: Path,
    columns: TableColumns,
    where: Mapping[str, str],
    classes: Sequence[str] | None,
    label_level: LabelLevel,
) -> ImageTable:
    """Read and check an image table.

    Args:
        table: CSV, TSV or XLSX file with a header.
        columns: names of its columns.
        where: column → value; only rows that have all of them are taken.
        classes: two class names, positive last, or the positive one alone; None for words of MSI.
        label_level: what carries one label, "patient" or "slide".

    Raises:
        InputError: a column is not found or ambiguous, or a row is unusable; the message names it.
    """
    whole = read_text_table(table)
    return check_image_table(whole, str(table), Path(table).name, columns, where, classes, label_level)


def check_image_table(
    whole: pd.DataFrame,
    name: str,
    table: str,
    columns: TableColumns,
    where: Mapping[str, str],
    classes: Sequence[str] | None,
    label_level: LabelLevel,
) -> ImageTable:
    """Check rows about images, wherever they come from, as ``read_image_table`` does.

    Args:
        whole: text; the index is the row in the file.
        name: of the file, for messages.
        table: what to call it in dataset.json.
        columns: names of its columns.
        where: column → value; only rows that have all of them are taken.
        classes: see ``read_image_table``.
        label_level: likewise.

    Raises:
        InputError: a column is not found or ambiguous, or a row is unusable; the message names it.
    """
    import pandas as pd

    frame = _choose_rows(whole, where, name)
    header = list(frame.columns)

    def column_of(role: str, named: str | None, *, required: bool) -> str | None:
        return find_column(header, role, named, required=required, where=name)

    image = column_of("image", columns.image, required=True)
    patient = column_of("patient", columns.patient, required=True)
    label = column_of("label", columns.label, required=True)
    slide = slide_column(header, columns.slide, name)
    site = column_of("site", columns.site, required=False)
    mpp = column_of("mpp", columns.mpp, required=False)
    split = None if columns.split is None else _read_split_column(frame, columns.split, name)
    found = {"image": image, "patient": patient, "slide": slide, "label": label, "site": site, "mpp": mpp}
    roles = check_roles(found | {"split": None if split is None else str(split.name)}, name)
    check_ids(frame[image], "image name", name)
    check_patients(frame[patient], name)
    if slide is not None:
        check_ids(frame[slide], "slide name", name)
        _check_slide_folders(frame[slide], name)
    labels, names = parse_labels(frame[label], classes, where=name)
    source = LabelSource(table, roles, count_words(frame[label], labels))
    result = pd.DataFrame({"image": frame[image], "patient_id": frame[patient]}, dtype=object)
    result["slide_id"] = None if slide is None else frame[slide].map(slide_name).astype(object)
    if label_level == "patient" or slide is not None:
        owners = result["patient_id"] if label_level == "patient" else result["slide_id"]
        labels = owner_labels(owners, labels, owner=label_level, where=name)
    result["label"] = labels
    sites = site_names(None if site is None else frame[site], frame[patient])
    result["site"] = pd.Series(sites, frame.index, object)
    values = {} if mpp is None else parse_mpp(frame[mpp], frame.index, name, coarsest=COARSEST_TILE_MPP)
    result["mpp"] = pd.Series([values.get(row) for row in frame.index], frame.index, object)
    result["split"] = None if split is None else split
    unused = next((column for column in header if column.lower() in _SPLIT_COLUMNS and columns.split is None), None)
    return ImageTable(result, names, source, whole[image].drop(frame.index).tolist(), unused)


def slide_column(header: Sequence[str], named: str | None, where: str) -> str | None:
    """The column that names slides in a table of images; None without one.

    Raises:
        InputError: the named one is not there, or it is ambiguous.
    """
    # Not "image" or "file", which name slides in tables of slides.
    slides = [column for column in header if column.lower().startswith("slide")]
    return find_column(slides if named is None else header, "slide", named, required=False, where=where)


def _choose_rows(frame: pd.DataFrame, where: Mapping[str, str], name: str) -> pd.DataFrame:
    for condition, wanted in where.items():
        column, value = same_name_form(condition), same_name_form(wanted)
        if column not in frame:
            raise InputError(f"{name} has no column {column!r} (--where); its columns are {list(frame.columns)}.")
        frame = frame[frame[column] == value]
        if frame.empty:
            raise InputError(f"{name} has no rows left with {column}={value} (--where).")
    return frame


def _check_slide_folders(slides: pd.Series[str], where: str) -> None:
    """A slide goes by its name, so two slides of one name in different folders would become one."""
    first: dict[str, tuple[int, str]] = {}
    for row, written in slides.items():
        before, other = first.setdefault(slide_name(written), (int(str(row)), written))
        if other != written and not folders_agree(folders_of(other), folders_of(written)):
            raise InputError(
                f"{where}, rows {before} and {row}: the slides {other!r} and {written!r} have one name in different "
                "folders. Give slides different names."
            )


def _read_split_column(frame: pd.DataFrame, named: str, where: str) -> pd.Series[Any]:
    named = same_name_form(named)
    if named not in frame:
        raise InputError(f"{where} has no column {named!r} (--split-column); its columns are {list(frame.columns)}.")
    names = frame[named].str.lower().map(_SPLIT_NAMES)
    wrong = frame.index[names.isna()]
    if len(wrong):
        raise InputError(
            f"{where}, row {wrong[0]}: {named} is {frame.loc[wrong[0], named]!r}, expected train, val or test."
        )
    return names.astype(object)
