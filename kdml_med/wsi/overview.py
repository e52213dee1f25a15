"""The picture that lets a person check a tiling at a glance: the slide with its grid drawn on."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw

from kdml_med.storage.files import write_atomically
from kdml_med.wsi.grid import TileGrid
from kdml_med.wsi.tissue import Overview

THUMBNAILS_DIR = "thumbnails"
UNREADABLE = "unreadable"

COLOURS: dict[str | None, tuple[int, int, int]] = {
    None: (0, 150, 60),
    "tissue": (185, 185, 185),
    "background": (240, 160, 0),
    "pen": (190, 0, 190),
    "blur": (0, 90, 255),
    UNREADABLE: (230, 0, 0),
}
"""Outline of a tile by the reason why it was left out; None is kept."""

_LONGEST_PX = 1600
_SHORTEST_TILE_PX = 6
_LEGEND_PX = 18


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
        overview: of the slide.
        grid: of the tiles.
        reasons: for tile origins (x_l0, y_l0), why the tile was left out, None when kept. Tiles that are absent (not
            drawn by a limit) get no outline.
    """
    height, width = overview.pixels.shape[:2]
    side_px = grid.size_l0 / overview.downsample
    scale = min(_LONGEST_PX / max(width, height), max(1.0, _SHORTEST_TILE_PX / side_px))
    if max(width, height) < _LONGEST_PX / 4:
        scale = max(scale, _LONGEST_PX / 4 / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = Image.fromarray(overview.pixels).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    canvas = Image.new("RGB", (max(size[0], 420), size[1] + _LEGEND_PX), "white")
    canvas.paste(picture, (0, _LEGEND_PX))
    draw = ImageDraw.Draw(canvas)
    to_px = scale / overview.downsample
    # Kept tiles last: they share outlines with their neighbours and should win.
    for (x_l0, y_l0), reason in sorted(reasons.items(), key=lambda item: (item[1] is None, item[0])):
        left, top = x_l0 * to_px, y_l0 * to_px + _LEGEND_PX
        side = grid.size_l0 * to_px - 1
        draw.rectangle((left, top, left + side, top + side), outline=COLOURS[reason])
    x = 4
    for reason, colour in COLOURS.items():
        word = reason or "kept"
        count = sum(1 for found in reasons.values() if found == reason)
        draw.text((x, 3), f"{word} {count}", fill=colour)
        x += 6 * len(f"{word} {count}") + 12
    stream = io.BytesIO()
    canvas.save(stream, "JPEG", quality=85)
    write_atomically(out_dir / THUMBNAILS_DIR / f"{slide_id}.jpg", stream.getvalue())
