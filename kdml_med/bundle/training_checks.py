"""Settings of a training that do not go together, before anything is read or written."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from typing import get_args

from kdml_med.bundle.settings import Settings
from kdml_med.data.cache import NO_CACHE
from kdml_med.engines import processes
from kdml_med.engines.acceleration import Precision
from kdml_med.errors import InputError
from kdml_med.networks.devices import check_device, check_precision
from kdml_med.networks.registry import cohort_spec

logger = logging.getLogger(__name__)


def check_together(settings: Settings) -> None:
    """Refuse settings that contradict each other, or that this machine cannot follow.

    Raises:
        InputError: naming the option and what to do.
    """
    if settings["tracking"] == "mlflow" and find_spec("mlflow") is None:
        raise InputError("--tracking mlflow needs MLflow: pip install 'kdml_med[tracking]'.")
    check_device(settings["device"])
    cohort_spec(settings["version"], task=settings.task, students=settings["students"])  # which knows the versions
    if settings["precision"] in get_args(Precision):
        check_precision(settings["precision"], settings["device"])
    if processes.launched() > processes.world_size():
        raise InputError(
            f"{processes.launched()} processes were started, and each would train a run of its own: name "
            "multi_gpu_train.json behind train.json as --config_file, or start one."
        )
    if processes.launched() > 1 and settings["precision"] == "measure":
        raise InputError("--precision measure is for one process: several that measure at once disturb each other.")
    check_contradictions(settings)


def check_contradictions(settings: Settings) -> None:
    """Refuse settings that contradict each other on every machine.

    Raises:
        InputError: naming the option and what to do.
    """
    if settings["compile"] and settings["checkpoint_activations"] != "none":
        raise InputError("--compile decides by itself what is computed again: leave --checkpoint_activations out.")
    if settings["beta"] > 0 and not settings["use_teacher"]:
        raise InputError("--beta is above 0, but --use_teacher is off: there is nobody to learn from. Set --beta 0.")
    if settings["max_epochs"] <= settings["teacher_warmup_epochs"] and settings["beta"] > 0:
        raise InputError(
            f"--teacher_warmup_epochs {settings['teacher_warmup_epochs']} of --max_epochs {settings['max_epochs']}: "
            "students would never learn from the teacher. Take fewer, or train longer."
        )
    if settings["teacher_warmup_epochs"] and settings["teacher_checkpoint"]:
        raise InputError(
            f"--teacher_warmup_epochs {settings['teacher_warmup_epochs']} is for a teacher that learns along, and the "
            "one of --teacher_checkpoint has learned before: leave it out."
        )
    if settings["cache_teacher"] != NO_CACHE and not settings["teacher_checkpoint"]:
        raise InputError(
            "--cache_teacher keeps what a frozen teacher answers, and this one learns: name the weights of a trained "
            "one by --teacher_checkpoint, or leave it out."
        )
    if settings["own_start"] != "none" and not settings["initial_weights"]:
        raise InputError(
            "--own_start says what students do not take from --initial_weights, and there are none: leave --own_start "
            "out."
        )
    if settings.get("student_views") and settings["gamma"] > 0 and {*_each(settings["peer_link"])} != {"predictions"}:
        raise InputError(
            "--student_views turns and mirrors a tile for each student, and feature maps of peers would be compared "
            "place by place: set --peer_link to predictions, or --gamma to 0."
        )
    if settings["alpha"] == settings["beta"] == 0:
        raise InputError(
            "--alpha and --beta are 0: no student would learn from labels, by itself or by a teacher, and peers can "
            "only agree. Set one of them above 0."
        )


def _each(links: str | Sequence[str]) -> Sequence[str]:
    return [links] if isinstance(links, str) else links


def say_what_does_nothing(settings: Settings) -> None:
    """Settings that another one leaves without effect. They are not refused: a plan may vary the other one."""
    learns = settings["use_teacher"] and not settings["teacher_checkpoint"]
    students = len(cohort_spec(settings["version"], task=settings.task, students=settings["students"]).students)
    for name, heeded, condition in (
        ("ema_decay", settings["average"] == "ema", "--average ema"),
        ("swa_start", settings["average"] == "swa", "--average swa"),
        (
            "average_teaches",
            settings["average"] == "ema" and learns and settings["beta"] > 0,
            "--average ema, --beta above 0 and a teacher that learns",
        ),
        ("tracking_uri", settings["tracking"] == "mlflow", "--tracking mlflow"),
        ("checkpoint_activations", settings["checkpoint_activations"] != "teacher" or learns, "a teacher that learns"),
        ("teacher_warmup_epochs", settings["beta"] > 0, "--beta above 0"),
        ("student_views", students > 1, "several students"),
        ("own_labels", students > 1 and settings["alpha"] > 0, "several students and --alpha above 0"),
    ):
        if not heeded and settings.get(name) != settings.defaults.get(name):
            logger.warning("--%s %s does nothing: it is for %s.", name, settings[name], condition)
    _say_what_ends_too_early(settings, students)


def _say_what_ends_too_early(settings: Settings, students: int) -> None:
    """Rises that take as long as the training, so that their end is never reached."""
    epochs, ramp = settings["max_epochs"], settings["ramp_up_epochs"]
    if settings["warmup_epochs"] >= epochs:
        logger.warning(
            "--warmup_epochs %g of --max_epochs %d: the learning rate only rises, and never falls. Lower it (0 for no "
            "rise), or train longer.",
            settings["warmup_epochs"],
            epochs,
        )
    used = {"beta": epochs - settings["teacher_warmup_epochs"], "gamma": epochs if students > 1 else 0}
    short = [name for name, left in used.items() if settings[name] > 0 and 0 < left <= ramp]
    if short:
        logger.warning(
            "--ramp_up_epochs %d of --max_epochs %d: %s would be reached in epoch %d. Lower it (0 for full weight at "
            "once), or train longer.",
            ramp,
            epochs,
            " and ".join(f"--{name} {settings[name]:g}" for name in short),
            max(epochs - used[name] for name in short) + ramp + 1,
        )
