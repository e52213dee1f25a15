"""Text on pictures: a typeface that knows most scripts, and lines that fit."""

from __future__ import annotations

import functools
from pathlib import Path

import matplotlib as mpl
from matplotlib.ft2font import FT2Font
from PIL import ImageDraw, ImageFont

from kdml_med.words import printable

INK, FAINT = (34, 34, 34), (92, 92, 92)
PAPER = (255, 255, 255)
_FOLDER = Path(mpl.get_data_path()) / "fonts/ttf"


@functools.cache
def font(size_px: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib.

    Args:
        size_px: height of a line, roughly.
        bold: for titles.
    """
    return ImageFont.truetype(_path(bold), size_px)


def shown(text: str) -> str:
    """A text in one line; letters that the typeface lacks are written by their numbers, not as boxes."""
    known = _known_letters()
    return "".join(
        letter if ord(letter) in known else letter.encode("unicode_escape").decode() for letter in printable(text)
    )


def wrap(text: str, size_px: int, width: int, *, bold: bool = False, lines: int = 2) -> list[str]:
    """A text in lines that fit, broken anywhere: names of slides may have no spaces.

    Args:
        text: any; see ``shown``.
        size_px: see ``font``.
        width: of a line, pixels.
        bold: see ``font``.
        lines: at most; the middle of a longer text is left out, because beginning and end tell names apart.
    """
    whole, letters = shown(text), font(size_px, bold=bold)
    kept = len(whole)
    while len(found := _break(_elided(whole, kept), letters, width)) > lines:
        kept = min(kept - 1, kept * (lines + 1) // len(found))
    return found


def write_lines(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    lines: list[str],
    size_px: int,
    *,
    bold: bool = False,
    fill: tuple[int, int, int] = INK,
) -> int:
    """Write lines below each other.

    Args:
        draw: on which picture.
        place: (x, y) of the upper left corner, pixels.
        lines: see ``wrap``.
        size_px: see ``font``.
        bold: see ``font``.
        fill: colour.

    Returns:
        y below the last line.
    """
    x, y = place
    for line in lines:
        draw.text((x, y), line, fill=fill, font=font(size_px, bold=bold))
        y += line_height(size_px)
    return y


def line_height(size_px: int) -> int:
    """From one line to the next, pixels."""
    return round(1.35 * size_px)


def _elided(text: str, kept: int) -> str:
    """So many letters of a text, from both ends."""
    return text if kept >= len(text) else f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"


def _break(text: str, letters: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """As many lines as it takes; after a space or a separator where there is one in the second half of a line."""
    lines = []
    while text:
        count = len(text)
        while count > 1 and letters.getlength(text[:count]) > width:
            count = max(1, min(count - 1, int(count * width / letters.getlength(text[:count])) + 1))
        if count < len(text):
            places = [place + 1 for place, letter in enumerate(text[:count]) if letter in " -_./·"]
            count = places[-1] if places and places[-1] > count // 2 else count
        lines.append(text[:count].rstrip())
        text = text[count:].lstrip()
    return lines or [""]


def _path(bold: bool) -> str:
    return str(_FOLDER / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"))


@functools.cache
def _known_letters() -> frozenset[int]:
    return frozenset(FT2Font(_path(False)).get_charmap()) & frozenset(FT2Font(_path(True)).get_charmap())
