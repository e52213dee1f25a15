"""Smooth random fields and small stamps: the image primitives that the painter is built from.

Arrays are indexed [row, col]; every function is a pure function of its arguments and the generator handed in.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], sigma: float | tuple[float, float]) -> FloatArray:
    """Gaussian noise with mean 0 and variance 1 whose neighbours agree over about ``sigma`` pixels.

    Args:
        rng: generator to draw from.
        shape: rows, columns.
        sigma: of the Gaussian filter, pixels; a pair is (rows, columns).

    Returns:
        float32, ``shape``.
    """
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma, mode="wrap", truncate=3.0)
    noise -= noise.mean()
    noise /= noise.std()
    return np.asarray(noise, dtype=np.float32)


def enlarge(field: FloatArray, shape: tuple[int, int]) -> FloatArray:
    """Interpolate a coarse field to a larger shape (bicubic, pixel areas aligned, not pixel centres).

    Args:
        field: float32, [rows, columns].
        shape: rows, columns wanted.

    Returns:
        float32, ``shape``; may overshoot the range of ``field`` a little.
    """
    image = Image.fromarray(np.ascontiguousarray(field, dtype=np.float32))
    return np.array(image.resize((shape[1], shape[0]), Image.Resampling.BICUBIC), dtype=np.float32)


def enlarge_wrapped(field: FloatArray, shape: tuple[int, int]) -> FloatArray:
    """Like ``enlarge``, for a field whose last row and column are neighbours of the first; ratios must be whole."""
    margin = 3  # the bicubic kernel reaches two cells
    rows, columns = (large // small for large, small in zip(shape, field.shape, strict=True))
    padded = np.pad(field, margin, mode="wrap")
    large = enlarge(padded, (padded.shape[0] * rows, padded.shape[1] * columns))
    return large[margin * rows : margin * rows + shape[0], margin * columns : margin * columns + shape[1]]


def block_mean(field: npt.NDArray[np.generic], factor: int) -> FloatArray:
    """Mean over squares of ``factor`` pixels; both sides of ``field`` must be multiples of it.

    Args:
        field: number or bool, [rows, columns].
        factor: side of a square, pixels.

    Returns:
        float32, [rows / factor, columns / factor].
    """
    rows, columns = field.shape
    if field.dtype.kind in "bu":
        # Whole numbers add up to the same in any order: whole rows first, which takes a sixth of the time.
        lines = np.add.reduce(field.reshape(rows // factor, factor, columns), axis=1, dtype=np.uint32)
        sums = lines.reshape(rows // factor, columns // factor, factor).sum(axis=2, dtype=np.uint32)
        return np.asarray(sums.astype(np.float32) / np.float32(factor**2), dtype=np.float32)
    blocks = field.reshape(rows // factor, factor, columns // factor, factor)
    return np.asarray(blocks.mean(axis=(1, 3), dtype=np.float32), dtype=np.float32)


def ellipse_kernels(length_px: float, width_px: float, orientations: int, *, softness_px: float = 1.0) -> FloatArray:
    """Soft-edged ellipses at evenly spaced orientations.

    Args:
        length_px: full long axis, pixels.
        width_px: full short axis, pixels.
        orientations: number of angles over half a turn; angle 0 lies along the columns (x).
        softness_px: width of the edge, pixels.

    Returns:
        float32, [orientations, side, side] with odd ``side``; 1 inside, 0 outside.
    """
    reach = int(np.ceil(length_px / 2 + softness_px))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    angles = np.arange(orientations, dtype=np.float32)[:, None, None] * np.float32(np.pi / orientations)
    along = x * np.cos(angles) + y * np.sin(angles)
    across = -x * np.sin(angles) + y * np.cos(angles)
    radius = np.hypot(along / (length_px / 2), across / (width_px / 2))
    edge = softness_px / (min(length_px, width_px) / 2)
    return np.asarray(np.clip((1 - radius) / edge + 0.5, 0, 1), dtype=np.float32)


def stamp(
    canvas: FloatArray, centres: IntArray, kernels: FloatArray, which: IntArray, strength: npt.NDArray[np.float64]
) -> None:
    """Paint kernels onto the canvas in place, keeping the darker value where they overlap.

    Centres whose kernel would cross the border are left out.

    Args:
        canvas: float32, [rows, columns]; changed.
        centres: int64, [n, 2], (row, col) in pixels.
        kernels: float32, [k, side, side], side odd.
        which: int64, [n], index into ``kernels``.
        strength: [n], factor on the kernel.
    """
    reach = kernels.shape[1] // 2
    limit = np.array(canvas.shape) - reach
    inside = np.all((centres >= reach) & (centres < limit), axis=1)
    for (row, column), index, factor in zip(centres[inside], which[inside], strength[inside], strict=True):
        window = canvas[row - reach : row + reach + 1, column - reach : column + reach + 1]
        np.maximum(window, kernels[index] * np.float32(factor), out=window)
