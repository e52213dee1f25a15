"""A classifier of a run as a file: written, compared with the one that was evaluated, and timed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kdml_med.deploy.export.formats import require, to_onnx, to_torchscript
from kdml_med.deploy.export.int8 import quantize
from kdml_med.deploy.export.metadata import as_properties, as_text, describe_classifier
from kdml_med.deploy.export.modules import ExportedClassifier
from kdml_med.deploy.export.parity import (
    Tiles,
    compare,
    compare_on_noise,
    draw_tiles,
    recorded_evaluation,
)
from kdml_med.deploy.export.runtimes import Answer, eager_answer, load_answer, runtimes_of
from kdml_med.deploy.export.speed_table import Entry, measure
from kdml_med.keys import NetworkName, Split
from kdml_med.runs import METRICS_FILE, RunDescription, checkpoint_path, load_network, read_run_json

INT8 = "onnx-int8"
SUFFIXES = {"torchscript": ".ts", "onnx": ".onnx", INT8: ".int8.onnx"}
"""File name endings by format."""


@dataclass(frozen=True)
class ClassifierExport:
    """What is exported, and from where.

    Attributes:
        run_dir: folder of the run.
        run: its description.
        network: a network's name, or "ensemble".
        parts: names of the networks inside.
        format: key of ``SUFFIXES``.
        dataset_dir: real tiles; None where there are none.
    """

    run_dir: Path
    run: RunDescription
    network: str
    parts: tuple[str, ...]
    format: str
    dataset_dir: Path | None

    @property
    def image_size(self) -> int:
        """Side of the input, pixels."""
        return int(self.run.image_size)  # type: ignore[arg-type]

    def module(self) -> ExportedClassifier:
        """The networks with their best weights, from pixels to probabilities."""
        networks = {name: load_network(self.run_dir, name) for name in self.parts}
        return ExportedClassifier(networks, average=self.run.ensemble_average or "probabilities")

    def describe(self) -> dict[str, Any]:
        """Metadata of the file."""
        described = describe_classifier(self.run, self.run_dir, network=self.network, parts=self.parts)
        return described | {"format": self.format}


def check_libraries(format: str) -> None:
    """Refuse a format before work whose libraries are not there.

    Raises:
        InputError: says what to install.
    """
    for library in () if format == "torchscript" else ("onnx", "onnxruntime"):
        require(library, extra="deploy")


def write_classifier(export: ClassifierExport, path: Path, *, calibration: Tiles | None) -> dict[str, Any]:
    """Write the file.

    Args:
        export: what.
        path: of the file.
        calibration: tiles for int8.

    Returns:
        Its metadata.

    Raises:
        InputError: the networks cannot be written in this format.
    """
    described = export.describe()
    if calibration is not None:
        patients = int(calibration.dataset.rows["patient_id"].nunique())
        described["calibration"] = {"split": "train", "n_tiles": len(calibration.dataset), "n_patients": patients}
    module = export.module()
    example = torch.zeros(2, export.image_size, export.image_size, 3, dtype=torch.uint8)
    if export.format == "torchscript":
        to_torchscript(module, example, path, metadata=as_text(described))
    elif calibration is None:
        to_onnx(module, example, path, metadata=as_properties(described))
    else:
        with tempfile.TemporaryDirectory(prefix="kdml_med_export_") as folder:
            floating = Path(folder) / "float.onnx"
            to_onnx(module, example, floating, metadata=as_properties(described))
            quantize(floating, path, calibration.pixels(export.image_size))
    return described


def draw_calibration(export: ClassifierExport, *, tiles: int, seed: int) -> Tiles | None:
    """Training tiles that ranges of int8 are read from; None for the other formats.

    Raises:
        InputError: there are none.
    """
    if export.format != INT8 or export.dataset_dir is None:
        return None
    return draw_tiles(export.run, export.dataset_dir, Split.TRAIN, limit=tiles, seed=seed, only_seen=True)


def compare_classifier(
    export: ClassifierExport, path: Path, *, split: str | None, limit: int, seed: int
) -> dict[str, Any]:
    """Compare the file with the run's networks; on random pixels where there is no dataset.

    Args:
        export: what was exported.
        path: of the file.
        split: which tiles; None for "test" where it was evaluated before, and "val" else.
        limit: most tiles.
        seed: of their choice.

    Returns:
        Content of parity.json.
    """
    answers: dict[str, Answer] = {name: load_answer(path, name) for name in runtimes_of(path)}
    if export.dataset_dir is None:
        first = next(iter(answers.values()))
        return compare_on_noise(eager_answer(export.module()), first, export.image_size)
    if split is None:
        split = Split.TEST if recorded_evaluation(export.run_dir, Split.TEST) else Split.VAL
    tiles = draw_tiles(export.run, export.dataset_dir, split, limit=limit, seed=seed)
    return compare(export.run_dir, export.run, tiles, answers, network=export.network, parts=export.parts)


def measure_classifier(
    export: ClassifierExport, path: Path, parity: Mapping[str, Any], *, batch_size: int
) -> dict[str, Any]:
    """Size and speed of the file in every runtime that is installed, beside those of the teacher.

    The teacher, and for int8 the network itself, are timed as floating-point files too: what a runtime gains, and what
    the smaller network gains within one runtime, can be told apart.

    Args:
        export: what was exported.
        path: of the file.
        parity: content of parity.json.
        batch_size: images at a time.

    Returns:
        Content of speed.json.
    """
    own = parity.get("auroc", {}).get("tile", {}).get("evaluated")
    by_runtime = {name: found["tile_auroc"] for name, found in parity.get("runtimes", {}).items()}
    teacher = NetworkName.TEACHER.value
    floating = export if export.format != INT8 else replace(export, format="onnx")
    with tempfile.TemporaryDirectory(prefix="kdml_med_speed_") as folder:
        entries: list[tuple[Entry, Answer]] = []
        if teacher in export.run.networks and export.network != teacher:
            other = replace(floating, network=teacher, parts=(teacher,))
            entries += [_eager_entry(other, _recorded_auroc(export, teacher, parity))]
            entries += _written_entries(other, Path(folder))
        entries.append(_eager_entry(export, own))
        if export.format == INT8:
            entries += _written_entries(floating, Path(folder))
        entries += _file_entries(export, path, by_runtime)
        return measure(entries, image_size=export.image_size, batch_size=batch_size)


def _recorded_auroc(export: ClassifierExport, network: str, parity: Mapping[str, Any]) -> float | None:
    """AUROC of another network on the tiles of a comparison, where an evaluation recorded it."""
    recorded = parity.get("recorded") or {}
    if "tile_auroc" not in recorded:
        return None
    folder = recorded_evaluation(export.run_dir, parity["split"])
    found: float | None = read_run_json(folder or export.run_dir, METRICS_FILE)["networks"][network]["tile"]["auroc"]
    return found


def _eager_entry(export: ClassifierExport, auroc: float | None) -> tuple[Entry, Answer]:
    size = sum(checkpoint_path(export.run_dir, name).stat().st_size for name in export.parts)
    return Entry(export.network, "checkpoint", "eager", size, auroc), eager_answer(export.module())


def _written_entries(export: ClassifierExport, folder: Path) -> list[tuple[Entry, Answer]]:
    path = folder / f"{export.network}{SUFFIXES[export.format]}"
    write_classifier(export, path, calibration=None)
    return _file_entries(export, path, {})


def _file_entries(
    export: ClassifierExport, path: Path, aurocs: Mapping[str, float | None]
) -> list[tuple[Entry, Answer]]:
    size = path.stat().st_size
    return [
        (Entry(export.network, export.format, runtime, size, aurocs.get(runtime)), load_answer(path, runtime))
        for runtime in runtimes_of(path)
    ]
