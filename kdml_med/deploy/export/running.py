"""One network of a run, or the ensemble, as a file that behaves as what was evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdml_med.deploy.export.classifiers import (
    INT8,
    SUFFIXES,
    ClassifierExport,
    check_libraries,
    compare_classifier,
    draw_calibration,
    measure_classifier,
    write_classifier,
)
from kdml_med.deploy.export.detector_report import detector_parity_text, detector_speed_text, measure_detector
from kdml_med.deploy.export.detectors import (
    DetectorExport,
    alike,
    compare_exported_detector,
    draw_calibration_frames,
    write_detector,
)
from kdml_med.deploy.export.int8 import CALIBRATION_TILES
from kdml_med.deploy.export.metadata import MODEL_FILE
from kdml_med.deploy.export.parity import PARITY_FILE, TOLERANCE
from kdml_med.deploy.export.parity_text import parity_text
from kdml_med.deploy.export.speed_table import speed_text
from kdml_med.deploy.wording import RESEARCH_ONLY
from kdml_med.errors import InputError
from kdml_med.keys import Split, Task
from kdml_med.runs import SPEED_FILE, RunDescription, trained_on
from kdml_med.storage.files import write_json
from kdml_med.storage.folder import sole_user
from kdml_med.storage.reading import read_json

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
    limit_tiles: int = 2000,
    calibration_tiles: int = CALIBRATION_TILES,
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
        dataset_dir: real tiles for calibration and comparison; None for the dataset of the training.
        split: tiles to compare on; None for "test" where the run was evaluated on it, and "val" else.
        limit_tiles: most tiles to compare on, drawn by the seed.
        calibration_tiles: most training tiles that int8 is calibrated on, likewise.
        seed: of both.
        measure_speed: time the file, the network and the teacher.
        batch_size: images at a time in that.

    Raises:
        InputError: no such run, network or format; a library or the dataset is missing; the folder holds another export
            or cannot be written; the network cannot be exported, or its file gives other probabilities.
    """
    run_dir, out_dir = Path(run_dir), Path(out_dir)
    run = RunDescription.read(run_dir)
    _check_request(run, network, format, split)
    if run.task is Task.DETECTION:
        detector = DetectorExport(run_dir, run, network, format, _dataset(run_dir, dataset_dir, format))
        drawn = {"split": split, "limit": limit_tiles, "seed": seed}
        return _export_detector(detector, out_dir, drawn, calibration_tiles, measure_speed=measure_speed)
    parts = run.choose(network)
    export = ClassifierExport(run_dir, run, network, parts, format, _dataset(run_dir, dataset_dir, format))
    with sole_user(out_dir):
        path = out_dir / f"{network}{SUFFIXES[format]}"
        _check_folder(out_dir, export)
        calibration = draw_calibration(export, tiles=calibration_tiles, seed=seed)
        described = write_classifier(export, path, calibration=calibration)
        parity = compare_classifier(export, path, split=split, limit=limit_tiles, seed=seed)
        _keep_if_alike(export, path, parity)
        write_json(out_dir / MODEL_FILE, described | {"file": path.name})
        print(f"\n{parity_text(parity, network=network, format=format)}\n")
        speed = None
        if measure_speed:
            speed = measure_classifier(export, path, parity, batch_size=batch_size)
            write_json(out_dir / SPEED_FILE, speed)
            print(f"{speed_text(speed)}\n")
    print(f"{RESEARCH_ONLY}.\nWritten to {path}\n")
    return ExportReport(path, described, parity, speed)


def _export_detector(
    export: DetectorExport, out_dir: Path, drawn: Mapping[str, Any], calibration_frames: int, *, measure_speed: bool
) -> ExportReport:
    export.check()
    with sole_user(out_dir):
        path = out_dir / f"{export.network}{SUFFIXES[export.format]}"
        _check_folder(out_dir, export)
        calibration = draw_calibration_frames(export, frames=calibration_frames, seed=drawn["seed"])
        described = write_detector(export, path, calibration=calibration)
        parity = compare_exported_detector(export, path, **drawn)
        floating = export.format != INT8
        parity |= {"passed": alike(parity) if floating else None}
        write_json(out_dir / PARITY_FILE, parity)
        if floating and not parity["passed"]:
            path.unlink()
            raise InputError(
                f"the {export.format} file of {export.network} gives other boxes than the network; it was removed, "
                f"{out_dir / PARITY_FILE} has the figures."
            )
        write_json(out_dir / MODEL_FILE, described | {"file": path.name})
        print(f"\n{detector_parity_text(parity, network=export.network, format=export.format)}\n")
        speed = None
        if measure_speed:
            speed = measure_detector(export, path)
            write_json(out_dir / SPEED_FILE, speed)
            print(f"{detector_speed_text(speed)}\n")
    print(f"{RESEARCH_ONLY}.\nWritten to {path}\n")
    return ExportReport(path, described, parity, speed)


def _check_request(run: RunDescription, network: str, format: str, split: str | None) -> None:
    run.choose(network)
    if format not in SUFFIXES:
        raise InputError(f"--format is {format!r}, expected one of {', '.join(SUFFIXES)}.")
    if split is not None and split not in list(Split):
        raise InputError(f"--split is {split!r}, expected one of {', '.join(Split)}.")
    check_libraries(format)


def _dataset(run_dir: Path, named: str | Path | None, format: str) -> Path | None:
    if named is not None:
        return Path(named)
    try:
        return trained_on(run_dir)
    except InputError:
        if format == INT8:  # cannot be had without tiles
            raise
        return None


def _check_folder(out_dir: Path, export: ClassifierExport | DetectorExport) -> None:
    """Refuse a folder with another export, whose files would be told apart by nothing."""
    path = out_dir / MODEL_FILE
    if not path.is_file():
        return
    there, own = read_json(path, remedy=_EXPORT_AGAIN), export.describe()
    for name in ("network", "format", "run"):
        if there.get(name) != own[name]:
            what = "of another run" if name == "run" else f"with the {name} {there.get(name)!r}"
            raise InputError(f"{out_dir} holds an export {what}: name another --out.")


def _keep_if_alike(export: ClassifierExport, path: Path, parity: dict[str, Any]) -> None:
    """Write parity.json, and take a floating-point file away again that is not the model that was evaluated."""
    floating = export.format != INT8
    alike = parity["largest_difference"] <= TOLERANCE
    parity |= {"tolerance": TOLERANCE if floating else None, "passed": alike if floating else None}
    write_json(path.parent / PARITY_FILE, parity)
    if floating and not alike:
        path.unlink()
        raise InputError(
            f"the {export.format} file of {export.network} gives other probabilities than the network: the largest "
            f"difference is {parity['largest_difference']:.2g}, allowed are {TOLERANCE:g}. It was removed; "
            f"{path.parent / PARITY_FILE} has the figures. A network whose forward pass depends on the image cannot be "
            "exported."
        )
