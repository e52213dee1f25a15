"""The start of a bundle run: everything is checked before the first batch, and errors speak to a person."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import torch
from monai.utils import set_determinism

from kdml_med.bundle.command_line import check_command_line, errors_for_people
from kdml_med.data.frames import FrameDataset, input_size
from kdml_med.data.samples import ManifestDataset
from kdml_med.data.tiles import TileDataset
from kdml_med.engines.detection import FUSIONS
from kdml_med.engines.evaluator import AVERAGES
from kdml_med.engines.trainer import KDMLTrainer
from kdml_med.errors import InputError
from kdml_med.keys import Split, Task
from kdml_med.losses.cohort import ClassificationCohortLoss, CohortLoss
from kdml_med.losses.detection import DetectionCohortLoss
from kdml_med.metrics.aggregation import AggregationMethod, Level
from kdml_med.networks.anchors import anchor_grid
from kdml_med.networks.cohort import Cohort, build_cohort
from kdml_med.networks.registry import cohort_spec
from kdml_med.runs import COHORT_FILE, SETTINGS_FILE, checkpoint_path, load_cohort, read_run_json
from kdml_med.storage.files import content_hash, write_json
from kdml_med.storage.manifest import MANIFEST_FILE, SPLITS_FILE, DatasetInfo, read_info

logger = logging.getLogger(__name__)

# A resumed run may change these. max_epochs does change the learning rates that are still to come, but raising it is
# how a finished run is continued.
_FREE_SETTINGS = {"max_epochs", "num_workers", "device"}
# How frames were prepared for training is how new ones have to be.
_FRAME_OPTIONS = ("crop", "mask_overlays")
# Pixel sizes and fields of view that differ by less are taken as equal.
_SCALE_TOLERANCE = 0.05


def prepare_training(
    dataset_dir: str,
    run_dir: str,
    *,
    settings: Mapping[str, Any],
    task: str = Task.CLASSIFICATION,
    demo_dir: str | None = None,
    resume: bool = True,
) -> None:
    """Check dataset, settings and run folder before anything is written, and seed.

    Makes the demo cohort when the dataset folder is the default one and does not exist yet.

    Args:
        dataset_dir: dataset folder.
        run_dir: where the run goes.
        settings: the knobs; a run is only resumed with the same ones.
        task: "classification" of tiles or "detection" in frames.
        demo_dir: the default dataset folder.
        resume: False refuses a run folder that holds a run.

    Raises:
        SystemExit: with a message for a person.
    """
    with errors_for_people():
        check_command_line()
        _check_device(str(settings["device"]), bool(settings.get("amp")))
        if demo_dir is not None and Path(dataset_dir).resolve() == Path(demo_dir).resolve():
            _make_demo(Task(task), Path(dataset_dir))
        _check_knobs(settings, Task(task))
        if task == Task.DETECTION:
            _check_frames(dataset_dir, settings)
        else:
            _check_tiles(dataset_dir, settings)
        _check_settings(Path(run_dir), _recorded(dataset_dir, settings), resume=resume)
    seed_everything(int(settings["seed"]))
    logger.info("Dataset %s, run folder %s", dataset_dir, run_dir)


def _make_demo(task: Task, dataset_dir: Path) -> None:
    # Imported here: who trains on their own data does not wait for the generators.
    from kdml_med.demo import dataset

    make = dataset.ensure_demo_frames if task is Task.DETECTION else dataset.ensure_demo_dataset
    make(dataset_dir)


def _check_tiles(dataset_dir: str, settings: Mapping[str, Any]) -> None:
    for split in (Split.TRAIN, Split.VAL):
        TileDataset(dataset_dir, split, fold=settings["fold"], stain=settings["stain"])
    info = read_info(Path(dataset_dir))
    if info.tile_size_px is None and settings["image_size"] is None:
        raise InputError(f"the images of {dataset_dir} differ in size: say --image_size, the side in pixels.")
    _check_level(settings["level"] or info.label_level, info, dataset_dir)


def _check_frames(dataset_dir: str, settings: Mapping[str, Any]) -> None:
    for split in (Split.TRAIN, Split.VAL):
        frames = FrameDataset(dataset_dir, split, fold=settings["fold"])
        if not any(len(frames.boxes(index)) for index in range(len(frames))):
            raise InputError(f"split {split.value!r} of {dataset_dir} has no frame with a polyp: split it again.")
    try:
        anchor_grid(*input_size(settings["image_size"]))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"--image_size is {settings['image_size']!r}, expected [height, width] or one side: {error}"
        ) from error


def run_training(trainer: KDMLTrainer) -> None:
    """Train; a tile that cannot be read, or a loss that is not finite, ends the run with one line."""
    with errors_for_people(FloatingPointError):
        trainer.run()


def build_training_cohort(**settings: Any) -> Cohort:
    """``kdml_med.networks.build_cohort`` for a config: what is wrong with the settings is said in one line."""
    with errors_for_people(ValueError):
        return build_cohort(**settings)


def build_loss(task: str = Task.CLASSIFICATION, **settings: Any) -> CohortLoss:
    """The cohort loss of a task for a config: what is wrong with the settings is said in one line."""
    with errors_for_people(ValueError):
        return DetectionCohortLoss(**settings) if task == Task.DETECTION else ClassificationCohortLoss(**settings)


def load_trained_cohort(run_dir: str, *, students_only: bool = False) -> Cohort:
    """``kdml_med.runs.load_cohort`` for a config: a broken run is named in one line."""
    with errors_for_people():
        return load_cohort(run_dir, students_only=students_only)


def record_run(
    run_dir: str,
    training: ManifestDataset,
    validation: ManifestDataset,
    *,
    settings: Mapping[str, Any],
    built: tuple[Cohort, CohortLoss],
    task: str = Task.CLASSIFICATION,
    level: Level | None = None,
) -> None:
    """Write settings.json, and cohort.json with what is needed to build, feed and judge the networks again.

    Patients that were learned from or chosen by are recorded as hashes, so that an evaluation can refuse to be run on
    them without the file naming anybody.

    Args:
        run_dir: folder of the run.
        training: what is learned from.
        validation: what the best epoch is chosen by.
        settings: the knobs.
        built: networks and loss; having them, and that they fit, means that the settings work, and only then are files
            written.
        task: "classification" or "detection".
        level: "patient" or "slide", what tiles are aggregated to.

    Raises:
        SystemExit: with a message for a person, when the loss does not fit the students.
    """
    cohort, loss = built
    with errors_for_people(ValueError):
        loss.check_students(len(cohort.student_names))
    spec = cohort_spec(settings["version"], task=Task(task), teacher=settings["teacher"], students=settings["students"])
    info = training.info
    write_json(Path(run_dir) / SETTINGS_FILE, _recorded(str(training.dataset_dir), settings))
    description = {
        "task": str(task),
        "version": settings["version"],
        "networks": {name: item for name, item in spec.networks().items() if name in cohort.names},
        "classes": training.classes,
        "image_size": settings["image_size"] or info.tile_size_px,
        "fold": settings["fold"],
        "synthetic": info.synthetic,
        "kdml_med": version("kdml_med"),
        "seen_patients": {
            str(part.split): sorted({_hashed(patient) for patient in part.rows["patient_id"]})
            for part in (training, validation)
        },
    }
    if isinstance(training, TileDataset):
        description |= {
            "tile_size_px": info.tile_size_px,
            "mpp": info.mpp,
            "stain": training.stain,
            "level": level,
            "aggregation": settings["aggregation"],
            "ensemble_average": settings["ensemble_average"],
        }
    else:
        options = {name: info.options[name] for name in _FRAME_OPTIONS if name in info.options}
        description |= {
            "frame_size_px": info.frame_size_px,
            "frame_options": options,
            "fusion": settings["fusion"],
        }
    write_json(Path(run_dir) / COHORT_FILE, description)


def read_description(run_dir: str, *, task: str) -> dict[str, Any]:
    """Content of cohort.json of a run.

    Args:
        run_dir: folder of the run.
        task: "classification" or "detection": what the run has to be for.

    Raises:
        SystemExit: with a message for a person, when the folder is no run, or one for another task.
    """
    with errors_for_people():
        description = read_run_json(Path(run_dir), COHORT_FILE)
        found = description.get("task", "classification, by an older version")
        if found != task:
            raise InputError(f"the run {run_dir} was trained for {found}; this needs one for {task}.")
        return description


def fold_of(dataset_dir: str, description: Mapping[str, Any]) -> int | None:
    """Fold that a run was trained for, where the dataset has folds at all."""
    with errors_for_people():
        splits = read_info(Path(dataset_dir)).splits or {}
        if not splits:
            return None
        columns = pd.read_csv(Path(dataset_dir) / SPLITS_FILE, nrows=0).columns
    return description["fold"] if "fold" in columns else None


def prepare_evaluation(
    dataset_dir: str,
    run_dir: str,
    *,
    split: str | None,
    fold: int | None,
    device: str,
    level: Level | None = None,
    stain: str = "none",
) -> None:
    """Check a run and a dataset before they are brought together, and seed.

    Args:
        dataset_dir: dataset folder.
        run_dir: folder of the run.
        split: what is evaluated; None for inference on everything.
        fold: test fold, where the dataset has folds.
        device: to compute on.
        level: "patient" or "slide", what tiles are aggregated to.
        stain: normalisation of tiles to apply, "none" or "macenko".

    Raises:
        SystemExit: with a message for a person: no such run; kind of dataset, classes, scale or stain normalisation
            differ; splits leak; or patients of this split were seen in training.
    """
    with errors_for_people():
        check_command_line()
        _check_device(device, amp=False)
        description = read_run_json(Path(run_dir), COHORT_FILE)
        dataset: ManifestDataset
        if description.get("task") == Task.DETECTION:
            dataset = FrameDataset(dataset_dir, split, fold=fold)
        else:
            dataset = _prepare_tiles(dataset_dir, description, split=split, fold=fold, level=level, stain=stain)
        if dataset.classes and dataset.classes != description["classes"]:
            raise InputError(
                f"the run knows the classes {description['classes']}, the dataset has {dataset.classes}; they must be "
                "the same and in the same order."
            )
        if split not in (None, Split.TRAIN, Split.VAL):
            _check_unseen(dataset, description)
    seed_everything(0)


def _prepare_tiles(
    dataset_dir: str,
    description: Mapping[str, Any],
    *,
    split: str | None,
    fold: int | None,
    level: Level | None,
    stain: str,
) -> TileDataset:
    dataset = TileDataset(dataset_dir, split, fold=fold, stain=stain)
    if level is not None:
        _check_level(level, dataset.info, dataset_dir)
    _check_scale(dataset.info, description, dataset_dir)
    if dataset.stain != description["stain"]:
        raise InputError(
            f"the tiles of {dataset_dir} come with stain normalisation {dataset.stain!r}, the run was trained with "
            f"{description['stain']!r}: leave --stain out, or tile the slides again without it."
        )
    return dataset


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch and ask for deterministic algorithms."""
    set_determinism(seed=seed)
    torch.use_deterministic_algorithms(True, warn_only=True)


