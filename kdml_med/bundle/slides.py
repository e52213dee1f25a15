"""Inference of classifiers on slides, straight from their files."""

from __future__ import annotations

import sys
from pathlib import Path

from kdml_med.bundle.evaluation_checks import prepare_evaluation
from kdml_med.bundle.settings import Settings
from kdml_med.bundle.workflow import is_command
from kdml_med.deploy.slides.predicting import predict_slides
from kdml_med.deploy.slides.prediction_folder import PREDICTION_FILE
from kdml_med.errors import ExitCode, InputError
from kdml_med.keys import NetworkName, Task
from kdml_med.runs import RunDescription

_OF_THE_TRAINING = ("stain", "image_size")
_ONLY_SLIDES = ("roi", "assume_mpp", "labels")


def prepare_inference(settings: Settings) -> None:
    """Check what is asked for, and a dataset folder where that is what is predicted.

    Raises:
        InputError: settings contradict each other; or see ``prepare_evaluation``.
    """
    run = RunDescription.read(settings["run_dir"], task=Task.CLASSIFICATION)
    run.choose(settings["network"])
    if settings["network"] == NetworkName.TEACHER and settings["students_only"]:
        raise InputError("--network teacher is asked for, but --students_only is on: leave --students_only out.")
    if settings["slides"] is not None:
        for name in _OF_THE_TRAINING:
            if settings[name] != getattr(run, name):
                raise InputError(f"--{name} is what the run was trained with ({getattr(run, name)!r}): leave it out.")
        return  # the rest is checked by what predicts
    for name in _ONLY_SLIDES:
        if settings[name] is not None:
            raise InputError(f"--{name} is for slides: name them with --slides, or leave --{name} out.")
    if (Path(settings["output_dir"]) / PREDICTION_FILE).is_file():
        raise InputError(f"{settings['output_dir']} holds a prediction of slides: name another --output_dir.")
    prepare_evaluation(settings, level=settings["level"])


def save_slides(settings: Settings) -> None:
    """Predict slides, see ``kdml_med.deploy.slides.predicting.predict_slides``.

    Args:
        settings: of the config.

    Raises:
        SystemExit: run as a command, the work is done, but some slides could not be used (``ExitCode.SOME_FAILED``).
    """
    slides = settings["slides"]
    report = predict_slides(
        settings["run_dir"],
        slides if isinstance(slides, list) else [slides],
        settings["output_dir"],
        network=settings["network"],
        device=settings["device"],
        workers=max(1, settings["num_workers"]),
        batch_size=settings["batch_size"],
        assume_mpp=settings["assume_mpp"],
        roi=settings["roi"],
        labels=settings["labels"],
        maps=settings["maps"],
        runtime=settings["runtime"],
        level=settings["level"],
        aggregation=settings["aggregation"],
        ensemble_average=settings["ensemble_average"],
    )
    print(*report.lines(), sep="\n")
    sys.stdout.flush()
    if is_command() and report.exit_code != ExitCode.OK:
        raise SystemExit(int(report.exit_code))
