import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdml_med.losses import DetectionCohortLoss
from kdml_med.losses import cohort as cohort_module
from kdml_med.losses import detection as detection_module
from kdml_med.losses.detection import (
    DetectionTarget,
    anchor_divergence,
    bounded_box_loss,
    box_loss,
    pair_giou,
    quality_focal_loss,
)
from kdml_med.losses.feature import attention_loss
from kdml_med.networks import build_cohort
from kdml_med.networks.anchors import AnchorPredictions, MatchedAnchors, anchor_grid, overlaps
from tests.examples import examples
from tests.networks.encoding import encode_boxes
from tests.reference import bernoulli_kl, decoded_box, generalised_overlap_of, overlap_of

SEEDS = st.integers(0, 2**31)
LN3 = math.log(3)
TINY = {"name": "retinanet", "width": 16, "head_convs": 1, "last_block": 13}
SIZE = (64, 64)
BOXES = [
    torch.tensor([[4.0, 6, 36, 40], [30, 30, 62, 60]]),
    torch.zeros(0, 4),
    torch.tensor([[10.0, 20, 50, 52]]),
]


def answers(logits, boxes, anchors, features=()):
    """What a network says that gives each anchor of one image this logit and this box."""
    deltas = encode_boxes(torch.tensor(boxes), anchors)
    return AnchorPredictions(torch.tensor(logits).view(1, -1, 1), deltas[None], features)


def target_of(anchors, positive, boxes):
    matched = MatchedAnchors(torch.tensor([positive]), torch.tensor([boxes]) * torch.tensor(positive)[:, None])
    return DetectionTarget(matched, anchors)


# Two positive anchors and one of background. The first network box holds the truth and as much again (IoU 1/2), the
# second one lies beside it.
ANCHORS = torch.tensor([[0.0, 0, 16, 16], [8, 0, 24, 16], [64, 64, 96, 96]])
TRUTH = [[0.0, 0, 10, 10], [30.0, 0, 40, 10], [0.0, 0, 0, 0]]
FOUND = [[0.0, 0, 20, 10], [0.0, 0, 10, 10], [60.0, 60, 90, 90]]
TARGET = target_of(ANCHORS, [True, True, False], TRUTH)
BACKGROUND = target_of(ANCHORS, [False, False, False], TRUTH)


def random_answers(seed, names=("teacher", "student_0", "student_1"), batch=3, size=SIZE):
    """Predictions of a cohort, boxes near their anchors, and pyramids of different widths."""
    generator = torch.Generator().manual_seed(seed)
    count = len(anchor_grid(*size)[0])

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    return {
        name: AnchorPredictions(
            draw(batch, count, 1) - 2,
            draw(batch, count, 4),
            tuple(draw(batch, 4 + number, side, side) for side in (8, 4)),
        )
        for number, name in enumerate(names)
    }


def prepared(boxes=None, size=SIZE):
    return DetectionCohortLoss(beta=0.0).prepare_target({}, (BOXES if boxes is None else boxes, size))


def requiring_gradient(predictions):
    return {
        name: AnchorPredictions(
            one.logits.clone().requires_grad_(),
            one.deltas.clone().requires_grad_(),
            tuple(feature.clone().requires_grad_() for feature in one.features),
        )
        for name, one in predictions.items()
    }


def refuse(*_args, **_kwargs):
    raise AssertionError("computed although its weight is zero")


def test_overlaps_by_hand():
    # Shared 100 of union 200, which fills the hull; then nothing shared, union 200 in a hull of 400: -200/400.
    found, truth = torch.tensor(FOUND[:2]), torch.tensor(TRUTH[:2])
    assert overlaps(found, truth).tolist() == [0.5, 0.0]
    assert pair_giou(found, truth).tolist() == [0.5, -0.5]


