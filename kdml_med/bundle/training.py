"""The start of a training: everything is checked before the first batch, and errors speak to a person."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from kdml_med.bundle.network_checks import try_networks
from kdml_med.bundle.provenance import made_by
from kdml_med.bundle.resuming import check_run, recorded_before, recorded_settings
from kdml_med.bundle.settings import Settings
from kdml_med.bundle.training_checks import check_together, say_what_does_nothing
from kdml_med.bundle.workflow import errors_for_people
from kdml_med.data.cache import CACHE_DIR, NO_CACHE, ON_DISK
from kdml_med.data.frames import FrameDataset
from kdml_med.data.samples import ManifestDataset
from kdml_med.data.tiles import TileDataset
from kdml_med.deploy.model_metadata import write_network_metadata
from kdml_med.engines import processes
from kdml_med.engines.acceleration import Acceleration
from kdml_med.engines.trainer import KDMLTrainer
from kdml_med.errors import InputError
from kdml_med.keys import Task
from kdml_med.losses.classification import ClassificationCohortLoss
from kdml_med.losses.cohort import CohortLoss
from kdml_med.losses.detection import DetectionCohortLoss
from kdml_med.metrics.aggregation import Level
from kdml_med.networks.cohort import Cohort, build_cohort
from kdml_med.networks.devices import compute_repeatably
from kdml_med.networks.registry import cohort_spec
from kdml_med.networks.remembered import RememberedTeacher
from kdml_med.networks.sources import find_sources
from kdml_med.program import leave_quickly
from kdml_med.runs import (
    FRAME_OPTIONS,
    SETTINGS_FILE,
    TILE_OPTIONS,
    RunDescription,
    hashed_patient,
)
from kdml_med.storage.files import write_json
from kdml_med.storage.locks import keep_out_others
from kdml_med.storage.manifest import DatasetInfo
from kdml_med.storage.records import RecordStore

logger = logging.getLogger(__name__)

TEACHERS_DIR = "teachers"
"""Below the folder of caches, where `cache_teacher` "disk" keeps answers."""
ACCELERATION = "acceleration"
"""Key in settings.json of how a run computes."""
_SEED_STEP = 1_000_003  # between the random numbers of two processes, for dropout


def prepare_training(settings: Settings, *, demo_dir: str) -> None:
    """Check settings and run folder before anything is written, and seed.

    Makes the demo cohort when the dataset folder is the default one and does not exist yet. The dataset itself is
    checked by those who read it.

    Args:
        settings: of the config; a run is only resumed with the same ones.
        demo_dir: the default dataset folder.

    Raises:
        InputError: with a message for a person.
    """
    leave_quickly()
    check_together(settings)
    dataset_dir, run_dir = settings["dataset_dir"], settings["run_dir"]
    if Path(dataset_dir).resolve() == Path(demo_dir).resolve():
        with processes.main_first():
            _make_demo(settings.task, Path(dataset_dir))
    if settings["precision"] != "measure":  # which is no training
        check_run(Path(run_dir), settings)
    _find_weights(settings)
    say_what_does_nothing(settings)
    seed_everything(settings["seed"])
    logger.info("Dataset %s, run folder %s", dataset_dir, run_dir)


def _find_weights(settings: Settings) -> None:
    """Miss files before the dataset is read and cached, which can take hours; loading them says what else is wrong."""
    names = ("version", "teacher", "students", "use_teacher", "initial_weights", "teacher_checkpoint")
    find_sources(task=settings.task, **{name: settings[name] for name in names})


def _make_demo(task: Task, dataset_dir: Path) -> None:
    # Imported here: who trains on their own data does not wait for the generators.
    from kdml_med.demo import dataset

    make = dataset.ensure_demo_frames if task is Task.DETECTION else dataset.ensure_demo_dataset
    make(dataset_dir)


def check_level(level: str, info: DatasetInfo, dataset_dir: str | Path) -> None:
    """Check that tiles can be aggregated to a level.

    Raises:
        InputError: slides carry the labels, and patients are asked for.
    """
    if level == "patient" and info.classes and info.label_level == "slide":
        raise InputError(
            f"the labels of {dataset_dir} belong to slides, and a patient can have both: use --level slide."
        )


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch and ask for deterministic algorithms; each process draws numbers of its own."""
    compute_repeatably((seed + _SEED_STEP * processes.rank()) % 2**32)


