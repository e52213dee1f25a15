"""The one list of readers: a slide is opened by the first that takes it.

Which files a folder is searched for is said by ``kdml_med.tables.names.SLIDE_SUFFIXES``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import openslide

from kdml_med.wsi.native import open_native
from kdml_med.wsi.scans import FieldSlide, OpenSlideSlide
from kdml_med.wsi.slide import Slide, SlideError

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
    slide = OpenSlideSlide(path)
    return (open_native(slide) if fast else None) or slide


def _open_field(path: Path, fast: bool) -> Slide | None:
    """Plain images: the last resort, which says what is wrong."""
    return FieldSlide(path)


READERS: list[Reader] = [_open_scan, _open_field]


def open_slide(path: Path, *, fast: bool = True) -> Slide:
    """Open a slide or a plain image with the first reader that takes it.

    Args:
        path: of the file.
        fast: allow the reader for tiled JPEG pyramids; False always reads slides through OpenSlide.

    Raises:
        SlideError: the file is missing, damaged, or not an image that can be read.
    """
    for read in READERS:
        slide = read(path, fast)
        if slide is not None:
            return slide
    raise SlideError("no reader takes this file")
