import copy

import pytest
import torch
from torch.nn import functional as F

from kdml_med.keys import split_loss_name
from kdml_med.losses import ClassificationCohortLoss, attention_loss
from kdml_med.losses import classification as classification_module
from kdml_med.losses import cohort as cohort_module
from kdml_med.networks import build_cohort
from kdml_med.networks.answers import ClassifierAnswer
from tests.networks.tiny import TINY
from tests.reference import cross_entropy, mutual_divergence, softened_kl

TARGET = torch.tensor([0, 2, 1, 1, 0])


def predictions(students, *, teacher):
    names = (["teacher"] if teacher else []) + [f"student_{index}" for index in range(students)]
    generator = torch.Generator().manual_seed(7)
    return {name: torch.randn(len(TARGET), 3, generator=generator) for name in names}


def refuse(*_args, **_kwargs):
    raise AssertionError("computed although its weight is zero")


@pytest.mark.parametrize(
    ("students", "teacher", "expected"),
    [
        (1, False, {"student_0_task"}),
        (1, True, {"teacher_task", "student_0_task", "student_0_kd"}),
        (2, False, {"student_0_task", "student_0_ml", "student_1_task", "student_1_ml"}),
        (
            2,
            True,
            {"teacher_task"} | {f"student_{index}_{term}" for index in range(2) for term in ("task", "kd", "ml")},
        ),
        (3, False, {f"student_{index}_{term}" for index in range(3) for term in ("task", "ml")}),
        (
            3,
            True,
            {"teacher_task"} | {f"student_{index}_{term}" for index in range(3) for term in ("task", "kd", "ml")},
        ),
    ],
)
def test_terms_are_those_that_the_cohort_has(students, teacher, expected):
    loss = ClassificationCohortLoss(beta=1.0 if teacher else 0.0)
    assert set(loss(predictions(students, teacher=teacher), TARGET)) == expected | {"loss"}


@pytest.mark.parametrize("class_weights", [None, [0.5, 2.0, 1.0]])
def test_every_term_and_the_weighted_sum_equal_the_reference(class_weights):
    logits = predictions(3, teacher=True)
    loss = ClassificationCohortLoss(0.7, 0.3, 1.9, temperature=3, peer_temperature=2, class_weights=class_weights)
    terms = loss(logits, TARGET)
    students = [f"student_{index}" for index in range(3)]
    expected = {"teacher_task": cross_entropy(logits["teacher"], TARGET.tolist(), class_weights)}
    total = expected["teacher_task"]
    for name in students:
        peers = [logits[other] for other in students if other != name]
        task = cross_entropy(logits[name], TARGET.tolist(), class_weights)
        kd = softened_kl(logits["teacher"], logits[name], 3)
        ml = mutual_divergence(peers, logits[name], 2)
        expected |= {f"{name}_task": task, f"{name}_kd": kd, f"{name}_ml": ml}
        total += 0.7 * task + 0.3 * kd + 1.9 * ml
    expected["loss"] = total
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("weights", "function", "term"),
    [
        ({"beta": 0.0}, "distillation_loss", "kd"),
        ({"gamma": 0.0}, "mutual_loss", "ml"),
    ],
)
def test_a_term_of_weight_zero_is_neither_named_nor_computed(monkeypatch, weights, function, term):
    monkeypatch.setattr(classification_module, function, refuse)
    terms = ClassificationCohortLoss(**weights)(predictions(2, teacher=True), TARGET)
    assert not [name for name in terms if name.endswith(term)]
    with pytest.raises(AssertionError, match="weight is zero"):
        ClassificationCohortLoss()(predictions(2, teacher=True), TARGET)


def test_labels_are_not_looked_at_without_alpha_and_with_a_frozen_teacher(monkeypatch):
    monkeypatch.setattr(ClassificationCohortLoss, "task_loss", refuse)
    terms = ClassificationCohortLoss(alpha=0.0, train_teacher=False)(predictions(2, teacher=True), TARGET)
    assert set(terms) == {"student_0_kd", "student_0_ml", "student_1_kd", "student_1_ml", "loss"}


def test_a_frozen_teacher_teaches_but_has_no_term_of_its_own():
    terms = ClassificationCohortLoss(train_teacher=False)(predictions(1, teacher=True), TARGET)
    assert set(terms) == {"student_0_task", "student_0_kd", "loss"}


