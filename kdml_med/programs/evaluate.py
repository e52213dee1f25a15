"""Evaluate a run on a split of its dataset, or of another one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from kdml_med import api
from kdml_med.errors import ExitCode
from kdml_med.keys import Split
from kdml_med.programs.knobs import with_knobs


def _evaluate(
    run: Annotated[Path, Argument(help="Folder of the run.", show_default=False)],
    data: Annotated[Path | None, Option(help="Dataset folder, unless it is that of the training.")] = None,
    split: Annotated[str, Option(help=f"One of {', '.join(Split)}.")] = Split.TEST.value,
    out: Annotated[
        Path | None, Option(help="Where results go, unless to evaluation_SPLIT in the run; older ones are replaced.")
    ] = None,
    *,
    settings: dict[str, Any],
) -> ExitCode:
    """Evaluate the networks of a run with their best weights, and the ensemble of its students, with intervals.

    Patients that the run has seen in training are refused.
    """
    api.evaluate(run, data, split=split, output_dir=out, **settings)
    return ExitCode.OK


_SETTINGS = (
    "device",
    "batch_size",
    "num_workers",
    "fold",
    "level",
    "aggregation",
    "ensemble_average",
    "stain",
    "image_size",
    "fusion",
    "measure_speed",
)
evaluate = with_knobs(_evaluate, "evaluate", _SETTINGS)
