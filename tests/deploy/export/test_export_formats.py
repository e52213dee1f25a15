from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdml_med.deploy.export.formats import METADATA_ENTRY, to_onnx, to_torchscript
from kdml_med.deploy.export.metadata import as_properties, as_text, from_properties
from kdml_med.deploy.export.modules import ExportedClassifier
from kdml_med.deploy.export.runtimes import load_answer
from kdml_med.errors import InputError
from kdml_med.networks.registry import build_network
from tests.deploy.export.test_export_modules import random_images
from tests.deploy.runs import SHORT, SHORTER, Stubborn
from tests.examples import examples

SIZE = 32
EXAMPLE = torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8)
DESCRIBED = {"classes": ["gutartig", "bösartig"], "mpp": 0.5, "positive_class": "1", "synthetic": False, "fold": None}


def classifier(*specs: object) -> ExportedClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = {f"student_{place}": build_network(spec, num_classes=2) for place, spec in enumerate(specs)}
    return ExportedClassifier(networks)


@pytest.fixture(scope="module")
def ensemble() -> ExportedClassifier:
    """Of two architectures, as in version v3."""
    return classifier("resnet10", SHORT)


@pytest.fixture(scope="module")
def onnx_file(ensemble: ExportedClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "ensemble.onnx"
    to_onnx(ensemble, EXAMPLE, path, metadata=as_properties(DESCRIBED))
    return path


@pytest.fixture(scope="module")
def torchscript_file(ensemble: ExportedClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("torchscript") / "ensemble.ts"
    to_torchscript(ensemble, EXAMPLE, path, metadata=as_text(DESCRIBED))
    return path


@settings(max_examples=examples(10), deadline=None)
@given(st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_any_number_of_images_is_answered_as_by_the_networks(
    ensemble: ExportedClassifier, onnx_file: Path, torchscript_file: Path, batch: int, seed: int
) -> None:
    images = random_images(batch, SIZE, SIZE, seed=seed)
    with torch.no_grad():
        expected = ensemble(torch.from_numpy(images)).numpy()
    for path, runtime in ((onnx_file, "ONNX Runtime"), (torchscript_file, "TorchScript")):
        np.testing.assert_allclose(load_answer(path, runtime)(images)[0], expected, atol=1e-5)


def test_an_onnx_file_says_what_it_takes_and_gives(onnx_file: Path) -> None:
    session = onnxruntime.InferenceSession(onnx_file)
    [image], [probability] = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["batch", SIZE, SIZE, 3])
    assert (probability.name, probability.type) == ("probability", "tensor(float)")
    assert probability.shape[0] == "batch"
    assert from_properties(session.get_modelmeta().custom_metadata_map) == DESCRIBED
    assert [item.name for item in onnx_file.parent.iterdir()] == [onnx_file.name]


def test_a_torchscript_file_carries_its_metadata(torchscript_file: Path) -> None:
    extra = {METADATA_ENTRY: ""}
    with pytest.warns(DeprecationWarning, match="jit"):
        torch.jit.load(torchscript_file, _extra_files=extra)
    assert json.loads(extra[METADATA_ENTRY]) == DESCRIBED


def test_images_of_another_size_are_refused_by_the_runtime(onnx_file: Path) -> None:
    with pytest.raises(Exception, match="dimensions"):
        load_answer(onnx_file, "ONNX Runtime")(random_images(1, SIZE + 1, SIZE))


def test_the_same_network_gives_the_same_onnx_bytes_without_batch_norm(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        to_onnx(classifier(SHORTER), EXAMPLE, tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    model = onnx.load(tmp_path / "a.onnx")
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert str(Path(__file__).parents[3]).encode() not in (tmp_path / "a.onnx").read_bytes()


_ALONE = """
import json, sys
import numpy as np, onnxruntime
from PIL import Image
session = onnxruntime.InferenceSession(sys.argv[1])
image = np.asarray(Image.open(sys.argv[2]).convert("RGB"))[None]
probability = session.run(["probability"], {"image": image})[0]
assert not {"torch", "monai", "kdml_med"} & set(sys.modules)
print(json.dumps(probability.tolist()))
"""


def test_onnx_runtime_alone_gives_the_same_probabilities(
    ensemble: ExportedClassifier, onnx_file: Path, tmp_path: Path
) -> None:
    images = random_images(1, SIZE, SIZE, seed=3)
    Image.fromarray(images[0]).save(tmp_path / "tile.png")
    words = [sys.executable, "-c", _ALONE, str(onnx_file), str(tmp_path / "tile.png")]
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    with torch.no_grad():
        expected = ensemble(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(json.loads(result.stdout), expected, atol=1e-5)


@pytest.mark.parametrize("write", [to_onnx, to_torchscript])
def test_a_network_that_cannot_be_followed_is_named(write: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Stubborn cannot be written .* not while anybody watches"):
        write(ExportedClassifier({"student_0": Stubborn(2)}), EXAMPLE, tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_without_onnx_a_person_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"onnx is not installed .*pip install 'kdml_med\[deploy\]'"):
        to_onnx(classifier(SHORTER), EXAMPLE, tmp_path / "file.onnx")
