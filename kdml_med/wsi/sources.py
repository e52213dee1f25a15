"""The slides among the inputs, and the files that each consists of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdml_med.errors import InputError
from kdml_med.tables.names import SLIDE_SUFFIXES, slide_name


def find_slides(inputs: Sequence[Path], out_dir: Path) -> list[Path]:
    """Slide files among the inputs; folders are searched below, in order, leaving out hidden files and ``out_dir``.

    Raises:
        InputError: an input does not exist, no slide is found, or two files would get the same slide id.
    """
    paths: list[Path] = []
    for path in inputs:
        if path.is_dir():
            found = (p for p in path.rglob("*") if p.suffix.lower() in SLIDE_SUFFIXES and p.is_file())
            inside = sorted(p for p in found if not p.name.startswith(".") and not _is_below(p, out_dir))
            if not inside:
                raise InputError(f"{path} holds no slide; known suffixes: {' '.join(SLIDE_SUFFIXES)}.")
            paths.extend(inside)
        elif path.is_file():
            paths.append(path)
        else:
            raise InputError(f"{path} does not exist. Check the path of the slide or folder.")
    names: dict[str, Path] = {}
    for path in paths:
        other = names.setdefault(slide_name(path.name), path)
        if other is not path:
            raise InputError(
                f"{other} and {path} would both be slide {slide_name(path.name)!r}: rename one, or name only one."
            )
    if not paths:
        raise InputError("no input was given: name slides, or folders with slides.")
    return paths


def _is_below(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def list_files(path: Path) -> list[tuple[Path, str]]:
    """The files that a slide consists of: the one that is named first, then those that its format keeps beside it.

    Args:
        path: of the file that is named.

    Returns:
        Path, and name from the folder of the slide on, of each.
    """
    suffix, beside = path.suffix.lower(), path.parent.glob("*")
    others: list[Path] = []
    if suffix == ".mrxs":
        others = [other for other in path.with_suffix("").rglob("*") if other.is_file()]
    elif suffix in (".vms", ".vmu"):
        others = [other for other in beside if other.name.startswith(path.stem) and other.is_file()]
    elif suffix == ".dcm":
        others = [other for other in beside if other.suffix.lower() == suffix and other.is_file()]
    files = [path, *sorted(other for other in others if other != path)]
    return [(file, file.relative_to(path.parent).as_posix()) for file in files]
