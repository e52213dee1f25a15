"""Tars of samples in the WebDataset convention: where the image of each sample lies, and what its other members say.

Members whose path is the same up to the first point of the base name are one sample; what follows the point says what a
member is: ``S1/000.jpg``, ``S1/000.cls`` and ``S1/000.json`` are the image, class and further facts of the sample
``S1/000``.

Source:
    WebDataset, https://github.com/webdataset/webdataset: ``base_plus_ext`` and ``group_by_keys`` of its tar iterators.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from kdml_med.errors import InputError, one_line
from kdml_med.storage.walking import is_system_name, walk_folder
from kdml_med.words import counted
from kdml_med.wsi.image_folders import read_header

COMPRESSED = "compressed, so that single samples cannot be read from it: unpack it to a plain .tar"
_NAME = re.compile(r"(?P<key>(?:.*/)?[^./][^./]*)\.(?P<field>[^/]+)")
_IMAGES = ("jpg", "jpeg", "png")
_TEXTS = ("cls", "txt")
_PACKED_SUFFIXES = (".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")
_PACKED_STARTS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_MAX_FACTS_BYTES = 2**20
_CHUNK_BYTES = 2**20
_DAMAGED = "damaged or cut off at byte {}: samples before that are taken, what follows is not"


@dataclass
class Sample:
    """One sample of a tar.

    Attributes:
        key: path up to the first point of the base name, without "./" before it.
        image: what its image is called, such as "jpg" or "tile.png".
        offset: where the data of the image begins in the tar, bytes.
        size: of the image, bytes.
        facts: text of .cls and .txt by these names, and of the values in .json, as far as they are no lists or objects.
        shape: width and height of the image, pixels; None where its header was not parsed.
    """

    key: str
    image: str
    offset: int
    size: int
    facts: dict[str, str] = field(default_factory=dict)
    shape: tuple[int, int] | None = None


@dataclass
class TarContents:
    """What there is in a tar: samples in order, and (name, reason) of what cannot be used."""

    samples: list[Sample] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)


def find_tars(source: Path) -> tuple[Path, list[Path], list[tuple[str, str]]]:
    """Tars below a folder, or one tar.

    Returns:
        The folder, the tars in order, and (path below the folder, reason) of compressed ones and such that cannot be
        read.

    Raises:
        InputError: the source is neither a folder nor a tar, or there is none in it.
    """
    if source.is_file():
        root, files = source.resolve().parent, [source.resolve()]
        problems: list[tuple[Path, str]] = []
    elif source.is_dir():
        root = source.resolve()
        found = walk_folder(root)
        files, problems = sorted(found.files), list(found.failures)
    else:
        raise InputError(f"{source} is neither a folder with .tar files nor one of them.")
    tars = [path for path in files if path.name.lower().endswith(".tar")]
    problems += [(path, COMPRESSED) for path in files if path.name.lower().endswith(_PACKED_SUFFIXES)]
    if not tars:
        packed = f": {problems[0][0].name} is {problems[0][1]}" if problems else ""
        raise InputError(f"{source} holds no .tar file{packed}.")
    return root, tars, [(path.relative_to(root).as_posix(), reason) for path, reason in problems]


def read_tar(path: Path, *, image: str | None = None, check_images: bool = False) -> TarContents:
    """Read the headers of a tar, and the members that are no images; pixels are left where they are.

    Args:
        path: of the tar.
        image: field of the image, such as "tile.png", where samples have several; None for the only one.
        check_images: parse the header of every image.
    """
    contents = TarContents()
    try:
        with path.open("rb") as stream:
            if stream.read(8).startswith(_PACKED_STARTS):
                contents.problems.append((path.name, COMPRESSED))
                return contents
            groups: dict[str, _Group] = {}
            for member in _members(stream, path.name, contents.problems):
                _take(member, stream, groups, contents.problems)
            for group in groups.values():
                sample = group.finish(image)
                if isinstance(sample, str):
                    contents.problems.append((group.key, sample))
                    continue
                reason = _image_problem(stream, sample) if check_images else ""
                if reason:
                    contents.problems.append((group.key, reason))
                else:
                    contents.samples.append(sample)
    except OSError as error:
        contents.problems.append((path.name, f"cannot be read: {error.strerror or one_line(error)}"))
    return contents


def _image_problem(stream: BinaryIO, sample: Sample) -> str:
    sample.shape, reason = read_header(BytesIO(_pread(stream, sample.offset, sample.size)))
    return reason


def _pread(stream: BinaryIO, offset: int, size: int) -> bytes:
    return os.pread(stream.fileno(), size, offset)


def _members(stream: BinaryIO, name: str, problems: list[tuple[str, str]]) -> Iterator[tarfile.TarInfo]:
    """Members in order as far as they are whole; where the tar does not end as it should, that is a problem."""
    size = os.fstat(stream.fileno()).st_size
    stream.seek(0)
    end = 0
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else all of them are kept
                if member.size < 0:  # tarfile would go back by so much, and round and round
                    break
                if member.offset_data + (0 if member.issparse() else member.size) > size:
                    break
                yield member
                end = tar.offset
    except tarfile.TarError:
        pass
    # tarfile ends without a word at a header that is none. At the end of a tar there is a block of zeros.
    if _pread(stream, end, tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        problems.append((name, _DAMAGED.format(end)))
        return
    more = _find_more(stream, end)
    if more is not None:
        problems.append((name, _tell_more(stream, more)))


def _find_more(stream: BinaryIO, end: int) -> int | None:
    """Where the first block behind a byte is that is not all zeros; None where there is none.

    Zeros fill the last record of a tar, 10 KiB unless somebody chose more, so that this is one short read as a rule.
    """
    place = end
    while chunk := _pread(stream, place, _CHUNK_BYTES):
        if chunk.strip(b"\0"):
            filled = len(chunk) - len(chunk.lstrip(b"\0"))
            return place + filled - filled % tarfile.BLOCKSIZE
        place += len(chunk)
    return None


def _tell_more(stream: BinaryIO, place: int) -> str:
    """What is wrong where a tar goes on behind its end."""
    try:
        tarfile.TarInfo.frombuf(_pread(stream, place, tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return f"something that is no tar follows its end, from byte {place} on, and is not read: write the tar again"
    return (
        f"a second tar follows its end, from byte {place} on, and is not read: keep tars as files of their own, or "
        "join them with tar --concatenate"
    )


@dataclass
class _Group:
    """The members of one key."""

    key: str
    images: list[tuple[str, int, int]] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    fields: set[str] = field(default_factory=set)
    reasons: list[str] = field(default_factory=list)

    def finish(self, wanted: str | None) -> Sample | str:
        """The sample, or why it cannot be used."""
        images = [one for one in self.images if wanted is None or one[0] == wanted]
        if self.reasons:
            return self.reasons[0]
        if not images:
            what = "PNG or JPEG image" if wanted is None else f".{wanted}"
            others = ", ".join(sorted(self.fields))
            return f"has no {what}, only {others}"
        if len(images) > 1:
            names = ", ".join(f".{name}" for name, _, _ in images)
            return f"has {counted(len(images), 'image')} ({names}): name one with --image-column"
        name, offset, size = images[0]
        if size == 0:
            return f"its .{name} is empty"
        return Sample(self.key, name, offset, size, self.facts)


def _take(
    member: tarfile.TarInfo, stream: BinaryIO, groups: dict[str, _Group], problems: list[tuple[str, str]]
) -> None:
    """Put a member where it belongs."""
    path = member.name.removeprefix("./")
    base = path.rpartition("/")[2]
    # WebDataset keeps what begins and ends with two underscores for facts about the whole.
    if member.isdir() or is_system_name(base) or (base.startswith("__") and base.endswith("__")):
        return
    found = _NAME.fullmatch(path)
    if found is None:
        problems.append((path, "has no suffix, so that it belongs to no sample"))
        return
    group = groups.setdefault(found["key"], _Group(found["key"]))
    name = found["field"].lower()
    if name in group.fields:
        # One of them is right, and nobody can say which.
        group.reasons.append(f"two members of the tar are its .{name}: give samples different names")
    group.fields.add(name)
    is_image = name.rpartition(".")[2] in _IMAGES
    if not is_image and name not in (*_TEXTS, "json"):
        return
    if member.issparse() or not member.isreg():
        what = "stored with holes (sparse)" if member.issparse() else "a link or no regular file"
        group.reasons.append(f"its .{name} is {what}: write the tar again without")
    elif is_image:
        group.images.append((name, member.offset_data, member.size))
    else:
        _take_facts(name, member, stream, group)


def _take_facts(name: str, member: tarfile.TarInfo, stream: BinaryIO, group: _Group) -> None:
    if member.size > _MAX_FACTS_BYTES:
        group.reasons.append(f"its .{name} has {member.size:,} bytes, which is no label")
        return
    data = _pread(stream, member.offset_data, member.size)
    try:
        text = data.decode()
        found: Any = json.loads(text) if name == "json" else {name: text.strip()}
    except (ValueError, RecursionError) as error:  # the latter for lists within lists without end
        group.reasons.append(f"its .{name} cannot be read: {one_line(error)}")
        return
    if not isinstance(found, dict):
        group.reasons.append(f"its .{name} is no object with named values")
        return
    for key, value in found.items():
        if not isinstance(value, list | dict):
            group.facts.setdefault(str(key), "" if value is None else str(value).strip())