def test_ramp_reaches_full_weight_in_the_epoch_after_it():
    # Four epochs of ramp: fifths of beta = 2 and gamma = 1 in epochs 1 to 4, all of it from epoch 5 on.
    loss = ClassificationCohortLoss(0.5, 2.0, 1.0, ramp_up_epochs=4)
    seen = {}
    for epoch in (1, 2, 3, 4, 5, 50):
        loss.set_epoch(epoch)
        seen[epoch] = tuple(loss.weights().values())
    expected = {1: (0.5, 0.4, 0.2), 2: (0.5, 0.8, 0.4), 3: (0.5, 1.2, 0.6), 4: (0.5, 1.6, 0.8)}
    expected |= {5: (0.5, 2.0, 1.0), 50: (0.5, 2.0, 1.0)}
    for epoch, weights in expected.items():
        assert seen[epoch] == pytest.approx(weights)


def test_behind_its_head_start_the_teacher_is_listened_to_little_by_little():
    # Two epochs of head start, then one of ramp: halves of beta = 2; peers ramp from the beginning.
    loss = ClassificationCohortLoss(0.5, 2.0, 1.0, ramp_up_epochs=1, teacher_warmup_epochs=2)
    seen = {}
    for epoch in (1, 2, 3, 4, 9):
        loss.set_epoch(epoch)
        seen[epoch] = tuple(loss.weights().values())
    assert seen == {1: (0.5, 0.0, 0.5), 2: (0.5, 0.0, 1.0), 3: (0.5, 1.0, 1.0), 4: (0.5, 2.0, 1.0), 9: (0.5, 2.0, 1.0)}


def test_in_its_head_start_the_teacher_learns_and_students_learn_as_without_it():
    loss = ClassificationCohortLoss(gamma=0.0, teacher_warmup_epochs=1)
    loss.set_epoch(1)
    given = {name: logits.requires_grad_() for name, logits in predictions(2, teacher=True).items()}
    loss(given, TARGET)["loss"].backward()
    for name, logits in given.items():
        alone = logits.detach().clone().requires_grad_()
        torch.nn.functional.cross_entropy(alone, TARGET).backward()
        assert torch.equal(logits.grad, alone.grad), name


def test_without_a_ramp_or_without_epochs_the_weights_are_full():
    loss = ClassificationCohortLoss(0.5, 2.0, 1.0)
    loss.set_epoch(1)
    assert loss.weights() == ClassificationCohortLoss(0.5, 2.0, 1.0, ramp_up_epochs=9).weights()
    assert loss.weights() == {"alpha": 0.5, "beta": 2.0, "gamma": 1.0}


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_the_sum_is_that_of_the_terms_with_the_weights_that_are_told(epoch):
    loss = ClassificationCohortLoss(0.7, 0.3, 1.9, ramp_up_epochs=2)
    loss.set_epoch(epoch)
    terms = loss(predictions(3, teacher=True), TARGET)
    total = terms.pop("loss").item()
    parts = [
        loss.term_weights(network)[term] * value.item()
        for (network, term), value in ((split_loss_name(name), value) for name, value in terms.items())
    ]
    assert len(parts) == 10
    assert sum(parts) == pytest.approx(total)


def test_the_ramp_scales_what_is_back_propagated_but_not_the_reported_terms():
    logits, loss = predictions(2, teacher=True), ClassificationCohortLoss(ramp_up_epochs=1)
    full = loss(logits, TARGET)
    loss.set_epoch(1)
    half = loss(logits, TARGET)
    imitation = sum(value for name, value in full.items() if name.endswith(("_kd", "_ml")))
    assert half["loss"].item() == pytest.approx((full["loss"] - imitation / 2).item())
    assert half["student_0_kd"].item() == full["student_0_kd"].item()


def own_loss(name, logits, target, *, alpha, beta, gamma, temperature, peer_temperature):
    """Loss of one network with everybody else's logits held constant, written out from the formula."""

    def kl(constant, free, t):
        p = F.softmax(constant.detach() / t, dim=1)
        return t**2 * (p * (p.log() - F.log_softmax(free / t, dim=1))).sum(dim=1).mean()

    task = -F.log_softmax(logits[name], dim=1)[range(len(target)), target].mean()
    if name == "teacher":
        return task
    peers = [value for other, value in logits.items() if other not in (name, "teacher")]
    ml = sum(kl(peer, logits[name], peer_temperature) for peer in peers) / len(peers)
    return alpha * task + beta * kl(logits["teacher"], logits[name], temperature) + gamma * ml


