"""RetinaNet from MONAI's parts, with a body and a pyramid width of one's choice, and without torchvision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self, cast

import torch
from monai.apps.detection.networks.retinanet_network import RetinaNet as MonaiRetinaNet
from monai.networks.blocks.feature_pyramid_network import ExtraFPNBlock, FeaturePyramidNetwork
from torch import Tensor, nn

from kdml_med.networks.anchors import STRIDES, AnchorPredictions
from kdml_med.networks.efficientnet_lite import EFFICIENTNETS_LITE, EfficientNetLite, block_shapes, stage_ends
from kdml_med.networks.mobilenet import BLOCKS, MobileNetV2
from kdml_med.networks.resnet import RESNETS
from kdml_med.networks.stages import MOBILENET_ENDS, mobilenet_stages, resnet_stages

HEAD_NORM_GROUPS = 8


class ExtraLevels(ExtraFPNBlock):
    """Further pyramid levels, each half as large, by strided convolutions from the smallest one.

    Args:
        channels: of every level.
        count: how many to add.
    """

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList()
        for _ in range(count):
            convolution = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
            nn.init.kaiming_uniform_(convolution.weight, a=1)
            nn.init.zeros_(cast(Tensor, convolution.bias))
            self.convolutions.append(convolution)

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """Append levels to those of the pyramid."""
        for number, convolution in enumerate(self.convolutions):
            results.append(convolution(results[-1] if number == 0 else nn.functional.relu(results[-1])))
            names.append(f"extra_{number}")
        return results, names


class PyramidBody(nn.Module):
    """A classification body cut into stages, with a feature pyramid on top.

    Args:
        body: the network that the stages come from; registered whole, so that published weights load by their names.
        stages: parts of the body in order; the outputs of the last ``len(channels)`` ones feed the pyramid.
        channels: output channels of those stages, whose strides are 8, 16 and so on.
        width: channels of the pyramid.
    """

    def __init__(
        self, body: nn.Module, stages: Callable[[nn.Module], Sequence[nn.Module]], channels: Sequence[int], width: int
    ) -> None:
        super().__init__()
        self.body = body
        self._stages = stages
        self.levels = len(channels)
        self.frozen_stages = 0
        self.out_channels = width
        extra = ExtraLevels(width, len(STRIDES) - len(channels))
        self.pyramid = FeaturePyramidNetwork(2, list(channels), width, extra_blocks=extra)

    def freeze(self, stages: int) -> None:
        """Keep the weights and batch statistics of the first stages as they are.

        Raises:
            ValueError: there are not as many stages.
        """
        parts = self._stages(self.body)
        if not 0 <= stages <= len(parts):
            raise ValueError(f"frozen_stages is {stages}, expected 0 to {len(parts)}.")
        self.frozen_stages = stages
        for part in parts[:stages]:
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode; frozen stages stay in evaluation mode."""
        super().train(mode)
        for part in self._stages(self.body)[: self.frozen_stages]:
            part.eval()
        return self

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map [batch, 3, height, width] to one [batch, width, height / stride, width / stride] per stride."""
        outputs: list[Tensor] = []
        features = image
        for part in self._stages(self.body):
            features = part(features)
            outputs.append(features)
        named = {str(number): level for number, level in enumerate(outputs[-self.levels :])}
        return list(self.pyramid(named).values())


class RetinaNet(nn.Module):
    """One-stage detector that answers for every anchor of ``kdml_med.networks.anchors``.

    Args:
        body: "mobilenet_v2", "efficientnet_lite0" to "efficientnet_lite2", "resnet10", "resnet18", "resnet34" or
            "resnet50".
        num_classes: classes beside background.
        width: channels of pyramid and heads, a multiple of 8 from 16 on: the knob that makes students narrower than
            their teacher.
        head_convs: convolutions in each head before the last one, 1 to 4 (4 as published).
        last_block: ends a body early, a MobileNetV2 from 13 to 17, an EfficientNet-Lite0 from 11 to 16, Lite1 and Lite2
            from 15 to 21. The last convolution of the whole body (default) is left out: no level of the pyramid reads
            it.

    Raises:
        ValueError: an argument is out of range, or the body is unknown.

    Source:
        Lin et al. 2017, arXiv:1708.02002. Heads (with group norm) and pyramid are MONAI's; four levels from stride 8
        on, and one square anchor per position as in Zhang et al. 2020, arXiv:1912.02424.
    """

    def __init__(
        self,
        num_classes: int = 1,
        *,
        body: str = "mobilenet_v2",
        width: int = 64,
        head_convs: int = 4,
        last_block: int | None = None,
    ) -> None:
        super().__init__()
        # With one channel in a group, the norm of a level of one position would have nothing to compare.
        if width < 2 * HEAD_NORM_GROUPS or width % HEAD_NORM_GROUPS:
            raise ValueError(f"width must be a multiple of {HEAD_NORM_GROUPS}, at least 16, got {width}.")
        if not 1 <= head_convs <= 4:
            raise ValueError(f"head_convs must be between 1 and 4, got {head_convs}.")
        if body == "mobilenet_v2":
            extractor = _mobilenet_pyramid(width, BLOCKS if last_block is None else last_block)
        elif body in EFFICIENTNETS_LITE:
            extractor = _lite_pyramid(body, width, last_block)
        elif last_block is not None:
            raise ValueError(f"last_block shortens mobilenet_v2 and efficientnet_lite0 to 2, not a body {body!r}.")
        else:
            extractor = _resnet_pyramid(body, width)
        self.detector = MonaiRetinaNet(2, num_classes, num_anchors=1, feature_extractor=extractor)
        for head in (self.detector.classification_head, self.detector.regression_head):
            head.conv = head.conv[: 3 * head_convs]  # convolution, norm and activation
        self.num_classes = num_classes

    @property
    def body(self) -> nn.Module:
        """The classification body, under the names of its published weights."""
        body: nn.Module = self.detector.feature_extractor.body
        return body

    def freeze(self, stages: int) -> None:
        """See ``PyramidBody.freeze``."""
        self.detector.feature_extractor.freeze(stages)

    def forward(self, image: Tensor) -> AnchorPredictions:
        """Answer for every anchor.

        Args:
            image: float, [batch, 3, height, width], sides multiples of 64 px.
        """
        # A third faster on CPUs, whose 1 x 1 convolutions then read memory in order.
        features = self.detector.feature_extractor(image.contiguous(memory_format=torch.channels_last))
        # Not the heads' own forward: it stops at NaN without saying which network it is, and makes a GPU wait for it.
        scoring, placing = self.detector.classification_head, self.detector.regression_head
        logits = [_by_anchor(scoring.cls_logits(scoring.conv(level)), self.num_classes) for level in features]
        deltas = [_by_anchor(placing.bbox_reg(placing.conv(level)), 4) for level in features]
        return AnchorPredictions(torch.cat(logits, dim=1), torch.cat(deltas, dim=1), tuple(features))


def _by_anchor(level: Tensor, values: int) -> Tensor:
    """[batch, values, height, width] to [batch, height · width, values], row by row like the anchors."""
    return level.permute(0, 2, 3, 1).reshape(level.shape[0], -1, values)


def _mobilenet_pyramid(width: int, last_block: int) -> PyramidBody:
    if not MOBILENET_ENDS[-1] <= last_block <= BLOCKS:
        raise ValueError(f"last_block must be between {MOBILENET_ENDS[-1]} and {BLOCKS}, got {last_block}.")
    body = MobileNetV2(last_block=last_block)
    if last_block == BLOCKS:
        body.features = cast(nn.Sequential, body.features[: BLOCKS + 1])
    del body.classifier
    channels = [32, 96] + ([320] if last_block == BLOCKS else [160] if last_block > MOBILENET_ENDS[-1] else [])
    return PyramidBody(body, mobilenet_stages, channels, width)


def _lite_pyramid(name: str, width: int, last_block: int | None) -> PyramidBody:
    scale = name.removeprefix("efficientnet_")
    shapes, first = block_shapes(scale), stage_ends(scale)[-1]
    last_block = len(shapes) if last_block is None else last_block
    if not first <= last_block <= len(shapes):
        raise ValueError(f"last_block must be between {first} and {len(shapes)}, got {last_block}.")
    body = EfficientNetLite(scale=scale, last_block=last_block).as_body()
    levels = sorted({*stage_ends(scale)[2:], last_block})  # blocks that end at strides 8, 16 and 32
    return PyramidBody(body, EfficientNetLite.stages, [shapes[end - 1].out_channels for end in levels], width)  # type: ignore[arg-type]


def _resnet_pyramid(name: str, width: int) -> PyramidBody:
    channels = {
        "resnet10": (128, 256, 512),
        "resnet18": (128, 256, 512),
        "resnet34": (128, 256, 512),
        "resnet50": (512, 1024, 2048),
    }
    if name not in channels:
        raise ValueError(f"unknown body {name!r}; known: mobilenet_v2, {', '.join([*EFFICIENTNETS_LITE, *channels])}.")
    body: Any = RESNETS[name](num_classes=1)
    del body.fc
    return PyramidBody(body, resnet_stages, channels[name], width)
