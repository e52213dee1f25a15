"""Annotations on disk: telling their format, reading them, and finding the frame that each one is about."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kdml_med.colonoscopy.boxes import BoxTable, FrameBoxes, keep_classes
from kdml_med.colonoscopy.formats import parse_coco, parse_table, parse_voc, parse_yolo
from kdml_med.colonoscopy.frames import IMAGE_SUFFIXES
from kdml_med.colonoscopy.options import FrameOptions
from kdml_med.colonoscopy.sources import Source, SourceIndex
from kdml_med.errors import InputError
from kdml_med.tables.columns import read_text_table

_SUFFIXES = {"masks": IMAGE_SUFFIXES, "voc": (".xml",), "yolo": (".txt",)}
_FILES = {"coco": (".json",), "csv": (".csv", ".tsv", ".tab")}
_NOT_YOLO = ("classes.txt", "train.txt", "val.txt", "test.txt", "obj.names", "README.txt")

FrameKey = tuple[str, int | None]
"""Name of the source, and number of the frame for a video."""


@dataclass
class Annotations:
    """What is known about the frames of an input.

    Attributes:
        frames: by frame.
        failures: (input, reason) of annotations that belong to no frame, and of frames they may belong to.
        blocked: frames that an annotation may be about which could not be used; not to be taken for unlisted ones.
        columns: which of sequence, patient, site and split the source has.
        classes: names of the annotated classes that count as polyps.
    """

    frames: dict[FrameKey, FrameBoxes] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)
    blocked: set[FrameKey] = field(default_factory=set)
    columns: frozenset[str] = frozenset()
    classes: tuple[str, ...] = ()


def find_format(path: Path, inputs: Sequence[Path], options: FrameOptions) -> str:
    """Format of annotations: as the options say, or by the suffix of a file, or of the files in a folder.

    Args:
        path: file or folder.
        inputs: images, videos and their folders; a folder that is or holds one of them has no masks in it, so that
            annotations may lie beside their images.
        options: ``annotation_format`` is used.

    Raises:
        InputError: there is no such path, its format cannot be told, or the folder has files of several formats.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist. Check the path of the annotations.")
    kind = options.annotation_format
    if kind == "auto" and path.is_file():
        kinds = [name for name, suffixes in _FILES.items() if path.suffix.lower() in suffixes]
        if not kinds:
            raise InputError(f"{path}: expected a .json (COCO) or .csv file; name the format with --format.")
        return kinds[0]
    if kind == "auto":
        here = path.resolve()
        among = any(here == item.resolve() or here in item.resolve().parents for item in inputs)
        kinds = [name for name in _SUFFIXES if not (among and name == "masks") and _annotation_files(path, name)]
        if len(kinds) != 1:
            what = f"files of several formats, {kinds}" if kinds else "neither masks nor .xml nor .txt files"
            raise InputError(
                f"{path} holds {what}. Name the format with --format, and a COCO or CSV file by its own path."
            )
        return kinds[0]
    if path.is_dir() != (kind in _SUFFIXES):
        expected = "a folder" if kind in _SUFFIXES else "a file"
        raise InputError(f"annotations of the format {kind} are {expected}, {path} is not.")
    return kind


def read_annotations(path: Path, kind: str, sources: Sequence[Source], options: FrameOptions) -> Annotations:
    """Read annotations and tie them to sources.

    Args:
        path: file or folder.
        kind: its format, from ``find_format``.
        sources: images and videos of the input.
        options: ``polyp_classes`` is used.

    Raises:
        InputError: the file as a whole cannot be used, or a class that is to be a polyp does not occur.
    """
    return match_annotations(_READERS[kind](path), SourceIndex(sources), options, str(path))


def _annotation_files(folder: Path, kind: str) -> list[Path]:
    """Files of one format in a folder and below it, sorted."""
    files = (path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES[kind] and path.is_file())
    kept = (path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    return sorted(path for path in kept if path.name not in _NOT_YOLO)


def _read_csv(path: Path) -> BoxTable:
    return parse_table(read_text_table(path), str(path))


def _read_coco(path: Path) -> BoxTable:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}). Export the annotations again.") from error
    return parse_coco(content, str(path))