@settings(deadline=None)
@given(SEEDS)
def test_overlaps_equal_the_reference(seed):
    generator = np.random.default_rng(seed)
    low = generator.uniform(0, 60, (2, 10, 2))
    boxes = np.concatenate([low, low + generator.uniform(0.5, 60, (2, 10, 2))], axis=2).astype(np.float32)
    first, second = (torch.from_numpy(part) for part in boxes)
    pairs = list(zip(*boxes.astype(float).tolist(), strict=True))
    assert overlaps(first, second).tolist() == pytest.approx([overlap_of(*pair) for pair in pairs], abs=1e-5)
    expected = [generalised_overlap_of(*pair) for pair in pairs]
    assert pair_giou(first, second).tolist() == pytest.approx(expected, abs=1e-5)


def test_overlaps_of_empty_boxes_are_finite():
    point, box = torch.tensor([[3.0, 3, 3, 3]]), torch.tensor([[0.0, 0, 4, 4]])
    assert overlaps(point, box).tolist() == overlaps(point, point).tolist() == [0]
    assert pair_giou(point, box).tolist() == [0]  # shared 0, the union fills the hull
    assert pair_giou(point, point).isfinite().all()


def test_quality_focal_loss_by_hand():
    # Anchor 0: score 3/4 for an IoU of 1/2, so (1/4)² · -(1/2 ln 3/4 + 1/2 ln 1/4). Anchor 1: score 1/2 for an IoU of
    # 0, (1/2)² · ln 2. Background at score 1/4: (1/4)² · -ln 3/4. Two positive anchors.
    loss = quality_focal_loss(answers([LN3, 0.0, -LN3], FOUND, ANCHORS), TARGET)
    expected = -(math.log(3 / 4) + math.log(1 / 4)) / 2 / 16 + math.log(2) / 4 - math.log(3 / 4) / 16
    assert loss.item() == pytest.approx(expected / 2, rel=1e-5)


def test_without_positive_anchors_the_focal_loss_is_the_sum_over_background():
    # Score 1/4 three times: 3 · (1/4)² · -ln 3/4, divided by 1.
    loss = quality_focal_loss(answers([-LN3] * 3, FOUND, ANCHORS), BACKGROUND)
    assert loss.item() == pytest.approx(-3 / 16 * math.log(3 / 4), rel=1e-5)


def test_scores_that_equal_the_quality_of_their_boxes_cost_nothing():
    # IoU 1/2 means a logit of 0; what has no overlap and background need a score of 0.
    loss = quality_focal_loss(answers([0.0, -30.0, -30.0], FOUND, ANCHORS), TARGET)
    assert loss.item() == pytest.approx(0, abs=1e-12)


def test_quality_is_a_target_and_gives_no_gradient_to_boxes():
    prediction = requiring_gradient({"student_0": answers([LN3, 0.0, 0.0], FOUND, ANCHORS)})["student_0"]
    quality_focal_loss(prediction, TARGET).backward()
    assert prediction.deltas.grad is None
    assert prediction.logits.grad.abs().min() > 0


def test_box_loss_by_hand():
    # Errors 1 - 1/2 and 1 + 1/2; the background's box does not count.
    assert box_loss(answers([0.0] * 3, FOUND, ANCHORS), TARGET).item() == pytest.approx(1, rel=1e-5)
    assert box_loss(answers([0.0] * 3, TRUTH[:2] + FOUND[2:], ANCHORS), TARGET).item() == pytest.approx(0, abs=1e-5)


