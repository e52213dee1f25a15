"""ONNX models in 8-bit integers, calibrated on tiles (static quantisation by ONNX Runtime, QDQ)."""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdml_med.deploy.export.formats import require, write_onnx
from kdml_med.deploy.export.modules import INPUT_NAME
from kdml_med.errors import InputError, one_line

CALIBRATION_IMAGES = 200
"""Enough for ranges that more hardly widen; documented figures are with this number."""
WEIGHT_STEPS = 127
"""Of int8 weights on each side of zero."""
_WEIGHTED = ("Conv", "Gemm")
_OF_NETWORK = re.compile(r"(?:/[^/]*)?(?:/members\.\d+(?=/))?")
INTEGER_OPERATIONS = (
    *_WEIGHTED,
    "Add",
    "AveragePool",
    "Clip",
    "Concat",
    "Flatten",
    "GlobalAveragePool",
    "MaxPool",
    "Relu",
)
"""Operations that are computed in integers. Not the normalisation of the input, and not the softmax: there 8 bits are
too few, and nothing is gained."""


Images = Sequence[npt.NDArray[np.uint8]] | npt.NDArray[np.uint8]
"""uint8, [height, width, 3] each."""


def quantize(
    source: Path,
    target: Path,
    images: Images,
    *,
    operations: Sequence[str] = INTEGER_OPERATIONS,
    floating_convolutions: int = 0,
) -> None:
    """Write the int8 version of an ONNX file: weights for each output channel, activations for each tensor.

    Args:
        source: of ``to_onnx``; its metadata go into the new file.
        target: file to write.
        images: what ranges are read from.
        operations: types of operators that are computed in integers.
        floating_convolutions: how many convolutions at the beginning of each network are not.

    Raises:
        InputError: a library is not installed, the model cannot be quantised, or the file cannot be written.
    """
    onnx = require("onnx", extra="deploy")
    require("onnxruntime", extra="deploy")
    metadata = {item.key: item.value for item in onnx.load(source).metadata_props}
    with tempfile.TemporaryDirectory(prefix="kdml_med_int8_") as folder, _quiet():
        prepared = _prepare(source, Path(folder) / "prepared.onnx")
        floating = _first_convolutions(prepared, floating_convolutions)
        round_weights(prepared, images, floating=floating)
        _to_integers(prepared, Path(folder) / "int8.onnx", images, operations, floating)
        write_onnx(onnx.load(Path(folder) / "int8.onnx"), target, metadata=metadata)


