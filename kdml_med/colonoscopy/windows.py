"""Square parts of a frame: around its polyps, and on mucosa beside them, in pairs. Pure geometry, no files.

Every window lies inside the frame. Sums over all windows of a size come from one summed-area table, so that places are
drawn from all that are allowed, and a place is found wherever there is one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdml_med.colonoscopy.boxes import Box
from kdml_med.colonoscopy.field import Mask

_IN_FIELD = 0.98  # share of a window that has to lie in the field of view
_SHARED = 0.25  # share of a mucosa window that others of the frame may have covered
_WIDEST = 1.3  # factor to the side of a polyp's further windows, at most
_SHRINK = 0.8  # factor to the side of windows that have no place

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


@dataclass(frozen=True)
class Pair:
    """A window of a polyp, and one as large on mucosa of the same frame.

    Attributes:
        polyp: number of the box.
        number: of the window among those of its polyp.
        around: holds the polyp whole, or lies in it.
        beside: touches no box.
    """

    polyp: int
    number: int
    around: Window
    beside: Window


def paired_windows(
    boxes: Sequence[Box],
    field: Mask,
    *,
    per_polyp: int,
    margin: float,
    smallest: int,
    generator: np.random.Generator,
) -> list[Pair]:
    """Windows of polyps, each with one on mucosa of the same side and, where there is one, the same share in the field.

    So neither size nor sharpness nor dark corners tell which is which. The first window of a polyp is as near to the
    middle of its box as the field allows; others are up to 1.3 times as wide and anywhere around it. Both windows of a
    pair shrink by a fifth until there is room for the one on mucosa: the other one then lies in its polyp.

    Args:
        boxes: of all polyps of the frame.
        field: [height, width], see ``kdml_med.colonoscopy.field.field_mask``.
        per_polyp: pairs of each polyp, at most.
        margin: see ``polyp_side``.
        smallest: side below which there is no window.
        generator: of sides and places.

    Returns:
        Fewer where the frame has no room for more.
    """
    mucosa = _Mucosa(boxes, field)
    found = []
    for polyp, box in enumerate(boxes):
        for number in range(per_polyp):
            side = polyp_side(box, margin, smallest)
            if number:
                side = round(side * generator.uniform(1, _WIDEST))
            for own in _shrinking(min(side, *field.shape), smallest):
                around = _around(box, field, mucosa.inside, own, None if number == 0 else generator)
                beside = mucosa.find(own, field_share(around, field), generator)
                if beside is not None:
                    mucosa.take(beside)
                    found.append(Pair(polyp, number, around, beside))
                    break
    return found


def mucosa_windows(
    field: Mask, *, sides: Sequence[int], count: int, smallest: int, generator: np.random.Generator
) -> list[Window]:
    """Windows of a frame without polyps, within the field.

    Args:
        field: [height, width].
        sides: pixels, to draw from. A window shrinks by a fifth until it has a place.
        count: how many at most.
        smallest: side below which there is no window.
        generator: of sides and places.

    Returns:
        Fewer than ``count`` where the frame has no room for more.
    """
    mucosa = _Mucosa([], field)
    found = []
    for _ in range(count):
        for side in _shrinking(min(sides[int(generator.integers(len(sides)))], *field.shape), smallest):
            window = mucosa.find(side, 1.0, generator)
            if window is not None:
                mucosa.take(window)
                found.append(window)
                break
    return found


def field_share(window: Window, field: Mask) -> float:
    """Share of a window that lies in the field of view, 0..1."""
    return float(field[window.part].mean())


class _Mucosa:
    """What is free beside the polyps of a frame."""

    def __init__(self, boxes: Sequence[Box], field: Mask) -> None:
        polyps = np.zeros_like(field)
        for xmin, ymin, xmax, ymax in boxes:
            polyps[math.floor(ymin) : math.ceil(ymax), math.floor(xmin) : math.ceil(xmax)] = True
        self.forbidden, self.inside = _summed(polyps), _summed(field)
        self.taken = np.zeros_like(field)
        self.covered = _summed(self.taken)

    def find(self, side: int, share: float, generator: np.random.Generator) -> Window | None:
        """One of the places for a window of a share in the field or, where there is none, of one within it."""
        area = side * side
        free = (_counts(self.forbidden, side) == 0) & (_counts(self.covered, side) <= _SHARED * area)
        inside = _counts(self.inside, side)
        for wanted in dict.fromkeys((share, 1.0)):
            places = np.flatnonzero(free & (np.abs(inside - wanted * area) <= (1 - _IN_FIELD) * area))
            if len(places):
                y, x = divmod(int(places[generator.integers(len(places))]), free.shape[1])
                return Window(x, y, side)
        return None

    def take(self, window: Window) -> None:
        """Later windows share little with this one."""
        self.taken[window.part] = True
        self.covered = _summed(self.taken)


def _shrinking(side: int, smallest: int) -> Iterator[int]:
    while side >= smallest:
        yield side
        side = int(side * _SHRINK)


def _around(box: Box, field: Mask, inside: Counts, side: int, generator: np.random.Generator | None) -> Window:
    """A window that holds a box or lies in it: anywhere, or in its middle without a generator.

    It leaves the field only where every such window does, and then as little as any.
    """
    columns, rows = _reach(box[0], box[2], side, field.shape[1]), _reach(box[1], box[3], side, field.shape[0])
    shares = _counts(inside, side)[rows, columns]
    ys, xs = np.nonzero(shares >= min(int(shares.max()), _IN_FIELD * side * side))
    xs, ys = xs + columns.start, ys + rows.start
    if generator is not None:
        chosen = int(generator.integers(len(xs)))
    else:
        chosen = int(np.argmin((2 * xs + side - box[0] - box[2]) ** 2 + (2 * ys + side - box[1] - box[3]) ** 2))
    return Window(int(xs[chosen]), int(ys[chosen]), side)


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
