"""What bare glass looks like on a slide: measured there, since scanners tint it and leave it grey."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from kdml_med.wsi.slide import Pixels

Colour = npt.NDArray[np.float32]
"""float, [3]; red, green, blue in grey levels."""

Places = npt.NDArray[np.int64]

Chosen = npt.NDArray[np.bool_]

Channel = npt.NDArray[np.float32]
Channels = Sequence[Channel]
"""float, […] each; red, green, blue in grey levels."""

NEAR_WHITE: Colour = np.array([247.0, 247.0, 247.0], np.float32)
"""Stands for the glass of a picture that shows too little of it to be measured."""

AS_BRIGHT = 0.97
"""What lets through this share of the light that the glass does is no darker than glass."""

_FLAT = 8  # grey levels between neighbours; glass has no texture, tissue has at the overview's resolution
_DARKEST = 150.0  # mean over the channels; darker even areas are the scanner's border or ink
_FILL = 254  # what is at least so white in every channel was filled in by the scanner
_SAME = 6  # grey levels in each channel around the middle of a colour
_BIN = 4  # grey levels
_BLOCK_ROWS = 64  # of the overview that are looked at a time, so that memory stays small beside it
_LEAST_SHARE = 0.05  # of the slide: less glass than that cannot add many tiles, and may be something else
_MOST_COLOURS = 6
# Stain leaves green the weakest channel. A pink cast up to the first is believed of the brightest even colour; beside
# it, mucus and pale stroma can be even too, so a second colour of glass may hardly have one.
_CAST_OF_BRIGHTEST, _CAST_OF_OTHERS = 24.0, 6.0


@dataclass(frozen=True)
class Glass:
    """One colour of bare glass.

    Attributes:
        colour: middle of it.
        chroma_noise: spread between the channels, relative to ``colour``, that its pixels stay under; grey levels.
    """

    colour: Colour
    chroma_noise: float = 0.0

    @property
    def brightness(self) -> float:
        """Mean over the channels, grey levels."""
        return float(self.colour.mean())


def measure_glass(pixels: Pixels, usable: Chosen | None = None) -> list[Glass]:
    """The colours of bare glass on an overview: even, bright areas that cover at least a twentieth of it.

    There can be several, where a slide was scanned in parts. Stain is told from a tint by green being the weakest.

    Args:
        pixels: uint8, [height, width, 3], RGB, about 8 µm per pixel.
        usable: bool, [height, width]; where the pixels are those of the slide. None for everywhere.

    Returns:
        Brightest first; empty where too little glass is seen.
    """
    area, even = 0, np.empty(pixels.shape[:2], np.bool_)
    for top in range(0, len(pixels), _BLOCK_ROWS):
        # With a row above and below, which flatness looks at.
        start = max(0, top - 1)
        block, own = slice(start, top + _BLOCK_ROWS + 1), slice(top - start, top - start + _BLOCK_ROWS)
        counted, flat = _judge(pixels[block], None if usable is None else usable[block])
        area += int(np.count_nonzero(counted[own]))
        even[top : top + _BLOCK_ROWS] = flat[own]
    least = max(1.0, _LEAST_SHARE * area)
    found: list[Glass] = []
    while np.count_nonzero(even) >= least and len(found) < _MOST_COLOURS:
        middle = _densest(pixels, even)
        first = np.clip(np.ceil(middle - _SAME), 0, 255).astype(np.uint8)
        last = np.clip(np.floor(middle + _SAME), 0, 255).astype(np.uint8)
        colours, counts = _count_colours(pixels, even, first, last)
        if counts.sum() < least:
            break
        colour: Colour = np.array([_quantile(colours[:, channel], counts, 0.5) for channel in range(3)], np.float32)
        spread = chroma([colours[:, channel].astype(np.float32) for channel in range(3)], colour)
        found.append(Glass(colour, _quantile(spread, counts, 0.995)))
    found.sort(key=lambda glass: -glass.brightness)
    casts = [_CAST_OF_BRIGHTEST] + [_CAST_OF_OTHERS] * len(found)
    return [glass for glass, cast in zip(found, casts, strict=False) if _pink_cast(glass.colour) <= cast]


def _judge(pixels: Pixels, usable: Chosen | None) -> tuple[Chosen, Chosen]:
    """Which pixels count, and which of them are even and bright."""
    red, green, blue = cv2.split(pixels)
    counted = np.minimum(np.minimum(red, green), blue) < _FILL
    if usable is not None:
        counted &= usable
    light = np.add(red, green, dtype=np.uint16) + blue
    return counted, counted & (light >= 3 * _DARKEST) & _is_flat(pixels)


def split(pixels: Pixels) -> Channels:
    """Red, green and blue, [height, width] each."""
    return [channel.astype(np.float32) for channel in cv2.split(pixels)]


def mean(channels: Channels) -> Channel:
    """Mean over the channels."""
    red, green, blue = channels
    total: Channel = (red + green + blue) / np.float32(3)
    return total


def chroma(channels: Channels, glass: Colour) -> Channel:
    """Spread between the channels of what is left of the light that the glass lets through, in grey levels.

    Args:
        channels: float, […] each; red, green, blue.
        glass: its colour.

    Returns:
        float, […].
    """
    red, green, blue = (channel * scale for channel, scale in zip(channels, glass.mean() / glass, strict=True))
    spread: Channel = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    return spread


def _is_flat(pixels: Pixels) -> Chosen:
    """Whether all nine pixels around a pixel are alike, channel by channel."""
    square = np.ones((3, 3), np.uint8)
    highest, lowest = (find(pixels, square, borderType=cv2.BORDER_REPLICATE) for find in (cv2.dilate, cv2.erode))
    red, green, blue = cv2.split(cv2.subtract(highest, lowest))
    flat: Chosen = np.maximum(np.maximum(red, green), blue) <= _FLAT
    return flat


def _count_colours(pixels: Pixels, chosen: Chosen, first: Pixels, last: Pixels) -> tuple[Pixels, Places]:
    """Different colours of chosen pixels, uint8, [colours, 3], between two, and how often each is there.

    Those pixels are chosen no more.
    """
    side = 2 * _SAME + 1
    counts = np.zeros(side**3, np.int64)
    for top in range(0, len(pixels), _BLOCK_ROWS):
        rows = slice(top, top + _BLOCK_ROWS)
        near = chosen[rows] & cv2.inRange(pixels[rows], tuple(first.tolist()), tuple(last.tolist())).view(np.bool_)
        counts += _count_boxes(pixels[rows][near], side, first=first)
        chosen[rows] &= ~near
    (there,) = np.nonzero(counts)
    own = np.stack([there // side**2, there // side % side, there % side], axis=1) + first
    return own.astype(np.uint8), counts[there]


def _count_boxes(colours: Pixels, side: int, *, first: Pixels | int = 0, bin_size: int = 1) -> Places:
    """How many colours, [colours, 3], are in each of ``side``³ boxes from the darkest on; int64, [side³]."""
    red, green, blue = ((colours.astype(np.int32) - first) // bin_size).T
    return np.bincount((red * side + green) * side + blue, minlength=side**3)


def _quantile(values: npt.NDArray[np.generic], counts: Places, share: float) -> float:
    """Quantile of values that are there several times, as ``numpy.quantile`` gives it for all of them in a row."""
    order = np.argsort(values, kind="stable")
    ends = np.cumsum(counts[order])
    place = share * float(ends[-1] - 1)
    below = int(place)
    low, high = (
        float(values[order[np.searchsorted(ends, at, side="right")]])
        for at in (below, min(below + 1, int(ends[-1]) - 1))
    )
    return low + (high - low) * (place - below)


def _densest(pixels: Pixels, chosen: Chosen) -> Colour:
    """Middle of the fullest of equal boxes of the colours of chosen pixels."""
    side = 256 // _BIN
    counts = np.zeros(side**3, np.int64)
    for top in range(0, len(pixels), _BLOCK_ROWS):
        rows = slice(top, top + _BLOCK_ROWS)
        counts += _count_boxes(pixels[rows][chosen[rows]], side, bin_size=_BIN)
    fullest = int(counts.argmax())
    box = np.array([fullest // side**2, fullest // side % side, fullest % side], np.float32)
    return np.asarray((box + 0.5) * _BIN, np.float32)


def _pink_cast(colour: Colour) -> float:
    red, green, blue = colour
    return float(min(red, blue) - green)
