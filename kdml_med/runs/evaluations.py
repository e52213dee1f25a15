"""Whether what an evaluation found still holds for the run that it was made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kdml_med.runs.files import EVALUATION_FILE, SETTINGS_FILE
from kdml_med.runs.weights import checkpoint_path, hash_checkpoints
from kdml_med.storage.manifest import dataset_identity
from kdml_med.storage.reading import read_json


def tell_other_weights(run_dir: str | Path, folder: str | Path, names: Iterable[str]) -> str:
    """Why figures of an evaluation are not those of the weights that lie in a run.

    Args:
        run_dir: folder of the run.
        folder: of the evaluation.
        names: networks of the run whose weights matter. One whose weights were moved away is not compared.

    Returns:
        Sentences for a person; empty where the weights are the same, or where an earlier version or the training itself
        did not note which it evaluated.

    Raises:
        InputError: evaluation.json is damaged.
    """
    run_dir, path = Path(run_dir), Path(folder) / EVALUATION_FILE
    used = read_json(path, remedy="Evaluate again.").get("weights") if path.is_file() else None
    if not isinstance(used, dict):
        return ""
    there = [name for name in names if name in used and checkpoint_path(run_dir, name).is_file()]
    for name, digest in hash_checkpoints(run_dir, there).items():
        if used[name] != digest:
            return (
                f"{folder} was evaluated with other weights of {name} than lie in {run_dir}: it is of another run, or "
                "of this one before its training went on. Evaluate again."
            )
    return ""


def tell_other_data(run_dir: str | Path, folder: str | Path, dataset_dir: Path) -> str:
    """Why figures of an evaluation are not those of a dataset.

    Args:
        run_dir: folder of the run; of its own dataset when the evaluation lies in it.
        folder: of the evaluation.
        dataset_dir: dataset folder.

    Returns:
        A sentence for a person; empty where both are the same, or where an earlier version did not note which it was.

    Raises:
        InputError: a file of the run is damaged, or the dataset cannot be read.
    """
    if not is_other_data(evaluated_dataset(run_dir, folder), dataset_identity(dataset_dir)):
        return ""
    return f"the figures in {folder} are of another dataset than {dataset_dir}."


def evaluated_dataset(run_dir: str | Path, folder: str | Path) -> Any:
    """The dataset that figures in a folder are of, as ``dataset_identity`` tells it; None where none was noted.

    Args:
        run_dir: folder of the run, whose own figures are of the dataset it was trained on.
        folder: of the evaluation, or again of the run.

    Raises:
        InputError: the file is damaged.
    """
    path = Path(folder) / (SETTINGS_FILE if Path(folder) == Path(run_dir) else EVALUATION_FILE)
    return read_json(path, remedy="Evaluate again.").get("dataset") if path.is_file() else None


def is_other_data(first: Any, second: Any) -> bool:
    """Whether two datasets are known to differ.

    Args:
        first: what "dataset" of settings.json or evaluation.json holds, or ``dataset_identity``; None where an earlier
            version noted none.
        second: likewise. What only one of both says, as earlier versions said no classes, is not compared.
    """
    if not isinstance(first, Mapping) or not isinstance(second, Mapping):
        return False
    return any(first[name] != second[name] for name in first.keys() & second.keys())