@settings(deadline=None, max_examples=examples(12))
@given(SEEDS)
def test_gradient_of_the_box_loss_equals_finite_differences(seed):
    prediction = requiring_gradient(random_answers(seed, ["student_0"], batch=1))["student_0"]
    target = prepared(BOXES[:1])
    box_loss(prediction, target).backward()
    places = target.matched.positive[0].nonzero().flatten().tolist()

    def error(place, deltas):
        box = decoded_box(deltas, target.anchors[place].tolist(), (10, 10, 5, 5))
        return 1 - generalised_overlap_of(box, target.matched.boxes[0, place].tolist())

    place = places[seed % len(places)]
    deltas, expected, step = prediction.deltas[0, place].tolist(), [], 1e-6
    for number in range(4):
        ends = [[*deltas[:number], deltas[number] + side, *deltas[number + 1 :]] for side in (step, -step)]
        expected.append((error(place, ends[0]) - error(place, ends[1])) / (2 * step) / len(places))
    assert prediction.deltas.grad[0, place].tolist() == pytest.approx(expected, rel=2e-3, abs=1e-5)
    assert (prediction.deltas.grad[~target.matched.positive] == 0).all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_anchor_divergence_by_hand(temperature):
    # Softened by T the source says 3/4 and the student 1/2. Anchor 2 is background: unsoftened, 9/10 at T = 2 and 3/4
    # at T = 1 is the higher of the two probabilities, and its weight. Anchor 1 agrees and has weight 1, being positive.
    student = answers([0.0, LN3, 0.0], FOUND, ANCHORS)
    source = answers([temperature * LN3, LN3, temperature * LN3], TRUTH, ANCHORS)
    target = target_of(ANCHORS, [True, True, False], TRUTH)
    weight = {1.0: 3 / 4, 2.0: 9 / 10}[temperature]
    kl = 3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)
    expected = temperature**2 * (1 + weight) * kl / (2 + weight)
    source.deltas.mul_(float("nan"))  # boxes have no part in it
    assert anchor_divergence(student, source, target, temperature=temperature).item() == pytest.approx(expected)


def test_the_weight_of_background_is_the_higher_score_of_the_two():
    # One anchor where the student sees 9/10 and the source 1/10, one where both see 1/10: weights 9/10 and 1/10.
    student, source = (
        answers([2 * LN3, -2 * LN3], FOUND[:2], ANCHORS[:2]),
        answers([-2 * LN3] * 2, FOUND[:2], ANCHORS[:2]),
    )
    target = target_of(ANCHORS[:2], [False, False], TRUTH[:2])
    there = anchor_divergence(student, source, target, temperature=1).item()
    assert there == pytest.approx(0.9 * bernoulli_kl(0.1, 0.9))
    back = anchor_divergence(source, student, target, temperature=1).item()
    assert back == pytest.approx(0.9 * bernoulli_kl(0.9, 0.1))


@settings(deadline=None, max_examples=examples(30))
@given(SEEDS, st.floats(0.5, 10))
def test_gradient_of_the_divergence_is_the_difference_of_softened_scores(seed, temperature):
    # d/dz of T² · KL is T · (q - p), weighted as the value is; weights are constants.
    both = requiring_gradient(random_answers(seed, ["student_0", "student_1"], batch=2))
    student, source, target = both["student_0"], both["student_1"], prepared(BOXES[:2])
    anchor_divergence(student, source, target, temperature=temperature).backward()
    z, s = student.logits.detach().double(), source.logits.detach().double()
    weight = torch.maximum(z.sigmoid(), s.sigmoid())
    weight[target.matched.positive] = 1
    expected = temperature * weight * ((z / temperature).sigmoid() - (s / temperature).sigmoid()) / weight.sum()
    torch.testing.assert_close(student.logits.grad.double(), expected, rtol=1e-4, atol=1e-7)
    assert source.logits.grad is None


@settings(deadline=None, max_examples=examples(30))
@given(SEEDS, st.floats(0.5, 10))
def test_whoever_agrees_has_nothing_to_learn(seed, temperature):
    one, other = random_answers(seed, ["student_0", "student_1"]).values()
    target = prepared()
    assert anchor_divergence(one, one, target, temperature=temperature).item() == 0
    assert bounded_box_loss(one, one, target).item() == 0
    assert anchor_divergence(one, other, target, temperature=temperature).item() > 0
    # On each positive anchor one of the two is worse, but one of them may be so on all.
    assert bounded_box_loss(one, other, target).item() + bounded_box_loss(other, one, target).item() > 0


@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_confident_networks_diverge_finitely(logit):
    student = requiring_gradient({"student_0": answers([-logit] * 3, FOUND, ANCHORS)})["student_0"]
    loss = anchor_divergence(student, answers([logit] * 3, FOUND, ANCHORS), TARGET, temperature=1)
    loss.backward()
    assert loss.item() == pytest.approx(200)  # one says "certain", the other e^-200
    assert student.logits.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0, -1.0])
