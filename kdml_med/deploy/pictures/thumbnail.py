"""A slide with its map as one small picture for a page."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pandas as pd
from PIL import Image, ImageDraw

from kdml_med.data.tiles import TileDataset
from kdml_med.deploy.pictures.dataset_maps import SlideSize, mosaic
from kdml_med.deploy.pictures.heatmap import colour_slide
from kdml_med.deploy.pictures.lettering import FAINT, PAPER, font, line_height
from kdml_med.deploy.pictures.raster import HEAT, rasterise
from kdml_med.words import GENERATED_PICTURE, RESEARCH_ONLY

MOST_TILES = 600
"""Of a slide that are read for its small picture; of more, so many that lie evenly in the order of reading."""
_PANEL_PX = 240
_GAP_PX = 8
_TEXT_PX = 16
_QUALITY = 80
WIDTH_PX = 2 * _PANEL_PX + _GAP_PX
"""Of every picture."""


def map_thumbnail(dataset: TileDataset, tiles: pd.DataFrame, slide: SlideSize, *, synthetic: bool) -> bytes:
    """The slide as its stored tiles show it, beside it its map, and below them what the picture is not for.

    Every picture is as wide as any other, so that in a row of a page all are reduced alike.

    Args:
        dataset: gives the pixels.
        tiles: of the slide: x_l0, y_l0, size_l0 and "probability"; the index is the position in the dataset.
        slide: how large it is.
        synthetic: the slide or the training data are generated.

    Returns:
        A JPEG file of some kilobytes.

    Raises:
        InputError: a tile cannot be read.
    """
    step = -(-len(tiles) // MOST_TILES)
    longest = max(slide.width_l0, slide.height_l0)
    overview, _ = mosaic(dataset, tiles.iloc[::step], slide, longest_px=_PANEL_PX)
    size = [max(1, round(side / longest * _PANEL_PX)) for side in (slide.width_l0, slide.height_l0)]
    picture = Image.fromarray(overview).resize((size[0], size[1]), Image.Resampling.BICUBIC)
    pitch = slide.width_l0 / size[0], slide.height_l0 / size[1]
    plane = rasterise(tiles, "probability", (size[1], size[0]), pitch)
    return _write([picture, colour_slide(picture, plane, HEAT, 1.0)], synthetic=synthetic)


def _write(panels: Sequence[Image.Image], *, synthetic: bool) -> bytes:
    lines = [RESEARCH_ONLY, *([GENERATED_PICTURE.partition(":")[0]] if synthetic else [])]
    height = panels[0].height
    whole = Image.new("RGB", (WIDTH_PX, height + 2 + len(lines) * line_height(_TEXT_PX)), PAPER)
    for number, panel in enumerate(panels):
        whole.paste(panel, (number * (_PANEL_PX + _GAP_PX) + (_PANEL_PX - panel.width) // 2, 0))
    draw = ImageDraw.Draw(whole)
    for number, line in enumerate(lines):
        draw.text((2, height + 2 + number * line_height(_TEXT_PX)), line, fill=FAINT, font=font(_TEXT_PX))
    sink = io.BytesIO()
    whole.save(sink, "JPEG", quality=_QUALITY)
    return sink.getvalue()
