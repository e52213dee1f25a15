"""What a classifier says in training, where its feature maps are learned from as well."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ClassifierAnswer(NamedTuple):
    """Logits of one classifier and the maps that led to them."""

    logits: Tensor
    """float, [batch, classes]; before the softmax."""
    features: tuple[Tensor, ...]
    """float, [batch, channels, height, width], from the finest to the coarsest; the strides are those of the cohort."""
