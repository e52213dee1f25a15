"""Splits that are frozen in a dataset folder, and a run that would make others of them: found out before it writes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from kdml_med.errors import InputError
from kdml_med.splits import describe_splits, has_splits, read_splits
from kdml_med.storage.folder import DatasetFolder
from kdml_med.storage.manifest import SPLITS_FILE, read_info, read_manifest
from kdml_med.storage.reading import read_table
from kdml_med.storage.shards import Origin, Record

_WHY = "Results on other splits cannot be compared with earlier ones; to replace them anyway pass --force."
_WHY_NOT_JOIN = (
    "Results on other splits cannot be compared with earlier ones; to add it anyway pass --force, which replaces the "
    "splits, or choose another --out for what is new."
)


def frozen_splits(folder: DatasetFolder[Record]) -> dict[str, str]:
    """Split or fold, as text, by patient, as it is frozen in the folder; empty when none is.

    Raises:
        InputError: splits.csv is damaged, or gone.
    """
    if not folder.info.splits and not has_splits(folder.path):
        return {}
    frozen = read_table(folder.path / SPLITS_FILE, ["patient_id"], remedy="Make the splits again.")
    return dict(frozen.iloc[:, :2].itertuples(index=False, name=None))


def check_sides(folder: DatasetFolder[Record], splits: Mapping[str, str], said: str) -> None:
    """Check that no patient of the frozen splits changes sides.

    Args:
        folder: the dataset.
        splits: split or fold, as text, by patient, as this run has it.
        said: words before the new split, such as "this run in".

    Raises:
        InputError: one does.
    """
    for patient, split in frozen_splits(folder).items():
        if splits.get(patient, split) != split:
            raise InputError(
                f"{folder.path / SPLITS_FILE} has {patient!r} in {split}, {said} {splits[patient]}. {_WHY}"
            )


def check_patients_stay(
    folder: DatasetFolder[Record],
    origins: Mapping[str, Origin],
    owners: Mapping[str, Sequence[tuple[str, str]]],
    kept: Sequence[str] = (),
) -> None:
    """Check that the patients of the folder will be those of its frozen splits, as far as can be known by now.

    A shard that is finished says whose images it holds. Of the others only the inputs are known; those that could not
    be used the last time are not counted upon, so that the same command may be given again.

    Args:
        folder: the dataset.
        origins: what each shard of this run is made from.
        owners: (input, patient) of all that goes into each of these shards.
        kept: further shards that stay in the folder.

    Raises:
        InputError: a patient joins or leaves.
    """
    frozen = frozen_splits(folder)
    if not frozen:
        return
    expected: set[str] = set()
    possible: set[str] = set()
    finished, failed = set(folder.finished()), _failed_inputs(folder)
    for name, origin in origins.items():
        stored = _find_stored(folder, name, origin) if name in finished else None
        if stored is None:
            possible |= {patient for _, patient in owners[name]}
            expected |= {patient for source, patient in owners[name] if source not in failed}
        else:
            expected |= stored
    for name in kept:
        expected |= set(folder.read(name)[1].column("patient_id").to_pylist())
    _refuse_change(folder, frozen, expected, possible)


def check_patients_are(folder: DatasetFolder[Record], patients: Collection[str]) -> None:
    """Check that the patients that were stored are those of the frozen splits, where there are any.

    Args:
        folder: the dataset.
        patients: of all rows.

    Raises:
        InputError: a patient has joined or left.
    """
    frozen = frozen_splits(folder)
    if frozen:
        _refuse_change(folder, frozen, set(patients), set())


def describe_frozen(path: Path, *, forced: bool) -> str:
    """The splits of a dataset as a table for people, or why there are none to show.

    Args:
        path: of the dataset, which has splits.
        forced: the run was to go on whatever splits are frozen; those that were not replaced may be of others.

    Raises:
        InputError: the splits cannot be used, and the run was not forced.
    """
    manifest, info = read_manifest(path), read_info(path)
    try:
        splits = read_splits(path, manifest, info)
    except InputError as error:
        if not forced:
            raise
        return f"NOTE: {error}"
    return describe_splits(manifest, splits, info).to_string(index=False)


def _refuse_change(
    folder: DatasetFolder[Record], frozen: Mapping[str, str], expected: set[str], possible: set[str]
) -> None:
    joining, leaving = sorted(expected - set(frozen)), sorted(set(frozen) - expected - possible)
    path = folder.path / SPLITS_FILE
    if joining:
        raise InputError(
            f"{path} has no split for {joining[0]!r}, which joins in this run ({len(joining)} such). {_WHY_NOT_JOIN}"
        )
    if leaving:
        raise InputError(
            f"{path} has {leaving[0]!r} in {frozen[leaving[0]]}, of which nothing is left in this run ({len(leaving)} "
            f"such). {_WHY}"
        )


def _find_stored(folder: DatasetFolder[Record], name: str, origin: Origin) -> set[str] | None:
    """Patients of a finished shard; None where it has to be made anew."""
    try:
        record, rows = folder.read(name)
    except InputError:  # damaged
        return None
    known = record.origin
    if known is None or known.tell_change(known.presume(origin)) is not None:
        return None
    return set(rows.column("patient_id").to_pylist())


def _failed_inputs(folder: DatasetFolder[Record]) -> set[str]:
    """Inputs that failures.csv names."""
    return {part for name, _ in folder.read_failures() for part in inputs_of(name)}


def inputs_of(name: str) -> set[str]:
    """Inputs that a name in failures.csv may mean; of a frame of a video, "<video>/<number>", the video as well."""
    return {name, name.rpartition("/")[0]}
