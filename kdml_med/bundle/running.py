"""One of our bundle configs run in this process, for the console command and for Python."""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow

from kdml_med.bundle.folders import bundle_dir
from kdml_med.bundle.knobs import Stage
from kdml_med.bundle.settings import check_settings, knobs_of
from kdml_med.bundle.workflow import check_names, read_configs
from kdml_med.engines.processes import ending_together, launched
from kdml_med.errors import InputError
from kdml_med.keys import Task

__all__ = ["bundle_dir", "run_config"]

_FILES: dict[Stage, tuple[str, ...]] = {
    "train": ("train.json",),
    "evaluate": ("train.json", "evaluate.json"),
    "inference": ("inference.json",),
}
# As in the bundles' logging.conf. An error that ends an engine is said where it ends the program.
_LEVELS = {
    "monai": logging.WARNING,
    "monai.bundle.workflows": logging.ERROR,  # it warns that logging is left to us
    "ignite": logging.WARNING,
    "ignite.engine.engine": logging.CRITICAL,
    "kdml_med": logging.INFO,
}


def run_config(task: Task | str, stage: Stage, **settings: Any) -> Any:
    """Run one of our bundle's configs in this process, as ``python -m monai.bundle run`` does.

    Settings are checked by name and value before anything else. The seeds and deterministic algorithms of the run stay
    within it, the state of the random generators does not. Processes that a launcher such as torchrun started train
    together.

    Args:
        task: "classification" or "detection".
        stage: "train", "evaluate" or "inference".
        **settings: of the config, see ``kdml_med.bundle.knobs``; ``run_dir`` always, ``dataset_dir`` for
            training and evaluation. A part below them goes by its path, such as ``**{"optimizer#betas": [0.9, 0.99]}``.

    Returns:
        What the evaluation of the config returned: the content of metrics.json for training and evaluation.

    Raises:
        InputError: a setting does not exist or makes no sense, or data or run do not fit; in the words of the bundle.
    """
    task = Task(task)
    needed = ["run_dir"] if stage == "inference" else ["dataset_dir", "run_dir"]
    missing = [name for name in needed if settings.get(name) is None]
    if missing:
        raise InputError(f"{missing[0]} is not given: defaults of a config are for the config in its own folder.")
    configs = bundle_dir(task) / "configs"
    files = [configs / name for name in _FILES[stage]]
    if stage == "train" and launched() > 1:
        files.append(configs / "multi_gpu_train.json")
    with ending_together():
        check_names(settings, read_configs(files), task)
        knobs = {knob.name for knob in knobs_of(task, stage)}
        checked = check_settings(task, stage, {name: value for name, value in settings.items() if name in knobs})
        with _said_as_programs_do(), _own_determinism():
            return _run(files, settings | {name: checked[name] for name in knobs.intersection(settings)})


def _run(files: list[Path], settings: Mapping[str, Any]) -> Any:
    # An argument of MONAI, which puts its parts into the config; it need not write the config into a folder of its own.
    tracked = {"save_execute_config": False} if settings.get("tracking", "none") != "none" else {"tracking": None}
    try:
        # Not monai.bundle.run: it warns, four lines each time, that a config is code. Ours is this package's.
        workflow = ConfigWorkflow(
            config_file=[str(file) for file in files], logging_file=False, **{**settings, **tracked}
        )
        workflow.initialize()
        answers = workflow.run()
        workflow.finalize()
    finally:
        # Engines and handlers refer to each other in circles, and hold on to networks and optimiser.
        gc.collect()
    return next((answer for answer in answers if answer is not None), None)


@contextlib.contextmanager
def _said_as_programs_do() -> Iterator[None]:
    """What the bundle says is shown, on the screen where nobody has set up logging; what engines say is not."""
    loggers = {name: logging.getLogger(name) for name in _LEVELS}
    levels = {name: logger.level for name, logger in loggers.items()}
    own = loggers["kdml_med"]
    screen = None if own.hasHandlers() else logging.StreamHandler(sys.stdout)
    for name, logger in loggers.items():
        logger.setLevel(_LEVELS[name])
    if screen is not None:
        own.addHandler(screen)
    try:
        yield
    finally:
        if screen is not None:
            own.removeHandler(screen)
        for name, logger in loggers.items():
            logger.setLevel(levels[name])


@contextlib.contextmanager
def _own_determinism() -> Iterator[None]:
    """Leave torch's switches to the program around as they were."""
    strict = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
