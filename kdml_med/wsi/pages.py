"""Pages of a TIFF read tile by tile, for slides whose largest image OpenSlide does not take for the slide."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from kdml_med.wsi.grid import true_downsample
from kdml_med.wsi.slide import Level, Pixels, SlideError
from kdml_med.wsi.tiff import PageRef, TiffLayout, describe_others

_PREMULTIPLIED = 1  # TIFF ExtraSamples: colours are multiplied by the transparency already
_JPEG, _APERIO_YCBCR = 7, 33003  # TIFF Compression
_YCBCR = 6  # TIFF PhotometricInterpretation
_PROBES = 3
_PROBE_PX = 64
_PROBE_L0 = 1024  # pixels of level 0 that one probe may cost along each side
_SAME = 0.5  # correlation; copies reach 0.9, other tissue at the same place 0.3
_FLAT = 3.0  # grey levels, standard deviation: nothing to correlate
_ALIKE = 10.0  # grey levels between two flat places that show the same


class PageReader:
    """Reads rectangles of one page. Pieces of the page are kept for neighbouring requests."""

    def __init__(self, tiff: tifffile.TiffFile, ref: PageRef) -> None:
        self.ref = ref
        self._page = ref.find(tiff)
        self._stream = tiff.filehandle
        page = self._page
        self._width, self._height = (
            (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)
        )
        self._columns = -(-page.imagewidth // self._width)
        self._rows = -(-page.imagelength // self._height)
        self._pieces: dict[int, Pixels] = {}

    def read(self, x: int, y: int, width: int, height: int) -> Pixels:
        """Pixels of a rectangle inside the page.

        Raises:
            SlideError: a part of it cannot be decoded.
        """
        out = np.full((height, width, 3), 255, np.uint8)
        for row in range(y // self._height, (y + height - 1) // self._height + 1):
            for column in range(x // self._width, (x + width - 1) // self._width + 1):
                left, top = column * self._width - x, row * self._height - y
                part = self._piece(row * self._columns + column)[
                    max(0, -top) : height - top, max(0, -left) : width - left
                ]
                place_y, place_x = max(0, top), max(0, left)
                out[place_y : place_y + part.shape[0], place_x : place_x + part.shape[1]] = part
        return out

    def richest(self, count: int) -> list[tuple[int, int]]:
        """Centres (x, y) of the pieces that take the most bytes: where there is something to see."""
        counts = np.asarray(self._page.databytecounts, np.int64)[: self._columns * self._rows]
        return [
            (
                min(int(number) % self._columns * self._width + self._width // 2, self.ref.width - 1),
                min(int(number) // self._columns * self._height + self._height // 2, self.ref.height - 1),
            )
            for number in np.argsort(-counts, kind="stable")[:count]
        ]

    def _piece(self, number: int) -> Pixels:
        if number not in self._pieces:
            # A row of pieces above and one below are what reading in order needs.
            while len(self._pieces) > 2 * self._columns + 2:
                del self._pieces[next(iter(self._pieces))]
            self._pieces[number] = self._decode(number)
        return self._pieces[number]

    def _decode(self, number: int) -> Pixels:
        page, planes = self._page, []
        for plane in range(page.samplesperpixel if page.planarconfig == 2 else 1):
            index = number + plane * self._columns * self._rows
            offset, count = page.dataoffsets[index], page.databytecounts[index]
            if count == 0:
                return np.full((self._height, self._width, 3), 255, np.uint8)
            try:
                self._stream.seek(offset)
                data = self._stream.read(count)  # before the decoder is asked for, which may read elsewhere
                found = page.decode(data, index, jpegtables=page.jpegtables)[0]
            except Exception as error:  # whatever a decoder says about damaged data
                raise SlideError(f"piece {number} of page {self.ref.path} cannot be decoded: {error}") from error
            if found is None:
                raise SlideError(f"piece {number} of page {self.ref.path} cannot be decoded")
            planes.append(found[0])
        pixels = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
        if pixels.dtype == np.uint16:
            pixels = (pixels >> 8).astype(np.uint8)
        if pixels.shape[2] == 4:
            return _on_white(pixels, premultiplied=_PREMULTIPLIED in page.extrasamples)
        return np.ascontiguousarray(pixels)


def _on_white(pixels: Pixels, *, premultiplied: bool) -> Pixels:
    """Colours of [height, width, 4] with what is transparent turned white."""
    weight = pixels[..., 3:].astype(np.uint16)
    colours = pixels[..., :3].astype(np.uint16)
    if not premultiplied:
        colours = (colours * weight + 127) // 255
    blended: Pixels = np.minimum(colours + (255 - weight), 255).astype(np.uint8)
    return blended


class PageSlide:
    """A slide read from the pages of a TIFF. Not for several threads at once: each takes a ``clone``."""

    def __init__(self, path: Path, layout: TiffLayout, levels: Sequence[PageRef]) -> None:
        self.path, self._layout, self._refs = path, layout, [layout.main, *levels]
        self._tiff = tifffile.TiffFile(path)
        try:
            for ref in self._refs:
                _check_colours(ref.find(self._tiff))
            self._readers = [PageReader(self._tiff, ref) for ref in self._refs]
        except SlideError:
            self._tiff.close()
            raise
        full = layout.main
        self.levels: Sequence[Level] = [
            Level(ref.width, ref.height, true_downsample(full.width, full.height, ref.width, ref.height))
            for ref in self._refs
        ]
        self.header_mpp, self.header_source = layout.resolution.mpp, layout.resolution.source
        self.header_problem = layout.resolution.problem
        self.left_out = describe_others(layout.others)

    def factors(self, level: int) -> tuple[int, ...]:
        """See ``Slide.factors``."""
        return (1,)

    def read(self, level: int, factor: int, x_r: int, y_r: int, width_r: int, height_r: int) -> Pixels:
        """See ``Slide.read``."""
        return self._readers[level].read(x_r, y_r, width_r, height_r)

    def clone(self) -> PageSlide:
        """See ``Slide.clone``."""
        return PageSlide(self.path, self._layout, self._refs[1:])

    def close(self) -> None:
        """See ``Slide.close``."""
        self._tiff.close()


def _check_colours(page: tifffile.TiffPage) -> None:
    """Whether decoding a page gives red, green and blue: only JPEG's decoder does that with YCbCr."""
    if page.compression == _APERIO_YCBCR or (page.photometric == _YCBCR and page.compression != _JPEG):
        name = getattr(page.compression, "name", page.compression)
        raise SlideError(f"has YCbCr samples in {name} that OpenSlide does not read, expected 8-bit RGB: convert it")


