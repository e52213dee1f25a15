"""Slides behind one protocol: anything OpenSlide opens, and plain image fields.

Only the pyramid is ever read. Associated images (label, macro) can show a patient's name and are never opened.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import openslide
from PIL import Image, UnidentifiedImageError

from kdml_med.wsi.grid import MAX_MPP, MIN_MPP, true_downsample

Pixels = npt.NDArray[np.uint8]
"""uint8, [height, width, 3], RGB."""

SLIDE_SUFFIXES = (
    *(".svs", ".svslide", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".bif", ".czi"),
    *(".png", ".jpg", ".jpeg", ".bmp"),
)  # .dcm is absent: many files make one slide; name one of them explicitly
_FIELD_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_RESOLUTION_TAG, _UNIT_TAG = 282, 296
_UM_PER_UNIT = {2: 25_400.0, 3: 10_000.0}  # TIFF ResolutionUnit: inch, centimetre
ASSUMED = "assumed"
"""Source of a resolution that nothing but --assume-mpp states."""

_AFFORDABLE_DOWNSAMPLE = 3.0  # full resolution costs less than nine times the pixels of such a level


class SlideError(Exception):
    """A slide, or a region of it, cannot be used. The message is for a person and goes to failures.csv."""


@dataclass(frozen=True)
class Level:
    """One level of a pyramid: size in its own pixels, and the factor by which it is coarser than level 0."""

    width: int
    height: int
    downsample: float


class Slide(Protocol):
    """What the tiler needs of a slide.

    Attributes:
        path: of the file.
        levels: finest first.
        header_mpp: micrometres per level-0 pixel as the file says, plausible or not; None when it is silent.
        header_source: where ``header_mpp`` was found, "" when nowhere.
    """

    path: Path
    levels: Sequence[Level]
    header_mpp: float | None
    header_source: str

    def factors(self, level: int) -> tuple[int, ...]:
        """Integer reductions that ``read`` offers on this level; on level 0, 1 is always there."""
        ...

    def read(self, level: int, factor: int, x_r: int, y_r: int, width_r: int, height_r: int) -> Pixels:
        """Pixels of a rectangle that lies inside the level reduced by ``factor``; coordinates in that plane.

        Raises:
            SlideError: a part of the region cannot be decoded. The slide stays usable.
        """
        ...

    def clone(self) -> Slide:
        """A second handle for another thread."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


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


def open_slide(path: Path, *, fast: bool = True) -> Slide:
    """Open a slide or a plain image with the quickest reader that suits it.

    Args:
        path: of the file.
        fast: allow the reader for tiled JPEG pyramids; False always reads slides through OpenSlide.

    Raises:
        SlideError: the file is missing, damaged, or not an image that can be read.
    """
    try:
        vendor = openslide.OpenSlide.detect_format(path)
    except openslide.OpenSlideError as error:
        raise SlideError(f"cannot be read: {error}") from error
    if vendor is None:
        return FieldSlide(path)
    slide = OpenSlideSlide(path)
    if fast:
        from kdml_med.wsi.native import open_native  # it builds on this module

        return open_native(slide) or slide
    return slide


def resolve_mpp(slide: Slide, *, table_mpp: float | None, assumed_mpp: float | None) -> tuple[float, str]:
    """Micrometres per level-0 pixel, and where the number comes from.

    A plausible header wins; without one, the label table, then the assumed value. There is no default.

    Returns:
        The resolution and its source: the name of the header field, "label table" or "assumed".

    Raises:
        SlideError: nothing says the resolution, or only an implausible value does; it is named.
    """
    header = slide.header_mpp
    if header is not None and MIN_MPP <= header <= MAX_MPP:
        return header, slide.header_source
    if table_mpp is not None:
        if not MIN_MPP <= table_mpp <= MAX_MPP:
            raise SlideError(f"the label table gives {table_mpp:.6g} µm/px, plausible is {MIN_MPP} to {MAX_MPP}")
        return table_mpp, "label table"
    if assumed_mpp is not None:
        return assumed_mpp, ASSUMED
    remedy = "state the resolution with --assume-mpp or in an mpp column of the label table"
    if header is None:
        raise SlideError(f"no resolution in the file; {remedy}")
    raise SlideError(
        f"{slide.header_source} says {header:.6g} µm/px, plausible is {MIN_MPP} to {MAX_MPP}; "
        f"if the pixels are sound, {remedy}"
    )


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
