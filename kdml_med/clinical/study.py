"""Everything that a run left behind, read once for its report: evaluations, losses, and the data that it saw."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import pandas as pd

from kdml_med.clinical.answers import read_evaluation, remedy_for, unit_of
from kdml_med.errors import InputError
from kdml_med.keys import Split
from kdml_med.runs import (
    COHORT_FILE,
    EVALUATION_FILE,
    LOSSES_FILE,
    METRICS_FILE,
    SETTINGS_FILE,
    TRAIN_AGAIN,
    RunDescription,
    is_other_data,
    read_losses,
    read_run_json,
    tell_other_weights,
    trained_on,
)
from kdml_med.splits import assign_splits, has_folds, has_splits
from kdml_med.storage.manifest import (
    FAILURES_FILE,
    SLIDES_FILE,
    DatasetInfo,
    dataset_identity,
    read_info,
    read_manifest,
)
from kdml_med.storage.reading import read_json, read_table, take

TEST_DIR = "evaluation_test"
_DATASET_AGAIN = "Make the dataset again."


class Role(StrEnum):
    """What an evaluation is to the run."""

    VALIDATION = "validation"
    """Its patients chose the best epoch and every threshold: its figures are too good."""
    TEST = "test"
    EXTERNAL = "external"
    """Of a dataset that the run was not trained on."""


@dataclass(frozen=True)
class DatasetContent:
    """A dataset folder as far as a report needs it.

    Attributes:
        folder: where it is.
        info: content of dataset.json.
        manifest: one row per tile or frame.
        split: "train", "val" or "test" of each row of the manifest; None without splits.
        slides: rows of slides.csv; None where there is no such file.
        failures: rows of failures.csv: "input" and "reason".
    """

    folder: Path
    info: DatasetInfo
    manifest: pd.DataFrame = field(repr=False)
    split: pd.Series[str] | None = field(repr=False)
    slides: pd.DataFrame | None = field(repr=False)
    failures: pd.DataFrame = field(repr=False)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run.

    Attributes:
        name: a short name that no other evaluation of the study has: "validation", "test", or that of its folder.
        title: the same for people.
        role: what it is to the run.
        split: that was evaluated, as metrics.json says.
        folder: with its files.
        metrics: content of metrics.json.
        record: content of evaluation.json; empty where an earlier version evaluated, or training itself.
        dataset: that was evaluated; None where it cannot be read any more.
        without_dataset: then, the reason, one sentence.
    """

    name: str
    title: str
    role: Role
    split: str
    folder: Path
    metrics: dict[str, Any] = field(repr=False)
    record: dict[str, Any] = field(repr=False)
    dataset: DatasetContent | None = field(repr=False)
    without_dataset: str = ""

    @property
    def unit(self) -> str:
        """What intervals resample: "patient", or what stands for patients where they are not known."""
        if self.dataset is not None and self.dataset.info.owner:  # earlier versions evaluated before it was noted
            return self.dataset.info.owner
        return unit_of(self.metrics)


@dataclass(frozen=True)
class Study:
    """What the report of a run is made from.

    Attributes:
        folder: of the run.
        name: of the run.
        description: what the networks are and how to feed them.
        settings: content of settings.json: "knobs", "free" and what else training noted.
        evaluations: validation first, then test, then external ones as they were named.
        losses: rows of losses.csv; None where there is no such file.
        dataset: that the run was trained on; None where it cannot be read any more.
        without_dataset: then, the reason, one sentence.
    """

    folder: Path
    name: str
    description: RunDescription
    settings: dict[str, Any] = field(repr=False)
    evaluations: list[Evaluation]
    losses: pd.DataFrame | None = field(repr=False)
    dataset: DatasetContent | None = field(repr=False)
    without_dataset: str = ""

    @property
    def knobs(self) -> dict[str, Any]:
        """Settings of the training by name."""
        return {name: value for part in ("knobs", "free") for name, value in self.settings[part].items()}

    @property
    def validation(self) -> Evaluation:
        """The evaluation on the validation split, which every run has."""
        return self.evaluations[0]

    @property
    def judged(self) -> list[Evaluation]:
        """Evaluations on patients that chose nothing: test and external ones."""
        return [one for one in self.evaluations if one.role is not Role.VALIDATION]

    @property
    def left_out(self) -> list[str]:
        """A sentence about each evaluation that lies in the run and is not on the page."""
        shown = {one.folder.resolve() for one in self.evaluations}
        found = []
        for path in sorted(self.folder.glob("evaluation_*/")):
            if (path / METRICS_FILE).is_file():
                if path.resolve() not in shown:
                    found.append(f"{path} is not on this page: name it with --external.")
            elif any(path.iterdir()):
                found.append(f"{path} was interrupted, it has no {METRICS_FILE}: evaluate again.")
        return found

    @property
    def synthetic(self) -> bool:
        """Whether any of it is generated: then no figure says anything about patients."""
        return self.description.synthetic or any(one.metrics.get("synthetic") for one in self.evaluations)


