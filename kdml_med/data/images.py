"""Encoded images to pixels, and pixels to tensors."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

from kdml_med.errors import InputError

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
DECODERS = f"simplejpeg {version('simplejpeg')}, Pillow {version('pillow')}"
"""What ``decode_image`` decodes with; another version may give other pixels."""


def decode_image(data: bytes, *, where: str) -> Pixels:
    """Decode JPEG, PNG or any other format that Pillow reads.

    Args:
        data: encoded image.
        where: what to call it in an error.

    Returns:
        uint8, [height, width, 3], RGB.

    Raises:
        InputError: the bytes are no image.
    """
    try:
        if simplejpeg.is_jpeg(data):
            decoded: Pixels = simplejpeg.decode_jpeg(data, colorspace="RGB")
            return decoded
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow reports a broken PNG chunk as a SyntaxError, and a header with absurd sizes as a bomb.
        reason = "no format that is known" if isinstance(error, UnidentifiedImageError) else error
        raise InputError(f"{where} cannot be decoded as an image: {reason}.") from error


def resize_square(image: Pixels, size_px: int | None) -> Pixels:
    """Resize an image to a square.

    Args:
        image: uint8, [height, width, 3].
        size_px: side of the result; None keeps the size. Reduction is anti-aliased.

    Returns:
        uint8, [size_px, size_px, 3].
    """
    if size_px is None or image.shape[:2] == (size_px, size_px):
        return image
    return _resample(image, mode="bicubic", size=(size_px, size_px))


def scale_from_corner(image: Pixels, scales: Sequence[float], width: int, height: int) -> Pixels:
    """Scale an image linearly from its upper left corner on, as far as is wanted. Reduction is anti-aliased.

    Args:
        image: uint8, [rows, columns, 3].
        scales: along x and y, pixels of the result per pixel.
        width: of the result, pixels; at most that of the scaled image, as rounding has it.
        height: likewise.

    Returns:
        uint8, [height, width, 3].
    """
    # What lies farther away than the filter reaches, a pixel of the larger of the two, has no part in the result.
    ends = [
        math.ceil(size / scale + max(1, 1 / scale)) + 1 for size, scale in zip((width, height), scales, strict=True)
    ]
    image = image[: ends[1], : ends[0]]
    rows, columns = image.shape[:2]
    if min(scales) < 1:
        # Rounding must not cost the last pixel. Only reduction is torch's: where it would enlarge by less than a pixel
        # it does nothing.
        down = max(scales[1], (height + 1e-6) / rows) if scales[1] < 1 else 1
        across = max(scales[0], (width + 1e-6) / columns) if scales[0] < 1 else 1
        image = _resample(image, mode="bilinear", scale_factor=(float(down), float(across)))
    if max(scales) > 1:
        along_x, along_y = (max(scale, 1) for scale in scales)
        image = np.asarray(cv2.resize(image, None, fx=along_x, fy=along_y, interpolation=cv2.INTER_LINEAR), np.uint8)
    return image[:height, :width]


def _resample(image: Pixels, **how: Any) -> Pixels:
    """By torch, whose filters are Pillow's to one grey level, several times as fast."""
    planes = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)[None]
    return np.asarray(cv2.merge(list(interpolate(planes, antialias=True, **how)[0].numpy())), np.uint8)


def image_to_tensor(image: Pixels, size_px: int | None) -> Tensor:
    """Resize an image to a square and scale it to 0..1.

    Args:
        image: uint8, [height, width, 3].
        size_px: see ``resize_square``.

    Returns:
        float32, [3, height, width].
    """
    image = resize_square(image, size_px)
    return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32) / 255.0)
