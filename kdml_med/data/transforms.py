"""Dictionary transforms that MONAI lacks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor

from kdml_med.data.drafts import ColourMaps, Drafts, Numbers, QuickTransform
from kdml_med.pixels import IMAGENET_MEAN, IMAGENET_STD


class _RandColourd(QuickTransform, RandomizableTransform, MapTransform):
    """Change the colours of some samples; subclasses say by what.

    The law of a change works on values of any shape, so that it is the same for the pixels of an image and for the
    table of its grey levels.

    Args:
        keys: image entries, float [3, height, width] in 0..1.
        prob: probability of changing a sample.
        allow_missing_keys: skip absent keys.
    """

    def __init__(self, keys: Sequence[Hashable] | Hashable, prob: float, allow_missing_keys: bool) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)

    @abstractmethod
    def change(self, image: Tensor, numbers: Numbers) -> Tensor:
        """One image, changed by numbers that were drawn, float64, [draws - 1]."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Change the images of one sample; the input is left as it was."""
        result = dict(data)
        # All are drawn even when the sample stays as it is, so that later transforms do not depend on this decision.
        chance, *numbers = self.R.uniform(size=self.draws)
        if chance < self.prob:
            for key in self.key_iterator(result):
                result[key] = self.change(result[key], np.array(numbers))
        return result


class RandStainJitterd(_RandColourd):
    """Vary how strongly a stained section absorbs, separately in red, green and blue.

    Works on optical density, where the amount of stain is a factor: OD' = OD · factor + offset for each colour channel,
    so that white stays white when the offset is 0.

    Args:
        keys: image entries, float [3, height, width] in 0..1.
        strength: factors are drawn from 1 ± strength.
        offset: offsets are drawn from ± offset, optical density (natural logarithm).
        prob: probability of changing a sample.
        allow_missing_keys: skip absent keys.

    Source:
        The idea of jittering in stain density space: Tellez et al. 2018, doi:10.1109/TMI.2018.2820199 (there after
        separation into haematoxylin and eosin, here per colour channel).
    """

    draws = 7
    channelwise = True

    def __init__(
        self,
        keys: Sequence[Hashable] | Hashable,
        *,
        strength: float = 0.2,
        offset: float = 0.05,
        prob: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, prob, allow_missing_keys)
        self.strength, self.offset = strength, offset

    def factors(self, numbers: Numbers) -> tuple[Tensor, Tensor]:
        """Factors and offsets of samples, float32, [samples, 3] each, from uniform numbers [samples, 6]."""
        signed = torch.from_numpy(2 * numbers - 1)
        return (1 + self.strength * signed[:, :3]).float(), (self.offset * signed[:, 3:]).float()

    def change(self, image: Tensor, numbers: Numbers) -> Tensor:
        """The image with the factors and offsets of these numbers."""
        factors, offsets = self.factors(numbers[None])
        return jitter_density(image, factors.view(3, 1, 1), offsets.view(3, 1, 1))

    def quick(self, drafts: Drafts, numbers: Numbers) -> None:
        """Change the tables of a batch."""
        factors, offsets = self.factors(numbers[:, 1:])
        tables = torch.from_numpy(drafts.tables)
        changed = jitter_density(tables, factors[..., None], offsets[..., None])
        chosen = torch.from_numpy(numbers[:, 0] < self.prob)
        drafts.tables = torch.where(chosen[:, None, None], changed, tables).numpy()


def jitter_density(values: Tensor, factors: Tensor, offsets: Tensor) -> Tensor:
    """Values in 0..1 whose optical density, natural logarithm, was multiplied by factors and shifted by offsets."""
    density = -torch.log(values.clamp(min=1 / 255))
    return torch.exp(-(density * factors + offsets)).clamp(0.0, 1.0)


