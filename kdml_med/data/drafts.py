"""A batch in the making: 8-bit pixels, and what every grey level of them will become.

Mirroring and turning move bytes; changes of colour are kept as one table for each sample, or as one affine map where
colours mix, and applied once, when the batch is finished. So a chain of transforms costs little more than decoding.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from monai.transforms import Compose, RandFlipd, RandRotate90d
from torch import Tensor

from kdml_med.data.images import Pixels
from kdml_med.keys import BatchKey

Numbers = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

IMAGE_KEYS = (BatchKey.IMAGE,)
GREY_LEVELS = np.arange(256, dtype=np.float32) / np.float32(255)


@dataclass
class ColourMaps:
    """Affine maps of colours, clipped, one for each sample.

    Attributes:
        matrices: float32, [samples, 3, 4], from (red, green, blue, 1), grey levels 0..255, to the values.
        low: float32, [3], what values are clipped to from below; the value of quite black pixels.
        high: float32, [3], from above.
    """

    matrices: Floats
    low: Floats
    high: Floats

    def as_rows(self) -> Floats:
        """float32, [samples, 3, 6]: for each colour its row of the matrix, ``low`` and ``high``."""
        limits = np.column_stack([self.low, self.high])
        return np.concatenate([self.matrices, np.tile(limits, (len(self.matrices), 1, 1))], axis=2, dtype=np.float32)


class Drafts:
    """Samples of a batch while transforms work on them.

    Args:
        samples: with uint8 pixels [height, width, 3] as ``BatchKey.IMAGE``.

    Attributes:
        samples: the same; transforms replace entries.
        tables: float32, [samples, 3, 256], value of each grey level of each colour.
        maps: that take the place of the tables where colours are mixed; None while they are not.
    """

    def __init__(self, samples: list[dict[str, Any]]) -> None:
        self.samples = samples
        self.tables: Floats = np.tile(GREY_LEVELS, (len(samples), 3, 1))
        self.maps: ColourMaps | None = None

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def pixels(self) -> list[Pixels]:
        """Pixels of every sample, uint8, [height, width, 3]."""
        return [sample[BatchKey.IMAGE] for sample in self.samples]

    def stack(self) -> Unfinished | None:
        """The batch as bytes with its colours; None where sizes differ. The samples are left without an image."""
        if len({image.shape for image in self.pixels}) != 1:
            return None
        whole = torch.from_numpy(np.stack(self.pixels))
        for sample in self.samples:
            del sample[BatchKey.IMAGE]
        return Unfinished(whole, torch.from_numpy(self._colours()), self.maps is not None)

    def finish(self) -> Tensor | None:
        """Turn the image of each sample into float32, [3, height, width].

        Returns:
            All of them, [samples, 3, height, width], in the memory of which each image is a part; None where their
            sizes differ.
        """
        pixels = self.pixels
        shapes = {image.shape[:2] for image in pixels}
        whole = torch.empty(len(self), 3, *shapes.pop()) if len(shapes) == 1 else None
        images = [torch.empty(3, *image.shape[:2]) for image in pixels] if whole is None else list(whole)
        apply = apply_table if self.maps is None else apply_map
        for sample, own, colours, image in zip(self.samples, pixels, self._colours(), images, strict=True):
            apply(own, colours, image.numpy())
            sample[BatchKey.IMAGE.value] = image
        return whole

    def _colours(self) -> Floats:
        return self.tables if self.maps is None else self.maps.as_rows()


class Unfinished(NamedTuple):
    """A batch as bytes, with what they will become: a quarter of the volume that a process or a device is sent.

    Attributes:
        pixels: uint8, [samples, height, width, 3].
        colours: float32, tables [samples, 3, 256], or maps [samples, 3, 6] as ``ColourMaps.as_rows`` has them.
        mixed: whether they are maps.
    """

    pixels: Tensor
    colours: Tensor
    mixed: bool

    def finish(self, device: torch.device) -> Tensor:
        """Values of the pixels on a device, float32, [samples, 3, height, width].

        On the CPU they are those of ``Drafts.finish`` to the bit, elsewhere those of maps to the rounding of floats.
        """
        if device.type != "cpu":
            pixels, colours = (part.to(device, non_blocking=True) for part in (self.pixels, self.colours))
            return apply_maps(pixels, colours) if self.mixed else apply_tables(pixels, colours)
        samples, height, width, _ = self.pixels.shape
        whole = torch.empty(samples, 3, height, width)
        apply = apply_map if self.mixed else apply_table
        for parts in zip(self.pixels.numpy(), self.colours.numpy(), whole.numpy(), strict=True):
            apply(*parts)
        return whole


def apply_tables(pixels: Tensor, tables: Tensor) -> Tensor:
    """Values of the pixels of a batch, as ``apply_table`` has them, on the device where they are.

    Args:
        pixels: uint8, [samples, height, width, 3].
        tables: float32, [samples, 3, 256].

    Returns:
        float32, [samples, 3, height, width].
    """
    planes = pixels.permute(0, 3, 1, 2)
    return tables.gather(2, planes.flatten(2).long()).view(planes.shape)


def apply_maps(pixels: Tensor, rows: Tensor) -> Tensor:
    """Values of the pixels of a batch, as ``apply_map`` has them to rounding; see ``apply_tables``.

    Args:
        pixels: uint8, [samples, height, width, 3].
        rows: float32, [samples, 3, 6], see ``ColourMaps.as_rows``.
    """
    planes = pixels.permute(0, 3, 1, 2).float()
    black = planes.amax(dim=1, keepdim=True) == 0
    offsets, low, high = (rows[:, :, part, None, None] for part in (3, 4, 5))
    # Colour by colour and not by a product of matrices, for which GPUs may round to ten bits (TF32).
    mixed = offsets + sum(rows[:, :, colour, None, None] * planes[:, colour, None] for colour in range(3))
    return torch.where(black, low, torch.minimum(torch.maximum(mixed, low), high))


def apply_table(pixels: Pixels, table: Floats, out: Floats) -> None:
    """Write the values of pixels, colour by colour.

    Args:
        pixels: uint8, [height, width, 3].
        table: float32, [3, 256].
        out: float32, [3, height, width], contiguous.
    """
    for plane, values, target in zip(_planes(pixels), table, out, strict=True):
        cv2.LUT(plane, values, dst=target)


def apply_map(pixels: Pixels, rows: Floats, out: Floats) -> None:
    """Write the values of pixels under the map of a sample, [3, 6]; see ``apply_table``."""
    mixed = cv2.transform(pixels.astype(np.float32), rows[:, :4])
    cv2.split(mixed, list(out))
    # What is black has no light that could vary: padding, and the surroundings of an endoscope's field.
    red, green, blue = _planes(pixels)
    black = (red | green | blue) == 0
    for plane, (low, high) in zip(out, rows[:, 4:], strict=True):
        np.clip(plane, low, high, out=plane)
        np.copyto(plane, low, where=black)


def _planes(pixels: Pixels) -> list[Pixels]:
    return [np.asarray(plane, np.uint8) for plane in cv2.split(pixels)]


class QuickTransform(ABC):
    """A transform that can work on drafts.

    Attributes:
        draws: random numbers, uniform in 0..1, that one sample takes; the same for every sample.
        mixes_colours: whether it needs the grey levels as they are, for a map of colours.
        channelwise: whether it changes the values of each colour on their own.
    """

    draws: int = 0
    mixes_colours: bool = False
    channelwise: bool = False

    @abstractmethod
    def quick(self, drafts: Drafts, numbers: Numbers) -> None:
        """Transform a batch.

        Args:
            drafts: changed in place.
            numbers: float64, [samples, draws].
        """


class _Flip(QuickTransform):
    """What MONAI's RandFlipd does, on bytes."""

    draws = 1

    def __init__(self, prob: float, axis: int) -> None:
        self.prob, self.axis = prob, axis

    def quick(self, drafts: Drafts, numbers: Numbers) -> None:
        for sample, number in zip(drafts.samples, numbers[:, 0].tolist(), strict=True):
            if number < self.prob:
                sample[BatchKey.IMAGE.value] = cv2.flip(sample[BatchKey.IMAGE], self.axis)


