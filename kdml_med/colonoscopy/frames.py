"""One frame: cutting off its border, bringing it to size, and moving boxes along.

Preparation and later use on new images go through ``prepare_image``, so that a network sees what it was trained on.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import PIL.Image

from kdml_med.colonoscopy.boxes import Box
from kdml_med.colonoscopy.field import Image, Mask, find_field, find_overlays
from kdml_med.colonoscopy.options import FrameOptions


@dataclass(frozen=True)
class Placement:
    """Where the stored pixels come from in the source frame.

    Attributes:
        crop_x: left edge of the stored part, pixels of the source.
        crop_y: top edge.
        scale: stored pixels per source pixel, at most 1.
        width: of the stored frame, pixels.
        height: of the stored frame, pixels.
    """

    crop_x: int
    crop_y: int
    scale: float
    width: int
    height: int

    def to_stored(self, boxes: Iterable[Box]) -> list[Box]:
        """Boxes in pixels of the source as boxes in pixels of the stored frame, clipped to it.

        A box of which nothing is stored comes back with xmin = xmax or ymin = ymax.
        """
        moved = []
        for xmin, ymin, xmax, ymax in boxes:
            x = np.clip(np.array([xmin - self.crop_x, xmax - self.crop_x]) * self.scale, 0, self.width)
            y = np.clip(np.array([ymin - self.crop_y, ymax - self.crop_y]) * self.scale, 0, self.height)
            moved.append((float(x[0]), float(y[0]), float(x[1]), float(y[1])))
        return moved

    def to_source(self, boxes: Iterable[Box]) -> list[Box]:
        """Boxes in pixels of the stored frame as boxes in pixels of the source."""
        s, x, y = self.scale, self.crop_x, self.crop_y
        return [(box[0] / s + x, box[1] / s + y, box[2] / s + x, box[3] / s + y) for box in boxes]


@dataclass(frozen=True)
class PreparedFrame:
    """A frame as it is stored, or as a network is to see it.

    Attributes:
        pixels: uint8, [height, width, 3], RGB.
        placement: where they come from.
        kept: the part of the source frame that is stored: xmin, ymin, xmax, ymax in its pixels.
        cropped: whether that is less than all of it.
        painted: [source height, source width], True where burned-in pixels were painted over; None where none were.
    """

    pixels: Image
    placement: Placement
    kept: tuple[int, int, int, int]
    cropped: bool
    painted: Mask | None = None

    def lost_share(self, box: Box) -> float:
        """Share of a box, in pixels of the source, that was cut off or painted over, 0..1."""
        xmin, ymin, xmax, ymax = box
        left, top, right, bottom = self.kept
        inside = max(0.0, min(xmax, right) - max(xmin, left)) * max(0.0, min(ymax, bottom) - max(ymin, top))
        area = (xmax - xmin) * (ymax - ymin)
        covered = 0
        if self.painted is not None:
            covered = int(self.painted[int(ymin) : int(np.ceil(ymax)), int(xmin) : int(np.ceil(xmax))].sum())
        return min(1.0, (area - inside + covered) / area)


def prepare_image(image: Image, options: FrameOptions) -> PreparedFrame:
    """Cut off the black border, paint burned-in text beside the field black, and bring a frame to size.

    Nothing is cut or painted where the border is not clear, see ``find_field``.

    Args:
        image: uint8, [height, width, 3], RGB.
        options: ``crop``, ``mask_overlays`` and ``size_px`` are used.
    """
    height, width = image.shape[:2]
    field = find_field(image) if options.crop or options.mask_overlays else None
    kept = (0, 0, width, height)
    painted = None
    if field is not None and options.mask_overlays:
        painted = find_overlays(field)
        if painted is not None:
            image = np.where(painted[:, :, None], np.uint8(0), image)
    if field is not None and options.crop:
        kept = (field.xmin, field.ymin, field.xmax, field.ymax)
    left, top, right, bottom = kept
    if painted is not None and not painted[top:bottom, left:right].any():
        painted = None  # all of it was in what is cut off
    image = image[top:bottom, left:right]
    pixels = resize_down(image, options.size_px)
    scale = min(1.0, options.size_px / max(image.shape[:2]))
    placement = Placement(left, top, scale, pixels.shape[1], pixels.shape[0])
    return PreparedFrame(pixels, placement, kept, kept != (0, 0, width, height), painted)


def resize_down(image: Image, size_px: int) -> Image:
    """Bring the longest side to a length, anti-aliased; a smaller image stays as it is.

    Args:
        image: uint8, [height, width, 3].
        size_px: longest side afterwards, pixels.
    """
    height, width = image.shape[:2]
    scale = size_px / max(height, width)
    if scale >= 1:
        return np.ascontiguousarray(image)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    # Pillow's filters widen with the reduction, so no detail folds into false patterns.
    return np.asarray(PIL.Image.fromarray(image).resize(shape, PIL.Image.Resampling.LANCZOS))


def encode_image(pixels: Image, options: FrameOptions) -> bytes:
    """Bytes of a JPEG or PNG file.

    Args:
        pixels: uint8, [height, width, 3], RGB.
        options: ``image_format`` and ``jpeg_quality`` are used.
    """
    stream = io.BytesIO()
    image = PIL.Image.fromarray(pixels)
    if options.image_format == "jpeg":
        image.save(stream, "JPEG", quality=options.jpeg_quality, subsampling=0)
    else:
        image.save(stream, "PNG")
    return stream.getvalue()
