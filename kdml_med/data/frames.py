"""Colonoscopy frames of a dataset folder as samples for detection, and their placement in the network's input."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.transforms import Randomizable, Transform
from PIL import Image

from kdml_med.data.images import Pixels, image_to_tensor
from kdml_med.data.samples import ManifestDataset
from kdml_med.keys import BatchKey
from kdml_med.storage.manifest import FRAME_COLUMNS, DatasetKind

Boxes = npt.NDArray[np.float32]


class FrameDataset(ManifestDataset):
    """Frames with their boxes, in the size they are stored in.

    A sample has the image (uint8, [height, width, 3]) and, as its label, float32 boxes [n, 4], pixels of that image. A
    transform has to place it in an input of one size: ``PlaceFrame`` or ``RandPlaceFrame``.
    """

    kind = DatasetKind.FRAMES
    columns = FRAME_COLUMNS.names

    def boxes(self, position: int) -> Boxes:
        """Boxes of a frame, [n, 4]; none where it is unlabelled."""
        boxes = self.rows.iloc[position]["boxes"]
        return np.stack(boxes).astype(np.float32) if boxes is not None and len(boxes) else np.zeros((0, 4), np.float32)

    def sample(self, position: int) -> dict[str, Any]:
        """Image, boxes and identifiers of a frame."""
        row = self.rows.iloc[position]
        return {
            BatchKey.IMAGE.value: self.read(position),
            BatchKey.LABEL.value: self.boxes(position),
            BatchKey.SAMPLE_ID.value: row["sample_id"],
            BatchKey.SEQUENCE_ID.value: row["sequence_id"],
            BatchKey.PATIENT_ID.value: row["patient_id"],
        }


class PlaceFrame(Transform):
    """Scale a frame to fit the network's input, into its upper left corner; the rest is black.

    Adds ``BatchKey.SCALE``, input pixels per stored pixel, and ``BatchKey.FRAME_SIZE``, (width, height) of the stored
    frame, which lead detections back.

    Args:
        size: (height, width) of the input, or the side of a square one, pixels.
    """

    def __init__(self, size: int | Sequence[int]) -> None:
        self.height, self.width = input_size(size)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Place the frame of one sample."""
        sample = dict(data)
        image: Pixels = sample[BatchKey.IMAGE]
        height, width = image.shape[:2]
        scale = min(self.height / height, self.width / width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        canvas = np.zeros((self.height, self.width, 3), np.uint8)
        scaled = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        canvas[: size[1], : size[0]] = scaled
        sample[BatchKey.IMAGE] = image_to_tensor(canvas, None)
        sample[BatchKey.LABEL] = torch.from_numpy(sample[BatchKey.LABEL] * np.float32(scale))
        sample[BatchKey.SCALE] = np.float32(scale)
        sample[BatchKey.FRAME_SIZE] = np.array([width, height], np.float32)
        return sample


class RandPlaceFrame(Randomizable, Transform):
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
        self.height, self.width = input_size(size)
        if not 0 < zoom[0] <= zoom[1] or stretch < 1 or tries < 1:
            raise ValueError(
                f"zoom is {zoom}, stretch {stretch}, tries {tries}; expected a range above 0, at least 1, at least 1."
            )
        self.zoom, self.stretch = tuple(zoom), stretch
        self.min_visible, self.tries = min_visible, tries

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Place the frame of one sample."""
        sample = dict(data)
        image: Pixels = sample[BatchKey.IMAGE]
        boxes: Boxes = sample[BatchKey.LABEL]
        for _ in range(self.tries):
            matrix = self._draw(image.shape[0], image.shape[1])
            moved = move_boxes(boxes, matrix)
            inside = np.clip(moved, 0, [self.width, self.height, self.width, self.height]).astype(np.float32)
            visible = _areas(inside) / np.maximum(_areas(moved), 1e-6)
            if (visible >= self.min_visible).all():
                break
        sample[BatchKey.IMAGE] = image_to_tensor(move_pixels(image, matrix, self.height, self.width), None)
        sample[BatchKey.LABEL] = torch.from_numpy(inside[visible >= self.min_visible])
        return sample

    def _draw(self, height: int, width: int) -> npt.NDArray[np.float64]:
        """Matrix [3, 3] from (x, y, 1) of the frame to that of the input."""
        turn = self.R.randint(4)
        mirror = 1 - 2 * self.R.randint(2)
        zoom = np.exp(self.R.uniform(*np.log(self.zoom)))
        stretch = np.exp(self.R.uniform(-1, 1) * np.log(self.stretch) / 2)
        places = self.R.uniform(0, 1, 2)
        sides = (height, width) if turn % 2 == 0 else (width, height)
        scale = zoom * min(self.height / sides[0], self.width / sides[1])
        cosine, sine = [(1, 0), (0, 1), (-1, 0), (0, -1)][turn]
        linear = np.diag([scale * stretch, scale / stretch]) @ np.array([[cosine, -sine], [sine, cosine]], float)
        linear = linear @ np.diag([mirror, 1])
        corners = linear @ np.array([[0, width, 0, width], [0, 0, height, height]], float)
        low, size = corners.min(axis=1), np.ptp(corners, axis=1)
        # Anywhere between touching one border and touching the other, whether the frame is smaller or larger.
        offset = places * (np.array([self.width, self.height]) - size) - low
        return np.vstack([np.column_stack([linear, offset]), [0, 0, 1]])


def move_pixels(image: Pixels, matrix: npt.NDArray[np.float64], height: int, width: int) -> Pixels:
    """An image under an affine map without shear whose turns are quarters, on a black canvas.

    Reduction is anti-aliased as in ``PlaceFrame``, which Pillow's affine transform is not: noise would be stronger in
    training than afterwards.

    Args:
        image: uint8, [rows, columns, 3].
        matrix: [3, 3], acts on (x, y, 1).
        height: of the canvas, pixels.
        width: likewise.
    """
    linear, offset = matrix[:2, :2], matrix[:2, 2]
    if abs(linear[0, 1]) > abs(linear[0, 0]):
        image, linear = image.transpose(1, 0, 2), linear[:, ::-1]
    image = image[:: 1 if linear[1, 1] > 0 else -1, :: 1 if linear[0, 0] > 0 else -1]
    sides = np.array(image.shape[1::-1], float)
    scale = np.abs(np.diag(linear))
    low = offset + np.minimum(np.diag(linear) * sides, 0)
    # Whole pixels of the canvas that the image covers, up to rounding, and the part of the image that falls on them.
    first = np.ceil(np.maximum(low, 0) - 1e-6).astype(int)
    last = np.floor(np.minimum(low + scale * sides, [width, height]) + 1e-6).astype(int)
    canvas = np.zeros((height, width, 3), np.uint8)
    if (first < last).all():
        part = np.clip([(first - low) / scale, (last - low) / scale], 0, sides).ravel().tolist()
        scaled = Image.fromarray(np.ascontiguousarray(image)).resize(
            tuple((last - first).tolist()), Image.Resampling.BILINEAR, box=tuple(part)
        )
        canvas[first[1] : last[1], first[0] : last[0]] = np.asarray(scaled)
    return canvas


def move_boxes(boxes: Boxes, matrix: npt.NDArray[np.float64]) -> Boxes:
    """Boxes around the images of boxes under an affine map without shear.

    Args:
        boxes: [n, 4].
        matrix: [3, 3], acts on (x, y, 1).
    """
    corners = np.stack([boxes[:, [0, 1]], boxes[:, [2, 3]]], axis=1) @ matrix[:2, :2].T + matrix[:2, 2]
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)


def input_size(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of an input that is given as a pair or as the side of a square."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _areas(boxes: Boxes) -> npt.NDArray[np.float64]:
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).astype(np.float64)
    return np.asarray(sides.prod(axis=1))
