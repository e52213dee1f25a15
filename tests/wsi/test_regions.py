"""Regions of interest from GeoJSON: what is read, what is refused, and where their pixels are."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdml_med.errors import InputError
from kdml_med.wsi.regions import Regions, read_regions
from kdml_med.wsi.slide import Bounds
from tests.examples import examples

SQUARE = [[0, 0], [8, 0], [8, 8], [0, 8], [0, 0]]
HOLE = [[2, 2], [2, 6], [6, 6], [6, 2], [2, 2]]


def polygon(*rings: list[list[float]]) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def feature(geometry: Any, **properties: Any) -> dict[str, Any]:
    return {
        "type": "Feature",
        "id": "1",
        "geometry": geometry,
        "properties": {"objectType": "annotation", **properties},
    }


def collection(*features: Any) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(features)}


def read(folder: Path, content: Any) -> Regions:
    path = folder / "regions.geojson"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_regions(path)


WHOLE = polygon(SQUARE, HOLE)


@pytest.mark.parametrize(
    "content",
    [
        collection(feature(WHOLE)),
        [feature(WHOLE)],
        feature(WHOLE),
        WHOLE,
        collection(feature({"type": "MultiPolygon", "coordinates": [WHOLE["coordinates"]]})),
        collection(feature({"type": "GeometryCollection", "geometries": [WHOLE]})),
        collection(feature(polygon([[*point, 0] for point in SQUARE], HOLE[:-1]))),  # heights; an open ring
    ],
)
def test_every_form_of_geojson_gives_the_same_area(tmp_path: Path, content: Any) -> None:
    expected = np.zeros((10, 12), bool)
    expected[:8, :8] = True
    expected[2:6, 2:6] = False
    np.testing.assert_array_equal(read(tmp_path, content).mask(12, 10, 1.0), expected)


def test_what_is_drawn_in_a_hole_counts_again(tmp_path: Path) -> None:
    inner = [[3, 3], [5, 3], [5, 5], [3, 5], [3, 3]]
    mask = read(tmp_path, collection(feature(WHOLE), feature(polygon(inner)))).mask(8, 8, 1.0)
    assert mask[4, 4]
    assert not mask[2, 2]


def test_a_file_with_the_mark_of_windows_editors_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeff" + json.dumps(WHOLE)).mask(8, 8, 1.0)[0, 0]


def test_ignored_classes_points_and_lines_are_left_out_by_name(tmp_path: Path) -> None:
    regions = read(
        tmp_path,
        collection(
            feature(polygon(SQUARE), classification={"name": "Tumor", "color": [200, 0, 0]}),
            feature(polygon([[10, 0], [18, 0], [18, 8], [10, 0]]), classification={"name": "Ignore*"}),
            feature(polygon([[10, 0], [18, 0], [18, 8], [10, 0]]), classification={"names": ["Tissue", "Region*"]}),
            feature(polygon([[10, 0], [18, 0], [18, 8], [10, 0]]), classification="Necrosis*"),
            feature({"type": "Point", "coordinates": [1, 1]}, name="a cell"),
            feature({"type": "LineString", "coordinates": [[1, 1], [2, 2]]}),
            feature(None),
        ),
    )
    assert len(regions.polygons) == 1
    assert regions.skipped == [
        "feature 2 (Ignore*) is of an ignored class",
        "feature 3 (Tissue: Region*) is of an ignored class",
        "feature 4 (Necrosis*) is of an ignored class",
        "feature 5 (a cell) is a Point, which has no area",
        "feature 6 is a LineString, which has no area",
        "feature 7 is a feature without geometry, which has no area",
    ]
    assert not regions.mask(20, 10, 1.0)[:, 9:].any()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("3", "holds no list of features"),
        (collection(3), "holds no list of features"),
        ({"type": "FeatureCollection"}, "holds no list of features"),
        (collection(), "has no areas"),
        (collection(feature({"type": "Point", "coordinates": [1, 1]})), "feature 1 is a Point, which has no area"),
        (collection(feature(polygon(SQUARE)), feature({"type": "Circle"})), 'feature 2: the geometry is "Circle"'),
        (feature("here"), "the geometry is \"here\", expected Polygon"),
        (feature({"type": "Polygon"}, name="A\n1"), r"feature 1 (A\n1): a polygon needs a list of rings"),
        (polygon(), "a polygon needs a list of rings"),
        (polygon([[0, 0], ["a", 1], [2, 2]]), 'a point is ["a", 1], expected [x, y]'),
        (polygon([[0, 0], [True, 1], [2, 2]]), "a point is [true, 1]"),
        (polygon([[0, 0], [1e300, 1], [2, 2]]), "a point is [1e+300, 1]"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [NaN, 1], [2, 2]]]}', "a point is [NaN, 1]"),
        (polygon([[0, 0], [1], [2, 2]]), "a point is [1]"),
        (polygon([[0, 0], [1, 1], [0, 0]]), "less than three different points"),
        (polygon(3), "a ring is 3"),
        ({"type": "MultiPolygon", "coordinates": 3}, "needs a list of coordinates"),
        ({"type": "GeometryCollection"}, "needs a list of geometries"),
    ],
)  # fmt: skip
def test_what_is_no_area_is_refused_with_file_and_feature(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(InputError) as refused:
        read(tmp_path, content)
    assert words in str(refused.value)
    assert "regions.geojson" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["absent.geojson", "."])
def test_a_path_that_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="does not exist or is no file"):
        read_regions(tmp_path / name)


def test_regions_outside_of_the_slide_are_refused_with_its_size(tmp_path: Path) -> None:
    regions = read(tmp_path, polygon([[100, 200], [150, 200], [150, 260]]))
    assert regions.mask(101, 300, 1.0).any()
    with pytest.raises(InputError, match=r"100 x 1200 px at level 0; they reach from \(100, 200\) to \(150, 260\)"):
        regions.mask(25, 300, 4.0)


def test_regions_are_counted_from_the_corner_of_what_was_scanned(tmp_path: Path) -> None:
    regions, bounds = read(tmp_path, WHOLE), Bounds(6, 4, 20, 12)
    expected = np.zeros((30, 40), bool)
    expected[4:, 6:] = regions.mask(34, 26, 1.0)
    np.testing.assert_array_equal(regions.mask(40, 30, 1.0, bounds), expected)
    np.testing.assert_array_equal(regions.on_plane(bounds).mask(40, 30, 1.0), expected)
    far = read(tmp_path, polygon([[21, 0], [30, 0], [30, 9]]))
    with pytest.raises(InputError, match=r"20 x 12 px at level 0; they reach from \(21, 0\) to \(30, 9\)"):
        far.mask(40, 30, 1.0, bounds)


def test_regions_that_reach_over_the_edges_are_cut(tmp_path: Path) -> None:
    regions = read(tmp_path, polygon([[-1000, -1000], [1e6, -1000], [1e6, 1e6], [-1000, 1e6]]))
    assert regions.mask(7, 5, 3.3).all()


def inside_by_vertical_rays(x: float, y: float, rings: list[list[tuple[float, float]]]) -> bool | None:
    """Even-odd rule, slowly; None where the point lies on an edge or nearly so."""
    odd = False
    for ring in rings:
        for (ax, ay), (bx, by) in zip(ring, [*ring[1:], ring[0]], strict=True):
            length = np.hypot(bx - ax, by - ay)
            along = np.clip(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / max(length**2, 1e-12), 0, 1)
            if np.hypot(ax + along * (bx - ax) - x, ay + along * (by - ay) - y) < 1e-6:
                return None
            if (ax <= x) != (bx <= x) and ay + (x - ax) / (bx - ax) * (by - ay) > y:
                odd = not odd
    return odd


coordinate = st.floats(-3, 15).map(lambda value: round(value, 3)) | st.integers(-2, 14).map(float)
ring = st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=7, unique=True)


@settings(max_examples=examples(60))
@given(
    polygons=st.lists(st.lists(ring, min_size=1, max_size=3), min_size=1, max_size=3),
    downsample=st.sampled_from([1.0, 2.0, 0.7]),
)
def test_pixels_are_those_whose_centre_lies_in_a_region(polygons: Any, downsample: float) -> None:
    arrays = [[np.array(one) for one in rings] for rings in polygons]
    width, height = 9, 8
    try:
        mask = Regions(Path("here"), arrays, []).mask(width, height, downsample)
    except InputError:
        mask = np.zeros((height, width), bool)
    for row in range(height):
        for column in range(width):
            x, y = (column + 0.5) * downsample, (row + 0.5) * downsample
            found = [inside_by_vertical_rays(x, y, rings) for rings in polygons]
            if None not in found:
                assert mask[row, column] == any(found), (x, y)


def test_a_drawing_of_many_points_and_areas_takes_no_time(tmp_path: Path) -> None:
    angle = np.linspace(0, 2 * np.pi, 100_000, endpoint=False)
    circle = np.stack([50_000 + 40_000 * np.cos(angle), 50_000 + 40_000 * np.sin(angle)], axis=1)
    cells = [
        [np.array([[x, y], [x + 20, y], [x + 20, y + 20]])]
        for x in range(0, 99_000, 1000)
        for y in range(0, 99_000, 1000)
    ]
    start = time.perf_counter()
    mask = Regions(tmp_path, [[circle], *cells], []).mask(1600, 1600, 62.5)
    assert time.perf_counter() - start < 5
    assert mask.mean() == pytest.approx(np.pi * 0.16, rel=0.01)
