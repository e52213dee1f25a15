"""Losses of processes that share a batch, and of batches that share an update, against the loss of the whole.

Threads stand in for processes.
"""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, local
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kdml_med.engines import joint, processes
from kdml_med.engines.joint import UpdatePart
from kdml_med.losses import ClassificationCohortLoss, CohortLoss, DetectionCohortLoss
from kdml_med.losses.cohort import DealtLabels
from kdml_med.networks.anchors import AnchorPredictions, anchor_grid, match_anchors
from kdml_med.networks.answers import ClassifierAnswer
from tests.examples import examples

NAMES = ("teacher", "student_0", "student_1")


class Together:
    """What processes that share a batch tell each other: each adds its part to a sum, and waits for those of all."""

    def __init__(self, count):
        self.barrier, self.values, self.own = Barrier(count), [0.0] * count, local()

    def all_reduce(self, value):
        self.values[self.own.rank] = float(value)
        self.barrier.wait(60)
        total = sum(self.values)
        self.barrier.wait(60)
        value.fill_(total)

    def run(self, work):
        """What each of them makes, called with its rank."""

        def begin(rank):
            self.own.rank = rank
            try:
                return work(rank)
            except BaseException:
                self.barrier.abort()
                raise

        count = len(self.values)
        told = {"world_size": lambda: count, "dist": SimpleNamespace(all_reduce=self.all_reduce)}
        with mock.patch.multiple(processes, **told), ThreadPoolExecutor(count) as pool:
            return list(pool.map(begin, range(count)))


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

    def own(rank):
        rows = shares[rank] or [0]  # a process without a sample of its own keeps the others company
        mine = {name: part_of(value, rows) for name, value in predictions.items()}
        return joint.joint_terms(make_loss(), mine, target_of(rows), samples=len(shares[rank]))

    found = Together(len(shares)).run(own)
    for name, value in whole.items():
        mean = sum(terms[name].item() for terms in found) / len(shares)
        assert mean == pytest.approx(value.item(), rel=1e-5, abs=1e-6), name
    gradients = torch.autograd.grad(sum(terms["loss"] for terms in found) / len(shares), leaves)
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def check_update(make_loss, predictions, target_of, leaves, shares):
    """The same where the shares of each process come one behind the other, and gradients are added up.

    ``shares`` has the rows of each batch of the update, and in these those of each process.
    """
    count = sum(len(rows) for batch in shares for rows in batch)
    loss = make_loss()
    whole = loss(predictions, target_of(list(range(count))))
    wanted = torch.autograd.grad(whole["loss"], leaves)
    sums = processes.added(
        [
            {name: float(value) for name, value in loss.label_sums(target_of(rows)).items()}
            for batch in shares
            for rows in batch
            if rows
        ]
    )
    found = []
    for batch in shares:
        part = sum(map(len, batch)) / count

        def own(rank, batch=batch, part=part):
            rows = batch[rank] or [0]
            mine = {name: part_of(value, rows) for name, value in predictions.items()}
            update = UpdatePart(sums, part)
            terms = joint.joint_terms(make_loss(), mine, target_of(rows), samples=len(batch[rank]), update=update)
            return {name: value * part for name, value in terms.items()}

        found += Together(len(batch)).run(own)
    for name, value in whole.items():
        total = sum(terms[name].item() for terms in found) / len(shares[0])
        assert total == pytest.approx(value.item(), rel=1e-5, abs=1e-6), name
    gradients = torch.autograd.grad(sum(terms["loss"] for terms in found) / len(shares[0]), leaves)
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@st.composite
def split_updates(draw):
    """A seed, and the rows that each process has of each batch of an update; each batch has some."""
    width = draw(st.integers(1, 2))
    batch = st.lists(st.integers(0, 2), min_size=width, max_size=width).filter(any)
    sizes = draw(st.lists(batch, min_size=2, max_size=3))
    order = iter(draw(st.permutations(range(sum(map(sum, sizes))))))
    return draw(st.integers(0, 10_000)), [[[next(order) for _ in range(size)] for size in one] for one in sizes]


@st.composite
def split_batches(draw):
    """A seed, and the rows that each process has of a batch: any number of them, in any order, some perhaps none."""
    sizes = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3).filter(any))
    order = draw(st.permutations(range(sum(sizes))))
    rows = [list(order[sum(sizes[:rank]) : sum(sizes[: rank + 1])]) for rank in range(len(sizes))]
    return draw(st.integers(0, 10_000)), rows


@settings(deadline=None, max_examples=examples(25))
@given(
    split_batches(),
    st.sampled_from(["predictions", "features", "both"]),
    st.sampled_from([None, [1.0, 5.0]]),
    st.booleans(),
)
def test_classifiers_learn_from_shares_as_from_the_batch(batch, link, class_weights, own_labels):
    seed, shares = batch
    count = sum(map(len, shares))
    check(*classifiers(seed, count, link, class_weights, own_labels), shares)


