"""The one list of formats of annotations: what their files are called, and how they are read.

What the files say is worked out in ``kdml_med.colonoscopy.formats``.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdml_med.colonoscopy.boxes import BoxTable, FrameBoxes
from kdml_med.colonoscopy.coco import parse_coco
from kdml_med.colonoscopy.formats import are_corners, decode_xml, parse_table, parse_voc, parse_yolo
from kdml_med.errors import InputError
from kdml_med.storage.walking import walk_folder
from kdml_med.tables.columns import read_text_table
from kdml_med.tables.names import IMAGE_SUFFIXES, UNREAD_PICTURES
from kdml_med.words import storable

Reader = Callable[[Path, Sequence[Path]], BoxTable]
"""Takes the path that was named and the files of the format there: the path itself, or everything below a folder.

What is wrong with a single frame becomes its ``problem``; an ``InputError`` means that nothing can be used."""


@dataclass(frozen=True)
class AnnotationFormat:
    """One way to store boxes.

    Attributes:
        read: the reader.
        suffixes: of its files, lower case, with the point.
        folder: there is a file for each image, and the folder of these files is named; else one file holds everything.
        pictures: the files are images themselves, so that they cannot lie among the images that they are about.
        ignored: names of files with such a suffix that are something else.
        sounds_like: whether a file with such a suffix is more than a note; None where the suffix says enough.
    """

    read: Reader
    suffixes: tuple[str, ...]
    folder: bool = False
    pictures: bool = False
    ignored: tuple[str, ...] = ()
    sounds_like: Callable[[Path], bool] | None = None

    def files(self, path: Path) -> list[Path]:
        """Files of this format: the path, or those in the folder and below it, sorted, without hidden ones."""
        if not self.folder:
            return [path]
        files = (file for file in walk_folder(path).files if file.suffix.lower() in self.suffixes)
        return [file for file in files if file.name not in self.ignored]

    def may_be_in(self, path: Path) -> bool:
        """Whether a folder holds files of this format, rather than notes with such a suffix."""
        return any(self.sounds_like is None or self.sounds_like(file) for file in self.files(path))

    def read_all(self, path: Path) -> BoxTable:
        """Everything that the file or folder says, with the files of the folder that cannot be reached."""
        table = self.read(path, self.files(path))
        for lost, reason in walk_folder(path).failures if self.folder else ():
            name = storable(lost.relative_to(path).as_posix())
            if lost.suffix.lower() in self.suffixes:
                table.frames.append(FrameBoxes(name, place=name, problem=f"{name}: {reason}"))
            elif lost.is_dir():
                table.problems.append((name, reason))
                table.untied.append(f"a file in {name}")
        return table


def _read_csv(path: Path, files: Sequence[Path]) -> BoxTable:
    return parse_table(read_text_table(path), str(path))


def _read_coco(path: Path, files: Sequence[Path]) -> BoxTable:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}). Export the annotations again.") from error
    except RecursionError as error:
        raise InputError(
            f"{path} cannot be read as JSON: it is nested too deeply to be COCO. Export it again."
        ) from error
    return parse_coco(content, str(path))


def _read_voc(folder: Path, files: Sequence[Path]) -> BoxTable:
    return _read_texts(folder, files, parse_voc, decode_xml)


def _read_yolo(folder: Path, files: Sequence[Path]) -> BoxTable:
    names: list[str] = []
    for path in (folder / "classes.txt", folder.parent / "classes.txt"):
        if path.is_file() and not names:
            try:
                names = decode_text(path.read_bytes()).rstrip().splitlines()
            except (OSError, UnicodeError) as error:
                raise InputError(f"{path} cannot be read as UTF-8 text ({error}). Save it as UTF-8.") from error
            if not all(map(str.strip, names)):
                raise InputError(f"{path} has an empty line, which leaves open how classes are counted. Remove it.")
    names = [name.strip() for name in names]
    table = _read_texts(folder, files, lambda text, name: parse_yolo(text, name, names), decode_text)
    if are_corners(table.frames):
        doubt = (
            "the boxes of this folder reach out of their images as centre and size, but not as corners; correct them"
        )
        table.frames = [
            replace(frame, problem=frame.problem or doubt) if frame.boxes else frame for frame in table.frames
        ]
    return table


def _read_masks(folder: Path, files: Sequence[Path]) -> BoxTable:
    # The masks themselves are read with their frames, side by side.
    named = [(path, _name_in(folder, path)) for path in files]
    frames = [FrameBoxes(name, mask=path, place=f"mask {name}") for path, name in named]
    for path in walk_folder(folder).files:
        if path.suffix.lower() in UNREAD_PICTURES:
            name = _name_in(folder, path)
            problem = f"its mask {name}: {path.suffix} files are not read; save it as PNG"
            frames.append(FrameBoxes(name, place=f"mask {name}", problem=problem))
    return BoxTable(frames)


def _name_in(folder: Path, path: Path) -> str:
    # Not by numbers as elsewhere: a byte that is not UTF-8 must not add letters to what names are compared by.
    return os.fsencode(path.relative_to(folder).as_posix()).decode("utf-8", "replace")


def decode_text(data: bytes) -> str:
    """UTF-8 text, or UTF-16 that begins with its mark.

    Raises:
        UnicodeError: it is neither.
    """
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if wide else "utf-8-sig")


def _read_texts(
    folder: Path, files: Sequence[Path], parse: Callable[[str, str], FrameBoxes], decode: Callable[[bytes], str]
) -> BoxTable:
    """Frames of text files; a file that is no text is a frame with a problem."""
    frames = []
    for path in files:
        name = _name_in(folder, path)
        try:
            frames.append(parse(decode(path.read_bytes()), name))
        except (OSError, UnicodeError, LookupError) as error:
            problem = f"{path.name} cannot be read as text ({error}); save it as UTF-8"
            frames.append(FrameBoxes(name, place=name, problem=problem))
    return BoxTable(frames)


def _sounds_like_voc(path: Path) -> bool:
    try:
        return re.search(r"<annotation[\s/>]", decode_xml(path.read_bytes())) is not None
    except (OSError, UnicodeError, LookupError):
        return True


def _sounds_like_yolo(path: Path) -> bool:
    try:
        return not parse_yolo(decode_text(path.read_bytes()), path.name).stray
    except (OSError, UnicodeError):
        return True


_NOT_YOLO = ("classes.txt", "train.txt", "val.txt", "test.txt", "labelmap.txt", "README.txt")

FORMATS: dict[str, AnnotationFormat] = {
    "masks": AnnotationFormat(_read_masks, IMAGE_SUFFIXES, folder=True, pictures=True),
    "voc": AnnotationFormat(_read_voc, (".xml",), folder=True, sounds_like=_sounds_like_voc),
    "coco": AnnotationFormat(_read_coco, (".json",)),
    "yolo": AnnotationFormat(_read_yolo, (".txt",), folder=True, ignored=_NOT_YOLO, sounds_like=_sounds_like_yolo),
    "csv": AnnotationFormat(_read_csv, (".csv", ".tsv", ".tab")),
}
"""By the name that ``--format`` takes."""