def run_training(trainer: KDMLTrainer) -> None:
    """Train; a loss that is not finite ends the run with one line, as a tile that cannot be read does."""
    with errors_for_people(FloatingPointError):
        trainer.run()
    processes.wait()  # until the best weights are saved
    remembered = getattr(trainer.cohort, "remembered", None)
    if isinstance(remembered, RememberedTeacher):
        counts = processes.total({"asked": remembered.asked, "known": remembered.known})
        logger.info("The teacher was asked about %(asked)d images; to %(known)d its answers were known.", counts)


def build_training_cohort(settings: Settings, *, num_classes: int, features: bool = False) -> Cohort:
    """Networks of a config, see ``kdml_med.networks.build_cohort``.

    Args:
        settings: of the config.
        num_classes: number of outputs.
        features: whether classifiers give feature maps as well.

    Raises:
        InputError: what is wrong with the settings.
    """
    with errors_for_people(ValueError):
        cohort = build_cohort(
            num_classes=num_classes, task=settings.task, features=features, **settings.part("networks")
        )
        if settings["cache_teacher"] != NO_CACHE:
            _remember_teacher(cohort, settings)
    return cohort


def _remember_teacher(cohort: Cohort, settings: Settings) -> None:
    where = settings["cache_teacher"]
    folder = Path(settings["dataset_dir"]) / CACHE_DIR / TEACHERS_DIR if where == ON_DISK else Path(where)
    remembered = RememberedTeacher(
        lambda name, size: RecordStore(folder / name, size), features=build_loss(settings).needs_features
    )
    remembered.attach(cohort)
    if (settings["repeat_views"] or settings["max_epochs"]) >= settings["max_epochs"] > 1:
        logger.info(
            "--cache_teacher: no training view of these %d epochs comes again; their answers fill %s for other runs "
            "alone. For fewer views that repeat see --repeat_views.",
            settings["max_epochs"],
            folder,
        )


def build_loss(settings: Settings) -> CohortLoss:
    """The cohort loss of a config.

    Raises:
        InputError: what is wrong with the settings.
    """
    kind = DetectionCohortLoss if settings.task is Task.DETECTION else ClassificationCohortLoss
    with errors_for_people(ValueError):
        return kind(train_teacher=not settings["teacher_checkpoint"], **settings.part("loss"))


def record_run(
    settings: Settings,
    training: ManifestDataset,
    validation: ManifestDataset,
    *,
    built: tuple[Cohort, CohortLoss],
    acceleration: Acceleration,
    level: Level | None = None,
    loaders: Sequence[Any] = (),
) -> None:
    """Write settings.json, metadata.json, and cohort.json: what is needed to build, feed and judge the networks again.

    Patients that were learned from or chosen by are recorded as hashes, so that an evaluation can refuse to be run on
    them without the file naming anybody.

    Args:
        settings: of the config.
        training: what is learned from.
        validation: what the best epoch is chosen by.
        built: networks and loss; having them, and that they fit, means that the settings work, and only then are files
            written.
        acceleration: how is computed; a run goes on in the same way.
        level: "patient" or "slide", what tiles are aggregated to.
        loaders: data loaders of training and validation, likewise; the first one tells the smallest batch.

    Raises:
        InputError: the dataset does not fit the settings, the loss not the students, the networks not the classes or
            the smallest batch, another run has the folder, or not all processes see it.
    """
    cohort, loss = built
    if isinstance(training, TileDataset):
        _check_tiles(training, settings, level)
    for part in (training, validation):
        if isinstance(part, FrameDataset):
            _check_frames(part)
    if isinstance(validation, TileDataset) and processes.is_main():
        _warn_of_one_class(validation, settings)
    with errors_for_people(ValueError):
        loss.check_students(len(cohort.student_names))
    check_shares(settings, cohort)
    try_networks(settings, training, cohort, loaders)
    run_dir = Path(settings["run_dir"])
    if processes.is_main():
        settings.holds = keep_out_others(run_dir, option="--run_dir")
        recorded = recorded_settings(settings) | {
            ACCELERATION: acceleration.describe(),
            # A run that goes on began with other files, if those in their places are others now.
            "initial_weights": recorded_before(run_dir, "initial_weights") or cohort.initial_weights,
            "made_by": made_by(recorded_before(run_dir, "made_by")),
        }
        write_json(run_dir / SETTINGS_FILE, recorded)
        described = _describe(settings, training, validation, cohort, level)
        described.write(run_dir)
        write_network_metadata(run_dir, described)
    processes.seen_by_all(run_dir / SETTINGS_FILE)


