"""Encoded images to pixels, and pixels to tensors."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from kdml_med.errors import InputError

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


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
    return np.asarray(Image.fromarray(image).resize((size_px, size_px), Image.Resampling.BICUBIC))


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
