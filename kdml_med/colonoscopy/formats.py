"""Formats that people store boxes in: text in, ``FrameBoxes`` out, and back; pure functions, no files.

How each format counts pixels is told in ``kdml_med.colonoscopy.boxes``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from kdml_med.colonoscopy.boxes import Box, BoxTable, FrameBoxes
from kdml_med.errors import InputError
from kdml_med.labels import is_blank

EDGES = ("xmin", "ymin", "xmax", "ymax")
TABLE_COLUMNS = ("image", "frame", *EDGES, "class", "polyp", "sequence", "patient", "site", "split", "width", "height")
_KNOWN = {
    "image": ("image", "image_id", "file", "filename", "file_name", "video", "path"),
    "class": ("class", "category", "label"),
    "polyp": ("polyp", "polyp_id"),
    "sequence": ("sequence", "sequence_id", "sequenceid"),
    "patient": ("patient", "patient_id", "patientid"),
    "site": ("site", "hospital", "center", "centre"),
}
_SPLITS = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}


def parse_table(table: pd.DataFrame, where: str) -> BoxTable:
    """Frames of a table with one row for each box, or a row with empty edges for a frame without.

    Columns: image (or video), xmin, ymin, xmax, ymax; optional ``TABLE_COLUMNS``. A row that cannot be read makes its
    frame unusable; the other frames stay.

    Args:
        table: text cells; the index is the row in the file.
        where: the file, for messages.

    Raises:
        InputError: a needed column is missing, or rows of one frame contradict each other in sequence, patient, site or
            split, or a split has an unknown name.
    """
    columns = _find_columns(table, where)
    result = BoxTable(columns=frozenset({"sequence", "patient", "site", "split"} & set(columns)))
    frames: dict[tuple[str, int | None], FrameBoxes] = {}
    for row, cells in zip(table.index, table.to_dict("records"), strict=True):
        values = {name: text for name, column in columns.items() if not is_blank(text := str(cells[column]))}
        if "image" not in values:
            result.problems.append((where, f"row {row}: no image in column {columns['image']!r}"))
            continue
        new = _parse_row(values, f"row {row}", where)
        key = (new.image, new.frame)
        frames[key] = new if key not in frames else _join_rows(frames[key], new, where)
    result.frames = [_drop_empty_names(frame) for frame in frames.values()]
    return result


def _drop_empty_names(frame: FrameBoxes) -> FrameBoxes:
    classes = frame.classes if any(frame.classes) else ()
    return replace(frame, classes=classes, polyps=frame.polyps if any(frame.polyps) else ())


def _find_columns(table: pd.DataFrame, where: str) -> dict[str, str]:
    """Column of each role that the table has."""
    header = {re.sub(r"[ \-]", "_", str(name).strip().lower()): str(name) for name in table.columns}
    found: dict[str, str] = {}
    for role in TABLE_COLUMNS:
        names = [header[name] for name in _KNOWN.get(role, (role,)) if name in header]
        if len(names) > 1:
            raise InputError(f"{where}: {names} could each be the {role} column; rename one of them.")
        if names:
            found[role] = names[0]
    missing = [role for role in ("image", *EDGES) if role not in found]
    if missing:
        raise InputError(f"{where} lacks the columns {missing}; its columns are {list(table.columns)}.")
    return found


def _parse_row(values: Mapping[str, str], place: str, where: str) -> FrameBoxes:
    problems = []
    numbers: dict[str, float] = {}
    for name in (*EDGES, "width", "height", "frame"):
        try:
            numbers |= {name: float(values[name])} if name in values else {}
        except ValueError:
            problems.append(f"{place}: {name} is {values[name]!r}, expected a number")
    for name in ("width", "height", "frame"):
        if name in numbers and not (numbers[name] >= 0 and numbers[name] == numbers[name] // 1):
            problems.append(f"{place}: {name} is {values[name]!r}, expected a whole number")
            del numbers[name]
    given = [name for name in EDGES if name in values]
    if given and len(given) < 4:
        problems.append(f"{place}: only {' and '.join(given)} of the four edges; give all, or none for no polyp")
    whole = {name: int(numbers[name]) for name in ("width", "height", "frame") if name in numbers}
    boxes: tuple[Box, ...] = ()
    if given and not problems:
        boxes = ((numbers["xmin"], numbers["ymin"], numbers["xmax"], numbers["ymax"]),)
    split = values.get("split")
    if split is not None:
        split = _SPLITS.get(split.lower(), split.lower())
        if split not in ("train", "val", "test"):
            raise InputError(f"{where}, {place}: split is {values['split']!r}, expected train, val or test.")
    return FrameBoxes(
        values["image"],
        boxes,
        classes=(values.get("class"),) * len(boxes),
        polyps=(values.get("polyp"),) * len(boxes),
        frame=whole.get("frame"),
        width=whole.get("width"),
        height=whole.get("height"),
        sequence=values.get("sequence"),
        patient=values.get("patient"),
        site=values.get("site"),
        split=split,
        place=place,
        problem="; ".join(problems) or None,
    )


def _join_rows(first: FrameBoxes, other: FrameBoxes, where: str) -> FrameBoxes:
    for name in ("sequence", "patient", "site", "split"):
        one, two = getattr(first, name), getattr(other, name)
        if one != two:
            raise InputError(
                f"{where}: {first.image} has {name} {one or 'blank'!r} in {first.place} and {two or 'blank'!r} in "
                f"{other.place}. All rows of a frame need the same one."
            )
    problem = "; ".join(reason for reason in (first.problem, other.problem) if reason) or None
    if problem is None and (first.width, first.height) != (other.width, other.height):
        problem = f"{first.place} and {other.place} state different sizes of the image"
    if problem is None and bool(first.boxes) != bool(other.boxes):
        problem = f"{first.place} and {other.place} contradict: one has a box, the other says that there is none"
    return replace(
        first,
        boxes=first.boxes + other.boxes,
        classes=first.classes + other.classes,
        polyps=first.polyps + other.polyps,
        problem=problem,
    )


def format_table(frames: Iterable[FrameBoxes]) -> pd.DataFrame:
    """Table that ``parse_table`` reads back, text cells, all of ``TABLE_COLUMNS``."""
    rows: list[dict[str, Any]] = []
    for frame in frames:
        common: dict[str, Any] = {"image": frame.image, "frame": frame.frame}
        common |= {name: getattr(frame, name) for name in TABLE_COLUMNS[8:]}
        if not frame.boxes:
            rows.append(common)
        for i, box in enumerate(frame.boxes):
            named = {"class": frame.classes[i] if frame.classes else None}
            named |= {"polyp": frame.polyps[i] if frame.polyps else None}
            rows.append(common | dict(zip(EDGES, map(repr, box), strict=True)) | named)
    cells = [{name: "" if row.get(name) is None else str(row[name]) for name in TABLE_COLUMNS} for row in rows]
    return pd.DataFrame(cells, columns=list(TABLE_COLUMNS), index=range(2, len(cells) + 2), dtype=object)
