"""What the tiler needs of a slide, whatever reads it, and its physical resolution.

Only the pyramid is ever read. Associated images (label, macro) can show a patient's name and are never opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from kdml_med.wsi.grid import MAX_MPP, MIN_MPP

Pixels = npt.NDArray[np.uint8]
"""uint8, [height, width, 3], RGB."""

ASSUMED = "assumed"
"""Source of a resolution that nothing but --assume-mpp states."""
FROM_TABLE = "label table"
"""Source of a resolution that the header of the slide does not state."""
_CONTRADICTION = 1.02  # smallest ratio at which two statements of a resolution do not say the same


class SlideError(Exception):
    """A slide, or a region of it, cannot be used. The message is for a person and goes to failures.csv."""


@dataclass(frozen=True)
class Level:
    """One level of a pyramid: size in its own pixels, and the factor by which it is coarser than level 0."""

    width: int
    height: int
    downsample: float


class Bounds(NamedTuple):
    """A part of a slide's plane, level-0 pixels: its upper left corner and its size."""

    x_l0: int
    y_l0: int
    width_l0: int
    height_l0: int


class Slide(Protocol):
    """What the tiler needs of a slide.

    Attributes:
        path: of the file.
        levels: finest first.
        header_mpp: micrometres per level-0 pixel as the file says, plausible or not; None when it is silent.
        header_source: where ``header_mpp`` was found, "" when nowhere.
        header_problem: why what the file says of its resolution cannot be used, by the name of the field; "" otherwise.
        left_out: what else the file holds that is not part of ``levels``, for people; "" when nothing is.
    """

    path: Path
    levels: Sequence[Level]
    header_mpp: float | None
    header_source: str
    header_problem: str
    left_out: str

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


@runtime_checkable
class Bounded(Protocol):
    """A slide whose file can say which part of the plane was scanned.

    Attributes:
        bounds: that part, which viewers such as QuPath show as if it were all; the whole plane where the file is
            silent.
    """

    bounds: Bounds


def bounds_of(slide: Slide) -> Bounds:
    """Which part of the plane was scanned; the whole plane where nothing says more."""
    full = slide.levels[0]
    return slide.bounds if isinstance(slide, Bounded) else Bounds(0, 0, full.width, full.height)


def crop_of(slide: Slide) -> Bounds | None:
    """Which part of the plane was scanned; None where it is all of it."""
    full, found = slide.levels[0], bounds_of(slide)
    return None if found == (0, 0, full.width, full.height) else found


def contradict(first_mpp: float, second_mpp: float) -> bool:
    """Whether two statements of a resolution, micrometres per pixel, cannot both be right."""
    return max(first_mpp, second_mpp) > _CONTRADICTION * min(first_mpp, second_mpp)


def tell_contradiction(header_mpp: float, header_source: str, table_mpp: float | None) -> str | None:
    """What is wrong where the label table says another resolution than the header; None when it does not."""
    if table_mpp is None or not contradict(header_mpp, table_mpp):
        return None
    return (
        f"{header_source} says {header_mpp:.6g} µm/px, the label table {table_mpp:.6g}: correct the one that is wrong, "
        "or leave the mpp blank in the table to take that of the file"
    )


def resolve_mpp(slide: Slide, *, table_mpp: float | None, assumed_mpp: float | None) -> tuple[float, str]:
    """Micrometres per level-0 pixel, and where the number comes from.

    A plausible header counts, which the label table may repeat and not contradict; without one, the label table, then
    the assumed value. There is no default.

    Returns:
        The resolution and its source: the name of the header field, "label table" or "assumed".

    Raises:
        SlideError: nothing says the resolution, or only an implausible value does, or header and label table contradict
            each other; the values are named.
    """
    header = slide.header_mpp
    if header is not None and MIN_MPP <= header <= MAX_MPP:
        problem = tell_contradiction(header, slide.header_source, table_mpp)
        if problem is not None:
            raise SlideError(problem)
        return header, slide.header_source
    if table_mpp is not None:
        if not MIN_MPP <= table_mpp <= MAX_MPP:
            raise SlideError(f"the label table gives {table_mpp:.6g} µm/px, plausible is {MIN_MPP} to {MAX_MPP}")
        return table_mpp, FROM_TABLE
    if assumed_mpp is not None:
        return assumed_mpp, ASSUMED
    remedy = "state the resolution with --assume-mpp or in an mpp column of the label table"
    if slide.header_problem:
        raise SlideError(f"{slide.header_problem}; if the pixels are sound, {remedy}")
    if header is None:
        raise SlideError(f"no resolution in the file; {remedy}")
    raise SlideError(
        f"{slide.header_source} says {header:.6g} µm/px, plausible is {MIN_MPP} to {MAX_MPP}; "
        f"if the pixels are sound, {remedy}"
    )
