"""Pen strokes and blurred regions, as scanned slides have them, with their geometry recorded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

from kdml_med.demo.fields import BoolArray

UInt8Image = npt.NDArray[np.uint8]

INKS = {"green": (38, 132, 74), "blue": (40, 62, 158), "black": (34, 32, 36)}
"""Ink colours, RGB."""


@dataclass(frozen=True)
class PenStroke:
    """One stroke of a marker.

    Attributes:
        colour: a key of ``INKS``.
        points: (x, y) of the polyline's corners, level-0 pixels.
        width_px: full width, level-0 pixels.
    """

    colour: str
    points: list[tuple[float, float]]
    width_px: float


@dataclass(frozen=True)
class BlurRegion:
    """A disc that is out of focus.

    Attributes:
        x: centre, level-0 pixels.
        y: centre, level-0 pixels.
        radius_px: radius of full effect, level-0 pixels; it fades out over the next tenth.
        sigma_px: of the Gaussian, level-0 pixels.
    """

    x: int
    y: int
    radius_px: int
    sigma_px: float


def draw_pen(rng: np.random.Generator, mask: BoolArray, downsample: int, mpp: float) -> list[PenStroke]:
    """Draw whether and where the slide has pen: a third of the slides has one or two strokes.

    Args:
        rng: generator to draw from.
        mask: bool, [rows, columns], tissue at ``downsample``.
        downsample: level-0 pixels per mask pixel.
        mpp: micrometres per level-0 pixel.
    """
    if rng.random() > 0.34:
        return []
    edge = np.argwhere(mask & ~ndimage.binary_erosion(mask, iterations=2))
    strokes = []
    for _ in range(int(rng.integers(1, 3))):
        y, x = edge[rng.integers(len(edge))] * downsample
        # A bent line through a point of the outline: part of it lies on tissue, part on glass.
        heading, bend = rng.uniform(0, 2 * np.pi), rng.uniform(-1.2, 1.2)
        step = np.linspace(-1, 1, 13)
        angle = heading + bend * step
        reach = rng.uniform(130, 260) / mpp * step
        points = [
            (round(float(x + r * np.cos(a)), 1), round(float(y + r * np.sin(a)), 1))
            for r, a in zip(reach, angle, strict=True)
        ]
        colour = list(INKS)[int(rng.integers(len(INKS)))]
        strokes.append(PenStroke(colour, points, round(float(rng.uniform(45, 75) / mpp), 1)))
    return strokes


def draw_blur(rng: np.random.Generator, mask: BoolArray, downsample: int, mpp: float) -> list[BlurRegion]:
    """Draw whether and where the slide is out of focus: a third of the slides, once, centred on tissue."""
    if rng.random() > 0.34:
        return []
    inside = np.argwhere(mask)
    y, x = inside[rng.integers(len(inside))] * downsample
    radius = int(rng.uniform(110, 180) / mpp)
    return [BlurRegion(int(x), int(y), radius, round(float(rng.uniform(3.0, 4.5) / mpp), 2))]


def pen_mask(strokes: list[PenStroke], size_px: int, downsample: int = 1) -> BoolArray:
    """Pixels under ink, bool [rows, columns], for a square slide of ``size_px`` at ``downsample``."""
    side = size_px // downsample
    picture = Image.new("1", (side, side))
    canvas = ImageDraw.Draw(picture)
    for stroke in strokes:
        points = [(x / downsample, y / downsample) for x, y in stroke.points]
        half = stroke.width_px / downsample / 2
        canvas.line(points, fill=1, width=max(1, round(2 * half)), joint="curve")
        for x, y in (points[0], points[-1]):
            canvas.ellipse((x - half, y - half, x + half, y + half), fill=1)
    return np.asarray(picture, dtype=np.bool_)


def apply_blur(image: UInt8Image, regions: list[BlurRegion]) -> None:
    """Blur the regions of an RGB image [rows, columns, 3] in place."""
    for region in regions:
        reach = round(1.1 * region.radius_px) + 1
        top, left = max(region.y - reach, 0), max(region.x - reach, 0)
        window = image[top : region.y + reach, left : region.x + reach]
        y, x = np.mgrid[top : top + window.shape[0], left : left + window.shape[1]]
        distance = np.hypot(y - region.y, x - region.x) / region.radius_px
        weight = np.clip((1.1 - distance) / 0.1, 0, 1)[..., None]
        soft = ndimage.gaussian_filter(window.astype(np.float32), (region.sigma_px, region.sigma_px, 0), truncate=3.0)
        window[:] = np.rint(window + weight * (soft - window)).astype(np.uint8)


def apply_pen(image: UInt8Image, strokes: list[PenStroke]) -> None:
    """Ink the strokes onto an RGB image [rows, columns, 3] in place; some of the tissue shines through."""
    for stroke in strokes:
        under = pen_mask([stroke], image.shape[0])
        ink = np.array(INKS[stroke.colour], dtype=np.float32)
        image[under] = np.rint(0.88 * ink + 0.12 * image[under]).astype(np.uint8)


def describe(items: list[PenStroke] | list[BlurRegion]) -> list[dict[str, Any]]:
    """The same geometry as plain dictionaries, for JSON."""
    return [asdict(item) for item in items]
