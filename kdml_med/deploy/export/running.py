"""One network of a run, or the ensemble, as a file that behaves as what was evaluated."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdml_med.deploy.export.classifiers import ClassifierExport
from kdml_med.deploy.export.detectors import DetectorExport
from kdml_med.deploy.export.exports import (
    INT8,
    SUFFIXES,
    Export,
    compare_export,
    compared_split,
    measure_export,
    write_export,
)
from kdml_med.deploy.export.formats import require
from kdml_med.deploy.export.int8 import CALIBRATION_IMAGES
from kdml_med.deploy.export.metadata import MODEL_FILE
from kdml_med.deploy.export.speed_table import speed_text
from kdml_med.errors import InputError
from kdml_med.keys import Split, Task
from kdml_med.runs import SPEED_FILE, RunDescription, trained_on
from kdml_med.storage.files import write_atomically, write_json
from kdml_med.storage.locks import sole_user
from kdml_med.storage.reading import read_json
from kdml_med.words import RESEARCH_ONLY

PARITY_FILE = "parity.json"
_EXPORT_AGAIN = "Name another --out, or remove the file."


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote and found.

    Attributes:
        path: of the model.
        described: content of model.json.
        parity: content of parity.json.
        speed: content of speed.json; None where it was not measured.
    """

    path: Path
    described: dict[str, Any]
    parity: dict[str, Any]
    speed: dict[str, Any] | None


def export_run(
    run_dir: str | Path,
    out_dir: str | Path,
    *,
    network: str = "student_0",
    format: str = "onnx",
    dataset_dir: str | Path | None = None,
    split: str | None = None,
    limit: int = 2000,
    calibration_images: int = CALIBRATION_IMAGES,
    seed: int = 0,
    measure_speed: bool = True,
    batch_size: int = 1,
) -> ExportReport:
    """Write a network as one file, compare it with the one that was evaluated, and print both tables.

    Args:
        run_dir: folder of the run.
        out_dir: folder for the model, model.json, parity.json and speed.json.
        network: "student_0" and so on, "ensemble" or "teacher".
        format: "torchscript", "onnx" or "onnx-int8".
        dataset_dir: real tiles or frames for calibration and comparison; None for the dataset of the training.
        split: which of them to compare on; None for "test" where the run was evaluated on it, and "val" else.
        limit: most images to compare on, drawn by the seed.
        calibration_images: most training images that int8 is calibrated on, likewise.
        seed: of both.
        measure_speed: time the file, the network and the teacher.
        batch_size: images at a time in that.

    Raises:
        InputError: no such run, network or format; a library or the dataset is missing; the folder holds another export
            or cannot be written; the network cannot be exported, or its file gives other answers.
    """
    run_dir, out_dir = Path(run_dir), Path(out_dir)
    run = RunDescription.read(run_dir)
    _check_request(run, network, format, split)
    _check_counts(limit=limit, calibration_images=calibration_images, batch_size=batch_size)
    kind = DetectorExport if run.task is Task.DETECTION else ClassifierExport
    export: Export = kind(run_dir, run, network, format, _dataset(run_dir, dataset_dir, format))
    export.check()
    images = calibration = None
    if export.dataset_dir is not None:
        images = export.draw(export.dataset_dir, compared_split(run_dir, split), limit=limit, seed=seed)
        if format == INT8:
            calibration = export.draw(
                export.dataset_dir, Split.TRAIN, limit=calibration_images, seed=seed, only_seen=True
            )
    path = out_dir / export.file_name
    with sole_user(out_dir):
        _check_folder(out_dir, export)
        with tempfile.TemporaryDirectory(prefix="kdml_med_export_") as folder:
            draft = Path(folder) / export.file_name  # a file gets its place when it is known to be the network
            described = write_export(export, draft, calibration=calibration)
            parity = compare_export(export, draft, images)
            _check_alike(export, path, parity)
            write_atomically(path, draft.read_bytes())
        write_json(out_dir / MODEL_FILE, described | {"file": path.name})
        # Before anything is timed: whatever becomes of that, the file is there and is the network.
        print(f"\n{export.parity_text(parity)}\n\n{RESEARCH_ONLY}.\nWritten to {path}\n")
        speed = None
        if measure_speed:
            speed = measure_export(export, path, parity, images, batch_size=batch_size)
            write_json(out_dir / SPEED_FILE, speed)
            print(f"{speed_text(speed)}\n")
    return ExportReport(path, described, parity, speed)


def _check_request(run: RunDescription, network: str, format: str, split: str | None) -> None:
    run.choose(network)
    if format not in SUFFIXES:
        raise InputError(f"--format is {format!r}, expected one of {', '.join(SUFFIXES)}.")
    if split is not None and split not in list(Split):
        raise InputError(f"--split is {split!r}, expected one of {', '.join(Split)}.")
    for library in () if format == "torchscript" else ("onnx", "onnxruntime"):
        require(library, extra="deploy")


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name} is {count}, expected a number of images from 1 on.")


def _dataset(run_dir: Path, named: str | Path | None, format: str) -> Path | None:
    if named is not None:
        return Path(named)
    try:
        return trained_on(run_dir)
    except InputError:
        if format == INT8:  # cannot be had without tiles
            raise
        return None


def _check_folder(out_dir: Path, export: Export) -> None:
    """Refuse a folder with another export, whose files would be told apart by nothing."""
    path = out_dir / MODEL_FILE
    if not path.is_file():
        return
    there, own = read_json(path, remedy=_EXPORT_AGAIN), export.describe()
    for name in ("network", "format", "run"):
        if there.get(name) != own[name]:
            what = "of another run" if name == "run" else f"with the {name} {there.get(name)!r}"
            raise InputError(f"{out_dir} holds an export {what}: name another --out.")


def _check_alike(export: Export, path: Path, parity: dict[str, Any]) -> None:
    """Write parity.json, and refuse a floating-point file that is not the model that was evaluated."""
    floating = export.format != INT8
    alike = export.alike(parity)
    parity["passed"] = alike if floating else None
    write_json(path.parent / PARITY_FILE, parity)
    if floating and not alike:
        for earlier in (path, path.parent / MODEL_FILE):
            earlier.unlink(missing_ok=True)
        raise InputError(
            f"the {export.format} file of {export.network} gives {export.differences_text(parity)}. It was not kept; "
            f"{path.parent / PARITY_FILE} has the figures. A network whose forward pass depends on the image cannot be "
            "exported."
        )
