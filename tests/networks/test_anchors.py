import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.apps.detection.utils.ATSS_matcher import ATSSMatcher
from monai.data.box_utils import box_iou
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdml_med.networks import anchors
from kdml_med.networks.anchors import CANDIDATES_PER_LEVEL, STRIDES, anchor_grid, decode_boxes, match_anchors, overlaps
from tests.examples import examples
from tests.networks.encoding import encode_boxes
from tests.reference import atss_matches, decoded_box

SEEDS = st.integers(0, 2**31)
SIZES = st.sampled_from([(64, 128), (128, 128), (192, 128), (128, 320)])


def random_boxes(seed, count, height, width, *, shortest=16, elongation=2.5, largest=1.0):
    """Boxes inside the input, sides log-uniform, aspect ratio within 1 / elongation and elongation.

    Sides are cut to the share ``largest`` of the input.
    """
    generator = np.random.default_rng(seed)
    side = np.exp(generator.uniform(math.log(shortest), math.log(min(height, width)), (count, 1)))
    ratio = np.exp(generator.uniform(-1, 1, count) * math.log(elongation) / 2)
    sides = np.clip(side * np.stack([ratio, 1 / ratio], axis=1), shortest, [largest * width, largest * height])
    low = generator.uniform(0, 1, (count, 2)) * ([width, height] - sides)
    return torch.tensor(np.concatenate([low, low + sides], axis=1), dtype=torch.float32)


def centres(boxes):
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def test_anchors_by_hand():
    anchors, per_level = anchor_grid(64, 128)
    # Cells of 8 px: 8 rows of 16; then 4 of 8, 2 of 4, and 1 of 2.
    assert per_level == (128, 32, 8, 2)
    assert anchors.shape == (170, 4)
    assert anchors.dtype == torch.float32
    # The first cell has its centre at (4, 4) and an anchor with sides of 4 · 8 px; along a row x grows by a stride.
    assert anchors[:2].tolist() == [[-12, -12, 20, 20], [-4, -12, 28, 20]]
    assert anchors[16].tolist() == [-12, -4, 20, 28]  # second row
    assert anchors[128].tolist() == [8 - 32, 8 - 32, 8 + 32, 8 + 32]  # first of stride 16
    assert anchors[-1].tolist() == [96 - 128, 32 - 128, 96 + 128, 32 + 128]  # second of stride 64


