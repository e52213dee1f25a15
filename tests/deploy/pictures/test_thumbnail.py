"""Slides with their maps as small pictures."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kdml_med.data import TileDataset
from kdml_med.deploy.pictures import thumbnail
from kdml_med.deploy.pictures.dataset_maps import SlideSize
from kdml_med.deploy.pictures.thumbnail import WIDTH_PX, map_thumbnail
from tests.synthetic_tiles import write_tile_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TileDataset:
    return TileDataset(write_tile_dataset(tmp_path_factory.mktemp("tiles"), patients=6, tiles=6))


def draw(dataset: TileDataset, columns: int, *, synthetic: bool = False) -> Image.Image:
    """Six tiles in so many columns; the first has a probability of 0, the others one of 1."""
    place = np.arange(6)
    tiles = pd.DataFrame({"x_l0": place % columns * 32, "y_l0": place // columns * 32, "size_l0": 32.0})
    tiles = tiles.assign(probability=(place > 0).astype(float))
    slide = SlideSize(32 * columns, 32 * (6 // columns), 1.0)
    return Image.open(io.BytesIO(map_thumbnail(dataset, tiles, slide, synthetic=synthetic)))


def colours_of(picture: Image.Image, x: float) -> list[tuple[int, ...]]:
    """Colours that stand above each other at a place from 0 (left) to 1 (right), apart from the words."""
    column = np.asarray(picture.convert("RGB"))[:, round(x * (picture.width - 1))]
    return [tuple(colour) for colour in column[: picture.height - 40].tolist()]


@pytest.mark.parametrize("columns", [1, 2, 3, 6])
def test_the_map_is_beside_the_slide_whatever_its_shape(dataset: TileDataset, columns: int) -> None:
    picture = draw(dataset, columns)
    assert picture.width == WIDTH_PX
    yellow = [[g > b + 60 and r > b + 30 for r, g, b in colours_of(picture, x)] for x in (0.25, 0.75)]
    assert not any(yellow[0])
    assert any(yellow[1])


def test_what_it_is_not_for_is_written_below(dataset: TileDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, generated = draw(dataset, 3), draw(dataset, 3, synthetic=True)
    assert plain.height < generated.height
    monkeypatch.setattr(thumbnail, "RESEARCH_ONLY", "")
    assert np.asarray(draw(dataset, 3).convert("L"))[-14:].min() > np.asarray(plain.convert("L"))[-14:].min() + 50
