"""What bare glass looks like on a slide: measured there, since scanners tint it and leave it grey."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdml_med.wsi.slide import Pixels

Colour = npt.NDArray[np.float32]
"""float, [3]; red, green, blue in grey levels."""

NEAR_WHITE: Colour = np.array([247.0, 247.0, 247.0], np.float32)
"""Stands for the glass of a picture that shows too little of it to be measured."""

AS_BRIGHT = 0.97
"""What lets through this share of the light that the glass does is no darker than glass."""

_FLAT = 8  # grey levels between neighbours; glass has no texture, tissue has at the overview's resolution
_DARKEST = 150.0  # mean over the channels; darker even areas are the scanner's border or ink
_FILL = 254  # what is at least so white in every channel was filled in by the scanner
_SAME = 6  # grey levels in each channel around the middle of a colour
_BIN = 4  # grey levels
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


def measure_glass(pixels: Pixels, usable: npt.NDArray[np.bool_] | None = None) -> list[Glass]:
    """The colours of bare glass on an overview: even, bright areas that cover at least a twentieth of it.

    There can be several, where a slide was scanned in parts. Stain is told from a tint by green being the weakest.

    Args:
        pixels: uint8, [height, width, 3], RGB, about 8 µm per pixel.
        usable: bool, [height, width]; where the pixels are those of the slide. None for everywhere.

    Returns:
        Brightest first; empty where too little glass is seen.
    """
    usable = np.ones(pixels.shape[:2], np.bool_) if usable is None else usable
    usable = usable & (pixels.min(axis=2) < _FILL)
    least = max(1.0, _LEAST_SHARE * np.count_nonzero(usable))
    colours = pixels[usable & (pixels.mean(axis=2) >= _DARKEST) & _is_flat(pixels)].astype(np.float32)
    found: list[Glass] = []
    while len(colours) >= least and len(found) < _MOST_COLOURS:
        near = np.abs(colours - _densest(colours)).max(axis=1) <= _SAME
        if np.count_nonzero(near) < least:
            break
        colour: Colour = np.median(colours[near], axis=0)
        found.append(Glass(colour, float(np.percentile(chroma(colours[near], colour), 99.5))))
        colours = colours[~near]
    found.sort(key=lambda glass: -glass.brightness)
    casts = [_CAST_OF_BRIGHTEST] + [_CAST_OF_OTHERS] * len(found)
    return [glass for glass, cast in zip(found, casts, strict=False) if _pink_cast(glass.colour) <= cast]


def chroma(pixels: npt.NDArray[np.float32], glass: Colour) -> npt.NDArray[np.float32]:
    """Spread between the channels of what is left of the light that the glass lets through, in grey levels.

    Args:
        pixels: float, […, 3], RGB.
        glass: its colour.

    Returns:
        float, […].
    """
    light = pixels * (glass.mean() / glass)
    spread: npt.NDArray[np.float32] = light.max(axis=-1) - light.min(axis=-1)
    return spread


def _is_flat(pixels: Pixels) -> npt.NDArray[np.bool_]:
    """Whether all nine pixels around a pixel are alike, channel by channel."""
    highest = lowest = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    for _ in range(2):  # once along the columns, then along the rows
        highest = np.maximum(np.maximum(highest[:-2], highest[1:-1]), highest[2:]).swapaxes(0, 1)
        lowest = np.minimum(np.minimum(lowest[:-2], lowest[1:-1]), lowest[2:]).swapaxes(0, 1)
    flat: npt.NDArray[np.bool_] = (highest - lowest).max(axis=2) <= _FLAT
    return flat


def _densest(colours: npt.NDArray[np.float32]) -> Colour:
    """Middle of the fullest of equal boxes of colours."""
    boxes = (colours / _BIN).astype(np.int64)
    side = 256 // _BIN
    fullest = int(np.bincount((boxes[:, 0] * side + boxes[:, 1]) * side + boxes[:, 2]).argmax())
    box = np.array([fullest // side**2, fullest // side % side, fullest % side], np.float32)
    return np.asarray((box + 0.5) * _BIN, np.float32)


def _pink_cast(colour: Colour) -> float:
    red, green, blue = colour
    return float(min(red, blue) - green)
