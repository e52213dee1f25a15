import copy
import pickle
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdml_med.errors import InputError
from kdml_med.keys import Task
from kdml_med.losses import DetectionCohortLoss
from kdml_med.networks import VERSIONS, MobileNetV2, build_cohort, build_network
from kdml_med.networks.anchors import STRIDES, anchor_grid
from kdml_med.networks.boxes import decode_anchors
from kdml_med.networks.committee import Committee
from kdml_med.networks.efficientnet_lite import EfficientNetLite
from kdml_med.networks.retinanet import RetinaNet
from tests.networks.tiny import TINY as TINY_CLASSIFIER

TINY = {"name": "retinanet", "width": 16, "head_convs": 1, "last_block": 13}
BODIES = ["mobilenet_v2", "efficientnet_lite0", "efficientnet_lite2", "resnet18", "resnet34", "resnet50"]


def tiny(**kwargs):
    return RetinaNet(**({"width": 16, "head_convs": 1, "last_block": 13} | kwargs))


def images(seed=0, batch=2, height=64, width=128):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def same(network, other):
    state, others = network.state_dict(), other.state_dict()
    return state.keys() == others.keys() and all(torch.equal(state[name], others[name]) for name in state)


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("classes", [1, 3])
def test_every_body_answers_for_every_anchor(body, classes):
    network = RetinaNet(classes, body=body, width=16, head_convs=1).eval()
    with torch.no_grad():
        answer = network(images())
    anchors, _ = anchor_grid(64, 128)
    assert answer.logits.shape == (2, len(anchors), classes)
    assert answer.deltas.shape == (2, len(anchors), 4)
    assert [tuple(level.shape) for level in answer.features] == [
        (2, 16, 64 // stride, 128 // stride) for stride in STRIDES
    ]


@pytest.mark.parametrize("last_block", [13, 14, 15, 16, 17])
def test_a_shortened_mobilenet_has_the_same_levels(last_block):
    network = tiny(last_block=last_block)
    answer = network(images())
    assert answer.logits.shape == (2, 170, 1)
    assert [level.shape[-1] for level in answer.features] == [16, 8, 4, 2]
    assert len(network.body.features) == last_block + 1


@pytest.mark.parametrize(
    ("body", "last_block"), [("efficientnet_lite0", 11), ("efficientnet_lite0", 13), ("efficientnet_lite2", 15)]
)
def test_a_shortened_efficientnet_has_the_same_levels(body, last_block):
    network = tiny(body=body, last_block=last_block)
    assert [level.shape[-1] for level in network(images()).features] == [16, 8, 4, 2]
    assert len(network.body.blocks()) == last_block
    assert count(network) < count(tiny(body=body, last_block=None))


def test_shortening_saves_parameters_and_the_whole_body_is_the_default():
    sizes = [count(tiny(last_block=last_block)) for last_block in (13, 14, 15, 16, 17)]
    assert sizes == sorted(set(sizes))
    assert count(tiny(last_block=None)) == sizes[-1]


def stage_strides(network, side=128):
    extractor, strides, features = network.detector.feature_extractor, [], torch.zeros(2, 3, side, side)
    for stage in extractor._stages(network.body):
        features = stage(features)
        strides.append(side // features.shape[-1])
    return strides


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"last_block": 13}, [2, 4, 8, 16]),
        ({"last_block": 14}, [2, 4, 8, 16, 32]),
        ({"last_block": None}, [2, 4, 8, 16, 32]),
        ({"last_block": None, "body": "resnet18"}, [4, 4, 8, 16, 32]),
    ],
    ids=str,
)
def test_stages_end_where_the_resolution_halves(settings, expected):
    assert stage_strides(tiny(**settings)) == expected


def test_the_narrowest_detector_answers_for_a_single_smallest_image():
    # The last level has one position then: a group of the norm holds two channels and nothing else.
    assert tiny()(images(batch=1, width=64)).logits.isfinite().all()