def test_temperature_must_be_positive(temperature):
    prediction = answers([0.0] * 3, FOUND, ANCHORS)
    with pytest.raises(ValueError, match="temperature must be positive"):
        anchor_divergence(prediction, prediction, TARGET, temperature=temperature)


def test_networks_with_other_anchors_are_refused():
    one, other = answers([0.0] * 3, FOUND, ANCHORS), answers([0.0] * 2, FOUND[:2], ANCHORS[:2])
    with pytest.raises(ValueError, match=r"shapes differ: source \(1, 2, 1\), student \(1, 3, 1\)"):
        anchor_divergence(one, other, TARGET, temperature=1)


@pytest.mark.parametrize(
    ("source", "margin", "expected"),
    [
        # The student's errors are 1/2 and 3/2.
        (TRUTH[:2], 0.0, (0.5 + 1.5) / 2),  # the source is right twice
        ([TRUTH[0], FOUND[1]], 0.0, 0.5 / 2),  # better once, as bad once
        (FOUND[:2], 0.0, 0.0),
        (FOUND[:2], 0.1, (0.5 + 1.5) / 2),  # as good as the source is not good enough
        ([[0.0, 0, 50, 10], FOUND[1]], 0.0, 0.0),  # error 4/5: the student is better
        ([[0.0, 0, 50, 10], FOUND[1]], 0.25, 1.5 / 2),
        ([[0.0, 0, 50, 10], FOUND[1]], 0.35, (0.5 + 1.5) / 2),  # better, but not by the margin
    ],
)
def test_bounded_box_loss_counts_where_the_source_is_better(source, margin, expected):
    student = answers([0.0] * 3, FOUND, ANCHORS)
    loss = bounded_box_loss(student, answers([0.0] * 3, source + TRUTH[:1], ANCHORS), TARGET, margin=margin)
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_bounded_box_loss_gives_gradient_where_it_counts_and_none_to_the_source():
    both = requiring_gradient(
        {
            "student_0": answers([0.0] * 3, FOUND, ANCHORS),
            "teacher": answers([0.0] * 3, [TRUTH[0], FOUND[1], FOUND[2]], ANCHORS),
        }
    )
    bounded_box_loss(both["student_0"], both["teacher"], TARGET).backward()
    assert both["teacher"].deltas.grad is None
    assert both["student_0"].deltas.grad[0].abs().sum(dim=1).bool().tolist() == [True, False, False]


def own_loss(name, predictions, target, *, alpha, beta, gamma, box_weight, feature_weight, margin, temperatures):
    """Loss of one network with everybody else held constant, put together from its parts."""

    def imitation(source, temperature):
        source = AnchorPredictions(
            source.logits.detach(), source.deltas.detach(), [f.detach() for f in source.features]
        )
        return (
            anchor_divergence(own, source, target, temperature=temperature)
            + box_weight * bounded_box_loss(own, source, target, margin=margin)
            + feature_weight * attention_loss(own.features, source.features)
        )

    own = predictions[name]
    task = quality_focal_loss(own, target) + box_weight * box_loss(own, target)
    if name == "teacher":
        return task
    peers = [value for other, value in predictions.items() if other not in (name, "teacher")]
    ml = sum(imitation(peer, temperatures[1]) for peer in peers) / len(peers)
    return alpha * task + beta * imitation(predictions["teacher"], temperatures[0]) + gamma * ml


PARTS = {"alpha": 0.8, "beta": 1.5, "gamma": 2.5, "box_weight": 0.7, "feature_weight": 3.0, "margin": 0.2}
BOTH = {"teacher_link": "both", "peer_link": "both"}
ALL = {"task", "kd", "ml"}


def test_each_network_receives_the_gradient_of_its_own_loss_only():
    cohort = build_cohort(num_classes=1, teacher=TINY | {"width": 24}, students=[TINY] * 3, task="detection")
    image = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    loss = DetectionCohortLoss(**PARTS, **BOTH, temperature=3.0, peer_temperature=1.5)
    terms = loss(cohort(image), (BOXES, SIZE))
    terms["loss"].backward()
    predictions, target = cohort(image), prepared()
    for name, network in cohort.networks.items():
        parameters = list(network.parameters())
        own = own_loss(name, predictions, target, **PARTS, temperatures=(3.0, 1.5))
        expected = torch.autograd.grad(own, parameters, retain_graph=True)
        # Biases before a norm have no gradient but rounding, so that the largest one of the network sets the scale.
        scale = max(gradient.abs().max().item() for gradient in expected)
        assert scale > 0.01
        for parameter, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-4 * scale)