class _Turn(QuickTransform):
    """What MONAI's RandRotate90d does, on bytes."""

    draws = 2
    _ROTATIONS = (None, cv2.ROTATE_90_COUNTERCLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_CLOCKWISE)

    def __init__(self, prob: float, most: int) -> None:
        self.prob, self.most = prob, most

    def quick(self, drafts: Drafts, numbers: Numbers) -> None:
        for sample, (chance, place) in zip(drafts.samples, numbers.tolist(), strict=True):
            rotation = self._ROTATIONS[(1 + int(place * self.most)) % 4]
            if chance < self.prob and rotation is not None:
                sample[BatchKey.IMAGE.value] = cv2.rotate(sample[BatchKey.IMAGE], rotation)


def split_chain(transform: Any) -> tuple[list[QuickTransform], Any]:
    """Transforms of a chain that can work on drafts, from its beginning on, and the transform of what is left.

    MONAI's RandFlipd and RandRotate90d of the image in its plane have such a form.

    Returns:
        The first ones, and a chain of the others; None for no others. A transform none of which is quick is returned
        itself.
    """
    chain = type(transform) is Compose and not transform.lazy
    steps: Sequence[Any] = transform.transforms if chain else [] if transform is None else [transform]
    quick: list[QuickTransform] = []
    for step in steps:
        found = _quick_form(step)
        coloured = any(other.channelwise or other.mixes_colours for other in quick)
        mixed = any(other.mixes_colours for other in quick)
        if found is None or (found.mixes_colours and coloured) or (found.draws and found.channelwise and mixed):
            break
        quick.append(found)
    if not quick:
        return [], transform
    rest = list(steps[len(quick) :])
    return quick, Compose(rest) if rest else None


def _quick_form(step: Any) -> QuickTransform | None:
    if isinstance(step, QuickTransform):
        return step if getattr(step, "keys", IMAGE_KEYS) == IMAGE_KEYS else None
    if type(step) not in (RandFlipd, RandRotate90d) or step.lazy or step.keys != IMAGE_KEYS:
        return None
    if type(step) is RandFlipd:
        return _Flip(step.prob, step.flipper.spatial_axis) if step.flipper.spatial_axis in (0, 1) else None
    return _Turn(step.prob, step.max_k) if tuple(step.spatial_axes) == (0, 1) else None


def random_numbers(keys: Sequence[str], count: int) -> Numbers:
    """Uniform numbers in 0..1 that depend on nothing but the key of a sample.

    Args:
        keys: of the samples, any text.
        count: numbers for each.

    Returns:
        float64, [samples, count], multiples of 2^-53.
    """
    digests = [hashlib.shake_128(key.encode()).digest(8 * count) for key in keys]
    whole = np.frombuffer(b"".join(digests), "<u8").reshape(len(keys), count)
    return np.asarray((whole >> np.uint64(11)) * 2.0**-53)
