"""What a run says about its networks in the words of a MONAI bundle's metadata.json."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kdml_med.data.frames import input_size
from kdml_med.keys import NetworkName, Task
from kdml_med.runs import RunDescription
from kdml_med.storage.files import write_json
from kdml_med.words import NO_DEVICE

METADATA_FILE = "metadata.json"
"""In the run folder: what MONAI's own exports of one network of the run put into their files."""
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
BUNDLE_VERSION = "0.1.0"

_PACKAGES = ("pytorch-ignite", "pandas", "pyarrow", "pillow", "simplejpeg")
_WHAT = {Task.CLASSIFICATION: "tiles of whole-slide images", Task.DETECTION: "colonoscopy frames"}
_REFERENCE = (
    "Niyaz, Bathula: Augmenting Knowledge Distillation With Peer-To-Peer Mutual Learning For Model Compression. ISBI "
    "2022, arXiv:2110.11023"
)


def network_metadata(run: RunDescription) -> dict[str, Any]:
    """Metadata of one network of a run as training builds it: normalised images in, logits out."""
    return _metadata(run, "one network of the cohort", _raw_output(run))


def answer_metadata(run: RunDescription, network: str) -> dict[str, Any]:
    """Metadata of a network or the ensemble as ``AnswerNetwork``: normalised images in, probabilities or boxes out."""
    what = "the ensemble of the students" if network == NetworkName.ENSEMBLE else network
    return _metadata(run, what, _answer_output(run))


def write_network_metadata(run_dir: str | Path, run: RunDescription) -> None:
    """Write metadata.json of a run."""
    write_json(Path(run_dir) / METADATA_FILE, network_metadata(run))


def _metadata(run: RunDescription, network: str, output: dict[str, Any]) -> dict[str, Any]:
    positive, what = run.classes[-1], _WHAT[run.task]
    detection = run.task is Task.DETECTION
    task = (
        f"Detection of {positive} in {what}" if detection else f"{' or '.join(run.classes)}: classification of {what}"
    )
    return {
        "schema": SCHEMA,
        "version": BUNDLE_VERSION,
        "changelog": {BUNDLE_VERSION: "written from a finished run"},
        "monai_version": _version("monai"),
        "pytorch_version": _version("torch").partition("+")[0],
        "numpy_version": _version("numpy"),
        "required_packages_version": {"kdml_med": run.kdml_med} | {name: _version(name) for name in _PACKAGES},
        "name": f"{positive} by online distillation and mutual learning",
        "task": task,
        "description": f"{task}, by {network}, version {run.version} of kdml_med's cohorts of a teacher and students.",
        "authors": "the users of kdml_med who trained it",
        "copyright": "Copyright (c) those who trained it",
        "data_source": "generated data, which say nothing about patients" if run.synthetic else "see docs/README.md",
        "data_type": what,
        "image_classes": f"RGB, {_scale(run)}, 0..1, normalised with the ImageNet mean and standard deviation",
        "label_classes": "boxes xmin, ymin, xmax, ymax in pixels" if detection else _numbered(run.classes),
        "pred_classes": ", ".join(output["channel_def"].values()),
        "eval_metrics": {},
        "intended_use": NO_DEVICE,
        "references": [_REFERENCE],
        "network_data_format": {"inputs": {"image": _input(run)}, "outputs": {"pred": output}},
    }


def _scale(run: RunDescription) -> str:
    height, width = input_size(run.image_size)
    if run.task is Task.DETECTION:
        return f"scaled to fit {width} x {height} px, upper left, black around"
    return f"{height} x {width} px" + (f" at {run.mpp:g} µm/px" if run.mpp else "")


def _input(run: RunDescription) -> dict[str, Any]:
    return {
        "type": "image",
        "format": "magnitude",
        "modality": "endoscopy" if run.task is Task.DETECTION else "H&E",
        "num_channels": 3,
        "spatial_shape": [*input_size(run.image_size)],
        "dtype": "float32",
        "value_range": [-2.2, 2.7],
        "is_patch_data": False,
        "channel_def": {"0": "red", "1": "green", "2": "blue"},
    }


def _output(type_: str, format_: str, channels: list[str], value_range: list[float]) -> dict[str, Any]:
    return {
        "type": type_,
        "format": format_,
        "num_channels": len(channels),
        "spatial_shape": [],
        "dtype": "float32",
        "value_range": value_range,
        "is_patch_data": False,
        "channel_def": {str(place): channel for place, channel in enumerate(channels)},
    }


def _raw_output(run: RunDescription) -> dict[str, Any]:
    if run.task is Task.DETECTION:
        deltas = [f"delta of the {what}" for what in ("centre, x", "centre, y", "width", "height")]
        return _output("object", "boxes", [f"logit of {run.classes[-1]}", *deltas], [])
    return _output("logits", "classes", run.classes, [])


def _answer_output(run: RunDescription) -> dict[str, Any]:
    if run.task is Task.DETECTION:
        sides = [f"{side} of each anchor's box, pixels of the input" for side in ("xmin", "ymin", "xmax", "ymax")]
        return _output("object", "boxes", [*sides, f"probability of {run.classes[-1]}"], [])
    return _output("probabilities", "classes", run.classes, [0, 1])


def _numbered(classes: list[str]) -> str:
    return ", ".join(f"{place} = {name}" for place, name in enumerate(classes))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "0"
