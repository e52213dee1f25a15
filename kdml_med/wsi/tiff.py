"""The pages of a TIFF: which is the slide, which are smaller copies of it, and whether it can be what it declares."""

from __future__ import annotations

import logging
import math
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tifffile

from kdml_med.wsi.resolution import UNIT_TAG, X_TAG, Y_TAG, Resolution, agree, from_imagej, from_ome, from_tags
from kdml_med.wsi.slide import SlideError

# What it has to say about damaged files is said here, in one line for each.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

GENERIC, APERIO = "generic-tiff", "aperio"
"""What OpenSlide calls the dialects whose pages are looked at here one by one."""

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_NONE, _JPEG = 1, 7  # Compression
_RGB, _YCBCR = 2, 6  # PhotometricInterpretation
_ORIENTATION, _AS_STORED = 274, 1
_NOT_ELSEWHERE = (33005, 34712, 50001, 50002)  # JPEG 2000, twice; WebP; JPEG XL: not for OpenSlide and Pillow
_PHOTOMETRIC = {0: "greyscale", 1: "greyscale", 3: "palette", 4: "a transparency mask", 5: "CMYK", 8: "CIELab"}
_UNSPECIFIED = 0  # ExtraSamples
_MASK_FLAG = 4  # NewSubfileType
_MAX_SEGMENT_BYTES = 2**30
_MAX_RATIO = 200_000  # pixel bytes per stored byte; the best of the compressions reach a fifth of it on one colour
_WORDS = "label|macro|thumbnail|overview"
_ASSOCIATED = re.compile(rf"\b({_WORDS})\b", re.IGNORECASE)
_NOTHING_ELSE = re.compile(rf"({_WORDS})[ _]?(?:image)?(?: +\d+x\d+)?", re.IGNORECASE)
_MAX_NAMED = 3
_PROBES = 3


