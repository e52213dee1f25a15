"""The slides among the inputs, and the files that each consists of."""

from __future__ import annotations

import contextlib
import os
import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import openslide

from kdml_med.errors import InputError
from kdml_med.storage.walking import walk_folder
from kdml_med.tables.names import PLAIN_SUFFIXES, SLIDE_SUFFIXES, UNREAD_SUFFIXES, slide_name
from kdml_med.words import printable
from kdml_med.wsi.dicom import is_dicom, read_series

_INDEXED = (".vms", ".vmu")  # text files that name the other files of a slide
_DICOM, _MIRAX = ".dcm", ".mrxs"
_TIFF = (".tif", ".tiff")
_MAX_NAME_BYTES = 238  # of the slide; the unfinished copy of its times adds 17, and file systems take 255
_CONTROLS = ("Cc", "Zl", "Zp")  # Unicode categories
_KINDS = "masks?|labels?|thumb|thumbnail|preview|overview|macro|annotations?|segmentation|seg|overlay|heatmap"
_AFTER = re.compile(rf"(.+)[-_. ](?:{_KINDS})(?:[-_ ]?\d+)?", re.IGNORECASE)
_BEFORE = re.compile(rf"(?:{_KINDS})[-_. ](.+)", re.IGNORECASE)
_ALONE = re.compile(_KINDS, re.IGNORECASE)
_RESULTS = ({"dataset.json", "shards"}, {"prediction.json", "slides"})
_MIRAX_INDEX = "slidedat.ini"
_UNREAD = "is of a kind that is not read: unpack or convert it, or move it elsewhere"


@dataclass
class FoundSlides:
    """What the inputs hold.

    Attributes:
        slides: files, and folders that are one DICOM slide; no two have one name.
        problems: (name, reason) of what was found and cannot be used; for failures.csv.
        unread: files of a kind that is known and not read.
        left_out: (name, reason) of what is no slide and looks like one; nobody need act on it.
        lost: names of slides that have a problem, as ``slide_name`` gives them.
        files: everything below the folders that were searched.
    """

    slides: list[Path] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    unread: list[Path] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    _taken: dict[object, Path] = field(default_factory=dict, repr=False)

    def add(self, path: Path, root: Path | None = None) -> None:
        """Take a slide, unless it is there already or cannot be used."""
        problem = name_problem(path.name)
        if problem is None and not os.access(path, os.R_OK):
            problem = "cannot be read: permission denied"
        if problem is not None:
            self.refuse(path, problem, root)
            return
        series = _series_of(path)
        other = self._taken.setdefault(series or _file_id(path, path.resolve()), path)
        if other is path:
            self.slides.append(path)
        elif other.name != path.name and not series:
            self.refuse(path, _same_file(other), root)

    def refuse(self, path: Path, reason: str, root: Path | None = None) -> None:
        """Note that something cannot be used; its name is from the folder that was searched on."""
        name = path.name if root in (None, path) else path.relative_to(root).as_posix()
        self.problems.append((printable(name), reason))
        self.lost.append(slide_name(path.name))


def find_slides(inputs: Sequence[Path], out_dir: Path) -> FoundSlides:
    """Slides among the inputs; folders are searched below, in order, leaving out ``out_dir``.

    Linked folders are searched too, and no folder twice. Hidden folders and those where systems keep what was deleted
    are not searched. Files that belong to a slide of several files, and pictures that are named after a slide beside
    them, are no slides; plain images are none where there are others, unless they are named themselves.

    Raises:
        InputError: an input does not exist, nothing is found, or two files would get the same slide id.
    """
    found = FoundSlides()
    if not inputs:
        raise InputError("no input was given: name slides, or folders with slides.")
    for path in _without_parts(inputs):
        if path.is_dir():
            if path.resolve() == out_dir.resolve():
                raise InputError(f"--out is {out_dir}, which is one of the inputs: choose another --out.")
            if not _Search(path, out_dir, found).run():
                raise InputError(f"{path} holds no slide; known suffixes: {' '.join(SLIDE_SUFFIXES)} .dcm.")
        elif path.is_file():
            found.add(path)
        elif path.exists():
            raise InputError(f"{path} is neither a file nor a folder, but a pipe or device. Name slides or folders.")
        else:
            raise InputError(f"{path} does not exist. Check the path of the slide or folder.")
    names: dict[str, Path] = {}
    for path in found.slides:
        other = names.setdefault(slide_name(path.name), path)
        if other is not path:
            raise InputError(
                f"{other} and {path} would both be slide {slide_name(path.name)!r}: rename one, or name only one."
            )
    return found


def _without_parts(inputs: Sequence[Path]) -> list[Path]:
    """Inputs without the parts of others, which come along where all that a folder holds is named."""
    files = [path for path in inputs if path.is_file()]
    parts = {part for path in files if path.suffix.lower() in _INDEXED for part in list_indexed(path)}
    parts |= {path.with_suffix("").resolve() for path in files if path.suffix.lower() == _MIRAX}
    return [path for path in inputs if not (path.exists() and path.resolve() in parts)]


