"""Formats that people store boxes in: text in, ``FrameBoxes`` out, and back; pure functions, no files.

How each format counts pixels is told in ``kdml_med.colonoscopy.boxes``.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pandas as pd

from kdml_med.colonoscopy.boxes import ROUNDING_PX, Box, BoxTable, FrameBoxes
from kdml_med.errors import InputError
from kdml_med.tables.columns import is_blank
from kdml_med.tables.ids import check_patients

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
_SHARE_ROUNDING = 0.01
_LARGEST = 2**31 - 1  # no picture is wider and no video longer
_XML_ENCODING = re.compile(rb"""^\s*<\?xml[^>]*\bencoding\s*=\s*["']([A-Za-z0-9._-]+)""")
_YOLO_LIKE = re.compile(r"\s*\S+(?:[\s,]+[-+.\d]+){3,}")
"""A line with as many numbers as a box has, in whatever order."""
_SPLITS = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}


TURNED = "its edges are not those of the polyp; draw it upright"


def is_turned(value: Any) -> bool:
    """Whether the angle that a box is said to be turned by, if any, is one; CVAT gives it apart from the edges."""
    try:
        return value is not None and float(value) % 360 != 0
    except (TypeError, ValueError):
        return False


def are_corners(frames: Iterable[FrameBoxes]) -> bool:
    """Whether boxes that were read as corner or centre and size seem to be two corners: only so do all of them fit.

    Args:
        frames: all of a source; those in pixels count where they state the size of their image.
    """
    outside = False
    for frame in frames:
        if frame.relative:
            width, height, spare = 1.0, 1.0, _SHARE_ROUNDING
        elif frame.width and frame.height:
            width, height, spare = frame.width, frame.height, ROUNDING_PX
        else:
            continue
        for xmin, ymin, xmax, ymax in frame.boxes:
            size = (xmax - xmin, ymax - ymin)
            first = ((xmin + xmax) / 2, (ymin + ymax) / 2) if frame.relative else (xmin, ymin)
            if size[0] <= first[0] or size[1] <= first[1] or size[0] > width + spare or size[1] > height + spare:
                return False  # what is less than the first corner is not the other one
            outside |= min(xmin, ymin) < -spare or xmax > width + spare or ymax > height + spare
    return outside


def parse_table(table: pd.DataFrame, where: str) -> BoxTable:
    """Frames of a table with one row for each box, or a row with empty edges for a frame without.

    Columns: image (or video), xmin, ymin, xmax, ymax; optional ``TABLE_COLUMNS``. A row that cannot be read makes its
    frame unusable; the other frames stay.

    Args:
        table: text cells; the index is the row in the file.
        where: the file, for messages.

    Raises:
        InputError: a needed column is missing, two patients or sequences are spelt almost alike, rows of one frame
            contradict each other in sequence, patient, site or split, or a split has an unknown name.
    """
    columns = _find_columns(table, where)
    result = BoxTable(columns=frozenset({"sequence", "patient", "site", "split"} & set(columns)))
    for role in ("patient", "sequence"):
        if role in columns:
            owners = table[columns[role]].astype(str)
            check_patients(owners[~owners.map(is_blank)], where, role)
    frames: dict[tuple[str, int | None], FrameBoxes] = {}
    for row, cells in zip(table.index, table.to_dict("records"), strict=True):
        values = {name: text for name, column in columns.items() if not is_blank(text := str(cells[column]))}
        if "image" not in values:
            result.problems.append((where, f"row {row}: no image in column {columns['image']!r}"))
            result.untied.append(f"row {row}")
            continue
        new = _parse_row(values, f"row {row}", where)
        key = (new.image, new.frame)
        frames[key] = new if key not in frames else _join_rows(frames[key], new, where)
    result.frames = [drop_empty_names(frame) for frame in frames.values()]
    return result


