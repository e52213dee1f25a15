"""Which rows of a dataset folder a split has."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd

from kdml_med.errors import InputError
from kdml_med.splits import assign_splits, read_splits
from kdml_med.storage.manifest import DatasetInfo, DatasetKind, read_manifest
from kdml_med.words import counted, verb

logger = logging.getLogger(__name__)


def select_rows(dataset_dir: Path, info: DatasetInfo, split: str | None, fold: int | None) -> pd.DataFrame:
    """Manifest rows of a split, or all of them; either way the splits, where there are any, must not leak."""
    what = DatasetKind(info.kind).row
    manifest = read_manifest(dataset_dir)
    if split is None:
        if info.splits is not None:
            read_splits(dataset_dir, manifest, info)
        return manifest
    assigned = assign_splits(dataset_dir, manifest, info, fold=fold)
    rows: pd.DataFrame = manifest[(assigned == split).to_numpy()]
    if rows.empty:
        raise InputError(f"split {split!r} of {dataset_dir} has no {what}s; present: {sorted(set(assigned))}.")
    labelled: pd.DataFrame = rows[rows["label"].notna()].reset_index(drop=True)
    unknown = labelled[~labelled["label"].isin(info.classes)]
    if len(unknown):
        row = unknown.iloc[0]
        raise InputError(
            f"{what} {row['sample_id']!r} of patient {row['patient_id']!r} has label {row['label']!r}, expected one of "
            f"{info.classes}: make the dataset again."
        )
    if labelled.empty:
        raise InputError(
            f"split {split!r} of {dataset_dir} has no labelled {what}s: make the dataset with a label table."
        )
    if len(labelled) < len(rows):
        left = len(rows) - len(labelled)
        logger.info("split %s: %s without a label %s left out", split, counted(left, what), verb(left, "is", "are"))
    return labelled
