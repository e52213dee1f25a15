"""Square parts of a frame: around its polyps, and on mucosa beside them. Pure geometry, no files.

Every window lies inside the frame. Sums over all windows of a size come from one summed-area table, so that places are
drawn from all that are allowed, and a place is found wherever there is one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdml_med.colonoscopy.boxes import Box
from kdml_med.colonoscopy.field import Mask

_IN_FIELD = 0.98  # share of a window that has to lie in the field of view
_SHARED = 0.25  # share of a mucosa window that others of the frame may have covered
_WIDEST = 1.3  # factor to the side of a polyp's further windows, at most
_SHRINK = 0.8  # factor to the side of a mucosa window that has no place

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """A square part of a frame.

    Attributes:
        x: left edge, pixels.
        y: top edge.
        side: pixels.
    """

    x: int
    y: int
    side: int

    @property
    def part(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return np.s_[self.y : self.y + self.side, self.x : self.x + self.side]


def polyp_side(box: Box, margin: float, smallest: int) -> int:
    """Side of the window around a polyp, pixels, before the frame limits it.

    Args:
        box: of the polyp.
        margin: added on each side, as a share of the box's longer side.
        smallest: side that no window falls short of.
    """
    return max(smallest, math.ceil((1 + 2 * margin) * max(box[2] - box[0], box[3] - box[1])))


def polyp_windows(
    box: Box, field: Mask, *, count: int, margin: float, smallest: int, generator: np.random.Generator
) -> list[Window]:
    """Windows that hold a polyp whole, or lie in it where the frame is too narrow for that.

    The first is as near to the middle of the box as the field allows; others are up to 1.3 times as wide and anywhere
    around it. A window leaves the field only where every one around the box does, and then as little as any.

    Args:
        box: in pixels of the frame.
        field: [height, width], see ``kdml_med.colonoscopy.field.field_mask``.
        count: how many.
        margin: see ``polyp_side``.
        smallest: likewise.
        generator: of the further ones.
    """
    inside = _summed(field)
    side = polyp_side(box, margin, smallest)
    found = []
    for number in range(count):
        own = min(side if number == 0 else round(side * generator.uniform(1, _WIDEST)), *field.shape)
        columns = _reach(box[0], box[2], own, field.shape[1])
        rows = _reach(box[1], box[3], own, field.shape[0])
        shares = _counts(inside, own)[rows, columns]
        ys, xs = np.nonzero(shares >= min(int(shares.max()), _IN_FIELD * own * own))
        xs, ys = xs + columns.start, ys + rows.start
        if number == 0:
            away = (2 * xs + own - box[0] - box[2]) ** 2 + (2 * ys + own - box[1] - box[3]) ** 2
            chosen = int(np.argmin(away))
        else:
            chosen = int(generator.integers(len(xs)))
        found.append(Window(int(xs[chosen]), int(ys[chosen]), own))
    return found


def field_share(window: Window, field: Mask) -> float:
    """Share of a window that lies in the field of view, 0..1."""
    return float(field[window.part].mean())


def mucosa_windows(
    boxes: Sequence[Box],
    field: Mask,
    *,
    like: Sequence[tuple[int, float]],
    count: int,
    smallest: int,
    generator: np.random.Generator,
) -> list[Window]:
    """Windows that touch no box.

    Each takes side and share in the field from a window around a polyp, so that neither size nor dark corners tell
    which is which. It shrinks by a fifth until it has a place; where it has none, one within the field is looked for.

    Args:
        boxes: of all polyps of the frame.
        field: [height, width].
        like: sides, pixels, and shares in the field to draw from.
        count: how many at most.
        smallest: side below which there is no window.
        generator: of sides and places.

    Returns:
        Fewer than ``count`` where the frame has no room for more.
    """
    polyps, taken = np.zeros_like(field), np.zeros_like(field)
    for xmin, ymin, xmax, ymax in boxes:
        polyps[math.floor(ymin) : math.ceil(ymax), math.floor(xmin) : math.ceil(xmax)] = True
    forbidden, inside = _summed(polyps), _summed(field)
    found: list[Window] = []
    for _ in range(count):
        side, share = like[int(generator.integers(len(like)))]
        covered = _summed(taken)
        for wanted in dict.fromkeys((share, 1.0)):
            window = _find_place(forbidden, inside, covered, side, smallest, wanted, generator)
            if window is not None:
                found.append(window)
                taken[window.part] = True
                break
    return found


def _find_place(
    forbidden: Counts,
    inside: Counts,
    covered: Counts,
    side: int,
    smallest: int,
    share: float,
    generator: np.random.Generator,
) -> Window | None:
    """A place for the largest window that has one, from the sums of what is forbidden, in the field, and covered."""
    side = min(side, *(length - 1 for length in forbidden.shape))
    while side >= smallest:
        area = side * side
        free = (
            (_counts(forbidden, side) == 0)
            & (np.abs(_counts(inside, side) - share * area) <= (1 - _IN_FIELD) * area)
            & (_counts(covered, side) <= _SHARED * area)
        )
        places = np.flatnonzero(free)
        if len(places):
            y, x = divmod(int(places[generator.integers(len(places))]), free.shape[1])
            return Window(x, y, side)
        side = int(side * _SHRINK)
    return None


def _reach(low: float, high: float, side: int, limit: int) -> slice:
    """Where windows may begin along one axis: those that hold the range, or lie in it, within the frame."""
    first, last = sorted((math.ceil(high) - side, math.floor(low)))
    first, last = (min(max(place, 0), limit - side) for place in (first, last))
    return slice(first, last + 1)


def _summed(mask: Mask) -> Counts:
    """Pixels of a mask above and left of every corner, [height + 1, width + 1]."""
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int64)
    sums[1:, 1:] = mask.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    return sums


def _counts(sums: Counts, side: int) -> Counts:
    """Pixels of the mask in every window of a side, by its upper left corner."""
    counts: Counts = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    return counts