def read_study(
    run_dir: str | Path, *, external: Sequence[str | Path] = (), dataset_dir: str | Path | None = None
) -> Study:
    """Read a finished run, its evaluation on the test split where there is one, and further ones that are named.

    Args:
        run_dir: folder of the run.
        external: folders of evaluations of this run on other datasets.
        dataset_dir: where the dataset of the training is now; None for where it was.

    Raises:
        InputError: no finished run, a named folder is no evaluation of this run on another dataset, a file is damaged,
            the evaluation on the test split is of another dataset, or the named dataset is not the one that the run was
            trained on.
    """
    folder = Path(run_dir)
    description = RunDescription.read(folder)
    settings = read_run_json(folder, SETTINGS_FILE)
    for part in ("knobs", "free"):
        take(settings, part, dict[str, Any], folder / SETTINGS_FILE, remedy=TRAIN_AGAIN)
    if not (folder / METRICS_FILE).is_file():
        raise InputError(f"{folder} is a training that is not finished: go on with the same command of training.")
    named = _external_folders(folder, external)
    dataset, reason = _training_data(folder, settings, description, dataset_dir)
    evaluations = [_read_evaluation(folder, folder, "validation", Role.VALIDATION, dataset, reason)]
    if (folder / TEST_DIR / METRICS_FILE).is_file():
        evaluations.append(_read_evaluation(folder, folder / TEST_DIR, "test", Role.TEST, dataset, reason))
    evaluations += [_read_evaluation(folder, path, name, Role.EXTERNAL, None, "") for name, path in named.items()]
    _check_datasets(evaluations, settings)
    _check_weights(folder, description, evaluations)
    return Study(
        folder=folder,
        name=folder.resolve().name,
        description=description,
        settings=settings,
        evaluations=evaluations,
        losses=read_losses(folder) if (folder / LOSSES_FILE).is_file() else None,
        dataset=dataset,
        without_dataset=reason,
    )


def _external_folders(run_dir: Path, external: Sequence[str | Path]) -> dict[str, Path]:
    """Folders of external evaluations by a name for each."""
    found: dict[str, Path] = {}
    for given in external:
        path = Path(given)
        if not (path / METRICS_FILE).is_file() or (path / COHORT_FILE).is_file():
            what = "is a run of its own" if (path / COHORT_FILE).is_file() else f"has no {METRICS_FILE}"
            raise InputError(
                f"--external {path} {what}: name the folder that an evaluation of {run_dir} on another dataset wrote "
                f"(`kdml-med evaluate {run_dir} --data OTHER --out {run_dir}/evaluation_other`)."
            )
        if path.resolve() in {run_dir.resolve() / TEST_DIR, *(other.resolve() for other in found.values())}:
            raise InputError(f"--external {path} is on the page already: name every other evaluation once.")
        name = path.resolve().name.removeprefix("evaluation_")
        taken = {*found, *(role.value for role in Role)}
        number = next((str(n) for n in range(2, len(external) + 3) if f"{name} {n}" not in taken), "")
        found[f"{name} {number}" if name in taken else name] = path
    return found


def _read_evaluation(
    run_dir: Path, folder: Path, name: str, role: Role, dataset: DatasetContent | None, reason: str
) -> Evaluation:
    metrics, remedy = read_evaluation(folder), remedy_for(folder)
    split = take(metrics, "split", str, folder / METRICS_FILE, remedy=remedy)
    path = folder / EVALUATION_FILE
    record = read_json(path, remedy=remedy) if path.is_file() else {}
    if role is Role.EXTERNAL:
        dataset, reason = _evaluated_data(record, RunDescription.read(run_dir))
    elif split != {Role.VALIDATION: Split.VAL, Role.TEST: Split.TEST}[role]:
        raise InputError(
            f"{folder / METRICS_FILE} is about the split {split!r}, expected the {role} split: it was written over. "
            f"{remedy}"
        )
    title = {Role.VALIDATION: "Validation split", Role.TEST: "Test split"}.get(role, f"External: {name}")
    return Evaluation(name, title, role, split, folder, metrics, record, dataset, reason)


