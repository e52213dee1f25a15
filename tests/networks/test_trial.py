"""Networks whose answers do not fit are named, and trying one leaves no trace in it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from kdml_med.errors import InputError
from kdml_med.keys import Task
from kdml_med.networks import Cohort, build_cohort, build_network
from kdml_med.networks.anchors import AnchorPredictions
from kdml_med.networks.committee import Committee
from kdml_med.networks.retinanet import RetinaNet
from kdml_med.networks.trial import check_answers, stopped_by_single_samples
from tests.networks.tiny import PLAIN, STEADY_DETECTOR, TINY, TinyNet

MOBILE = {"name": "mobilenet_v2", "last_block": 3}


class OtherAnchors(RetinaNet):
    """A detector that answers for other anchors than the rest: some too few, or too many."""

    def __init__(self, more: int) -> None:
        super().__init__(width=16, head_convs=1, last_block=13)
        self.more = more

    def forward(self, image: Tensor) -> AnchorPredictions:
        answer = super().forward(image)
        order = torch.arange(answer.logits.shape[1] + self.more) % answer.logits.shape[1]
        return AnchorPredictions(answer.logits[:, order], answer.deltas[:, order], answer.features)


class Squeezing(TinyNet):
    """Its answer to a single image lacks the dimension of the batch."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image).squeeze()


def check(*students: nn.Module, task: Task = Task.CLASSIFICATION) -> None:
    cohort = Cohort({f"student_{number}": network for number, network in enumerate(students)})
    count, side = (1, 64) if task is Task.DETECTION else (2, 16)
    check_answers(cohort, task=task, num_classes=count, size=(side, side))


@pytest.mark.parametrize("classes", [1, 3])
def test_a_classifier_with_other_outputs_than_classes_is_refused_by_name(classes: int) -> None:
    with pytest.raises(
        InputError, match=rf"^student_1 \(TinyNet\) answers .* with logits \[2, {classes}\], expected logits \[2, 2\]: "
    ):
        check(TinyNet(2), TinyNet(classes))


def test_a_member_of_a_committee_is_named() -> None:
    with pytest.raises(InputError, match=r"^student_0_1 \(TinyNet\) "):
        check(Committee([TinyNet(2), TinyNet(3)]))


def test_what_is_no_tensor_is_refused_by_its_kind() -> None:
    with pytest.raises(InputError, match=r"px with Tensor, expected AnchorPredictions with logits \[2, 85, 1\]"):
        check(TinyNet(1), task=Task.DETECTION)


@pytest.mark.parametrize("more", [-5, 20])
def test_a_detector_with_other_anchors_is_refused_by_name(more: int) -> None:
    count = 64 + 16 + 4 + 1 + more
    with pytest.raises(InputError, match=rf"^student_1 \(OtherAnchors\) .* \[2, {count}, 1\] .* deltas \[2, 85, 4\]: "):
        check(OtherAnchors(0), OtherAnchors(more), task=Task.DETECTION)


def test_networks_that_fit_are_taken() -> None:
    check(TinyNet(2), Squeezing(2), Committee([TinyNet(2), build_network(MOBILE, num_classes=2)]))
    check(OtherAnchors(0), build_network(STEADY_DETECTOR, num_classes=1), task=Task.DETECTION)


def test_trying_leaves_weights_statistics_and_modes_as_they_were() -> None:
    cohort = build_cohort(teacher=TINY, students=["resnet10", MOBILE])
    cohort.networks["student_0"].layer1.eval()  # type: ignore[operator, union-attr]
    before = copy.deepcopy(cohort.state_dict())
    modes = [module.training for module in cohort.modules()]
    assert stopped_by_single_samples(cohort, (32, 32)) == ["student_0"]
    check_answers(cohort, task=Task.CLASSIFICATION, num_classes=2, size=(32, 32))
    assert [module.training for module in cohort.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in cohort.state_dict().items())
    assert all(parameter.grad is None for parameter in cohort.parameters())


def test_single_samples_stop_networks_whose_last_map_is_one_position() -> None:
    cohort = build_cohort(teacher={"name": "committee", "members": [TINY, "resnet10"]}, students=[PLAIN, "resnet10"])
    assert stopped_by_single_samples(cohort, (32, 32)) == ["teacher_1", "student_1"]
    assert stopped_by_single_samples(cohort, (64, 64)) == []


def test_a_frozen_teacher_is_not_asked_to_learn() -> None:
    networks = {name: build_network("resnet10", num_classes=2) for name in ("teacher", "student_0")}
    assert stopped_by_single_samples(Cohort(networks, frozen_teacher=True), (32, 32)) == ["student_0"]
