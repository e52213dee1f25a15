"""Regions of interest: areas that a person drew on a slide, read from GeoJSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdml_med.errors import InputError
from kdml_med.words import printable
from kdml_med.wsi.slide import Bounds

Ring = npt.NDArray[np.float64]
"""float64, [points, 2], (x, y), level-0 pixels; the last point is joined to the first one."""

_NO_AREAS = ("Point", "MultiPoint", "LineString", "MultiLineString")
_EXPECTED = "expected GeoJSON of areas, as QuPath exports it (File, Export objects as GeoJSON)"
_FARTHEST = 1e9
"""Level-0 pixels; no slide is so large, and such numbers are degrees of something else or nonsense."""


@dataclass(frozen=True)
class Regions:
    """Areas of a slide, level-0 pixels as QuPath counts them: from the corner of the part that was scanned, where the
    file names one, else from the corner of the plane.

    Attributes:
        path: file that they were read from.
        polygons: each a list of rings, the outline first, then its holes.
        skipped: what of the file is no region and is left out, in words for people.
    """

    path: Path
    polygons: list[list[Ring]]
    skipped: list[str]

    @property
    def outlines(self) -> list[Ring]:
        """All rings, holes included."""
        return [ring for rings in self.polygons for ring in rings]

    def on_plane(self, bounds: Bounds | None) -> Regions:
        """The same areas from the corner of the plane.

        Args:
            bounds: part of the plane that was scanned; None for all of it.
        """
        if bounds is None:
            return self
        corner = np.array(bounds[:2], np.float64)
        return replace(self, polygons=[[ring + corner for ring in rings] for rings in self.polygons])

    def mask(self, width: int, height: int, downsample: float, bounds: Bounds | None = None) -> npt.NDArray[np.bool_]:
        """Where a pixel of a reduced slide has its centre in a region.

        Inside of a polygon is what its rings enclose an odd number of times; regions add up.

        Args:
            width: of the mask, pixels.
            height: likewise.
            downsample: level-0 pixels per pixel of the mask.
            bounds: part of the plane that was scanned; None for all of it. The mask is that of the plane.

        Returns:
            bool, [height, width].

        Raises:
            InputError: all regions lie outside of the slide.
        """
        size = np.array([width, height]) * downsample if bounds is None else np.array(bounds[2:], np.float64)
        low, high = (
            np.array([end(np.concatenate(rings), axis=0) for rings in self.polygons]) for end in (np.min, np.max)
        )
        if not ((low < size) & (high > 0)).all(axis=1).any():
            corners = [f"{edge:.0f}" for edge in (*low.min(axis=0), *high.max(axis=0))]
            raise InputError(
                f"{self.path}: all regions lie outside of the slide, which has {size[0]:.0f} x {size[1]:.0f} px at "
                f"level 0; they reach from ({corners[0]}, {corners[1]}) to ({corners[2]}, {corners[3]}). Are they of "
                "another slide, or in other units than level-0 pixels?"
            )
        found = np.zeros((height, width), bool)
        for rings in self.on_plane(bounds).polygons:
            _add(found, [ring / downsample for ring in rings])
        return found


def read_regions(path: str | Path) -> Regions:
    """Read the areas of a GeoJSON file: a feature collection, a list of features, a feature or a bare geometry.

    Points and lines have no area and are left out, as are features of a class that QuPath ignores (its name ends with
    an asterisk); ``Regions.skipped`` names them.

    Args:
        path: of the file.

    Raises:
        InputError: names the file, the feature (the first one is 1) and what was expected; or no area is left.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist or is no file; {_EXPECTED}.")
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({str(error).splitlines()[0]}); {_EXPECTED}.") from error
    polygons: list[list[Ring]] = []
    skipped: list[str] = []
    for number, feature in enumerate(_features(content, path), start=1):
        where = f"{path}, feature {number}{_name(feature)}"
        if _is_ignored(feature):
            skipped.append(f"feature {number}{_name(feature)} is of an ignored class")
            continue
        geometry = feature.get("geometry", None) if feature.get("type") == "Feature" else feature
        for kind, areas in _geometries(geometry, where):
            polygons += areas
            skipped += [] if areas else [f"feature {number}{_name(feature)} is a {kind}, which has no area"]
    if not polygons:
        why = f": {skipped[0]}" if skipped else ""
        raise InputError(f"{path} has no areas{why}; {_EXPECTED}.")
    return Regions(path, polygons, skipped)


