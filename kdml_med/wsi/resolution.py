"""What the header of a slide says about the size of its pixels: right, silent, or named as wrong.

A number that is there but cannot be meant (negative, zero, one of two missing) is a problem with the name of its field;
a resolution that a person states then goes before it. Fields that contradict each other, or pixels that are not square,
make the slide unusable: no single number would be right.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree import ElementTree

import openslide

from kdml_med.wsi.grid import MAX_MPP, MIN_MPP
from kdml_med.wsi.slide import SlideError, contradict

X_TAG, Y_TAG, UNIT_TAG = 282, 283, 296
"""TIFF XResolution, YResolution and ResolutionUnit."""

_TAG_NAMES = ("XResolution", "YResolution")
_UM_PER_TIFF_UNIT = {2: 25_400.0, 3: 10_000.0}  # inch, centimetre; 1 says that there is no unit
_UM_PER_UNIT = {
    "µm": 1.0,
    "um": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "micrometre": 1.0,
    "nm": 1e-3,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "inch": 25_400.0,
    "in": 25_400.0,
}
_NO_UNITS = ("", "pixel", "pixels", "px", "reference frame")
_SQUARE = 1.01  # largest ratio of the sides of a pixel
_APERIO_MPP = "aperio.MPP"


@dataclass(frozen=True)
class Resolution:
    """What one place in the header says.

    Attributes:
        mpp: micrometres per pixel, plausible or not; None when the place says nothing that can be used.
        source: the place, for people; "" when it is silent.
        problem: what is wrong with it, by the name of the field; "" when nothing is.
    """

    mpp: float | None = None
    source: str = ""
    problem: str = ""

    @property
    def is_plausible(self) -> bool:
        """Whether tiles can be cut by it."""
        return self.mpp is not None and MIN_MPP <= self.mpp <= MAX_MPP


def from_properties(properties: Mapping[str, str]) -> Resolution:
    """From what OpenSlide says of any format.

    Raises:
        SlideError: pixels are not square.
    """
    names = (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)
    texts = [properties.get(name) for name in names]
    if texts == [None, None]:
        raw = properties.get(_APERIO_MPP)
        return Resolution() if raw is None else Resolution(problem=f"{_APERIO_MPP} says {raw!r}, which is no number")
    x, y = (None if text is None else _number(text) for text in texts)
    return _of_two(x, y, names, texts, "slide header")


def from_tags(x: object, y: object, unit: object) -> Resolution:
    """From the resolution tags of a TIFF.

    Args:
        x: value of XResolution, pixels per unit: a number, or numerator and denominator; None when there is none.
        y: the same of YResolution.
        unit: value of ResolutionUnit; None when there is none.

    Raises:
        SlideError: pixels are not square.
    """
    if (x is None and y is None) or unit == 1:
        return Resolution()
    um = _UM_PER_TIFF_UNIT.get(unit) if isinstance(unit, int) else None
    if um is None:
        # The standard's default is the inch, but writers that leave the unit out seldom mean it.
        problem = "ResolutionUnit is missing" if unit is None else f"ResolutionUnit says {unit}"
        return Resolution(problem=f"{problem}, expected 2 (inch) or 3 (centimetre)")
    return _of_tags(x, y, um, "TIFF resolution tag")


def from_imagej(description: str, x: object, y: object) -> Resolution:
    """From the description that ImageJ writes: the tags are then pixels per unit of the description."""
    if not description.startswith("ImageJ="):
        return Resolution()
    found = re.search(r"^unit=(.*)$", description, re.MULTILINE)
    unit = _unit(found.group(1) if found else "")
    if unit is None or (x is None and y is None):
        return Resolution()
    if math.isnan(unit):
        return Resolution(problem=f"the unit of ImageJ is {found.group(1).strip()!r}" if found else "")
    return _of_tags(x, y, unit, "ImageJ description")


def from_ome(xml: str, width: int, height: int) -> Resolution:
    """From the XML of an OME-TIFF: what it says of the first image of a size in pixels.

    Raises:
        SlideError: pixels are not square.
    """
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return Resolution(problem="the OME-XML cannot be read")
    for element in root.iter():
        if element.tag.rpartition("}")[2] != "Pixels":
            continue
        if (element.get("SizeX"), element.get("SizeY")) != (str(width), str(height)):
            continue
        names = ("PhysicalSizeX", "PhysicalSizeY")
        texts = [element.get(name) for name in names]
        if texts == [None, None]:
            return Resolution()
        sizes: list[float | None] = []
        for name, text in zip(names, texts, strict=True):
            word = element.get(f"{name}Unit", "µm")
            unit = _unit(word)
            if unit is None:
                return Resolution()
            if math.isnan(unit):
                return Resolution(problem=f"{name}Unit says {word!r}, expected µm, nm or mm")
            number = None if text is None else _number(text)
            sizes.append(number if number is None or not _is_positive(number) else number * unit)
        return _of_two(sizes[0], sizes[1], names, texts, "OME-XML")
    return Resolution()


def from_density(dpi: object, name: str) -> Resolution:
    """From the dots per inch or metre of a plain image; what no slide can have is meant for screens and says nothing.

    Raises:
        SlideError: pixels are not square.
    """
    if not isinstance(dpi, tuple) or len(dpi) != 2:
        return Resolution()
    sides = [25_400 / value if _is_positive(value) else 0.0 for value in map(_quotient, dpi)]
    if not all(MIN_MPP <= side <= MAX_MPP for side in sides):
        return Resolution()
    return _of_tags(*dpi, 25_400.0, f"density of the {name}")


def agree(*places: Resolution) -> Resolution:
    """What several places in one header say together, the first that can be used before the others.

    Raises:
        SlideError: two of them say something plausible, and not the same.
    """
    plausible = [place for place in places if place.is_plausible]
    for other in plausible[1:]:
        first = plausible[0].mpp or 0.0
        second = other.mpp or 0.0
        if contradict(first, second):
            raise SlideError(
                f"{plausible[0].source} says {first:.6g} µm/px, {other.source} {second:.6g}: "
                "correct the header, which contradicts itself"
            )
    if plausible:
        return plausible[0]
    for place in places:
        if place.problem or place.mpp is not None:
            return place
    return Resolution()


def _of_tags(x: object, y: object, um: float, source: str) -> Resolution:
    """From pixels per unit of so many micrometres."""
    per_unit = [None if value is None else _quotient(value) for value in (x, y)]
    texts = [None if value is None else f"{value:.6g}" for value in per_unit]
    width, height = (um / value if value is not None and _is_positive(value) else value for value in per_unit)
    return _of_two(width, height, _TAG_NAMES, texts, source)


def _of_two(
    x: float | None, y: float | None, names: tuple[str, str], texts: list[str | None], source: str
) -> Resolution:
    """One number from the two sides of a pixel, micrometres; a number that is not positive stands for itself."""
    for value, name, text in zip((x, y), names, texts, strict=True):
        if text is None:
            return Resolution(problem=f"{source}: {name} is missing")
        if value is None or not _is_positive(value):
            return Resolution(problem=f"{source}: {name} says {text}, expected a positive number")
    if x is None or y is None:
        return Resolution()
    if max(x, y) > _SQUARE * min(x, y):
        raise SlideError(
            f"pixels are not square: {x:.6g} by {y:.6g} µm ({names[0]}, {names[1]}); "
            "correct the header if it is wrong, or scale the image"
        )
    return Resolution((x + y) / 2, source)


def _is_positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _quotient(value: object) -> float:
    """A rational number of a tag; not a number where there is none."""
    try:
        if isinstance(value, tuple):
            return float(value[0]) / float(value[1])
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        return math.nan


def _unit(word: str) -> float | None:
    """Micrometres per unit; None for words that say there is none, not a number for those that are unknown."""
    word = word.strip().replace("\\u00B5", "µ").replace("μ", "µ").lower()
    return None if word in _NO_UNITS else _UM_PER_UNIT.get(word, math.nan)
