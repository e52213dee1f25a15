"""The endoscope's tip: where it is, where it looks, and which ray belongs to which pixel.

The lens is an equidistant fisheye: the angle from the optical axis grows linearly with the distance from the middle of
the picture, as wide-angle endoscopes roughly do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdml_med.demo.fields import BoolArray, FloatArray

WIDTH_PX, HEIGHT_PX = 320, 256
HALF_ANGLE = 1.08
"""Angle between the optical axis and the left or right end of the picture, radians."""

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FieldOfView:
    """Where in the frame the picture is: a rectangle with cut corners.

    Attributes:
        left: first column, pixels.
        top: first row.
        right: one past the last column.
        bottom: one past the last row.
        corner: side of each cut corner, pixels.
    """

    left: int
    top: int
    right: int
    bottom: int
    corner: int

    @property
    def px_per_radian(self) -> float:
        """Scale of the fisheye."""
        return (self.right - self.left) / (2 * HALF_ANGLE)

    def mask(self) -> BoolArray:
        """True inside the picture, bool [HEIGHT_PX, WIDTH_PX]."""
        y, x = np.mgrid[0:HEIGHT_PX, 0:WIDTH_PX]
        beside = np.minimum(x - self.left, self.right - 1 - x)
        above = np.minimum(y - self.top, self.bottom - 1 - y)
        return np.asarray((beside >= 0) & (above >= 0) & (beside + above >= self.corner))

    def rays(self) -> FloatArray:
        """Unit directions in camera coordinates (x right, y down, z ahead), float32 [3, HEIGHT_PX, WIDTH_PX]."""
        y, x = np.mgrid[0:HEIGHT_PX, 0:WIDTH_PX].astype(np.float64)
        x -= (self.left + self.right - 1) / 2
        y -= (self.top + self.bottom - 1) / 2
        radius = np.hypot(x, y)
        angle = radius / self.px_per_radian
        # sin(a) / r without a division by zero in the middle.
        scale = np.sinc(angle / np.pi) / self.px_per_radian
        return np.stack([x * scale, y * scale, np.cos(angle)]).astype(np.float32)


def draw_field(rng: np.random.Generator) -> FieldOfView:
    """Draw a processor's layout: the picture stands right of a margin that holds the overlay text."""
    left = int(rng.integers(44, 62))
    right = WIDTH_PX - int(rng.integers(4, 12))
    top, bottom = int(rng.integers(4, 14)), HEIGHT_PX - int(rng.integers(4, 14))
    return FieldOfView(left, top, right, bottom, int(rng.integers(38, 62)))


@dataclass(frozen=True)
class Pose:
    """One camera position.

    Attributes:
        position: float64 [3], world, mm.
        turn: float64 [3, 3], columns are the camera's right, down and ahead in world coordinates.
    """

    position: Vector
    turn: Vector


def look_at(position: Vector, target: Vector, roll: float) -> Pose:
    """Pose that looks from a position to a target, turned by ``roll`` radians about the line of sight."""
    ahead = (target - position) / np.linalg.norm(target - position)
    right = np.cross([0.0, 1.0, 0.0], ahead)
    right /= np.linalg.norm(right)
    down = np.cross(ahead, right)
    cosine, sine = np.cos(roll), np.sin(roll)
    return Pose(position, np.stack([cosine * right + sine * down, cosine * down - sine * right, ahead], axis=1))
