"""Exported files in the programs that run them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from kdml_med.deploy.export.formats import require
from kdml_med.deploy.export.modules import INPUT_NAME

Runtime = Literal["eager", "TorchScript", "ONNX Runtime", "OpenVINO"]
Answer = Callable[[npt.NDArray[np.uint8]], list[npt.NDArray[Any]]]
"""Images, uint8 [batch, height, width, 3], to the outputs of a file in its order."""


def load_answer(path: Path, runtime: Runtime) -> Answer:
    """Load a file as its users do, to be computed by one thread.

    Args:
        path: of ``to_torchscript`` for TorchScript, else of ``to_onnx``.
        runtime: what computes; "eager" has no file, see ``eager_answer``.

    Raises:
        InputError: the runtime is not installed.
        ValueError: "eager".
    """
    if runtime == "ONNX Runtime":
        return _onnxruntime_answer(path)
    if runtime == "OpenVINO":
        return _openvino_answer(path)
    if runtime == "TorchScript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return _torch_answer(torch.jit.load(path))
    raise ValueError(f"a file of {runtime!r} cannot be loaded.")


def eager_answer(module: nn.Module) -> Answer:
    """The module itself, in evaluation mode."""
    return _torch_answer(module)


def runtimes_of(path: Path) -> list[Runtime]:
    """What can compute a file on this machine."""
    if path.suffix != ".onnx":
        return ["TorchScript"]
    return ["ONNX Runtime", *(["OpenVINO"] if find_spec("openvino") else [])]  # type: ignore[list-item]


def _torch_answer(module: Callable[[Tensor], Any]) -> Answer:
    def answer(images: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
        with torch.inference_mode():
            given = module(torch.from_numpy(np.require(images, requirements="W")))
        return [value.numpy() for value in (given if isinstance(given, tuple) else (given,))]

    return answer


def _onnxruntime_answer(path: Path) -> Answer:
    onnxruntime = require("onnxruntime", extra="deploy")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: list(session.run(None, {INPUT_NAME: images}))


def _openvino_answer(path: Path) -> Answer:
    openvino = require("openvino", extra="openvino")
    settings: Mapping[str, Any] = {
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 where the processor has it, and other answers
    }
    request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()

    def answer(images: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
        given = request.infer({INPUT_NAME: images})
        return [given[place] for place in range(len(given))]

    return answer
