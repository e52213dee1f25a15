"""The one list of readers: a slide is opened by the first that takes it.

Which files a folder is searched for is said by ``kdml_med.tables.names.SLIDE_SUFFIXES``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import tifffile

from kdml_med.wsi.dicom import is_dicom
from kdml_med.wsi.native import NativeSlide
from kdml_med.wsi.pages import open_pages, without_strangers
from kdml_med.wsi.scans import FieldSlide, OpenSlideSlide
from kdml_med.wsi.slide import Bounds, Slide, SlideError, crop_of
from kdml_med.wsi.tiff import APERIO, GENERIC, TiffLayout, check_channels, inspect_tiff, is_tiff
from kdml_med.wsi.tile_index import TileBytes, TileIndex, decode_tile, index_page

_HAMAMATSU = "hamamatsu"
_WHOLE = (APERIO, GENERIC, _HAMAMATSU)  # never name a part of their plane
_NAMING = (".mrxs", ".vms", ".vmu")  # the pixels are in other files
_PROBES, _PROBE_PX = 5, 256  # windows each way, and their side
_HALF_RANGE = 128
_JUDGED = 3  # tiles of a level
_MAX_DIFFERENCE = 2.0  # grey levels, mean; a wrong colour transform gives twenty and more

Reader = Callable[[Path, bool], Slide | None]
"""Opens a file, or says by None that it is not of its kind; the second argument allows fast decoding.

