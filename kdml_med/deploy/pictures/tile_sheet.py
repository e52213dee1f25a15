"""The tiles that a network is surest about, to look at: contact sheets of the highest and the lowest."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from kdml_med.deploy.pictures.lettering import FAINT, INK, PAPER, line_height, wrap, write_lines
from kdml_med.deploy.pictures.raster import HEAT, colour_of
from kdml_med.deploy.wording import three_digits
from kdml_med.storage.files import naming, write_if_changed
from kdml_med.words import GENERATED_PICTURE, RESEARCH_ONLY

TOP_FILE = "tiles_top.png"
BOTTOM_FILE = "tiles_bottom.png"
SHEET_TILES = 12
"""On each sheet, unless others are asked for."""

_COLUMNS = 3
_CELL_PX = 224
_MARGIN_PX, _GAP_PX = 24, 16
_TITLE_PX, _TEXT_PX = 22, 15
_COVER = 0.6


@dataclass(frozen=True, kw_only=True)
class SheetTile:
    """A tile on a contact sheet.

    Attributes:
        image: uint8, [height, width, 3], RGB.
        probability: of the positive class.
        x_l0: left edge, level-0 pixels.
        y_l0: upper edge, level-0 pixels.
        cam: float, [rows, columns], 0..1, see ``kdml_med.deploy.pictures.grad_cam``: what speaks for the positive
            class in the highest tiles, and for the other one in the lowest; None without one.
    """

    image: npt.NDArray[np.uint8]
    probability: float
    x_l0: float
    y_l0: float
    cam: npt.NDArray[np.float32] | None = None


def choose_tiles(probabilities: npt.NDArray[Any], at_most: int = SHEET_TILES) -> tuple[list[int], list[int]]:
    """Positions of the highest and of the lowest probabilities, the outermost first; no tile is among both.

    Args:
        probabilities: one for each tile; of equal ones the first comes first.
        at_most: how many of each.
    """
    order = np.argsort(-probabilities, kind="stable")
    count = min(at_most, (len(order) + 1) // 2)
    rest = np.sort(order[count:])  # so that of equal ones the first comes first here, too
    lowest = rest[np.argsort(probabilities[rest], kind="stable")]
    return order[:count].tolist(), lowest[:at_most].tolist()


def write_tile_sheets(
    folder: Path,
    slide_id: str,
    top: Sequence[SheetTile],
    bottom: Sequence[SheetTile],
    *,
    classes: Sequence[str],
    network: str,
    synthetic: bool = False,
) -> list[str]:
    """Write tiles_top.png and tiles_bottom.png; a sheet without tiles is not written, and an older one goes.

    Args:
        folder: made when absent.
        slide_id: any text.
        top: tiles with the highest probabilities, the highest first.
        bottom: tiles with the lowest probabilities, the lowest first.
        classes: names; the last one is the positive class.
        network: whose probabilities these are.
        synthetic: the slide or the training data are generated.

    Returns:
        Names of the files that were written.

    Raises:
        InputError: a file cannot be written.
    """
    written = []
    for name, word, tiles, looked_for in ((TOP_FILE, "Highest", top, -1), (BOTTOM_FILE, "Lowest", bottom, 0)):
        if not tiles:
            with naming(folder / name):
                (folder / name).unlink(missing_ok=True)
            continue
        facts = f"{word} probabilities of {classes[-1]} · network: {network}"
        notes = [facts, _explain(tiles, classes[looked_for]), f"{RESEARCH_ONLY}."]
        sheet = _draw_sheet(slide_id, notes, tiles, synthetic)
        sink = io.BytesIO()
        sheet.save(sink, "PNG", compress_level=1)
        write_if_changed(folder / name, sink.getvalue())
        written.append(name)
    return written


def _explain(tiles: Sequence[SheetTile], looked_for: str) -> str:
    if all(tile.cam is None for tile in tiles):
        return "Places: x, y of the upper left corner, level-0 pixels."
    return (
        f"Right of each tile: Grad-CAM, yellow where most speaks for {looked_for}, each tile on a scale of its own, "
        "violet all over where nothing does; it shows where a network looked, not what is there. Places: x, y of the "
        "upper left corner, level-0 pixels."
    )


def _draw_sheet(slide_id: str, notes: Sequence[str], tiles: Sequence[SheetTile], synthetic: bool) -> Image.Image:
    pair = 1 + any(tile.cam is not None for tile in tiles)
    columns = min(_COLUMNS, len(tiles)) if pair == 2 else min(2 * _COLUMNS, len(tiles))
    cell_width, cell_height = pair * _CELL_PX, _CELL_PX + line_height(_TEXT_PX) + 4
    width = max(2 * (2 * _CELL_PX + _GAP_PX), columns * (cell_width + _GAP_PX) - _GAP_PX)
    head = [(wrap(slide_id, _TITLE_PX, width, bold=True), _TITLE_PX, True)]
    head += [(wrap(note, _TEXT_PX, width, lines=3), _TEXT_PX, False) for note in notes]
    head += [(wrap(GENERATED_PICTURE, _TEXT_PX, width, bold=True), _TEXT_PX, True)] if synthetic else []
    head_px = sum(len(lines) * line_height(size) for lines, size, _ in head)
    rows = -(-len(tiles) // columns)
    height = 2 * _MARGIN_PX + head_px + rows * (cell_height + _GAP_PX)
    canvas = Image.new("RGB", (width + 2 * _MARGIN_PX, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    y = _MARGIN_PX
    for lines, size, bold in head:
        y = write_lines(draw, (_MARGIN_PX, y), lines, size, bold=bold, fill=INK if bold else FAINT)
    for number, tile in enumerate(tiles):
        left = _MARGIN_PX + number % columns * (cell_width + _GAP_PX)
        top = y + _GAP_PX + number // columns * (cell_height + _GAP_PX)
        shown = _fitted(tile.image)
        canvas.paste(shown, (left, top))
        if tile.cam is not None:
            canvas.paste(_overlaid(shown, tile.cam), (left + _CELL_PX, top))
        text = f"{three_digits(tile.probability)}   x {tile.x_l0:,.0f}  y {tile.y_l0:,.0f}"
        lines = wrap(text, _TEXT_PX, cell_width, lines=1)
        write_lines(draw, (left, top + _CELL_PX + 3), lines, _TEXT_PX)
    return canvas


def _fitted(image: npt.NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(image).resize((_CELL_PX, _CELL_PX), Image.Resampling.BICUBIC)


def _overlaid(shown: Image.Image, cam: npt.NDArray[np.float32]) -> Image.Image:
    """The tile in grey, coloured by what spoke for the class; the more, the less grey."""
    grey = np.asarray(shown.convert("L").convert("RGB"), np.float32)
    evidence = Image.fromarray(cam.astype(np.float32)).resize(shown.size, Image.Resampling.BILINEAR)
    values = np.clip(np.asarray(evidence), 0, 1)
    mixed = grey * (1 - _COVER) + colour_of(values, HEAT) * _COVER
    return Image.fromarray(np.rint(mixed).astype(np.uint8))