def _read_voc(folder: Path) -> BoxTable:
    frames = []
    for path in _annotation_files(folder, "voc"):
        name = path.relative_to(folder).as_posix()
        text, problem = _read_text(path)
        frames.append(parse_voc(text, name) if problem is None else FrameBoxes(name, problem=problem))
    return BoxTable(frames)


def _read_yolo(folder: Path) -> BoxTable:
    names: list[str] = []
    for path in (folder / "classes.txt", folder.parent / "classes.txt"):
        if path.is_file() and not names:
            names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    frames = []
    for path in _annotation_files(folder, "yolo"):
        name = path.relative_to(folder).as_posix()
        text, problem = _read_text(path)
        frames.append(parse_yolo(text, name, names) if problem is None else FrameBoxes(name, problem=problem))
    return BoxTable(frames)


def _read_masks(folder: Path) -> BoxTable:
    # The masks themselves are read with their frames, side by side.
    files = [(path, path.relative_to(folder).as_posix()) for path in _annotation_files(folder, "masks")]
    return BoxTable([FrameBoxes(name, mask=path, place=f"mask {name}") for path, name in files])


def _read_text(path: Path) -> tuple[str, str | None]:
    """Content of a text file, and what is wrong with it."""
    try:
        return path.read_text(encoding="utf-8-sig"), None
    except (OSError, UnicodeDecodeError) as error:
        return "", f"{path.name} cannot be read as text: {error}"


_READERS: dict[str, Callable[[Path], BoxTable]] = {
    "csv": _read_csv,
    "coco": _read_coco,
    "voc": _read_voc,
    "yolo": _read_yolo,
    "masks": _read_masks,
}


def match_annotations(table: BoxTable, index: SourceIndex, options: FrameOptions, where: str) -> Annotations:
    """Tie what was read to sources.

    Nothing is guessed: an annotation that fits no source or several is a failure, and the sources that it fits are
    blocked, since one of them lacks its boxes.

    Raises:
        InputError: ``polyp_classes`` names a class that does not occur; without it every frame would be negative.
    """
    result = Annotations(failures=list(table.problems), columns=table.columns)
    classes = {name for entry in table.frames for name in entry.classes if name is not None}
    absent = [name for name in options.polyp_classes if name.casefold() not in {known.casefold() for known in classes}]
    if absent:
        raise InputError(
            f"--polyp-class {absent[0]}: {where} has no such class; its classes: {sorted(classes) or 'none'}."
        )
    for entry in table.frames:
        found = index.find(entry.image, entry.frame)
        if not found and entry.other_name is not None:
            found = index.find(entry.other_name)
        place = f"{entry.place}: " if entry.place else ""
        if len(found) != 1:
            names = sorted(source.name for source, _ in found)
            reason = f"its name fits {len(names)} inputs, such as {names[:2]}" if names else "no such image or frame"
            result.failures.append((entry.image, f"{place}{reason}"))
            result.failures += [(name, f"left out: {entry.image!r} in the annotations may mean it") for name in names]
            result.blocked |= {(source.name, frame) for source, frame in found}
            continue
        source, frame = found[0]
        if source.is_video and frame is None:
            result.failures.append((entry.image, f"{place}a video without the number of the frame"))
            continue
        key = (source.name, frame if source.is_video else None)
        if key in result.frames:
            other = result.frames[key]
            result.frames[key] = replace(other, problem=f"annotated twice: as {other.image!r} and {entry.image!r}")
            continue
        result.frames[key] = keep_classes(entry, options.polyp_classes)
    kept = {name for entry in result.frames.values() for name in entry.classes if name is not None}
    result.classes = tuple(sorted(kept))
    return result


def describe_frame(entry: FrameBoxes) -> str:
    """Short text that changes whenever what is known about a frame does."""
    content = {name: str(value) for name, value in vars(entry).items() if name not in ("place", "mask")}
    if entry.mask is not None:
        content["mask"] = f"{entry.place} {entry.mask.stat().st_size}"
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
