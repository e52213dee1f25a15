"""Cells of a sheet of frames: the picture, boxes on it, and two lines of text below."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from kdml_med.colonoscopy.field import Image
from kdml_med.words import printable

Colour = tuple[int, int, int]

ANNOTATED: Colour = (255, 235, 0)
BRIGHT: Colour = (235, 235, 235)
COLUMNS = 8
CELL_PX, MARGIN_PX = 240, 4
_TEXT_PX, _FONT_PX = 36, 12
_BACKGROUND, _RIM = (40, 40, 40), (0, 0, 0)


def inside(box: Sequence[float], width: int, height: int) -> list[int]:
    """First and last pixel of a box, as Pillow wants it: xmin, ymin, xmax, ymax."""
    xmin, ymin, xmax, ymax = (round(edge) for edge in box)
    left, top = min(max(xmin, 0), width - 1), min(max(ymin, 0), height - 1)
    return [left, top, max(left, min(xmax, width) - 1), max(top, min(ymax, height) - 1)]


def draw_box(draw: ImageDraw.ImageDraw, box: Sequence[int], line: int, colour: Colour) -> None:
    """Draw a box with a dark rim on both sides, which keeps it visible on bright mucosa.

    Args:
        draw: on the picture.
        box: first and last pixel, xmin, ymin, xmax, ymax.
        line: width of the line, pixels.
        colour: of the line.
    """
    left, top, right, bottom = box
    draw.rectangle([left - 1, top - 1, right + 1, bottom + 1], outline=_RIM, width=1)
    draw.rectangle([left, top, right, bottom], outline=colour, width=line)
    if right - left > 2 * line and bottom - top > 2 * line:
        draw.rectangle([left + line, top + line, right - line, bottom - line], outline=_RIM, width=1)


class Cell:
    """One frame of a sheet.

    Args:
        image: uint8, [height, width, 3].
    """

    def __init__(self, image: Image) -> None:
        picture = Pillow.fromarray(image)
        self._scale = CELL_PX / max(picture.size)
        size = (max(1, round(picture.width * self._scale)), max(1, round(picture.height * self._scale)))
        self._picture = picture.resize(size)
        self.draw = ImageDraw.Draw(self._picture)
        """On the picture alone."""

    def edges(self, box: Sequence[float]) -> list[int]:
        """Where a box of the image lies in the cell, see ``inside``."""
        return inside([side * self._scale for side in box], *self._picture.size)

    def finish(self, name: str, caption: str, colour: Colour, *, name_colour: Colour, rim: bool) -> Pillow.Image:
        """The cell with its text.

        Args:
            name: of the frame; its end is shown where there is no room for all, because it tells frames apart.
            caption: what is said of it.
            colour: of the caption and the rim.
            name_colour: of the name.
            rim: draw one around the picture.
        """
        cell = Pillow.new("RGB", (CELL_PX, CELL_PX + _TEXT_PX))
        cell.paste(self._picture, ((CELL_PX - self._picture.width) // 2, (CELL_PX - self._picture.height) // 2))
        draw, font = ImageDraw.Draw(cell), ImageFont.load_default(size=_FONT_PX)
        draw.text((3, CELL_PX + 1), _ending(printable(name), font), fill=name_colour, font=font)
        draw.text((3, CELL_PX + 17), caption, fill=colour, font=font)
        if rim:
            draw.rectangle([0, 0, CELL_PX - 1, CELL_PX - 1], outline=colour, width=2)
        return cell


def new_sheet(cells: Sequence[Pillow.Image], *, top: int = 0, least_columns: int = 1) -> Pillow.Image:
    """A sheet with its cells, row by row.

    Args:
        cells: from ``Cell.finish``, at least one.
        top: pixels that are left free above them.
        least_columns: the sheet is as wide as so many cells, at least.
    """
    columns = min(COLUMNS, max(least_columns, len(cells)))
    width, height = CELL_PX + MARGIN_PX, CELL_PX + _TEXT_PX + MARGIN_PX
    sheet = Pillow.new("RGB", (columns * width, top + -(-len(cells) // columns) * height), _BACKGROUND)
    for place, cell in enumerate(cells):
        sheet.paste(cell, (place % columns * width, top + place // columns * height))
    return sheet


def jpeg_bytes(sheet: Pillow.Image) -> bytes:
    """A sheet as a JPEG file."""
    stream = io.BytesIO()
    sheet.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def _ending(name: str, font: Any) -> str:
    while len(name) > 4 and font.getlength(name) > CELL_PX - 6:
        name = "…" + name[2:]
    return name
