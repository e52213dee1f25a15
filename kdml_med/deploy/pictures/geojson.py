"""Tiles as shapes that QuPath opens: GeoJSON (RFC 7946) with the properties of QuPath's own export."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kdml_med.deploy.pictures.raster import HEAT, colour_of, colours
from kdml_med.storage.files import write_atomically
from kdml_med.words import printable

_SPACE = uuid.UUID("6b8f2a54-6d2b-5c0e-9d0c-0f5a3a3f7c11")
"""Ids of tiles are drawn from it and from slide and place, so that the same tile has the same id again."""
_HALF = 0.5


def write_shapes(
    path: Path, tiles: pd.DataFrame, *, slide_id: str, classes: Sequence[str], about: dict[str, Any]
) -> None:
    """Write tiles as squares with their probability.

    Coordinates are those of the tiles: level-0 pixels, y downwards, from the corner of what QuPath shows. Rings are
    closed and run by the right-hand rule of RFC 7946 (the signed area of their numbers is positive). Tiles are QuPath's
    object type "tile", coloured by probability and classed as what is more probable.

    Args:
        path: of the file; written atomically.
        tiles: columns x_l0, y_l0 (from that corner), size_l0, probability and perhaps disagreement; rows without a
            probability are left out.
        slide_id: any text.
        classes: names; the last one is the positive class.
        about: what else the file should say of itself.

    Raises:
        InputError: it cannot be written.
    """
    head = json.dumps({"type": "FeatureCollection", "kdml_med": about}, ensure_ascii=False)
    body = ",\n".join(_features(tiles[tiles["probability"].notna()], slide_id, classes))
    write_atomically(path, f'{head[:-1]}, "features": [\n{body}\n]}}\n'.encode(errors="backslashreplace"))


def _features(tiles: pd.DataFrame, slide_id: str, classes: Sequence[str]) -> Iterator[str]:
    """One line of JSON for each tile; put together by hand, because there may be a hundred thousand."""
    table = colours(HEAT)
    ends = (table[20].tolist(), table[235].tolist())
    classified = [
        json.dumps({"name": _class_name(name), "color": colour}, ensure_ascii=False)
        for name, colour in zip((classes[0], classes[-1]), ends, strict=True)
    ]
    measured = json.dumps(f"Probability of {classes[-1]}", ensure_ascii=False)
    difference = tiles["disagreement"] if "disagreement" in tiles else pd.Series(math.nan, tiles.index)
    shades = colour_of(tiles["probability"].to_numpy(), HEAT).tolist()
    columns = zip(tiles["x_l0"], tiles["y_l0"], tiles["size_l0"], tiles["probability"], difference, strict=True)
    for (x, y, size, probability, differing), shade in zip(columns, shades, strict=True):
        x0, y0, x1, y1 = (_number(edge) for edge in (x, y, x + size, y + size))
        ring = f"[[{x0}, {y0}], [{x1}, {y0}], [{x1}, {y1}], [{x0}, {y1}], [{x0}, {y0}]]"
        values = f"{measured}: {probability:.4f}"
        values += "" if math.isnan(differing) else f', "Disagreement": {differing:.4f}'
        own_id = uuid.uuid5(_SPACE, f"{printable(slide_id)}\n{x0}\n{y0}\n{x1}")
        yield (
            f'{{"type": "Feature", "id": "{own_id}", "geometry": {{"type": "Polygon", "coordinates": [{ring}]}}, '
            f'"properties": {{"objectType": "tile", "color": {shade}, '
            f'"classification": {classified[probability >= _HALF]}, "measurements": {{{values}}}}}}}'
        )


def _number(value: float) -> str:
    """Two decimals at most: a hundredth of a pixel is nothing."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _class_name(name: str) -> str:
    """QuPath takes colons for levels of classes, and no line breaks."""
    return " ".join(name.replace(":", " ").split()) or "class"
