import re
from pathlib import Path

import pytest
import torch

from kdml_med.errors import InputError
from kdml_med.keys import Task
from kdml_med.networks import VERSIONS, EfficientNetLite, MobileNetV2, build_cohort, build_network
from tests.networks.tiny import TINY, TinyNet
from tests.reference import (
    LITE_STAGES,
    RESNET_BLOCKS,
    lite_blocks,
    lite_logits,
    mobilenet_logits,
    resnet_logits,
    resnet_names,
)

# Parameters with 1000 classes, as published with torchvision's ImageNet weights.
PUBLISHED_PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "mobilenet_v2": 3_504_872,
}


def scrambled(network):
    """The network in evaluation mode and float64, with batch statistics unlike those of a new network."""
    generator = torch.Generator().manual_seed(3)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif name.endswith("running_mean"):
            value.normal_(0, 0.1, generator=generator)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            torch.nn.init.normal_(module.bias, 0, 0.1, generator=generator)
    return network.double().eval()


def random_image(*size):
    return torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_parameter_counts_are_the_published_ones(name):
    network = build_network(name, num_classes=1000)
    assert sum(parameter.numel() for parameter in network.parameters()) == PUBLISHED_PARAMETERS[name]


@pytest.mark.parametrize("name", RESNET_BLOCKS)
def test_resnet_entries_are_named_as_in_torchvision(name):
    assert sorted(build_network(name, num_classes=2).state_dict()) == sorted(resnet_names(name))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnets_compute_what_the_paper_describes(name):
    network = scrambled(build_network(name, num_classes=5))
    image = random_image(48, 40)
    expected = resnet_logits(name, network.state_dict(), image)
    assert expected.std() > 0.01
    torch.testing.assert_close(network(image), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("last_block", [1, 4, 13, 17])
def test_mobilenet_computes_what_the_paper_describes(last_block):
    network = scrambled(MobileNetV2(5, last_block=last_block))
    image = random_image(48, 40)
    expected = mobilenet_logits(network.state_dict(), image, last_block)
    assert expected.std() > 1e-5
    torch.testing.assert_close(network(image), expected, rtol=1e-9, atol=1e-12)


def test_a_shortened_mobilenet_is_the_beginning_of_the_whole_one():
    whole, short = MobileNetV2().state_dict(), MobileNetV2(last_block=13).state_dict()
    body = {name: value.shape for name, value in short.items() if name.startswith("features.")}
    assert body == {
        name: value.shape
        for name, value in whole.items()
        if name.startswith("features.") and int(name.split(".")[1]) <= 13
    }
    assert short["classifier.1.weight"].shape == (2, 96)


@pytest.mark.parametrize(("scale", "millions"), [("lite0", 4.7), ("lite1", 5.4), ("lite2", 6.1)])
def test_efficientnets_have_the_parameters_of_their_table(scale, millions):
    def convolution(inputs, outputs, kernel=1):  # with the two values of a batch norm for each output
        return inputs * outputs * kernel**2 + 2 * outputs

    expected = convolution(3, 32, 3)
    for inputs, outputs, expansion, _, kernel in lite_blocks(scale):
        hidden = inputs * expansion
        expected += convolution(inputs, hidden) if expansion > 1 else 0
        expected += convolution(1, hidden, kernel) + convolution(hidden, outputs)
    expected += convolution(lite_blocks(scale)[-1][1], 1280) + 1280 * 1000 + 1000
    network = build_network(f"efficientnet_{scale}", num_classes=1000)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected
    assert round(expected / 1e6, 1) == millions  # as their authors tell


@pytest.mark.parametrize(
    ("scale", "last_block"), [("lite0", None), ("lite0", 1), ("lite0", 11), ("lite1", None), ("lite2", 15)]
)
@pytest.mark.parametrize("size", [(64, 32), (47, 61)])
def test_efficientnets_compute_what_the_paper_describes(scale, last_block, size):
    network = scrambled(EfficientNetLite(5, scale=scale, last_block=last_block))
    image = random_image(*size)
    expected = lite_logits(scale, network.state_dict(), image, last_block)
    assert expected.std() > 1e-5
    torch.testing.assert_close(network(image), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", LITE_STAGES)
def test_a_shortened_efficientnet_is_the_beginning_of_the_whole_one(scale):
    with torch.device("meta"):
        whole, short = EfficientNetLite(scale=scale), EfficientNetLite(scale=scale, last_block=6)
    rest = ("_conv_head", "_bn1", "_fc")
    body = {name: value.shape for name, value in short.state_dict().items() if not name.startswith(rest)}
    kept = [str(number) for number in range(6)]
    assert body == {
        name: value.shape
        for name, value in whole.state_dict().items()
        if not name.startswith(rest) and (not name.startswith("_blocks.") or name.split(".")[1] in kept)
    }
    assert not [name for name in short.state_dict() if name.startswith(rest[:2])]


def test_networks_of_the_named_versions_answer_with_one_logit_per_class():
    specs = {
        str(spec): spec for version in VERSIONS[Task.CLASSIFICATION].values() for spec in version.networks().values()
    }
    for spec in specs.values():
        assert build_network(spec, num_classes=4).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 4), spec


def test_a_network_can_be_named_by_its_import_path():
    network = build_network({"name": TINY, "width": 6}, num_classes=3)
    assert isinstance(network, TinyNet)
    assert network.fc.weight.shape == (3, 6)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet-18", "unknown network 'resnet-18'; known: .*Did you mean 'resnet18'"),
        ("mobilenet_v3", "Did you mean 'mobilenet_v2'"),
        (
            "zzz",
            "unknown network 'zzz'; known: committee, convnet, efficientnet_lite0, .*mobilenet_v2.* dotted import path",
        ),
        ("no_such_package.Net", "'no_such_package.Net' cannot be imported: No module named"),
        ("tests.networks.tiny.NoNet", "'tests.networks.tiny.NoNet' cannot be imported: .*NoNet"),
        ({"last_block": 3}, r"\{'last_block': 3\} has no 'name'; expected one of"),
        ({"name": "mobilenet_v2", "last_blok": 3}, "'mobilenet_v2' cannot be built with .*last_blok"),
        ({"name": "mobilenet_v2", "last_block": 18}, "last_block must be between 1 and 17, got 18"),
        ({"name": "mobilenet_v2", "last_block": 0}, "last_block must be between 1 and 17, got 0"),
        ({"name": "efficientnet_lite0", "last_block": 17}, "last_block must be between 1 and 16, got 17"),
        ({"name": "efficientnet_lite1", "last_block": 0}, "last_block must be between 1 and 21, got 0"),
        ({"name": "efficientnet_lite0", "scale": "lite5"}, "scale must be one of lite0, lite1, lite2, got 'lite5'"),
        ({"name": TINY, "depth": 3}, "TinyNet' cannot be built with .*depth"),
        ("math.pi", "'math.pi' cannot be built"),
    ],
)
def test_specs_that_cannot_be_built_are_refused_with_a_reason(spec, message):
    with pytest.raises(InputError, match=message):
        build_network(spec, num_classes=2)


@pytest.mark.parametrize("page", ["explanation/method.md", "reference/losses_and_networks.md"])
def test_tables_of_versions_tell_the_parameters_that_are_counted(page, counted):
    text = (Path(__file__).resolve().parents[2] / "docs" / page).read_text(encoding="utf-8")
    section = text.split("\n## Versions\n")[1].split("\n## ")[0]
    for task, rows in zip(VERSIONS, section.split("\nDetectors"), strict=True):
        for version, words in re.findall(r"^\| `([\w-]+)` \|(.*)$", rows, re.MULTILINE):
            told = [int(number.replace(",", "")) for number in re.findall(r"\d+,\d{3}(?:,\d{3})*|\b\d{5,}\b", words)]
            teacher, first, second, ensemble = counted[task, version].values()
            assert told == [teacher, *sorted({first, second}, key=[first, second].index), ensemble], (task, version)


@pytest.fixture(scope="module")
def counted():
    with torch.device("meta"):
        return {
            (task, version): build_cohort(version, task=task, num_classes=2 - (task == "detection")).parameter_counts()
            for task, versions in VERSIONS.items()
            for version in versions
        }
