"""The images and videos of an input, and the names that annotations call them by."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdml_med.colonoscopy.readers import FORMATS
from kdml_med.colonoscopy.video import VIDEO_SUFFIXES
from kdml_med.errors import InputError
from kdml_med.tables.names import IMAGE_SUFFIXES

_FRAME_NUMBER = re.compile(r"^(?:.*\D)?(\d+)$")


@dataclass(frozen=True)
class Source:
    """An image or video file.

    Attributes:
        name: unique among the sources: path below the input folder, "/" as separator; with several inputs the name of
            the input leads.
        path: the file.
    """

    name: str
    path: Path

    @property
    def is_video(self) -> bool:
        """Whether it is a video."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES

    @property
    def folder(self) -> str:
        """The folder part of the name; "" at the top."""
        return self.name.rpartition("/")[0]


def find_sources(inputs: Sequence[Path], leave_out: Sequence[Path]) -> list[Source]:
    """Images and videos among the inputs, in natural order of their names (2 before 10).

    Folders are searched below; hidden files are left out, and so is everything below ``leave_out``.

    Args:
        inputs: files and folders.
        leave_out: folders that are not input, such as the output and the masks.

    Raises:
        InputError: an input does not exist or holds no image or video, or two files have the same name.
    """
    found: dict[str, Source] = {}
    files_seen: set[Path] = set()
    closed = [path.resolve() for path in leave_out]
    for path in inputs:
        if not path.exists():
            raise InputError(f"{path} does not exist. Check the path of the image, video or folder.")
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        root = path if path.is_dir() else path.parent
        taken = [file for file in files if _is_input(file, root, closed)]
        if not taken:
            raise InputError(
                f"{path} holds no image or video; known suffixes: {' '.join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))}."
            )
        lead = f"{path.resolve().name}/" if path.is_dir() and len(inputs) > 1 else ""
        for file in taken:
            if file.resolve() in files_seen:
                continue  # named twice, or linked to: one picture under two names could be in two splits
            files_seen.add(file.resolve())
            name = lead + file.relative_to(root).as_posix()
            if name in found:
                raise InputError(f"{found[name].path} and {file} would both be called {name!r}: rename one.")
            found[name] = Source(name, file)
    if not found:
        raise InputError("no input was given: name images, videos, or folders with them.")
    return sorted(found.values(), key=lambda source: natural_key(source.name))


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorting key by which "frame 2" comes before "frame 10"."""
    parts = re.split(r"(\d+)", name)
    # Each part as (is text, number, text), so that numbers compare with numbers; the text breaks ties of 01 and 1.
    return tuple((0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts)


def _is_input(file: Path, root: Path, closed: Sequence[Path]) -> bool:
    if file.suffix.lower() not in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES) or not file.is_file():
        return False
    if any(part.startswith(".") for part in file.relative_to(root).parts):
        return False
    parents = file.resolve().parents
    return not any(folder in parents for folder in closed)


class SourceIndex:
    """Finds the source that an annotation means.

    A name fits a source by its whole path, by its path without suffix, by its file name, or by its file name without
    suffix; the first of these that fits any source decides. Folders that both names have must agree. "<video>/<number>"
    is a frame of a video; the number may have text before it ("clip/frame_0012") and a suffix.
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        self._levels: list[dict[str, list[Source]]] = [{}, {}, {}, {}]
        for source in sources:
            for level, key in zip(self._levels, _keys(source.name), strict=True):
                level.setdefault(key, []).append(source)

    def find(self, name: str, frame: int | None = None) -> list[tuple[Source, int | None]]:
        """Sources that a name fits, and the number of the frame for videos; ideally one.

        Args:
            name: as the annotations give it.
            frame: number of the frame, where the annotations give it apart from the name.
        """
        name = name.strip().replace("\\", "/").removeprefix("./")
        whole = self._find_file(name)
        if frame is not None or any(not source.is_video for source in whole):
            return [(source, frame) for source in whole]
        video, _, last = name.rpartition("/")
        number = _FRAME_NUMBER.match(_without_suffix(last))
        if video and number:
            return [(source, int(number.group(1))) for source in self._find_file(video) if source.is_video]
        return []

    def _find_file(self, name: str) -> list[Source]:
        for level, key in zip(self._levels, _keys(name), strict=True):
            found = [source for source in level.get(key, []) if _folders_agree(name, source.name)]
            if found:
                return found
        return []


def _folders_agree(one: str, other: str) -> bool:
    """Whether the folders of two names are the same from the end, as far as both have some."""
    folders = zip(reversed(one.split("/")[:-1]), reversed(other.split("/")[:-1]), strict=False)
    return all(a == b for a, b in folders)


def _without_suffix(name: str) -> str:
    """The name without an image or video suffix or that of an annotation file; other points belong to the name."""
    stem, point, suffix = name.rpartition(".")
    beside_images = (suffix for kind in FORMATS.values() if kind.folder for suffix in kind.suffixes)
    known = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES, *beside_images)
    return stem if point and f".{suffix.lower()}" in known else name


def _keys(name: str) -> tuple[str, str, str, str]:
    last = name.rpartition("/")[2]
    return name, _without_suffix(name), last, _without_suffix(last)
