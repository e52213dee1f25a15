"""The picture that lets a person check a tiling at a glance: the slide with its grid drawn on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageDraw, ImageFont

from kdml_med.pixels import resize
from kdml_med.storage.files import write_atomically
from kdml_med.wsi.grid import TileGrid
from kdml_med.wsi.slide import Pixels
from kdml_med.wsi.tissue import Overview

THUMBNAILS_DIR = "thumbnails"
UNREADABLE = "unreadable"
NOT_DRAWN = "limit"
"""Tiles with enough tissue that a limit on tiles left out."""

DETAIL_PX = 1000
"""Of the longer side, what a thumbnail is drawn from where the slide has as much."""
_LONGEST_PX = 1600


@dataclass(frozen=True)
class _Mark:
    """How tiles of one kind are outlined, and what the legend calls them."""

    words: str
    colour: tuple[int, int, int]


MARKS: dict[str | None, _Mark] = {
    "tissue": _Mark("too little tissue", (120, 120, 120)),
    NOT_DRAWN: _Mark("not drawn (--limit-tiles)", (0, 0, 0)),
    "background": _Mark("too much glass", (225, 125, 0)),
    "pen": _Mark("ink", (190, 0, 190)),
    "blur": _Mark("out of focus", (0, 80, 255)),
    UNREADABLE: _Mark("unreadable", (225, 0, 0)),
    None: _Mark("kept", (0, 140, 50)),
}
"""Of a tile by the reason why it was left out, None where it was kept; later ones are drawn over earlier ones."""

_SHORTEST_TILE_PX = 12
_FONT_PX, _LINE_PX, _SWATCH_PX, _GAP_PX = 18, 27, 15, 22
_LEAST_WIDTH_PX = 520
_WIDE_PX = 30  # from so long sides on, outlines of tiles are thicker


def write_thumbnail(
    out_dir: Path,
    slide_id: str,
    overview: Overview,
    grid: TileGrid,
    reasons: Mapping[tuple[int, int], str | None],
) -> None:
    """Draw the tiles of a slide on its overview and write thumbnails/<slide_id>.jpg.

    Args:
        out_dir: dataset folder.
        slide_id: names the file.
        overview: of the slide; a finer one than is drawn is reduced.
        grid: of the tiles.
        reasons: for tile origins (x_l0, y_l0), why the tile was left out, a key of ``MARKS``.
    """
    height, width = overview.pixels.shape[:2]
    # Not enlarged, but for tiles that could not be told apart.
    side_px = grid.size_l0 / overview.downsample
    scale = min(_LONGEST_PX / max(width, height), max(1.0, _SHORTEST_TILE_PX / side_px))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    legend = _draw_legend(Counter(reasons.values()), max(size[0], _LEAST_WIDTH_PX))
    canvas = np.full((legend.height + size[1], legend.width, 3), 255, np.uint8)
    canvas[: legend.height] = np.asarray(legend)
    picture = canvas[legend.height :, : size[0]]
    picture[:] = resize(overview.pixels, *size)
    to_px = scale / overview.downsample
    thick = 1 + round(min(2.0, grid.size_l0 * to_px / _WIDE_PX))
    for reason, mark in MARKS.items():
        lines = 1 if reason == "tissue" else thick  # the many tiles of bare glass stay in the background
        for x_l0, y_l0 in sorted(origin for origin, found in reasons.items() if found == reason):
            left, top = round(x_l0 * to_px), round(y_l0 * to_px)
            right = max(left, round((x_l0 + grid.size_l0) * to_px) - 1)
            bottom = max(top, round((y_l0 + grid.size_l0) * to_px) - 1)
            _outline(picture, (left, top, right, bottom), mark.colour, lines)
    # Without subsampling: it would halve the resolution of the coloured lines.
    data = simplejpeg.encode_jpeg(canvas, 85, "RGB", "444")
    write_atomically(out_dir / THUMBNAILS_DIR / f"{slide_id}.jpg", data)


def _outline(picture: Pixels, box: tuple[int, int, int, int], colour: tuple[int, int, int], lines: int) -> None:
    """Draw the edges of a rectangle, its corners included, so many pixels thick to the inside."""
    left, top, right, bottom = box
    for inset in range(lines):
        if right - inset >= left + inset and bottom - inset >= top + inset:
            cv2.rectangle(picture, (left + inset, top + inset), (right - inset, bottom - inset), colour)


def _draw_legend(counts: Mapping[str | None, int], width: int) -> Image.Image:
    """What each colour means and how many tiles have it, in dark letters; as many lines as it takes."""
    font = ImageFont.load_default(size=_FONT_PX)
    places, x, y = [], 8, 4
    for reason in sorted(MARKS, key=lambda one: one is not None):
        count = counts.get(reason, 0)
        if reason is not None and not count:
            continue
        text = f"{MARKS[reason].words} {count:,}"
        taken = _SWATCH_PX + 6 + round(font.getlength(text))
        if x > 8 and x + taken > width - 8:
            x, y = 8, y + _LINE_PX
        places.append((x, y, MARKS[reason].colour, text))
        x += taken + _GAP_PX
    legend = Image.new("RGB", (width, y + _LINE_PX + 4), "white")
    draw = ImageDraw.Draw(legend)
    for x, y, colour, text in places:
        draw.rectangle((x, y + 3, x + _SWATCH_PX, y + 3 + _SWATCH_PX), outline=colour, width=3)
        draw.text((x + _SWATCH_PX + 6, y), text, fill=(20, 20, 20), font=font)
    return legend
