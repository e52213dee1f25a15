"""A detector of a run as a file: written, compared with the one that was evaluated, and timed."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdml_med.data.frames import FrameDataset, input_size
from kdml_med.deploy.export.detector import ExportedDetector
from kdml_med.deploy.export.detector_parity import (
    BOX_TOLERANCE_PX,
    FIGURES,
    SCORE_TOLERANCE,
    Detect,
    compare_detector,
    draw_frames,
)
from kdml_med.deploy.export.formats import require, to_onnx, to_torchscript
from kdml_med.deploy.export.int8 import quantize
from kdml_med.deploy.export.metadata import as_properties, as_text, describe_run
from kdml_med.deploy.export.modules import INPUT_NAME
from kdml_med.errors import InputError
from kdml_med.keys import NetworkName
from kdml_med.networks.boxes import IOU_THRESHOLD, MAX_CANDIDATES, MAX_DETECTIONS, SCORE_THRESHOLD
from kdml_med.runs import RunDescription, load_network, read_thresholds

INT8_OPERATIONS = ("Conv", "Clip", "Relu")
"""What is computed in integers: convolutions with their activations. Boxes and scores need more than 8 bits."""
FLOATING_CONVOLUTIONS = 3
"""The first ones of each network stay as they are: their few filters differ much in size, and on real validation frames
int8 lost two to five points of AP with them and at most 1.4 without."""


@dataclass(frozen=True)
class DetectorExport:
    """What is exported, and from where.

    Attributes:
        run_dir: folder of the run.
        run: its description.
        network: a network's name, or "ensemble".
        format: "torchscript", "onnx" or "onnx-int8".
        dataset_dir: real frames; None where there are none.
    """

    run_dir: Path
    run: RunDescription
    network: str
    format: str
    dataset_dir: Path | None

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the networks inside."""
        if self.network != NetworkName.ENSEMBLE:
            return (self.network,)
        return tuple(name for name in self.run.names if name != NetworkName.TEACHER)

    def check(self) -> None:
        """Refuse what no file can hold.

        Raises:
            InputError: the ensemble fuses boxes instead of averaging anchors.
        """
        if len(self.parts) > 1 and self.run.fusion != "anchors":
            raise InputError(
                f"the ensemble of {self.run_dir} joins the boxes of its students by weighted box fusion (--fusion "
                f"{self.run.fusion}), which no file format has: export its students one by one, or train with --fusion "
                "anchors."
            )

    def module(self) -> ExportedDetector:
        """The networks with their best weights, from stored frames to boxes."""
        networks = {name: load_network(self.run_dir, name) for name in self.parts}
        return ExportedDetector(networks, self.run.image_size)

    def describe(self) -> dict[str, Any]:
        """Metadata of the file."""
        height, width = input_size(self.run.image_size)
        return describe_run(self.run, self.run_dir, network=self.network, parts=self.parts) | {
            "format": self.format,
            "threshold": read_thresholds(self.run_dir)[self.network],
            "input": {
                "name": INPUT_NAME,
                "dtype": "uint8",
                "shape": ["batch", "height", "width", 3],
                "colours": "RGB",
                "resize": f"inside, to fit {width} x {height} px",
            },
            "outputs": {
                "boxes": _output(["detections", 4], "xmin, ymin, xmax, ymax in pixels of the frame; best first"),
                "scores": _output(["detections"], f"probability of {self.run.classes[-1]}"),
                "batch_index": _output(["detections"], "which frame of the batch a box belongs to", "int64"),
            },
            "suppression": {
                "inside": True,
                "score_threshold": SCORE_THRESHOLD,
                "iou_threshold": IOU_THRESHOLD,
                "max_candidates": MAX_CANDIDATES,
                "max_detections": MAX_DETECTIONS,
            },
        }


