"""Students that take a part of their start from a file and draw the rest."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from kdml_med.errors import InputError
from kdml_med.networks import build_cohort, build_network
from kdml_med.networks.cohort import network_seed
from tests.networks.tiny import TINY

SHORT = {"name": "mobilenet_v2", "last_block": 5}
LITE = {"name": "efficientnet_lite0", "last_block": 4}
DETECTOR = {"name": "retinanet", "body": "mobilenet_v2", "last_block": 13, "width": 16, "head_convs": 1}
LAST = {  # of each network the names that begin the last stage, and the classifier
    "short": (SHORT, ("features.4.", "features.5.", "classifier.")),
    "lite": (LITE, ("_blocks.3.", "_fc.")),
    "resnet10": ("resnet10", ("layer4.", "fc.")),
}


def saved(spec, path, *, task="classification"):
    """Weights of a whole network with as many classes as the students, so that the classifier would fit, too."""
    with network_seed(99, "published"):
        network = build_network(spec, num_classes=2 if task == "classification" else 1)
    state = (network if task == "classification" else network.body).state_dict()
    torch.save(state, path)
    return state


def cohort_of(spec, path, start, **more):
    return build_cohort(students=[spec, spec], use_teacher=False, initial_weights=str(path), own_start=start, **more)


def changed(network, published):
    """Names of floating-point entries that are not those of the file, apart from what all networks begin with alike."""
    return {
        name
        for name, value in network.state_dict().items()
        if value.is_floating_point() and value.dim() > 1 and not torch.equal(value, published[name])
    }


@pytest.mark.parametrize("kind", LAST)
@pytest.mark.parametrize("start", ["none", "head", "last_stage"])
def test_a_student_draws_what_it_is_told_to_and_takes_the_rest_from_the_file(tmp_path, kind, start):
    spec, last = LAST[kind]
    published = saved(spec, tmp_path / "w.pt")
    cohort = cohort_of(spec, tmp_path / "w.pt", start)
    own = {"none": (), "head": last[-1:], "last_stage": last}[start]
    expected = {n for n, v in published.items() if v.dim() > 1 and n.startswith(own or ("nothing",))}
    first, second = (cohort.networks[name].state_dict() for name in ("student_0", "student_1"))
    for network in cohort.networks.values():
        assert changed(network, published) == expected
    assert {n for n in published if published[n].dim() > 1 and not torch.equal(first[n], second[n])} == expected
    assert bool(expected) is (start != "none")


def test_what_is_drawn_is_what_the_student_would_start_from_without_a_file(tmp_path):
    saved(SHORT, tmp_path / "w.pt")
    own, random = (
        cohort_of(SHORT, tmp_path / "w.pt", "last_stage"),
        build_cohort(students=[SHORT] * 2, use_teacher=False),
    )
    for name in ("student_0", "student_1"):
        for part in ("features.5.conv.0.0.weight", "classifier.1.weight"):
            assert torch.equal(own.networks[name].state_dict()[part], random.networks[name].state_dict()[part])


def test_each_student_can_have_a_start_of_its_own_and_the_teacher_takes_all_of_the_file(tmp_path):
    published = saved(SHORT, tmp_path / "w.pt")
    cohort = build_cohort(
        teacher=SHORT, students=[SHORT, SHORT], initial_weights=str(tmp_path / "w.pt"), own_start=["none", "head"]
    )
    names = {name: changed(network, published) for name, network in cohort.networks.items()}
    assert names == {"teacher": set(), "student_0": set(), "student_1": {"classifier.1.weight"}}


def test_the_last_stage_of_a_detector_is_that_of_its_body(tmp_path):
    published = saved(DETECTOR, tmp_path / "w.pt", task="detection")
    cohort = cohort_of(DETECTOR, tmp_path / "w.pt", "last_stage", task="detection", num_classes=1)
    body = changed(cohort.networks["student_0"].body, published)
    assert {int(name.split(".")[1]) for name in body} == set(range(7, 14))


def test_members_of_a_committee_among_the_students_start_as_it_does(tmp_path):
    published = saved(SHORT, tmp_path / "w.pt")
    cohort = cohort_of({"name": "committee", "members": [SHORT, SHORT]}, tmp_path / "w.pt", ["none", "head"])
    for name, expected in (("student_0", set()), ("student_1", {"classifier.1.weight"})):
        assert [changed(own, published) for own in cohort.networks[name].members] == [expected, expected]


def test_students_without_a_file_have_nothing_to_start_apart_from(tmp_path):
    saved(SHORT, tmp_path / "w.pt")
    with pytest.raises(InputError, match="what student_1 do not take from initial_weights, which have no file"):
        build_cohort(
            teacher=SHORT, students=[SHORT, SHORT], own_start=["none", "head"],
            initial_weights={"teacher": str(tmp_path / "w.pt"), "student_0": str(tmp_path / "w.pt")},
        )  # fmt: skip


@pytest.mark.parametrize(
    ("start", "message"),
    [(["head"], "own_start has 1 entries for 2 students"), ("last_stage", "a TinyNet does not say which stage")],
)
def test_a_start_that_cannot_be_is_refused(tmp_path, start, message):
    saved(TINY, tmp_path / "w.pt")
    with pytest.raises(InputError, match=message):
        cohort_of(TINY, tmp_path / "w.pt", start)


@pytest.mark.parametrize("start", ["head", "last_stage"])
def test_a_classifier_that_is_not_there_is_not_passed_over(tmp_path, start):
    own = "tests.networks.test_starts.headed"
    saved(own, tmp_path / "w.pt")
    cohort_of(own, tmp_path / "w.pt", "none")
    with pytest.raises(InputError, match=f"own_start is {start}, but a Sequential has no classifier called fc, class"):
        cohort_of(own, tmp_path / "w.pt", start)


def headed(num_classes):
    """A network whose classifier has a name of its own."""
    parts = OrderedDict(body=nn.Conv2d(3, 4, 3), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten())
    return nn.Sequential(parts | {"head": nn.Linear(4, num_classes)})


def test_members_of_a_student_that_is_a_committee_draw_each_their_own(tmp_path):
    published = saved(SHORT, tmp_path / "w.pt")
    pair = {"name": "committee", "members": [SHORT, SHORT]}
    cohort = build_cohort(
        students=[pair, SHORT], use_teacher=False, initial_weights=str(tmp_path / "w.pt"), own_start=["head", "none"]
    )
    first, second = cohort.networks["student_0"].members
    assert changed(first, published) == changed(second, published) == {"classifier.1.weight"}
    assert not torch.equal(first.classifier[1].weight, second.classifier[1].weight)
    assert changed(cohort.networks["student_1"], published) == set()


def test_a_last_stage_that_is_drawn_cannot_be_frozen(tmp_path):
    saved(DETECTOR, tmp_path / "w.pt", task="detection")
    more = {"task": "detection", "num_classes": 1}
    cohort_of(DETECTOR, tmp_path / "w.pt", "last_stage", frozen_stages=3, **more)
    with pytest.raises(InputError, match="student_1 draws its last stage by own_start, and frozen_stages would leave"):
        cohort_of(DETECTOR, tmp_path / "w.pt", ["none", "last_stage"], frozen_stages=4, **more)
