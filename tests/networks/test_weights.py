import io
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdml_med.errors import InputError
from kdml_med.networks import MobileNetV2, build_cohort, build_network, load_initial_weights
from kdml_med.networks.cohort import load_trained
from kdml_med.networks.retinanet import RetinaNet
from kdml_med.networks.weights import read_state_dict
from tests.networks.tiny import TINY, TinyNet

SHORT = {"name": "mobilenet_v2", "last_block": 3}
WIDE = {"name": TINY, "width": 6}


def save(path, state):
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    return path


def body(network):
    state = network.state_dict()
    return {name: value for name, value in state.items() if not name.startswith(("fc.", "classifier."))}


def assert_equal(state, other):
    assert set(state) == set(other)
    for name, value in state.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_published_weights_fill_the_body_and_leave_another_classifier_alone(tmp_path, suffix, dtype):
    source = build_network("resnet18", num_classes=1000)
    source.bn1.running_mean.fill_(0.25)
    published = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in source.state_dict().items()
    }
    path = save(tmp_path / f"resnet18{suffix}", published)
    network = build_network("resnet18", num_classes=2)
    classifier = network.fc.weight.clone()
    assert load_initial_weights(network, path) == ["fc.weight", "fc.bias"]
    assert_equal(body(network), {name: published[name].to(value.dtype) for name, value in body(network).items()})
    assert {value.dtype for value in network.parameters()} == {torch.float32}
    assert torch.equal(network.fc.weight, classifier)


def test_a_classifier_with_the_same_classes_is_loaded(tmp_path):
    source, network = TinyNet(2), TinyNet(2)
    assert load_initial_weights(network, save(tmp_path / "tiny.pth", source.state_dict())) == []
    assert_equal(network.state_dict(), source.state_dict())


def test_a_file_without_classifier_fills_the_body(tmp_path):
    source, network = MobileNetV2(2, last_block=3), MobileNetV2(2, last_block=3)
    path = save(tmp_path / "body.safetensors", body(source))
    assert load_initial_weights(network, path) == ["classifier.1.weight", "classifier.1.bias"]
    assert_equal(body(network), body(source))


def test_the_whole_mobilenet_fills_a_shortened_one(tmp_path):
    source, network = MobileNetV2(1000), MobileNetV2(2, last_block=5)
    path = save(tmp_path / "mobilenet_v2.pth", source.state_dict())
    assert load_initial_weights(network, path) == ["classifier.1.weight", "classifier.1.bias"]
    assert_equal(body(network), {name: source.state_dict()[name] for name in body(network)})


@pytest.mark.parametrize(
    ("network", "found", "message"),
    [
        (SHORT, TINY, "MobileNetV2: 45 of 47 entries, first 'features.0.0.weight': expected shape .*found nothing"),
        (TINY, WIDE, r"first 'body.0.weight': expected shape \(4, 3, 3, 3\), found shape \(6, 3, 3, 3\)"),
        ({"name": "mobilenet_v2", "last_block": 4}, SHORT, "first 'features.4.conv.0.0.weight'.*found nothing"),
        ("resnet18", "resnet34", "ResNet: .*first 'layer1.2.conv1.weight', have no place in it"),
    ],
)
def test_weights_of_another_architecture_are_refused_and_change_nothing(tmp_path, network, found, message):
    path = save(tmp_path / "other.pth", build_network(found, num_classes=2).state_dict())
    target = build_network(network, num_classes=2)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(InputError, match=message) as caught:
        load_initial_weights(target, path)
    assert str(path) in str(caught.value)
    assert_equal(target.state_dict(), before)


def test_entries_for_parts_that_the_network_lacks_are_left_out(tmp_path):
    source = TinyNet(2).state_dict() | {"projection.weight": torch.ones(3)}
    assert load_initial_weights(TinyNet(2), save(tmp_path / "pretrained.pth", source)) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.pth", b""),
        ("text.pth", b"not weights at all\n"),
        ("empty.safetensors", b""),
        ("text.safetensors", b"not weights at all\n"),
    ],
)
def test_files_that_are_no_weights_are_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} cannot be read as weights: ."):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused(tmp_path, value):
    path = tmp_path / "student_0.pt"
    state = {"count": torch.tensor(3), "body.weight": torch.tensor([1.0, value])}
    torch.save(state, path)
    with pytest.raises(InputError, match=r"student_0\.pt: the weights 'body\.weight' are not finite"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(2).to(torch.float8_e4m3fn), "'fc.weight' is float8_e4m3fn. Bring weights in float32 or float16"),
        (torch.ones(2, device="meta"), "'fc.weight' is float32, on device meta"),
        (torch.eye(2).to_sparse(), "'fc.weight' is float32, sparse_coo"),
    ],
)
@pytest.mark.filterwarnings("ignore:TypedStorage:UserWarning")
def test_numbers_that_mean_something_only_with_others_are_refused(tmp_path, value, message):
    torch.save({"fc.weight": value}, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=rf"odd\.pth is not a plain state dict: {message}"):
        read_state_dict(tmp_path / "odd.pth")