def round_weights(model: Any, images: Images, *, floating: Sequence[str] = ()) -> None:
    """Round the weights of a model to their int8 steps, and take what that does to the mean out of the biases.

    Batch norm of a channel that hardly varies leaves large weights, and a large bias against them. Rounding such
    weights moves the whole channel by more than it ever varies; corrected, only its variation is rounded.

    Args:
        model: ``onnx.ModelProto`` without batch norm; changed in place.
        images: what means are taken over.
        floating: names of nodes that are left as they are.

    Source:
        Nagel et al. 2019, arXiv:1906.04721, section 4.2, by means over images instead of batch statistics.
    """
    from onnx import numpy_helper

    nodes = [node for node in model.graph.node if node.op_type in _WEIGHTED and node.name not in floating]
    values = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    nodes = [node for node in nodes if node.input[1] in values]
    means = _input_means(model, [node.input[0] for node in nodes], images)
    for number, node in enumerate(nodes):
        weight = values[node.input[1]]
        by_output = weight if _outputs_first(node) else weight.T
        rounded = _rounded(by_output)
        shift = _mean_change(rounded - by_output, means[node.input[0]])
        bias = values[node.input[2]] if len(node.input) > 2 else np.zeros(len(shift), np.float32)
        names = [f"int8_weight_{number}", f"int8_bias_{number}"]  # their own: networks may share equal ones
        stored = rounded if _outputs_first(node) else rounded.T
        for name, value in zip(names, (stored, (bias - shift).astype(np.float32)), strict=True):
            model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        del node.input[1:]
        node.input.extend(names)
    used = {name for node in model.graph.node for name in node.input}
    kept = [item for item in model.graph.initializer if item.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _outputs_first(node: Any) -> bool:
    """Whether the first axis of a node's weights is that of its outputs."""
    if node.op_type == "Conv":
        return True
    return any(item.name == "transB" and item.i for item in node.attribute)


def _rounded(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Weights [outputs, ...] on the steps that the quantiser will give each output."""
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1).reshape(-1, *[1] * (weight.ndim - 1))
    step = np.where(largest > 0, largest / WEIGHT_STEPS, 1)
    return (np.round(weight / step) * step).astype(np.float32)


def _mean_change(change: npt.NDArray[np.float32], means: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """What a change of weights [outputs, inputs of a group, ...] adds to each output in the mean; borders are ignored.

    Args:
        change: of the weights.
        means: [inputs], of each input channel.
    """
    summed = change.astype(np.float64).reshape(*change.shape[:2], -1).sum(axis=2)
    groups = len(means) // change.shape[1]
    by_group = means.reshape(groups, 1, -1)
    shift: npt.NDArray[np.float64] = (summed.reshape(groups, -1, change.shape[1]) * by_group).sum(axis=2).reshape(-1)
    return shift


def _input_means(model: Any, names: Sequence[str], images: Images) -> dict[str, npt.NDArray[np.float64]]:
    """Mean over images and places of each channel of some tensors of a model."""
    import onnx
    import onnxruntime

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    unique = list(dict.fromkeys(names))
    del watched.graph.output[:]
    for name in unique:
        watched.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    sums = dict.fromkeys(unique, np.float64(0))
    for image in images:
        for name, value in zip(unique, session.run(None, {INPUT_NAME: image[None]}), strict=True):
            axes = tuple(axis for axis in range(value.ndim) if axis != 1)
            sums[name] = sums[name] + value.mean(axis=axes, dtype=np.float64)
    return {name: np.asarray(value / len(images)) for name, value in sums.items()}


def _prepare(source: Path, target: Path) -> Any:
    """The model with batch norm folded and shapes known, as the quantiser wants it."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(str(source), str(target), skip_symbolic_shape=True)  # ONNX's own inference knows these shapes
    return onnx.load(target)


def _first_convolutions(model: Any, count: int) -> list[str]:
    """Names of the first convolutions of each network and member of a committee, with the activations behind them.

    Names begin with the part of the module that a node comes from, "/student_0/…" or "/teacher/members.0/…".
    """
    by_network: dict[str, list[Any]] = {}
    for node in model.graph.node:
        if node.op_type == "Conv":
            network = _OF_NETWORK.match(node.name)
            by_network.setdefault("" if network is None else network[0], []).append(node)
    first = [node for nodes in by_network.values() for node in nodes[:count]]
    outputs = {node.output[0] for node in first}
    behind = [
        node for node in model.graph.node if node.op_type in ("Clip", "Relu") and not outputs.isdisjoint(node.input)
    ]
    return [node.name for node in [*first, *behind]]


def _to_integers(model: Any, target: Path, images: Images, operations: Sequence[str], floating: Sequence[str]) -> None:
    """Write a prepared model with 8-bit operations.

    Weights are signed and activations unsigned: of the pairs, the one that x86 multiplies fastest.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Tiles(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter(images)

        def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
            image = next(self.rows, None)
            return None if image is None else {INPUT_NAME: image[None]}

    try:
        quantize_static(
            model,
            str(target),
            Tiles(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            op_types_to_quantize=list(operations),
            nodes_to_exclude=list(floating),
        )
    except Exception as error:  # whatever the quantiser does not know of a network of one's own
        raise InputError(
            f"the network cannot be quantised to int8: {one_line(error)}. Export it with the format onnx."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantiser's advice to developers from people."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