def test_head_convolutions_can_be_left_out():
    # A convolution of 3 x 3 with bias and a group norm, in both heads.
    per_convolution = 2 * (9 * 16 * 16 + 16 + 2 * 16)
    sizes = [count(tiny(head_convs=number)) for number in (1, 2, 3, 4)]
    assert [later - earlier for earlier, later in pairwise(sizes)] == [per_convolution] * 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 20}, "width must be a multiple of 8, at least 16, got 20"),
        ({"width": 0}, "width must be a multiple of 8, at least 16, got 0"),
        ({"width": 8}, "width must be a multiple of 8, at least 16, got 8"),
        ({"head_convs": 0}, "head_convs must be between 1 and 4, got 0"),
        ({"head_convs": 5}, "head_convs must be between 1 and 4, got 5"),
        ({"last_block": 12}, "last_block must be between 13 and 17, got 12"),
        ({"last_block": 18}, "last_block must be between 13 and 17, got 18"),
        ({"body": "resnet18", "last_block": 13}, "last_block shortens .*, not a body 'resnet18'"),
        ({"body": "efficientnet_lite0", "last_block": 10}, "last_block must be between 11 and 16, got 10"),
        ({"body": "efficientnet_lite2", "last_block": 22}, "last_block must be between 15 and 21, got 22"),
        (
            {"body": "vgg"},
            "unknown body 'vgg'; known: mobilenet_v2, efficientnet_lite0, .*, resnet10, resnet18, resnet34, resnet50",
        ),
    ],
    ids=str,
)
def test_detectors_that_cannot_be_built_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RetinaNet(**settings)
    with pytest.raises(InputError, match=message):
        build_network({"name": "retinanet", **settings}, num_classes=1)


