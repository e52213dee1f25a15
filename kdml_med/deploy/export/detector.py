"""A detector that takes stored frames and gives boxes: what surrounds the networks in an evaluation, inside.

One module, so that a file made of it needs neither this library nor a word of explanation: placing the frame in the
networks' input, normalisation, anchors, the mean over students, suppression, and the way back to pixels of the frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdml_med.data.frames import input_size
from kdml_med.networks.anchors import anchor_grid, decode_boxes
from kdml_med.networks.boxes import IOU_THRESHOLD, MAX_CANDIDATES, MAX_DETECTIONS, SCORE_THRESHOLD
from kdml_med.pixels import IMAGENET_MEAN, IMAGENET_STD

# Pillow resamples bytes with whole numbers of 22 binary digits. Halves of 11 keep every sum within what float32 holds
# exactly, up to a reduction of sixteen times.
_HALF = 2.0**11


class ExportedDetector(nn.Module):
    """Frames in, boxes out; equals ``DetectionEvaluator`` on samples of ``PlaceFrame``.

    Args:
        networks: by name; one, or the students of a cohort, whose scores and boxes are averaged anchor by anchor. They
            are put into evaluation mode.
        image_size: (height, width) of the networks' input, or the side of a square one.
    """

    input_axes: ClassVar[Mapping[int, str]] = {1: "height", 2: "width"}
    output_axes: ClassVar[Mapping[str, Mapping[int, str]]] = {
        "boxes": {0: "detections"}, "scores": {0: "detections"}, "batch_index": {0: "detections"},
    }  # fmt: skip
    mean: Tensor
    std: Tensor
    anchors: Tensor

    def __init__(self, networks: Mapping[str, nn.Module], image_size: int | Sequence[int]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)
        self.height, self.width = input_size(image_size)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1))
        self.register_buffer("anchors", anchor_grid(self.height, self.width)[0].clone())
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect.

        Args:
            image: uint8, [batch, height, width, 3], RGB: frames as they are stored in a dataset folder, any size.

        Returns:
            Boxes, float32 [n, 4], xmin, ymin, xmax, ymax in pixels of the frames; scores, float32 [n]; and which frame
            of the batch each belongs to, int64 [n]. Frame by frame, the best first.
        """
        placed, scale, limits = place_frames(image, self.height, self.width)
        boxes, scores = self.candidates((placed / 255.0 - self.mean) / self.std)
        order = _best_first(scores)
        boxes = torch.gather(boxes, 1, order[..., None].expand(-1, -1, 4))
        scores = torch.gather(scores, 1, order)
        boxes = torch.minimum(boxes.clamp(min=0), torch.cat([limits, limits]))
        whole = ((boxes[..., 2:] - boxes[..., :2]) > 1).all(dim=-1)
        usable = torch.where(whole & (scores >= SCORE_THRESHOLD), scores, torch.zeros_like(scores))
        chosen = _suppress(boxes, usable)
        frame, place = chosen[:, 0], chosen[:, 1]
        back = (1 / scale.double()).float()
        return boxes[frame, place] * back, scores[frame, place], frame

    def candidates(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [batch, anchors, 4] and scores [batch, anchors] of all anchors, for normalised input."""
        boxes, scores = [], []
        for network in self.networks.values():
            logits, deltas = network(image)[:2]
            boxes.append(decode_boxes(deltas, self.anchors))
            scores.append(torch.sigmoid(logits.float()).amax(dim=-1))
        return torch.stack(boxes).mean(dim=0), torch.stack(scores).mean(dim=0)


def place_frames(image: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scale frames into the upper left corner of a canvas, to the byte as ``PlaceFrame`` does with Pillow.

    Frames twice as high as wide differ by one grey level here and there: Pillow takes their axes in the other order.

    Args:
        image: uint8, [batch, rows, columns, 3].
        height: of the canvas, pixels.
        width: likewise.

    Returns:
        float32 [batch, 3, height, width], whole numbers 0..255; the scale, float32 [1]; and float32 [2], width and
        height of the frame on the canvas, not rounded.
    """
    rows = torch.arange(image.shape[1], dtype=torch.float64, device=image.device)
    columns = torch.arange(image.shape[2], dtype=torch.float64, device=image.device)
    # Nothing without an axis: what has none is a number to the ONNX exporter, and becomes float32.
    lengths = torch.cat([columns[-1:], rows[-1:]]) + 1
    scale = (lengths.new_tensor([width, height]) / lengths).amin(dim=0, keepdim=True)
    sizes = (lengths * scale).round().clamp(min=1)
    across = _shares(columns, lengths[:1], sizes[:1], width)
    down = _shares(rows, lengths[1:], sizes[1:], height)
    pixels = image.permute(0, 3, 1, 2).float()
    pixels = _rounded(torch.matmul(pixels, torch.cat(across).T).split(width, dim=3))
    pixels = _rounded(torch.matmul(torch.cat(down), pixels).split(height, dim=2))
    scale = scale.float()
    return pixels, scale, lengths.float() * scale


def _shares(positions: Tensor, length: Tensor, size: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """What each pixel of a line gives to each pixel of the resampled line, times 2^22, as two halves of 11 digits.

    Args:
        positions: of the pixels, 0, 1, …
        length: how many there are, [1].
        size: of the resampled line, [1].
        count: of the rows of the result; those from ``size`` on are zero.

    Source:
        The triangle filter of Pillow's ``Resampling.BILINEAR``, widened where it reduces.
    """
    step = length / size
    reach = step.clamp(min=1)
    targets = torch.arange(count, dtype=positions.dtype, device=positions.device)
    centre = ((targets + 0.5) * step)[:, None]
    first, last = (centre - reach + 0.5).clamp(min=0).floor(), (centre + reach + 0.5).floor()
    share = (1 - ((positions - centre + 0.5) / reach).abs()).clamp(min=0)
    share = share * ((positions >= first) & (positions < last))
    total = share.sum(dim=1, keepdim=True).clamp(min=0.01)  # 0 beyond the frame
    whole = (share / total * _HALF * _HALF + 0.5).floor()
    whole = whole * (targets < size)[:, None]
    high = (whole / _HALF).floor()
    return high.float(), (whole - high * _HALF).float()


def _rounded(halves: Sequence[Tensor]) -> Tensor:
    """Sums of the high and low halves as whole pixel values."""
    high, low = halves
    return ((high + (low / _HALF).floor() + _HALF / 2) / _HALF).floor().clamp(0, 255)


def _best_first(scores: Tensor) -> Tensor:
    """Places of the best candidates, int64 [batch, n]; of equal ones the first, as ONNX's TopK promises too."""
    if torch.onnx.is_in_onnx_export():
        return torch.topk(scores, min(MAX_CANDIDATES, scores.shape[1]), dim=1).indices
    return torch.argsort(scores, dim=1, descending=True, stable=True)[:, :MAX_CANDIDATES]


def _suppress(boxes: Tensor, scores: Tensor) -> Tensor:
    """Which boxes are kept: int64 [n, 2], frame and candidate; frame by frame, the best first.

    Args:
        boxes: float32, [batch, candidates, 4], the best first.
        scores: float32, [batch, candidates]; 0 for what does not take part.
    """
    if torch.onnx.is_in_onnx_export():
        kept: Tensor = _OnnxSuppression.apply(boxes, scores)
    elif torch.jit.is_tracing():  # type: ignore[attr-defined]
        kept = torch.jit.script(_kept)(boxes, scores, IOU_THRESHOLD, MAX_DETECTIONS)
    else:
        kept = _kept(boxes, scores, IOU_THRESHOLD, MAX_DETECTIONS)
    return kept


class _OnnxSuppression(torch.autograd.Function):
    """ONNX's own operator, which no function of torch is exported to."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor) -> Tensor:
        return _kept(boxes, scores, IOU_THRESHOLD, MAX_DETECTIONS)

    @staticmethod
    def symbolic(graph: Any, boxes: Any, scores: Any) -> Any:
        def constant(value: int | float) -> Any:
            return graph.op("Constant", value_t=torch.tensor([value]))

        classes = graph.op("Unsqueeze", scores, constant(1))
        limits = [constant(MAX_DETECTIONS), constant(IOU_THRESHOLD), constant(0.0)]
        chosen = graph.op("NonMaxSuppression", boxes, classes, *limits)
        return graph.op("Gather", chosen, graph.op("Constant", value_t=torch.tensor([0, 2])), axis_i=1)


def _kept(boxes: Tensor, scores: Tensor, iou_threshold: float, max_detections: int) -> Tensor:
    """See ``_suppress``. TorchScript compiles this function, because its loop is as long as the boxes want it.

    Source:
        Zheng et al. 2020, arXiv:2005.03572, section 3.4: the fixed point is what one by one would keep.
    """
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=3)
    areas = (boxes[:, :, 2:] - boxes[:, :, :2]).prod(dim=2)
    alike = shared / (areas[:, :, None] + areas[:, None, :] - shared).clamp(min=1e-6) > iou_threshold
    better = torch.ones_like(alike[0]).tril(-1)
    usable = scores > 0
    kept = usable
    settled = False
    while not settled:
        again = usable & ~(alike & better & kept[:, None, :]).any(dim=2)
        settled = bool((again == kept).all())
        kept = again
    return (kept & (kept.cumsum(dim=1) <= max_detections)).nonzero()
