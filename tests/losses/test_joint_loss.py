"""Losses of processes that share a batch, against the loss of the whole batch; threads stand in for processes."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdml_med.losses import ClassificationCohortLoss, CohortLoss, DetectionCohortLoss
from kdml_med.networks.anchors import AnchorPredictions, anchor_grid
from kdml_med.networks.answers import ClassifierAnswer
from tests.examples import examples

NAMES = ("teacher", "student_0", "student_1")


class Together:
    """What the losses of one batch ask each other: every divisor is a sum over all shares, and each waits for it."""

    def __init__(self, sizes):
        self.sizes, self.barrier, self.values = sizes, Barrier(len(sizes)), [0.0] * len(sizes)

    def joint(self, rank):
        return Share(self, rank)

    def total(self, rank, value):
        self.values[rank] = value
        self.barrier.wait(5)
        total = sum(self.values)
        self.barrier.wait(5)
        return total


class Share:
    def __init__(self, together, rank):
        self.together, self.rank = together, rank
        sizes = together.sizes
        self.share = torch.tensor(sizes[rank] * len(sizes) / sum(sizes))

    def divisor(self, own, least):
        whole = self.together.total(self.rank, float(own))
        return torch.tensor(max(whole, least) / len(self.together.sizes))


def part_of(value, rows):
    if isinstance(value, torch.Tensor):
        return value[rows]
    if isinstance(value, tuple):
        parts = [part_of(one, rows) for one in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def check(make_loss, predictions, target_of, leaves, shares):
    """The mean over the shares of each term, and of the gradients, is that of the batch.

    ``target_of`` gives the target of some rows, ``shares`` the rows of each.
    """
    loss = make_loss()
    whole = loss(predictions, target_of(list(range(sum(map(len, shares))))))
    wanted = torch.autograd.grad(whole["loss"], leaves)
    together = Together([len(rows) for rows in shares])

    def own(rank):
        one = make_loss()
        one.joint = together.joint(rank)
        mine = {name: part_of(value, shares[rank]) for name, value in predictions.items()}
        return one(mine, target_of(shares[rank]))

    with ThreadPoolExecutor(len(shares)) as pool:
        found = list(pool.map(own, range(len(shares))))
    for name, value in whole.items():
        mean = sum(terms[name].item() for terms in found) / len(shares)
        assert mean == pytest.approx(value.item(), rel=1e-5, abs=1e-6), name
    gradients = torch.autograd.grad(sum(terms["loss"] for terms in found) / len(shares), leaves)
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@st.composite
def split_batches(draw):
    """A seed, and the rows that each process has of a batch: any number of them, in any order, but none without one."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    order = draw(st.permutations(range(sum(sizes))))
    rows = [list(order[sum(sizes[:rank]) : sum(sizes[: rank + 1])]) for rank in range(len(sizes))]
    return draw(st.integers(0, 10_000)), rows


@settings(deadline=None, max_examples=examples(25))
@given(split_batches(), st.sampled_from(["predictions", "features", "both"]), st.sampled_from([None, [1.0, 5.0]]))
def test_classifiers_learn_from_shares_as_from_the_batch(batch, link, class_weights):
    seed, shares = batch
    torch.manual_seed(seed)
    count = sum(map(len, shares))
    leaves = [torch.randn(count, 2, requires_grad=True) for _ in NAMES]
    leaves += [torch.randn(count, 3, 4, 4, requires_grad=True) for _ in NAMES]
    answers = zip(leaves[:3], leaves[3:], strict=True)
    predictions = {name: ClassifierAnswer(*pair[:1], (pair[1],)) for name, pair in zip(NAMES, answers, strict=True)}
    labels = torch.randint(0, 2, (count,))

    def make_loss():
        return ClassificationCohortLoss(
            1.0, 0.7, 0.4, teacher_link=link, peer_link=link, class_weights=class_weights, temperature=3.0
        )

    used = leaves if link != "predictions" else leaves[:3]
    # The features of a teacher are a target only.
    used = [leaf for number, leaf in enumerate(used) if number != 3]
    check(make_loss, predictions, lambda rows: labels[rows], used, shares)


class OwnLoss(CohortLoss):
    """Means over samples, by somebody who has never heard of several processes."""

    def task_loss(self, prediction, target):
        return (prediction - target).square().mean()

    def teacher_loss(self, student, teacher, target):
        return (student - teacher.detach()).abs().mean()

    def peer_loss(self, student, peers, target):
        return torch.stack([(student - peer.detach()).abs().mean() for peer in peers]).sum()

    def feature_maps(self, prediction):
        return ()


class OwnClassifierLoss(ClassificationCohortLoss):
    """Only one of the terms is another one."""

    def task_loss(self, prediction, target):
        return (prediction[:, 0] - target).square().mean()


@settings(deadline=None, max_examples=examples(15))
@given(split_batches(), st.sampled_from([OwnLoss, OwnClassifierLoss]))
def test_losses_of_ones_own_need_not_know_of_processes(batch, kind):
    seed, shares = batch
    torch.manual_seed(seed)
    count = sum(map(len, shares))
    leaves = [torch.randn(count, 2, requires_grad=True) for _ in NAMES]
    target = torch.randn(count, 2) if kind is OwnLoss else torch.randn(count)
    check(lambda: kind(1.0, 0.7, 0.4), dict(zip(NAMES, leaves, strict=True)), lambda rows: target[rows], leaves, shares)


@settings(deadline=None, max_examples=examples(15))
@given(split_batches(), st.integers(0, 2))
def test_detectors_learn_from_shares_as_from_the_batch(batch, most):
    """Also where one process, or all of them, have no box at all."""
    seed, shares = batch
    torch.manual_seed(seed)
    count, (anchors, _) = sum(map(len, shares)), anchor_grid(64, 64)
    logits = [torch.randn(count, len(anchors), 1, requires_grad=True) for _ in NAMES]
    deltas = [torch.randn(count, len(anchors), 4, requires_grad=True) for _ in NAMES]
    predictions = {name: AnchorPredictions(*pair) for name, *pair in zip(NAMES, logits, deltas, strict=True)}
    boxes = []
    for number in range(count):
        low = torch.rand(number % (most + 1), 2) * 30
        boxes.append(torch.cat([low, low + 16 + torch.rand_like(low) * 16], dim=1))

    def target_of(rows):
        return [boxes[row] for row in rows], (64, 64)

    check(lambda: DetectionCohortLoss(1.0, 0.7, 0.4), predictions, target_of, [*logits, *deltas], shares)
