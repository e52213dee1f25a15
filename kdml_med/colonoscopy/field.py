"""The field of view of an endoscope in its frame: where it ends, and what else was burned into the picture.

A frame shows the field (a disc, octagon or rectangle) on a flat dark border, often with text, a logo or an inset beside
it. The border's brightness is read from the corners, because some processors fill it with grey instead of black.
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
_OVERLAY_CONTRAST = 80  # grey levels above the border that burned-in text exceeds
_SPECK_PX = 5  # structures thinner than this, such as letters, do not join what they touch
_MIN_FIELD = 0.3  # share of the picture that the field's rectangle must cover to be believed
_MIN_FILL = 0.5  # share of that rectangle that must be field; a disc has 0.785
_MIN_DARK = 0.9  # share of what would be cut off that must be border; the rest may be text
_MIN_SOLID = 0.85  # share of its hull that the field must fill before anything beside it is painted over
_HULL_PX = 320  # longest side of the grid that the hull is found on
_HALO_PX = 2  # reach of JPEG ringing around letters


@dataclass(frozen=True)
class Field:
    """The field of view in a frame.

    Attributes:
        xmin: left edge of its rectangle, pixels.
        ymin: top edge.
        xmax: right edge.
        ymax: bottom edge.
        level: brightness of the border, grey levels.
        grey: [height, width] of the whole frame, brightest channel of each pixel.
        mask: [height, width] of the whole frame, pixels of the field that are brighter than the border.
    """

    xmin: int
    ymin: int
    xmax: int
    ymax: int
    level: int
    grey: Image
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
    grey: Image = np.maximum(np.maximum(image[:, :, 0], image[:, :, 1]), image[:, :, 2])
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
    filled = _filled_area(mask[ymin:ymax, xmin:xmax])
    outside = height * width - area
    bright_outside = int(bright.sum()) - int(bright[ymin:ymax, xmin:xmax].sum())
    if area < _MIN_FIELD * height * width or filled < _MIN_FILL * area or bright_outside > (1 - _MIN_DARK) * outside:
        return None
    return Field(xmin, ymin, xmax, ymax, level, grey, mask)


def find_overlays(field: Field) -> Mask | None:
    """What is burned in beside the field: text, logos and insets in the dark corners.

    Endoscopes show a convex field with its left like its right and its top like its bottom. So nothing of the bowel
    lies outside the hull of what is lit, joined with the mirror images of that hull, even where a dark lumen hides a
    side.
    Only regions that are bright somewhere count: dim ones are ringing of JPEG, or bowel that the light hardly reaches.
    What lies in the field or touches it stays, because it cannot be told from the picture this simply. Nothing is found
    where what is lit does not fill its hull: then it may be a part of the field.

    Returns:
        [height, width] of the whole frame, pixels to paint over: the regions and the ringing of JPEG around them, but
        nothing of the field. None where there are none.
    """
    labels, count = ndimage.label((field.grey > field.level + _CONTRAST) & ~field.mask, structure=np.ones((3, 3)))
    alien = np.zeros(count + 1, dtype=np.bool_)
    alien[labels[field.grey > field.level + _OVERLAY_CONTRAST]] = True
    alien[0] = False
    if not alien.any():
        return None
    inner = np.s_[field.ymin : field.ymax, field.xmin : field.xmax]
    hull = _hull(field.mask[inner])
    if _filled_area(field.mask[inner]) < _MIN_SOLID * hull.sum():
        return None
    hull |= hull[:, ::-1]
    hull |= hull[::-1]
    view = np.zeros_like(field.mask)
    view[inner] = hull
    alien[labels[view]] = False
    if not alien.any():
        return None
    return _spread(alien[labels], _HALO_PX) & ~view


def field_mask(image: Image) -> Mask:
    """The field of view of a frame with the dark parts inside it; all of the frame where no border is clear.

    Args:
        image: uint8, [height, width, 3], RGB.
    """
    field = find_field(image)
    if field is None:
        return np.ones(image.shape[:2], np.bool_)
    labels, outside = _outside(field.mask)
    return np.asarray(~outside[labels])


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
    opened = _spread(~_spread(~bright, _SPECK_PX // 2), _SPECK_PX // 2)
    labels, count = ndimage.label(opened)
    if not count:
        return np.zeros_like(bright)
    largest = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    # Opening rounds corners off; give back the bright pixels that it took from the edge.
    return _spread(largest, _SPECK_PX // 2) & bright


def _spread(mask: Mask, reach: int) -> Mask:
    """The mask grown by some pixels in all eight directions; ten times as fast as scipy's filters on large frames."""
    height, width = mask.shape
    padded = np.pad(mask, reach)
    rows = np.logical_or.reduce([padded[i : i + height] for i in range(2 * reach + 1)])
    return np.asarray(np.logical_or.reduce([rows[:, i : i + width] for i in range(2 * reach + 1)]))


def _filled_area(mask: Mask) -> int:
    """Pixels of a mask and of the holes in it."""
    labels, outside = _outside(mask)
    return mask.size - int(np.bincount(labels.ravel(), minlength=len(outside))[outside].sum())


def _outside(mask: Mask) -> tuple[npt.NDArray[np.int32], Mask]:
    """Regions of what is no mask, by number for each pixel, and which of them are joined to the edge of the picture.

    Those that are not are holes in the mask; the mask itself has the number 0.
    """
    labels, count = ndimage.label(~mask)
    outside = np.zeros(count + 1, dtype=np.bool_)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        outside[edge] = True
    outside[0] = False
    return labels, outside


def _hull(mask: Mask) -> Mask:
    """Convex hull of a mask, at most a few pixels too large on large frames, where it is found on a coarser grid."""
    step = max(1, max(mask.shape) // _HULL_PX)
    height, width = (-(-side // step) for side in mask.shape)
    coarse = np.zeros((height * step, width * step), dtype=np.bool_)
    coarse[: mask.shape[0], : mask.shape[1]] = mask
    hull = convex_hull_image(coarse.reshape(height, step, width, step).any(axis=(1, 3)))
    return np.asarray(hull.repeat(step, axis=0).repeat(step, axis=1)[: mask.shape[0], : mask.shape[1]])