def split_copies(path: Path, layout: TiffLayout) -> tuple[list[PageRef], list[PageRef]]:
    """Smaller images by what they show: those that show the largest one, and those that show something else."""
    copies: list[PageRef] = []
    strangers: list[PageRef] = []
    if not layout.smaller:
        return copies, strangers
    with tifffile.TiffFile(path) as tiff:
        full = PageReader(tiff, layout.main)
        for ref in layout.smaller:
            (copies if _shows_same(full, PageReader(tiff, ref)) else strangers).append(ref)
    return copies, strangers


def _shows_same(full: PageReader, small: PageReader) -> bool:
    """Compare a few places; where nothing can be read, nothing is known, and the shape decides."""
    downsample = true_downsample(*full.ref.size, *small.ref.size)
    side = int(min(_PROBE_PX, max(8, _PROBE_L0 // downsample), *small.ref.size))
    pairs = []
    for x, y in small.richest(_PROBES):
        left = min(max(0, x - side // 2), small.ref.width - side)
        top = min(max(0, y - side // 2), small.ref.height - side)
        with contextlib.suppress(SlideError):
            pairs.append(_pair(full, small, left, top, side, downsample))
    if not pairs:
        return True
    first, second = (np.stack([pair[side] for pair in pairs]) for side in (0, 1))
    a, b = (values - values.mean(axis=(1, 2), keepdims=True) for values in (first, second))
    if min(a.std(), b.std()) < _FLAT:
        return bool(np.abs(first - second).mean() < _ALIKE)
    return bool((a * b).mean() / (a.std() * b.std()) >= _SAME)


def _pair(
    full: PageReader, small: PageReader, left: int, top: int, side: int, downsample: float
) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.float32]], np.ndarray[tuple[int, int], np.dtype[np.float32]]]:
    """Grey values of one place in both images, at half the size of the smaller: resampling shifts by half a pixel."""
    x, y = int(left * downsample), int(top * downsample)
    reach = min(int(side * downsample), full.ref.width - x, full.ref.height - y)
    half = max(1, side // 2)
    small_pixels, full_pixels = small.read(left, top, side, side), full.read(x, y, reach, reach)
    first, second = (
        np.asarray(Image.fromarray(pixels).convert("L").resize((half, half), Image.Resampling.BOX), np.float32)
        for pixels in (full_pixels, small_pixels)
    )
    return first, second
