import copy

import pytest
import torch
from torch import nn

from kdml_med.errors import InputError
from kdml_med.losses import ClassificationCohortLoss
from kdml_med.networks import Cohort, build_cohort
from kdml_med.networks import cohort as cohort_module
from tests.networks.tiny import TINY, TinyNet

WIDE = {"name": TINY, "width": 8}


def tiny_cohort(**kwargs):
    return build_cohort(**({"teacher": WIDE, "students": [TINY, TINY]} | kwargs))


def images(seed=0):
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def same(network, other):
    state, others = network.state_dict(), other.state_dict()
    return state.keys() == others.keys() and all(torch.equal(state[name], others[name]) for name in state)


@pytest.mark.parametrize("students", [1, 2, 3, 4])
@pytest.mark.parametrize("teacher", [True, False])
def test_any_number_of_students_answers_by_name(students, teacher):
    cohort = tiny_cohort(students=[TINY] * students, num_classes=3, use_teacher=teacher)
    names = [f"student_{index}" for index in range(students)]
    logits = cohort(images())
    assert list(logits) == cohort.names == ["teacher"] * teacher + names
    assert cohort.student_names == names
    for name, network in cohort.networks.items():
        assert torch.equal(logits[name], network(images()))
    assert ClassificationCohortLoss(beta=float(teacher))(logits, torch.tensor([0, 1, 2, 0]))["loss"].isfinite()


def test_each_network_runs_forward_once():
    cohort, calls = tiny_cohort(), []
    for name, network in cohort.networks.items():
        network.register_forward_hook(lambda *_, name=name: calls.append(name))
    cohort(images())
    assert calls == ["teacher", "student_0", "student_1"]


def test_students_differ_from_each_other_and_between_seeds():
    first, second = tiny_cohort(seed=1), tiny_cohort(seed=2)
    assert not same(first.networks["student_0"], first.networks["student_1"])
    for name in first.names:
        assert same(first.networks[name], tiny_cohort(seed=1).networks[name])
        assert not same(first.networks[name], second.networks[name])


@pytest.mark.parametrize(
    "others",
    [
        {"use_teacher": False},
        {"teacher": {"name": "mobilenet_v2", "last_block": 2}},
        {"students": [TINY]},
        {"students": [TINY, {"name": "mobilenet_v2", "last_block": 1}, TINY]},
    ],
    ids=str,
)
def test_initial_weights_do_not_depend_on_the_other_networks_or_on_what_ran_before(others):
    reference = tiny_cohort(seed=5).networks["student_0"]
    torch.rand(17)
    assert same(reference, tiny_cohort(seed=5, **others).networks["student_0"])


def test_a_stream_gives_a_network_the_initial_weights_of_another_name():
    teacher = tiny_cohort(seed=5).networks["teacher"]
    alone = tiny_cohort(seed=5, use_teacher=False, students=[WIDE | {"stream": "teacher"}]).networks["student_0"]
    assert same(teacher, alone)
    plain = tiny_cohort(seed=5, use_teacher=False, students=[WIDE]).networks["student_0"]
    assert not same(teacher, plain)
    assert same(plain, tiny_cohort(seed=5, students=[WIDE | {"stream": "student_0"}]).networks["student_0"])


