"""The one list of readers: a slide is opened by the first that takes it.

Which files a folder is searched for is said by ``kdml_med.tables.names.SLIDE_SUFFIXES``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide

from kdml_med.wsi.dicom import is_dicom
from kdml_med.wsi.native import open_native
from kdml_med.wsi.pages import PageSlide, split_copies
from kdml_med.wsi.scans import FieldSlide, OpenSlideSlide
from kdml_med.wsi.slide import Slide, SlideError
from kdml_med.wsi.tiff import APERIO, GENERIC, TiffLayout, inspect_tiff, is_tiff

_HAMAMATSU = "hamamatsu"
_NAMING = (".mrxs", ".vms", ".vmu")  # the pixels are in other files
_PROBES, _PROBE_PX = 5, 256  # windows each way, and their side
_HALF_RANGE = 128

Reader = Callable[[Path, bool], Slide | None]
"""Opens a file, or says by None that it is not of its kind; the second argument allows fast decoding.

A file of its kind that is damaged is a ``SlideError``."""


def _open_scan(path: Path, fast: bool) -> Slide | None:
    """Everything that OpenSlide opens; tiled JPEG pyramids are decoded directly where that is allowed."""
    try:
        vendor = openslide.OpenSlide.detect_format(path)
    except openslide.OpenSlideError as error:
        raise SlideError(f"cannot be read: {error}") from error
    if vendor is None:
        return None
    # Hamamatsu's TIFF has ways of its own to say where pixels lie, and OpenSlide knows them.
    layout = inspect_tiff(path, vendor) if vendor != _HAMAMATSU and is_tiff(path) else None
    if layout is not None and vendor in (GENERIC, APERIO) and layout.main.path != (0,):
        # OpenSlide would take the first page for the slide.
        if vendor == APERIO:
            width, height = layout.main.size
            raise SlideError(f"its largest image ({width} × {height} px) is not the first, as Aperio has it")
        return _checked(_open_pages(path, layout), layout)
    if layout is not None and vendor == GENERIC and layout.direct:
        return _checked(_open_pages(path, layout), layout)
    slide = OpenSlideSlide(path, layout if vendor in (GENERIC, APERIO) else None)
    if layout is not None and vendor == GENERIC and layout.main.size != (slide.levels[0].width, slide.levels[0].height):
        slide.close()  # it goes by the width alone
        return _checked(_open_pages(path, layout), layout)
    return _checked((open_native(slide) if fast else None) or slide, layout)


def _open_field(path: Path, fast: bool) -> Slide | None:
    """Plain images: the last resort, which says what is wrong."""
    if path.suffix.lower() in _NAMING:
        # That of MIRAX is a picture of the glass with its label.
        raise SlideError(
            "is no slide without the files that belong to it, which are missing or damaged: copy all of them"
        )
    if not path.stat().st_size:
        raise SlideError("is empty: copy it again")
    layout = inspect_tiff(path) if is_tiff(path) else None
    if layout is not None and (layout.main.path != (0,) or layout.direct):
        return _checked(_open_pages(path, layout), layout)
    field = FieldSlide(path, layout)
    if field.is_deep:
        check_range(field)
    return field


def _open_pages(path: Path, layout: TiffLayout) -> Slide:
    copies, strangers = split_copies(path, layout)
    return PageSlide(path, replace(layout, others=[*layout.others, *strangers]), copies)


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
        fast: allow the reader for tiled JPEG pyramids; False always reads slides through OpenSlide.

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