def test_entries_without_a_name_are_refused(tmp_path):
    torch.save({0: torch.ones(2)}, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=r"odd\.pth is not a plain state dict \(names to tensors\)"):
        read_state_dict(tmp_path / "odd.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_integers_are_not_taken_for_weights(tmp_path, suffix, dtype):
    """Quantised weights without their scale would be noise in a network, and nothing would say so."""
    state = {name: value.to(dtype) for name, value in TinyNet(2).state_dict().items()}
    path = save(tmp_path / f"int8{suffix}", state)
    network = TinyNet(2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(InputError, match=rf"expected shape \(4, 3, 3, 3\), found shape \(4, 3, 3, 3\) of {kind}"):
        load_initial_weights(network, path)
    with pytest.raises(
        InputError, match=r"is not a state dict of this TinyNet: '\S+' is torch\.\w+, expected torch.float32"
    ):
        load_trained(network, path)
    assert_equal(network.state_dict(), before)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.pth does not exist"):
        read_state_dict(tmp_path / "none.pth")


def test_numbers_are_never_what_lies_in_memory(tmp_path):
    """An entry that is called a folder, by one byte, is not read by torch, which says nothing."""
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(3.0)}, buffer)
    whole = bytearray(buffer.getvalue())
    entry = whole.rindex(b"archive/data/0") - 46
    assert whole[entry : entry + 4] == b"PK\x01\x02"
    whole[entry + 38] |= 0x10
    (tmp_path / "damaged.pth").write_bytes(whole)
    with pytest.raises(InputError, match=r"damaged\.pth cannot be read as weights"):
        read_state_dict(tmp_path / "damaged.pth")


@pytest.mark.parametrize(("zipped", "step"), [(True, 30), (False, 3)])
def test_damaged_weights_raise_nothing_but_input_errors(tmp_path, zipped, step):
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(3.0)}, buffer, _use_new_zipfile_serialization=zipped)
    whole, path, messages = buffer.getvalue(), tmp_path / "damaged.pth", []
    damaged = [whole[:size] for size in range(0, len(whole), 10 * step)]
    damaged += [whole[:at] + b"\xff" + whole[at + 1 :] for at in range(0, len(whole), step)]
    for content in damaged:
        path.write_bytes(content)
        try:
            read_state_dict(path)
        except InputError as error:
            messages.append(str(error))
    # Bytes of tensors and padding may be anything.
    assert len(messages) > len(damaged) / 10
    assert all("damaged.pth cannot be read" in text or "not a plain state dict" in text for text in messages)


class RunsCode:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_code_in_a_weights_file_is_refused_and_does_not_run(tmp_path):
    torch.save({"fc.weight": RunsCode(tmp_path / "trace")}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match=r"evil\.pth cannot be read as weights"):
        read_state_dict(tmp_path / "evil.pth")
    assert not (tmp_path / "trace").exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize("content", [{"state_dict": {"fc.weight": torch.ones(1)}}, [torch.ones(1)], {"epoch": 3}])
def test_checkpoints_that_hold_more_than_tensors_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "checkpoint.pth")
    with pytest.raises(InputError, match=r"checkpoint\.pth is not a plain state dict"):
        read_state_dict(tmp_path / "checkpoint.pth")


@pytest.fixture
def tiny_file(tmp_path):
    network = TinyNet(2)
    torch.nn.init.constant_(network.body[0].weight, 0.5)
    return str(save(tmp_path / "tiny.pth", network.state_dict()))


def filled(cohort):
    return {name for name, network in cohort.networks.items() if (network.body[0].weight == 0.5).all()}


@pytest.mark.parametrize(
    ("key", "expected"),
    [(TINY, {"teacher", "student_0", "student_1"}), ("student_1", {"student_1"}), ("teacher", {"teacher"})],
)
def test_initial_weights_go_to_an_architecture_or_to_one_network(tiny_file, key, expected):
    assert filled(build_cohort(teacher=TINY, students=[TINY, TINY], initial_weights={key: tiny_file})) == expected


def test_one_plain_path_goes_to_every_network(tiny_file):
    cohort = build_cohort(teacher=TINY, students=[TINY], initial_weights=tiny_file)
    assert filled(cohort) == {"teacher", "student_0"}


