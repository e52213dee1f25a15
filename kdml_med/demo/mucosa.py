"""What the wall looks like: colour, vessels, residue, bubbles and red patches as maps over (z, angle).

Nothing here knows where polyps are: red patches, residue and bubbles distract from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

from kdml_med.demo.colon import LENGTH_MM
from kdml_med.demo.fields import FloatArray, enlarge_wrapped, smooth_noise

SHAPE = (960, 512)
"""Texture cells along z and around the tube: 0.25 mm and about 0.27 mm."""
CELL_MM = LENGTH_MM / SHAPE[0]

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Palette:
    """Colours of one patient's bowel under one processor, linear RGB.

    Attributes:
        mucosa: float64 [3].
        vessel: float64 [3], factor where a vessel shines through.
        residue: float64 [3].
        vessels: how strongly they show, 0 … 1.
        shine: strength of the highlights.
    """

    mucosa: Vector
    vessel: Vector
    residue: Vector
    vessels: float
    shine: float


@dataclass(frozen=True)
class Texture:
    """Maps over the wall.

    Attributes:
        albedo: float32, [*SHAPE, 3], linear RGB.
        bump: float32, [*SHAPE, 2], slope of the fine relief along z and around, dimensionless.
        wet: float32, SHAPE, strength of the highlights.
    """

    albedo: FloatArray
    bump: FloatArray
    wet: FloatArray


def draw_palette(rng: np.random.Generator) -> Palette:
    """Draw colours between the pink and the orange that processors give, and how well vessels show."""
    blend = rng.beta(0.9, 0.9)
    pink, orange = np.array([0.64, 0.20, 0.145]), np.array([0.72, 0.27, 0.060])
    mucosa = (pink + blend * (orange - pink)) * np.exp(rng.normal(0, 0.05, 3))
    residue = np.array([0.50, 0.36, 0.05]) * rng.uniform(0.7, 1.2)
    return Palette(mucosa, np.array([0.72, 0.36, 0.48]), residue, rng.uniform(0.15, 1.0), rng.uniform(0.7, 1.3))


def paint_texture(rng: np.random.Generator, palette: Palette) -> Texture:
    """Paint the maps of one piece of colon.

    Args:
        rng: generator that decides every position.
        palette: colours.
    """
    tone = 0.10 * _noise(rng, 8, 4.0) + 0.05 * _noise(rng, 4, 1.5) + 0.03 * _noise(rng, 2, 1.0)
    hue = 0.06 * _noise(rng, 16, 2.5)
    albedo = np.empty((*SHAPE, 3), dtype=np.float32)
    vessels = np.float32(palette.vessels) * _vessels(rng)
    for channel, turn in enumerate((0.35, -1.0, -0.8)):
        layer = np.float32(palette.mucosa[channel]) * np.exp(tone + np.float32(turn) * hue)
        albedo[..., channel] = layer * (1 - vessels * np.float32(1 - palette.vessel[channel]))
    relief = 1.2 * _noise(rng, 8, 1.4) + 0.55 * _noise(rng, 2, 1.4)
    _paint_patches(rng, albedo)
    _paint_residue(rng, albedo, relief, palette)
    _paint_bubbles(rng, albedo, relief)
    slope = np.stack(
        [np.roll(relief, -1, 0) - np.roll(relief, 1, 0), np.roll(relief, -1, 1) - np.roll(relief, 1, 1)], axis=-1
    )
    # Film of water here, none there: highlights come in groups.
    wet = np.float32(palette.shine) * np.clip(0.25 + 0.7 * _noise(rng, 8, 1.6), 0.0, 1.2)
    return Texture(albedo, np.asarray(slope / np.float32(2), dtype=np.float32), wet.astype(np.float32))


def _noise(rng: np.random.Generator, factor: int, sigma: float) -> FloatArray:
    """Smooth noise of ``SHAPE``, drawn ``factor`` times coarser; ``sigma`` is in coarse cells."""
    return enlarge_wrapped(smooth_noise(rng, (SHAPE[0] // factor, SHAPE[1] // factor), sigma), SHAPE)


def _vessels(rng: np.random.Generator) -> FloatArray:
    """Branching trees of vessels, 0 … 1."""
    canvas = Image.new("L", (SHAPE[1], SHAPE[0]))
    pen = ImageDraw.Draw(canvas)
    for _ in range(60):
        # (x, y, heading, half width in cells, steps left)
        twigs = [(rng.uniform(0, SHAPE[1]), rng.uniform(0, SHAPE[0]), rng.uniform(0, 6.28), rng.uniform(1.2, 2.4), 16)]
        while twigs:
            x, y, heading, width, steps = twigs.pop()
            path = [(x, y)]
            turns = rng.normal(0, 0.28, steps)
            for turn in turns:
                heading += turn
                x, y = x + 9 * np.cos(heading), y + 9 * np.sin(heading)
                path.append((x, y))
            for shift in (-SHAPE[1], 0, SHAPE[1]):  # the map wraps around the tube
                shifted = [(column + shift, line) for column, line in path]
                pen.line(shifted, fill=int(90 + 60 * min(width, 2.0)), width=max(1, round(width)), joint="curve")
            if width > 0.7:
                for side in (-1, 1):
                    start = path[int(rng.integers(len(path) // 3, len(path)))]
                    twigs.append((*start, heading + side * rng.uniform(0.4, 0.9), width * 0.72, max(5, steps - 3)))
    lines = ndimage.gaussian_filter(np.asarray(canvas, dtype=np.float32) / 255, 0.7, mode="wrap")
    shown = np.clip(0.6 + 0.5 * _noise(rng, 16, 2.0), 0, 1)
    return np.asarray(np.clip(1.25 * lines, 0, 1) * shown, dtype=np.float32)


def _blob(
    rng: np.random.Generator, row: float, column: float, radius_mm: float, ragged: float
) -> tuple[tuple[slice, slice], FloatArray]:
    """Window and cover (0 … 1, soft edge) of an uneven spot; the window may be smaller at the map's border."""
    reach = int(np.ceil(1.6 * radius_mm / CELL_MM))
    window = tuple(
        slice(max(0, int(place) - reach), min(size, int(place) + reach + 1))
        for place, size in zip((row, column), SHAPE, strict=True)
    )
    y, x = np.mgrid[window].astype(np.float32)
    y, x = y - np.float32(row), x - np.float32(column)
    angle = np.arctan2(y, x)
    outline = np.ones_like(angle)
    for wave in (2, 3, 5):
        outline += np.float32(ragged * rng.normal() / wave) * np.cos(wave * angle + np.float32(rng.uniform(0, 6.28)))
    size = np.hypot(y, x) * np.float32(CELL_MM / radius_mm) / np.maximum(outline, 0.3)
    rows, columns = window
    return (rows, columns), np.clip((1.1 - size) / 0.35, 0, 1).astype(np.float32)