class RandColourJitterd(_RandColourd):
    """Vary brightness, contrast, saturation and white balance, as light sources, cameras and processors do.

    Pixels that are quite black stay black.

    Args:
        keys: image entries, float [3, height, width] in 0..1.
        brightness: factor is drawn from 1 ± brightness.
        contrast: likewise, around the mean grey level.
        saturation: likewise, around the grey of each pixel.
        balance: likewise, for red, green and blue each on its own.
        prob: probability of changing a sample.
        allow_missing_keys: skip absent keys.
    """

    draws = 7
    mixes_colours = True

    def __init__(
        self,
        keys: Sequence[Hashable] | Hashable,
        *,
        brightness: float = 0.25,
        contrast: float = 0.25,
        saturation: float = 0.25,
        balance: float = 0.08,
        prob: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, prob, allow_missing_keys)
        self.ranges = np.array([brightness, contrast, saturation, balance, balance, balance])

    def factors(self, numbers: Numbers) -> Numbers:
        """Factors of brightness, contrast, saturation, red, green, blue, from uniform numbers [..., 6]."""
        return np.asarray(1 + self.ranges * (2 * numbers - 1))

    def change(self, image: Tensor, numbers: Numbers) -> Tensor:
        """The image with the factors of these numbers."""
        means = image.double().mean(dim=(1, 2)).numpy()
        colours = torch.from_numpy(colour_map(self.factors(numbers), means)).float()
        changed = torch.einsum("oi,ihw->ohw", colours[:, :3], image) + colours[:, 3, None, None]
        # What is black has no light that could vary: padding, and the surroundings of an endoscope's field.
        shown: Tensor = changed.clamp(0.0, 1.0) * (image.amax(dim=0, keepdim=True) > 0)
        return shown

    def quick(self, drafts: Drafts, numbers: Numbers) -> None:
        """Give every sample of a batch its map of colours."""
        chosen = numbers[:, :1] < self.prob
        factors = np.where(chosen, self.factors(numbers[:, 1:]), 1.0)
        means = [np.array(cv2.mean(pixels)[:3]) / 255 for pixels in drafts.pixels]
        maps = np.stack([colour_map(*each) for each in zip(factors, means, strict=True)])
        maps[:, :, :3] /= 255
        drafts.maps = ColourMaps(maps.astype(np.float32), np.zeros(3, np.float32), np.ones(3, np.float32))


def colour_map(factors: Numbers, means: Numbers) -> Numbers:
    """Brightness and balance, contrast around the mean grey level and saturation around grey, as one affine map.

    Args:
        factors: float64, [6], of brightness, contrast, saturation, red, green, blue.
        means: float64, [3], of the colours of the image.

    Returns:
        float64, [3, 4], from (red, green, blue, 1) to red, green, blue, in the scale of the means.
    """
    brightness, contrast, saturation = factors[:3]
    gains = brightness * factors[3:]
    grey = np.mean(gains * means)
    linear = contrast * (saturation * np.eye(3) + (1 - saturation) / 3) * gains
    return np.column_stack([linear, np.full(3, (1 - contrast) * grey)])


class NormalizeColourd(QuickTransform, MapTransform):
    """Subtract a mean and divide by a standard deviation, colour by colour.

    Args:
        keys: image entries, float [3, height, width] in 0..1.
        mean: of red, green, blue; ImageNet's by default, as published weights expect.
        std: likewise.
        allow_missing_keys: skip absent keys.
    """

    channelwise = True

    def __init__(
        self,
        keys: Sequence[Hashable] | Hashable,
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mean = torch.tensor(mean, dtype=torch.float32).view(3, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).view(3, 1, 1)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Normalise the images of one sample; the result is a plain tensor."""
        result = dict(data)
        for key in self.key_iterator(result):
            image = torch.as_tensor(result[key])
            # MONAI's spatial transforms return MetaTensors, whose bookkeeping slows collation and nobody here reads.
            plain = image.as_tensor() if isinstance(image, MetaTensor) else image
            result[key] = (plain - self.mean) / self.std
        return result

    def quick(self, drafts: Drafts, numbers: Numbers) -> None:
        """Normalise what the pixels of a batch will become."""
        mean, std = self.mean.numpy()[:, :, 0], self.std.numpy()[:, :, 0]
        if drafts.maps is None:
            drafts.tables = (drafts.tables - mean) / std
            return
        maps = drafts.maps
        matrices = maps.matrices.copy()
        matrices[:, :, 3] -= mean[:, 0]
        low, high = (maps.low - mean[:, 0]) / std[:, 0], (maps.high - mean[:, 0]) / std[:, 0]
        drafts.maps = ColourMaps(matrices / std, low, high)
