import copy
import io
import pickle

import pytest
import torch
from torch import nn

from kdml_med.errors import InputError
from kdml_med.losses import ClassificationCohortLoss
from kdml_med.networks import build_cohort, build_network
from kdml_med.networks.answers import ClassifierAnswer
from kdml_med.networks.stages import feature_stages
from tests.networks.tiny import STAGED, TINY, TinyNet

SHORT = {"name": "mobilenet_v2", "last_block": 4}
LINKS = {"teacher_link": "features", "peer_link": "both"}


def images(side=64, batch=2, seed=0):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def small_cohort(**kwargs):
    teacher = {"name": "mobilenet_v2", "last_block": 6}
    return build_cohort(**({"teacher": teacher, "students": [SHORT, SHORT], "features": True} | kwargs))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("resnet10", [4, 8, 16, 32]),
        ("resnet50", [4, 8, 16, 32]),
        ({"name": "resnet18", "conv1_t_stride": 1}, [2, 4, 8, 16]),
        ({"name": "resnet18", "no_max_pool": True}, [2, 4, 8, 16]),
        ("mobilenet_v2", [2, 4, 8, 16, 32]),
        ({"name": "mobilenet_v2", "last_block": 14}, [2, 4, 8, 16, 32]),
        ({"name": "mobilenet_v2", "last_block": 13}, [2, 4, 8, 16]),
        ({"name": "mobilenet_v2", "last_block": 10}, [2, 4, 8, 16]),
        ({"name": "mobilenet_v2", "last_block": 1}, [2]),
        ("efficientnet_lite0", [2, 4, 8, 16, 32]),
        ({"name": "efficientnet_lite0", "last_block": 12}, [2, 4, 8, 16, 32]),
        ({"name": "efficientnet_lite0", "last_block": 11}, [2, 4, 8, 16]),
        ({"name": "efficientnet_lite2", "last_block": 15}, [2, 4, 8, 16]),
        ({"name": "efficientnet_lite1", "last_block": 1}, [2]),
    ],
    ids=str,
)
def test_stages_have_the_strides_that_they_say(spec, expected):
    network, sides = build_network(spec, num_classes=2).eval(), {}
    for stride, module in feature_stages(network).items():
        module.register_forward_hook(lambda _m, _i, out, stride=stride: sides.update({stride: out.shape[-1]}))
    with torch.no_grad():
        network(images(128, batch=1))
    assert sides == {stride: 128 // stride for stride in expected}


def test_a_stage_is_the_last_module_at_its_stride():
    # What follows the last stage is pooled and classified: nothing at its stride is left out.
    mobilenet, resnet = build_network("mobilenet_v2", num_classes=2), build_network("resnet10", num_classes=2)
    assert feature_stages(mobilenet)[16] is mobilenet.features[13]
    assert feature_stages(mobilenet)[32] is mobilenet.features[18]
    assert feature_stages(resnet)[32] is resnet.layer4
    efficientnet = build_network("efficientnet_lite0", num_classes=2)
    assert feature_stages(efficientnet)[16] is efficientnet.blocks()[10]
    assert feature_stages(efficientnet)[32] is efficientnet.stages()[-1][-1]


@pytest.mark.parametrize(
    ("version", "strides"),
    [("v1", (8, 16, 32)), ("v2", (8, 16, 32)), ("v3", (8, 16, 32)), ("tiny", (8, 16, 32)), ("edge", (8, 16))],
)
def test_networks_of_a_version_give_maps_of_the_same_strides(version, strides):
    cohort = build_cohort(version, teacher="resnet34" if version != "edge" else None, features=True)
    assert cohort.feature_strides == strides
    given = cohort(images())
    for answer in given.values():
        assert isinstance(answer, ClassifierAnswer)
        assert answer.logits.shape == (2, 2)
        assert [part.shape[-1] for part in answer.features] == [64 // stride for stride in strides]
    assert ClassificationCohortLoss(**LINKS)(given, torch.tensor([0, 1]))["loss"].isfinite()


def test_maps_come_in_training_mode_only_and_change_no_logits():
    cohort, plain = small_cohort(), small_cohort(features=False)
    for name, logits in plain(images()).items():
        assert torch.equal(cohort(images())[name].logits, logits)
    for name, logits in plain.eval()(images()).items():
        assert torch.equal(plain.networks[name](images()), logits)
    assert all(isinstance(logits, torch.Tensor) for logits in cohort.eval()(images()).values())
    assert list(cohort.state_dict()) == list(plain.state_dict())


def test_each_network_still_runs_forward_once():
    cohort, calls = small_cohort(), []
    for name, network in cohort.networks.items():
        network.register_forward_hook(lambda *_, name=name: calls.append(name))
    cohort(images())
    assert calls == ["teacher", "student_0", "student_1"]


def test_a_frozen_teacher_gives_maps_too(tmp_path):
    torch.save(build_network({"name": "mobilenet_v2", "last_block": 6}, num_classes=2).state_dict(), tmp_path / "t.pt")
    cohort = small_cohort(teacher_checkpoint=str(tmp_path / "t.pt")).train()
    given = cohort(images())
    assert not any(part.requires_grad for part in given["teacher"].features)
    terms = ClassificationCohortLoss(train_teacher=False, **LINKS)(given, torch.tensor([0, 1]))
    terms["loss"].backward()
    assert cohort.networks["student_0"].features[0][0].weight.grad.abs().max() > 0


@pytest.mark.parametrize("used", [False, True])
def test_copies_answer_for_themselves(used):
    cohort = small_cohort()
    if used:
        cohort(images())
    saved = io.BytesIO()
    torch.save(cohort, saved)
    saved.seek(0)
    copies = [copy.deepcopy(cohort), pickle.loads(pickle.dumps(cohort)), torch.load(saved, weights_only=False)]
    expected = cohort(images())["student_1"]
    for twin in copies:
        given = twin(images())["student_1"]
        assert torch.equal(given.logits, expected.logits)
        given.features[0].square().sum().backward()
        assert twin.networks["student_1"].features[0][0].weight.grad is not None
    assert all(parameter.grad is None for parameter in cohort.parameters())


def test_a_failing_pass_leaves_no_hook_behind():
    cohort = small_cohort()
    with pytest.raises(RuntimeError):
        cohort(torch.zeros(2, 5, 64, 64))
    assert not any(module._forward_hooks for module in cohort.modules())


def test_detectors_need_no_stages_for_their_pyramids():
    detector = {"name": "retinanet", "width": 16, "head_convs": 1, "last_block": 13}
    cohort = build_cohort(task="detection", num_classes=1, teacher=detector, students=[detector], features=True)
    assert cohort.feature_strides == ()
    assert len(cohort(images())["student_0"].features) == 4


def test_a_network_of_ones_own_names_its_stages():
    cohort = small_cohort(teacher=STAGED, students=[SHORT, STAGED])
    assert cohort.feature_strides == (8,)
    given = cohort(images())
    assert [answer.features[0].shape[-1] for answer in given.values()] == [8, 8, 8]


class ListedStages(TinyNet):
    def feature_stages(self):
        return [self.body]


class IdleStage(TinyNet):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.idle = nn.Identity()

    def feature_stages(self):
        return {8: self.idle}


class FlatStage(TinyNet):
    def feature_stages(self):
        return {8: self.fc}


def own(name):
    return f"{__name__}.{name}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": TINY}, r"a TinyNet does not say where its feature maps are, which teacher_link or peer_link"),
        ({"teacher": own("ListedStages")}, r"feature_stages\(\) of ListedStages has to return modules by stride"),
        (
            {"teacher": {"name": "mobilenet_v2", "last_block": 2}},
            r"a stride of 8 or more that all .*'teacher': \[2, 4\]",
        ),
    ],
)
def test_networks_that_cannot_be_compared_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        small_cohort(**settings)
    assert small_cohort(**settings, features=False)(images())


@pytest.mark.parametrize(("name", "message"), [("IdleStage", "did not run"), ("FlatStage", "gave no map")])
def test_stages_that_give_no_map_are_refused_in_the_first_pass(name, message):
    cohort = small_cohort(teacher=own(name))
    with pytest.raises(InputError, match=rf"feature_stages\(\) of {name} {message}"):
        cohort(images())