def test_each_network_receives_the_gradient_of_its_own_loss_only():
    settings = {"alpha": 0.8, "beta": 1.5, "gamma": 2.5, "temperature": 3.0, "peer_temperature": 1.5}
    cohort = build_cohort(num_classes=3, teacher={"name": TINY, "width": 8}, students=[TINY, TINY, TINY])
    image, target = (
        torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 2, 0, 1, 2]),
    )
    ClassificationCohortLoss(**settings)(cohort(image), target)["loss"].backward()
    for name, network in cohort.networks.items():
        parameters = list(network.parameters())
        expected = torch.autograd.grad(own_loss(name, cohort(image), target, **settings), parameters)
        for parameter, gradient in zip(parameters, expected, strict=True):
            assert gradient.abs().max() > 1e-4
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_the_teacher_learns_the_same_with_and_without_students():
    cohort = build_cohort(num_classes=3, teacher=TINY, students=[TINY, TINY])
    alone = copy.deepcopy(cohort.networks["teacher"])
    image = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    ClassificationCohortLoss()(cohort(image), TARGET)["loss"].backward()
    F.cross_entropy(alone(image), TARGET).backward()
    for together, apart in zip(cohort.networks["teacher"].parameters(), alone.parameters(), strict=True):
        assert torch.equal(together.grad, apart.grad)


def test_half_precision_predictions_give_a_float32_loss():
    logits = {name: value.bfloat16() for name, value in predictions(2, teacher=True).items()}
    terms = ClassificationCohortLoss(class_weights=[1.0, 2.0, 1.0])(logits, TARGET)
    same = ClassificationCohortLoss(class_weights=[1.0, 2.0, 1.0])(
        {name: value.float() for name, value in logits.items()}, TARGET
    )
    assert {value.dtype for value in terms.values()} == {torch.float32}
    assert torch.equal(terms["loss"], same["loss"])


def test_beta_without_a_teacher_is_refused():
    with pytest.raises(ValueError, match="no teacher: set beta to 0"):
        ClassificationCohortLoss()(predictions(2, teacher=False), TARGET)


