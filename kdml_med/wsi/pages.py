"""Slides read from the pages of a TIFF alone: OpenSlide does not take their largest image for the slide, or not all."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from kdml_med.wsi.codecs import JPEG
from kdml_med.wsi.grid import true_downsample
from kdml_med.wsi.native import NativeSlide
from kdml_med.wsi.slide import Level, Pixels, SlideError
from kdml_med.wsi.tiff import PageRef, TiffLayout, describe_others
from kdml_med.wsi.tile_index import TileBytes, TileIndex, index_page

_APERIO_YCBCR = 33003  # TIFF Compression
_YCBCR = 6  # TIFF PhotometricInterpretation
_PROBES = 3
_PROBE_PX = 64
_PROBE_FINE_PX = 1024  # of the finer level that one probe may cost along each side
_SAME = 0.5  # correlation; copies reach 0.9, other tissue at the same place 0.3
_FLAT = 3.0  # grey levels, standard deviation: nothing to correlate
_ALIKE = 10.0  # grey levels between two flat places that show the same

_Grey = np.ndarray[tuple[int, int], np.dtype[np.float32]]


class PageSlide:
    """What the pages of a TIFF say of a slide; tiles that were never written are white."""

    def __init__(self, path: Path, layout: TiffLayout) -> None:
        self.path = path
        full = layout.main
        self.levels: Sequence[Level] = [
            Level(ref.width, ref.height, true_downsample(full.width, full.height, ref.width, ref.height))
            for ref in (full, *layout.smaller)
        ]
        self.header_mpp, self.header_source = layout.resolution.mpp, layout.resolution.source
        self.header_problem = layout.resolution.problem
        self.left_out = describe_others(layout.others)

    def factors(self, level: int) -> tuple[int, ...]:
        """See ``Slide.factors``."""
        return (1,)

    def read(self, level: int, factor: int, x_r: int, y_r: int, width_r: int, height_r: int) -> Pixels:
        """See ``Slide.read``."""
        return np.full((height_r, width_r, 3), 255, np.uint8)

    def clone(self) -> PageSlide:
        """The same object: there is nothing to read."""
        return self

    def close(self) -> None:
        """Nothing to release."""


def open_pages(path: Path, layout: TiffLayout) -> NativeSlide:
    """A slide read from the pages of a TIFF alone: the largest image, and the smaller ones as its levels.

    Raises:
        SlideError: a page holds other colours than red, green and blue.
    """
    with tifffile.TiffFile(path) as tiff:
        for ref in (layout.main, *layout.smaller):
            _check_colours(ref.find(tiff))
    return NativeSlide(PageSlide(path, layout), _indices(path, layout), TileBytes(path))


def _indices(path: Path, layout: TiffLayout) -> dict[int, TileIndex]:
    try:
        with tifffile.TiffFile(path) as tiff:
            return {level: index_page(ref.find(tiff)) for level, ref in enumerate((layout.main, *layout.smaller))}
    except (SlideError, MemoryError):
        raise
    except Exception as error:  # the tags of a damaged file can fail in any way
        raise SlideError(f"cannot be read: the tags of the TIFF are damaged ({error})") from error


def _check_colours(page: tifffile.TiffPage) -> None:
    """Whether decoding a page gives red, green and blue: only JPEG's decoder does that with YCbCr."""
    if page.compression == _APERIO_YCBCR or (page.photometric == _YCBCR and page.compression != JPEG):
        name = getattr(page.compression, "name", page.compression)
        raise SlideError(f"has YCbCr samples in {name} that OpenSlide does not read, expected 8-bit RGB: convert it")


def without_strangers(path: Path, layout: TiffLayout) -> TiffLayout:
    """The layout with smaller images by what they show: those that show something else than the largest are others."""
    if not layout.smaller:
        return layout
    copies: list[PageRef] = []
    strangers: list[PageRef] = []
    indices = _indices(path, layout)
    slide = NativeSlide(PageSlide(path, layout), indices, TileBytes(path))
    finer = 0  # the nearest level that shows it: less of that one has to be decoded than of the largest
    for level, ref in enumerate(layout.smaller, start=1):
        same = _shows_same(slide, finer, level, indices[level])
        if same is None and finer:
            same = _shows_same(slide, 0, level, indices[level])
        (strangers if same is False else copies).append(ref)
        finer = level if same else finer
    slide.close()
    return replace(layout, smaller=copies, others=[*layout.others, *strangers])


def _shows_same(slide: NativeSlide, finer: int, level: int, index: TileIndex) -> bool | None:
    """Compare a few places with a finer level; None where nothing can be read, and the shape has to decide."""
    small = slide.levels[level]
    ratio = small.downsample / slide.levels[finer].downsample
    side = int(min(_PROBE_PX, max(8, _PROBE_FINE_PX // ratio), small.width, small.height))
    pairs = []
    for number in np.argsort(-index.counts, kind="stable")[:_PROBES]:  # where there is something to see
        row, column = divmod(int(number), index.columns)
        left = min(max(0, column * index.width + (index.width - side) // 2), small.width - side)
        top = min(max(0, row * index.height + (index.height - side) // 2), small.height - side)
        with contextlib.suppress(SlideError):
            pairs.append(_pair(slide, finer, level, left, top, side))
    if not pairs:
        return None
    first, second = (np.stack([pair[side] for pair in pairs]) for side in (0, 1))
    a, b = (values - values.mean(axis=(1, 2), keepdims=True) for values in (first, second))
    if min(a.std(), b.std()) < _FLAT:
        return bool(np.abs(first - second).mean() < _ALIKE)
    return bool((a * b).mean() / (a.std() * b.std()) >= _SAME)


def _pair(slide: NativeSlide, finer: int, level: int, left: int, top: int, side: int) -> tuple[_Grey, _Grey]:
    """Grey values of one place in both images, at half the size of the smaller: resampling shifts by half a pixel."""
    full = slide.levels[finer]
    downsample = slide.levels[level].downsample / full.downsample
    factor = max(factor for factor in slide.factors(finer) if factor <= 2 * downsample)
    x, y = int(left * downsample / factor), int(top * downsample / factor)
    reach = min(int(side * downsample / factor), full.width // factor - x, full.height // factor - y)
    half = max(1, side // 2)
    pixels = slide.read(finer, factor, x, y, reach, reach), slide.read(level, 1, left, top, side, side)
    first, second = (
        np.asarray(Image.fromarray(part).convert("L").resize((half, half), Image.Resampling.BOX), np.float32)
        for part in pixels
    )
    return first, second
