"""Train a cohort on a dataset folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from kdml_med import api
from kdml_med.bundle.settings import KNOBS
from kdml_med.errors import ExitCode
from kdml_med.programs.knobs import with_knobs


def _train(
    data: Annotated[Path, Argument(help="Dataset folder with splits.", show_default=False)],
    run: Annotated[Path, Option(help="Folder of the run; the same one again goes on.", show_default=False)],
    *,
    settings: dict[str, Any],
) -> ExitCode:
    """Train a teacher and its students at the same time; a training that was cut off goes on.

    Tiles give classifiers, frames give detectors. The same as the training command of the bundles, with the same
    settings.
    """
    api.train(data, run, **settings)
    print(f"Next: kdml-med evaluate {run}")
    return ExitCode.OK


_PLACES = ("dataset_dir", "run_dir")
train = with_knobs(
    _train, "train", dict.fromkeys(knob.name for knob in KNOBS if "train" in knob.stages and knob.name not in _PLACES)
)
