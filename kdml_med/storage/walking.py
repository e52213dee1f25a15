"""What lies below a folder: links are followed, hidden folders and those that systems make for themselves are not."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kdml_med.words import printable

_SYSTEM_NAMES = frozenset(
    {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information"}
    | {"lost+found", "icon\r"}
)


def is_system_name(name: str) -> bool:
    """Whether a file or folder is hidden or kept by a system for itself: previews, waste, resource forks."""
    return name.startswith(".") or name.casefold() in _SYSTEM_NAMES


@dataclass
class Contents:
    """What ``walk_folder`` found.

    Attributes:
        files: sorted, and where each really is; the paths begin with that of the folder, also behind links.
        no_files: links that lead nowhere, pipes and devices, and why each cannot be used.
        closed: folders and files that could not be looked at, and why.
    """

    files: dict[Path, Path] = field(default_factory=dict)
    no_files: list[tuple[Path, str]] = field(default_factory=list)
    closed: list[tuple[Path, str]] = field(default_factory=list)

    @property
    def failures(self) -> list[tuple[Path, str]]:
        """All that could not be used, sorted."""
        return sorted(self.no_files + self.closed)


def walk_folder(
    folder: Path,
    *,
    leave_out: Collection[Path] = (),
    parts: Callable[[Path, Sequence[str]], Collection[str] | None] = lambda folder, names: (),
) -> Contents:
    """Files in a folder and below it.

    Links to folders are followed, but each real folder is entered once, by its own path where it has one below
    ``folder``, and a link to a folder around it is a loop and not followed. Hidden files and folders, trash and what
    systems store beside pictures are left out.

    Args:
        folder: where to begin.
        leave_out: folders that are not entered, by whatever path.
        parts: of the names in a folder those of folders that are not entered, because they are part of a file there;
            None where nothing in the folder is to be looked at.
    """
    found = Contents()
    seen = {path.resolve() for path in leave_out}
    here = folder.resolve()
    waiting = [folder]
    while waiting:
        links: list[Path] = []
        for start in waiting:
            real = start.resolve()
            if start is folder or real not in (here, *here.parents):
                links += _walk(start, seen, found, parts)
        waiting = sorted(links)
    found.files = dict(sorted(found.files.items()))
    return found


def _walk(
    start: Path, seen: set[Path], found: Contents, parts: Callable[[Path, Sequence[str]], Collection[str] | None]
) -> list[Path]:
    """Collect what lies below a folder without following links to folders, which are given back."""
    pending: list[Path] = [start]
    links: list[Path] = []
    while pending:
        folder = pending.pop()
        real = folder.resolve()
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            found.closed.append((folder, f"cannot be listed: {error.strerror}; allow reading it"))
            continue
        inner = parts(folder, [entry.name for entry in entries])
        if inner is None:
            continue
        for entry in entries:
            if is_system_name(entry.name):
                continue
            path = folder / entry.name
            try:
                if entry.is_dir():
                    if entry.name not in inner:
                        (links if entry.is_symlink() else pending).append(path)
                elif entry.is_file():
                    found.files[path] = path.resolve() if entry.is_symlink() else real / entry.name
                elif path.exists():
                    found.no_files.append((path, "is neither a file nor a folder, but a pipe or device"))
                elif entry.is_symlink():
                    found.no_files.append((path, _tell_target(path)))
            except OSError as error:
                found.closed.append((path, f"cannot be looked at: {error.strerror}"))
    return links


def _tell_target(link: Path) -> str:
    return f"is a link to {printable(str(link.readlink()))}, which is not there: mend or remove the link"
