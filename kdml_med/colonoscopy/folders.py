"""What lies below a folder: links are followed, hidden folders and those that systems make for themselves are not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_SYSTEM_FOLDERS = ("@eadir", "$recycle.bin", "__macosx", "lost+found", "system volume information")
UNREAD_PICTURES = (
    *(".gif", ".webp", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".jfif", ".jpe", ".tga", ".ppm", ".pgm"),
    *(".pbm", ".pnm", ".dcm", ".dicom", ".psd", ".svg", ".exr", ".npy", ".npz", ".mat", ".nii", ".gz"),
)
"""Suffixes of pictures, and of what may hold some, that are not read."""
UNREAD_VIDEOS = (
    *(".flv", ".f4v", ".vob", ".3gp", ".3g2", ".ogv", ".mxf", ".asf", ".m2v", ".mpe", ".divx", ".rm", ".rmvb", ".dv"),
    *(".h264", ".264", ".h265", ".hevc", ".dav"),
)


class Contents(NamedTuple):
    """What ``list_files`` found."""

    files: list[Path]
    """Sorted; their paths begin with that of the folder, also behind links."""
    failures: list[tuple[Path, str]]
    """Paths that lead nowhere or could not be opened, and why."""


def list_files(folder: Path) -> Contents:
    """Files in a folder and below it.

    Links to folders are followed, but each real folder is entered once, by its own path where it has one below
    ``folder``, and a link to a folder around it is a loop and not followed. Hidden files and folders, trash and what
    systems store beside pictures are left out.
    """
    found = Contents([], [])
    seen: set[Path] = set()
    here = folder.resolve()
    waiting = [folder]
    while waiting:
        links: list[Path] = []
        for start in waiting:
            real = start.resolve()
            if real not in seen and (start is folder or real not in (here, *here.parents)):
                links += _walk(start, seen, found)
        waiting = sorted(links)
    return Contents(sorted(found.files), sorted(found.failures))


def printable(name: str) -> str:
    """A file name with "\ufffd" for bytes that are not UTF-8, so that it can stand in a table."""
    return os.fsencode(name).decode("utf-8", "replace")


def one_line(text: str) -> str:
    """Text with line breaks and other control characters written out, for messages and pictures."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _walk(start: Path, seen: set[Path], found: Contents) -> Iterator[Path]:
    """Collect what lies below a folder without following links to folders, which are given back."""
    pending = [start]
    while pending:
        folder = pending.pop()
        real = folder.resolve()
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            found.failures.append((folder, f"the folder cannot be opened: {error.strerror}"))
            continue
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith(".") or entry.name.lower() in _SYSTEM_FOLDERS:
                continue
            if entry.is_symlink() and not path.exists():
                found.failures.append((path, "a link that leads nowhere; correct or remove it"))
            elif entry.is_dir():
                if entry.is_symlink():
                    yield path
                else:
                    pending.append(path)
            elif entry.is_file():
                found.files.append(path)