def test_building_leaves_the_global_random_state_alone(monkeypatch):
    def fail(_seed):
        raise AssertionError("every GPU was seeded, and nothing puts that back")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", fail)
    before = torch.get_rng_state()
    tiny_cohort(seed=3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("version", ["v1", "edge"])
def test_without_a_teacher_none_is_built(monkeypatch, version):
    built = []

    def record(spec, *, num_classes):
        built.append(spec)
        return TinyNet(num_classes)

    monkeypatch.setattr(cohort_module, "build_network", record)
    students = build_cohort(version, use_teacher=False)
    assert students.names == ["student_0", "student_1"]
    assert not students.has_teacher
    assert len(built) == 2
    build_cohort(version)
    assert len(built) == 2 + 3


def test_parameters_are_grouped_and_counted_by_network():
    cohort = tiny_cohort()
    groups = {group["name"]: {id(p) for p in group["params"]} for group in cohort.parameter_groups()}
    assert groups == {name: {id(p) for p in network.parameters()} for name, network in cohort.networks.items()}
    # A width w has 27 w weights in the convolution, 2 w in batch norm, and 2 w + 2 in the classifier.
    small, wide = 31 * 4 + 2, 31 * 8 + 2
    expected = {"teacher": wide, "student_0": small, "student_1": small, "ensemble": 2 * small}
    assert cohort.parameter_counts() == expected


@pytest.fixture
def frozen(tmp_path):
    trained = TinyNet(2, width=8)
    trained.body[1].running_mean.fill_(0.5)
    torch.save(trained.state_dict(), tmp_path / "teacher.pt")
    cohort = tiny_cohort(teacher_checkpoint=str(tmp_path / "teacher.pt"))
    assert same(cohort.networks["teacher"], trained)
    return cohort


def test_a_frozen_teacher_takes_no_gradient_and_has_no_optimizer_group(frozen):
    assert not any(parameter.requires_grad for parameter in frozen.networks["teacher"].parameters())
    assert [group["name"] for group in frozen.parameter_groups()] == ["student_0", "student_1"]
    logits = frozen(images().requires_grad_())  # as when saliency maps ask for the gradient of the image
    assert not logits["teacher"].requires_grad
    assert logits["student_0"].requires_grad


def test_a_frozen_teacher_does_not_change_while_the_students_train(frozen):
    before = copy.deepcopy(frozen)
    optimizer = torch.optim.AdamW(frozen.parameter_groups(), lr=0.1)
    loss = ClassificationCohortLoss(train_teacher=False)
    for step in range(3):
        frozen.train()
        optimizer.zero_grad()
        loss(frozen(images(step)), torch.tensor([0, 1, 1, 0]))["loss"].backward()
        optimizer.step()
    assert same(frozen.networks["teacher"], before.networks["teacher"])
    for name in frozen.student_names:
        assert not same(frozen.networks[name], before.networks[name])


def test_a_frozen_teacher_stays_in_evaluation_mode(frozen):
    assert not frozen.networks["teacher"].training
    assert frozen.train() is frozen
    assert not any(module.training for module in frozen.networks["teacher"].modules())
    assert all(module.training for module in frozen.networks["student_0"].modules())
    assert tiny_cohort().train().networks["teacher"].training


def test_cohorts_without_students_or_with_a_frozen_nobody_are_refused():
    with pytest.raises(ValueError, match="at least one student"):
        Cohort({"teacher": nn.Identity()})
    with pytest.raises(ValueError, match="frozen_teacher needs a teacher"):
        Cohort({"student_0": nn.Identity()}, frozen_teacher=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"version": "edg"},
            "unknown version 'edg'; known: v1, v2, v3, edge, lite, lite-twin, small, tiny. Did you mean 'edge'",
        ),
        ({"version": "zzz"}, "unknown version 'zzz'; known: v1, v2, v3, edge, lite, lite-twin, small, tiny.$"),
        ({"students": []}, "needs at least one student; `students` is an empty list"),
        ({"students": ["resnet19"]}, "unknown network 'resnet19'"),
        ({"use_teacher": False, "teacher_checkpoint": "teacher.pt"}, "the cohort has no teacher"),
        ({"teacher": TINY, "teacher_checkpoint": "none.pt"}, "none.pt does not exist"),
    ],
)
def test_cohorts_that_cannot_be_built_are_refused_with_a_reason(settings, message):
    with pytest.raises(InputError, match=message):
        build_cohort(**({"students": [TINY]} | settings))


def test_a_teacher_checkpoint_must_fit_in_every_entry(tmp_path):
    torch.save(TinyNet(3, width=8).state_dict(), tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"(?s)other\.pt is not a state dict of this TinyNet: .*fc\.weight"):
        tiny_cohort(num_classes=2, teacher_checkpoint=str(tmp_path / "other.pt"))
