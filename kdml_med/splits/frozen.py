"""Frozen splits, and the gate that keeps one patient from training and testing.

splits.csv has the columns patient_id and either ``split`` (train, val, test) or ``fold`` (0 … k−1). It is frozen: its
SHA-256 stands in dataset.json, and every reader goes through ``read_splits``, which refuses a file that was edited,
does not fit the manifest, or leaks.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kdml_med.errors import InputError
from kdml_med.keys import Split
from kdml_med.splits.making import SPLIT_NAMES
from kdml_med.storage.columns import distinct
from kdml_med.storage.files import table_bytes, write_table
from kdml_med.storage.manifest import SPLITS_FILE, DatasetInfo, owner_word, read_info, write_info
from kdml_med.storage.reading import parse_table, read_table
from kdml_med.words import counted, printable, verb

SPLIT_COLUMNS = ("patient_id", "slide_id", "sequence_id", "site", "shard", "offset")
"""Columns of a manifest, of either kind, that ``read_splits`` and ``assign_splits`` look at."""
Numbers = npt.NDArray[np.integer[Any]]
_ALL = "all"
_UNLABELLED = "unlabelled"


def freeze_splits(
    dataset_dir: Path, splits: pd.DataFrame, *, mode: str, seed: int | None, force: bool = False, **details: Any
) -> None:
    """Write splits.csv and record its hash in dataset.json.

    Args:
        dataset_dir: a dataset folder.
        splits: columns patient_id and split or fold.
        mode: how they came about: "fractions", "folds", "official" or "table".
        seed: of the shuffling; None where nothing was shuffled.
        force: replace other splits that are frozen there.
        details: further settings to record, JSON values such as ``site_preserved``.

    Raises:
        InputError: the splits are malformed, or others are frozen there and ``force`` is not set.
    """
    digest = check_replaceable(dataset_dir, splits, force=force)
    info = read_info(dataset_dir)
    write_table(Path(dataset_dir) / SPLITS_FILE, splits.sort_values("patient_id", kind="stable"))
    info.splits = {"mode": mode, "seed": seed, **details, "sha256": digest}
    write_info(dataset_dir, info)


def check_replaceable(dataset_dir: Path, splits: pd.DataFrame, *, force: bool) -> str:
    """Check that splits may be frozen in a dataset folder.

    Returns:
        SHA-256 of the file that they become, hexadecimal.

    Raises:
        InputError: as ``freeze_splits``.
    """
    path = Path(dataset_dir) / SPLITS_FILE
    info = read_info(dataset_dir)
    splits = splits.sort_values("patient_id", kind="stable")
    _check_structure(splits, "the new splits")
    digest = hashlib.sha256(table_bytes(splits)).hexdigest()
    present = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    frozen = (info.splits or {}).get("sha256", present)
    if frozen not in (None, digest) and not force:
        raise InputError(
            f"{path} holds other splits. Results on other splits cannot be compared with earlier ones; to replace them "
            "anyway pass --force."
        )
    return digest


def has_splits(dataset_dir: Path) -> bool:
    """Whether a dataset folder has a splits.csv; folders for inference only need none."""
    return (Path(dataset_dir) / SPLITS_FILE).is_file()


def has_folds(dataset_dir: Path) -> bool:
    """Whether the splits.csv of a dataset folder holds folds."""
    path = Path(dataset_dir) / SPLITS_FILE
    return "fold" in read_table(path, remedy="Make the splits again with `kdml-med split`.")


def read_splits(dataset_dir: Path, manifest: pd.DataFrame, info: DatasetInfo) -> pd.DataFrame:
    """The leakage gate: read splits.csv and check it against the manifest and the frozen hash.

    Returns:
        Columns patient_id and split, or patient_id and fold (int).

    Raises:
        InputError: no splits.csv; it is malformed; a patient occurs twice; its patients are not those of the manifest;
            it was not frozen or was edited since; one stored tile, or one site that was to be preserved, is in two
            splits.
    """
    path = Path(dataset_dir) / SPLITS_FILE
    if not path.is_file():
        raise InputError(
            f"{dataset_dir} has no {SPLITS_FILE}, so nothing says which patients train and which test. Run "
            f"`kdml-med split {dataset_dir}` (datasets for inference only need none)."
        )
    content = path.read_bytes()
    again = f"Make the splits again with `kdml-med split {dataset_dir} --force`."
    splits = check_splits(parse_table(content, path, remedy=again), manifest, str(path), info)
    if not info.splits or info.splits.get("sha256") != hashlib.sha256(content).hexdigest():
        state = "was edited after it was frozen" if info.splits else "was never frozen"
        raise InputError(
            f"{path} {state}: its hash is not the one in dataset.json. Make the splits again with `kdml-med "
            f"split {dataset_dir} --force`, or, to use the file as it stands, freeze it with "
            f"`kdml-med split {dataset_dir} --from-table {path} --force`."
        )
    _check_shared(splits, manifest, info, path)
    return splits


def check_splits(
    splits: pd.DataFrame, manifest: pd.DataFrame, where: str, info: DatasetInfo | None = None
) -> pd.DataFrame:
    """Check that splits are well-formed and name exactly the patients of the manifest, each once.

    Args:
        splits: columns patient_id and split or fold; folds may be text.
        manifest: column patient_id.
        where: the file, for messages.
        info: of the dataset, likewise, see ``owner_word``.

    Returns:
        The splits, with folds as integers.

    Raises:
        InputError: they are not, or do not; the message names the patients.
    """
    splits = _check_structure(_take_names(splits, manifest), where)
    _check_patients(splits, manifest, where, info)
    return splits


def _take_names(splits: pd.DataFrame, manifest: pd.DataFrame) -> pd.DataFrame:
    """Patients by their names in the manifest: an editor may store an "é" as one character or as two."""
    if "patient_id" not in splits:
        return splits
    names = {unicodedata.normalize("NFC", name): name for name in manifest["patient_id"].unique()}
    ids = splits["patient_id"].map(lambda name: names.get(unicodedata.normalize("NFC", name), name))
    return splits.assign(patient_id=ids)


def _check_structure(splits: pd.DataFrame, where: str) -> pd.DataFrame:
    """Columns, names and one row per patient; gives the table with folds as integers."""
    columns = list(splits.columns)
    if columns not in (["patient_id", "split"], ["patient_id", "fold"]):
        raise InputError(f"{where}: columns are {columns}, expected patient_id and split, or patient_id and fold.")
    splits = splits.reset_index(drop=True)
    if splits.empty:
        raise InputError(f"{where}: there are no patients.")
    repeated = splits["patient_id"][splits["patient_id"].duplicated()]
    kind = columns[1]
    if len(repeated):
        rows = splits[splits["patient_id"] == repeated.iloc[0]]
        parts = sorted(set(rows[kind].astype(str)))
        problem = f"is in {kind}s {parts}: this would leak" if len(parts) > 1 else f"occurs {len(rows)} times"
        lines = [int(index) + 2 for index in rows.index]
        raise InputError(f"{where}: patient {repeated.iloc[0]!r} {problem} (rows {lines}). Keep one row per patient.")
    if kind == "split":
        wrong = splits[~splits["split"].isin(SPLIT_NAMES)]
        if len(wrong):
            raise InputError(
                f"{where}, row {wrong.index[0] + 2}: split is {wrong['split'].iloc[0]!r}, "
                f"expected one of {SPLIT_NAMES}."
            )
        return splits
    folds = pd.to_numeric(splits["fold"], errors="coerce")
    present = sorted(set(folds.dropna()))
    if folds.isna().any() or present != list(range(len(present))) or len(present) < 3:
        raise InputError(
            f"{where}: folds are {sorted(set(splits['fold']))}, expected 0, 1, 2 … without gaps, at least 3."
        )
    return splits.assign(fold=folds.astype(np.int64))


def _check_patients(splits: pd.DataFrame, manifest: pd.DataFrame, where: str, info: DatasetInfo | None) -> None:
    listed, present = set(splits["patient_id"]), set(manifest["patient_id"].unique())
    owner = owner_word(manifest, info)
    problems = [
        f"{counted(len(names), owner)} of {one} {verb(len(names), 'is', 'are')} not in {other}: "
        f"{', '.join(sorted(names)[:5])}" + " …" * (len(names) > 5)
        for names, one, other in ((present - listed, "the manifest", where), (listed - present, where, "the manifest"))
        if names
    ]
    if problems:
        raise InputError(
            "; ".join(problems) + ". The splits were made for others; make them again with "
            "`kdml-med split DATASET --force`."
        )


def _check_shared(splits: pd.DataFrame, manifest: pd.DataFrame, info: DatasetInfo, path: Path) -> None:
    part = _parts_of(manifest, splits.set_index("patient_id").iloc[:, 0]).cat.codes.to_numpy()
    shards = manifest["shard"].astype("category").cat.codes.to_numpy()
    shared = _first_shared(shards, manifest["offset"].to_numpy(), part)
    if shared is not None:
        shard, offset = manifest["shard"].iloc[shared], int(manifest["offset"].iloc[shared])
        owners = manifest["patient_id"][(manifest["shard"] == shard) & (manifest["offset"] == offset)]
        raise InputError(
            f"the image at {shard}, byte {offset}, is listed for the patients {sorted(set(owners))}, "
            f"who are in different parts of {path}: this would leak. Correct the table the dataset was made from."
        )
    if (info.splits or {}).get("site_preserved"):
        sites = distinct(manifest[["site"]].assign(part=part).dropna(), ["site", "part"]).groupby("site").size()
        if (sites > 1).any():
            raise InputError(
                f"{path} is recorded as keeping sites together, but site {sites.index[sites > 1][0]!r} is in "
                f"{sites.max()} parts. Make the splits again with --site-preserved --force."
            )


def _first_shared(shards: Numbers, offsets: Numbers, parts: Numbers) -> int | None:
    """A row whose bytes are those of a row of another part; None when there is none. All [rows]."""
    steps = np.diff(shards)
    if not len(steps) or bool(((steps > 0) | ((steps == 0) & (np.diff(offsets) > 0))).all()):
        return None  # in order, as they are written, so that no image is there twice
    order = np.lexsort((offsets, shards))
    same = (np.diff(shards[order]) == 0) & (np.diff(offsets[order]) == 0)
    wrong = np.flatnonzero(same & (np.diff(parts[order]) != 0))
    return int(order[wrong[0]]) if len(wrong) else None


def _parts_of(manifest: pd.DataFrame, names: pd.Series[Any]) -> pd.Series[Any]:
    """Split or fold of each row, categorical, from that of each patient."""
    patients = manifest["patient_id"].astype("category").cat
    codes, words = pd.factorize(names.reindex(patients.categories), sort=True)
    return pd.Series(pd.Categorical.from_codes(codes[patients.codes], words), index=manifest.index)


def assign_splits(
    dataset_dir: Path, manifest: pd.DataFrame, info: DatasetInfo, *, fold: int | None = None
) -> pd.Series[str]:
    """Split of each manifest row, through the leakage gate.

    Args:
        dataset_dir: a dataset folder.
        manifest: of that folder, columns of ``TILE_COLUMNS``.
        info: of that folder.
        fold: for splits.csv with folds: this fold tests, the next one (the last one's next is 0) validates, the others
            train. None for splits.csv with splits.

    Returns:
        "train", "val" or "test", categorical; the index is that of the manifest, the name is "split".

    Raises:
        InputError: as ``read_splits``; or ``fold`` is missing, not wanted or out of range.
    """
    splits = read_splits(dataset_dir, manifest, info)
    path = Path(dataset_dir) / SPLITS_FILE
    names: pd.Series[Any] = splits.set_index("patient_id").iloc[:, 0]
    if "split" in splits:
        if fold is not None:
            raise InputError(f"fold {fold} was asked for, but {path} has splits, not folds. Leave the fold out.")
    else:
        count = int(splits["fold"].max()) + 1
        if fold is None:
            raise InputError(f"{path} has {count} folds: say which one tests, 0 to {count - 1}.")
        if not 0 <= fold < count:
            raise InputError(f"fold {fold} was asked for, but {path} has the folds 0 to {count - 1}.")
        roles = {fold: Split.TEST.value, (fold + 1) % count: Split.VAL.value}
        names = names.map(lambda number: roles.get(number, Split.TRAIN.value))
    return _parts_of(manifest, names).rename("split")


def describe_splits(manifest: pd.DataFrame, splits: pd.DataFrame, info: DatasetInfo | None = None) -> pd.DataFrame:
    """Patients and tiles (or frames) of each split or fold, in all and by class.

    Args:
        manifest: of the dataset.
        splits: as in splits.csv.
        info: of the dataset, see ``owner_word``.

    Returns:
        One row for each split or fold, and a last one, "all". Columns split (or fold); patients (what ``owner_word``
        calls them); of those the ones with each class, with both ("several" of more than two) and unlabelled, which add
        up to all; tiles (or frames), and those of each class and unlabelled. Columns of nothing but 0 are left out.
    """
    kind = str(splits.columns[1])
    owner, what = f"{owner_word(manifest, info)}s", "frames" if "sequence_id" in manifest else "tiles"
    own = distinct(manifest, ["patient_id", "label"])
    own[kind] = own["patient_id"].map(splits.set_index("patient_id")[kind])
    by_owner = own.groupby("patient_id").agg(part=(kind, "first"), label=("label", "first"), n=("label", "nunique"))
    classes = sorted(own["label"].dropna().unique())
    several = "both" if len(classes) == 2 else "several"
    groups = by_owner["label"].fillna(_UNLABELLED).where(by_owner["n"] < 2, several)
    columns = _counts(by_owner["part"], groups, owner, [*classes, several, _UNLABELLED])
    if owner != what:
        labels = own["label"].fillna(_UNLABELLED)
        columns += [
            (what if name == what else f"{name} {what}", values)
            for name, values in _counts(own[kind], labels, what, [*classes, _UNLABELLED], own["rows"])
        ]
    table = pd.concat([values for _, values in columns], axis=1)
    parts = list(by_owner["part"].unique())
    order = sorted(parts, key=SPLIT_NAMES.index) if kind == "split" else sorted(parts)
    table = table.reindex([*order, _ALL])
    table.columns = pd.Index([printable(name) for name, _ in columns])
    return table.rename_axis(kind).reset_index()


def _counts(
    parts: pd.Series, groups: pd.Series, name: str, order: Sequence[str], rows: pd.Series | None = None
) -> list[tuple[str, pd.Series]]:
    """Numbers by part and over all of them: of everything, called ``name``, and of each group that has any.

    With ``rows`` a pair of part and group counts that often.
    """
    counts = pd.Series(1, parts.index) if rows is None else rows
    table = counts.groupby([parts, groups]).sum().unstack(fill_value=0).reindex(columns=list(order), fill_value=0)
    table.loc[_ALL] = table.sum()
    sums = table.sum(axis=1)
    return [(name, sums), *((group, table[group]) for group in order if table.loc[_ALL, group])]
