"""Tiles as GeoJSON: the form of RFC 7946, and the properties that QuPath reads."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pytest

from kdml_med.deploy.pictures.geojson import write_shapes
from kdml_med.wsi.regions import read_regions

# RFC 7946, sections 3.1.6, 3.2 and 3.3; properties as QuPath's own export has them (QuPathTypeAdapters, QuPath 0.4 and
# later): object type by name, measurements by name, class with name and colour, ids that are UUIDs.
COLOUR = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}, "minItems": 3, "maxItems": 3}
POSITION = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
RING = {"type": "array", "minItems": 4, "items": POSITION}
FEATURE = {
    "type": "object",
    "required": ["type", "id", "geometry", "properties"],
    "properties": {
        "type": {"const": "Feature"},
        "id": {"type": "string", "format": "uuid"},
        "geometry": {
            "type": "object",
            "required": ["type", "coordinates"],
            "additionalProperties": False,
            "properties": {
                "type": {"const": "Polygon"},
                "coordinates": {"type": "array", "minItems": 1, "items": RING},
            },
        },
        "properties": {
            "type": "object",
            "required": ["objectType", "classification", "measurements"],
            "additionalProperties": False,
            "properties": {
                "objectType": {"enum": ["annotation", "detection", "tile", "cell"]},
                "color": COLOUR,
                "classification": {
                    "type": "object",
                    "required": ["name", "color"],
                    "additionalProperties": False,
                    "properties": {"name": {"type": "string", "pattern": "^[^:\\n]+$"}, "color": COLOUR},
                },
                "measurements": {"type": "object", "minProperties": 1, "additionalProperties": {"type": "number"}},
            },
        },
    },
}  # fmt: skip
SCHEMA = {
    "type": "object",
    "required": ["type", "features"],
    "properties": {"type": {"const": "FeatureCollection"}, "features": {"type": "array", "items": FEATURE}},
}


def tile_frame(count: int, size: float = 448.0, **columns: Any) -> pd.DataFrame:
    number = np.arange(count)
    generator = np.random.default_rng(0)
    frame = {"x_l0": number % 250 * 448, "y_l0": number // 250 * 448, "size_l0": size}
    frame |= {"probability": generator.random(count), "disagreement": generator.random(count)}
    return pd.DataFrame(frame | columns)


def write(folder: Path, tiles: pd.DataFrame, slide_id: str = "S1", classes: tuple[str, str] = ("MSS", "MSI")) -> Any:
    path = folder / "tiles.geojson"
    write_shapes(path, tiles, slide_id=slide_id, classes=classes, about={"use": "research"})
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))


def signed_area(ring: list[list[float]]) -> float:
    x, y = np.array(ring).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def test_the_file_has_the_form_of_rfc_7946_and_of_qupath(tmp_path: Path) -> None:
    tiles = tile_frame(40, 254.54)
    content = write(tmp_path, tiles)
    jsonschema.validate(content, SCHEMA, format_checker=jsonschema.FormatChecker())
    for feature, tile in zip(content["features"], tiles.itertuples(), strict=True):
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1], "closed"
        assert signed_area(ring) == pytest.approx(tile.size_l0**2, rel=1e-3), "right-hand rule: counterclockwise"
        assert np.min(ring, axis=0).tolist() == [tile.x_l0, tile.y_l0]
        measured = feature["properties"]["measurements"]
        assert measured == {
            "Probability of MSI": pytest.approx(tile.probability, abs=1e-4),
            "Disagreement": pytest.approx(tile.disagreement, abs=1e-4),
        }
        assert feature["properties"]["classification"]["name"] == ("MSI" if tile.probability >= 0.5 else "MSS")


def test_a_tile_has_the_same_id_again_and_no_other_tile_has_it(tmp_path: Path) -> None:
    ids = [
        [feature["id"] for feature in write(tmp_path, tile_frame(300), slide)["features"]] for slide in ("a", "a", "b")
    ]
    assert ids[0] == ids[1]
    assert len({*ids[0], *ids[2]}) == 600
    assert all(str(uuid.UUID(one)) == one for one in ids[0])


def test_unknown_numbers_are_left_out(tmp_path: Path) -> None:
    one = write(tmp_path, tile_frame(3, probability=[0.1, np.nan, 0.9], disagreement=np.nan))
    assert [feature["properties"]["measurements"] for feature in one["features"]] == [
        {"Probability of MSI": 0.1},
        {"Probability of MSI": 0.9},
    ]
    assert write(tmp_path, tile_frame(2).drop(columns="disagreement"))["features"]
    assert write(tmp_path, tile_frame(0))["features"] == []


@pytest.mark.parametrize("name", ['a"b\\c', "MSI: high", "line\nbreak", "µ 中文", "<script>", ":"])
def test_odd_names_are_kept_as_far_as_json_and_qupath_allow(tmp_path: Path, name: str) -> None:
    content = write(tmp_path, tile_frame(40), name, ("MSS", name))
    jsonschema.validate(content, SCHEMA)
    assert f"Probability of {name}" in content["features"][0]["properties"]["measurements"]


def test_fifty_thousand_tiles_are_written_in_seconds_and_stay_small(tmp_path: Path) -> None:
    tiles = tile_frame(50_000)
    start = time.perf_counter()
    write_shapes(tmp_path / "tiles.geojson", tiles, slide_id="S1", classes=["MSS", "MSI"], about={})
    assert time.perf_counter() - start < 10
    assert (tmp_path / "tiles.geojson").stat().st_size < 25e6


def test_own_shapes_can_be_regions_of_interest(tmp_path: Path) -> None:
    write(tmp_path, tile_frame(3))
    mask = read_regions(tmp_path / "tiles.geojson").mask(10, 10, 224.0)
    assert mask[:2, :6].all()
    assert mask.sum() == 12