def _check_device(device: str, amp: bool) -> None:
    kind = torch.device(device).type
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device!r} is asked for, but this torch sees no GPU: use --device cpu.")
    if amp and kind != "cuda":
        raise InputError(f"amp (mixed precision) needs a GPU, the device is {device!r}: leave --amp out.")


def _check_knobs(settings: Mapping[str, Any], task: Task) -> None:
    """Settings that would otherwise be noticed in the middle of the run."""
    known: dict[str, tuple[Any, ...]] = {"fusion": FUSIONS}
    if task is Task.CLASSIFICATION:
        known = {
            "aggregation": get_args(AggregationMethod),
            "ensemble_average": AVERAGES,
            "level": (None, *get_args(Level)),
        }
    for name, values in known.items():
        if settings[name] not in values:
            shown = ", ".join(str(value) for value in values if value is not None)
            raise InputError(f"--{name} is {settings[name]!r}, expected one of: {shown}.")
    if settings["beta"] > 0 and not settings["use_teacher"]:
        raise InputError("--beta is above 0, but --use_teacher is off: there is nobody to learn from. Set --beta 0.")
    students = cohort_spec(settings["version"], task=task, students=settings["students"]).students
    if settings["alpha"] == settings["beta"] == 0 and len(students) == 1:
        raise InputError("a single student has no peers: --alpha or --beta must be above 0.")