def test_peers_that_know_no_labels_teach_nobody():
    """Students whose only answers are each other's would agree on anything."""
    features = ClassificationCohortLoss(0.0, 1.0, 1.0, teacher_link="features", peer_link="predictions")
    with pytest.raises(ValueError, match="student_0 has nothing to learn from: without peers that know labels"):
        features(answers(2), TARGET)
    # One that has them from the teacher can pass them on.
    ClassificationCohortLoss(0.0, 1.0, 1.0, teacher_link=["features", "predictions"]).check_students(2)
    with pytest.raises(ValueError, match="student_0 has nothing to learn from"):
        ClassificationCohortLoss(0.0, 1.0, 0.0, teacher_link=["features", "predictions"]).check_students(2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, "alpha must not be negative"),
        ({"beta": -0.1}, "beta must not be negative"),
        ({"gamma": -0.1}, "gamma must not be negative"),
        ({"ramp_up_epochs": -1}, "ramp_up_epochs must not be negative"),
        ({"teacher_warmup_epochs": -1}, "teacher_warmup_epochs must not be negative"),
        ({"alpha": 0.0, "teacher_warmup_epochs": 1}, "learn from labels meanwhile: set alpha above 0"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"peer_temperature": -2.0}, "peer_temperature must be positive"),
        ({"alpha": 0.0, "beta": 0.0}, "no student would learn from labels"),
        ({"alpha": 0.0, "beta": 0.0, "gamma": 0.0}, "no student would learn from labels"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ClassificationCohortLoss(**settings)


LINKED = ["predictions", "features", "both"]


def answers(students, *, seed=3):
    """Logits and two feature maps of every network, each network with channels of its own."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: ClassifierAnswer(
            logits.requires_grad_(),
            tuple(
                torch.randn(len(TARGET), 2 + number, side, side, generator=generator).requires_grad_()
                for side in (4, 2)
            ),
        )
        for number, (name, logits) in enumerate(predictions(students, teacher=True).items())
    }


def test_each_student_learns_as_its_own_links_say():
    given, settings = answers(3), {"temperature": 3.0, "peer_temperature": 2.0, "feature_weight": 0.7}
    loss = ClassificationCohortLoss(teacher_link=LINKED, peer_link=LINKED[::-1], **settings)
    terms = loss(given, TARGET)
    students = [f"student_{number}" for number in range(3)]
    for number, name in enumerate(students):
        own, peers = given[name], [given[other] for other in students if other != name]
        kd = {
            "predictions": softened_kl(given["teacher"].logits.detach(), own.logits.detach(), 3),
            "features": 0.7 * attention_loss(own.features, given["teacher"].features).item(),
        }
        ml = {
            "predictions": mutual_divergence([peer.logits.detach() for peer in peers], own.logits.detach(), 2),
            "features": 0.7 * sum(attention_loss(own.features, peer.features).item() for peer in peers) / 2,
        }
        for parts, term, link in ((kd, "kd", LINKED[number]), (ml, "ml", LINKED[::-1][number])):
            expected = sum(parts.values()) if link == "both" else parts[link]
            assert terms[f"{name}_{term}"].item() == pytest.approx(expected, rel=1e-5), (name, term)


def test_default_links_are_predictions_and_look_at_no_features(monkeypatch):
    given = answers(2)
    plain = ClassificationCohortLoss()({name: answer.logits for name, answer in given.items()}, TARGET)
    spelled = ClassificationCohortLoss(teacher_link=["predictions"] * 2, peer_link="predictions", feature_weight=5.0)
    monkeypatch.setattr(cohort_module, "attention_loss", refuse)
    for loss in (ClassificationCohortLoss(), spelled, ClassificationCohortLoss(peer_link="both", feature_weight=0.0)):
        terms = loss(given, TARGET)
        assert terms.keys() == plain.keys()
        assert all(torch.equal(value, plain[name]) for name, value in terms.items())


def test_the_gradient_of_a_link_reaches_the_student_only():
    given = answers(2)
    loss = ClassificationCohortLoss(0.0, 1.0, 0.0, train_teacher=False, teacher_link=["predictions", "both"])
    loss(given, TARGET)["loss"].backward()
    assert given["teacher"].logits.grad is None
    assert given["student_0"].logits.grad is not None
    assert [part.grad is None for part in given["student_0"].features] == [True, True]
    assert [part.grad is None for part in given["student_1"].features] == [False, False]
    assert all(part.grad is None for part in given["teacher"].features)


def test_a_cohort_with_feature_links_gives_each_network_the_gradient_of_its_own_loss():
    students = [{"name": "mobilenet_v2", "last_block": 4}, {"name": "mobilenet_v2", "last_block": 5}]
    teacher = {"name": "mobilenet_v2", "last_block": 6}
    cohort = build_cohort(num_classes=3, teacher=teacher, students=students, features=True)
    image = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loss = ClassificationCohortLoss(teacher_link=["features", "both"], peer_link="both", feature_weight=2.0)
    terms = loss(cohort(image), TARGET)
    own = {name: sum(term for key, term in terms.items() if key.startswith(name)) for name in cohort.names}
    for name, network in cohort.networks.items():
        others = [p for other, one in cohort.networks.items() if other != name for p in one.parameters()]
        apart = torch.autograd.grad(own[name], others, retain_graph=True, allow_unused=True)
        assert all(gradient is None for gradient in apart), name
        expected = torch.autograd.grad(own[name], list(network.parameters()), retain_graph=True)
        whole = torch.autograd.grad(terms["loss"], list(network.parameters()), retain_graph=True)
        assert max(gradient.abs().max() for gradient in expected) > 1e-4
        for mine, together in zip(expected, whole, strict=True):
            torch.testing.assert_close(together, mine)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, False),
        ({"teacher_link": "features"}, True),
        ({"teacher_link": ["predictions", "both"]}, True),
        ({"teacher_link": ["predictions", "both"], "beta": 0.0}, False),
        ({"peer_link": "both"}, True),
        ({"peer_link": "features", "gamma": 0.0}, False),
        ({"peer_link": "both", "feature_weight": 0.0}, False),
    ],
    ids=str,
)
def test_features_are_needed_where_a_link_with_a_weight_compares_them(settings, expected):
    assert ClassificationCohortLoss(**settings).needs_features == expected


def test_a_link_by_features_of_plain_logits_is_refused():
    with pytest.raises(ValueError, match=r"without feature maps: classifiers need build_cohort\(features=True\)"):
        ClassificationCohortLoss(teacher_link="features")(predictions(2, teacher=True), TARGET)


def test_links_must_be_as_many_as_the_students():
    loss = ClassificationCohortLoss(peer_link=["both", "features"])
    with pytest.raises(ValueError, match=r"peer_link names 2 links, .*, but the cohort has 3 students"):
        loss(answers(3), TARGET)
    loss.check_students(2)


def test_features_alone_teach_no_student_how_to_answer():
    loss = ClassificationCohortLoss(0.0, 1.0, 1.0, teacher_link=["both", "features"], peer_link="features")
    with pytest.raises(ValueError, match=r"student_1 has nothing to learn from: .*features alone teach no answers"):
        loss(answers(2), TARGET)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_link": "feature"}, "teacher_link is 'feature', expected one of predictions, features, both"),
        ({"peer_link": ["both", "all"]}, "peer_link is .*, expected one of"),
        ({"peer_link": []}, "peer_link is .*, expected one of"),
        ({"peer_link": None}, "peer_link is None, expected one of"),
        ({"feature_weight": -1.0}, "feature_weight must not be negative"),
        ({"teacher_link": ["predictions", "features"], "feature_weight": 0.0}, "but feature_weight is 0"),
    ],
    ids=str,
)
def test_links_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ClassificationCohortLoss(**settings)