@settings(deadline=None, max_examples=examples(25))
@given(
    split_updates(),
    st.sampled_from(["predictions", "both"]),
    st.sampled_from([None, [1.0, 5.0], [0.0, 1.0]]),
    st.booleans(),
)
def test_classifiers_learn_from_the_batches_of_an_update_as_from_one(update, link, class_weights, own_labels):
    seed, shares = update
    count = sum(len(rows) for batch in shares for rows in batch)
    make_loss, predictions, target_of, leaves = classifiers(seed, count, link, class_weights, own_labels)
    target = target_of(list(range(count)))
    # Where no sample has a weight, torch's mean of the whole is no number.
    assume(class_weights != [0.0, 1.0] or bool((target.labels if own_labels else target).any()))
    check_update(make_loss, predictions, target_of, leaves, shares)


def classifiers(seed, count, link, class_weights, own_labels):
    """What ``check`` takes, but for the shares: a loss, answers, targets by rows, and leaves of the gradients."""
    torch.manual_seed(seed)
    leaves = [torch.randn(count, 2, requires_grad=True) for _ in NAMES]
    leaves += [torch.randn(count, 3, 4, 4, requires_grad=True) for _ in NAMES]
    answers = zip(leaves[:3], leaves[3:], strict=True)
    predictions = {name: ClassifierAnswer(*pair[:1], (pair[1],)) for name, pair in zip(NAMES, answers, strict=True)}
    labels, learners = torch.randint(0, 2, (count,)), torch.randint(0, 2, (count,))

    def target_of(rows):
        return DealtLabels(labels[rows], learners[rows]) if own_labels else labels[rows]

    def make_loss():
        return ClassificationCohortLoss(
            1.0, 0.7, 0.4, teacher_link=link, peer_link=link, class_weights=class_weights, temperature=3.0
        )

    used = leaves if link != "predictions" else leaves[:3]
    # The features of a teacher are a target only.
    used = [leaf for number, leaf in enumerate(used) if number != 3]
    return make_loss, predictions, target_of, used


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


def test_a_share_whose_classes_have_no_weight_adds_nothing():
    logits = {name: torch.tensor([[0.5, -1.0], [2.0, 1.0], [0.0, 3.0]], requires_grad=True) for name in NAMES}
    labels = torch.tensor([0, 1, 0])

    def make_loss():
        return ClassificationCohortLoss(class_weights=[0.0, 1.0])

    check(make_loss, logits, lambda rows: labels[rows], list(logits.values()), [[0, 2], [1]])


@settings(deadline=None, max_examples=examples(15))
@given(split_batches(), st.integers(0, 2))
def test_detectors_learn_from_shares_as_from_the_batch(batch, most):
    """Also where one process, or all of them, have no box at all."""
    seed, shares = batch
    check(lambda: DetectionCohortLoss(1.0, 0.7, 0.4), *detectors(seed, sum(map(len, shares)), most), shares)


@settings(deadline=None, max_examples=examples(15))
@given(split_updates(), st.integers(0, 2), st.booleans())
def test_detectors_learn_from_the_batches_of_an_update_as_from_one(update, most, features):
    """Also where some of the batches, or all of them, have no box at all."""
    seed, shares = update
    count = sum(len(rows) for batch in shares for rows in batch)
    predictions, target_of, leaves = detectors(seed, count, most)
    weights = {"teacher_link": "features", "peer_link": "features"} if features else {"beta": 0.0, "gamma": 0.0}
    if features:
        maps = [torch.randn(count, 2, 4, 4, requires_grad=True) for _ in NAMES]
        predictions = {name: predictions[name]._replace(features=(own,)) for name, own in zip(NAMES, maps, strict=True)}
        leaves = [*leaves, *maps[1:]]  # those of a teacher are a target only
    check_update(lambda: DetectionCohortLoss(**weights), predictions, target_of, leaves, shares)


def detectors(seed, count, most):
    """Answers, targets by rows, and leaves of the gradients; up to ``most`` boxes in a frame."""
    torch.manual_seed(seed)
    anchors, _ = anchor_grid(64, 64)
    logits = [torch.randn(count, len(anchors), 1, requires_grad=True) for _ in NAMES]
    deltas = [torch.randn(count, len(anchors), 4, requires_grad=True) for _ in NAMES]
    predictions = {name: AnchorPredictions(*pair) for name, *pair in zip(NAMES, logits, deltas, strict=True)}
    boxes = []
    for number in range(count):
        low = torch.rand(number % (most + 1), 2) * 30
        boxes.append(torch.cat([low, low + 16 + torch.rand_like(low) * 16], dim=1))
    return predictions, lambda rows: ([boxes[row] for row in rows], (64, 64)), [*logits, *deltas]


def test_scores_of_positive_anchors_are_learned_as_in_one_batch_where_the_background_is_silent():
    """A frame with a polyp and one without make an update; only positive anchors have weight in what scores teach."""
    (anchors, _), boxes = anchor_grid(64, 64), [torch.tensor([[8.0, 8.0, 40.0, 40.0]]), torch.zeros(0, 4)]
    positive = match_anchors(boxes, 64, 64).positive.unsqueeze(-1)
    generator = torch.Generator().manual_seed(3)
    predictions = {
        name: AnchorPredictions(
            torch.where(positive, torch.randn(2, len(anchors), 1, generator=generator), -30.0).requires_grad_(),
            torch.zeros(2, len(anchors), 4, requires_grad=True),
        )
        for name in NAMES
    }
    leaves = [part for answer in predictions.values() for part in answer[:2]]
    check_update(
        DetectionCohortLoss, predictions, lambda rows: ([boxes[row] for row in rows], (64, 64)), leaves, [[[1]], [[0]]]
    )
