"""Whether a trained run and a dataset may be brought together: kind, classes, scale, and whom the run has seen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdml_med.bundle.settings import Settings
from kdml_med.bundle.training import check_level, seed_everything
from kdml_med.data.frames import FrameDataset, input_size
from kdml_med.data.samples import ManifestDataset
from kdml_med.data.tiles import TileDataset
from kdml_med.errors import InputError
from kdml_med.keys import Split, Task
from kdml_med.metrics.aggregation import Level
from kdml_med.networks.devices import check_device
from kdml_med.runs import COHORT_FILE, EVALUATION_FILE, METRICS_FILE, SETTINGS_FILE, RunDescription, is_other_data
from kdml_med.splits import has_folds, has_splits
from kdml_med.storage.locks import keep_out_others
from kdml_med.storage.manifest import DatasetInfo, dataset_identity, owner_word, read_info
from kdml_med.storage.reading import read_json
from kdml_med.words import counted, verb

# Pixel sizes and fields of view that differ by less are taken as equal.
_SCALE_TOLERANCE = 0.05
_CHOSEN = ("level", "aggregation", "ensemble_average", "fusion", "image_size")
"""How networks are judged, by name in settings and in cohort.json: chosen at training, like the thresholds."""


def fold_of(dataset_dir: str | Path, fold: int | None) -> int | None:
    """Fold that a run was trained for, where the dataset has folds at all."""
    if not read_info(Path(dataset_dir)).splits:
        return None
    return fold if has_splits(Path(dataset_dir)) and has_folds(Path(dataset_dir)) else None


def prepare_evaluation(settings: Settings, *, dataset_dir: str | None = None, level: Level | None = None) -> None:
    """Check a run and a dataset before they are brought together, and seed.

    Args:
        settings: of the config; those without a split are for inference on everything.
        dataset_dir: dataset folder; None takes that of the settings.
        level: "patient" or "slide", what tiles are aggregated to.

    Raises:
        InputError: no such run; kind of dataset, classes, scale or stain normalisation differ; splits leak; patients of
            this split were seen in training, or those of "val" are others than training validated on; something is to
            be chosen on another split than "val"; the output folder holds what would be lost, see ``check_target``, or
            the evaluation of another dataset; or another run writes to it.
    """
    check_device(settings["device"])
    dataset_dir = dataset_dir or settings["dataset_dir"]
    run = RunDescription.read(settings["run_dir"], task=settings.task)
    if "split" in settings:
        _check_chosen(settings, run, level)
    check_target(settings)
    split, fold = settings.get("split"), settings.get("fold")
    dataset: ManifestDataset
    if run.task is Task.DETECTION:
        dataset = FrameDataset(dataset_dir, split, fold=fold)
    else:
        dataset = TileDataset(dataset_dir, split, fold=fold, stain=settings["stain"])
        if level is not None:
            check_level(level, dataset.info, dataset_dir)
        _check_scale(dataset.info, run, dataset_dir)
        if dataset.stain != run.stain:
            raise InputError(
                f"the tiles of {dataset_dir} come with stain normalisation {dataset.stain!r}, the run was trained with "
                f"{run.stain!r}: leave --stain out, or tile the slides again without it."
            )
    if dataset.classes and dataset.classes != run.classes:
        raise InputError(
            f"the run knows the classes {run.classes}, the dataset has {dataset.classes}; they must be the same and in "
            "the same order."
        )
    if split not in (None, Split.TRAIN):
        _check_unseen(dataset, run)
    if "output_dir" in settings:
        if "split" in settings:
            _check_replaced(settings, Path(dataset_dir))
        settings.holds = keep_out_others(Path(settings["output_dir"]), option="--output_dir")
    seed_everything(0)


def check_target(settings: Settings) -> None:
    """Whether results may go to the output folder: over those of another training they may not, nor over an evaluation.

    Raises:
        InputError: they may not. An evaluation may be repeated, and that of the validation in the folder of its run.
    """
    if "output_dir" not in settings:
        return
    folder, is_inference = Path(settings["output_dir"]), "split" not in settings
    is_own = folder.resolve() == Path(settings["run_dir"]).resolve()
    if (folder / COHORT_FILE).is_file() and (is_inference or not is_own):
        raise InputError(
            f"--output_dir {folder} is the folder of a run, whose own figures would be written over: name another "
            "folder, or none."
        )
    if is_inference and (folder / METRICS_FILE).is_file():
        raise InputError(
            f"--output_dir {folder} holds an evaluation, whose tables would be written over: name another folder, or "
            "none."
        )


def _check_replaced(settings: Settings, dataset_dir: Path) -> None:
    """Refuse to write over the evaluation of another dataset, as without an output folder it would be unasked.

    A dataset that moved is the same one, and an external one that grew where it is may be evaluated again. Where an
    earlier version noted no dataset, the folders of a run's own splits are taken to hold that of its training, and
    others are not protected.
    """
    folder, run_dir = Path(settings["output_dir"]), Path(settings["run_dir"])
    if not (folder / METRICS_FILE).is_file():  # nothing there, or it was interrupted
        return
    record, now = _noted(folder / EVALUATION_FILE), dataset_identity(dataset_dir)
    trained = _noted(run_dir / SETTINGS_FILE).get("dataset")
    own_folders = {run_dir.resolve(), *(run_dir.resolve() / f"evaluation_{split}" for split in Split)}
    held = record.get("dataset") or (trained if folder.resolve() in own_folders else None)
    if not is_other_data(held, now):
        return
    has_grown = record.get("dataset_dir") == str(dataset_dir.resolve())
    if has_grown and (not trained or is_other_data(held, trained)):
        return
    raise InputError(
        f"{folder} holds the evaluation of another dataset than {dataset_dir} is now, and would be written over: name "
        f"another folder, such as --output_dir {run_dir}/evaluation_other, or move that evaluation away first."
    )


def _noted(path: Path) -> dict[str, Any]:
    """Content of a file that may be missing or damaged: an evaluation that is repeated replaces it."""
    try:
        return read_json(path, remedy="") if path.is_file() else {}
    except InputError:
        return {}


def _check_scale(info: DatasetInfo, run: RunDescription, dataset_dir: str | Path) -> None:
    if info.mpp and run.mpp and abs(info.mpp / run.mpp - 1) > _SCALE_TOLERANCE:
        raise InputError(
            f"the run was trained at {run.mpp} µm/px, the tiles of {dataset_dir} have {info.mpp} µm/px: tile the "
            f"slides again with --mpp {run.mpp}."
        )
    if info.tile_size_px and run.tile_size_px and abs(info.tile_size_px / run.tile_size_px - 1) > _SCALE_TOLERANCE:
        raise InputError(
            f"the run was trained on tiles of {run.tile_size_px} px, those of {dataset_dir} have {info.tile_size_px} "
            f"px and would be resized: tile the slides again with --tile-size {run.tile_size_px}."
        )


def _check_chosen(settings: Settings, run: RunDescription, level: Level | None) -> None:
    """Refuse to choose on other patients than those of the validation, and to write over what was chosen there."""
    asked = {**settings, "level": level}
    changed = check_as_trained(run, settings["split"], {name: asked.get(name) for name in _CHOSEN})
    folder, split = settings.get("output_dir"), settings["split"]
    if folder is not None and Path(folder).resolve() == Path(settings["run_dir"]).resolve():
        what = f"split {split!r}" if split != Split.VAL else f"another --{changed[0]}" if changed else ""
        if what:
            raise InputError(
                f"--output_dir is the folder of the run, {folder}: there lie its figures on the validation split, by "
                f"which thresholds are chosen, and not those of {what}. Name another folder, or none."
            )


def check_as_trained(run: RunDescription, split: str, asked: Mapping[str, Any]) -> list[str]:
    """Names of what is asked for in another way than the run has it; refused on any split but "val"."""
    changed = [name for name, value in asked.items() if value is not None and not _same(name, value, run)]
    if changed and split != Split.VAL:
        name = changed[0]
        raise InputError(
            f"--{name} is {asked[name]!r}, the run was trained with {getattr(run, name)!r}: on split {split!r} that "
            f"would be chosen by patients who are to test it. Leave --{name} out; it can be tried with --split val, "
            "and given to a new training."
        )
    return changed


def _same(name: str, value: Any, run: RunDescription) -> bool:
    own = getattr(run, name)
    return bool(input_size(value) == input_size(own) if name == "image_size" else value == own)  # 128 is [128, 128]


def _check_unseen(dataset: ManifestDataset, run: RunDescription) -> None:
    # The best epoch was chosen by the patients of "val", and so it may be looked at again.
    parts = [Split.TRAIN] if dataset.split == Split.VAL else list(run.seen_patients)
    overlap = [name for name in dataset.rows["patient_id"].unique() if run.has_seen(name, parts)]
    if overlap:
        raise InputError(
            f"{counted(len(overlap), owner_word(dataset.rows, dataset.info))} of split {dataset.split!r} "
            f"{verb(len(overlap), 'has an id that was', 'have ids that were')} used in training this run, first "
            f"{overlap[0]!r}. Either the splits were changed since: train again on the present ones. Or two hospitals "
            "number their patients alike: put the hospital's name before the id."
        )
    if dataset.split == Split.VAL:
        check_validated(dataset, run)


def check_validated(dataset: ManifestDataset, run: RunDescription) -> None:
    """Whether these are the patients by whom things may be chosen, whatever the split is called."""
    patients = dataset.rows["patient_id"].unique()
    others = [name for name in patients if not run.has_seen(name, [Split.VAL])]
    if others:
        raise InputError(
            f"split 'val' has {counted(len(others), owner_word(dataset.rows, dataset.info))} whom this run did not "
            f"validate on, first {others[0]!r}: thresholds would be chosen by others. For another dataset, or splits "
            "that were made anew, take --split test; or train again on the present splits."
        )


def check_split(dataset: ManifestDataset, split: str) -> None:
    """Whether patients go under the name of their split, wherever a config was overridden."""
    if dataset.split not in (None, split):
        raise InputError(
            f"the evaluator reads the split {str(dataset.split)!r}, and its results would be called {split!r}: name "
            "the split with --split alone."
        )
