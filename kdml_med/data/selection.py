"""Which rows of a dataset folder a split has."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdml_med.errors import InputError
from kdml_med.splits import SPLIT_COLUMNS, assign_splits, read_splits
from kdml_med.storage.manifest import DatasetInfo, DatasetKind, read_manifest
from kdml_med.words import counted, verb

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)


def select_rows(
    dataset_dir: Path,
    info: DatasetInfo,
    split: str | None,
    fold: int | None = None,
    columns: Collection[str] | None = None,
) -> pd.DataFrame:
    """Manifest rows of a split, or all of them; either way the splits, where there are any, must not leak.

    Args:
        dataset_dir: dataset folder.
        info: of the folder.
        split: whose labelled rows; None takes every row.
        fold: see ``kdml_med.splits.assign_splits``.
        columns: of the manifest that are wanted, see ``kdml_med.storage.manifest.read_manifest``.
    """
    what = DatasetKind(info.kind).row
    if split is None:
        if info.splits is None:
            return read_manifest(dataset_dir, columns)
        known = read_manifest(dataset_dir, SPLIT_COLUMNS)
        read_splits(dataset_dir, known, info)
        everything = np.ones(len(known), np.bool_)  # checked just now
        del known
        return read_manifest(dataset_dir, columns, keep=everything)
    known = read_manifest(dataset_dir, [*SPLIT_COLUMNS, "label"])
    assigned = assign_splits(dataset_dir, known, info, fold=fold)
    inside = (assigned == split).to_numpy()
    if not inside.any():
        raise InputError(f"split {str(split)!r} of {dataset_dir} has no {what}s; present: {sorted(assigned.unique())}.")
    labelled = inside & known["label"].notna().to_numpy()
    unknown = np.flatnonzero(labelled & ~known["label"].isin(info.classes).to_numpy())
    if len(unknown):
        first = np.arange(len(known)) == unknown[0]
        row = read_manifest(dataset_dir, ["sample_id", "patient_id", "label"], keep=first).iloc[0]
        raise InputError(
            f"{what} {row['sample_id']!r} of patient {row['patient_id']!r} has label {row['label']!r}, expected one of "
            f"{info.classes}: make the dataset again."
        )
    left = int(inside.sum() - labelled.sum())
    if not labelled.any():
        raise InputError(
            f"split {str(split)!r} of {dataset_dir} has no labelled {what}s: make the dataset with a label table."
        )
    if left:
        logger.info("split %s: %s without a label %s left out", split, counted(left, what), verb(left, "is", "are"))
    del known, assigned
    return read_manifest(dataset_dir, columns, keep=labelled)