def _check_level(level: str, info: DatasetInfo, dataset_dir: str) -> None:
    if level == "patient" and info.classes and info.label_level == "slide":
        raise InputError(
            f"the labels of {dataset_dir} belong to slides, and a patient can have both: use --level slide."
        )


def _check_scale(info: DatasetInfo, description: Mapping[str, Any], dataset_dir: str) -> None:
    if info.mpp and description["mpp"] and abs(info.mpp / description["mpp"] - 1) > _SCALE_TOLERANCE:
        raise InputError(
            f"the run was trained at {description['mpp']} µm/px, the tiles of {dataset_dir} have {info.mpp} µm/px: "
            f"tile the slides again with --mpp {description['mpp']}."
        )
    sizes = (info.tile_size_px, description["tile_size_px"])
    if all(sizes) and abs(sizes[0] / sizes[1] - 1) > _SCALE_TOLERANCE:
        raise InputError(
            f"the run was trained on tiles of {description['tile_size_px']} px, those of {dataset_dir} have "
            f"{info.tile_size_px} px and would be resized: tile the slides again with --tile-size "
            f"{description['tile_size_px']}."
        )


def _check_unseen(dataset: ManifestDataset, description: Mapping[str, Any]) -> None:
    seen = {patient for part in description["seen_patients"].values() for patient in part}
    overlap = [name for name in dataset.rows["patient_id"].unique() if _hashed(name) in seen]
    if overlap:
        raise InputError(
            f"{len(overlap)} patients of split {dataset.split!r} have ids that were used in training this run, first "
            f"{overlap[0]!r}. Either the splits were changed since: train again on the present ones. Or two hospitals "
            "number their patients alike: put the hospital's name before the id."
        )


