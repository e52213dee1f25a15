"""Slides that OpenSlide opens, and plain images."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import openslide
from PIL import Image, UnidentifiedImageError

from kdml_med.wsi.grid import true_downsample
from kdml_med.wsi.slide import Level, Pixels, SlideError

_FIELD_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_RESOLUTION_TAG, _UNIT_TAG = 282, 296
_UM_PER_UNIT = {2: 25_400.0, 3: 10_000.0}  # TIFF ResolutionUnit: inch, centimetre
_AFFORDABLE_DOWNSAMPLE = 3.0  # full resolution costs less than nine times the pixels of such a level


class OpenSlideSlide:
    """A slide read by OpenSlide: every format, no reduction while decoding."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = _open_handle(path)
        try:
            dimensions = self._handle.level_dimensions
            properties = self._handle.properties
        except openslide.OpenSlideError as error:
            raise SlideError(f"cannot be read: {error}") from error
        self.vendor: str = properties.get(openslide.PROPERTY_NAME_VENDOR, "")
        width_l0, height_l0 = dimensions[0]
        self.levels: Sequence[Level] = [Level(w, h, true_downsample(width_l0, height_l0, w, h)) for w, h in dimensions]
        self._downsamples = self._handle.level_downsamples
        self.header_mpp, self.header_source = _mpp_of_properties(properties)

    def factors(self, level: int) -> tuple[int, ...]:
        """See ``Slide.factors``; none for a level that OpenSlide cannot place exactly."""
        # OpenSlide places a region by the level's downsample as it estimates it. Where that is no whole number, pixels
        # are shifted by up to half and interpolated; on fine levels, full resolution is read instead.
        downsample = self._downsamples[level]
        shifted = abs(downsample - round(downsample)) > 1e-6
        return () if shifted and downsample < _AFFORDABLE_DOWNSAMPLE else (1,)

    def read(self, level: int, factor: int, x_r: int, y_r: int, width_r: int, height_r: int) -> Pixels:
        """See ``Slide.read``."""
        if factor != 1:
            raise ValueError(f"OpenSlide does not reduce while decoding, got factor {factor}")
        # OpenSlide takes the corner in level-0 pixels and divides by its own downsample; use that one to land on x_r.
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
        return OpenSlideSlide(self.path)

    def close(self) -> None:
        """See ``Slide.close``."""
        self._handle.close()


class FieldSlide:
    """A plain image of one resolution, held in memory: TIFF, PNG, JPEG or BMP."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                warnings.simplefilter("ignore", UserWarning)  # damaged metadata next to sound pixels
                with Image.open(path, formats=_FIELD_FORMATS) as image:
                    if image.mode not in ("RGB", "RGBA", "P", "L", "YCbCr"):
                        raise SlideError(f"is an image of mode {image.mode}, expected 8-bit RGB")
                    self.header_mpp, self.header_source = _mpp_of_tiff(image)
                    self._pixels = _on_white(image.convert("RGBA") if image.mode != "RGB" else image)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise SlideError("is too large for a plain image; convert it to a tiled pyramidal TIFF") from error
        except UnidentifiedImageError as error:
            raise SlideError("is neither a slide that OpenSlide opens nor a TIFF, PNG, JPEG or BMP image") from error
        except (OSError, ValueError, SyntaxError) as error:
            raise SlideError(f"cannot be read as an image: {error}") from error
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


def _open_handle(path: Path) -> openslide.OpenSlide:
    try:
        return openslide.OpenSlide(path)
    except (openslide.OpenSlideError, OSError) as error:
        raise SlideError(f"cannot be opened: {error}") from error


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


def _mpp_of_properties(properties: Mapping[str, str]) -> tuple[float | None, str]:
    values = []
    for name in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y):
        with contextlib.suppress(KeyError, ValueError):
            values.append(float(properties[name]))
    if not values:
        return None, ""
    if max(values) > 1.01 * min(values):
        raise SlideError(f"pixels are not square: {values[0]:.6g} by {values[-1]:.6g} µm")
    return sum(values) / len(values), "slide header"


def _mpp_of_tiff(image: Image.Image) -> tuple[float | None, str]:
    """From the resolution tags of a plain TIFF, only with an explicit unit; other formats say dots per screen inch."""
    tags = getattr(image, "tag_v2", None)
    if tags is None or tags.get(_UNIT_TAG) not in _UM_PER_UNIT or not tags.get(_RESOLUTION_TAG):
        return None, ""
    return _UM_PER_UNIT[tags[_UNIT_TAG]] / float(tags[_RESOLUTION_TAG]), "TIFF resolution tag"
