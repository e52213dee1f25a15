"""Annotations on disk: telling their format, and finding the frame that each one is about."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kdml_med.colonoscopy.boxes import BoxTable, FrameBoxes, drop_twins, keep_classes
from kdml_med.colonoscopy.options import AUTO, FrameOptions
from kdml_med.colonoscopy.readers import FORMATS
from kdml_med.colonoscopy.sources import NO_POLYP, Source, SourceIndex
from kdml_med.errors import InputError
from kdml_med.words import counted, verb

FrameKey = tuple[str, int | None]
"""Name of the source, and number of the frame for a video."""
Found = tuple[Source, int | None]
"""What a name fits: a source, and the number of the frame for a video."""


@dataclass
class Annotations:
    """What is known about the frames of an input.

    Attributes:
        frames: by frame.
        failures: (input, reason) of annotations that belong to no frame, and of frames they may belong to.
        blocked: frames that an annotation may be about which could not be used; not to be taken for unlisted ones. Of
            a video, None stands for all frames that are not listed.
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
    names = [name for name, kind in known.items() if not (among and kind.pictures) and kind.may_be_in(path)]
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
    return match_annotations(FORMATS[kind].read_all(path), sources, options, str(path))


def match_annotations(table: BoxTable, sources: Sequence[Source], options: FrameOptions, where: str) -> Annotations:
    """Tie what was read to sources.

    Nothing is guessed: an annotation that fits no source or several is a failure, and the sources that it fits or may
    mean are blocked, since one of them lacks its boxes.

    Raises:
        InputError: ``polyp_classes`` names a class that does not occur; without it every frame would be negative.
    """
    classes = {name for entry in table.frames for name in entry.classes if name is not None}
    absent = [name for name in options.polyp_classes if name.casefold() not in {known.casefold() for known in classes}]
    if absent:
        raise InputError(
            f"--polyp-class {absent[0]}: {where} has no such class; its classes: {sorted(classes) or 'none'}."
        )
    opposite = sorted(name for name in classes if re.sub(r"[^a-z]", "", name.lower()) in NO_POLYP)
    if opposite and not options.polyp_classes:
        raise InputError(
            f"{where} has boxes of the class {opposite[0]!r}, which would be polyps; its classes: {sorted(classes)}. "
            "Name those that are polyps with --polyp-class."
        )
    matching = _Matching(SourceIndex(sources), options, Annotations(failures=list(table.problems)))
    for entry in table.frames:
        matching.add(entry)
    result = matching.finish(sources, table.untied)
    result.columns = table.columns
    kept = {name for entry in result.frames.values() for name in entry.classes if name is not None}
    result.classes = tuple(sorted(kept))
    return result


class _Matching:
    """Annotations while they are tied to sources."""

    def __init__(self, index: SourceIndex, options: FrameOptions, result: Annotations) -> None:
        self._index, self._options, self._result = index, options, result
        # Sources that an annotation may mean, and why they must not count as unlisted.
        self._doubts: dict[str, str] = {}
        self._strangers: list[FrameBoxes] = []  # say something, but about no source

    def add(self, entry: FrameBoxes) -> None:
        """Tie one annotation to its source, or note why not."""
        found = self._index.find(entry.image, entry.frame)
        second = self._index.find(entry.other_name) if entry.other_name is not None else []
        other = [(source, frame) for source, frame in second if frame is not None or not source.is_video]
        place = f"{entry.place}: " if entry.place else ""
        if found and other and not {source.name for source, _ in found} & {source.name for source, _ in other}:
            self._refuse_contradiction(entry, found, other)
            return
        found = found or other
        if len(found) != 1:
            names = sorted(source.name for source, _ in found)
            reason = f"its name fits {len(names)} inputs, such as {names[:2]}" if names else "no such image or frame"
            more = f" ({entry.problem})" if entry.problem else ""
            alike = self._index.find_alike(entry.image) if not found else []
            if entry.stray and not found and not alike:
                return
            self._result.failures.append((entry.image, f"{place}{reason}{more}"))
            self._block(found, f"left out: {entry.image!r} in the annotations may mean it")
            if not found and (entry.boxes or entry.mask or entry.problem):
                self._strangers.append(entry)
                self._doubt(alike, entry.image)
            return
        source, frame = found[0]
        if source.is_video and frame is None:
            self._result.failures.append(
                (entry.image, entry.problem or f"{place}a video without the number of the frame")
            )
            self._doubt([source], entry.image)
            return
        key = (source.name, frame if source.is_video else None)
        if key in self._result.frames:
            known = self._result.frames[key]
            problem = f"annotated twice: as {known.image!r} and {entry.image!r}"
            self._result.frames[key] = replace(known, problem=problem)
            return
        kept = keep_classes(entry, self._options.polyp_classes)
        self._result.frames[key] = once = drop_twins(kept)
        if len(once.boxes) < len(kept.boxes):
            name = source.name if key[1] is None else f"{source.name}/{key[1]}"
            twice = len(kept.boxes) - len(once.boxes)
            said = f"{counted(twice, 'box', 'es')} given twice {verb(twice, 'counts', 'count')} once"
            self._result.failures.append((name, said))

    def finish(self, sources: Sequence[Source], untied: Sequence[str]) -> Annotations:
        """What is known, when all annotations are there."""
        if self._strangers and not (self._result.frames or self._result.blocked or self._doubts):
            self._refuse_strangers()
        listed = {name for name, _ in self._result.frames} | {name for name, _ in self._result.blocked}
        if untied and self._options.unlisted == "negative":
            self._doubts |= {source.name: f"{untied[0]} in the annotations" for source in sources}
        for source in sources:
            # Of a video whose frames are annotated, the others are in doubt; an image with an annotation is not.
            if source.name not in self._doubts or (source.name in listed and not source.is_video):
                continue
            if source.is_video and self._options.unlisted != "negative":
                continue  # its other frames are no negatives anyway
            what = "frames that are not annotated are left out" if source.is_video else "left out"
            self._block([(source, None)], f"{what}: {self._doubts[source.name]} may mean it")
        return self._result

    def _refuse_strangers(self) -> None:
        """Make no negatives of all frames because of annotations that all belong to something else."""
        if self._options.unlisted == "negative":
            first = self._strangers[0]
            why = f" ({first.problem})" if first.problem else ""
            raise InputError(
                f"none of the annotations fits an input, such as {first.image!r}{why}: --unlisted negative would make "
                "every frame a negative. Check that inputs and annotations belong together and are named alike."
            )

    def _refuse_contradiction(self, entry: FrameBoxes, found: Sequence[Found], other: Sequence[Found]) -> None:
        names = sorted(source.name for source, _ in other)
        reason = f"{entry.place} says that it is about {entry.other_name!r}, but is named like this image; correct one"
        self._block(found, reason)
        self._doubts |= dict.fromkeys(names, f"{entry.place} in the annotations")

    def _block(self, found: Sequence[Found], reason: str) -> None:
        self._result.failures += [(source.name, reason) for source, _ in found]
        self._result.blocked |= {(source.name, frame) for source, frame in found}

    def _doubt(self, sources: Sequence[Source], image: str) -> None:
        self._doubts |= {source.name: f"{image!r} in the annotations" for source in sources}


def describe_frame(entry: FrameBoxes) -> str:
    """Short text that changes whenever what is known about a frame does."""
    content = {name: str(value) for name, value in vars(entry).items() if name not in ("place", "mask")}
    if entry.mask is not None:
        content["mask"] = f"{entry.place} {entry.mask.stat().st_size}"
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
