"""Write a network of a run as a file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from kdml_med import api
from kdml_med.errors import ExitCode


def export(
    run: Annotated[Path, Argument(help="Folder of the run.", show_default=False)],
    out: Annotated[Path, Option(help="Folder for model, metadata and report.", show_default=False)],
    network: Annotated[str, Option(help="student_0 and so on, ensemble, or teacher.")] = "student_0",
    format: Annotated[str, Option(help="torchscript, onnx or onnx-int8.")] = "onnx",
    data: Annotated[
        Path | None, Option(help="Dataset folder for calibration and comparison, unless it is that of the training.")
    ] = None,
    split: Annotated[
        str | None, Option(help="What to compare on; test where the run was evaluated on it, else val, unless given.")
    ] = None,
    speed: Annotated[bool, Option(help="Time the file, the network and the teacher on this machine.")] = True,
) -> ExitCode:
    """Export a network as one file that takes pixels and behaves as the one that was evaluated.

    Normalisation and softmax are inside; a report beside the model compares both on real images.
    """
    api.export(run, out, network=network, format=format, dataset_dir=data, split=split, measure_speed=speed)
    return ExitCode.OK