def drop_empty_names(frame: FrameBoxes) -> FrameBoxes:
    """The frame without classes where no box has one, and without names of polyps likewise."""
    classes = frame.classes if any(frame.classes) else ()
    return replace(frame, classes=classes, polyps=frame.polyps if any(frame.polyps) else ())


def _find_columns(table: pd.DataFrame, where: str) -> dict[str, str]:
    """Column of each role that the table has."""
    header: dict[str, list[str]] = {}  # "patient id" and "Patient_ID" are both patient_id: neither may win in silence
    for name in map(str, table.columns):
        header.setdefault(re.sub(r"[ \-]", "_", name.strip().lower()), []).append(name)
    found: dict[str, str] = {}
    for role in TABLE_COLUMNS:
        names = [name for known in _KNOWN.get(role, (role,)) for name in header.get(known, ())]
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
        if name in numbers and not (0 <= numbers[name] <= _LARGEST and numbers[name] == numbers[name] // 1):
            problems.append(f"{place}: {name} is {values[name]!r}, expected a whole number up to {_LARGEST}")
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


def decode_xml(data: bytes) -> str:
    """Text of an XML file in the encoding that it declares, else UTF-8.

    Raises:
        UnicodeError: it is not in that encoding.
        LookupError: there is no such encoding.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16")
    declared = _XML_ENCODING.match(data)
    name = declared.group(1).decode().lower() if declared else "utf-8"
    # Programs say GB2312 and write the larger sets that contain it.
    name = {"gb2312": "gb18030", "gbk": "gb18030", "utf-8": "utf-8-sig"}.get(name, name)
    return data.decode(name)


def parse_voc(text: str, name: str) -> FrameBoxes:
    """The frame of a Pascal VOC file. VOC numbers pixels from 1 and includes both ends.

    A file without objects is a frame without polyps. A file that cannot be read, or has an object without a box, gives
    a frame with a problem.

    Args:
        text: XML.
        name: of the file, which is that of its image but for the suffix.
    """
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        return FrameBoxes(name, place=name, problem=f"{name} is not XML ({error})")
    if root.tag != "annotation":
        return FrameBoxes(name, place=name, problem=f"{name} is not Pascal VOC: its root is <{root.tag}>")
    boxes: list[Box] = []
    classes: list[str | None] = []
    try:
        for number, found in enumerate(root.findall("object"), start=1):
            edges = [_read_number(found, f"bndbox/{edge}", f"object {number}") for edge in EDGES]
            if len(found.findall("bndbox")) > 1:
                raise ValueError(f"object {number} has several boxes, expected one")
            _check_upright(found, f"object {number}")
            boxes.append((edges[0] - 1, edges[1] - 1, edges[2], edges[3]))
            classes.append((found.findtext("name") or "").strip() or None)
        _check_places(root, len(boxes))
        width, height = (read_side(_read_number(root, f"size/{side}", "the image")) for side in ("width", "height"))
    except ValueError as error:
        return FrameBoxes(name, place=name, problem=f"{name}: {error}")
    return FrameBoxes(
        name,
        tuple(boxes),
        classes=tuple(classes) if any(classes) else (),
        width=width,
        height=height,
        other_name=(root.findtext("filename") or "").strip() or None,
        place=name,
    )


def _check_upright(found: ElementTree.Element, what: str) -> None:
    for more in found.iterfind("attributes/attribute"):
        if (more.findtext("name") or "").strip().lower() == "rotation" and is_turned(more.findtext("value")):
            raise ValueError(f"{what} is a turned box: {TURNED}")


def _check_places(root: ElementTree.Element, known: int) -> None:
    """Refuse objects and boxes that stand elsewhere or are spelt otherwise, rather than overlook them.

    Raises:
        ValueError: what was found.
    """
    tags = [str(element.tag).rpartition("}")[2].lower() for element in root.iter()]
    parts = sum(1 for _ in root.iterfind("object/part/bndbox"))
    for tag, expected in (("object", known), ("bndbox", known + parts)):
        if tags.count(tag) != expected:
            raise ValueError(f"it has {tags.count(tag)} <{tag}>, {expected} of them as annotation/object/bndbox")


def _read_number(element: ElementTree.Element, path: str, what: str) -> float:
    text = element.findtext(path)
    if text is None and path.startswith("size/"):
        return 0
    try:
        return float(text or "")
    except ValueError:
        raise ValueError(f"{what} has {reprlib.repr(text)} as {path.rpartition('/')[2]}, expected a number") from None


def read_side(value: float) -> int | None:
    """Side of an image in pixels; None for 0, which some tools write for "not known".

    Raises:
        ValueError: it is no whole number, negative or beyond what an image can have.
    """
    if not (0 <= value <= _LARGEST and value == value // 1):
        raise ValueError(f"the image has a side of {value:g} pixels, expected a whole number up to {_LARGEST}")
    return int(value) or None


def format_voc(frame: FrameBoxes) -> str:
    """Pascal VOC file that ``parse_voc`` reads back."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = frame.image
    size = ElementTree.SubElement(root, "size")
    for side, value in (("width", frame.width), ("height", frame.height), ("depth", 3)):
        ElementTree.SubElement(size, side).text = str(value or 0)
    for i, (xmin, ymin, xmax, ymax) in enumerate(frame.boxes):
        found = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(found, "name").text = (frame.classes[i] if frame.classes else None) or "polyp"
        box = ElementTree.SubElement(found, "bndbox")
        for edge, number in zip(EDGES, (xmin + 1, ymin + 1, xmax, ymax), strict=True):
            ElementTree.SubElement(box, edge).text = f"{number:.10g}"
    return ElementTree.tostring(root, encoding="unicode")


def parse_yolo(text: str, name: str, class_names: Sequence[str] = ()) -> FrameBoxes:
    """The frame of a YOLO file: lines of class, centre x, centre y, width, height, as shares of the image.

    An empty file is a frame without polyps. The boxes are ``relative``.

    Args:
        text: lines; empty ones do not count.
        name: of the file, which is that of its image but for the suffix.
        class_names: by class number; without any, numbers are their own names.
    """
    boxes: list[Box] = []
    classes: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        cells = line.split()
        if not cells:
            continue
        try:
            kind, (x, y, width, height) = int(cells[0]), map(float, cells[1:])
        except ValueError:
            problem = f"{name}, line {number}: {line.strip()[:60]!r}, expected class, centre x, centre y, width, height"
            return FrameBoxes(
                name, place=name, problem=problem, stray=not any(map(_YOLO_LIKE.match, text.splitlines()))
            )
        if kind < 0 or (class_names and kind >= len(class_names)):
            known = f"classes.txt names 0 to {len(class_names) - 1}" if class_names else "they begin with 0"
            problem = f"{name}, line {number}: class {kind}, but {known}"
            return FrameBoxes(name, place=name, problem=problem)
        boxes.append((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
        classes.append(class_names[kind] if class_names else str(kind))
    return FrameBoxes(name, tuple(boxes), relative=True, classes=tuple(classes), place=name)


def format_yolo(frame: FrameBoxes, width: int, height: int, class_names: Sequence[str] = ("polyp",)) -> str:
    """YOLO lines that ``parse_yolo`` reads back.

    Args:
        frame: boxes in pixels; a box without a class gets number 0.
        width: of the image, pixels.
        height: of the image, pixels.
        class_names: by class number.
    """
    lines = []
    for i, (xmin, ymin, xmax, ymax) in enumerate(frame.boxes):
        kind = frame.classes[i] if frame.classes else None
        centre = ((xmin + xmax) / 2 / width, (ymin + ymax) / 2 / height)
        size = ((xmax - xmin) / width, (ymax - ymin) / height)
        number = 0 if kind is None else class_names.index(kind)
        lines.append(" ".join([str(number), *(f"{value:.10g}" for value in (*centre, *size))]))
    return "".join(f"{line}\n" for line in lines)