def _check_datasets(evaluations: Sequence[Evaluation], settings: dict[str, Any]) -> None:
    """Refuse a test split of another dataset, and external evaluations that are of no other one, or of one twice.

    Raises:
        InputError: the evaluation on the test split is of another dataset than the training; an external evaluation is
            of another split than "test", of the dataset that the run was trained on, or of the same dataset as another
            one.
    """
    known = {_identity(settings): "the dataset that the run was trained on"}
    for one in evaluations:
        if one.role is Role.TEST and is_other_data(one.record.get("dataset"), settings.get("dataset")):
            place = one.record.get("dataset_dir")
            raise InputError(
                f"{one.folder} is of another dataset{f', {place},' if place else ''} than the run was trained on: move "
                f"it, for example to {one.folder.parent}/evaluation_other, and name it with --external. The run's own "
                "test split can be evaluated then."
            )
        if one.role is not Role.EXTERNAL:
            continue
        if one.split != Split.TEST:
            raise InputError(
                f"--external {one.folder} is of the split {one.split!r}, expected 'test': give all patients of another "
                "dataset to test, and evaluate them with --split test."
            )
        identity = _identity(one.record)
        if identity and identity in known:
            raise InputError(
                f"--external {one.folder} is of {known[identity]}: an external cohort is of other patients. Leave it "
                "out."
            )
        known[identity] = f"the same dataset as {one.title}"


def _identity(content: dict[str, Any]) -> str:
    """The dataset that a settings.json or evaluation.json names, to compare; empty where it names none."""
    return json.dumps(content["dataset"], sort_keys=True) if content.get("dataset") else ""


def _check_weights(run_dir: Path, description: RunDescription, evaluations: Sequence[Evaluation]) -> None:
    """Refuse evaluations of other weights: those of another run, or of this one before it went on.

    Raises:
        InputError: evaluation.json has other hashes than the weights in the run have.
    """
    for one in evaluations:
        if problem := tell_other_weights(run_dir, one.folder, description.names):
            raise InputError(problem)


def _training_data(
    run_dir: Path, settings: dict[str, Any], description: RunDescription, named: str | Path | None
) -> tuple[DatasetContent | None, str]:
    """The dataset of the training; or None, and why it cannot be shown."""
    try:
        folder = trained_on(run_dir) if named is None else Path(named)
        same = dataset_identity(folder) == settings.get("dataset", dataset_identity(folder))
        if same:
            return read_dataset(folder, description.fold), ""
        reason = f"{folder} is not the dataset that {run_dir} was trained on: its rows, splits or classes differ."
    except InputError as error:
        if named is not None:
            raise
        reason = str(error)
    if named is not None:
        raise InputError(f"{reason} Name the one it was trained on with --data.")
    return None, reason


def _evaluated_data(record: dict[str, Any], description: RunDescription) -> tuple[DatasetContent | None, str]:
    """The dataset of an external evaluation; or None, and why it cannot be shown."""
    if "dataset_dir" not in record:
        return None, f"No {EVALUATION_FILE} says which dataset was evaluated: evaluate again with this version."
    try:
        folder = Path(str(record["dataset_dir"]))
        if dataset_identity(folder) != record.get("dataset", dataset_identity(folder)):
            return None, f"{folder} was changed since it was evaluated: evaluate again."
        # Earlier versions did not note the fold; it was that of the training unless another one was asked for.
        known = {"fold": description.fold, **record}
        fold = take(known, "fold", int | None, EVALUATION_FILE, remedy="Evaluate again.")
        return read_dataset(folder, fold), ""
    except InputError as error:
        return None, str(error)


def read_dataset(folder: Path, fold: int | None) -> DatasetContent:
    """Read what a dataset folder says of itself.

    Args:
        folder: the dataset folder.
        fold: test fold, where its splits are folds; those of another dataset may be none.

    Raises:
        InputError: it is none, a file is damaged, or its splits leak.
    """
    info = read_info(folder)
    manifest = read_manifest(folder)
    split = None
    if info.splits is not None and has_splits(folder):
        split = assign_splits(folder, manifest, info, fold=fold if has_folds(folder) else None)
    slides, failures = folder / SLIDES_FILE, folder / FAILURES_FILE
    columns = ["input", "reason"]
    return DatasetContent(
        folder=folder,
        info=info,
        manifest=manifest,
        split=split,
        slides=read_table(slides, ["slide_id"], remedy=_DATASET_AGAIN) if slides.is_file() else None,
        failures=read_table(failures, columns, remedy=_DATASET_AGAIN)
        if failures.is_file()
        else pd.DataFrame(columns=columns, dtype=object),
    )