def _series_of(path: Path) -> tuple[Path, str] | None:
    """What any file of a DICOM slide, and its folder, have in common; None for other slides."""
    if path.is_dir():
        with contextlib.suppress(OSError):
            path = next(filter(is_dicom, sorted(path.iterdir())), path)
    uid = read_series(path) if path.suffix.lower() in (_DICOM, "") else None
    return None if uid is None else (path.parent.resolve(), uid)


def _file_id(path: Path, real: Path) -> object:
    """What tells a file from others: hard links to one have different paths."""
    with contextlib.suppress(OSError):
        state = path.stat()
        if state.st_nlink > 1 and path.is_file():
            return state.st_dev, state.st_ino
    return real


def _same_file(other: Path) -> str:
    return f"is the same file as {printable(other.name)}, which is taken"


def name_problem(name: str) -> str | None:
    """Why a file of this name cannot become a slide; None when it can."""
    slide_id = slide_name(name)
    try:
        size = len(slide_id.encode())
    except UnicodeEncodeError:
        return "its name is not UTF-8: rename it"
    if size > _MAX_NAME_BYTES:
        return f"its name is too long ({size} bytes), at most {_MAX_NAME_BYTES} can be used: rename it"
    if "\\" in name or any(unicodedata.category(char) in _CONTROLS for char in name):
        return "its name holds a line break, another control character or a backslash: rename it"
    if name != name.strip() or slide_id != slide_id.strip() or not slide_id:
        return "its name begins or ends with a blank: rename it"
    return None


@dataclass
class _Search:
    """One folder and what is below it."""

    root: Path
    out_dir: Path
    found: FoundSlides
    files: dict[Path, Path] = field(default_factory=dict)  # and where each really is

    def run(self) -> bool:
        """Add what the folder holds to ``found``; False when there is nothing, new or taken already, to name."""
        problems = len(self.found.problems)
        if _is_unread(self.root):
            self._refuse_unread(self.root)
            return True
        self._walk()
        unique = self._without_twins()
        parts = {part for path in unique if path.suffix.lower() in _INDEXED for part in list_indexed(path)}
        rest = [path for path in unique if self.files[path] not in parts]
        series = self._join_series(rest)
        slides = list(filter(_is_slide, rest))
        slides = self._without_pictures(slides, series)
        taken = sorted([*slides, *series])
        for path in taken:
            self.found.add(path, self.root)
        for path in filter(_is_unread, rest):
            self._refuse_unread(path)
        return bool(taken) or len(self.found.problems) > problems

    def _walk(self) -> None:
        contents = walk_folder(self.root, leave_out=[self.out_dir], parts=self._not_searched)
        self.files = contents.files
        self.found.files += contents.files
        for path, reason in contents.closed:
            self.found.refuse(path, reason, self.root)
        for path, reason in contents.no_files:
            if path.suffix.lower() in (*SLIDE_SUFFIXES, _DICOM) or (path.is_symlink() and not path.suffix):
                self.found.refuse(path, reason, self.root)

    def _not_searched(self, folder: Path, names: Sequence[str]) -> set[str] | None:
        """Folders in a folder that are no place for slides; None when the whole folder is none."""
        lower = {name.lower() for name in names}
        if any(lower >= names for names in _RESULTS):  # of an earlier run, with pictures that have the names of slides
            return None
        if _MIRAX_INDEX in lower:
            self.found.refuse(folder, "holds the data of a MIRAX slide, whose .mrxs file is not beside it", self.root)
            return None
        paths = (folder / name for name in names if not name.startswith("."))
        unread = [path for path in paths if _is_unread(path) and path.is_dir()]
        for path in unread:
            self._refuse_unread(path)
        # The folder beside a MIRAX slide holds its data.
        data = {Path(name).stem for name in names if name.lower().endswith(_MIRAX)}
        return data | {path.name for path in unread}

    def _refuse_unread(self, path: Path) -> None:
        self.found.unread.append(path)
        self.found.refuse(path, _UNREAD, self.root)

    def _without_twins(self) -> list[Path]:
        """Each file once, though links lead to it by several ways; by its own name where that is among them."""
        first: dict[object, Path] = {}
        for path, real in sorted(self.files.items(), key=lambda item: (item[0].is_symlink(), item)):
            other = first.setdefault(_file_id(path, real) if _is_slide(path) else real, path)
            if other is not path and other.name != path.name and _is_slide(path):
                self.found.refuse(path, _same_file(other), self.root)
        return sorted(first.values())

    def _join_series(self, files: Sequence[Path]) -> list[Path]:
        """One path for each DICOM slide: its folder where that holds no other, else its first file."""
        folders: dict[Path, list[Path]] = {}
        for path in files:
            if path.suffix.lower() == _DICOM or (not path.suffix and is_dicom(path)):
                folders.setdefault(path.parent, []).append(path)
        slides = []
        for folder, members in folders.items():
            series: dict[str, Path] = {}
            for path in members:
                uid = read_series(path)
                if uid is None:
                    self.found.refuse(path, "cannot be read: it ends in .dcm and is no sound DICOM file", self.root)
                else:
                    series.setdefault(uid, path)
            others = any(_is_slide(path) and path.parent == folder and path not in members for path in files)
            if len(series) == 1 and not others:
                slides.append(folder if folder.name not in ("", "..") else folder.resolve())
            else:
                slides += series.values()
        return slides

    def _without_pictures(self, slides: Sequence[Path], series: Sequence[Path]) -> list[Path]:
        """Leave out pictures of slides, and plain images among slides."""
        ids = {slide_name(path.name).casefold() for path in [*slides, *series]}
        scans = {slide_name(path.name) for path in slides if path.suffix.lower() not in PLAIN_SUFFIXES}
        kept = []
        for path in slides:
            owner = self._owner(path, ids, scans)
            if owner is None:
                kept.append(path)
            else:
                self.found.left_out.append((path.relative_to(self.root).as_posix(), f"is a picture of {owner}"))
        plain = [path for path in kept if path.suffix.lower() in PLAIN_SUFFIXES]
        if not plain or not (series or any(map(_is_scan, kept))):
            return kept
        for path in plain:
            reason = "is a plain image in a folder of slides: to tile it, name it or a folder of images as an input"
            if _ALONE.fullmatch(path.stem):  # QuPath has one in the folder of each slide
                self.found.left_out.append((path.relative_to(self.root).as_posix(), "is a picture beside slides"))
            else:
                self.found.refuse(path, reason, self.root)
        return [path for path in kept if path.suffix.lower() not in PLAIN_SUFFIXES]

    def _owner(self, path: Path, ids: Collection[str], scans: Collection[str]) -> str | None:
        """The slide that a file is named after, with or without a word for a kind of picture; None for its own."""
        suffix, stem = path.suffix.lower(), slide_name(path.name)
        if suffix in PLAIN_SUFFIXES and stem in scans:
            return stem
        if suffix in (*PLAIN_SUFFIXES, *_TIFF):
            for pattern in (_AFTER, _BEFORE):
                named = pattern.fullmatch(stem)
                if named and slide_name(named.group(1)).casefold() in ids:
                    return slide_name(named.group(1))
        return None