def test_every_term_and_the_weighted_sum_are_put_together_as_documented():
    predictions, target = random_answers(5, ["teacher", "student_0", "student_1", "student_2"]), prepared()
    terms = DetectionCohortLoss(**PARTS, **BOTH, temperature=3.0, peer_temperature=1.5)(predictions, (BOXES, SIZE))
    only = {"box_weight": 0.7, "feature_weight": 3.0, "margin": 0.2, "temperatures": (3.0, 1.5)}
    expected = {"teacher_task": own_loss("teacher", predictions, target, alpha=1, beta=0, gamma=0, **only)}
    for name in ("student_0", "student_1", "student_2"):
        for number, term in enumerate(("task", "kd", "ml")):
            one = dict(zip(("alpha", "beta", "gamma"), np.eye(3)[number].tolist(), strict=True))
            expected[f"{name}_{term}"] = own_loss(name, predictions, target, **one, **only)
    weights = {"task": 0.8, "kd": 1.5, "ml": 2.5}
    total = expected["teacher_task"] + sum(
        weights[name.rpartition("_")[2]] * value for name, value in expected.items() if name != "teacher_task"
    )
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(
        {name: value.item() for name, value in (expected | {"loss": total}).items()}, rel=1e-5
    )


@pytest.mark.parametrize("boxes", [BOXES, [torch.zeros(0, 4)] * 3], ids=["some", "none"])
@pytest.mark.parametrize(
    "settings",
    [
        BOTH,
        {"teacher_link": ["predictions", "features"], "peer_link": "features"},
        {"alpha": 0.0},
        {"beta": 0.0, "gamma": 0.0},
        {"box_weight": 0.0},
    ],
    ids=str,
)
def test_gradient_reaches_every_parameter_even_without_any_box(boxes, settings):
    # Distributed training waits for the gradient of every parameter, zero or not.
    cohort = build_cohort(num_classes=1, teacher=TINY, students=[TINY, TINY], task="detection")
    image = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    terms = DetectionCohortLoss(**settings)(cohort(image), (boxes, SIZE))
    assert all(value.isfinite() and value >= 0 for value in terms.values())
    terms["loss"].backward()
    for name, parameter in cohort.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_without_any_box_nothing_is_learnt_of_boxes():
    predictions = requiring_gradient(random_answers(1))
    empty = [torch.zeros(0, 4)] * 3
    with_boxes = DetectionCohortLoss(box_weight=2.0)(predictions, (empty, SIZE))
    without = DetectionCohortLoss(box_weight=0.0)(predictions, (empty, SIZE))
    assert {name: value.item() for name, value in with_boxes.items()} == {
        name: value.item() for name, value in without.items()
    }
    with_boxes["loss"].backward()
    for prediction in predictions.values():
        assert (prediction.deltas.grad == 0).all()
        assert prediction.logits.grad.abs().max() > 0


@settings(deadline=None, max_examples=examples(12))
@given(SEEDS, st.permutations(range(3)))
def test_the_order_of_images_in_a_batch_does_not_matter(seed, order):
    predictions = random_answers(seed)
    shuffled = {
        name: AnchorPredictions(one.logits[order], one.deltas[order], tuple(f[order] for f in one.features))
        for name, one in predictions.items()
    }
    loss = DetectionCohortLoss(**BOTH)
    terms = loss(predictions, (BOXES, SIZE))
    others = loss(shuffled, ([BOXES[place] for place in order], SIZE))
    assert {name: value.item() for name, value in others.items()} == pytest.approx(
        {name: value.item() for name, value in terms.items()}, rel=1e-5
    )