def check_shares(settings: Settings, cohort: Cohort) -> None:
    """Check that no process has batches of a single sample, of which batch norm on a CPU learns nothing.

    Raises:
        InputError: one would.
    """
    count, batch_size = processes.world_size(), settings["batch_size"]
    if settings["device"] != "cpu" or count <= batch_size / 2 or count == 1:
        return
    if any(isinstance(module, _BatchNorm) for module in cohort.modules()):
        raise InputError(
            f"--batch_size {batch_size} is that of all {count} processes together, and batch norm on a CPU needs at "
            f"least two samples in each: raise it to {2 * count}, better {8 * count}, or start fewer processes."
        )


def _check_tiles(tiles: TileDataset, settings: Settings, level: Level | None) -> None:
    if tiles.info.tile_size_px is None and settings["image_size"] is None:
        raise InputError(f"the images of {tiles.dataset_dir} differ in size: say --image_size, the side in pixels.")
    check_level(level or tiles.info.label_level, tiles.info, tiles.dataset_dir)
    if len(set(tiles.labels)) < len(tiles.classes):
        raise InputError(
            f"split {tiles.split!r} of {tiles.dataset_dir} has only tiles of {tiles.rows['label'].iloc[0]!r}: nothing "
            "can be learned from one class. Split it again."
        )


def _warn_of_one_class(tiles: TileDataset, settings: Settings) -> None:
    """Say that nothing will choose the best epoch. It is not refused: one can train without a choice."""
    found = {tiles.classes[label] for label in set(tiles.labels.tolist()) if label >= 0}
    if len(found) < len(tiles.classes):
        logger.warning(
            "split %r of %s has only tiles of %s: no AUROC is defined there, the last epoch counts as the best%s. "
            "Split it again for a choice.",
            tiles.split,
            tiles.dataset_dir,
            ", ".join(map(repr, sorted(found))) or "no known class",
            "" if settings["early_stopping"] is None else ", and --early_stopping does nothing",
        )


def _check_frames(frames: FrameDataset) -> None:
    if not any(len(frames.boxes(index)) for index in range(len(frames))):
        raise InputError(f"split {frames.split!r} of {frames.dataset_dir} has no frame with a polyp: split it again.")


def _describe(
    settings: Settings, training: ManifestDataset, validation: ManifestDataset, cohort: Cohort, level: Level | None
) -> RunDescription:
    spec = cohort_spec(
        settings["version"], task=settings.task, teacher=settings["teacher"], students=settings["students"]
    )
    info = training.info
    if isinstance(training, TileDataset):
        own: dict[str, Any] = {
            "tile_size_px": info.tile_size_px,
            "mpp": info.mpp,
            "stain": training.stain,
            "tile_options": {name: info.options[name] for name in TILE_OPTIONS if name in info.options},
            "level": level,
            "aggregation": settings["aggregation"],
            "ensemble_average": settings["ensemble_average"],
        }
    else:
        own = {
            "frame_size_px": info.frame_size_px,
            "frame_options": {name: info.options[name] for name in FRAME_OPTIONS if name in info.options},
            "fusion": settings["fusion"],
        }
    return RunDescription(
        task=settings.task,
        version=settings["version"],
        networks={name: item for name, item in spec.networks().items() if name in cohort.names},
        classes=training.classes,
        image_size=settings["image_size"] or int(info.tile_size_px or 0),
        fold=settings["fold"],
        synthetic=info.synthetic,
        seen_patients={
            str(part.split): sorted({hashed_patient(patient) for patient in part.rows["patient_id"].unique()})
            for part in (training, validation)
        },
        kdml_med=version("kdml_med"),
        **own,
    )
