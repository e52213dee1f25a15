"""Annotations on disk: telling their format, reading them, and finding the frame that each one is about."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from kdml_med.colonoscopy.boxes import BoxTable, FrameBoxes, keep_classes
from kdml_med.colonoscopy.formats import parse_table
from kdml_med.colonoscopy.options import FrameOptions
from kdml_med.colonoscopy.sources import Source, SourceIndex
from kdml_med.errors import InputError
from kdml_med.labels import read_text_table

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


def read_annotations(path: Path | None, sources: list[Source], options: FrameOptions) -> Annotations:
    """Read annotations and tie them to sources.

    Args:
        path: file or folder; None where there are none.
        sources: images and videos of the input.
        options: ``annotation_format`` and ``polyp_classes`` are used.

    Raises:
        InputError: the path does not exist, its format cannot be told, or the file as a whole cannot be used.
    """
    if path is None:
        return Annotations()
    if not path.exists():
        raise InputError(f"{path} does not exist. Check the path of the annotations.")
    table = _read_csv(path)
    return match_annotations(table, SourceIndex(sources), options)


def _read_csv(path: Path) -> BoxTable:
    return parse_table(read_text_table(path), str(path))


def match_annotations(table: BoxTable, index: SourceIndex, options: FrameOptions) -> Annotations:
    """Tie what was read to sources.

    Nothing is guessed: an annotation that fits no source or several is a failure, and the sources that it fits are
    blocked, since one of them lacks its boxes.
    """
    result = Annotations(failures=list(table.problems), columns=table.columns)
    classes: set[str] = set()
    for entry in table.frames:
        found = index.find(entry.image, entry.frame)
        place = f"{entry.place}: " if entry.place else ""
        if len(found) != 1:
            names = sorted(source.name for source, _ in found)
            reason = f"its name fits {len(names)} inputs, such as {names[:2]}" if names else "no such image or frame"
            result.failures.append((entry.image, f"{place}{reason}"))
            result.failures += [(name, f"left out: {entry.image!r} in the annotations may mean it") for name in names]
            result.blocked |= {(source.name, frame) for source, frame in found}
            continue
        source, frame = found[0]
        key = (source.name, frame if source.is_video else None)
        if key in result.frames:
            other = result.frames[key]
            result.frames[key] = replace(other, problem=f"annotated twice: as {other.image!r} and {entry.image!r}")
            continue
        chosen = keep_classes(entry, options.polyp_classes)
        classes |= {name for name in chosen.classes if name is not None}
        result.frames[key] = chosen
    result.classes = tuple(sorted(classes))
    return result


def describe_frame(entry: FrameBoxes | None) -> str:
    """Short text that changes whenever what is known about a frame does."""
    content = None if entry is None else {k: str(v) for k, v in vars(entry).items() if k != "place"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