@pytest.mark.parametrize(
    ("settings", "functions", "kinds"),
    [
        ({"beta": 0.0, "gamma": 0.0}, ["anchor_divergence", "bounded_box_loss", "attention_loss"], {"task"}),
        ({"alpha": 0.0, "train_teacher": False}, ["quality_focal_loss", "box_loss"], {"kd", "ml"}),
        ({"feature_weight": 0.0}, ["attention_loss"], ALL),
        ({"teacher_link": "predictions", "peer_link": "predictions"}, ["attention_loss"], ALL),
        ({"teacher_link": "features", "peer_link": "features"}, ["anchor_divergence", "bounded_box_loss"], ALL),
    ],
    ids=["labels only", "imitation only", "no weight of features", "predictions only", "features only"],
)
def test_a_term_of_weight_zero_is_neither_named_nor_computed(monkeypatch, settings, functions, kinds):
    everything = {"alpha": 1.0, "beta": 1.0, "gamma": 1.0, "feature_weight": 1.0} | BOTH
    for function in functions:
        monkeypatch.setattr(cohort_module if function == "attention_loss" else detection_module, function, refuse)
        with pytest.raises(AssertionError, match="weight is zero"):
            DetectionCohortLoss(**everything)(random_answers(0), (BOXES, SIZE))
    terms = DetectionCohortLoss(**(everything | settings))(random_answers(0), (BOXES, SIZE))
    assert {name.rpartition("_")[2] for name in terms if name != "loss"} == kinds


def test_boxes_are_matched_once_for_all_networks(monkeypatch):
    calls, match = [], detection_module.match_anchors
    monkeypatch.setattr(detection_module, "match_anchors", lambda *args: calls.append(args) or match(*args))
    DetectionCohortLoss()(random_answers(0), (BOXES, SIZE))
    assert len(calls) == 1


def test_the_ramp_scales_what_is_back_propagated_but_not_the_reported_terms():
    predictions, loss = random_answers(2), DetectionCohortLoss(ramp_up_epochs=1)
    full = loss(predictions, (BOXES, SIZE))
    loss.set_epoch(1)
    half = loss(predictions, (BOXES, SIZE))
    imitation = sum(value for name, value in full.items() if name.endswith(("_kd", "_ml")))
    assert half["loss"].item() == pytest.approx((full["loss"] - imitation / 2).item(), rel=1e-5)
    assert half["student_0_kd"].item() == full["student_0_kd"].item()


def test_half_precision_predictions_give_a_float32_loss():
    predictions = {
        name: AnchorPredictions(one.logits.bfloat16(), one.deltas.bfloat16(), tuple(f.bfloat16() for f in one.features))
        for name, one in random_answers(3).items()
    }
    same = {
        name: AnchorPredictions(one.logits.float(), one.deltas.float(), tuple(f.float() for f in one.features))
        for name, one in predictions.items()
    }
    loss = DetectionCohortLoss(**BOTH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = loss(predictions, (BOXES, SIZE))
    assert {value.dtype for value in terms.values()} == {torch.float32}
    assert torch.equal(terms["loss"], loss(same, (BOXES, SIZE))["loss"])


def test_the_loss_holds_nothing_that_a_step_changes():
    loss, predictions = DetectionCohortLoss(**BOTH), random_answers(4)
    before = copy.deepcopy(predictions)
    first = loss(predictions, (BOXES, SIZE))["loss"]
    loss(random_answers(5), (BOXES[::-1], SIZE))
    assert torch.equal(loss(predictions, (BOXES, SIZE))["loss"], first)
    for name, one in predictions.items():
        assert torch.equal(one.logits, before[name].logits)
        assert torch.equal(one.deltas, before[name].deltas)


def test_detectors_of_several_classes_are_refused():
    predictions = random_answers(0)
    predictions["student_1"] = AnchorPredictions(torch.zeros(3, 85, 2), torch.zeros(3, 85, 4))
    with pytest.raises(ValueError, match=r"student_1 has 2 classes.* set num_classes to 1"):
        DetectionCohortLoss()(predictions, (BOXES, SIZE))


@pytest.mark.parametrize("name", ["box_weight", "feature_weight", "margin", "alpha"])
def test_negative_settings_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must not be negative, got -0.5"):
        DetectionCohortLoss(**{name: -0.5})
