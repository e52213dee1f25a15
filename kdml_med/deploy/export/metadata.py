"""What an exported file says about itself, inside it and in the model.json beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kdml_med.data.frames import input_size
from kdml_med.deploy.export.modules import BATCH_AXIS, INPUT_NAME
from kdml_med.keys import NetworkName, Task
from kdml_med.networks.boxes import IOU_THRESHOLD, MAX_CANDIDATES, MAX_DETECTIONS, SCORE_THRESHOLD
from kdml_med.pixels import IMAGENET_MEAN, IMAGENET_STD
from kdml_med.runs import RunDescription, hash_checkpoints
from kdml_med.words import RESEARCH_ONLY

MODEL_FILE = "model.json"
SCHEMA_VERSION = 1
"""Of model.json and of the metadata inside the files."""

_OF_TILES = ("tile_size_px", "mpp", "stain", "tile_options", "level", "aggregation")
_OF_FRAMES = ("frame_size_px", "frame_options", "fusion")


def describe_run(run: RunDescription, run_dir: Path, *, network: str, parts: Sequence[str]) -> dict[str, Any]:
    """What holds for a file of either task.

    Args:
        run: description of the run.
        run_dir: its folder.
        network: what is exported: a network's name, or "ensemble".
        parts: names of the networks inside.

    Returns:
        Plain values by name, for JSON.
    """
    own = _OF_FRAMES if run.task is Task.DETECTION else _OF_TILES
    return {
        "schema_version": SCHEMA_VERSION,
        "task": str(run.task),
        "classes": run.classes,
        "positive_class": run.classes[-1],
        "network": network,
        "architectures": {name: run.networks[name] for name in parts},
        "version": run.version,
        "image_size": run.image_size,
        **{name: getattr(run, name) for name in own},
        "normalization": {"inside": True, "scale": 1 / 255, "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)},
        "synthetic": run.synthetic,
        "note": RESEARCH_ONLY,
        "run": {
            "kdml_med": run.kdml_med,
            "fold": run.fold,
            "weights_sha256": hash_checkpoints(run_dir, parts),
        },
        "kdml_med": version("kdml_med"),
    }


def describe_classifier(run: RunDescription, run_dir: Path, *, network: str, parts: Sequence[str]) -> dict[str, Any]:
    """Likewise with what a classifier takes and gives."""
    height, width = input_size(run.image_size)
    described = describe_run(run, run_dir, network=network, parts=parts) | {
        "input": {
            "name": INPUT_NAME,
            "dtype": "uint8",
            "shape": [BATCH_AXIS, height, width, 3],
            "colours": "RGB",
            "resize": _resizing(run, height),
            "stain": _staining(run),
        },
        "outputs": {
            "probability": _output(
                "float32",
                [BATCH_AXIS, len(run.classes)],
                f"probability of each class in the order of classes; {run.classes[-1]} is the last",
            )
        },
    }
    if network == NetworkName.ENSEMBLE:
        described["ensemble_average"] = run.ensemble_average
    return described


def describe_detector(run: RunDescription, run_dir: Path, *, network: str, parts: Sequence[str]) -> dict[str, Any]:
    """Likewise with what a detector takes and gives."""
    height, width = input_size(run.image_size)
    return describe_run(run, run_dir, network=network, parts=parts) | {
        "input": {
            "name": INPUT_NAME,
            "dtype": "uint8",
            "shape": [BATCH_AXIS, "height", "width", 3],
            "colours": "RGB",
            "resize": f"inside, to fit {width} x {height} px",
        },
        "outputs": {
            "boxes": _output("float32", ["detections", 4], "xmin, ymin, xmax, ymax in pixels of the frame; best first"),
            "scores": _output("float32", ["detections"], f"probability of {run.classes[-1]}"),
            "batch_index": _output("int64", ["detections"], "which frame of the batch a box belongs to"),
        },
        "suppression": {
            "inside": True,
            "score_threshold": SCORE_THRESHOLD,
            "iou_threshold": IOU_THRESHOLD,
            "max_candidates": MAX_CANDIDATES,
            "max_detections": MAX_DETECTIONS,
        },
    }


def _output(dtype: str, shape: Sequence[str | int], meaning: str) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "meaning": meaning}


def _staining(run: RunDescription) -> str | None:
    if run.stain == "none":
        return None
    return f"stains are normalised ({run.stain}), slide by slide, before tiles come in; the file does not do it"


def _resizing(run: RunDescription, side: int) -> str | None:
    if run.tile_size_px == side:
        return None
    what = "tiles of other sizes" if run.tile_size_px is None else f"tiles of {run.tile_size_px} px"
    return f"{what} are resized to {side} px by Pillow, bicubic, before they come in"


def as_text(described: Mapping[str, Any]) -> str:
    """As the JSON of model.json."""
    return json.dumps(described, indent=2, sort_keys=True, ensure_ascii=False)


def as_properties(described: Mapping[str, Any]) -> dict[str, str]:
    """Texts by name for a format that holds nothing else: each value as JSON."""
    return {name: json.dumps(value, sort_keys=True, ensure_ascii=False) for name, value in described.items()}


def from_properties(properties: Mapping[str, str]) -> dict[str, Any]:
    """What ``as_properties`` was given."""
    return {name: json.loads(text) for name, text in properties.items()}
