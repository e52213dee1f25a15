"""What exports of classifiers and of detectors have in common: written, described and timed in one way."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from kdml_med.deploy.export.drawing import Drawn, recorded_evaluation, usable_evaluation
from kdml_med.deploy.export.formats import to_onnx, to_torchscript
from kdml_med.deploy.export.int8 import quantize
from kdml_med.deploy.export.metadata import as_properties, as_text
from kdml_med.deploy.export.runtimes import Answer, eager_answer, load_answer, runtimes_of
from kdml_med.deploy.export.speed_table import Entry, measure
from kdml_med.errors import InputError
from kdml_med.keys import NetworkName, Split
from kdml_med.runs import METRICS_FILE, RunDescription, checkpoint_path, load_network, read_run_json

INT8 = "onnx-int8"
SUFFIXES = {"torchscript": ".ts", "onnx": ".onnx", INT8: ".int8.onnx"}
"""File name endings by format."""


@dataclass(frozen=True)
class Export(ABC):
    """What is exported, and from where.

    Attributes:
        run_dir: folder of the run.
        run: its description.
        network: a network's name, or "ensemble".
        format: key of ``SUFFIXES``.
        dataset_dir: real images; None where there are none.
    """

    run_dir: Path
    run: RunDescription
    network: str
    format: str
    dataset_dir: Path | None

    unit: ClassVar[str]
    """What an image is called: "tile" or "frame"."""
    figure: ClassVar[str]
    """Name of the figure in the speed table."""
    quantization: ClassVar[Mapping[str, Any]]
    """How int8 is made, see ``quantize``."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the networks inside."""
        return self.run.choose(self.network)

    @property
    def file_name(self) -> str:
        """Name of the file."""
        return f"{self.network}{SUFFIXES[self.format]}"

    def networks(self) -> dict[str, nn.Module]:
        """The networks inside, with their best weights."""
        return {name: load_network(self.run_dir, name) for name in self.parts}

    def check(self) -> None:
        """Refuse what no file can hold with an InputError; here nothing."""
        return

    @abstractmethod
    def module(self) -> nn.Module:
        """The networks with everything that surrounds them, see ``kdml_med.deploy.export.modules.Exportable``."""

    @abstractmethod
    def example(self) -> Tensor:
        """Images that the module is traced with."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Metadata of the file."""

    @abstractmethod
    def draw(self, dataset_dir: Path, split: str, *, limit: int, seed: int, only_seen: bool = False) -> Drawn[Any]:
        """Real images, see ``kdml_med.deploy.export.drawing.draw``."""

    @abstractmethod
    def pixels(self, images: Drawn[Any]) -> Sequence[npt.NDArray[np.uint8]]:
        """Images as the file takes them, uint8 [height, width, 3] each."""

    @abstractmethod
    def compare(self, images: Drawn[Any], answers: Mapping[str, Answer]) -> dict[str, Any]:
        """Content of parity.json: the file, by the runtime that computes it, against the evaluation of the run."""

    @abstractmethod
    def compare_on_noise(self, answer: Answer) -> dict[str, Any]:
        """Likewise on random pixels, where there are no images."""

    @abstractmethod
    def alike(self, parity: Mapping[str, Any]) -> bool:
        """Whether differences are those of the arithmetic of another runtime."""

    @abstractmethod
    def differences_text(self, parity: Mapping[str, Any]) -> str:
        """How far both are apart and how far they may be, as part of a sentence."""

    @abstractmethod
    def parity_text(self, parity: Mapping[str, Any]) -> str:
        """A parity.json for a terminal."""

    @abstractmethod
    def figures(self, parity: Mapping[str, Any]) -> tuple[float | None, Mapping[str, float | None]]:
        """From a parity.json with images: the figure of the evaluated network, and of the file by runtime."""

    @abstractmethod
    def recorded_figure(self, metrics: Mapping[str, Any]) -> float | None:
        """The figure of a network from its part of a metrics.json."""

    @abstractmethod
    def timed_images(self, images: Drawn[Any] | None) -> list[npt.NDArray[np.uint8]]:
        """Images to time with, uint8 [height, width, 3]; some of those that were compared, where it matters."""


def compared_split(run_dir: Path, split: str | None) -> str:
    """Which images to compare on: "test" where it was evaluated before and nothing is named, else "val"."""
    return split or (Split.TEST if recorded_evaluation(run_dir, Split.TEST) else Split.VAL)