class HandMadeLevels(nn.Module):
    """Stands in for body and pyramid: features that are zero but in one cell of one level."""

    def __init__(self, level, row, column):
        super().__init__()
        self.level, self.row, self.column = level, row, column

    def forward(self, image):
        height, width = image.shape[-2:]
        levels = [torch.zeros(len(image), 16, height // stride, width // stride) for stride in STRIDES]
        levels[self.level][:, :, self.row, self.column] = torch.arange(1.0, 17)
        return levels


@settings(deadline=None)
@given(st.data())
def test_what_a_cell_of_the_map_says_belongs_to_the_anchor_centred_there(data):
    level = data.draw(st.integers(0, 3))
    height, width = data.draw(st.sampled_from([(64, 192), (192, 64), (128, 64)]))
    row = data.draw(st.integers(0, height // STRIDES[level] - 1))
    column = data.draw(st.integers(0, width // STRIDES[level] - 1))
    network = HAND_MADE
    network.detector.feature_extractor = HandMadeLevels(level, row, column)
    with torch.no_grad():
        answer = network(torch.zeros(1, 3, height, width))
    place = answer.logits[0, :, 0].argmax()
    anchor = anchor_grid(height, width)[0][place]
    stride = STRIDES[level]
    assert anchor.tolist() == [
        (column + 0.5) * stride - 2 * stride,
        (row + 0.5) * stride - 2 * stride,
        (column + 0.5) * stride + 2 * stride,
        (row + 0.5) * stride + 2 * stride,
    ]
    # Channels of the map are dx, dy, dw, dh in this order, of the same anchor and of no other.
    assert answer.deltas[0, place].tolist() == [1, 2, 3, 4]
    assert answer.deltas.abs().sum() == 10
    assert answer.logits.sum() == 1
    box = decode_anchors(answer, height, width).boxes[0, place]
    middle = ((box[:2] + box[2:]) / 2).tolist()
    assert middle == pytest.approx([(column + 0.5) * stride + 0.4 * stride, (row + 0.5) * stride + 0.8 * stride])


def hand_made_heads():
    """A detector whose heads hand on the first channel as logit and the first four as deltas."""
    network = tiny()
    scoring, placing = network.detector.classification_head, network.detector.regression_head
    for head, last in ((scoring, scoring.cls_logits), (placing, placing.bbox_reg)):
        head.conv = nn.Identity()
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        for channel in range(last.out_channels):
            last.weight.data[channel, channel, 1, 1] = 1
    return network


HAND_MADE = hand_made_heads()


def test_a_network_sees_objects_where_they_are():
    # The real body and pyramid: what changes with a spot lies around the spot. Its centre is looked at, because the
    # strongest change wanders by a position or two with the random weights.
    torch.manual_seed(0)
    network, plain = tiny().eval(), torch.zeros(1, 3, 128, 256)
    anchors, per_level = anchor_grid(128, 256)
    for x, y in ((200, 36), (44, 100)):
        spot = plain.clone()
        spot[:, :, y - 6 : y + 6, x - 6 : x + 6] = 3.0
        with torch.no_grad():
            change = (network(spot).features[0] - network(plain).features[0]).abs().sum(dim=1).flatten()
        places = (anchors[: per_level[0], :2] + anchors[: per_level[0], 2:]) / 2
        centre = (places * change[:, None]).sum(dim=0) / change.sum()
        assert centre.tolist() == pytest.approx([x, y], abs=12)


def test_at_first_anchors_are_background():
    # Lin et al. 2017, section 4.1: biases are set so that a new network gives about 1 % to each anchor.
    scores = torch.sigmoid(tiny()(images()).logits)
    assert scores.mean().item() == pytest.approx(0.01, rel=0.2)


def test_nan_reaches_the_caller():
    broken = images()
    broken[0, 0, 0, 0] = float("nan")
    answer = tiny().eval()(broken)
    assert answer.logits[0].isnan().any()
    assert not answer.logits[1].isnan().any()


def trained_step(network, seed=0):
    """One step of an optimizer that changes whatever has a gradient, in training mode as an engine sets it."""
    network.train()
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1.0, weight_decay=0.1)
    answer = network(images(seed))
    (answer.logits.square().mean() + answer.deltas.square().mean()).backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("body", "stages"),
    [("mobilenet_v2", 0), ("mobilenet_v2", 1), ("mobilenet_v2", 4), ("resnet18", 2), ("efficientnet_lite0", 2)],
)
def test_frozen_stages_keep_weights_and_statistics_while_the_rest_learns(body, stages):
    network = tiny(body=body, last_block=None)
    network.freeze(stages)
    before = copy.deepcopy(network)
    for seed in range(2):
        trained_step(network, seed)
    parts = network.detector.feature_extractor._stages(network.body)
    for number, (part, old) in enumerate(
        zip(parts, before.detector.feature_extractor._stages(before.body), strict=True)
    ):
        assert same(part, old) == (number < stages), number
        assert all(module.training == (number >= stages) for module in part.modules() if module is not part), number
    for name, parameter in network.detector.classification_head.named_parameters():
        assert not torch.equal(parameter, before.detector.classification_head.get_parameter(name)), name


def test_frozen_stages_stay_in_evaluation_mode_whatever_is_asked():
    network = tiny()
    network.freeze(2)
    first = network.body.features[0]
    assert not first.training
    assert network.train() is network
    assert not first[1].training
    assert network.body.features[6].conv[0][1].training
    network.eval()
    assert not network.body.features[6].conv[0][1].training


@pytest.mark.parametrize("stages", [-1, 5])
def test_stages_that_are_not_there_cannot_be_frozen(stages):
    with pytest.raises(ValueError, match=f"frozen_stages is {stages}, expected 0 to 4"):
        tiny(last_block=13).freeze(stages)


@pytest.mark.parametrize("body", ["mobilenet_v2", "resnet18", "efficientnet_lite0"])
def test_copies_and_saved_weights_are_the_same_network(body):
    network = tiny(body=body, last_block=None).eval()
    network.freeze(1)
    with torch.no_grad():
        expected = network(images()).logits
        twin, read, other = (
            copy.deepcopy(network),
            pickle.loads(pickle.dumps(network)),
            tiny(body=body, last_block=None),
        )
        other.eval().load_state_dict(network.state_dict())
        for copied in (twin, read, other):
            assert torch.equal(copied(images()).logits, expected)
    assert not twin.body.get_parameter(next(iter(dict(network.body.named_parameters())))).requires_grad
    trained_step(twin)  # a copy shares nothing
    with torch.no_grad():
        assert torch.equal(network(images()).logits, expected)


def test_every_version_is_built_of_detectors_with_students_smaller_than_their_teacher():
    assert set(VERSIONS[Task.DETECTION]) == {"v1", "v2", "v3", "edge", "lite", "lite-twin", "tiny"}
    for version, spec in VERSIONS[Task.DETECTION].items():
        with torch.device("meta"):
            cohort = build_cohort(version, task="detection", num_classes=1)
        assert cohort.names == list(spec.networks())
        for network in cohort.networks.values():
            for single in network.members if isinstance(network, Committee) else [network]:
                assert isinstance(single, RetinaNet)
                assert single.num_classes == 1
        counts = cohort.parameter_counts()
        assert max(counts["student_0"], counts["student_1"]) < counts["teacher"]
        if version == "edge":  # what endoscopy carts and CPUs are given
            assert max(counts["student_0"], counts["student_1"]) <= 2_300_000
        if version.startswith("lite"):
            assert max(counts["student_0"], counts["student_1"]) <= 4_000_000
            bodies = [single.body for single in cohort.networks["teacher"].members]
            kinds = [EfficientNetLite] * 2 if version == "lite-twin" else [MobileNetV2, EfficientNetLite]
            assert list(map(type, bodies)) == kinds


def test_detectors_of_different_bodies_and_widths_learn_from_each_other():
    students = [{"name": "retinanet", "body": "resnet18", "width": 16}, TINY]
    cohort = build_cohort(task="detection", num_classes=1, teacher=TINY | {"width": 24}, students=students)
    boxes = [torch.tensor([[4.0, 4, 40, 40]]), torch.zeros(0, 4)]
    terms = DetectionCohortLoss(teacher_link="both", peer_link="features")(cohort(images()), (boxes, (64, 128)))
    assert all(value.isfinite() for value in terms.values())


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "mobilenet_v2.pth"
    torch.save(MobileNetV2(1000).state_dict(), path)
    return str(path)


def test_a_cohort_freezes_the_stages_of_all_its_detectors(weights):
    cohort = build_cohort(
        task="detection", num_classes=1, teacher=TINY, students=[TINY], initial_weights=weights, frozen_stages=2
    )
    for network in cohort.networks.values():
        frozen = [int(name.split(".")[1]) for name, p in network.body.named_parameters() if not p.requires_grad]
        assert set(frozen) == {0, 1, 2, 3}
    assert {group["name"] for group in cohort.parameter_groups()} == {"teacher", "student_0"}
    assert all(parameter.requires_grad for group in cohort.parameter_groups() for parameter in group["params"])


def test_a_teacher_from_a_checkpoint_needs_no_published_weights_to_be_frozen(tmp_path, weights):
    torch.save(build_network(TINY, num_classes=1).state_dict(), tmp_path / "teacher.pt")
    settings = {"initial_weights": {"student_0": weights}, "teacher_checkpoint": str(tmp_path / "teacher.pt")}
    cohort = build_cohort(task="detection", num_classes=1, teacher=TINY, students=[TINY], frozen_stages=1, **settings)
    assert not any(parameter.requires_grad for parameter in cohort.networks["teacher"].parameters())
    assert cohort.networks["student_0"].detector.feature_extractor.frozen_stages == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frozen_stages": 1}, "teacher has no initial_weights: its first stages would stay random"),
        ({"frozen_stages": 9, "initial_weights": True}, "frozen_stages is 9, expected 0 to 4"),
        ({"frozen_stages": -1, "initial_weights": True}, "frozen_stages is -1, expected 0 to 4"),
        (
            {"version": "edg"},
            "unknown version 'edg'; known: v1, v2, v3, edge, lite, lite-twin, tiny. Did you mean 'edge'",
        ),
        ({"task": "segmentation"}, "task must be one of classification, detection, got 'segmentation'"),
        (
            {"frozen_stages": 1, "teacher": TINY_CLASSIFIER, "task": "classification"},
            "teacher is a TinyNet, which has no stages to freeze: set frozen_stages to 0",
        ),
    ],
    ids=str,
)
def test_cohorts_of_detectors_that_cannot_be_built_are_refused_with_a_reason(weights, settings, message):
    given_weights = {"initial_weights": weights} if settings.pop("initial_weights", False) else {}
    defaults = {"task": "detection", "num_classes": 1, "teacher": TINY, "students": [TINY]}
    with pytest.raises(InputError, match=message):
        build_cohort(**(defaults | settings | given_weights))


def test_torchvision_is_neither_needed_nor_imported():
    # It may be installed, and then MONAI would import it: none is the same as hidden here.
    program = (
        "import sys; sys.modules['torchvision'] = None\n"
        "import torch, kdml_med.networks as networks\n"
        "cohort = networks.build_cohort('edge', task='detection', num_classes=1)\n"
        "print(cohort.eval()(torch.zeros(2, 3, 64, 64))['student_0'].logits.shape)\n"
        "print([name for name in sys.modules if name.startswith('torchvision') and sys.modules[name] is not None])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["torch.Size([2, 85, 1])", "[]"]