def _output(shape: Sequence[str | int], meaning: str, dtype: str = "float32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "meaning": meaning}


def write_detector(export: DetectorExport, path: Path, *, calibration: FrameDataset | None) -> dict[str, Any]:
    """Write the file.

    Args:
        export: what.
        path: of the file.
        calibration: frames for int8.

    Returns:
        Its metadata.

    Raises:
        InputError: the networks cannot be written in this format.
    """
    export.check()
    described = export.describe()
    if calibration is not None:
        patients = int(calibration.rows["patient_id"].nunique())
        described["calibration"] = {"split": "train", "n_frames": len(calibration), "n_patients": patients}
    module = export.module()
    height, width = input_size(export.run.image_size)
    # Neither side is that of the input, so that nothing is taken for a number that is the frame's.
    example = torch.zeros(2, 2 * height + 10, 2 * width + 30, 3, dtype=torch.uint8)
    if export.format == "torchscript":
        to_torchscript(module, example, path, metadata=as_text(described))
    elif calibration is None:
        to_onnx(module, example, path, metadata=as_properties(described))
    else:
        with tempfile.TemporaryDirectory(prefix="kdml_med_export_") as folder:
            floating = Path(folder) / "float.onnx"
            to_onnx(module, example, floating, metadata=as_properties(described))
            frames = [calibration.read(position) for position in range(len(calibration))]
            quantize(floating, path, frames, operations=INT8_OPERATIONS, floating_convolutions=FLOATING_CONVOLUTIONS)
    return described


def draw_calibration_frames(export: DetectorExport, *, frames: int, seed: int) -> FrameDataset | None:
    """Training frames that ranges of int8 are read from; None for the other formats.

    Raises:
        InputError: there are none.
    """
    if export.format != "onnx-int8" or export.dataset_dir is None:
        return None
    return draw_frames(export.run, export.dataset_dir, "train", limit=frames, seed=seed, only_seen=True)


def compare_exported_detector(
    export: DetectorExport, path: Path, *, split: str | None, limit: int, seed: int
) -> dict[str, Any]:
    """Compare the file with the run's evaluation, see ``compare_detector``; on noise where there is no dataset.

    Args:
        export: what was exported.
        path: of the file.
        split: which frames; None for "test" where it was evaluated before, and "val" else.
        limit: most frames.
        seed: of their choice.

    Returns:
        Content of parity.json.
    """
    detect = load_detector(path)
    if export.dataset_dir is None:
        return _compare_on_noise(eager_detector(export.module()), detect)
    if split is None:
        split = "test" if (export.run_dir / "evaluation_test").is_dir() else "val"
    frames = draw_frames(export.run, export.dataset_dir, split, limit=None, seed=seed)
    available = len(frames)
    if available > limit:
        frames = draw_frames(export.run, export.dataset_dir, split, limit=limit, seed=seed)
    whole = len(frames) == available
    parity = compare_detector(export.run_dir, export.run, frames, detect, network=export.network, whole=whole)
    return parity | {"n_available": available}


def _compare_on_noise(before: Detect, after: Detect) -> dict[str, Any]:
    """Largest difference on frames of noise, in which nothing is found that means anything."""
    images = np.random.default_rng(0).integers(0, 256, (4, 200, 300, 3), dtype=np.uint8)
    first, second = before(images), after(images)
    same = len(first[1]) == len(second[1])
    return {
        "split": None,
        "n_frames": len(images),
        "largest_score_difference": float(np.abs(first[1] - second[1]).max(initial=0)) if same else 1.0,
        "largest_box_difference_px": float(np.abs(first[0] - second[0]).max(initial=0)) if same else float("inf"),
    }


def alike(parity: Mapping[str, Any]) -> bool:
    """Whether a floating-point file is the model that was evaluated: a box that only one has is one between two that
    overlap by the threshold, and moves no figure.
    """
    changes = [parity["precision"][name]["change"] for name in FIGURES] if "precision" in parity else []
    return (
        parity["largest_score_difference"] <= SCORE_TOLERANCE
        and parity["largest_box_difference_px"] <= BOX_TOLERANCE_PX
        and all(change is None or abs(change) <= SCORE_TOLERANCE for change in changes)
    )


def load_detector(path: Path) -> Detect:
    """Load a file as its users do, to be computed by one thread.

    Raises:
        InputError: the runtime is not installed.
    """
    if path.suffix != ".onnx":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return eager_detector(torch.jit.load(path))
    onnxruntime = require("onnxruntime", extra="deploy")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {INPUT_NAME: images})


def eager_detector(module: Any) -> Detect:
    """The module itself."""

    def detect(images: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
        with torch.inference_mode():
            return [value.numpy() for value in module(torch.from_numpy(images.copy()))]

    return detect
