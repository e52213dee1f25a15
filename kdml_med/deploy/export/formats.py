"""Modules as files: TorchScript and ONNX, with named inputs and outputs and any number of images at a time."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from kdml_med.deploy.export.modules import BATCH_AXIS, INPUT_NAME, Exportable
from kdml_med.errors import InputError, one_line
from kdml_med.storage.files import write_atomically

ONNX_OPSET = 17
"""Per-channel int8 needs 13; 17 is the last that every ONNX Runtime since 1.13 reads, and the IR version goes with it.
What came later (18 to 23) has nothing in it that these networks use."""
METADATA_ENTRY = "model.json"
"""Name of the extra file in a TorchScript archive."""


def require(module: str, *, extra: str) -> Any:
    """Import a library that not everybody has.

    Raises:
        InputError: it is not installed; says how to get it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(f"{module} is not installed ({one_line(error)}): pip install 'kdml_med[{extra}]'.") from error


def to_torchscript(module: nn.Module, example: Tensor, path: Path, *, metadata: str = "{}") -> None:
    """Write a module as a TorchScript file.

    Args:
        module: see ``Exportable``; in evaluation mode.
        example: uint8, [batch, height, width, 3]; what it shows does not matter.
        path: of the file.
        metadata: text of the file's entry ``METADATA_ENTRY``.

    Raises:
        InputError: the module cannot be traced, or the file cannot be written.
    """
    with _exporting(module, "torchscript"), torch.no_grad():
        traced = torch.jit.freeze(torch.jit.trace(module, example, check_trace=False).eval())
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer, _extra_files={METADATA_ENTRY: metadata})
    write_atomically(path, buffer.getvalue())


def to_onnx(module: nn.Module, example: Tensor, path: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a module as an ONNX file, weights inside.

    Args:
        module: see ``Exportable``; in evaluation mode.
        example: uint8, [batch, height, width, 3]; what it shows does not matter. The file takes any batch of this
            height and width.
        path: of the file.
        metadata: texts by name, for the file's ``metadata_props``.

    Raises:
        InputError: onnx is not installed, the module cannot be exported, or the file cannot be written.
    """
    onnx = require("onnx", extra="deploy")
    axes = cast(Exportable, module).output_axes
    buffer = io.BytesIO()
    with _exporting(module, "onnx"), torch.no_grad():
        torch.onnx.export(
            module,
            (example,),
            cast(Any, buffer),  # the annotation forgets what the function takes
            input_names=[INPUT_NAME],
            output_names=[*axes],
            dynamic_axes={INPUT_NAME: {0: BATCH_AXIS, **getattr(module, "input_axes", {})}, **axes},
            opset_version=ONNX_OPSET,
            # The newer exporter takes ten times as long, and turns the pooling of channels-last maps into a gather.
            dynamo=False,
        )
    write_onnx(onnx.load_from_string(buffer.getvalue()), path, metadata=metadata or {})


def write_onnx(model: Any, path: Path, *, metadata: Mapping[str, str]) -> None:
    """Write a model of onnx; the same content gives the same bytes.

    Args:
        model: ``onnx.ModelProto``; changed in place.
        path: of the file.
        metadata: replaces the model's ``metadata_props``.

    Raises:
        InputError: the file cannot be written.
    """
    onnx = require("onnx", extra="deploy")
    for node in model.graph.node:
        node.ClearField("doc_string")  # places in source files of the machine that exported
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))
    onnx.checker.check_model(model)
    write_atomically(path, model.SerializeToString(deterministic=True))


@contextmanager
def _exporting(module: nn.Module, name: str) -> Iterator[None]:
    """Keep notices for developers from people, and say which network a format cannot hold."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except Exception as error:  # whatever a network of one's own does in its forward pass
            raise InputError(
                f"{_network_names(module)} cannot be written as {name}: {one_line(error)}. The exporter follows one "
                "forward pass: it must be the same for every image, and return tensors."
            ) from error


def _network_names(module: nn.Module) -> str:
    networks = getattr(module, "networks", {"": module})
    return " and ".join(sorted({type(network).__name__ for network in networks.values()}))