A file of its kind that is damaged is a ``SlideError``."""


def _open_scan(path: Path, fast: bool) -> Slide | None:
    """Everything that OpenSlide opens; tiles of TIFF pyramids are decoded directly where that is allowed."""
    try:
        vendor = openslide.OpenSlide.detect_format(path)
    except openslide.OpenSlideError as error:
        raise SlideError(f"cannot be read: {error}") from error
    if vendor is None:
        return None
    # Hamamatsu's TIFF has ways of its own to say where pixels lie, and OpenSlide knows them.
    layout = inspect_tiff(path, vendor) if vendor != _HAMAMATSU and is_tiff(path) else None
    if layout is None or vendor not in (GENERIC, APERIO):
        return _checked(OpenSlideSlide(path), layout)
    layout = without_strangers(path, layout)
    if layout.main.path != (0,) and vendor == APERIO:  # OpenSlide would take the first page for the slide.
        width, height = layout.main.size
        raise SlideError(f"its largest image ({width} × {height} px) is not the first, as Aperio has it")
    if vendor == GENERIC and (layout.main.path != (0,) or layout.direct):
        return _checked(open_pages(path, layout), layout)
    slide = OpenSlideSlide(path, layout)
    full = slide.levels[0]
    if vendor == GENERIC and layout.main.size != (full.width, full.height):  # it goes by the width alone
        slide.close()
        return _checked(open_pages(path, layout), layout)
    return _checked(_open_native(slide, layout) if fast else slide, layout)


def _open_native(base: OpenSlideSlide, layout: TiffLayout) -> Slide:
    """The fast reader for what it shows as OpenSlide does; and for levels of which OpenSlide knows nothing."""
    try:
        file = TileBytes(base.path)
        indices = _read_indices(base)
    except Exception:  # the tags of a damaged file can fail in any way, and OpenSlide has its own view of them
        return base
    sound = {level: index for level, index in indices.items() if _agrees(base, level, index, file)}
    unknown = len(layout.smaller) >= len(base.levels)
    if unknown and base.vendor == GENERIC and 0 in sound:
        with contextlib.suppress(SlideError):
            slide = open_pages(base.path, layout)
            base.close()
            return slide
    return NativeSlide(base, sound, file) if sound else base


def _read_indices(base: OpenSlideSlide) -> dict[int, TileIndex]:
    """Indices of the tiled pages that have the size of a level."""
    indices: dict[int, TileIndex] = {}
    with tifffile.TiffFile(base.path) as tiff:
        for page in tiff.pages:
            if not isinstance(page, tifffile.TiffPage) or not page.is_tiled:
                continue
            size = (page.imagewidth, page.imagelength)
            level = next(
                (i for i, v in enumerate(base.levels) if (v.width, v.height) == size and i not in indices),
                None,
            )
            with contextlib.suppress(SlideError):
                check_channels(page)
                if level is not None:
                    indices[level] = index_page(page)
    return indices


def _agrees(base: OpenSlideSlide, level: int, index: TileIndex, file: TileBytes) -> bool:
    """Whether the richest tile of a level looks as OpenSlide shows it; damaged ones are passed over."""
    for number in np.argsort(-index.counts, kind="stable")[:_JUDGED]:
        tile = decode_tile(file, index, int(number), 1)
        if tile is None:
            continue
        x, y = int(number) % index.columns * index.width, int(number) // index.columns * index.height
        width = min(index.width, base.levels[level].width - x)
        height = min(index.height, base.levels[level].height - y)
        try:
            judge = base.read(level, 1, x, y, width, height)
        except SlideError:
            continue
        difference = np.abs(tile[:height, :width].astype(np.int16) - judge).mean()
        return bool(difference <= _MAX_DIFFERENCE)
    return False


def _open_field(path: Path, fast: bool) -> Slide | None:
    """Plain images: the last resort, which says what is wrong."""
    if path.suffix.lower() in _NAMING:
        # That of MIRAX is a picture of the glass with its label.
        raise SlideError(
            "is no slide without the files that belong to it, which are missing or damaged: copy all of them"
        )
    if not path.stat().st_size:
        raise SlideError("is empty: copy it again")
    layout = without_strangers(path, inspect_tiff(path)) if is_tiff(path) else None
    if layout is not None and (layout.main.path != (0,) or layout.main.tiled or layout.direct or layout.deep):
        # Pillow would read all of it at once, and 16-bit samples of some kinds wrongly.
        return _checked(open_pages(path, layout), layout)
    field = FieldSlide(path, layout)
    if field.is_deep:
        check_range(field)
    return field


def _checked(slide: Slide, layout: TiffLayout | None) -> Slide:
    if layout is not None and layout.deep:
        check_range(slide)
    return slide


def check_range(slide: Slide) -> None:
    """Whether 16-bit samples use their range: 12-bit values in them would make a slide black.

    Raises:
        SlideError: nothing in the slide is brighter than half of the range.
    """
    full = slide.levels[0]
    side = min(_PROBE_PX, full.width, full.height)
    brightest = 0
    for y in np.linspace(0, full.height - side, _PROBES, dtype=int):
        for x in np.linspace(0, full.width - side, _PROBES, dtype=int):
            with contextlib.suppress(SlideError):
                brightest = max(brightest, int(slide.read(0, 1, int(x), int(y), side, side).max()))
    if brightest < _HALF_RANGE:
        raise SlideError(
            f"has 16-bit samples that reach about {brightest * 257} of 65535 (12-bit values?), expected 8-bit RGB or "
            "the whole range: scale them"
        )


def _check_neighbours(path: Path) -> None:
    """OpenSlide opens whatever lies beside a DICOM file, and would wait for a pipe for ever."""
    for other in path.parent.iterdir():
        if other.exists() and not (other.is_file() or other.is_dir()):
            raise SlideError(f"cannot be opened: {other.name!r} beside it is a pipe or device; remove it")


READERS: list[Reader] = [_open_scan, _open_field]


def open_slide(path: Path, *, fast: bool = True) -> Slide:
    """Open a slide or a plain image with the first reader that takes it.

    Args:
        path: of the file, or of the folder of a DICOM slide.
        fast: allow the direct reader of tiles; False reads all that OpenSlide knows through it.

    Raises:
        SlideError: the file is missing, damaged, or not an image that can be read.
    """
    try:
        if path.is_dir():
            path = next((file for file in sorted(path.iterdir()) if is_dicom(file)), path / "*.dcm")
        if is_dicom(path):
            _check_neighbours(path)
        for read in READERS:
            slide = read(path, fast)
            if slide is not None:
                return slide
    except OSError as error:
        raise SlideError(f"cannot be opened: {error.strerror or error}") from error
    raise SlideError("no reader takes this file")


def find_crop(path: Path) -> Bounds | None:
    """Which part of a slide's plane was scanned; None where it is all of it, or where nothing can be read.

    Args:
        path: of the file, or of the folder of a DICOM slide.
    """
    try:
        if openslide.OpenSlide.detect_format(path) in (None, *_WHOLE):
            return None
        slide = open_slide(path, fast=False)
    except (SlideError, openslide.OpenSlideError):
        return None
    try:
        return crop_of(slide)
    finally:
        slide.close()