def write_export(export: Export, path: Path, *, calibration: Drawn[Any] | None = None) -> dict[str, Any]:
    """Write the file.

    Args:
        export: what.
        path: of the file.
        calibration: training images for int8.

    Returns:
        Its metadata.

    Raises:
        InputError: the networks cannot be written in this format.
    """
    described = export.describe()
    if calibration is not None:
        counts = {f"n_{export.unit}s": len(calibration), "n_patients": calibration.patients}
        described["calibration"] = {"split": calibration.split} | counts
    module, example = export.module(), export.example()
    if export.format == "torchscript":
        to_torchscript(module, example, path, metadata=as_text(described))
    elif export.format != INT8:
        to_onnx(module, example, path, metadata=as_properties(described))
    elif calibration is None:
        raise ValueError("int8 needs images to calibrate on.")
    else:
        with tempfile.TemporaryDirectory(prefix="kdml_med_export_") as folder:
            floating = Path(folder) / "float.onnx"
            to_onnx(module, example, floating, metadata=as_properties(described))
            quantize(floating, path, export.pixels(calibration), **export.quantization)
    return described


def compare_export(export: Export, path: Path, images: Drawn[Any] | None) -> dict[str, Any]:
    """Compare a file with the run's networks, on real images where there are some; content of parity.json."""
    answers: dict[str, Answer] = {name: load_answer(path, name) for name in runtimes_of(path)}
    if images is None:
        return export.compare_on_noise(next(iter(answers.values())))
    return export.compare(images, answers)


def measure_export(
    export: Export, path: Path, parity: Mapping[str, Any], images: Drawn[Any] | None, *, batch_size: int
) -> dict[str, Any]:
    """Size and speed of the file in every runtime that is installed, beside those of the teacher.

    The teacher, and for int8 the network itself, are timed as floating-point files too: what a runtime gains, and what
    the smaller network gains within one runtime, can be told apart.

    Args:
        export: what was exported.
        path: of the file.
        parity: content of parity.json.
        images: what was compared; None where there were none.
        batch_size: images at a time.

    Returns:
        Content of speed.json; its "notes" say what of the teacher is not in the table, and why.
    """
    own, by_runtime = export.figures(parity) if parity["split"] else (None, {})
    teacher = NetworkName.TEACHER.value
    floating = replace(export, format="onnx" if export.format == INT8 else export.format)
    with tempfile.TemporaryDirectory(prefix="kdml_med_speed_") as folder:
        entries: list[tuple[Entry, Answer]] = []
        notes: list[str] = []
        if teacher in export.run.networks and export.network != teacher:
            entries, notes = _teacher_entries(replace(floating, network=teacher), parity, Path(folder))
        entries.append(_eager_entry(export, own))
        if export.format == INT8:
            entries += _written_entries(floating, Path(folder))
        entries += _file_entries(export, path, by_runtime)
        timed = [np.stack([image] * batch_size) for image in export.timed_images(images)]
        speed = measure(entries, timed, unit=export.unit, figure=export.figure, input_size=export.run.image_size)
    return speed | {"notes": notes}


def _teacher_entries(
    teacher: Export, parity: Mapping[str, Any], folder: Path
) -> tuple[list[tuple[Entry, Answer]], list[str]]:
    """What can be had of the teacher, and why the rest cannot: the export is done without it."""
    entries: list[tuple[Entry, Answer]] = []
    notes = []
    try:
        figure, problem = _recorded_figure(teacher, parity)
        notes += [f"The teacher's {teacher.figure} is left out: {problem}"] if problem else []
        entries.append(_eager_entry(teacher, figure))
        entries += _written_entries(teacher, folder)
    except InputError as error:
        notes.append(f"The teacher is not timed{f' as {teacher.format}' if entries else ''}: {error}")
    return entries, notes


def _recorded_figure(export: Export, parity: Mapping[str, Any]) -> tuple[float | None, str]:
    """Figure on the images of a comparison, where an evaluation recorded it for all of them; and why not, else ""."""
    if not parity.get("whole"):
        return None, ""
    folder, problem = usable_evaluation(export.run_dir, parity["split"], export.parts, export.dataset_dir)
    metrics = {} if folder is None else read_run_json(folder, METRICS_FILE).get("networks", {})
    return (export.recorded_figure(metrics[export.network]) if export.network in metrics else None), problem


def _eager_entry(export: Export, figure: float | None) -> tuple[Entry, Answer]:
    answer = eager_answer(export.module())
    size = sum(checkpoint_path(export.run_dir, name).stat().st_size for name in export.parts)
    return Entry(export.network, "checkpoint", "eager", size, figure), answer


def _written_entries(export: Export, folder: Path) -> list[tuple[Entry, Answer]]:
    path = folder / export.file_name
    write_export(export, path)
    return _file_entries(export, path, {})


def _file_entries(export: Export, path: Path, figures: Mapping[str, float | None]) -> list[tuple[Entry, Answer]]:
    size = path.stat().st_size
    return [
        (Entry(export.network, export.format, runtime, size, figures.get(runtime)), load_answer(path, runtime))
        for runtime in runtimes_of(path)
    ]
