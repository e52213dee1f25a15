"""Glands: rings of nuclei around a lumen where they are well formed, solid ragged nests where they are not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdml_med.demo.fields import BoolArray, FloatArray, ellipse_kernels, stamp

SPACING_UM = 88.0
NUCLEUS_UM = (9.0, 5.0)
ORIENTATIONS = 16


@dataclass(frozen=True)
class GlandPlan:
    """Where the glands of a slide are.

    Attributes:
        centres_um: [n, 2], (y, x) from the top left corner, micrometres.
        radii_um: [n], mean radius, micrometres.
        regular: bool, [n], True for a well-formed gland.
    """

    centres_um: npt.NDArray[np.float64]
    radii_um: npt.NDArray[np.float64]
    regular: BoolArray


def plan_glands(rng: np.random.Generator, free: BoolArray, regularity: FloatArray, cell_um: float) -> GlandPlan:
    """Choose places on a shaken hexagonal grid.

    Args:
        rng: generator to draw from.
        free: bool, [rows, columns], coarse cells where a gland's centre may lie.
        regularity: float32, same shape, chance that a gland there is well formed.
        cell_um: side of a coarse cell, micrometres.
    """
    rows, columns = (int(side * cell_um / SPACING_UM) + 1 for side in free.shape)
    grid_y, grid_x = np.mgrid[0:rows, 0:columns].astype(np.float64)
    grid_x += 0.5 * (grid_y % 2)
    centres = np.stack([grid_y.ravel(), grid_x.ravel()], axis=1) * SPACING_UM + rng.normal(0, 11, (rows * columns, 2))
    radii = np.clip(rng.normal(33, 5, len(centres)), 22, 42)
    kept, chance = rng.random(len(centres)) < 0.88, rng.random(len(centres))

    cells = (centres / cell_um).astype(np.int64)
    inside = np.all((centres > 60) & (cells < np.array(free.shape) - int(60 / cell_um)), axis=1)
    cells = np.where(inside[:, None], cells, 0)
    inside &= kept & free[cells[:, 0], cells[:, 1]]
    regular = chance < regularity[cells[:, 0], cells[:, 1]]
    return GlandPlan(centres[inside], radii[inside], np.asarray(regular[inside], dtype=np.bool_))


def paint_glands(
    rng: np.random.Generator, plan: GlandPlan, hematoxylin: FloatArray, eosin: FloatArray, mpp: float
) -> BoolArray:
    """Paint every gland of the plan in place.

    Args:
        rng: generator to draw from.
        plan: where the glands are.
        hematoxylin: float32, [rows, columns], units of stain; changed.
        eosin: the same.
        mpp: micrometres per pixel of the two arrays.

    Returns:
        bool, [rows, columns]: True inside a lumen.
    """
    lumen = np.zeros(hematoxylin.shape, dtype=np.bool_)
    kernels = ellipse_kernels(NUCLEUS_UM[0] / mpp, NUCLEUS_UM[1] / mpp, ORIENTATIONS)
    for centre, radius, regular in zip(plan.centres_um, plan.radii_um, plan.regular, strict=True):
        harmonics = _outline(rng, bool(regular))
        _paint_body(hematoxylin, eosin, lumen, centre / mpp, radius / mpp, harmonics, bool(regular), 15 / mpp)
        points, angles = (_ring if regular else _nest)(rng, radius, harmonics)
        which = np.rint(angles / np.pi * ORIENTATIONS).astype(np.int64) % ORIENTATIONS
        strength = rng.uniform(0.85, 1.2, len(points))
        stamp(hematoxylin, np.rint((centre + points) / mpp).astype(np.int64), kernels, which, strength)
    return lumen


def _outline(rng: np.random.Generator, regular: bool) -> npt.NDArray[np.float64]:
    """Amplitudes and phases of the second to fifth harmonic of an outline, [4, 2]."""
    amplitude = rng.normal(0, 0.05 if regular else 0.13, 4)
    return np.stack([amplitude, rng.uniform(0, 2 * np.pi, 4)], axis=1)


def _stretch(angle: npt.NDArray[np.floating], harmonics: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Outline radius relative to the mean, at each angle."""
    factor = np.ones(angle.shape)
    for order, (amplitude, phase) in enumerate(harmonics, start=2):
        factor += amplitude * np.cos(order * angle + phase)
    return np.clip(factor, 0.5, 1.5)


def _paint_body(
    hematoxylin: FloatArray,
    eosin: FloatArray,
    lumen: BoolArray,
    centre_px: npt.NDArray[np.float64],
    radius_px: float,
    harmonics: npt.NDArray[np.float64],
    regular: bool,
    wall_px: float,
) -> None:
    """Cytoplasm, and the lumen of a well-formed gland; in place."""
    reach = int(1.5 * radius_px) + 3
    row, column = np.rint(centre_px).astype(int)
    top, left = max(row - reach, 0), max(column - reach, 0)
    window = np.s_[top : row + reach + 1, left : column + reach + 1]
    rows, columns = hematoxylin[window].shape
    y, x = np.mgrid[top - row : top - row + rows, left - column : left - column + columns].astype(np.float32)
    distance = np.hypot(y, x)
    depth = radius_px * _stretch(np.arctan2(y, x), harmonics) - distance
    cover = np.clip(depth / 3 + 0.5, 0, 1).astype(np.float32)
    hematoxylin[window] += cover * (0.34 - hematoxylin[window])
    eosin[window] += cover * (0.42 - eosin[window])
    if regular:
        hollow = np.clip((depth - wall_px) / 3 + 0.5, 0, 1).astype(np.float32)
        hematoxylin[window] *= 1 - 0.97 * hollow
        eosin[window] *= 1 - 0.95 * hollow
        lumen[window] |= hollow > 0.5


def _ring(
    rng: np.random.Generator, radius_um: float, harmonics: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Nuclei side by side along the outer wall, long axis towards the centre: offsets (y, x) in µm and angles."""
    count = int(2 * np.pi * radius_um / 6.2)
    angle = np.arange(count) * 2 * np.pi / count + rng.normal(0, 0.02, count)
    radius = radius_um * _stretch(angle, harmonics) - 6.0 + rng.normal(0, 0.8, count)
    return np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1), angle % np.pi


def _nest(
    rng: np.random.Generator, radius_um: float, harmonics: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Nuclei without order all over the nest: offsets (y, x) in µm and angles."""
    side = np.arange(-1.5 * radius_um, 1.5 * radius_um, 9.5)
    points = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2)
    points = points + rng.normal(0, 2.2, points.shape)
    limit = radius_um * _stretch(np.arctan2(points[:, 0], points[:, 1]), harmonics) - 3
    points = points[np.hypot(points[:, 0], points[:, 1]) < limit]
    return points, rng.uniform(0, np.pi, len(points))
