"""Colonoscopy frames of a dataset folder as samples for detection, and their placement in the network's input."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from monai.transforms import Randomizable, Transform
from PIL import Image

from kdml_med.data.drafts import Drafts, Numbers, QuickTransform
from kdml_med.data.images import Pixels, image_to_tensor, scale_from_corner
from kdml_med.data.samples import ManifestDataset
from kdml_med.keys import BatchKey
from kdml_med.storage.manifest import FRAME_COLUMNS, DatasetKind

Boxes = npt.NDArray[np.float32]

_PLACE_DRAWS = 6


class FrameDataset(ManifestDataset):
    """Frames with their boxes, in the size they are stored in.

    A sample has the image (uint8, [height, width, 3]) and, as its label, float32 boxes [n, 4], pixels of that image. A
    transform has to place it in an input of one size: ``PlaceFrame`` or ``RandPlaceFrame``.
    """

    kind = DatasetKind.FRAMES
    columns = FRAME_COLUMNS.names
    finishes = False

    def boxes(self, position: int) -> Boxes:
        """Boxes of a frame, [n, 4]; none where it is unlabelled."""
        boxes = self.rows["boxes"].array[position]
        return np.stack(boxes).astype(np.float32) if boxes is not None and len(boxes) else np.zeros((0, 4), np.float32)

    def sample(self, position: int) -> dict[str, Any]:
        """Image and boxes of a frame."""
        return {BatchKey.IMAGE.value: self.read(position), BatchKey.LABEL.value: self.boxes(position)}


class _Placement(QuickTransform, Transform):
    """Bring the frame of a sample, and its boxes, into the network's input.

    Args:
        size: (height, width) of the input, or the side of a square one, pixels.
    """

    def __init__(self, size: int | Sequence[int]) -> None:
        self.height, self.width = input_size(size)

    @abstractmethod
    def place(self, sample: dict[Any, Any], numbers: Numbers) -> None:
        """Replace the entries of a sample.

        Args:
            sample: its image becomes uint8, [height, width, 3] of the input.
            numbers: float64, [draws], uniform in 0..1.
        """

    def quick(self, drafts: Drafts, numbers: Numbers) -> None:
        """Place the frames of a batch."""
        for sample, own in zip(drafts.samples, numbers, strict=True):
            self.place(sample, own)


class PlaceFrame(_Placement):
    """Scale a frame to fit the network's input, into its upper left corner; the rest is black.

    Adds ``BatchKey.SCALE``, input pixels per stored pixel, and ``BatchKey.FRAME_SIZE``, (width, height) of the stored
    frame, which lead detections back.

    Args:
        size: (height, width) of the input, or the side of a square one, pixels.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Place the frame of one sample; its image becomes float32."""
        sample = dict(data)
        self.place(sample, np.empty(0))
        sample[BatchKey.IMAGE] = image_to_tensor(sample[BatchKey.IMAGE], None)
        return sample

    def place(self, sample: dict[Any, Any], numbers: Numbers) -> None:
        """Place one frame."""
        image: Pixels = sample[BatchKey.IMAGE]
        height, width = image.shape[:2]
        scale = min(self.height / height, self.width / width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        canvas = np.zeros((self.height, self.width, 3), np.uint8)
        # Exported detectors do what Pillow does to the byte.
        scaled = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        canvas[: size[1], : size[0]] = scaled
        sample[BatchKey.IMAGE.value] = canvas
        sample[BatchKey.LABEL.value] = torch.from_numpy(sample[BatchKey.LABEL] * np.float32(scale))
        sample[BatchKey.SCALE.value] = np.float32(scale)
        sample[BatchKey.FRAME_SIZE.value] = np.array([width, height], np.float32)


class RandPlaceFrame(Randomizable, _Placement):
    """Place a frame at random: zoomed, shifted, mirrored and turned by quarters, in one resampling.

    An endoscope has no preferred direction, so that mirror images and quarter turns are as good as the frame itself.
    Boxes move with the pixels and are cut at the border of the input; one of which less than ``min_visible`` is left
    goes. What lies outside the frame is black.

    Args:
        size: (height, width) of the input, or the side of a square one, pixels.
        zoom: range of the factor to the scale that would just fit the frame.
        stretch: range of the factor by which the width is changed against the height, and its inverse.
        min_visible: share of a box that must stay inside.
        tries: placements that are drawn until every box of the frame has ``min_visible`` left; the last is taken.

    Raises:
        ValueError: zoom is no range above 0, or stretch or tries is below 1.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        *,
        zoom: tuple[float, float] = (0.7, 1.5),
        stretch: float = 1.15,
        min_visible: float = 0.5,
        tries: int = 5,
    ) -> None:
        super().__init__(size)
        if not 0 < zoom[0] <= zoom[1] or stretch < 1 or tries < 1:
            raise ValueError(
                f"zoom is {zoom}, stretch {stretch}, tries {tries}; expected a range above 0, at least 1, at least 1."
            )
        self.zoom, self.stretch = tuple(zoom), stretch
        self.min_visible, self.tries = min_visible, tries
        self.draws = _PLACE_DRAWS * tries

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Place the frame of one sample; its image becomes float32."""
        sample = dict(data)
        self.place(sample, self.R.uniform(size=self.draws))
        sample[BatchKey.IMAGE] = image_to_tensor(sample[BatchKey.IMAGE], None)
        return sample

    def place(self, sample: dict[Any, Any], numbers: Numbers) -> None:
        """Place one frame."""
        image: Pixels = sample[BatchKey.IMAGE]
        boxes: Boxes = sample[BatchKey.LABEL]
        for own in numbers.reshape(self.tries, -1):
            matrix = self.matrix(own, image.shape[0], image.shape[1])
            moved = move_boxes(boxes, matrix)
            inside = np.clip(moved, 0, [self.width, self.height, self.width, self.height]).astype(np.float32)
            visible = _areas(inside) / np.maximum(_areas(moved), 1e-6)
            if (visible >= self.min_visible).all():
                break
        sample[BatchKey.IMAGE.value] = move_pixels(image, matrix, self.height, self.width)
        sample[BatchKey.LABEL.value] = torch.from_numpy(inside[visible >= self.min_visible])

    def matrix(self, numbers: Numbers, height: int, width: int) -> npt.NDArray[np.float64]:
        """Placement of a frame.

        Args:
            numbers: float64, [6], uniform in 0..1: turn, mirror, zoom, stretch, place along x and y.
            height: of the frame, pixels.
            width: likewise.

        Returns:
            float64, [3, 3], from (x, y, 1) of the frame to that of the input. The upper left corner of what is to be
            seen is that of a pixel in both, so that it need not be resampled from between pixels.
        """
        own = numbers.tolist()
        turn, mirror = int(4 * own[0]), 1 if own[1] < 0.5 else -1
        low, high = (math.log(limit) for limit in self.zoom)
        zoom = math.exp(low + (high - low) * own[2])
        stretch = math.exp((2 * own[3] - 1) * math.log(self.stretch) / 2)
        rows, columns = (height, width) if turn % 2 == 0 else (width, height)
        scale = zoom * min(self.height / rows, self.width / columns)
        cosine, sine = [(1, 0), (0, 1), (-1, 0), (0, -1)][turn]
        along_x, along_y = scale * stretch, scale / stretch
        return np.array(
            [
                _axis(along_x, cosine * mirror, -sine, (width, height), own[4] * (self.width - along_x * columns)),
                _axis(along_y, sine * mirror, cosine, (width, height), own[5] * (self.height - along_y * rows)),
                [0, 0, 1],
            ]
        )


def _axis(scale: float, along_x: int, along_y: int, sides: tuple[int, int], low: float) -> list[float]:
    """Row of a matrix by which an axis of the input gets a side of the frame, whose lower end comes to ``low``.

    That is anywhere between touching one border and touching the other, whether the frame is smaller or larger; here it
    is brought to the nearest whole pixel, of the input or of the frame that begins outside of it.
    """
    low = round(-low / scale) * -scale if low < 0 else round(low)
    ends = min(scale * along_x * sides[0], 0) + min(scale * along_y * sides[1], 0)
    return [scale * along_x, scale * along_y, low - ends]


def move_pixels(image: Pixels, matrix: npt.NDArray[np.float64], height: int, width: int) -> Pixels:
    """An image under an affine map without shear whose turns are quarters, on a black canvas.

    Reduction is anti-aliased as in ``PlaceFrame``: noise would be stronger in training than afterwards.

    Args:
        image: uint8, [rows, columns, 3].
        matrix: [3, 3], acts on (x, y, 1); see ``RandPlaceFrame.matrix`` for where its corners lie.
        height: of the canvas, pixels.
        width: likewise.
    """
    (x_by_x, x_by_y, x), (y_by_x, y_by_y, y), _ = matrix.tolist()
    turned = abs(x_by_y) > abs(x_by_x)
    rows, columns = image.shape[:2]
    across = _Span.find(x_by_y if turned else x_by_x, x, rows if turned else columns, width)
    down = _Span.find(y_by_x if turned else y_by_y, y, columns if turned else rows, height)
    canvas = np.zeros((height, width, 3), np.uint8)
    if across.size <= 0 or down.size <= 0:
        return canvas
    first, second = (across, down) if turned else (down, across)  # along the rows and columns of the image
    part = image[first.part, second.part]
    mirror = {(True, False): 0, (False, True): 1, (True, True): -1}.get((first.mirrored, second.mirrored))
    part = part if mirror is None else _pixels(cv2.flip(part, mirror))
    shown = scale_from_corner(part, (second.scale, first.scale), second.size, first.size)
    canvas[down.first : down.last, across.first : across.last] = _pixels(cv2.transpose(shown)) if turned else shown
    return canvas


@dataclass(frozen=True)
class _Span:
    """What of a side of an image falls on an axis of a canvas.

    Attributes:
        scale: pixels of the canvas per pixel of the image.
        mirrored: whether it runs the other way.
        part: pixels of the image, from the first that is to be seen to the end of the image.
        first: pixel of the canvas.
        last: after the last pixel.
    """

    scale: float
    mirrored: bool
    part: slice
    first: int
    last: int

    @property
    def size(self) -> int:
        """Pixels of the canvas."""
        return self.last - self.first

    @classmethod
    def find(cls, factor: float, offset: float, side: int, limit: int) -> _Span:
        """Whole pixels, up to rounding, of a canvas of ``limit`` pixels."""
        scale = abs(factor)
        low = offset + min(factor * side, 0)
        first = round(max(low, 0))
        start = round((first - low) / scale)
        part = slice(0, max(side - start, 0)) if factor < 0 else slice(start, side)
        return cls(scale, factor < 0, part, first, math.floor(min(low + scale * side, limit) + 1e-6))


def move_boxes(boxes: Boxes, matrix: npt.NDArray[np.float64]) -> Boxes:
    """Boxes around the images of boxes under an affine map without shear.

    Args:
        boxes: [n, 4].
        matrix: [3, 3], acts on (x, y, 1).
    """
    corners = boxes.reshape(-1, 2, 2) @ matrix[:2, :2].T + matrix[:2, 2]
    return np.sort(corners, axis=1).reshape(-1, 4).astype(np.float32)


def input_size(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of an input that is given as a pair or as the side of a square."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _pixels(found: Any) -> Pixels:
    return np.asarray(found, np.uint8)


def _areas(boxes: Boxes) -> npt.NDArray[np.float64]:
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).astype(np.float64)
    return np.asarray(sides.prod(axis=1))
