"""Folders of tiles that exist already: their layouts, the images in them, and what a look at their headers tells."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd
import PIL
from PIL import Image

from kdml_med.errors import InputError

_IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})
_FORMATS = ("PNG", "JPEG")
_PART_FOLDER = re.compile(r"^(?:(?P<cohort>.+?)[_-])?(?P<part>train|test)(?:[_-](?P<label>.+))?$", re.IGNORECASE)


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
    children = sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
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
    return sorted(sub for sub in path.iterdir() if sub.is_dir() and not sub.name.startswith("."))


def scan_images(folder: Path, source: Path) -> list[tuple[str, int]]:
    """Path below the source, "/" as separator, and size in bytes of every image file in a folder of it; sorted."""
    found: list[tuple[str, int]] = []
    pending = [(str(folder), "" if folder == source else folder.relative_to(source).as_posix() + "/")]
    seen: set[tuple[int, int]] = set()
    while pending:
        path, prefix = pending.pop()
        state = Path(path).stat()
        if (state.st_dev, state.st_ino) in seen:
            continue  # a link back to a folder above it
        seen.add((state.st_dev, state.st_ino))
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    pending.append((entry.path, f"{prefix}{entry.name}/"))
                elif os.path.splitext(entry.name)[1].lower() in _IMAGE_SUFFIXES:  # noqa: PTH122 - ten times as fast
                    size = entry.stat().st_size if entry.is_file() else 0
                    found.append((prefix + entry.name, size))
    return sorted(found)


def index_names(shards: Iterable[str]) -> dict[str, list[str]]:
    """Files by path, by name, and by either without suffix."""
    index: dict[str, list[str]] = {}
    for shard in shards:
        name = shard.rsplit("/", 1)[-1]
        for key in {shard, name, shard.rsplit(".", 1)[0], name.rsplit(".", 1)[0]}:
            index.setdefault(key, []).append(shard)
    return index


def find_image(name: str, index: Mapping[str, list[str]]) -> list[str]:
    """Files that a name in a table fits; ideally one."""
    path = name.replace("\\", "/").removeprefix("./")
    found = index.get(path) or index.get(path.rsplit("/", 1)[-1]) or []
    return [path] if path in found else found


def name_problem(shard: str, size: int) -> str:
    """What is wrong with an image as far as its name and size in bytes tell; "" when nothing is."""
    if not shard.lower().endswith((".png", ".jpg", ".jpeg")):
        return "not PNG or JPEG; convert it"
    return "the file is empty or a broken link" if size == 0 else ""


def read_header(path: Path) -> tuple[tuple[int, int] | None, str]:
    """Width and height in pixels, or None and what is wrong."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return image.size, ""
    except PIL.UnidentifiedImageError:
        return None, "its header is not that of a PNG or JPEG image"
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        return None, f"cannot be read: {error}"
