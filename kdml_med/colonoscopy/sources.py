"""The images and videos of an input, and the names that annotations call them by."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from kdml_med.colonoscopy.readers import FORMATS
from kdml_med.colonoscopy.video import VIDEO_SUFFIXES, is_video
from kdml_med.errors import InputError
from kdml_med.storage.walking import Contents, walk_folder
from kdml_med.tables.names import IMAGE_SUFFIXES, UNREAD_PICTURES, UNREAD_VIDEOS, same_name_form
from kdml_med.words import storable

_FRAME_NUMBER = re.compile(r"^(?:.*\D)?(?<![0-9][.,:])(\d{1,18})$")
_HASHED = re.compile(r"\.rf\.[0-9A-Za-z]+$")  # Roboflow puts one behind every name
_MASKS = r"masks?|ground[ _-]?truths?|gt|seg|segmentations?|segmentation(?:class|object)"
_MASK_FOLDER = re.compile(
    r"(?:.*[ _-])?(?:masks?|ground[ _-]?truths?)(?:[ _-].*)?|gt|segmentation(?:s|class|object)?", re.IGNORECASE
)
_MASK_NAME = re.compile(rf"(.+)[ ._-](?:{_MASKS})", re.IGNORECASE)
_KINDS_OF_FILES = re.compile(
    r"(?:jpeg)?images?|pictures?|imgs?|frames?|original|labels?|annotations?|masks?|bbox(?:es)?|boxes|xmls?|txts?|"
    r"ground[ _-]?truths?|gt|obj_train_data|voc|yolo",
    re.IGNORECASE,
)
"""Names of folders that tell what kind of files is in them, and not which."""
_SPLITS = re.compile(
    r"(?:train(?:ing)?|val(?:id(?:ation)?)?|test(?:ing)?)(?:[ _-]?(?:set|data))?[ _-]?\d*", re.IGNORECASE
)
NO_POLYP = ("negative", "normal", "nopolyp", "nonpolyp", "background", "healthy", "none")
"""Names of classes that are no polyps, letters only."""
_CLASSES = re.compile(
    rf"(?:{'|'.join(NO_POLYP)}|non?|with(?:out)?|positive|pos|neg|polyp|adenoma|hyperplas(?:t?ic|ia)|serrated|sessile|"
    r"ssl|ssa|tsa|carcinoma|cancer|(?:non)?neoplas(?:tic|m)|(?:non)?adenomatous|benign|malignant|abnormal|lesion|mucosa|"
    r"wli|wle|nbi|bli|lci|fice|iscan|white|narrow|light|band|imaging)s?",
    re.IGNORECASE,
)
"""Words of folders that tell what is to be seen, or under which light, and not of whom."""
_ADDED_WORDS = re.compile(r"[ ._-](?:masks?|gt|seg(?:mentation)?|labels?|bbox(?:es)?|annotations?)$|^p(?=\d+$)")
"""What sets of masks add to the names of their images, in lower case."""


@dataclass(frozen=True)
class Source:
    """An image or video file.

    Attributes:
        name: unique among the sources: path below the input folder, "/" as separator; with several inputs the name of
            the input leads.
        path: the file.
        also: names of links to it, and of the file where it was named twice.
    """

    name: str
    path: Path
    also: tuple[str, ...] = ()

    @property
    def is_video(self) -> bool:
        """Whether it is a video."""
        return is_video(self.path)

    @property
    def folder(self) -> str:
        """The folder part of the name; "" at the top."""
        return self.name.rpartition("/")[0]


class FoundSources(NamedTuple):
    """What ``find_sources`` found."""

    sources: list[Source]
    """Images and videos, in natural order of their names (2 before 10)."""
    failures: list[tuple[str, str]]
    """(name, reason) of what may be a picture or video and cannot be used as one."""


def find_sources(inputs: Sequence[Path], leave_out: Sequence[Path]) -> FoundSources:
    """Images and videos among the inputs.

    Folders are searched below, also behind links (``walk_folder``); what is below ``leave_out`` is left out.

    Args:
        inputs: files and folders.
        leave_out: folders that are not input, such as the output and the masks.

    Raises:
        InputError: an input does not exist or holds no image or video, or two files have the same name.
    """
    found: dict[str, Source] = {}
    failures: list[tuple[str, str]] = []
    files_seen: set[Path] = set()
    others: list[tuple[str, Path]] = []
    closed = [path.resolve() for path in leave_out]
    for path in inputs:
        if not path.exists():
            raise InputError(f"{path} does not exist. Check the path of the image, video or folder.")
        root = path if path.is_dir() else path.parent
        lead = f"{path.resolve().name}/" if path.is_dir() and len(inputs) > 1 else ""
        contents = walk_folder(path) if path.is_dir() else Contents({path: path.resolve()})
        files, troubles = contents.files, contents.failures
        open_files = [file for file in files if not any(folder in files[file].parents for folder in closed)]
        named = [file for file in open_files if file.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)]
        masks = _find_masks(named, root) if path.is_dir() else {}
        masked = {file for own in masks.values() for file in own}
        taken = [file for file in named if file not in masked]
        unread = [file for file in open_files if file.suffix.lower() in (*UNREAD_PICTURES, *UNREAD_VIDEOS)]
        if not taken:
            other = f" (it has {len(unread)} of other kinds, such as {unread[0].name})" if unread else ""
            raise InputError(
                f"{path} holds no image or video{other}; known suffixes: "
                f"{' '.join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))}."
            )
        troubles = troubles + [(file, f"{file.suffix} files are not read; {_how_to_read(file)}") for file in unread]
        failures += [
            (lead + storable(folder.relative_to(root).as_posix()), _tell_masks(files))
            for folder, files in masks.items()
        ]
        failures += [(lead + storable(file.relative_to(root).as_posix()), reason) for file, reason in troubles]
        for file in sorted(taken, key=lambda file: (file.is_symlink(), file)):
            if files[file] in files_seen:
                # Named twice, or linked to: one picture under two names could be in two splits.
                others.append((lead + storable(file.relative_to(root).as_posix()), files[file]))
                continue
            files_seen.add(files[file])
            name = lead + file.relative_to(root).as_posix()
            if storable(name) != name:
                failures.append((storable(name), "its name is not UTF-8, so that no table can hold it; rename it"))
                continue
            if name in found:
                raise InputError(f"{found[name].path} and {file} would both be called {name!r}: rename one.")
            found[name] = Source(name, file)
    if not found and not failures:
        raise InputError("no input was given: name images, videos, or folders with them.")
    also: dict[Path, list[str]] = {}
    for name, real in others:
        also.setdefault(real, []).append(name)
    sources = [replace(one, also=tuple(also.get(one.path.resolve(), ()))) for one in found.values()]
    return FoundSources(sorted(sources, key=lambda source: natural_key(source.name)), failures)


def _find_masks(files: Sequence[Path], root: Path) -> dict[Path, list[Path]]:
    """Pictures that are masks of others by the name of a folder of theirs, or by their own beside the picture's.

    They would be frames without polyps. Where there is nothing else, the names mean something else.
    """
    stems = {(file.parent, file.stem.lower()) for file in files}
    found: dict[Path, list[Path]] = {}
    for file in files:
        named = _MASK_NAME.fullmatch(file.stem)
        beside = named is not None and (file.parent, named.group(1).lower()) in stems
        within = any(_MASK_FOLDER.fullmatch(part) for part in file.relative_to(root).parts[:-1])
        if (beside or within) and file.suffix.lower() in IMAGE_SUFFIXES:
            found.setdefault(file.parent, []).append(file)
    return found if sum(map(len, found.values())) < len(files) else {}


def _tell_masks(files: Sequence[Path]) -> str:
    return (
        f"pictures named as masks are not taken for frames ({len(files)}, such as {storable(files[0].name)}); to use "
        "them, name their folder as an input or as --annotations, or rename them"
    )


def _how_to_read(file: Path) -> str:
    return "convert it to MP4" if file.suffix.lower() in UNREAD_VIDEOS else "save it as PNG or JPEG"


def names_a_sequence(folder: str) -> bool:
    """Whether the name of a folder may be that of a sequence, rather than of a split, a class or a kind of files."""
    return not all(
        part == "" or _KINDS_OF_FILES.fullmatch(part) or _SPLITS.fullmatch(part) or _names_a_class(part)
        for part in folder.split("/")
    )


def _names_a_class(part: str) -> bool:
    return all(_CLASSES.fullmatch(word) for word in re.split(r"[ ._-]+", part))


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorting key by which "frame 2" comes before "frame 10"."""
    parts = re.split(r"(\d+)", name)
    # Each part as (is text, number, text), so that numbers compare with numbers; the text breaks ties of 01 and 1.
    return tuple((0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts)


class SourceIndex:
    """Finds the source that an annotation means.

    A name fits a source by its whole path, by its path without suffix, by its file name, or by its file name without
    suffix; the first of these that fits any source decides. Folders that both names have must agree. "<video>/<number>"
    is a frame of a video; the number may have text before it ("clip/frame_0012") and a suffix. Letters with accents are
    the same however they are encoded.
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        self._levels: list[dict[str, list[Source]]] = [{}, {}, {}, {}]
        self._bones: dict[str, list[Source]] = {}
        for source in sources:
            for level, key in zip(self._levels, _keys(_plain(source.name)), strict=True):
                level.setdefault(key, []).append(source)
            for name in (source.name, *source.also):
                for bones in _bones(_last(_plain(name))):
                    self._bones.setdefault(bones, []).append(source)

    def find(self, name: str, frame: int | None = None) -> list[tuple[Source, int | None]]:
        """Sources that a name fits, and the number of the frame for videos, None where it has none; ideally one.

        Args:
            name: as the annotations give it.
            frame: number of the frame, where the annotations give it apart from the name.
        """
        name = _plain(name)
        whole = self._find_file(name)
        if frame is not None or any(not source.is_video for source in whole):
            return [(source, frame) for source in whole]
        video, _, last = name.rpartition("/")
        number = _FRAME_NUMBER.match(_without_suffix(last))
        if video and number and not _HASHED.search(_without_suffix(last)):
            found: list[tuple[Source, int | None]] = [
                (source, int(number.group(1))) for source in self._find_file(video) if source.is_video
            ]
            if found:
                return found
        return [(source, None) for source in whole]

    def _find_file(self, name: str) -> list[Source]:
        for level, key in zip(self._levels, _keys(name), strict=True):
            found = [source for source in level.get(key, []) if _folders_agree(name, _plain(source.name))]
            if found:
                return found
        stem = _without_suffix(name)  # "a.jpg.xml" is about "a.jpg"
        return self._find_file(stem) if _without_suffix(stem) != stem else []

    def find_alike(self, name: str) -> list[Source]:
        """Sources that a name which fits none may still mean: letters and numbers without accents are the same.

        For names that went through another encoding, another case or another way to write spaces. Too loose to tie
        anything to them, but enough to doubt that nothing is known about them.
        """
        name = _plain(name)
        alike = self._find_bones(name)
        return alike + [source for source in self._find_bones(name.rpartition("/")[0]) if source.is_video]

    def _find_bones(self, name: str) -> list[Source]:
        found = {source.name: source for bones in _bones(_last(name)) for source in self._bones.get(bones, ())}
        return [
            source
            for source in found.values()
            if name and any(_folders_agree(name, _plain(one), loosely=True) for one in (source.name, *source.also))
        ]


def _plain(name: str) -> str:
    """A name as names are compared: in one Unicode form, "/" between folders."""
    return same_name_form(name).replace("\\", "/").removeprefix("./")


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _bones(name: str) -> set[str]:
    """What is left of a name in any encoding: its letters from a to z and its numbers, with and without the letters
    that have accents.
    """
    stem = _without_suffix(name).lower()
    plain = unicodedata.normalize("NFD", stem)
    forms = (stem, plain, _ADDED_WORDS.sub("", plain))
    return {re.sub(r"0+(?=\d)", "", re.sub(r"[^a-z0-9]", "", form)) for form in forms}


def _folders_agree(one: str, other: str, *, loosely: bool = False) -> bool:
    """Whether the folders of two names are the same from the end, as far as both have some; loosely: by ``_bones``."""
    folders = zip(reversed(one.split("/")[:-1]), reversed(other.split("/")[:-1]), strict=False)
    return all(
        a == b or (_KINDS_OF_FILES.fullmatch(a) and _KINDS_OF_FILES.fullmatch(b)) or (loosely and _bones(a) & _bones(b))
        for a, b in folders
    )


def _without_suffix(name: str) -> str:
    """The name without an image or video suffix or that of an annotation file; other points belong to the name."""
    stem, point, suffix = name.rpartition(".")
    beside_images = (suffix for kind in FORMATS.values() if kind.folder for suffix in kind.suffixes)
    known = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES, *UNREAD_PICTURES, *beside_images)
    return stem if point and f".{suffix.lower()}" in known else name


def _keys(name: str) -> tuple[str, str, str, str]:
    last = _last(name)
    return name, _without_suffix(name), last, _without_suffix(last)
