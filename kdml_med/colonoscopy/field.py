"""The field of view of an endoscope in its frame: where it ends, and what else was burned into the picture.

A frame shows the field (a disc, octagon or rectangle) on a flat dark border, often with text, a logo or an inset beside it.
The border's brightness is read from the corners, because some processors fill it with grey instead of black.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.morphology import convex_hull_image

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

_CORNER_PX = 8  # side of the squares that the border's brightness is read from
_MAX_BORDER = 40  # grey level; a brighter corner belongs to the picture
_CONTRAST = 10  # grey levels above the border from which a pixel counts as bright; JPEG leaves about 5 there
_SPECK_PX = 5  # structures thinner than this, such as letters, do not join what they touch
_MIN_FIELD = 0.3  # share of the picture that the field's rectangle must cover to be believed
_MIN_FILL = 0.5  # share of that rectangle that must be field; a disc has 0.785
_MIN_DARK = 0.9  # share of what would be cut off that must be border; the rest may be text
_MIN_SOLID = 0.85  # share of its hull that the field must fill before anything beside it is painted over
_HALO_PX = 2  # reach of JPEG ringing around letters


@dataclass(frozen=True)
class Field:
    """The field of view in a frame.

    Attributes:
        xmin: left edge of its rectangle, pixels.
        ymin: top edge.
        xmax: right edge.
        ymax: bottom edge.
        bright: [height, width] of the whole frame, pixels brighter than the border.
        mask: [height, width] of the whole frame, bright pixels of the field.
    """

    xmin: int
    ymin: int
    xmax: int
    ymax: int
    bright: Mask
    mask: Mask


def find_field(image: Image) -> Field | None:
    """Field of view of a frame with a clear dark border.

    Pixels of the field are never outside the rectangle that is given. None is the answer whenever it is not clear:
    fewer than two corners are dark and flat, the brightest region is small or scattered, or what lies beside it is not
    dark. Two dark corners are enough, since a border may be on one side only.

    Args:
        image: uint8, [height, width, 3], RGB.

    Returns:
        The field, or None where no border is clear.
    """
    grey: Image = image.max(axis=2)
    height, width = grey.shape
    level = _border_level(grey)
    if level is None:
        return None
    bright: Mask = grey > level + _CONTRAST
    mask = _largest_region(bright)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    ymin, ymax, xmin, xmax = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    area = (ymax - ymin) * (xmax - xmin)
    # Dark parts of the bowel inside the field are field too.
    filled = ndimage.binary_fill_holes(mask[ymin:ymax, xmin:xmax]).sum()
    outside = height * width - area
    bright_outside = int(bright.sum()) - int(bright[ymin:ymax, xmin:xmax].sum())
    if area < _MIN_FIELD * height * width or filled < _MIN_FILL * area or bright_outside > (1 - _MIN_DARK) * outside:
        return None
    return Field(xmin, ymin, xmax, ymax, bright, mask)


def find_overlays(field: Field) -> Mask:
    """What is burned in beside the field: bright regions that lie outside its convex hull.

    Endoscopes show a convex field, so nothing of the bowel lies outside its hull, even where a dark lumen cuts it in two.
    Text inside the hull, or touching the field, stays: it cannot be told from the picture this simply. Nothing is found
    where the field does not fill its hull, because then the region that was taken for the field may be a part of it.

    Returns:
        [height, width] of the whole frame, pixels to paint over: the regions and the ringing of JPEG around them, but
        nothing of the hull.
    """
    inner = np.s_[field.ymin : field.ymax, field.xmin : field.xmax]
    hull = np.zeros_like(field.mask)
    hull[inner] = convex_hull_image(field.mask[inner])
    if ndimage.binary_fill_holes(field.mask[inner]).sum() < _MIN_SOLID * hull.sum():
        return np.zeros_like(field.mask)
    labels, count = ndimage.label(field.bright & ~field.mask, structure=np.ones((3, 3)))
    if not count:
        return np.zeros_like(field.mask)
    inside = np.bincount(labels.ravel(), weights=hull.ravel(), minlength=count + 1)
    alien = inside == 0
    alien[0] = False
    found: Mask = ndimage.binary_dilation(alien[labels], structure=np.ones((3, 3)), iterations=_HALO_PX) & ~hull
    return found


def _border_level(grey: Image) -> int | None:
    """Brightness of the border, grey levels; None where fewer than two corners are dark and flat."""
    side = min(_CORNER_PX, *grey.shape)
    corners = (grey[:side, :side], grey[:side, -side:], grey[-side:, :side], grey[-side:, -side:])
    levels = [
        int(np.median(corner))
        for corner in corners
        if np.median(corner) <= _MAX_BORDER and np.ptp(np.percentile(corner, (5, 95))) < _CONTRAST
    ]
    return max(levels) if len(levels) >= 2 else None


def _largest_region(bright: Mask) -> Mask:
    """Bright pixels of the largest region; what hangs on it by less than ``_SPECK_PX`` does not belong to it."""
    opened = ndimage.maximum_filter(ndimage.minimum_filter(bright, _SPECK_PX), _SPECK_PX)
    labels, count = ndimage.label(opened)
    if not count:
        return np.zeros_like(bright)
    largest = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    # Opening rounds corners off; give back the bright pixels that it took from the edge.
    return np.asarray(ndimage.maximum_filter(largest, _SPECK_PX) & bright)
