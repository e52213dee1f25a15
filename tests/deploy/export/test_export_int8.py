from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from kdml_med.deploy.export.formats import to_onnx
from kdml_med.deploy.export.int8 import quantize, round_weights
from kdml_med.deploy.export.metadata import as_properties, from_properties
from kdml_med.deploy.export.modules import ExportedClassifier
from kdml_med.deploy.export.runtimes import load_answer
from kdml_med.networks.registry import NetworkSpec, build_network
from tests.deploy.export.test_export_formats import classifier
from tests.deploy.export.test_export_modules import random_images
from tests.examples import examples
from tests.synthetic_tiles import tile_pixels


def tiles(count: int, size_px: int = 32, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.stack([tile_pixels(bool(number % 2), generator, size_px) for number in range(count)])


def one_convolution(weight: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
    """Pixels as they are through a 1 x 1 convolution."""
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["first", "weight", "bias"], ["probability"]),
    ]
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 8, 8, 3])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def answer(model: onnx.ModelProto, images: np.ndarray, path: Path) -> np.ndarray:
    onnx.save(model, path)
    return load_answer(path, "ONNX Runtime")(images)[0]


@settings(max_examples=examples(20), deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-2, 2))
def test_rounded_weights_leave_the_mean_of_every_channel_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, seed: int, exponent: float
) -> None:
    generator = np.random.default_rng(seed)
    weight = generator.normal(0, 10**exponent, (5, 3, 1, 1)).astype(np.float32)
    images = random_images(3, 8, 8, seed=seed)
    folder = tmp_path_factory.mktemp("model")
    model = one_convolution(weight, generator.normal(size=5).astype(np.float32))
    before = answer(model, images, folder / "before.onnx").mean(axis=(0, 2, 3))
    round_weights(model, images)
    after = answer(model, images, folder / "after.onnx").mean(axis=(0, 2, 3))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-3 * np.abs(weight).max())
    rounded = next(numpy_helper.to_array(item) for item in model.graph.initializer if "weight" in item.name)
    steps = rounded / (np.abs(rounded).max(axis=(1, 2, 3), keepdims=True) / 127)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
    assert (np.abs(rounded - weight) <= np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127).all()


def test_an_int8_file_is_small_whole_and_the_same_twice(tmp_path: Path) -> None:
    module = classifier({"name": "mobilenet_v2", "last_block": 9})
    to_onnx(
        module,
        torch.zeros(2, 32, 32, 3, dtype=torch.uint8),
        tmp_path / "float.onnx",
        metadata=as_properties({"mpp": 1.5}),
    )
    for name in ("a.onnx", "b.onnx"):
        quantize(tmp_path / "float.onnx", tmp_path / name, tiles(8))
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert (tmp_path / "float.onnx").stat().st_size > 2 * (tmp_path / "a.onnx").stat().st_size
    model = onnx.load(tmp_path / "a.onnx")
    assert from_properties({item.key: item.value for item in model.metadata_props}) == {"mpp": 1.5}
    weights = {item.name for item in model.graph.initializer if item.data_type == TensorProto.INT8}
    assert len(weights) > 20
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    normalising = [node for node in model.graph.node if node.op_type in ("Cast", "Sub", "Div")]
    assert len(normalising) >= 4
    assert all(makers.get(name) != "DequantizeLinear" for node in normalising[:4] for name in node.input)
    for batch in (1, 5):
        assert load_answer(tmp_path / "a.onnx", "ONNX Runtime")(tiles(batch))[0].shape == (batch, 2)


SHORT = {"name": "mobilenet_v2", "last_block": 2}


@pytest.mark.parametrize(
    ("specs", "parts"),
    [
        ([SHORT, SHORT], {"student_0", "student_1"}),
        ([{"name": "committee", "members": [SHORT, SHORT]}], {"members.0", "members.1"}),
    ],
    ids=["ensemble", "committee"],
)
def test_the_first_convolutions_of_each_network_can_stay_in_floating_point(
    tmp_path: Path, specs: list[NetworkSpec], parts: set[str]
) -> None:
    to_onnx(classifier(*specs), torch.zeros(2, 32, 32, 3, dtype=torch.uint8), tmp_path / "float.onnx")
    counts = {}
    for count in (0, 2):
        quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", list(tiles(4)), floating_convolutions=count)
        model = onnx.load(tmp_path / "int8.onnx")
        makers = {name: node.op_type for node in model.graph.node for name in node.output}
        convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
        floating = [node.name for node in convolutions if makers.get(node.input[1]) != "DequantizeLinear"]
        counts[count] = sorted(part for name in floating for part in name.split("/") if part in parts)
        assert len(convolutions) == 12
        assert len(floating) == len(counts[count])
    assert counts == {0: [], 2: sorted([*parts, *parts])}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2", "efficientnet_lite0"])
def test_larger_networks_keep_their_answers_in_int8(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_network(name, num_classes=2)
    images = tiles(16, 96)
    module = ExportedClassifier({"student_0": network})
    module.train()
    with torch.no_grad():
        for _ in range(60):  # batch norm sees what is to come
            module(torch.from_numpy(images))
    module.eval()
    to_onnx(module, torch.zeros(2, 96, 96, 3, dtype=torch.uint8), tmp_path / "float.onnx")
    quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", images)
    floating = load_answer(tmp_path / "float.onnx", "ONNX Runtime")(images)[0]
    integer = load_answer(tmp_path / "int8.onnx", "ONNX Runtime")(images)[0]
    # Random weights spread activations more than trained ones do; broken scales would be off by far more.
    assert np.abs(floating - integer).mean() < 0.06
    assert floating[:, 1].std() > 1e-4
