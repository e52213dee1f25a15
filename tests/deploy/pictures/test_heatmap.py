"""Heat maps of slides: what is written, what the pictures show, and slides of odd forms and names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from kdml_med.deploy.pictures.heatmap import (
    DISAGREEMENT_FILE,
    HEATMAP_FILE,
    LAYER_FILE,
    SHAPES_FILE,
    SlidePicture,
    round_length,
    write_maps,
)
from kdml_med.deploy.pictures.lettering import FAINT, INK, PAPER, font, shown, wrap
from kdml_med.deploy.pictures.raster import HEAT, colours
from kdml_med.errors import InputError
from kdml_med.wsi.slide import Bounds


def make_picture(width: int = 1200, height: int = 1200, downsample: float = 4.0, **changes: Any) -> SlidePicture:
    """A grey slide; tiles of 300 px in the first two columns, sure of it on the left, sure of the opposite beside."""
    places = [(x, y, 300.0, float(x == 0), 0.05 * (x > 0)) for x in (0, 300) for y in range(0, height - 299, 300)]
    tiles = pd.DataFrame(places, columns=["x_l0", "y_l0", "size_l0", "probability", "disagreement"])
    shape = max(1, round(height / downsample)), max(1, round(width / downsample)), 3
    picture = SlidePicture(
        slide_id="S1",
        overview=np.full(shape, 200, np.uint8),
        downsample=downsample,
        width_l0=width,
        height_l0=height,
        mpp=0.5,
        tiles=tiles,
        classes=["MSS", "MSI"],
        network="ensemble",
        synthetic=False,
    )
    return replace(picture, **changes)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def nearest_share(area: np.ndarray) -> float:
    """Place on the colour map, 0..1, whose hue a patch has most; mixing with grey changes no hue."""
    every = np.concatenate([area.reshape(-1, 3).mean(axis=0)[None], colours(HEAT)])
    hue = every - every.mean(axis=1, keepdims=True)
    hue /= np.linalg.norm(hue, axis=1, keepdims=True)
    return float(np.argmax(hue[1:] @ hue[0]) / 255)


def test_all_four_files_are_written_and_the_layer_lies_where_the_slide_lies(tmp_path: Path) -> None:
    picture = make_picture()
    assert write_maps(tmp_path, picture) == [HEATMAP_FILE, DISAGREEMENT_FILE, LAYER_FILE, SHAPES_FILE]
    with tifffile.TiffFile(tmp_path / LAYER_FILE) as file:
        probability, difference = file.asarray()
        assert 'PhysicalSizeX="37.5"' in file.pages[0].description
    assert probability.shape == (16, 16)  # a quarter of a tile, 75 px or 37.5 µm, is a pixel
    np.testing.assert_array_equal(probability[:, :8], np.tile([1.0] * 4 + [0.0] * 4, (16, 1)))
    assert np.isnan(probability[:, 8:]).all()
    np.testing.assert_allclose(difference[:, 4:8], 0.05)


def test_layer_and_shapes_begin_where_the_slide_was_scanned(tmp_path: Path) -> None:
    picture = make_picture()
    write_maps(tmp_path / "whole", picture)
    # From 75 px, a quarter of a tile, left of the second column on, and a quarter below the first row.
    write_maps(tmp_path / "part", replace(picture, bounds=Bounds(225, 375, 525, 450)))
    whole, part = (tifffile.imread(tmp_path / name / LAYER_FILE) for name in ("whole", "part"))
    np.testing.assert_array_equal(part, whole[:, 5:11, 3:10])
    with tifffile.TiffFile(tmp_path / "part" / LAYER_FILE) as file:
        assert 'PhysicalSizeX="37.5"' in file.pages[0].description
    corners = []
    for name in ("whole", "part"):
        content = json.loads((tmp_path / name / SHAPES_FILE).read_text())
        corners.append(np.array([one["geometry"]["coordinates"][0] for one in content["features"]]))
    np.testing.assert_array_equal(corners[1], corners[0] - [225, 375])
    maps = [(tmp_path / name / HEATMAP_FILE).read_bytes() for name in ("whole", "part")]
    assert maps[0] == maps[1], "pictures show the whole plane"


def test_a_tile_beside_what_was_scanned_is_not_drawn_into_its_edge(tmp_path: Path) -> None:
    write_maps(tmp_path, make_picture(bounds=Bounds(630, 0, 570, 1200)))
    assert np.isnan(tifffile.imread(tmp_path / LAYER_FILE)).all()


def test_regions_are_outlined_where_they_lie(tmp_path: Path) -> None:
    ring = np.array([[600.0, 300], [900, 300], [900, 900], [600, 900]])
    write_maps(tmp_path / "without", make_picture())
    write_maps(tmp_path / "with", make_picture(outlines=[ring]))
    before, after = (pixels(tmp_path / name / HEATMAP_FILE) for name in ("without", "with"))
    slide = (before == 200).all(axis=2)
    top, left = (np.flatnonzero(slide.sum(axis=axis) > 300)[0] for axis in (1, 0))
    for begin in (left, left + 420 + 16):  # 1200 px are shown as 420
        rows, columns = np.nonzero((after != before)[top : top + 420, begin : begin + 420].any(axis=2))
        for found, edges in ((rows, (105, 315)), (columns, (210, 315))):
            assert abs(found.min() - edges[0]) < 5
            assert abs(found.max() - edges[1]) < 5


def test_the_map_is_hot_where_the_probability_is_high_and_grey_where_no_tile_is(tmp_path: Path) -> None:
    write_maps(tmp_path, make_picture())
    found = pixels(tmp_path / HEATMAP_FILE)
    slide = (found == 200).all(axis=2)  # stands left of its map
    top, left = (np.flatnonzero(slide.sum(axis=axis) > 300)[0] for axis in (1, 0))
    panel = found[top + 1 :, left + 1 + 420 + 16 :]  # 1200 px are shown as 420
    assert nearest_share(panel[10:410, 10:90]) > 0.95
    assert nearest_share(panel[10:410, 120:200]) < 0.05
    assert (np.ptp(panel[10:410, 230:400], axis=2) == 0).all()


def test_one_student_has_no_map_of_disagreement_and_an_old_one_goes(tmp_path: Path) -> None:
    both = make_picture()
    write_maps(tmp_path, both)
    tiles = both.tiles.assign(disagreement=np.nan)
    for alone in (tiles, tiles.drop(columns="disagreement")):
        (tmp_path / DISAGREEMENT_FILE).touch()
        assert write_maps(tmp_path, replace(both, tiles=alone)) == [HEATMAP_FILE, LAYER_FILE, SHAPES_FILE]
        assert {path.name for path in tmp_path.iterdir()} == {HEATMAP_FILE, LAYER_FILE, SHAPES_FILE}
        assert tifffile.imread(tmp_path / LAYER_FILE).squeeze().ndim == 2


def test_the_same_picture_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_maps(tmp_path / name, make_picture())
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("width", "height", "downsample"),
    [(300, 300, 1.0), (40, 30, 1.0), (3000, 120_000, 100.0), (120_000, 3000, 100.0), (90_000, 80_000, 60.0)],
)
def test_pictures_have_a_sensible_size_whatever_the_slide(
    tmp_path: Path, width: int, height: int, downsample: float
) -> None:
    write_maps(tmp_path, make_picture(width, height, downsample))
    rows, columns, _ = pixels(tmp_path / HEATMAP_FILE).shape
    assert 200 < rows < 2500
    assert 700 < columns < 2500


def test_a_slide_without_tiles_is_shown(tmp_path: Path) -> None:
    picture = make_picture()
    assert write_maps(tmp_path, replace(picture, tiles=picture.tiles[:0])) == [HEATMAP_FILE, LAYER_FILE, SHAPES_FILE]
    assert np.isnan(tifffile.imread(tmp_path / LAYER_FILE)).all()


@pytest.mark.parametrize(
    "name", ["<script>", "$x$ $\\frac{1}", "100 %s %", "ä 中文 🧬", "a" * 2000, "line\nbreak\x00", "", "\udcff"]
)
def test_odd_names_are_drawn_as_text(tmp_path: Path, name: str) -> None:
    # A missing letter is a warning in some libraries, and warnings are errors here.
    write_maps(tmp_path, make_picture(slide_id=name, classes=["MSS", name or "MSI"]))
    assert (tmp_path / HEATMAP_FILE).is_file()


def test_generated_data_are_called_so(tmp_path: Path) -> None:
    for synthetic in (False, True):
        write_maps(tmp_path / str(synthetic), make_picture(synthetic=synthetic))
    heights = [pixels(tmp_path / name / HEATMAP_FILE).shape[0] for name in ("False", "True")]
    assert heights[1] > heights[0], "one line more"
    for name in (LAYER_FILE, SHAPES_FILE):
        texts = [b"Generated data" in (tmp_path / folder / name).read_bytes() for folder in ("False", "True")]
        assert texts == [False, True]


@pytest.mark.parametrize("mpp", [0.1, 0.25, 0.777, 2.0])
@pytest.mark.parametrize("downsample", [1.0, 33.0])
def test_the_scale_bar_has_a_round_length(tmp_path: Path, mpp: float, downsample: float) -> None:
    picture = make_picture(int(300 * downsample), int(300 * downsample), downsample, mpp=mpp)
    write_maps(tmp_path, picture)
    below = pixels(tmp_path / HEATMAP_FILE)[-90:, :400]
    ink = (below == INK).all(axis=2).sum(axis=1)
    length_um = (ink.max() - 2) * mpp * downsample * 300 / 420
    nice = round_length(length_um * 1.1)
    assert length_um == pytest.approx(nice, rel=0.04)


@pytest.mark.parametrize(
    ("longest", "length"), [(0.7, 0.5), (1, 1), (1.99, 1), (2, 2), (499, 200), (500, 500), (9999, 5000)]
)
def test_round_lengths(longest: float, length: float) -> None:
    assert round_length(longest) == pytest.approx(length)


def test_a_target_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write .*heatmap\.png"):
        write_maps(tmp_path / "file", make_picture())


@pytest.mark.parametrize("ink", [INK, FAINT])
def test_text_stands_out_from_paper(ink: tuple[int, int, int]) -> None:
    def luminance(colour: tuple[int, int, int]) -> float:  # WCAG 2.1, relative luminance
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(colour) / 255]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    assert (luminance(PAPER) + 0.05) / (luminance(ink) + 0.05) >= 4.5


@pytest.mark.parametrize("text", ["", "short", "a" * 3000, "slide one two three four five six " * 9, "中" * 50])
@pytest.mark.parametrize("width", [40, 300])
def test_lines_fit_and_keep_both_ends(text: str, width: int) -> None:
    lines = wrap(text, 14, width, lines=2)
    assert 1 <= len(lines) <= 2
    assert all(font(14).getlength(line) <= width for line in lines)
    if "".join(lines).replace(" ", "") != shown(text).replace(" ", ""):
        assert "…" in "".join(lines)
        assert lines[0][0] == shown(text)[0]
        assert lines[-1][-1] == shown(text).rstrip()[-1]
