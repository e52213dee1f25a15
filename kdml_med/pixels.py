"""Resampling of 8-bit pictures, by OpenCV, and how they are normalised.

OpenCV runs in the thread that calls it, here and wherever this module is imported: workers and threads of ours keep
every core busy already, and nothing may depend on how many threads a library finds.
"""

from __future__ import annotations

import math
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

cv2.setNumThreads(0)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of red, green and blue, 0..1: every network sees images (pixel - mean) / std, as most published weights expect."""

Picture = npt.NDArray[np.uint8]
"""uint8, [height, width] or [height, width, channels]."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of a picture, not rounded; pixel 0 reaches from 0 to 1."""

Reduction = Literal["area", "bicubic"]
"""How pictures are made smaller: "area" takes means over areas and is fast; "bicubic" keeps more detail (against a
Lanczos filter 41 dB instead of 35 on a slide reduced by 1.5) and takes two to four times as long."""

REDUCED_FROM = 1.15
"""What is reduced by less than this is interpolated: without a low-pass filter, as much detail is kept as with one."""


def resize(
    image: Picture, width: int, height: int, box: Box | None = None, *, reduction: Reduction = "area"
) -> Picture:
    """Resample a picture, or a rectangle of it, to a size.

    Args:
        image: uint8, [height, width] or [height, width, channels].
        width: wanted, pixels.
        height: wanted, pixels.
        box: what of the image is shown, with fractions of pixels taken as such; None for all of it.
        reduction: how it is made smaller, where it is.

    Returns:
        uint8, [height, width] or [height, width, channels]. Where nothing has to be done, the image itself.
    """
    if box is None:
        box = (0, 0, image.shape[1], image.shape[0])
    # Whole pixels around the box, and the box within them.
    x, y = int(box[0]), int(box[1])
    image = image[y : math.ceil(box[3]), x : math.ceil(box[2])]
    left, top, right, bottom = box[0] - x, box[1] - y, box[2] - x, box[3] - y
    whole_h, whole_w = image.shape[:2]
    if (left, top, right, bottom) == (0, 0, width, height):
        return image
    scale_x, scale_y = (right - left) / width, (bottom - top) / height
    reduces = max(scale_x, scale_y) > REDUCED_FROM
    if reduces and reduction == "bicubic":
        return _reduce(image, width, height, (left, top, right, bottom))
    method = cv2.INTER_AREA if reduces else cv2.INTER_CUBIC
    if (left, top, right, bottom) == (0, 0, whole_w, whole_h):
        return _as_picture(cv2.resize(image, (width, height), interpolation=method))
    if (left and right != whole_w) or (top and bottom != whole_h):
        # With all edges between pixels, which takes several times as long.
        resample = _reduce if reduces else _interpolate
        return resample(image, width, height, (left, top, right, bottom))
    # OpenCV resamples from the upper left corner on by a factor; a box that begins between pixels ends at one.
    turned = {(False, True): 0, (True, False): 1, (True, True): -1}.get((left > 0, top > 0))
    if turned is not None:
        image = _as_picture(cv2.flip(image, turned))
    larger = cv2.resize(image, None, fx=1 / scale_x, fy=1 / scale_y, interpolation=method)
    found = larger[:height, :width]
    return _as_picture(found if turned is None else cv2.flip(found, turned))


def _reduce(image: Picture, width: int, height: int, box: Box) -> Picture:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box=box))


def _interpolate(image: Picture, width: int, height: int, box: Box) -> Picture:
    left, top, right, bottom = box
    scale_x, scale_y = (right - left) / width, (bottom - top) / height
    # From the middle of a pixel of the result to that in the image.
    place = np.array([[scale_x, 0, left + scale_x / 2 - 0.5], [0, scale_y, top + scale_y / 2 - 0.5]])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return _as_picture(cv2.warpAffine(image, place, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE))


def _as_picture(found: npt.NDArray[np.generic] | cv2.Mat) -> Picture:
    return np.asarray(found, np.uint8)


def reduce(image: Picture, factor: int) -> Picture:
    """Means over squares of ``factor`` × ``factor`` pixels; at the right and lower edge over what is left of them.

    Returns:
        uint8, [ceil(height / factor), ceil(width / factor)] and channels; the image itself for a factor of 1.
    """
    if factor == 1:
        return image
    if all(side % factor == 0 for side in image.shape[:2]):
        shape = image.shape[1] // factor, image.shape[0] // factor
        return _as_picture(cv2.resize(image, shape, interpolation=cv2.INTER_AREA))
    return np.asarray(Image.fromarray(image).reduce(factor))
