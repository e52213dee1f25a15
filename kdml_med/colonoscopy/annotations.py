"""Annotations on disk: telling their format, and finding the frame that each one is about."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kdml_med.colonoscopy.boxes import BoxTable, FrameBoxes, keep_classes
from kdml_med.colonoscopy.options import AUTO, FrameOptions
from kdml_med.colonoscopy.readers import FORMATS
from kdml_med.colonoscopy.sources import Source, SourceIndex
from kdml_med.errors import InputError

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
    name = options.annotation_format
    if name == AUTO:
        return _tell_folder(path, inputs) if path.is_dir() else _tell_file(path)
    if path.is_dir() != FORMATS[name].folder:
        expected = "a folder" if FORMATS[name].folder else "a file"
        raise InputError(f"annotations of the format {name} are {expected}, {path} is not.")
    return name


def _tell_file(path: Path) -> str:
    """Format of a file that holds all annotations."""
    known = {name: kind.suffixes for name, kind in FORMATS.items() if not kind.folder}
    names = [name for name, suffixes in known.items() if path.suffix.lower() in suffixes]
    if len(names) > 1:
        raise InputError(f"{path} may be of several formats, {names}. Name the format with --format.")
    if not names:
        expected = " or ".join(f"{suffixes[0]} ({name})" for name, suffixes in known.items())
        raise InputError(f"{path}: expected a {expected} file; name the format with --format.")
    return names[0]


def _tell_folder(path: Path, inputs: Sequence[Path]) -> str:
    """Format of a folder with a file for each image."""
    here = path.resolve()
    among = any(here == item.resolve() or here in item.resolve().parents for item in inputs)
    known = {name: kind for name, kind in FORMATS.items() if kind.folder}
    names = [name for name, kind in known.items() if not (among and kind.pictures) and kind.files(path)]
    if len(names) != 1:
        what = f"files of several formats, {names}" if names else f"no files of the formats {', '.join(known)}"
        raise InputError(f"{path} holds {what}. Name the format with --format, and a COCO or CSV file by its own path.")
    return names[0]


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
    table = FORMATS[kind].read(path, FORMATS[kind].files(path))
    return match_annotations(table, SourceIndex(sources), options, str(path))


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
