"""Example tiles with the answers of all networks, for TensorBoard."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from kdml_med.keys import NetworkName, network_order
from kdml_med.report.figures import INK, label_text

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

_TITLE_LETTERS, _TEXT_LETTERS = 28, 36
_TILE_PX, _MARGIN_PX, _TITLE_PX, _TEXT_PX = 240, 10, 18, 15
_WRONG = "firebrick"


def tile_figures(dataset: Any, predictions: pd.DataFrame, *, count: int = 8) -> dict[str, Pixels]:
    """Example tiles with their label and every network's probability of the positive class.

    Half are spread evenly over the split and stay the same from epoch to epoch; the others are the tiles on which the
    ensemble is most wrong now. A wrong decision has a red title.

    Args:
        dataset: gives ``read(index)`` (uint8 [height, width, 3]) and ``classes``; samples in the order of the tiles.
        predictions: columns of ``PredictionColumn``.
        count: number of tiles.

    Returns:
        uint8, [height, width, 3], by tag.
    """
    # Rows of one network stand in loading order, which is the order of the dataset.
    wide = {str(name): rows.reset_index(drop=True) for name, rows in predictions.groupby("network", sort=False)}
    ensemble = wide[NetworkName.ENSEMBLE.value]
    fixed = np.linspace(0, len(ensemble) - 1, min(count // 2, len(ensemble))).round().astype(int).tolist()
    error = (ensemble["probability"] - ensemble["label"]).abs().where(ensemble["label"] >= 0, 0.0)
    worst = [int(index) for index in error.sort_values(ascending=False, kind="stable").index if index not in fixed]
    tags = {f"val_tiles_spread/{number}": index for number, index in enumerate(dict.fromkeys(fixed), start=1)}
    tags |= {f"val_tiles_worst/{number}": index for number, index in enumerate(worst[: count - len(tags)], start=1)}
    names = sorted(wide, key=network_order)
    positive = dataset.classes[-1] if dataset.classes else "positive"
    figures = {}
    for tag, index in tags.items():
        label = int(ensemble["label"][index])
        truth = dataset.classes[label] if label >= 0 else "no label"
        about = textwrap.wrap(label_text(f"probability of {positive}"), _TEXT_LETTERS)
        lines = [*about, *(f"{name:<10}{wide[name]['probability'][index]:.2f}" for name in names)]
        figures[tag] = _tile_card(
            dataset.read(index),
            title=f"{label_text(truth)} · {label_text(str(ensemble['patient_id'][index]))}",
            lines=lines,
            wrong=label >= 0 and bool(error[index] > 0.5),
        )
    return figures


def _tile_card(tile: Pixels, *, title: str, lines: Sequence[str], wrong: bool) -> Pixels:
    """A tile below its title and above lines of text, as wide as TensorBoard's cards of images.

    Drawn by Pillow: a figure of matplotlib takes a tenth of a second, and there are some in every epoch.
    """
    titles = textwrap.wrap(title, _TITLE_LETTERS)
    height, width = tile.shape[:2]
    scale = _TILE_PX / max(height, width)
    picture = Image.fromarray(tile).resize(
        (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BICUBIC
    )
    top = _MARGIN_PX + _TITLE_PX * len(titles) + 4
    below = top + picture.height + 6
    card = Image.new("RGB", (_TILE_PX + 2 * _MARGIN_PX, below + _TEXT_PX * len(lines) + _MARGIN_PX), "white")
    card.paste(picture, (_MARGIN_PX + (_TILE_PX - picture.width) // 2, top))
    draw = ImageDraw.Draw(card)
    colour, font = _WRONG if wrong else INK, _font("DejaVuSans.ttf", 13)
    for number, text in enumerate(titles):
        left = (card.width - draw.textlength(text, font=font)) / 2
        draw.text((left, _MARGIN_PX + _TITLE_PX * number), text, fill=colour, font=font)
    for number, text in enumerate(lines):
        draw.text((_MARGIN_PX, below + _TEXT_PX * number), text, fill=INK, font=_font("DejaVuSansMono.ttf", 11))
    return np.asarray(card)


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """One of those that matplotlib brings."""
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts/ttf" / name), size)
