"""The one list of formats of annotations: what their files are called, and how they are read.

What the files say is worked out in ``kdml_med.colonoscopy.formats``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdml_med.colonoscopy.boxes import BoxTable, FrameBoxes
from kdml_med.colonoscopy.formats import parse_coco, parse_table, parse_voc, parse_yolo
from kdml_med.errors import InputError
from kdml_med.tables.columns import read_text_table
from kdml_med.tables.names import IMAGE_SUFFIXES

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
    """

    read: Reader
    suffixes: tuple[str, ...]
    folder: bool = False
    pictures: bool = False
    ignored: tuple[str, ...] = ()

    def files(self, path: Path) -> list[Path]:
        """Files of this format: the path, or those in the folder and below it, sorted, without hidden ones."""
        if not self.folder:
            return [path]
        files = (file for file in path.rglob("*") if file.suffix.lower() in self.suffixes and file.is_file())
        kept = (file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts))
        return sorted(file for file in kept if file.name not in self.ignored)


def _read_csv(path: Path, files: Sequence[Path]) -> BoxTable:
    return parse_table(read_text_table(path), str(path))


def _read_coco(path: Path, files: Sequence[Path]) -> BoxTable:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}). Export the annotations again.") from error
    return parse_coco(content, str(path))


def _read_voc(folder: Path, files: Sequence[Path]) -> BoxTable:
    return _read_texts(folder, files, parse_voc)


def _read_yolo(folder: Path, files: Sequence[Path]) -> BoxTable:
    names: list[str] = []
    for path in (folder / "classes.txt", folder.parent / "classes.txt"):
        if path.is_file() and not names:
            names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    return _read_texts(folder, files, lambda text, name: parse_yolo(text, name, names))


def _read_masks(folder: Path, files: Sequence[Path]) -> BoxTable:
    # The masks themselves are read with their frames, side by side.
    named = [(path, path.relative_to(folder).as_posix()) for path in files]
    return BoxTable([FrameBoxes(name, mask=path, place=f"mask {name}") for path, name in named])


def _read_texts(folder: Path, files: Sequence[Path], parse: Callable[[str, str], FrameBoxes]) -> BoxTable:
    """Frames of text files; a file that is no text is a frame with a problem."""
    frames = []
    for path in files:
        name = path.relative_to(folder).as_posix()
        try:
            frames.append(parse(path.read_text(encoding="utf-8-sig"), name))
        except (OSError, UnicodeDecodeError) as error:
            frames.append(FrameBoxes(name, problem=f"{path.name} cannot be read as text: {error}"))
    return BoxTable(frames)


_NOT_YOLO = ("classes.txt", "train.txt", "val.txt", "test.txt", "README.txt")

FORMATS: dict[str, AnnotationFormat] = {
    "masks": AnnotationFormat(_read_masks, IMAGE_SUFFIXES, folder=True, pictures=True),
    "voc": AnnotationFormat(_read_voc, (".xml",), folder=True),
    "coco": AnnotationFormat(_read_coco, (".json",)),
    "yolo": AnnotationFormat(_read_yolo, (".txt",), folder=True, ignored=_NOT_YOLO),
    "csv": AnnotationFormat(_read_csv, (".csv", ".tsv", ".tab")),
}
"""By the name that ``--format`` takes."""
