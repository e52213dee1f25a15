"""Thumbnails of a tiling: what is drawn where, and what the legend says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdml_med.storage.manifest import read_manifest
from kdml_med.wsi.grid import TileGrid
from kdml_med.wsi.options import TilingOptions
from kdml_med.wsi.overview import MARKS, NOT_DRAWN, write_thumbnail
from kdml_med.wsi.tiler import tile_slides
from kdml_med.wsi.tissue import Overview
from tests.synthetic_slides import write_slide


def near(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Pixels of a colour, bool [height, width]; JPEG changes it a little."""
    return np.abs(picture.astype(int) - colour).max(-1) < 60


def thumbnail(tmp_path: Path, reasons: dict[tuple[int, int], str | None], side_px: int = 400) -> np.ndarray:
    """Of a white slide with tiles of 100 px at level 0, one overview pixel each."""
    overview = Overview(np.full((side_px, side_px, 3), 255, np.uint8), np.zeros((side_px, side_px), bool), 1.0, 1.0)
    grid = TileGrid(width_l0=side_px, height_l0=side_px, size_l0=100.0)
    write_thumbnail(tmp_path, "s", overview, grid, reasons)
    return np.asarray(Image.open(tmp_path / "thumbnails/s.jpg").convert("RGB"))


@pytest.mark.parametrize("reason", list(MARKS))
def test_every_reason_is_drawn_at_its_tile_and_named_in_dark_letters(tmp_path: Path, reason: str | None) -> None:
    drawn = thumbnail(tmp_path, {(200, 100): reason})
    legend = len(drawn) - 400
    own = near(drawn[legend:], MARKS[reason].colour)
    # Upper, lower, left and right edge of the tile at x 200, y 100, and nothing within it or far from it.
    for edge in (own[100:103, 200:300], own[197:200, 200:300], own[100:200, 200:203], own[100:200, 297:300]):
        assert edge.any(axis=0 if edge.shape[1] > 50 else 1).all()
    assert not own[110:190, 210:290].any()
    assert not own[:, :190].any()
    assert near(drawn[:legend], MARKS[reason].colour).any(), "the legend shows its colour"
    assert near(drawn[:legend], (20, 20, 20)).sum() > 50, "the legend is written in dark letters"


def test_legend_names_what_there_is_and_nothing_else(tmp_path: Path) -> None:
    few, many = thumbnail(tmp_path, {(0, 0): None}), thumbnail(tmp_path, dict.fromkeys([(0, 0)], None) | {
        (100 * number, 100): reason for number, reason in enumerate(MARKS)
    })  # fmt: skip
    assert len(many) > len(few), "another line of the legend"
    absent = near(few, MARKS["pen"].colour)
    assert not absent.any()


def test_a_small_slide_is_sharp_and_tiles_that_a_limit_left_out_are_shown(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_slide(tmp_path / "in/a.svs", width=1200, height=1000)
    tile_slides(
        [tmp_path / "in"], tmp_path / "out", TilingOptions(mpp=0.5, tile_size_px=64, limit_tiles=3), progress=False
    )
    drawn = np.asarray(Image.open(tmp_path / "out/thumbnails/a.jpg").convert("RGB"))
    assert drawn.shape[1] >= 500, "not the overview of 8 µm per pixel, which has 38 pixels"
    assert len(read_manifest(tmp_path / "out")) == 3
    assert near(drawn, MARKS[NOT_DRAWN].colour).sum() > 500
    assert near(drawn, MARKS[None].colour).sum() > 100
