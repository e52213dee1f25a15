"""Real images of a dataset that a file and the networks it is made of are both asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from kdml_med.data.samples import ManifestDataset
from kdml_med.errors import InputError
from kdml_med.keys import Split
from kdml_med.runs import METRICS_FILE, RunDescription, tell_other_data, tell_other_weights
from kdml_med.splits import has_folds, has_splits
from kdml_med.storage.manifest import owner_word

Images = TypeVar("Images", bound=ManifestDataset)


@dataclass(frozen=True)
class Drawn(Generic[Images]):
    """Images of a split, all or some that were drawn.

    Attributes:
        dataset: the images, as an evaluation has them.
        split: "train", "val" or "test".
        available: images of the split.
    """

    dataset: Images
    split: str
    available: int

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def whole(self) -> bool:
        """Whether all images of the split are there."""
        return len(self) == self.available

    @property
    def patients(self) -> int:
        """How many patients the images are of."""
        return int(self.dataset.rows["patient_id"].nunique())

    @property
    def owner(self) -> str:
        """What these are called where patients are not known, see ``owner_word``."""
        return owner_word(self.dataset.rows, self.dataset.info)


def draw(
    kind: type[Images],
    run: RunDescription,
    dataset_dir: Path,
    split: str,
    *,
    limit: int,
    seed: int = 0,
    only_seen: bool = False,
    **settings: Any,
) -> Drawn[Images]:
    """Images of a split of the run's fold, at most ``limit``, drawn by the seed.

    Args:
        kind: class of the dataset.
        run: description of the run.
        dataset_dir: dataset folder.
        split: which part of it.
        limit: most images.
        seed: of the draw.
        only_seen: leave out images of patients that the run did not learn from.
        **settings: of the dataset.

    Raises:
        InputError: the dataset does not fit the run, or nothing is left.
    """
    fold = run.fold if has_splits(dataset_dir) and has_folds(dataset_dir) else None
    dataset = kind(dataset_dir, split, fold=fold, **settings)
    if dataset.classes != run.classes:
        raise InputError(
            f"the run knows the classes {run.classes}, {dataset_dir} has {dataset.classes}: name the dataset of the "
            "training with --data."
        )
    keep = np.arange(len(dataset))
    if only_seen:
        patients = dataset.rows["patient_id"]
        seen = {name for name in patients.unique() if run.has_seen(name, [Split.TRAIN])}
        keep = keep[patients.isin(seen).to_numpy()]
        if not len(keep):
            raise InputError(
                f"the run has learned from none of the patients in split {str(split)!r} of {dataset_dir}: name the "
                "dataset of the training with --data."
            )
    available = len(keep)
    if available > limit:
        keep = np.sort(np.random.default_rng(seed).permutation(keep)[:limit])
    dataset.keep(keep)
    return Drawn(dataset, split, available)


def recorded_evaluation(run_dir: Path, split: str) -> Path | None:
    """Folder with the evaluation of a split; training itself evaluates "val"."""
    folder = run_dir if split == Split.VAL else run_dir / f"evaluation_{split}"
    return folder if (folder / METRICS_FILE).is_file() else None


def usable_evaluation(
    run_dir: Path, split: str, parts: Sequence[str], dataset_dir: Path | None
) -> tuple[Path | None, str]:
    """The same, where its figures are of the weights in the run, and of a dataset.

    Args:
        run_dir: folder of the run.
        split: which was evaluated.
        parts: networks whose weights matter.
        dataset_dir: of the images that the figures are to be set beside; None where there are none.

    Returns:
        The folder, or None; and why an evaluation that is there is not used, else "".
    """
    folder = recorded_evaluation(run_dir, split)
    problem = "" if folder is None else tell_other_weights(run_dir, folder, parts)
    if folder is not None and not problem and dataset_dir is not None:
        problem = tell_other_data(run_dir, folder, dataset_dir)
    return None if problem else folder, problem
