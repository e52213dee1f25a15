"""The stages of classification bodies: where detectors read them, and where feature maps are learned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, cast

from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn

from kdml_med.errors import InputError
from kdml_med.networks.answers import ClassifierAnswer, CommitteeAnswer
from kdml_med.networks.committee import Committee
from kdml_med.networks.efficientnet_lite import EfficientNetLite
from kdml_med.networks.mobilenet import MobileNetV2

FINEST_STRIDE = 8
"""Maps of smaller strides show edges and colours rather than what is recognised; they are not compared."""
# The blocks of a MobileNetV2 after which the next one halves the resolution.
MOBILENET_ENDS = (1, 3, 6, 13)


# Functions at module level, because bodies are copied and saved whole.
def mobilenet_stages(body: nn.Module) -> list[nn.Module]:
    """Parts of a MobileNetV2, in order; each ends where the resolution is halved next, or with the body."""
    features = cast(nn.Sequential, body.features)
    ends = [end + 1 for end in MOBILENET_ENDS if end + 1 < len(features)]
    return [features[start:end] for start, end in pairwise([0, *ends, len(features)])]


def resnet_stages(body: nn.Module) -> list[nn.Module]:
    """Stem and layers of a ResNet, in order."""
    stem = nn.Sequential(body.conv1, body.bn1, body.act, body.maxpool)  # type: ignore[arg-type]
    return [stem, body.layer1, body.layer2, body.layer3, body.layer4]  # type: ignore[list-item]


def feature_stages(network: nn.Module) -> dict[int, nn.Module]:
    """The last module of a classifier at each stride, from the finest to the coarsest.

    Args:
        network: a MobileNetV2, an EfficientNetLite, a ResNet of MONAI, or any other with a method ``feature_stages()``
            that returns modules by stride, {8: ..., 16: ...}. A module has to run once in each forward pass and to give
            a map [batch, channels, height / stride, width / stride].

    Raises:
        InputError: the stages of the network are not known, or ``feature_stages()`` returns something else.
    """
    if hasattr(network, "feature_stages"):
        return _own_stages(network)
    if isinstance(network, MobileNetV2 | EfficientNetLite):
        own = network.stages() if isinstance(network, EfficientNetLite) else mobilenet_stages(network)
        parts = [cast(nn.Sequential, part) for part in own]
        return {2 << number: part[-1] for number, part in enumerate(parts)}
    if isinstance(network, ResNet):
        stem = network.conv1.stride[0] * (1 if network.no_max_pool else 2)
        return {stem << number: layer for number, layer in enumerate(resnet_stages(network)[1:])}
    raise InputError(
        f"a {type(network).__name__} does not say where its feature maps are, which teacher_link or peer_link "
        "'features' and 'both' need: set them to 'predictions', or give it a method feature_stages() that returns its "
        "modules by stride, such as {8: self.stage2, 16: self.stage3}."
    )


def last_stage(network: nn.Module) -> nn.Module | None:
    """The module that gives a classifier's coarsest feature map; None where the network does not say, see above."""
    try:
        stages = feature_stages(network)
    except InputError:
        return None
    return stages[max(stages)] if stages else None


def final_stage(body: nn.Module) -> list[nn.Module]:
    """What of a classification body works at its coarsest resolution, and lies behind; nothing where it does not say.

    Of a network with a method ``feature_stages()`` it is the module that gives its coarsest map.
    """
    if isinstance(body, EfficientNetLite):
        return [body.stages()[-1]]
    if isinstance(body, MobileNetV2):
        return [mobilenet_stages(body)[-1]]
    last = last_stage(body)
    return [] if last is None else [last]


def _own_stages(network: Any) -> dict[int, nn.Module]:
    stages = network.feature_stages()
    if not isinstance(stages, Mapping) or not all(
        isinstance(stride, int) and isinstance(module, nn.Module) for stride, module in stages.items()
    ):
        raise InputError(
            f"feature_stages() of {type(network).__name__} has to return modules by stride, such as "
            "{8: self.stage2, 16: self.stage3}."
        )
    return dict(sorted(stages.items()))


def shared_strides(networks: Mapping[str, nn.Module]) -> tuple[int, ...]:
    """Strides from ``FINEST_STRIDE`` on at which all networks, members of committees included, have a feature map.

    Returns:
        In ascending order.

    Raises:
        InputError: there is none, or see ``feature_stages``.
    """
    singles = {
        f"{name}_{number}" if own is not network else name: own
        for name, network in networks.items()
        for number, own in enumerate(network.members if isinstance(network, Committee) else [network])
    }
    strides = {name: list(feature_stages(network)) for name, network in singles.items()}
    shared = set.intersection(*(set(own) for own in strides.values()))
    compared = tuple(sorted(stride for stride in shared if stride >= FINEST_STRIDE))
    if not compared:
        raise InputError(
            f"links by features need a stride of {FINEST_STRIDE} or more that all networks have; they have {strides}."
        )
    return compared


def answer_with_features(
    network: nn.Module, image: Tensor, strides: Sequence[int]
) -> ClassifierAnswer | CommitteeAnswer:
    """Run a classifier once and keep its feature maps of these strides.

    Args:
        network: see ``feature_stages``; or a committee of such.
        image: float, [batch, channels, height, width].
        strides: which maps, in the order of the answer.

    Raises:
        InputError: a module of ``feature_stages()`` does not run, or does not give a map.
    """
    if isinstance(network, Committee):
        combined: ClassifierAnswer | CommitteeAnswer = network.combine(
            [answer_with_features(member, image, strides) for member in network.members]
        )
        return combined
    stages = feature_stages(network)
    modules = [stages[stride] for stride in strides]
    maps: dict[int, Tensor] = {}
    # Hooks for this pass only: a network that is copied, saved or exported later knows nothing of them.
    handles = [module.register_forward_hook(partial(_keep, maps, place)) for place, module in enumerate(modules)]
    try:
        logits = network(image)
    finally:
        for handle in handles:
            handle.remove()
    return ClassifierAnswer(logits, tuple(_found(maps, place, network, modules) for place in range(len(modules))))


def _keep(maps: dict[int, Tensor], place: int, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
    maps[place] = output


def _found(maps: Mapping[int, Tensor], place: int, network: nn.Module, modules: Sequence[nn.Module]) -> Tensor:
    found = maps.get(place)
    if not isinstance(found, Tensor) or found.ndim != 4:
        what = "did not run" if found is None else "gave no map [batch, channels, height, width]"
        raise InputError(
            f"module {type(modules[place]).__name__} of feature_stages() of {type(network).__name__} {what}."
        )
    return found