@dataclass(frozen=True)
class PageRef:
    """One image of a file.

    Attributes:
        path: indices of the page, then of the page among its SubIFDs.
        width: pixels.
        height: pixels.
        tiled: whether it consists of tiles, not of strips.
    """

    path: tuple[int, ...]
    width: int
    height: int
    tiled: bool

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), pixels."""
        return self.width, self.height

    def find(self, tiff: tifffile.TiffFile) -> tifffile.TiffPage:
        """The page in an open file."""
        page = tiff.pages[self.path[0]]
        for index in self.path[1:]:
            page = page.pages[index]  # type: ignore[index]
        if not isinstance(page, tifffile.TiffPage):
            raise SlideError(f"page {self.path} cannot be read")
        return page


@dataclass(frozen=True)
class TiffLayout:
    """What a TIFF holds.

    Attributes:
        main: the largest image.
        smaller: images that have its shape, finest first; only their content can tell whether they show it.
        others: images that are neither, nor called label, macro or thumbnail.
        resolution: of ``main``, by the fields that any TIFF can have.
        deep: whether its samples have more than 8 bits.
        direct: whether only its pages say what it shows: OpenSlide turns each tile by itself where a tag says that the
            image is shown turned or mirrored, and does not know all compressions.
    """

    main: PageRef
    smaller: Sequence[PageRef] = ()
    others: Sequence[PageRef] = ()
    resolution: Resolution = field(default_factory=Resolution)
    deep: bool = False
    direct: bool = False


def is_tiff(path: Path) -> bool:
    """Whether a file begins as a TIFF does."""
    with path.open("rb") as stream:
        return stream.read(4) in _MAGIC


def inspect_tiff(path: Path, vendor: str | None = None) -> TiffLayout:
    """Look at all pages of a TIFF, without decoding any.

    Args:
        path: of the file.
        vendor: whose dialect OpenSlide says it is; None for none. Vendors have fields of their own for the resolution.

    Raises:
        SlideError: the largest image is not 8 or 16 bit RGB, its data are not all there or cannot be what its tags
            declare, or its resolution makes no sense.
    """
    try:
        with tifffile.TiffFile(path) as tiff:
            return _layout(tiff, path.stat().st_size, vendor)
    except (SlideError, MemoryError):
        raise
    except Exception as error:  # the tags of a damaged file can fail in any way
        raise SlideError(f"cannot be read: the tags of the TIFF are damaged ({error})") from error


def _layout(tiff: tifffile.TiffFile, file_bytes: int, vendor: str | None) -> TiffLayout:
    pages = list(_pages(tiff))
    if not pages:
        raise SlideError("cannot be read: the TIFF holds no image, or its end is missing; copy it again")
    beside = {ref for ref, _ in pages if not ref.tiled} if vendor == APERIO else _find_associated(tiff, pages)
    shown = [(ref, page) for ref, page in pages if ref not in beside] or pages
    # Of several equals the first, as everywhere; but a mask may be as large as the slide.
    order = sorted(shown, key=lambda pair: (-pair[0].width * pair[0].height, pair[1].samplesperpixel < 3))
    main, main_page = order[0]
    check_channels(main_page)
    check_data(main_page, file_bytes)
    smaller, others = [], []
    for ref, page in shown:
        if ref is main or page.subfiletype & _MASK_FLAG:
            continue
        if ref.size != main.size and is_reduction(main.size, ref.size) and _has_channels(page):
            check_data(page, file_bytes)
            smaller.append(ref)
        else:
            others.append(ref)
    smaller.sort(key=lambda ref: -ref.width)
    own = vendor in (None, GENERIC)
    resolution = _resolution(tiff, main, main_page) if own else Resolution()
    used = {main, *smaller}
    turned = any(_is_turned(page) for ref, page in shown if ref in used)
    direct = turned or (main_page.photometric == _RGB and main_page.compression in _NOT_ELSEWHERE)
    return TiffLayout(main, smaller, others, resolution, _bits(main_page) > 8, direct)


def _is_turned(page: tifffile.TiffPage) -> bool:
    return _ORIENTATION in page.tags and page.tags[_ORIENTATION].value not in (0, _AS_STORED)


def _has_channels(page: tifffile.TiffPage) -> bool:
    try:
        check_channels(page)
    except SlideError:
        return False
    return True


def _pages(tiff: tifffile.TiffFile) -> Iterator[tuple[PageRef, tifffile.TiffPage]]:
    seen: set[int] = set()
    last = 0
    for index, page in enumerate(tiff.pages):
        if page.offset in seen:  # the library would go round and round
            raise SlideError("cannot be read: the list of its pages leads back to an earlier one")
        seen.add(page.offset)
        last = page.offset
        if page.subifds and max(page.subifds) >= tiff.filehandle.size:
            raise SlideError(f"is incomplete: images below page {index} lie beyond its end; copy it again")
        below = [(index, number) for number in range(len(page.pages or ()))] if page.subifds else []
        for path in [(index,), *below]:
            found = page if len(path) == 1 else (page.pages or [])[path[1]]
            if not isinstance(found, tifffile.TiffPage) or min(found.imagewidth, found.imagelength) < 1:
                # It may have been the largest: what is left would be tiled at its scale.
                raise SlideError(f"cannot be read: page {'.'.join(map(str, path))} has no size, its tags are damaged")
            yield PageRef(path, found.imagewidth, found.imagelength, found.is_tiled), found
    if last and _next_page(tiff, last):  # the library passes over what it cannot follow, which may be the largest
        raise SlideError("is incomplete: the list of its pages leads beyond its end or to none; copy it again")


def _next_page(tiff: tifffile.TiffFile, offset: int) -> int:
    """Where the tags of a page say that the next page is; 0 for the last."""
    stream, form = tiff.filehandle, tiff.tiff
    stream.seek(offset)
    tags = struct.unpack(form.tagnoformat, stream.read(form.tagnosize))[0]
    stream.seek(offset + form.tagnosize + tags * form.tagsize)
    return int(struct.unpack(form.offsetformat, stream.read(form.offsetsize))[0])


def _resolution(tiff: tifffile.TiffFile, main: PageRef, page: tifffile.TiffPage) -> Resolution:
    x, y, unit = (page.tags[code].value if code in page.tags else None for code in (X_TAG, Y_TAG, UNIT_TAG))
    description = tiff.pages.first.description
    places = [from_tags(x, y, None if unit is None else int(unit))]
    if tiff.ome_metadata:
        places.append(from_ome(tiff.ome_metadata, *main.size))
    elif description.startswith("ImageJ="):
        places.append(from_imagej(description, x, y))
    return agree(*places)


def _image_names(tiff: tifffile.TiffFile) -> dict[int, str]:
    """Names that OME-XML gives to images, by index of the first page of each."""
    if not tiff.is_ome:
        return {}
    return {
        series.keyframe.index: series.name or ""
        for series in tiff.series
        if isinstance(series.keyframe, tifffile.TiffPage) and isinstance(series.keyframe.index, int)
    }


def _find_associated(tiff: tifffile.TiffFile, pages: Sequence[tuple[PageRef, tifffile.TiffPage]]) -> set[PageRef]:
    """Pages that are called what slides carry beside their pixels.

    The largest is one of them only if nothing else is said of it: the description of a slide may hold any word.
    """
    names = _image_names(tiff)
    said = {}
    for ref, page in pages:
        # The XML of a whole file, as OME has it on the first page, says nothing about one page.
        text, name = "" if page.is_ome else page.description[:2000], names.get(ref.path[0], "")
        said[ref] = text, name if len(ref.path) == 1 or _NOTHING_ELSE.fullmatch(name) else ""
    called = {
        ref
        for ref, texts in said.items()
        if any(_NOTHING_ELSE.fullmatch(line.strip()) for text in texts for line in text.splitlines())
    }
    largest = max((ref.width * ref.height for ref in said if ref not in called), default=0)
    mentioned = [ref for ref, texts in said.items() if any(map(_ASSOCIATED.search, texts))]
    return called | {ref for ref in mentioned if ref.width * ref.height < largest}


def is_reduction(full: tuple[int, int], size: tuple[int, int], *, loose: bool = False) -> bool:
    """Whether a size, (width, height), is that of a smaller copy, but for what rounding at each halving leaves.

    Some vendors fill levels up to whole tiles, which ``loose`` allows for.
    """
    if size[0] > full[0] or size[1] > full[1]:
        return False
    share = 0.05 if loose else 0.005
    downsample = math.sqrt(full[0] * full[1] / (size[0] * size[1]))
    return all(abs(whole / downsample - part) <= 2 + share * part for whole, part in zip(full, size, strict=True))


def describe_others(others: Sequence[PageRef]) -> str:
    """What is left out of a file, and what to do about it; "" when nothing is."""
    if not others:
        return ""
    named = [f"page {'.'.join(map(str, ref.path))}: {ref.width} × {ref.height} px" for ref in others[:_MAX_NAMED]]
    more = f" and {len(others) - _MAX_NAMED} more" if len(others) > _MAX_NAMED else ""
    return (
        f"holds further images, which are left out ({', '.join(named)}{more}); "
        "save them as files of their own if they show tissue"
    )


def _bits(page: tifffile.TiffPage) -> int:
    bits = page.bitspersample
    return max(bits) if isinstance(bits, tuple) else int(bits)


def check_channels(page: tifffile.TiffPage) -> None:
    """Whether the pixels of a page are red, green and blue in 8 or 16 bits, with or without transparency.

    Raises:
        SlideError: they are something else; it is named.
    """
    expected = "expected 8-bit RGB"
    kind = _PHOTOMETRIC.get(int(page.photometric))
    if kind is not None and not (kind == "greyscale" and page.samplesperpixel > 1):
        raise SlideError(f"is {kind} ({page.samplesperpixel} channel(s) of {_bits(page)} bits), {expected}")
    if page.photometric not in (_RGB, _YCBCR):
        name = getattr(page.photometric, "name", page.photometric)
        raise SlideError(f"has {page.samplesperpixel} channels that are flagged as {name}, {expected}")
    if page.photometric == _YCBCR and page.compression == _NONE and page.samplesperpixel != 3:
        raise SlideError(f"has {page.samplesperpixel} channels of YCbCr, {expected}")
    if _bits(page) not in (8, 16) or page.sampleformat not in (None, 1):
        kind = "" if page.sampleformat in (None, 1) else " that are not whole numbers from 0"
        raise SlideError(f"has samples of {_bits(page)} bits{kind}, {expected}")
    extra = [int(value) for value in page.extrasamples]
    if page.samplesperpixel != 3 + len(extra) or len(extra) > 1:
        raise SlideError(f"has {page.samplesperpixel} channels, {expected}")
    if _UNSPECIFIED in extra:
        raise SlideError(f"has a fourth channel whose meaning is unspecified (ExtraSamples 0), {expected}: drop it")
    if page.imagedepth > 1:
        raise SlideError(f"is a volume of {page.imagedepth} planes, expected one image")


def check_data(page: tifffile.TiffPage, file_bytes: int) -> None:
    """Whether a page can have the size that it declares.

    Raises:
        SlideError: tiles or strips are missing, lie beyond the end of the file, or are too small or too large.
    """
    size = f"{page.imagewidth} × {page.imagelength} px"
    width, height = (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)
    height = min(height, page.imagelength) if not page.is_tiled else height
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    samples = page.samplesperpixel if planes == 1 else 1
    segment_bytes = width * height * samples * _bits(page) // 8
    if min(width, height) < 1 or segment_bytes > _MAX_SEGMENT_BYTES:
        raise SlideError(f"declares {size} in pieces of {width} × {height} px, which no reader can take")
    needed = math.ceil(page.imagewidth / width) * math.ceil(page.imagelength / height) * planes
    offsets, counts = np.asarray(page.dataoffsets, np.int64), np.asarray(page.databytecounts, np.int64)
    if min(len(offsets), len(counts)) < needed:
        raise SlideError(
            f"declares {size}, which takes {needed} tiles or strips, and lists {min(len(offsets), len(counts))}: "
            "the tags are damaged"
        )
    written = counts[:needed] > 0
    end = int((offsets[:needed] + counts[:needed])[written].max(initial=0))
    if end > file_bytes:
        raise SlideError(f"is incomplete: its pixels reach to byte {end}, the file ends at {file_bytes}; copy it again")
    declared = float(segment_bytes) * int(written.sum())
    if page.compression == _NONE and not page.is_tiled:
        declared = float(page.imagewidth) * page.imagelength * page.samplesperpixel * _bits(page) / 8
    stored = int(counts[:needed].sum())
    if page.photometric == _YCBCR and page.compression == _NONE:
        declared /= 2  # colour may be stored at half the size, both ways
    if declared > stored * (1 if page.compression == _NONE else _MAX_RATIO):
        raise SlideError(f"declares {size}, but holds only {stored} bytes of pixels: the tags are damaged")
    if page.compression == _JPEG and not page.is_ndpi:
        _check_jpeg(page, counts, (width, height))


def _check_jpeg(
    page: tifffile.TiffPage, counts: np.ndarray[tuple[int], np.dtype[np.int64]], size: tuple[int, int]
) -> None:
    stream = page.parent.filehandle
    found = []
    for number in np.argsort(-counts, kind="stable")[:_PROBES]:
        stream.seek(page.dataoffsets[number])
        frame = jpeg_frame(stream.read(min(int(counts[number]), 65_536)))
        if frame is not None:
            found.append(frame)
    if not found:
        return  # damaged pieces are counted when their turn comes
    if page.is_tiled and all((width, height) != size for width, height, _ in found):
        raise SlideError(
            f"has JPEG tiles of {found[0][0]} × {found[0][1]} px, its tags say {size[0]} × {size[1]}: damaged"
        )
    channels = page.samplesperpixel if page.planarconfig == 1 else 1
    if all(components != channels for _, _, components in found):
        raise SlideError(f"has JPEG data of {found[0][2]} channel(s), its tags say {channels}; expected 8-bit RGB")


def jpeg_frame(data: bytes) -> tuple[int, int, int] | None:
    """(width, height, components) that a JPEG says of itself; None when that is not found."""
    place = 2
    while place + 9 < len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4])
        if marker == 0xFF:  # bytes that fill up, of which there may be any number
            place += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(data[place + at : place + at + 2]) for at in (5, 7))
            return width, height, data[place + 9]
        place += 2 + length
    return None