def _hashed(patient_id: str) -> str:
    return hashlib.sha256(patient_id.encode()).hexdigest()[:16]


def _recorded(dataset_dir: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    folder = Path(dataset_dir)
    content = {
        "knobs": {name: value for name, value in settings.items() if name not in _FREE_SETTINGS},
        "free": {name: value for name, value in settings.items() if name in _FREE_SETTINGS},
        "dataset": {
            "manifest_sha256": content_hash(folder / MANIFEST_FILE),
            "splits": read_info(folder).splits,
        },
    }
    plain: dict[str, Any] = json.loads(json.dumps(content, default=str))
    return plain


def _check_settings(run_dir: Path, recorded: Mapping[str, Any], *, resume: bool) -> None:
    path = run_dir / SETTINGS_FILE
    if not (path.is_file() and checkpoint_path(run_dir, "last").is_file()):
        return
    if not resume:
        raise InputError(f"{run_dir} already holds a run: name another --run_dir, or leave --resume on to go on.")
    before = json.loads(path.read_text())
    for part in ("knobs", "dataset"):
        for name in sorted(set(before[part]) | set(recorded[part])):
            old, new = before[part].get(name), recorded[part].get(name)
            if old != new:
                what = f"--{name}" if part == "knobs" else "the dataset"
                raise InputError(
                    f"{run_dir} holds a run with other settings: {what} was {old!r}, now {new!r}. Use the same "
                    "settings to go on, or name another --run_dir."
                )
