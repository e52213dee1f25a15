"""Dictionary transforms that MONAI lacks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class _RandColourd(RandomizableTransform, MapTransform):
    """Change the colours of some samples; subclasses say what is drawn and what it does.

    Args:
        keys: image entries, float [3, height, width] in 0..1.
        prob: probability of changing a sample.
        allow_missing_keys: skip absent keys.
    """

    def __init__(self, keys: Sequence[Hashable] | Hashable, prob: float, allow_missing_keys: bool) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)

    @abstractmethod
    def draw(self) -> None:
        """Draw what one sample is changed by."""

    @abstractmethod
    def change(self, image: Tensor) -> Tensor:
        """One image, changed by what was drawn last."""

    def randomize(self, data: Any = None) -> None:
        """Draw whether one sample is changed, and by what."""
        super().randomize(data)
        # Drawn even when the sample stays as it is, so that later transforms do not depend on this decision.
        self.draw()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Change the images of one sample; the input is left as it was."""
        result = dict(data)
        self.randomize()
        if self._do_transform:
            for key in self.key_iterator(result):
                result[key] = self.change(result[key])
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
        self.factors, self.offsets = torch.ones(3), torch.zeros(3)

    def draw(self) -> None:
        """Draw the factors and offsets of one sample."""
        self.factors = torch.from_numpy(self.R.uniform(1 - self.strength, 1 + self.strength, 3)).float()
        self.offsets = torch.from_numpy(self.R.uniform(-self.offset, self.offset, 3)).float()

    def change(self, image: Tensor) -> Tensor:
        """The image with the factors and offsets drawn last."""
        density = -torch.log(image.clamp(min=1 / 255))
        changed = torch.exp(-(density * self.factors.view(3, 1, 1) + self.offsets.view(3, 1, 1)))
        return changed.clamp(0.0, 1.0)


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
        self.ranges = torch.tensor([brightness, contrast, saturation, balance, balance, balance])
        self.factors = torch.ones(6)

    def draw(self) -> None:
        """Draw the factors of one sample."""
        self.factors = 1 + self.ranges * torch.from_numpy(self.R.uniform(-1, 1, 6)).float()

    def change(self, image: Tensor) -> Tensor:
        """The image with the factors drawn last."""
        brightness, contrast, saturation = self.factors[:3]
        changed = image * (brightness * self.factors[3:].view(3, 1, 1))
        changed = (changed - changed.mean()) * contrast + changed.mean()
        grey = changed.mean(dim=0, keepdim=True)
        changed = ((changed - grey) * saturation + grey).clamp(0.0, 1.0)
        # What is black has no light that could vary: padding, and the surroundings of an endoscope's field.
        shown: Tensor = changed * (image.amax(dim=0, keepdim=True) > 0)
        return shown


class NormalizeColourd(MapTransform):
    """Subtract a mean and divide by a standard deviation, colour by colour.

    Args:
        keys: image entries, float [3, height, width] in 0..1.
        mean: of red, green, blue; ImageNet's by default, as published weights expect.
        std: likewise.
        allow_missing_keys: skip absent keys.
    """

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
