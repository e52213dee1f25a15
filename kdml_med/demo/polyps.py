"""Polyps as signed distances: ellipsoids on the wall, with a stalk, or hardly raised."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from kdml_med.demo.colon import Colon
from kdml_med.demo.fields import FloatArray

Vector = npt.NDArray[np.float64]


class Shape(StrEnum):
    """Appearance, after the Paris classification's three that a person tells apart at once."""

    SESSILE = "sessile"
    STALKED = "stalked"
    FLAT = "flat"


@dataclass(frozen=True)
class Polyp:
    """One polyp in world coordinates.

    Attributes:
        number: within its sequence, from 1.
        shape: appearance.
        centre: float64 [3], centre of the ellipsoid, mm.
        axes: float64 [3, 3], rows are unit vectors: two along the wall, the third into the lumen.
        radii: float64 [3], semi-axes along ``axes``, mm.
        foot: float64 [3], where a stalk meets the wall, mm; the centre's projection otherwise.
        stalk_mm: radius of the stalk; 0 without one.
        lobes: float64 [2], amplitude (share of the radius) and frequency (radians per unit direction) of the surface.
        colour: float64 [3], factor on the mucosa's linear RGB.
    """

    number: int
    shape: Shape
    centre: Vector
    axes: Vector
    radii: Vector
    foot: Vector
    stalk_mm: float
    lobes: Vector
    colour: Vector

    def local(self, points: FloatArray) -> FloatArray:
        """Points [3, n] in units of the semi-axes, float32 [3, n]; the ellipsoid is the unit sphere."""
        turn = (self.axes / self.radii[:, None]).astype(np.float32)
        return np.asarray(turn @ points - (turn @ self.centre.astype(np.float32))[:, None], dtype=np.float32)

    def bounds(self) -> tuple[Vector, float]:
        """Centre (x, y, z) and radius of a sphere that holds head and stalk, mm."""
        centre = (self.centre + self.foot) / 2
        half = float(np.linalg.norm(self.centre - self.foot)) / 2
        return centre, half + float(self.radii.max()) * (1.05 + float(self.lobes[0])) + 2.0

    def distance(self, points: FloatArray) -> FloatArray:
        """Distance from points [3, n] to the surface, float32 [n], mm; negative inside. A bound, never too long."""
        place = self.local(points)
        norm = np.sqrt((place * place).sum(axis=0))
        amplitude, frequency = (np.float32(value) for value in self.lobes)
        ripple = np.sin(frequency * place[0] + 1.0) * np.sin(frequency * place[1]) * np.sin(frequency * place[2] + 2.0)
        # The ripple makes the field steeper; dividing keeps the value a bound, or rays would jump through the surface.
        gap = (norm - 1 - amplitude * ripple) * (np.float32(self.radii.min() * 0.9) / (1 + amplitude * frequency))
        if self.stalk_mm > 0:
            gap = np.minimum(gap, self._stalk_distance(points))
        return np.asarray(gap, dtype=np.float32)

    def _stalk_distance(self, points: FloatArray) -> FloatArray:
        """Distance to the capsule from the foot to the head's centre."""
        foot = self.foot.astype(np.float32)[:, None]
        line = self.centre.astype(np.float32)[:, None] - foot
        away = points - foot
        along = np.clip((away * line).sum(axis=0) / (line * line).sum(), 0, 1)
        rest = away - line * along
        return np.asarray(np.sqrt((rest * rest).sum(axis=0)) - np.float32(self.stalk_mm), dtype=np.float32)


def draw_polyp(rng: np.random.Generator, colon: Colon, number: int, z: float, angle: float) -> Polyp:
    """Draw a polyp that grows from the wall at (z, angle).

    Args:
        rng: generator to draw from.
        colon: whose wall it stands on.
        number: within its sequence, from 1.
        z: place along the colon, mm.
        angle: place around the centre line, radians.
    """
    shape = list(Shape)[int(rng.choice(3, p=(0.5, 0.28, 0.22)))]
    foot, inward = colon.wall_point(z, angle)
    along = np.array([0.0, 0.0, 1.0])
    across = np.cross(inward, along)
    spin = rng.uniform(0, np.pi)
    first = np.cos(spin) * along + np.sin(spin) * across
    second = np.cross(inward, first)
    size = rng.uniform(5.0, 8.0)
    stretch = rng.uniform(0.95, 1.25)
    stalk = 0.0
    if shape is Shape.SESSILE:
        radii = size * np.array([stretch, 1 / stretch, rng.uniform(0.75, 1.0)])
        centre = foot + inward * radii[2] * rng.uniform(0.15, 0.45)
    elif shape is Shape.STALKED:
        radii = size * 0.8 * np.array([stretch, 1 / stretch, rng.uniform(0.85, 1.05)])
        sway = rng.uniform(-0.35, 0.35) * first + rng.uniform(-0.35, 0.35) * second
        centre = foot + (inward + sway) * radii[2] * rng.uniform(1.3, 1.7)
        stalk = float(size * rng.uniform(0.28, 0.38))
    else:
        radii = size * np.array([1.25 * stretch, 1.25 / stretch, rng.uniform(0.44, 0.56)])
        centre = foot + inward * radii[2] * 0.25
    lobes = np.array([rng.uniform(0.02, 0.10), rng.uniform(2.5, 4.5)])
    axes = np.stack([first, second, inward])
    return Polyp(number, shape, centre, axes, radii, foot, stalk, lobes, _draw_colour(rng, shape))


def _draw_colour(rng: np.random.Generator, shape: Shape) -> Vector:
    """Mostly redder than the mucosa around it; some paler. A flat one differs most, or nobody would find it."""
    strength = rng.uniform(0.75, 1.1) * (1.15 if shape is Shape.FLAT else 1.0)
    if rng.random() < 0.68:
        return np.asarray(np.array([1.05, 0.64, 0.72]) ** strength)
    return np.asarray(np.array([1.10, 1.22, 1.40]) ** strength)
