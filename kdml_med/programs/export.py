"""Write a network of a run as a file for other programs, or as a MONAI bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from kdml_med import api
from kdml_med.errors import ExitCode, InputError
from kdml_med.keys import NetworkName, Split

BUNDLE = "monai-bundle"


def export(
    run: Annotated[Path, Argument(help="Folder of the run.", show_default=False)],
    out: Annotated[Path, Option(help="Folder for model, metadata and report.", show_default=False)],
    network: Annotated[
        str | None,
        Option(help="student_0 and so on, ensemble, or teacher; student_0 (a bundle: ensemble) unless given."),
    ] = None,
    format: Annotated[str, Option(help=f"torchscript, onnx, onnx-int8 or {BUNDLE}.")] = "onnx",
    data: Annotated[
        Path | None, Option(help="Dataset folder for calibration and comparison, unless it is that of the training.")
    ] = None,
    split: Annotated[
        str | None, Option(help="What to compare on; test where the run was evaluated on it, else val, unless given.")
    ] = None,
    speed: Annotated[bool, Option(help="Time the file, the network and the teacher on this machine.")] = True,
) -> ExitCode:
    """Export a network as one file that takes pixels and behaves as the one that was evaluated.

    Everything that surrounds the network is inside; a report beside the model compares both on real images.
    """
    if format == BUNDLE:
        _write_bundle(run, out, network, data, split)
        return ExitCode.OK
    api.export(
        run, out, network=network or NetworkName.student(0), format=format, dataset_dir=data, split=split,
        measure_speed=speed,
    )  # fmt: skip
    return ExitCode.OK


def _write_bundle(run: Path, out: Path, network: str | None, data: Path | None, split: str | None) -> None:
    from kdml_med.bundle.model_bundle import write_model_bundle

    if data is not None:
        raise InputError(f"--data has no part in the format {BUNDLE}: leave it out.")
    if split is not None and split not in list(Split):
        raise InputError(f"--split is {split!r}, expected one of {', '.join(Split)}.")
    name = network or NetworkName.ENSEMBLE.value
    print(f"Written to {write_model_bundle(run, out, network=name, split=split or Split.TEST)}")
