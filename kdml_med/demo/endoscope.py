"""Render a scene through the endoscope: ray marching, lamp at the lens, wet highlights, and who is polyp.

Arrays over pixels are [n] or [3, n] for the pixels inside the field of view, in row-major order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from kdml_med.demo import mucosa
from kdml_med.demo.camera import HEIGHT_PX, WIDTH_PX, FieldOfView, Pose
from kdml_med.demo.colon import ANGLES, ROWS, Colon
from kdml_med.demo.fields import BoolArray, FloatArray
from kdml_med.demo.mucosa import Texture
from kdml_med.demo.polyps import Polyp

REACH_MM = np.float32(170.0)
"""Where light ends."""
NEAREST_MM = np.float32(0.5)
"""Nothing is closer to the lens than its cap."""
GRIDS = (4, 2, 1)
"""Rays are marched on every 4th pixel of every 4th row first, then on every 2nd, then on all."""
STEPS = (24, 5, 3)
"""Steps on each grid."""
LAST_STEPS = 32
"""Further steps for the few rays that still move then: those that graze an edge."""
BLEND_MM = np.float32(2.0)
"""Over this distance a polyp's surface runs into the wall."""


Near = list[npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Scene:
    """Everything that a camera can see.

    Attributes:
        colon: shape of the wall.
        texture: its looks.
        polyps: on the wall.
    """

    colon: Colon
    texture: Texture
    polyps: tuple[Polyp, ...]

    def distance(self, points: FloatArray, near: Near | None = None) -> FloatArray:
        """Distance bound from points to the nearest surface.

        Args:
            points: float32, [3, n], mm.
            near: for each polyp, indices of the points that may be close to it; all of them by default.

        Returns:
            float32, [n], mm.
        """
        gap = self.colon.distance(points)
        for number, polyp in enumerate(self.polyps):
            chosen = slice(None) if near is None else near[number]
            wall, other = gap[chosen], polyp.distance(points[:, chosen])
            # Polynomial smooth minimum: no crease between polyp and wall.
            between = np.maximum(BLEND_MM - np.abs(wall - other), 0)
            gap[chosen] = np.minimum(wall, other) - between * between / (4 * BLEND_MM)
        return gap

    def near(self, origin: FloatArray, rays: FloatArray) -> Near:
        """For each polyp, indices of the rays [3, n] from ``origin`` [3, 1] that pass close to it."""
        found = []
        for polyp in self.polyps:
            centre, reach = polyp.bounds()
            towards = centre.astype(np.float32) - origin[:, 0]
            ahead = np.maximum(towards @ rays, 0)
            found.append(np.flatnonzero((towards @ towards) - ahead * ahead < reach**2))
        return found

    def owner(self, points: FloatArray, depth: FloatArray) -> npt.NDArray[np.uint8]:
        """Number of the polyp that each pixel shows, 0 for the wall or the dark.

        Args:
            points: float32, [3, n], on the surface, mm.
            depth: float32, [n], distance from the camera, mm.

        Returns:
            uint8, [n].
        """
        best = self.colon.distance(points)
        owner = np.zeros(points.shape[1], dtype=np.uint8)
        for polyp in self.polyps:
            gap = polyp.distance(points)
            owner[gap < best] = polyp.number
            best = np.minimum(best, gap)
        owner[depth >= REACH_MM] = 0
        return owner


@dataclass(frozen=True)
class View:
    """Rays of a field of view, computed once for a sequence.

    Attributes:
        inside: bool, [HEIGHT_PX, WIDTH_PX].
        rays: float32, [3, n], camera coordinates, of the n pixels inside.
        coarse_rays: the same for the coarser of ``GRIDS``, pixels outside included.
    """

    inside: BoolArray
    rays: FloatArray
    coarse_rays: tuple[FloatArray, ...]

    @classmethod
    def of(cls, field: FieldOfView) -> View:
        """Rays of a field of view."""
        rays, inside = field.rays(), field.mask()
        coarse = tuple(np.ascontiguousarray(rays[:, ::step, ::step].reshape(3, -1)) for step in GRIDS[:-1])
        return cls(inside, np.ascontiguousarray(rays[:, inside]), coarse)


def trace(scene: Scene, view: View, pose: Pose) -> tuple[FloatArray, FloatArray]:
    """Find what each pixel sees.

    Args:
        scene: to look at.
        view: rays.
        pose: of the camera.

    Returns:
        Surface points, float32 [3, n], world, mm; distances from the camera, float32 [n], mm.
    """
    turn, origin = pose.turn.astype(np.float32), pose.position.astype(np.float32)[:, None]
    start = np.ones((HEIGHT_PX // GRIDS[0], WIDTH_PX // GRIDS[0]), dtype=np.float32)
    for step, count, camera_rays in zip(GRIDS, STEPS, view.coarse_rays, strict=False):
        rays = turn @ camera_rays
        depth = _march(scene, origin, rays, start.ravel(), count)
        grid = depth.reshape(HEIGHT_PX // step, WIDTH_PX // step)
        # A finer ray starts at the nearest depth around it, so that no silhouette is jumped over.
        start = 0.97 * ndimage.minimum_filter(grid, 3).repeat(2, 0).repeat(2, 1)
    rays = turn @ view.rays
    before = _march(scene, origin, rays, start[view.inside], STEPS[-1] - 1)
    depth = _march(scene, origin, rays, before, 1)
    late = np.flatnonzero((np.abs(depth - before) > 0.006 * depth + 0.1) & (depth < REACH_MM))
    depth[late] = _march(scene, origin, rays[:, late], depth[late], LAST_STEPS)
    return origin + rays * depth, depth


def _march(scene: Scene, origin: FloatArray, rays: FloatArray, depth: FloatArray, steps: int) -> FloatArray:
    """Advance along rays [3, n] from depth [n] by a number of steps; returns the new depth, mm."""
    near = scene.near(origin, rays)
    for _ in range(steps):
        depth = np.clip(depth + scene.distance(origin + rays * depth, near), NEAREST_MM, REACH_MM)
    return depth


def shade(scene: Scene, points: FloatArray, depth: FloatArray, owner: npt.NDArray[np.uint8], pose: Pose) -> FloatArray:
    """Light that each pixel receives.

    Args:
        scene: that was traced.
        points: float32, [3, n], mm.
        depth: float32, [n], mm.
        owner: uint8, [n], see ``Scene.owner``.
        pose: of the camera; the lamp sits beside the lens.

    Returns:
        float32, [3, n], linear RGB, open scale.
    """
    normal = _normals(scene, points)
    cell, across = _texture_cells(scene, points)
    albedo = scene.texture.albedo.reshape(-1, 3).take(cell, axis=0).T
    bump = scene.texture.bump.reshape(-1, 2).take(cell, axis=0).T
    for polyp in scene.polyps:
        _dress_polyp(scene, polyp, owner == polyp.number, points, albedo, bump)
    rough = normal.copy()
    rough[2] += np.float32(0.9) * bump[0]
    rough[0] += np.float32(0.9) * bump[1] * across[0]
    rough[1] += np.float32(0.9) * bump[1] * across[1]
    rough /= np.sqrt((rough * rough).sum(axis=0))

    right = pose.turn[:, 0].astype(np.float32)[:, None]
    to_camera = pose.position.astype(np.float32)[:, None] - points
    view = to_camera / np.sqrt((to_camera * to_camera).sum(axis=0))
    # Light that entered the tissue comes out beside where it went in: soft edges to the shadow.
    facing = np.maximum(((normal * 0.75 + rough * 0.25) * view).sum(axis=0) * np.float32(0.88) + np.float32(0.12), 0.16)
    falloff = 1 / (1 + (depth * np.float32(1 / 14.0)) ** 2)
    # Blue and green are swallowed on the way through many reflections: the depth is dark red.
    haze = np.exp(-depth[None, :] * np.array([[1 / 150], [1 / 85], [1 / 75]], dtype=np.float32))
    light = albedo * (facing * falloff) * haze
    glint = np.zeros_like(depth)
    for side in (-2.5, 2.5):
        lamp = to_camera + np.float32(side) * right
        half = view + lamp / np.sqrt((lamp * lamp).sum(axis=0))
        half /= np.sqrt((half * half).sum(axis=0))
        glint += np.maximum((rough * half).sum(axis=0), 0) ** 240
    light += np.float32(1.3) * scene.texture.wet.ravel().take(cell) * glint * falloff
    return np.asarray(light, dtype=np.float32)


def _normals(scene: Scene, points: FloatArray) -> FloatArray:
    """Unit normals into the lumen, float32 [3, n]."""
    normal = scene.colon.normal(points)
    close = np.zeros(points.shape[1], dtype=np.bool_)
    for polyp in scene.polyps:
        centre, reach = polyp.bounds()
        away = points - centre.astype(np.float32)[:, None]
        close |= (away * away).sum(axis=0) < (reach + 2 * BLEND_MM) ** 2
    part = points[:, close]
    step, here = np.float32(0.4), scene.distance(part)
    for axis in range(3 if part.size else 0):
        moved = part.copy()
        moved[axis] += step
        normal[axis, close] = scene.distance(moved) - here
    return np.asarray(normal / np.maximum(np.sqrt((normal * normal).sum(axis=0)), 1e-6), dtype=np.float32)


def _texture_cells(scene: Scene, points: FloatArray) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Flat index into the texture maps [n], and the direction around the tube as (x, y) [2, n]."""
    place = scene.colon.unroll(points)
    rows, columns = mucosa.SHAPE
    row = np.minimum((place.row * np.float32(rows / ROWS)).astype(np.int64), rows - 1)
    column = (place.angle * np.float32(columns / ANGLES)).astype(np.int64) % columns
    across = np.stack([-place.y, place.x]) / place.rho
    return row * columns + column, across.astype(np.float32)


def _dress_polyp(
    scene: Scene, polyp: Polyp, chosen: BoolArray, points: FloatArray, albedo: FloatArray, bump: FloatArray
) -> None:
    """Colour and relief of a polyp's pixels, in place.

    The relief is the wall's own map, read at another place and scale: finer and without vessels.
    """
    index = np.flatnonzero(chosen)
    if not len(index):
        return
    rows, columns = mucosa.SHAPE
    place = polyp.local(points[:, index])
    row = (place[0] * 34 + 11 * place[2]).astype(np.int64) % rows
    column = (place[1] * 34 + 7 * place[2]).astype(np.int64) % columns
    slope = scene.texture.bump.reshape(-1, 2).take(row * columns + column, axis=0).T
    base = scene.texture.albedo.mean(axis=(0, 1))[:, None]
    grain = np.clip(1 + np.float32(0.5) * slope.sum(axis=0), 0.6, 1.4)
    albedo[:, index] = base * polyp.colour.astype(np.float32)[:, None] * grain
    bump[:, index] = np.float32(1.3) * slope
