"""Anatomy of one generated piece of colon: a bent tube with haustral folds.

World coordinates are millimetres: z runs along the colon, x to the right and y down. A point belongs to the wall cell
(z, angle), where the angle is taken around the centre line. Points are stored as [3, n] so that each coordinate is
contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdml_med.demo.fields import FloatArray, enlarge_wrapped, smooth_noise

LENGTH_MM = 240.0
"""Modelled length; the tube goes on as it ends, in the dark."""
CELL_MM = 0.5
"""Length of a wall cell along z."""
ANGLES = 256
"""Wall cells around the tube, a power of two so that wrapping is a bit mask."""

ROWS = round(LENGTH_MM / CELL_MM)
CENTRES_PER_ROW = 16
"""Samples of the centre line per row of the wall map."""
STEP_SAFETY = np.float32(0.55)
"""Share of the radial gap that a ray may advance: the wall may slope towards it."""


class Unrolled(NamedTuple):
    """Points in wall coordinates, float32 [n] each.

    Attributes:
        row: of the wall map, fractional, inside the map.
        angle: in cells, fractional, 0 … ANGLES.
        x: distance from the centre line to the right, mm.
        y: the same downwards, mm.
        rho: distance from the centre line, mm.
    """

    row: FloatArray
    angle: FloatArray
    x: FloatArray
    y: FloatArray
    rho: FloatArray


@dataclass(frozen=True)
class Colon:
    """Shape of the inner wall.

    Attributes:
        radius: float32, [ROWS, ANGLES], distance of the wall from the centre line, mm.
        slope_along: the same shape, its derivative along z, dimensionless.
        slope_around: the same shape, its derivative by the angle, mm per radian.
        centre: float32, [2, ROWS * CENTRES_PER_ROW], x and y of the centre line, mm.
    """

    radius: FloatArray
    slope_along: FloatArray
    slope_around: FloatArray
    centre: FloatArray

    def unroll(self, points: FloatArray) -> Unrolled:
        """Wall coordinates of points.

        Args:
            points: float32, [3, n], mm.
        """
        row = np.clip(points[2] * np.float32(1 / CELL_MM), 0, np.float32(ROWS - 1.001))
        # Nearest of a finely sampled line: half the cost of interpolating, and off by less than a hundredth of a mm.
        index = (row * np.float32(CENTRES_PER_ROW)).astype(np.int32)
        x = points[0] - self.centre[0].take(index)
        y = points[1] - self.centre[1].take(index)
        angle = np.arctan2(y, x) * np.float32(ANGLES / (2 * np.pi))
        angle += np.float32(ANGLES) * (angle < 0)
        return Unrolled(row, angle, x, y, np.sqrt(x * x + y * y))

    def distance(self, points: FloatArray) -> FloatArray:
        """Radial gap between points and the wall.

        Args:
            points: float32, [3, n], mm.

        Returns:
            float32, [n], mm, times ``STEP_SAFETY``; negative inside the wall.
        """
        place = self.unroll(points)
        return np.asarray(STEP_SAFETY * (_interpolate(self.radius, place) - place.rho), dtype=np.float32)

    def normal(self, points: FloatArray) -> FloatArray:
        """Direction into the lumen at points of the wall, not normalised.

        Args:
            points: float32, [3, n], mm.

        Returns:
            float32, [3, n]: the gradient of radius minus distance from the centre line. The bend of the centre line
            is left out: it turns the wall by a few degrees.
        """
        place = self.unroll(points)
        x, y = place.x / place.rho, place.y / place.rho
        turn = _interpolate(self.slope_around, place) / place.rho
        return np.stack([-turn * y - x, turn * x - y, _interpolate(self.slope_along, place)])

    def wall_point(self, z: float, angle: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """A point of the wall and the direction from there to the centre line.

        Args:
            z: mm.
            angle: around the centre line, radians.

        Returns:
            Two float64 vectors [3], (x, y, z): position in mm, unit direction.
        """
        row = int(np.clip(z / CELL_MM, 0, ROWS - 1))
        column = round(angle / (2 * np.pi) * ANGLES) % ANGLES
        outward = np.array([np.cos(angle), np.sin(angle), 0.0])
        return self.centre_at(z) + outward * float(self.radius[row, column]), -outward

    def centre_at(self, z: float) -> npt.NDArray[np.float64]:
        """Point of the centre line, float64 [3], mm."""
        place = np.clip(z * CENTRES_PER_ROW / CELL_MM, 0, self.centre.shape[1] - 1)
        x, y = (np.interp(place, np.arange(len(axis)), axis) for axis in self.centre)
        return np.array([x, y, z])


def _interpolate(table: FloatArray, place: Unrolled) -> FloatArray:
    """Bilinear value of a wall map [ROWS, ANGLES] at points, float32 [n]; the angle wraps."""
    top, left = place.row.astype(np.int32), place.angle.astype(np.int32)
    down, right = place.row - top, place.angle - left
    cell = top * ANGLES
    beside = (left + 1) & (ANGLES - 1)
    left &= ANGLES - 1
    flat = table.ravel()
    above, after = flat.take(cell + left), flat.take(cell + beside)
    above += (after - above) * right
    cell += ANGLES
    below, after = flat.take(cell + left), flat.take(cell + beside)
    below += (after - below) * right
    return np.asarray(above + (below - above) * down, dtype=np.float32)


def draw_colon(rng: np.random.Generator) -> Colon:
    """Draw the shape of one piece of colon.

    The calibre is 38–50 mm. Folds stand 17–30 mm apart, are crescents rather than rings, because the three taeniae
    interrupt them, and lean a little.
    """
    z = (np.arange(ROWS, dtype=np.float32) + 0.5) * np.float32(CELL_MM)
    angle = (np.arange(ANGLES, dtype=np.float32) + 0.5) * np.float32(2 * np.pi / ANGLES)
    calibre = rng.uniform(19, 25)
    radius = np.full((ROWS, ANGLES), calibre, dtype=np.float32)
    # Slow undulation, and the shallow lobes between the taeniae.
    radius *= 1 + 0.05 * enlarge_wrapped(smooth_noise(rng, (ROWS // 16, ANGLES // 16), 1.6), (ROWS, ANGLES))
    taenia = rng.uniform(0, 2 * np.pi)
    radius += np.float32(rng.uniform(0.4, 1.4)) * np.cos(3 * (angle - taenia))
    place = rng.uniform(-10, 15)
    while place < LENGTH_MM:
        radius -= _fold(rng, z, angle, place, calibre, taenia)
        place += rng.uniform(17, 30)
    padded = np.pad(radius, ((0, 0), (1, 1)), mode="wrap")
    around = (padded[:, 2:] - padded[:, :-2]) * np.float32(ANGLES / (4 * np.pi))
    along = np.gradient(radius, CELL_MM, axis=0)
    return Colon(radius, np.asarray(along, dtype=np.float32), np.ascontiguousarray(around), _draw_centre(rng))


def _draw_centre(rng: np.random.Generator) -> FloatArray:
    """Centre line that bends to one side in the distance and wavers, float32 [2, ROWS * CENTRES_PER_ROW], mm."""
    z = np.arange(ROWS * CENTRES_PER_ROW) * (CELL_MM / CENTRES_PER_ROW)
    heading, bend = rng.uniform(0, 2 * np.pi), rng.uniform(10, 26)
    turn = bend * np.maximum(z - rng.uniform(55, 85), 0) ** 2 / 60.0**2
    waver = [2.5 * np.sin(z / rng.uniform(28, 45) + rng.uniform(0, 2 * np.pi)) for _ in range(2)]
    x, y = np.cos(heading) * turn + waver[0], np.sin(heading) * turn + waver[1]
    return np.asarray(np.stack([x, y]), dtype=np.float32)


def _fold(
    rng: np.random.Generator, z: FloatArray, angle: FloatArray, place: float, calibre: float, taenia: float
) -> FloatArray:
    """How far one fold stands into the lumen, [ROWS, ANGLES], mm."""
    # Crescents between the taeniae: one or two of the three are stronger than the rest.
    strength = rng.uniform(0.25, 1.0, 3)
    height = np.zeros(ANGLES, dtype=np.float32)
    for lobe in range(3):
        offset = np.angle(np.exp(1j * (angle - taenia - 2 * np.pi * lobe / 3)))
        height = np.maximum(height, np.float32(strength[lobe]) * np.exp(-((offset / 0.85) ** 4)).astype(np.float32))
    height *= np.float32(calibre * rng.uniform(0.28, 0.46))
    lean = place + 4.0 * np.sin(angle - rng.uniform(0, 6.28)) + 1.5 * np.sin(2 * angle - rng.uniform(0, 6.28))
    away = z[:, None] - lean[None, :].astype(np.float32)
    # Steeper on the far side, as a fold that hangs towards the camera does.
    width = np.where(away < 0, np.float32(rng.uniform(3.0, 5.0)), np.float32(rng.uniform(2.2, 3.4)))
    return np.asarray(height[None, :] * np.exp(-((away / width) ** 2)), dtype=np.float32)
