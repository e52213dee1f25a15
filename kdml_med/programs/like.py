"""What ``--like RUN`` takes over: how the data of a training were prepared, and new ones have to be.

Whoever names a run has torch, which reading it needs; preparing data does without.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdml_med.errors import InputError
from kdml_med.keys import Task

_OPTIONS = {"tile_size_px": "tile-size", "size_px": "size", "image_format": "format", "min_box_px": "min-box"}


def tiles_like(run_dir: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of tiling: those of a run's tiles, and what else was given.

    Args:
        run_dir: of a run for classification.
        given: by attribute of ``TilingOptions``; None for what was not given.

    Raises:
        InputError: no such run, it does not know how its tiles were cut, or an option contradicts it.
    """
    from kdml_med.runs import RunDescription

    run = RunDescription.read(run_dir, task=Task.CLASSIFICATION)
    if run.mpp is None or run.tile_size_px is None:
        raise InputError(
            f"the run {run_dir} was trained on imported tiles without a resolution or of several sizes, so that others "
            "cannot be cut like them: leave --like out, and say --mpp and --tile-size."
        )
    return _take_over(run_dir, {"mpp": run.mpp, "tile_size_px": run.tile_size_px, **run.tile_options}, given)


def frames_like(run_dir: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of frames: those of a run's frames, and what else was given.

    Args:
        run_dir: of a run for detection.
        given: by attribute of ``FrameOptions``; None for what was not given.

    Raises:
        InputError: no such run, or an option contradicts it.
    """
    from kdml_med.runs import RunDescription

    run = RunDescription.read(run_dir, task=Task.DETECTION)
    size = {} if run.frame_size_px is None else {"size_px": run.frame_size_px}
    return _take_over(run_dir, size | run.frame_options, given)


def _take_over(run_dir: Path, taken: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    stated = {name: value for name, value in given.items() if value is not None}
    for name, value in stated.items():
        if name in taken and value != taken[name]:
            option = _OPTIONS.get(name, name.replace("_", "-"))
            raise InputError(
                f"--{option} is {value}, but the run {run_dir} was trained with {taken[name]}: leave --{option} or "
                "--like out."
            )
    return {**taken, **stated}