def _place(rng: np.random.Generator) -> tuple[float, float]:
    return rng.uniform(0, SHAPE[0]), rng.uniform(0, SHAPE[1])


def _clustered(
    rng: np.random.Generator, *, clusters: tuple[int, int], spots: tuple[int, int], spread: float
) -> Iterator[tuple[float, float]]:
    """Places on the map in clusters, drawn one by one as they are asked for: what is painted draws in between.

    Args:
        rng: source of numbers.
        clusters: fewest, and one more than most.
        spots: likewise, of each cluster; those beside the map are left out.
        spread: standard deviation in cells.
    """
    for _ in range(int(rng.integers(*clusters))):
        row, column = _place(rng)
        for _ in range(int(rng.integers(*spots))):
            spot = row + rng.normal(0, spread), column + rng.normal(0, spread)
            if 0 <= spot[0] < SHAPE[0] and 0 <= spot[1] < SHAPE[1]:
                yield spot


def _paint_patches(rng: np.random.Generator, albedo: FloatArray) -> None:
    """Reddened spots without any relief, in place."""
    for _ in range(int(rng.integers(3, 10))):
        window, cover = _blob(rng, *_place(rng), rng.uniform(1.5, 4.5), 0.5)
        strength = np.float32(rng.uniform(0.4, 0.9)) * cover[..., None]
        albedo[window] *= 1 - strength * np.array([0.04, 0.38, 0.32], dtype=np.float32)


def _paint_residue(rng: np.random.Generator, albedo: FloatArray, relief: FloatArray, palette: Palette) -> None:
    """Yellow-brown flecks of stool that stand off the wall, in clusters; in place."""
    colour = palette.residue.astype(np.float32)
    for row, column in _clustered(rng, clusters=(1, 8), spots=(2, 14), spread=22):
        window, cover = _blob(rng, row, column, rng.uniform(0.5, 2.0), 0.7)
        cover = cover * np.float32(rng.uniform(0.5, 0.95))
        albedo[window] += cover[..., None] * (colour - albedo[window])
        relief[window] += 1.5 * cover


def _paint_bubbles(rng: np.random.Generator, albedo: FloatArray, relief: FloatArray) -> None:
    """Foam: thin bright rings in clusters; in place."""
    for row, column in _clustered(rng, clusters=(0, 6), spots=(4, 22), spread=14):
        window, cover = _blob(rng, row, column, rng.uniform(0.5, 2.0), 0.05)
        rim = 4 * cover * (1 - cover)
        albedo[window] += (0.22 * rim * rng.uniform(0.5, 1.0))[..., None]
        relief[window] += np.float32(1.6) * cover