def _is_slide(path: Path) -> bool:
    return path.suffix.lower().rstrip() in SLIDE_SUFFIXES  # blanks at the end are refused, not passed over


def _is_scan(path: Path) -> bool:
    """Whether a file is a slide and not a plain image, by its suffix; TIFF can be either."""
    suffix = path.suffix.lower()
    if suffix in PLAIN_SUFFIXES:
        return False
    if suffix not in _TIFF:
        return True
    try:
        return openslide.OpenSlide.detect_format(path) is not None
    except openslide.OpenSlideError:
        return True


def _is_unread(path: Path) -> bool:
    return any(path.name.lower().endswith(suffix) for suffix in UNREAD_SUFFIXES)


def list_indexed(path: Path) -> set[Path]:
    """Files beside a VMS or VMU file that it names, with links resolved."""
    try:
        text = path.read_bytes()[:1_000_000].decode("latin-1")
    except OSError:
        return set()
    names = re.findall(r"^[^=\n\[]+=[ \t]*(.*?)[ \t\r]*$", text, re.MULTILINE)
    folder = path.parent.resolve()
    files = (
        (folder / name).resolve() for name in names if 0 < len(name) < 256 and "/" not in name and "\0" not in name
    )
    return {file for file in files if file.is_file()}


def list_files(path: Path) -> list[tuple[Path, str]]:
    """The files that a slide consists of: the one that is named first, then those that its format keeps beside it.

    Args:
        path: of the file that is named, or of the folder of a DICOM slide.

    Returns:
        Path, and name from the folder of the slide on, of each.
    """
    if path.is_dir():
        return [
            (file, file.name) for file in sorted(path.iterdir()) if file.is_file() and not file.name.startswith(".")
        ]
    suffix = path.suffix.lower()
    others: list[Path] = []
    if suffix == _MIRAX:
        others = [other for other in path.with_suffix("").rglob("*") if other.is_file()]
    elif suffix in _INDEXED:
        named = list_indexed(path)
        others = [other for other in path.parent.iterdir() if other.resolve() in named]
    elif suffix == _DICOM:
        uid = read_series(path)
        beside = [other for other in path.parent.iterdir() if other.is_file()]
        others = [other for other in beside if other.suffix.lower() in (_DICOM, "") and read_series(other) == uid]
    files = [path, *sorted(other for other in others if other != path)]
    return [(file, file.relative_to(path.parent).as_posix()) for file in files]
