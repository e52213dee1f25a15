"""Networks of a training, tried on its classes, its size of images and its smallest batch before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdml_med.bundle.settings import Settings
from kdml_med.data.frames import input_size
from kdml_med.data.samples import ManifestDataset
from kdml_med.data.sampling import EpochSampler
from kdml_med.engines import processes
from kdml_med.errors import InputError
from kdml_med.handlers.random_state import random_state, restore_random_state
from kdml_med.keys import Task
from kdml_med.networks.cohort import Cohort
from kdml_med.networks.trial import check_answers, stopped_by_single_samples


def try_networks(settings: Settings, training: ManifestDataset, cohort: Cohort, loaders: Sequence[Any]) -> None:
    """Check what networks give, and that they can learn from the smallest batch.

    Nothing of the training depends on it: networks and random numbers are left as they were.

    Args:
        settings: of the config.
        training: what is learned from.
        cohort: as it is trained.
        loaders: see ``kdml_med.bundle.record_run``.

    Raises:
        InputError: names the network, or the setting, that does not fit.
    """
    side = settings["image_size"] or training.info.tile_size_px
    if not side:
        return
    size, before = input_size(side), random_state()
    cohort.to(settings["device"])  # where it is trained: some networks answer on a GPU alone
    background = settings.task is Task.DETECTION  # no class of a detector
    try:
        check_answers(cohort, task=settings.task, num_classes=len(training.classes) - background, size=size)
        sampler = EpochSampler.of(loaders[0]) if loaders else None
        if sampler is not None:
            check_smallest_batch(settings, cohort, sampler, size)
    finally:
        restore_random_state(before)


def check_smallest_batch(settings: Settings, cohort: Cohort, sampler: EpochSampler, size: tuple[int, int]) -> None:
    """Check that batch norm can learn from the smallest batch of one process; of several see ``check_shares``.

    Args:
        settings: of the config.
        cohort: on the device that it is trained on.
        sampler: deals the batches of an epoch.
        size: (height, width) of what the networks see, pixels.

    Raises:
        InputError: it is a single sample, and its maps have a single position.
    """
    batches = -(-sampler.dealt // sampler.batch_size)
    if processes.world_size() > 1 or sampler.size_of(batches - 1) > 1:
        return
    stopped = stopped_by_single_samples(cohort, size)
    if not stopped:
        return
    samples = "frames" if settings.task is Task.DETECTION else "tiles"
    setting, raised = (
        ("--batch_size 1", "2, better 8") if sampler.batch_size == 1 else (f"--{samples}_per_epoch 1", "2 or more")
    )
    raise InputError(
        f"{setting} is too small for the batch norm of {', '.join(stopped)}: of one sample of {size[0]} x {size[1]} "
        f"px it has a single value per channel, from which nothing is learned. Raise it to {raised}, or take a larger "
        "--image_size."
    )
