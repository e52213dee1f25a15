"""Folders of tiles that exist already: their layouts, the images in them, and what a look at their headers tells."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import pandas as pd
import PIL
from PIL import Image

from kdml_med.errors import InputError
from kdml_med.storage.walking import is_system_name
from kdml_med.tables.names import SLIDE_SUFFIXES, is_absolute, same_name_form
from kdml_med.words import counted

_UNREAD = [
    *(".jpe", ".jfif", ".dib", ".gif", ".webp", ".jp2", ".j2k", ".avif"),
    *(".heic", ".heif", ".ppm", ".pgm", ".tga", ".dcm"),
]
_IMAGE_SUFFIXES = frozenset((*SLIDE_SUFFIXES, *_UNREAD))
"""Suffixes of images; those that are not read are named as what they are."""
_FORMATS = ("PNG", "JPEG")
_OUTSIDE = "lies in no class folder"
_PART_FOLDER = re.compile(
    r"^(?:(?P<cohort>.+?)[_-])?(?P<part>train|test)(?:ing)?(?:[_-](?P<label>.+))?$", re.IGNORECASE
)


def existing_folder(source: Path) -> Path:
    """The folder as an absolute path.

    Raises:
        InputError: it is none.
    """
    if not Path(source).is_dir():
        raise InputError(f"{source} is not a folder; expected the folder that holds the images.")
    return Path(source).resolve()


def class_folders(source: Path, cohort: str | None) -> pd.DataFrame:
    """Class folders of a source, inside train and test folders or directly in it.

    Args:
        source: the folder.
        cohort: the part before _TRAIN and _TEST; needed when the source holds several.

    Returns:
        Columns path, label (folder name) and split ("train", "test" or None); sorted by path.

    Raises:
        InputError: there are none, several cohorts, or one of train and test alone.
    """
    children = _subfolders(source)
    parts = [(path, found) for path in children if (found := _PART_FOLDER.match(path.name))]
    cohorts = sorted({found["cohort"] or "" for _, found in parts})
    if cohort is not None and cohort not in cohorts:
        raise InputError(
            f"{source} has no folders {cohort}_TRAIN and {cohort}_TEST; found {[p.name for p in children]}."
        )
    if cohort is None and len(cohorts) > 1:
        raise InputError(f"{source} holds several cohorts, {cohorts}: name one with --cohort.")
    chosen = [(path, found) for path, found in parts if cohort is None or (found["cohort"] or "") == cohort]
    if chosen and len({found["part"].lower() for _, found in chosen}) == 1:
        raise InputError(
            f"{source} has {[path.name for path, _ in chosen]} but not its counterpart; expected a train and a test "
            "folder. To import one of them without an official split, give that folder as the source."
        )
    rows: list[tuple[Path, str, str | None]] = []
    for path, found in chosen:
        split = found["part"].lower()
        inner = [(path, found["label"])] if found["label"] else [(sub, sub.name) for sub in _subfolders(path)]
        rows += [(folder, label, split) for folder, label in inner]
    if not chosen:
        rows = [(path, path.name, None) for path in children]
    if not rows:
        raise InputError(f"{source} holds no class folders; expected such as CRC_DX_TRAIN/MSIMUT or MSIMUT and MSS.")
    return pd.DataFrame(rows, columns=["path", "label", "split"], dtype=object)


def _subfolders(path: Path) -> list[Path]:
    return sorted(sub for sub in path.iterdir() if sub.is_dir() and not is_system_name(sub.name))


def find_strays(source: Path, folders: pd.DataFrame, cohort: str | None) -> list[tuple[str, str]]:
    """Images of a source that are in no class folder: a path below it, and why what is there is left out.

    A folder that is no class folder is one entry. Folders of other cohorts are none.

    Args:
        source: the folder.
        folders: what ``class_folders`` gave.
        cohort: the one that was chosen.
    """
    chosen = set(folders["path"])
    parts = {path.parent for path in chosen}
    strays = [(name, _OUTSIDE) for top in sorted({source, *parts}) for name in _direct_images(top, source)]
    for path in _subfolders(source):
        found = _PART_FOLDER.match(path.name)
        if path in chosen or path in parts or (found and cohort is not None and (found["cohort"] or "") != cohort):
            continue
        images = scan_images(path, source)
        if images:
            strays.append(
                (path.name, f"{counted(len(images), 'image')} in a folder that belongs to neither train nor test")
            )
    return strays


def _direct_images(folder: Path, source: Path) -> list[str]:
    files = (path for path in folder.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES and path.is_file())
    return sorted(path.relative_to(source).as_posix() for path in files if not is_system_name(path.name))


def scan_images(folder: Path, source: Path) -> list[tuple[str, int]]:
    """Path below the source, "/" as separator, and size in bytes of every image file in a folder of it; sorted.

    Links to folders are followed as ``kdml_med.storage.walking.walk_folder`` does, which takes twice as long; there
    may be millions of tiles.
    """
    found: list[tuple[str, int]] = []
    pending = [(str(folder), "" if folder == source else folder.relative_to(source).as_posix() + "/")]
    links: list[tuple[str, str]] = []
    here = folder.resolve()
    seen = {_folder_id(path) for path in here.parents}
    while pending or links:
        if not pending:  # each real folder goes by its own path where it has one
            pending, links = sorted(links, reverse=True), []
        path, prefix = pending.pop()
        try:
            own = _folder_id(path)
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(
                f"cannot list the folder {path}: {error.strerror}. Allow reading it, or move it away."
            ) from error
        if own in seen:
            continue
        seen.add(own)
        for entry in entries:
            if is_system_name(entry.name):
                continue
            is_folder, size = _look_at(entry)
            if is_folder:
                (links if entry.is_symlink() else pending).append((entry.path, f"{prefix}{entry.name}/"))
            elif os.path.splitext(entry.name)[1].lower() in _IMAGE_SUFFIXES:  # noqa: PTH122 - ten times as fast
                found.append((prefix + entry.name, size))
    return sorted(found)


def _folder_id(path: Path | str) -> tuple[int, int]:
    state = Path(path).stat()
    return state.st_dev, state.st_ino


def _look_at(entry: os.DirEntry[str]) -> tuple[bool, int]:
    """Whether it is a folder, and the size of a file; 0 where a link leads nowhere or to itself."""
    try:
        return entry.is_dir(), entry.stat().st_size if entry.is_file() else 0
    except OSError:
        return False, 0


class ImageIndex:
    """Finds the images that names in a table mean.

    A name with folders is a path below the source, or an absolute one, with or without suffix, and nothing else. A bare
    name may lie in any folder. Names are compared in one Unicode form.

    Args:
        shards: paths below the source.
        source: the folder, by its real path.
    """

    def __init__(self, shards: Iterable[str], source: Path) -> None:
        self._source = source
        self._levels: list[dict[str, list[str]]] = [{}, {}, {}, {}]
        for shard in shards:
            for level, key in zip(self._levels, _image_keys(same_name_form(shard)), strict=True):
                level.setdefault(key, []).append(shard)

    def find(self, name: str) -> list[str]:
        """Images that a name fits, by the most exact way that fits any; ideally one."""
        written = same_name_form(name).replace("\\", "/")
        if "/" not in written:
            return self._look_up(written, self._levels)
        found = self._look_up(self._below(written) if is_absolute(written) else written, self._levels[:2])
        return found or self._look_up(self._behind_links(written), self._levels[:2])

    @staticmethod
    def _look_up(path: str, levels: Sequence[dict[str, list[str]]]) -> list[str]:
        return next((found for level in levels if (found := level.get(posixpath.normpath(path)))), [])

    def _below(self, path: str) -> str:
        """Path below the source of an absolute one; others stay."""
        root = same_name_form(self._source.as_posix())
        folder, name = posixpath.split(path)
        if f"{same_name_form(folder)}/".startswith(f"{root}/"):
            return f".{same_name_form(folder)[len(root) :]}/{name}"
        return path

    def _behind_links(self, path: str) -> str:
        """Path below the source of one whose folders are links to others there."""
        folder, name = posixpath.split(path)
        return self._below(f"{os.path.realpath(self._source / folder)}/{name}")


def _image_keys(path: str) -> tuple[str, str, str, str]:
    """A path, the path without suffix, the name, and the name without suffix."""
    name = path.rsplit("/", 1)[-1]
    return path, path.rsplit(".", 1)[0], name, name.rsplit(".", 1)[0]


def name_problem(shard: str, size: int) -> str:
    """What is wrong with an image as far as its name and size in bytes tell; "" when nothing is."""
    if any("\ud800" <= letter <= "\udfff" for letter in shard):
        return "its name is not UTF-8: rename it"
    if not shard.lower().endswith((".png", ".jpg", ".jpeg")):
        return "not PNG or JPEG; convert it"
    return "the file is empty or a broken link" if size == 0 else ""


def read_header(source: Path | BinaryIO) -> tuple[tuple[int, int] | None, str]:
    """Width and height in pixels of a file or of its bytes, or None and what is wrong."""
    try:
        with Image.open(source, formats=_FORMATS) as image:
            return image.size, ""
    except PIL.UnidentifiedImageError:
        return None, "its header is not that of a PNG or JPEG image"
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        return None, f"cannot be read: {error}"
