"""Samples as batches: joined where they are made, finished where they are used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import default_collate

from kdml_med.data.drafts import Unfinished
from kdml_med.errors import InputError
from kdml_med.keys import BatchKey


class Samples(list[dict[str, Any]]):
    """Samples that were made together.

    Args:
        samples: each with its image.
        images: all images in one memory, float32 [samples, 3, height, width], or what they will be made of; None where
            they are apart.
        views: of each sample, see ``ManifestDataset.make``.
    """

    def __init__(
        self, samples: Sequence[dict[str, Any]], images: Tensor | Unfinished | None = None, views: int = 1
    ) -> None:
        super().__init__(samples)
        self.images, self.views = images, views


class _Boxes(NamedTuple):
    """Boxes of a batch in one memory, as every tensor that comes from another process costs a file handle."""

    joined: Tensor
    counts: list[int]


def collate_samples(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Batch of samples, for ``finish_batch``; boxes, of which every image has its own number, are joined.

    Of samples that come in several views there are all images, and one label and identifier for each sample.

    Raises:
        InputError: images differ in size.
    """
    ready: dict[str, Any] = {}
    if not isinstance(samples, Samples) or samples.images is None:
        _check_sizes(samples)
    if isinstance(samples, Samples):
        if samples.images is not None:
            ready[BatchKey.IMAGE.value] = samples.images
        elif samples.views > 1:
            ready[BatchKey.IMAGE.value] = default_collate([sample[BatchKey.IMAGE] for sample in samples])
        samples = samples[: len(samples) // samples.views]
    boxes = [sample[BatchKey.LABEL] for sample in samples]
    if isinstance(boxes[0], Tensor):
        ready[BatchKey.LABEL.value] = _Boxes(torch.cat(boxes), [len(own) for own in boxes])
    rest: dict[str, Any] = default_collate(
        [{key: value for key, value in sample.items() if key not in ready} for sample in samples]
    )
    return ready | rest


def finish_batch(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with float images, views of a sample beside each other, and a list of the boxes of each.

    Args:
        batch: of ``collate_samples``; changed in place.
        device: where images that are still bytes get their values.
    """
    image, label = batch[BatchKey.IMAGE], batch[BatchKey.LABEL]
    if isinstance(image, Unfinished):
        image = image.finish(device)
    samples = len(label.counts if isinstance(label, _Boxes) else label)
    views = len(image) // samples
    batch[BatchKey.IMAGE.value] = image if views == 1 else image.unflatten(0, (views, samples)).transpose(0, 1)
    if isinstance(label, _Boxes):
        batch[BatchKey.LABEL.value] = list(label.joined.split(label.counts))
    return batch


def _check_sizes(samples: Sequence[dict[str, Any]]) -> None:
    """Refuse images that no tensor can hold together, by the name of the first that is not like most."""
    sizes = [_size_px(sample[BatchKey.IMAGE]) for sample in samples]
    usual = Counter(sizes).most_common(1)[0][0]
    other = next((number for number, size in enumerate(sizes) if size != usual), None)
    if other is not None:
        name, like = (samples[number][BatchKey.SAMPLE_ID] for number in (other, sizes.index(usual)))
        (width, height), (usual_width, usual_height) = sizes[other], usual
        raise InputError(
            f"{name!r} is {width} x {height} px, {like!r} in the same batch {usual_width} x {usual_height} px: images "
            "need one size. Say --image_size, to which all are brought."
        )


def _size_px(image: Any) -> tuple[int, int]:
    """Width and height of an image, a tensor [channels, height, width] or an array [height, width, channels]."""
    height, width = image.shape[-2:] if isinstance(image, Tensor) else image.shape[:2]
    return int(width), int(height)
