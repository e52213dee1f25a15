"""Trained classifiers answering tiles as they are stored: pixels in, probabilities by network out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from kdml_med.deploy.export.formats import require, to_onnx
from kdml_med.deploy.export.modules import BATCH_AXIS, INPUT_NAME, Axes, NormalizedImage
from kdml_med.engines.evaluator import ensemble_probabilities
from kdml_med.errors import InputError
from kdml_med.keys import Task
from kdml_med.networks.devices import check_device
from kdml_med.runs import RunDescription, hash_checkpoints, load_network

Runtime = Literal["auto", "torch", "onnx"]
Images = npt.NDArray[np.uint8]
Probabilities = npt.NDArray[np.float32]

TOLERANCE = 1e-4
"""Largest difference of a probability between runtimes."""
# What a CPU takes at a time: with more, ONNX Runtime is slower, and torch clears new pages of memory for each layer
# (16 tiles of 224 px through a MobileNetV2 took 1.8 times as long as 4 by 4); with fewer, small tiles are slower.
_TILES_FOR_ONNX = 4
_PIXELS_FOR_TORCH = 4 * 224 * 224
_PROBES = 8  # images by which a file is compared with the networks it was written from


@dataclass(frozen=True)
class ClassifierPlan:
    """Which networks answer, and how they are computed; travels to other processes.

    Attributes:
        run_dir: of the run.
        names: networks that answer, in order.
        weights: SHA-256 of the checkpoint of each, in that order. A run folder has others once it is trained again, and
            a plan tells those of then from those of now wherever networks are kept for later.
        image_size: side of their input, pixels.
        average: see ``kdml_med.engines.evaluator.ensemble_probabilities``.
        device: of torch.
        onnx_path: file that ONNX Runtime computes; None for torch.
    """

    run_dir: Path
    names: tuple[str, ...]
    weights: tuple[str, ...]
    image_size: int
    average: str = "probabilities"
    device: str = "cpu"
    onnx_path: Path | None = None

    @property
    def runtime(self) -> str:
        """What computes."""
        return "torch" if self.onnx_path is None else "onnx"


def plan_classifier(
    run_dir: Path,
    run: RunDescription,
    names: Sequence[str],
    *,
    device: str = "cpu",
    runtime: Runtime = "auto",
    folder: Path,
) -> ClassifierPlan:
    """Choose what computes, and check that the networks can be had.

    Args:
        run_dir: folder of the run.
        run: its description, or what the caller made of it.
        names: networks that answer.
        device: of torch.
        runtime: "onnx" for ONNX Runtime, "torch", or "auto": ONNX Runtime on a CPU where it is installed and takes the
            networks.
        folder: where the file for ONNX Runtime goes; it is needed as long as the plan.

    Raises:
        InputError: no such device or runtime, weights do not fit, or the runtime that is asked for gives other
            probabilities than torch.
    """
    if runtime not in get_args(Runtime):
        raise InputError(f"--runtime is {runtime!r}, expected one of {', '.join(get_args(Runtime))}.")
    if run.task is not Task.CLASSIFICATION:
        raise InputError(f"the run {run_dir} was trained for {run.task}; this needs one for {Task.CLASSIFICATION}.")
    check_device(device)
    on_cpu = torch.device(device).type == "cpu"
    if runtime == "onnx" and not on_cpu:
        raise InputError(f"--runtime onnx computes on the CPU, --device is {device!r}: leave one of the two out.")
    weights = tuple(hash_checkpoints(Path(run_dir), names).values())
    average = run.ensemble_average or "probabilities"
    plan = ClassifierPlan(Path(run_dir), tuple(names), weights, _side(run), average, device)
    classifier = Classifier(plan)  # what is wrong with the weights shows now
    if runtime == "torch" or (runtime == "auto" and not (on_cpu and find_spec("onnxruntime") and find_spec("onnx"))):
        return plan
    try:
        return _plan_onnx(plan, classifier, folder / "networks.onnx")
    except InputError:
        if runtime == "onnx":
            raise
        return plan


def _side(run: RunDescription) -> int:
    sides = run.image_size if isinstance(run.image_size, list) else [run.image_size] * 2
    if sides[0] != sides[1]:
        raise InputError(f"the run's image_size is {sides}, and tiles are square: train again with one side.")
    return sides[0]


def _plan_onnx(plan: ClassifierPlan, classifier: Classifier, path: Path) -> ClassifierPlan:
    probes = np.random.default_rng(0).integers(0, 256, (_PROBES, plan.image_size, plan.image_size, 3), np.uint8)
    to_onnx(_Logits(classifier.networks), torch.from_numpy(probes[:1]), path)
    found = replace(plan, onnx_path=path)
    own, other = classifier(probes), Classifier(found)(probes)
    difference = max(float(np.abs(own[name] - other[name]).max()) for name in own)
    if not difference <= TOLERANCE:
        raise InputError(
            f"ONNX Runtime gives probabilities that differ by {difference:.2g} from those of torch, at most "
            f"{TOLERANCE:g} is allowed: use --runtime torch."
        )
    return found


class _Logits(nn.Module):
    """Networks from the pixels of tiles to logits.

    Args:
        networks: by name.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)
        self.normalize = NormalizedImage()
        self.output_axes: Mapping[str, Axes] = {name: {0: BATCH_AXIS} for name in networks}
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Map uint8 [batch, height, width, 3], RGB, to float32 [batch, classes] of each network."""
        normalized = self.normalize(image)
        return tuple(network(normalized).float() for network in self.networks.values())


class Classifier:
    """Networks of a run that answer tiles. Threads may share one.

    Args:
        plan: which networks, and what computes.

    Attributes:
        networks: by name, on the device; loaded when first asked for where another runtime answers.

    Raises:
        InputError: the weights do not fit or are others than the plan's, or a runtime is not installed.
    """

    def __init__(self, plan: ClassifierPlan) -> None:
        self.plan = plan
        self._logits = self._torch_logits() if plan.onnx_path is None else _onnx_logits(plan.onnx_path, plan.names)

    @functools.cached_property
    def networks(self) -> dict[str, nn.Module]:
        """Networks by name, on the device."""
        now = hash_checkpoints(self.plan.run_dir, self.plan.names)
        for name, planned in zip(self.plan.names, self.plan.weights, strict=True):
            if now[name] != planned:
                raise InputError(
                    f"the weights of {name} in {self.plan.run_dir} have changed since this prediction began: wait "
                    "until the run is trained, and predict again into another folder."
                )
        return {name: load_network(self.plan.run_dir, name).to(self.plan.device) for name in self.plan.names}

    def normalize(self, images: Images) -> Tensor:
        """Tiles as the networks of torch take them: float32 [n, 3, height, width], on the device."""
        normalized: Tensor = NormalizedImage().to(self.plan.device)(torch.from_numpy(images).to(self.plan.device))
        return normalized

    def __call__(self, images: Images) -> dict[str, Probabilities]:
        """Class probabilities.

        Args:
            images: uint8, [n, image_size, image_size, 3], RGB.

        Returns:
            float32, [n, classes], by network; and of "ensemble" where several students answer.
        """
        size = len(images) if self.plan.device != "cpu" else self._together(images)
        with torch.inference_mode():
            parts = [self._logits(images[start : start + size]) for start in range(0, len(images), size)]
            logits = {name: torch.cat([part[name] for part in parts]) for name in self.plan.names}
            if len(logits) == 1:  # nothing to average, and a teacher is no part of an ensemble
                found = {name: torch.softmax(values, dim=1) for name, values in logits.items()}
            else:
                found = ensemble_probabilities(logits, average=self.plan.average)
        return {name: value.cpu().numpy() for name, value in found.items()}

    def _together(self, images: Images) -> int:
        """How many tiles a CPU takes at a time."""
        if self.plan.runtime == "onnx":
            return _TILES_FOR_ONNX
        return max(1, _PIXELS_FOR_TORCH // int(images[0, :, :, 0].size))

    def _torch_logits(self) -> Callable[[Images], dict[str, Tensor]]:
        names, module = self.plan.names, _Logits(self.networks).to(self.plan.device)

        def logits(images: Images) -> dict[str, Tensor]:
            return dict(zip(names, module(torch.from_numpy(images).to(self.plan.device)), strict=True))

        return logits


def _onnx_logits(path: Path, names: Sequence[str]) -> Callable[[Images], dict[str, Tensor]]:
    runtime = require("onnxruntime", extra="deploy")
    options: Any = runtime.SessionOptions()
    # Several tiles at a time come from several threads; more of them within one would wait for each other.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def logits(images: Images) -> dict[str, Tensor]:
        answers = session.run(list(names), {INPUT_NAME: images})
        return dict(zip(names, map(torch.from_numpy, answers), strict=True))

    return logits