def test_the_file_of_a_network_wins_over_that_of_its_architecture(tmp_path, tiny_file):
    other = str(save(tmp_path / "other.pth", TinyNet(2).state_dict()))
    files = {TINY: other, "student_0": tiny_file}
    assert filled(build_cohort(teacher=TINY, students=[TINY, TINY], initial_weights=files)) == {"student_0"}


@pytest.mark.parametrize("key", ["student_2", "resnet18", "teacher"])
def test_initial_weights_for_a_network_that_is_not_there_are_refused(tiny_file, key):
    with pytest.raises(InputError, match=f"initial_weights names .*{key}.*student_0"):
        build_cohort(students=[TINY, TINY], use_teacher=False, initial_weights={key: tiny_file})


@pytest.mark.real_data
@pytest.mark.parametrize("last_block", [5, 13, 17])
def test_imagenet_weights_fill_whole_and_shortened_mobilenets(last_block):
    root = os.environ.get("KDML_MED_DATA")
    path = Path(root or "") / "weights" / "mobilenet_v2_features.imagenet.fp16.safetensors"
    if not root or not path.is_file():
        pytest.skip(f"KDML_MED_DATA does not name a folder with weights/{path.name}")
    network = MobileNetV2(2, last_block=last_block)
    assert load_initial_weights(network, path) == ["classifier.1.weight", "classifier.1.bias"]
    published = load_file(path)
    for name, value in body(network).items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, published[name].float()), name
    # Trained batch statistics keep the signal in range, which random weights with these shapes would not prove.
    features = network.eval().features(torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)))
    assert torch.isfinite(features).all()
    assert 0.01 < features.std() < 10


def detector(**settings):
    return RetinaNet(**({"width": 16, "head_convs": 1} | settings))


@pytest.mark.parametrize("last_block", [13, 15, None])
def test_published_weights_fill_the_body_of_a_detector_and_leave_the_rest_alone(tmp_path, last_block):
    source, network = MobileNetV2(1000).state_dict(), detector(last_block=last_block)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    # Nothing of the body stays random: the classifier, and layers behind its end, have no place in a detector.
    assert load_initial_weights(network, save(tmp_path / "mobilenet_v2.safetensors", source)) == []
    filled = network.body.state_dict()
    assert filled.keys() < source.keys()
    assert_equal(filled, {name: source[name] for name in filled})
    for name, value in network.state_dict().items():
        assert ".body." in name or torch.equal(value, before[name]), name
    assert torch.equal(
        network.state_dict()["detector.feature_extractor.body.features.0.0.weight"], source["features.0.0.weight"]
    )


def test_published_weights_fill_a_resnet_body(tmp_path):
    source, network = build_network("resnet18", num_classes=1000).state_dict(), detector(body="resnet18")
    assert load_initial_weights(network, save(tmp_path / "resnet18.pth", source)) == []
    assert_equal(network.body.state_dict(), {name: source[name] for name in network.body.state_dict()})


@pytest.mark.parametrize(
    ("settings", "found", "message"),
    [
        ({}, {"name": "mobilenet_v2", "last_block": 13}, "MobileNetV2: .*first 'features.14.conv.0.0.weight'.*nothing"),
        ({}, "resnet18", "MobileNetV2: .*first 'features.0.0.weight'.*found nothing"),
        ({"body": "resnet18"}, "resnet34", "ResNet: .*first 'layer1.2.conv1.weight', have no place in it"),
        ({"body": "resnet18"}, "mobilenet_v2", "ResNet: .*first 'conv1.weight'.*found nothing"),
    ],
    ids=str,
)
def test_weights_of_another_body_are_refused_and_change_nothing(tmp_path, settings, found, message):
    path = save(tmp_path / "other.pth", build_network(found, num_classes=2).state_dict())
    network = detector(**settings)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(InputError, match=message):
        load_initial_weights(network, path)
    assert_equal(network.state_dict(), before)


def test_weights_of_a_body_go_to_every_detector_that_has_it(tmp_path):
    source = MobileNetV2(1000).state_dict()
    path = str(save(tmp_path / "mobilenet_v2.pth", source))
    small = {"name": "retinanet", "width": 16, "head_convs": 1}
    cohort = build_cohort(
        task="detection",
        num_classes=1,
        teacher=small | {"body": "resnet18"},
        students=[small | {"body": "mobilenet_v2"}, small | {"body": "mobilenet_v2", "last_block": 13}],
        initial_weights={"mobilenet_v2": path},
    )
    for name in cohort.student_names:
        filled = cohort.networks[name].body.state_dict()
        assert_equal(filled, {entry: source[entry] for entry in filled})
