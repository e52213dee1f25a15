"""Slides that OpenSlide opens, and plain images."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import openslide
from PIL import Image, UnidentifiedImageError

from kdml_med.wsi.grid import true_downsample
from kdml_med.wsi.resolution import from_density, from_properties
from kdml_med.wsi.slide import Bounds, Level, Pixels, SlideError
from kdml_med.wsi.tiff import GENERIC, TiffLayout, describe_others, is_reduction

_FIELD_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_HEADER = "slide header"
_MAX_SIDE = 4_000_000  # pixels; the glass of a slide at 0.1 µm takes a fifth
_EXPECTED = "expected 8-bit RGB"
_BOUNDS = (
    openslide.PROPERTY_NAME_BOUNDS_X,
    openslide.PROPERTY_NAME_BOUNDS_Y,
    openslide.PROPERTY_NAME_BOUNDS_WIDTH,
    openslide.PROPERTY_NAME_BOUNDS_HEIGHT,
)
_MODES = {"1": "black and white", "L": "greyscale", "LA": "greyscale", "P": "an image with a palette", "CMYK": "CMYK"}
_AFFORDABLE_DOWNSAMPLE = 3.0  # full resolution costs less than nine times the pixels of such a level


class OpenSlideSlide:
    """A slide read by OpenSlide: every format, no reduction while decoding."""

    def __init__(self, path: Path, layout: TiffLayout | None = None) -> None:
        """Open a slide; ``layout`` says which images of a TIFF are copies of its largest one, and which are not."""
        self.path = path
        self._handle = _open_handle(path)
        try:
            dimensions = self._handle.level_dimensions
            properties = self._handle.properties
            self._downsamples = self._handle.level_downsamples
        except openslide.OpenSlideError as error:
            raise SlideError(f"cannot be read: {error}") from error
        self.vendor: str = properties.get(openslide.PROPERTY_NAME_VENDOR, "")
        full = dimensions[0]
        if not all(0 < side <= _MAX_SIDE for size in dimensions for side in size):
            raise SlideError(f"declares {full[0]} × {full[1]} px, which no slide has: the header is damaged")
        self.bounds = _find_bounds(properties, *full)
        # Where two pages of one size differ in what they show, it is not known here which is which: neither is read.
        sizes = {ref.size for ref in layout.smaller} - {ref.size for ref in layout.others} if layout else set()
        # Levels of OpenSlide that are used, by their index there.
        self._used = [
            level
            for level, size in enumerate(dimensions)
            if level == 0 or (size in sizes if layout else size != full and is_reduction(full, size, loose=True))
        ]
        self.levels: Sequence[Level] = [
            Level(w, h, true_downsample(*full, w, h)) for w, h in map(dimensions.__getitem__, self._used)
        ]
        self.left_out = describe_others(layout.others) if layout else ""
        found = layout.resolution if layout and self.vendor == GENERIC else from_properties(properties)
        self.header_mpp, self.header_problem = found.mpp, found.problem
        self.header_source = _HEADER if found.mpp is not None and found.source.startswith("TIFF") else found.source

    def factors(self, level: int) -> tuple[int, ...]:
        """See ``Slide.factors``; none for a level that OpenSlide cannot place exactly."""
        # OpenSlide places a region by the level's downsample as it estimates it. Where that is no whole number, pixels
        # are shifted by up to half and interpolated; on fine levels, full resolution is read instead.
        downsample = self._downsamples[self._used[level]]
        shifted = abs(downsample - round(downsample)) > 1e-6
        return () if shifted and downsample < _AFFORDABLE_DOWNSAMPLE else (1,)

    def read(self, level: int, factor: int, x_r: int, y_r: int, width_r: int, height_r: int) -> Pixels:
        """See ``Slide.read``."""
        if factor != 1:
            raise ValueError(f"OpenSlide does not reduce while decoding, got factor {factor}")
        # OpenSlide takes the corner in level-0 pixels and divides by its own downsample; use that one to land on x_r.
        level = self._used[level]
        downsample = self._downsamples[level]
        corner_l0 = (round(x_r * downsample), round(y_r * downsample))
        try:
            image = self._handle.read_region(corner_l0, level, (width_r, height_r))
        except openslide.OpenSlideError as error:
            # The first error sticks: every later read from this handle fails too.
            self._handle.close()
            self._handle = _open_handle(self.path)
            raise SlideError(f"unreadable region: {error}") from error
        return _on_white(image)

    def clone(self) -> OpenSlideSlide:
        """See ``Slide.clone``."""
        other = copy.copy(self)
        other._handle = _open_handle(self.path)
        return other

    def close(self) -> None:
        """See ``Slide.close``."""
        self._handle.close()


class FieldSlide:
    """A plain image of one resolution, held in memory: TIFF, PNG, JPEG or BMP."""

    def __init__(self, path: Path, layout: TiffLayout | None = None) -> None:
        """Open an image; ``layout`` says what else is known of a TIFF."""
        self.path = path
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                warnings.simplefilter("ignore", UserWarning)  # damaged metadata next to sound pixels
                with Image.open(path, formats=_FIELD_FORMATS) as image:
                    if image.mode not in ("RGB", "RGBA", "YCbCr"):
                        raise SlideError(f"is {_MODES.get(image.mode, f'an image of mode {image.mode}')}, {_EXPECTED}")
                    found = (
                        layout.resolution if layout else from_density(image.info.get("dpi"), image.format or "image")
                    )
                    self.is_deep = any("16" in str(piece[3]) for piece in image.tile)
                    self._pixels = _on_white(image.convert("RGBA") if image.mode != "RGB" else image)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise SlideError("is too large for a plain image; convert it to a tiled pyramidal TIFF") from error
        except UnidentifiedImageError as error:
            raise SlideError("is neither a slide that OpenSlide opens nor a TIFF, PNG, JPEG or BMP image") from error
        except (OSError, ValueError, SyntaxError) as error:
            raise SlideError(f"cannot be read as an image: {error}") from error
        self.header_mpp, self.header_source, self.header_problem = found.mpp, found.source, found.problem
        self.left_out = describe_others(layout.others) if layout else ""
        height, width = self._pixels.shape[:2]
        self.levels: Sequence[Level] = [Level(width, height, 1.0)]

    def factors(self, level: int) -> tuple[int, ...]:
        """See ``Slide.factors``."""
        return (1,)

    def read(self, level: int, factor: int, x_r: int, y_r: int, width_r: int, height_r: int) -> Pixels:
        """See ``Slide.read``."""
        return self._pixels[y_r : y_r + height_r, x_r : x_r + width_r]

    def clone(self) -> FieldSlide:
        """The same object: the pixels are only read."""
        return self

    def close(self) -> None:
        """Nothing to release."""


def _find_bounds(properties: Mapping[str, str], width: int, height: int) -> Bounds:
    """The part of the plane that was scanned; all of it where the properties are missing or make no sense."""
    whole = Bounds(0, 0, width, height)
    try:
        x, y, wide, high = (int(properties[name]) for name in _BOUNDS)
    except (KeyError, ValueError):
        return whole
    if not (0 <= x < width and 0 <= y < height and wide > 0 and high > 0):
        return whole
    # They are rounded to the outside, and may end a pixel behind the plane.
    return Bounds(x, y, min(wide, width - x), min(high, height - y))


def _open_handle(path: Path) -> openslide.OpenSlide:
    try:
        return openslide.OpenSlide(path)
    except (openslide.OpenSlideError, OSError) as error:
        # The message names the folder, too, which is nobody's business in a table.
        raise SlideError(f"cannot be opened: {str(error).replace(f'{path.parent}/', '')}") from error


def _on_white(image: Image.Image) -> Pixels:
    """RGB pixels, with whatever is transparent (parts the scanner left out) turned white."""
    pixels = np.asarray(image)
    if pixels.shape[2] == 3:
        return pixels
    alpha = pixels[..., 3]
    if alpha.min() == 255:
        return pixels[..., :3]
    weight = alpha[..., None].astype(np.uint16)
    blended = (pixels[..., :3] * weight + 255 * (255 - weight) + 127) // 255
    return blended.astype(np.uint8)
