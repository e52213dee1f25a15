"""Slides of which a part of the plane was scanned: what goes to QuPath and comes from it counts from its corner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile

from kdml_med.storage.shards import sidecar_path
from kdml_med.wsi import cutter
from kdml_med.wsi.options import TilingOptions
from kdml_med.wsi.shards import BOUNDS_COLUMNS
from kdml_med.wsi.tiler import tile_slides
from tests.deploy.slides.green import MPP, TILE_PX, contents, predict, tiles_of
from tests.synthetic_slides import tissue_picture, write_slide
from tests.wsi.vendor_slides import write_scn

CORNER, SIDE = (256, 128), 512


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plane of 1,024 x 1,024 px, of which 512 x 512 px were scanned."""
    path = tmp_path_factory.mktemp("slides") / "l.scn"
    write_scn(path, tissue_picture(SIDE, SIDE, 0), mpp=MPP, corner_px=CORNER)
    return path


@pytest.fixture(scope="module")
def whole(run_dir: Path, slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its prediction with maps."""
    out = tmp_path_factory.mktemp("whole") / "out"
    predict(run_dir, slide, out, maps=True)
    return out


def test_tables_have_the_plane_and_shapes_what_was_scanned(whole: Path) -> None:
    tiles = tiles_of(whole)
    assert len(tiles) > 10
    assert (tiles[["x_l0", "y_l0"]].min().to_numpy() >= np.array(CORNER) - TILE_PX).all()
    content = json.loads((whole / "slides/l/tiles.geojson").read_text())
    corners = [one["geometry"]["coordinates"][0][0] for one in content["features"]]
    np.testing.assert_array_equal(corners, tiles[["x_l0", "y_l0"]].to_numpy() - CORNER)
    found = pd.read_csv(whole / "slides.csv").iloc[0]
    assert found[["width_l0", "height_l0"]].tolist() == [1024, 1024]
    assert found[BOUNDS_COLUMNS].tolist() == [*CORNER, SIDE, SIDE]


def test_the_layer_is_as_large_as_what_was_scanned(whole: Path) -> None:
    with tifffile.TiffFile(whole / "slides/l/heatmap.ome.tiff") as file:
        probability = file.asarray()[0]
        assert 'PhysicalSizeX="8.0"' in file.pages[0].description  # a quarter of a tile, 16 px
    assert probability.shape == (32, 32)
    for tile in tiles_of(whole).itertuples():
        x, y = (tile.x_l0 - CORNER[0]) // 16, (tile.y_l0 - CORNER[1]) // 16
        if x >= 0 and y >= 0:
            np.testing.assert_allclose(probability[y : y + 4, x : x + 4], tile.probability_ensemble, atol=1e-6)


def test_a_region_drawn_on_what_was_scanned_keeps_the_tile_below_it(
    run_dir: Path, slide: Path, whole: Path, tmp_path: Path
) -> None:
    tiles = tiles_of(whole)
    chosen = tiles["tissue_fraction"].idxmax()
    x, y = (int(tiles.loc[chosen, name]) - corner for name, corner in zip(("x_l0", "y_l0"), CORNER, strict=True))
    ring = [[x, y], [x + TILE_PX, y], [x + TILE_PX, y + TILE_PX], [x, y + TILE_PX], [x, y]]
    roi = tmp_path / "roi.geojson"
    roi.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    predict(run_dir, slide, tmp_path / "out", roi=roi)
    assert list(tiles_of(tmp_path / "out").index) == [chosen]


def test_shapes_that_were_written_select_the_same_tiles(
    run_dir: Path, slide: Path, whole: Path, tmp_path: Path
) -> None:
    predict(run_dir, slide, tmp_path / "out", roi=whole / "slides/l/tiles.geojson")
    pd.testing.assert_frame_equal(tiles_of(tmp_path / "out"), tiles_of(whole))


def test_a_prediction_of_an_earlier_version_is_made_anew_where_its_corner_was_another(
    run_dir: Path, slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_slide(tmp_path / "a.svs", width=600, height=500, mpp=MPP)
    inputs: list[Path] = [slide, tmp_path / "a.svs"]

    def predict_as_before(**more: Any) -> None:
        with monkeypatch.context() as context:
            context.setattr(cutter, "crop_of", lambda slide: None)
            predict(run_dir, inputs, tmp_path / "out", **more)

    predict_as_before()
    assert "bounds" not in (tmp_path / "out/slides.csv").read_text()
    assert predict(run_dir, inputs, tmp_path / "out").remade == {}, "no shapes, no regions: nothing is misplaced"
    predict_as_before(maps=True)
    report = predict(run_dir, inputs, tmp_path / "out", maps=True)
    assert list(report.remade) == ["l"]
    assert report.remade["l"].startswith("an earlier version did not count its shapes and regions from the corner")
    assert predict(run_dir, inputs, tmp_path / "out", maps=True).remade == {}
    predict(run_dir, inputs, tmp_path / "new", maps=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "new")


def test_a_dataset_of_an_earlier_version_learns_the_bounds_of_its_slides_and_keeps_their_tiles(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tile(name: str) -> Any:
        return tile_slides([slide], tmp_path / name, TilingOptions(mpp=MPP, tile_size_px=TILE_PX), progress=False)

    tile("new")
    with monkeypatch.context() as context:
        context.setattr(cutter, "crop_of", lambda slide: None)
        context.setattr("kdml_med.wsi.tiler.find_crop", lambda path: None)
        tile("old")
    assert contents(tmp_path / "old") != contents(tmp_path / "new")
    report = tile("old")
    assert (report.done, report.skipped) == (0, 1)
    assert sidecar_path(tmp_path / "old", "l").read_bytes() == sidecar_path(tmp_path / "new", "l").read_bytes()
    found = pd.read_csv(tmp_path / "old/slides.csv").iloc[0]
    assert found[BOUNDS_COLUMNS].tolist() == [*CORNER, SIDE, SIDE]