@pytest.mark.parametrize(("height", "width"), [(64, 64), (192, 64), (128, 320)])
def test_every_level_tiles_the_input_with_square_anchors_of_four_strides(height, width):
    anchors, per_level = anchor_grid(height, width)
    for level, stride in zip(anchors.split(per_level), STRIDES, strict=True):
        assert (level[:, 2:] - level[:, :2] == 4 * stride).all()
        cells = centres(level).view(height // stride, width // stride, 2)
        columns, rows = torch.arange(width // stride), torch.arange(height // stride)
        assert torch.equal(cells[:, :, 0], ((columns + 0.5) * stride).expand(len(rows), -1))
        assert torch.equal(cells[:, :, 1], ((rows + 0.5) * stride)[:, None].expand(-1, len(columns)))


@pytest.mark.parametrize(("height", "width"), [(100, 64), (64, 96), (0, 64), (64, -64)])
def test_sizes_that_the_pyramid_cannot_halve_are_refused(height, width):
    with pytest.raises(ValueError, match=f"input is {height} x {width} px, both sides must be multiples of 64"):
        anchor_grid(height, width)


def test_decoding_by_hand():
    anchor = torch.tensor([[0.0, 0.0, 20.0, 10.0]])
    assert decode_boxes(torch.zeros(1, 4), anchor).tolist() == anchor.tolist()
    # The centre (10, 5) moves by 10/10 widths and -5/10 heights to (30, 0); the width doubles to 40.
    deltas = torch.tensor([[10.0, -5.0, 5 * math.log(2), 0.0]])
    assert decode_boxes(deltas, anchor)[0].tolist() == pytest.approx([10, -5, 50, 5])
    assert encode_boxes(torch.tensor([[10.0, -5.0, 50.0, 5.0]]), anchor)[0].tolist() == pytest.approx(
        deltas[0].tolist(), abs=1e-5
    )


@settings(deadline=None)
@given(SEEDS, SIZES)
def test_decoding_undoes_encoding(seed, size):
    boxes = random_boxes(seed, 20, *size, shortest=6, elongation=6)
    anchors, _ = anchor_grid(*size)
    anchors = anchors[np.random.default_rng(seed).integers(0, len(anchors), 20)]
    torch.testing.assert_close(decode_boxes(encode_boxes(boxes, anchors), anchors), boxes, rtol=1e-5, atol=2e-3)


@settings(deadline=None)
@given(SEEDS)
def test_decoding_equals_the_reference_in_any_shape_and_precision(seed):
    generator = torch.Generator().manual_seed(seed)
    anchors = anchor_grid(64, 64)[0]
    deltas = torch.randn(3, len(anchors), 4, generator=generator).half()
    boxes = decode_boxes(deltas, anchors)
    assert boxes.dtype == torch.float32
    for image, place in ((0, 0), (1, 70), (2, 84)):
        expected = decoded_box(deltas[image, place].tolist(), anchors[place].tolist(), (10, 10, 5, 5))
        assert boxes[image, place].tolist() == pytest.approx(expected, abs=1e-3)


def test_boxes_cannot_grow_without_bounds():
    anchors = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    boxes = decode_boxes(torch.tensor([[0.0, 0.0, 1e4, 20.0]]), anchors)
    assert (boxes[0, 2] - boxes[0, 0]).item() == pytest.approx(1000)  # 1000 / 16 times the side of the anchor
    assert (boxes[0, 3] - boxes[0, 1]).item() == pytest.approx(16 * math.exp(4))


def test_anchors_that_inference_made_first_can_train():
    anchor_grid.cache_clear()
    with torch.inference_mode():
        anchor_grid(64, 64)
    deltas = torch.zeros(85, 4, requires_grad=True)
    decode_boxes(deltas, anchor_grid(64, 64)[0]).square().sum().backward()
    assert deltas.grad.abs().min() > 0


@settings(deadline=None, max_examples=examples(30))
@given(SEEDS, SIZES, st.integers(1, 4))
def test_matching_equals_the_reference(seed, size, count):
    # A box from border to border is as far from the anchors on its left as from those on its right; which of them are
    # nearest is open then.
    boxes = random_boxes(seed, count, *size, shortest=6, largest=0.9)
    matched = match_anchors([boxes], *size)
    expected = torch.tensor(atss_matches(boxes.tolist(), *size, STRIDES))
    assert torch.equal(matched.positive[0], expected >= 0)
    assert torch.equal(matched.boxes[0][expected >= 0], boxes[expected[expected >= 0]])
    assert (matched.boxes[0][expected < 0] == 0).all()


WHOLE_BOXES = st.tuples(*[st.integers(-8, 120)] * 2, *[st.integers(0, 130)] * 2).map(
    lambda drawn: [*drawn[:2], drawn[0] + drawn[2], drawn[1] + drawn[3]]
)


@settings(deadline=None, max_examples=examples(60))
@given(st.lists(st.lists(WHOLE_BOXES, max_size=4), min_size=1, max_size=5), SIZES)
def test_all_images_at_once_are_matched_to_the_bit_as_monai_does_one_by_one(images, size):
    # Whole pixels: distances and overlaps tie, boxes are empty, equal, of one pixel or larger than the input.
    boxes = [torch.tensor(own, dtype=torch.float32).reshape(-1, 4) for own in images]
    boxes.append(random_boxes(len(images), 3, *size))
    matched = match_anchors(boxes, *size)
    anchors, per_level = anchor_grid(*size)
    matcher = ATSSMatcher(CANDIDATES_PER_LEVEL, center_in_gt=True)
    for own, positive, found in zip(boxes, matched.positive, matched.boxes, strict=True):
        owner = matcher(own, anchors, per_level, 1)[1]
        assert torch.equal(positive, owner >= 0)
        assert torch.equal(found, torch.where(owner[:, None] >= 0, torch.cat([own, torch.zeros(1, 4)])[owner], 0.0))


@settings(deadline=None)
@given(SEEDS)
def test_overlaps_are_those_of_monai_to_the_bit(seed):
    boxes, others = random_boxes(seed, 6, 128, 128), random_boxes(seed + 1, 9, 128, 128)
    boxes[0, 2:] = boxes[0, :2]  # without an area
    assert torch.equal(overlaps(boxes[:, None], others), box_iou(boxes, others))


@settings(deadline=None, max_examples=examples(30))
@given(SEEDS, SIZES, st.integers(1, 3))
def test_centres_of_positive_anchors_lie_in_their_box(seed, size, count):
    boxes = random_boxes(seed, count, *size)
    matched = match_anchors([boxes], *size)
    middle, box = centres(anchor_grid(*size)[0])[matched.positive[0]], matched.boxes[matched.positive]
    assert len(box) >= 1
    assert ((middle > box[:, :2]) & (middle < box[:, 2:])).all()


@settings(deadline=None, max_examples=examples(30))
@given(SEEDS, st.sampled_from([(128, 128), (192, 128), (128, 320)]))
def test_every_box_of_a_polyp_in_a_frame_has_an_anchor(seed, size):
    boxes = random_boxes(seed, 8, *size)
    assert match_anchors(list(boxes[:, None]), *size).positive.any(dim=1).all()


def test_a_square_box_that_is_an_anchor_is_matched_to_it():
    # The anchor of stride 16 in row 1, column 2 of a 64 x 128 input: centre (40, 24).
    box = torch.tensor([[40.0 - 32, 24 - 32, 40 + 32, 24 + 32]])
    matched = match_anchors([box], 64, 128)
    assert matched.positive[0, 128 + 1 * 8 + 2]
    assert torch.equal(anchor_grid(64, 128)[0][128 + 8 + 2], box[0])


def test_images_without_boxes_have_no_positive_anchor_and_do_not_change_others():
    boxes = random_boxes(3, 2, 64, 128)
    matched = match_anchors([torch.zeros(0, 4), boxes, torch.zeros(0, 4)], 64, 128)
    alone = match_anchors([boxes], 64, 128)
    assert matched.positive.any(dim=1).tolist() == [False, True, False]
    assert torch.equal(matched.positive[1:2], alone.positive)
    assert torch.equal(matched.boxes[1:2], alone.boxes)
    assert (matched.boxes[[0, 2]] == 0).all()
    assert not match_anchors([torch.zeros(0, 4)], 64, 64).positive.any()


@settings(deadline=None, max_examples=examples(30))
@given(SEEDS, st.permutations(range(4)))
def test_the_order_of_boxes_does_not_matter(seed, order):
    boxes = random_boxes(seed, 4, 128, 128)
    matched, shuffled = match_anchors([boxes], 128, 128), match_anchors([boxes[list(order)]], 128, 128)
    assert torch.equal(matched.positive, shuffled.positive)
    assert torch.equal(matched.boxes, shuffled.boxes)


class OneDevice(TorchDispatchMode):
    """Refuses copies between devices; what a meta tensor holds cannot be read at all."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves((args, found)) if isinstance(one, torch.Tensor) and one.dim()]
        assert len({one.device for one in tensors}) <= 1, func
        return found


def test_matching_waits_for_no_other_device(monkeypatch):
    grid = torch.empty(170, 4, device="meta")
    monkeypatch.setattr(anchors, "anchor_grid", lambda *_: (grid, (128, 32, 8, 2)))
    boxes = [torch.empty(count, 4, device="meta") for count in (3, 0, 1)]
    with OneDevice():
        matched = match_anchors(boxes, 64, 128)
    assert matched.boxes.shape == (3, 170, 4)


def test_many_boxes_are_matched_part_by_part(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(40, 2, generator=generator) * 80
    boxes = torch.cat([low, low + 12 + torch.rand(40, 2, generator=generator) * 30], dim=1)
    whole = match_anchors([boxes[:25], boxes[25:]], 128, 128)
    sizes = []
    nearest = anchors._nearest
    monkeypatch.setattr(anchors, "_nearest", lambda part, *rest: sizes.append(len(part)) or nearest(part, *rest))
    monkeypatch.setattr(anchors, "_BOXES", 16)
    parts = match_anchors([boxes[:25], boxes[25:]], 128, 128)
    assert sizes == [16, 16, 8]
    assert torch.equal(parts.positive, whole.positive)
    assert torch.equal(parts.boxes, whole.boxes)


def test_no_gradient_flows_through_overlaps():
    boxes = torch.tensor([[0.0, 0, 4, 4]], requires_grad=True)
    assert not overlaps(boxes, boxes).requires_grad
