"""Anatomy of one generated piece of colon: a bent tube with haustral folds.

World coordinates are millimetres: z runs along the colon, x to the right and y down. A point belongs to the wall cell
(z, angle), where the angle is taken around the centre line. Points are stored as [3, n] so that each coordinate is
contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass

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
STEP_SAFETY = np.float32(0.55)
"""Share of the radial gap that a ray may advance: the wall may slope towards it."""


@dataclass(frozen=True)
class Colon:
    """Shape of the inner wall.

    Attributes:
        radius: float32, [ROWS, ANGLES], distance of the wall from the centre line, mm.
        centre: float32, [2, ROWS], x and y of the centre line, mm.
    """

    radius: FloatArray
    centre: FloatArray

    def unroll(self, points: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Wall coordinates of points.

        Args:
            points: float32, [3, n], mm.

        Returns:
            Three float32 arrays [n]: row of the wall map (fractional, inside the map), angle in cells (fractional,
            0 … ANGLES) and distance from the centre line in mm.
        """
        row = np.clip(points[2] * np.float32(1 / CELL_MM), 0, ROWS - 1.001)
        index = row.astype(np.int32)
        share = row - index
        after = index + 1
        x = points[0] - (self.centre[0].take(index) * (1 - share) + self.centre[0].take(after) * share)
        y = points[1] - (self.centre[1].take(index) * (1 - share) + self.centre[1].take(after) * share)
        angle = np.arctan2(y, x) * np.float32(ANGLES / (2 * np.pi))
        return row, np.where(angle < 0, angle + np.float32(ANGLES), angle), np.sqrt(x * x + y * y)

    def distance(self, points: FloatArray) -> FloatArray:
        """Radial gap between points and the wall.

        Args:
            points: float32, [3, n], mm.

        Returns:
            float32, [n], mm, times ``STEP_SAFETY``; negative inside the wall.
        """
        row, angle, rho = self.unroll(points)
        top = row.astype(np.int32)
        left = angle.astype(np.int32)
        down, right = row - top, angle - left
        cell = top * ANGLES
        beside = (left + 1) & (ANGLES - 1)
        left &= ANGLES - 1
        flat = self.radius.ravel()
        above = flat.take(cell + left) * (1 - right) + flat.take(cell + beside) * right
        cell += ANGLES
        below = flat.take(cell + left) * (1 - right) + flat.take(cell + beside) * right
        return np.asarray(STEP_SAFETY * (above * (1 - down) + below * down - rho), dtype=np.float32)

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
        centre = np.array([self.centre[0, row], self.centre[1, row], z])
        return centre + outward * float(self.radius[row, column]), -outward

    def centre_at(self, z: float) -> npt.NDArray[np.float64]:
        """Point of the centre line, float64 [3], mm."""
        row = np.clip(z / CELL_MM, 0, ROWS - 1)
        x, y = (np.interp(row, np.arange(ROWS), axis) for axis in self.centre)
        return np.array([x, y, z])


def draw_colon(rng: np.random.Generator) -> Colon:
    """Draw the shape of one piece of colon.

    The calibre is 38–50 mm. Folds stand 20–34 mm apart, are crescents rather than rings, because the three taeniae
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
        place += rng.uniform(20, 34)
    bend = rng.uniform(10, 26) * np.array([np.cos(heading := rng.uniform(0, 2 * np.pi)), np.sin(heading)])
    start = rng.uniform(55, 85)
    turn = np.maximum(z - start, 0) ** 2 / 60.0**2
    wobble = 2.5 * np.sin(z / rng.uniform(28, 45) + rng.uniform(0, 6.28))
    centre = np.stack([bend[0] * turn + wobble, bend[1] * turn + np.roll(wobble, ROWS // 5)])
    return Colon(radius.astype(np.float32), centre.astype(np.float32))


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
    height *= np.float32(calibre * rng.uniform(0.26, 0.42))
    lean = place + 4.0 * np.sin(angle - rng.uniform(0, 6.28)) + 1.5 * np.sin(2 * angle - rng.uniform(0, 6.28))
    away = z[:, None] - lean[None, :].astype(np.float32)
    # Steeper on the far side, as a fold that hangs towards the camera does.
    width = np.where(away < 0, np.float32(rng.uniform(3.0, 5.0)), np.float32(rng.uniform(2.2, 3.4)))
    return np.asarray(height[None, :] * np.exp(-((away / width) ** 2)), dtype=np.float32)