def _features(content: Any, path: Path) -> list[dict[str, Any]]:
    found = content
    if isinstance(content, dict):
        found = content.get("features") if content.get("type") == "FeatureCollection" else [content]
    if not isinstance(found, list) or not all(isinstance(feature, dict) for feature in found):
        raise InputError(f"{path} is JSON, but holds no list of features; {_EXPECTED}.")
    return found


def _properties(feature: dict[str, Any]) -> dict[str, Any]:
    properties = feature.get("properties")
    return properties if isinstance(properties, dict) else {}


def _class_names(feature: dict[str, Any]) -> list[str]:
    """Of QuPath's classification, which is a text, or an object with a name or several."""
    found = _properties(feature).get("classification")
    names = found.get("names", [found.get("name")]) if isinstance(found, dict) else [found]
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _is_ignored(feature: dict[str, Any]) -> bool:
    return any(name.endswith("*") for name in _class_names(feature))


def _name(feature: dict[str, Any]) -> str:
    """What a person may know a feature by, for messages."""
    own = _properties(feature).get("name")
    name = own if isinstance(own, str) and own else ": ".join(_class_names(feature))
    return f" ({printable(name)[:60]})" if name else ""


def _geometries(geometry: Any, where: str) -> Iterator[tuple[str, list[list[Ring]]]]:
    """Kind and polygons of a geometry; of a collection, those of each part."""
    if geometry is None:
        yield "feature without geometry", []
        return
    kind = geometry.get("type") if isinstance(geometry, dict) else geometry
    if kind == "GeometryCollection":
        parts = geometry.get("geometries")
        if not isinstance(parts, list):
            raise InputError(f"{where}: a GeometryCollection needs a list of geometries.")
        for part in parts:
            yield from _geometries(part, where)
        return
    if kind in _NO_AREAS:
        yield kind, []
        return
    if kind not in ("Polygon", "MultiPolygon"):
        raise InputError(f"{where}: the geometry is {_short(kind)}, expected Polygon or MultiPolygon.")
    coordinates = geometry.get("coordinates")
    several = coordinates if kind == "MultiPolygon" else [coordinates]
    if not isinstance(several, list) or not several:
        raise InputError(f"{where}: a {kind} needs a list of coordinates.")
    yield kind, [_polygon(rings, where) for rings in several]


def _polygon(rings: Any, where: str) -> list[Ring]:
    if not isinstance(rings, list) or not rings:
        raise InputError(f"{where}: a polygon needs a list of rings.")
    return [_ring(points, where) for points in rings]


def _ring(points: Any, where: str) -> Ring:
    if not isinstance(points, list):
        raise InputError(f"{where}: a ring is {_short(points)}, expected a list of [x, y].")
    for point in points:
        right = isinstance(point, list) and len(point) >= 2 and all(map(_is_place, point[:2]))
        if not right:
            raise InputError(f"{where}: a point is {_short(point)}, expected [x, y] in level-0 pixels.")
    if len({(point[0], point[1]) for point in points}) < 3:
        raise InputError(f"{where}: a ring has less than three different points, and so no area.")
    return np.array([point[:2] for point in points], np.float64)


def _is_place(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and abs(value) < _FARTHEST


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return printable(text if len(text) <= 40 else f"{text[:40]}…")


def _add(mask: npt.NDArray[np.bool_], rings: list[Ring]) -> None:
    """Set the pixels of a polygon: along each row of pixel centres, between its odd and even crossings of the rings.

    Args:
        mask: bool, [height, width]; changed.
        rings: in pixels of the mask.
    """
    height, width = mask.shape
    starts = np.concatenate(rings)
    ends = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    # A side belongs to the rows whose centre lies in [upper, lower): a corner on a centre is crossed once, not twice.
    upper, lower = (pick(starts[:, 1], ends[:, 1]) for pick in (np.minimum, np.maximum))
    first = np.clip(np.ceil(upper - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil(lower - 0.5), 0, height).astype(np.int64)
    count = last - first
    side = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(side)) - np.repeat(np.cumsum(count) - count, count) + first[side]
    along = (row + 0.5 - starts[side, 1]) / (ends[side, 1] - starts[side, 1])
    crossing = starts[side, 0] + along * (ends[side, 0] - starts[side, 0])
    column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)
    low, high = (int(edge) for edge in (first.min(), last.max()))
    flips = np.zeros((max(0, high - low), width + 1), np.int64)
    np.add.at(flips, (row - low, column), 1)
    mask[low:high] |= (flips.cumsum(axis=1)[:, :-1] % 2).astype(bool)
