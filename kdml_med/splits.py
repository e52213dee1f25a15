"""Which patients train, validate and test; and the gate that keeps one patient from doing two of these.

splits.csv has the columns patient_id and either ``split`` (train, val, test) or ``fold`` (0 … k−1). It is frozen: its
SHA-256 stands in dataset.json, and every reader goes through ``read_splits``, which refuses a file that was edited,
does not fit the manifest, or leaks.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from kdml_med.errors import InputError
from kdml_med.keys import Split
from kdml_med.manifest import SPLITS_FILE, DatasetInfo, read_info, write_info, write_table

DEFAULT_FRACTIONS = (0.6, 0.15, 0.25)
SPLIT_NAMES = [split.value for split in Split]
_RESTARTS = 64  # of the greedy search; sites are few, so this takes milliseconds

Codes = npt.NDArray[np.int64]


def make_splits(
    manifest: pd.DataFrame,
    *,
    classes: Sequence[str],
    fractions: Sequence[float] | None = None,
    folds: int | None = None,
    seed: int = 0,
    site_preserved: bool = False,
) -> pd.DataFrame:
    """Assign patients to splits or folds, stratified by label.

    The strata are patients with the negative label only, with both labels (possible when slides carry the labels), with
    the positive label only, and without any. Every split gets both classes. The result depends on the patients, their
    labels (and sites) and the seed, not on the order or number of rows.

    Args:
        manifest: columns patient_id, label and, for ``site_preserved``, site.
        classes: class names in index order; empty without labels.
        fractions: of patients for train, val and test, adding up to 1; val or test may be 0. By default
            ``DEFAULT_FRACTIONS``. Not together with ``folds``.
        folds: number of folds, at least 3: one tests, one validates, the rest train.
        seed: of the shuffling.
        site_preserved: keep all patients of a site together, so that a test site was never seen in training.

    Returns:
        Columns patient_id and split, or patient_id and fold (int); sorted by patient_id.

    Raises:
        InputError: too few patients (or sites) of a class, unknown labels, missing sites, or unusable fractions.

    Source:
        Why sites: Howard et al. 2021, Nat Commun 12:4423, site-specific signatures in TCGA slides.
    """
    shares = _shares(fractions, folds)
    patients = _patient_table(manifest, classes)
    used = [index for index, share in enumerate(shares) if share > 0]
    unit_name = "site" if site_preserved else "patient"
    units = _site_units(manifest, patients) if site_preserved else np.arange(len(patients))
    covers = _count(units, patients[["negative", "positive"]].to_numpy(dtype=np.int64))
    _check_enough(covers, len(used), unit_name, classes)

    generator = np.random.default_rng(seed)
    strata = patients["stratum"].to_numpy()
    codes = None if site_preserved else _cut_strata(strata, shares, generator)
    if codes is None or _missing(codes, covers, used):
        sizes = _count(units, np.eye(4, dtype=np.int64)[strata])
        codes = _search(sizes, covers, shares, used, generator)
        if _missing(codes, covers, used):
            raise InputError(
                f"no assignment of {covers.shape[0]} {unit_name}s to {len(used)} parts was found that gives every part "
                "both classes. Use fewer folds" + (", or do not keep sites together." if site_preserved else ".")
            )
    assigned = codes[units]
    values: Any = assigned if folds is not None else [SPLIT_NAMES[code] for code in assigned]
    return pd.DataFrame({"patient_id": patients.index, "fold" if folds is not None else "split": values})


def _shares(fractions: Sequence[float] | None, folds: int | None) -> list[float]:
    if folds is not None:
        if fractions is not None:
            raise InputError("give fractions or folds, not both.")
        if folds < 3:
            raise InputError(f"folds is {folds}, expected at least 3: one tests, one validates, the rest train.")
        return [1 / folds] * folds
    shares = [float(share) for share in (DEFAULT_FRACTIONS if fractions is None else fractions)]
    if len(shares) != 3 or min(shares) < 0 or shares[0] == 0 or abs(sum(shares) - 1) > 1e-6:
        raise InputError(f"fractions are {shares}, expected three (train, val, test) that add up to 1, train above 0.")
    return shares


def _patient_table(manifest: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """One row per patient, sorted: whether it has each class, and its stratum 0 … 3."""
    pairs = manifest[["patient_id", "label"]].drop_duplicates()
    labels = pairs["label"]
    unknown = sorted(set(labels.dropna()) - set(classes))
    if unknown:
        raise InputError(f"the manifest has labels {unknown} that are not among the classes {list(classes)}.")
    positive = labels == classes[-1] if len(classes) else labels.notna()
    flags = pd.DataFrame({"negative": labels.notna() & ~positive, "positive": positive.astype(bool)})
    table = flags.groupby(pairs["patient_id"]).any().sort_index()
    # Order: none, negative, both, positive.
    order = np.array([[0, 3], [1, 2]])
    table["stratum"] = order[table["negative"].to_numpy(dtype=int), table["positive"].to_numpy(dtype=int)]
    return table


def _site_units(manifest: pd.DataFrame, patients: pd.DataFrame) -> Codes:
    """Unit of each patient: sites joined where a patient was seen at two of them."""
    pairs = manifest[["patient_id", "site"]].drop_duplicates()
    without = sorted(set(pairs["patient_id"][pairs["site"].isna()]))
    if without:
        raise InputError(
            f"{len(without)} patients have no site, the first is {without[0]!r}. Keeping sites together needs "
            "the site of every patient: add a site column to the label table and make the dataset again."
        )
    sites, _ = pd.factorize(pairs["site"], sort=True)
    rows = patients.index.get_indexer(pd.Index(pairs["patient_id"]))
    size = len(patients) + int(sites.max(initial=-1)) + 1
    graph = coo_array((np.ones(len(rows)), (rows, sites + len(patients))), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    codes, _ = pd.factorize(component[: len(patients)])  # numbered along the sorted patients
    return np.asarray(codes, dtype=np.int64)


def _count(units: Codes, table: Codes) -> Codes:
    """Sum of table rows, [patients, columns], for each unit: [units, columns]."""
    result = np.zeros((int(units.max(initial=-1)) + 1, table.shape[1]), dtype=np.int64)
    np.add.at(result, units, table)
    return result


def _check_enough(covers: Codes, parts: int, unit: str, classes: Sequence[str]) -> None:
    if len(covers) < parts:
        raise InputError(f"{parts} parts need at least {parts} {unit}s, there are {len(covers)}.")
    if not covers.any():
        return  # nothing is labelled, so there is nothing to balance
    negative = " or ".join(classes[:-1])
    counts = {name: int(count) for name, count in zip((negative, classes[-1]), (covers > 0).sum(axis=0), strict=True)}
    if min(counts.values()) < parts:
        found = " and ".join(f"{count} with {name!r}" for name, count in counts.items())
        raise InputError(
            f"{parts} parts need at least {parts} {unit}s of each class, there are {found}. "
            f"Add {unit}s, use fewer folds, or leave out a part with a fraction of 0."
        )


def _cut_strata(strata: Codes, shares: Sequence[float], generator: np.random.Generator) -> Codes:
    """Shuffle each stratum and cut it by the shares, rounding to whole patients."""
    codes = np.zeros(len(strata), dtype=np.int64)
    owed = np.zeros(len(shares))  # what rounding took so far, so that it does not add up over strata
    for stratum in np.unique(strata):
        members = generator.permutation(np.flatnonzero(strata == stratum))
        wanted = np.asarray(shares) * len(members) + owed
        counts = np.maximum(np.floor(wanted + 1e-9), 0).astype(np.int64)
        while counts.sum() > len(members):  # a debt of earlier strata can ask for less than none
            counts[np.argmax(np.where(counts > 0, counts - wanted, -np.inf))] -= 1
        while counts.sum() < len(members):
            counts[np.argmax(wanted - counts)] += 1
        used = np.flatnonzero(np.asarray(shares) > 0)
        for part in used[counts[used] == 0]:
            if counts.max() > 1 and len(members) >= len(used):
                counts[np.argmax(counts)] -= 1
                counts[part] += 1
        owed = wanted - counts
        codes[members] = np.repeat(np.arange(len(shares)), counts)
    return codes


def _missing(codes: Codes, covers: Codes, used: Sequence[int]) -> int:
    """How many (part, class) pairs have no unit, plus the parts without any unit."""
    needed = covers.any(axis=0)
    held = np.array([[(covers[codes == part, column] > 0).any() for column in (0, 1)] for part in used])
    empty = sum(not (codes == part).any() for part in used)
    return int((~held[:, needed]).sum()) + empty


def _search(
    sizes: Codes, covers: Codes, shares: Sequence[float], used: Sequence[int], generator: np.random.Generator
) -> Codes:
    """Greedy assignment of units of unequal size, best of several orders.

    Args:
        sizes: [units, strata], patients.
        covers: [units, 2], patients with each class.
        shares: [parts].
        used: parts with a share above 0.
        generator: for the orders.

    Returns:
        [units], part of each unit.
    """
    totals = np.maximum(sizes.sum(axis=0), 1)
    weights = np.concatenate([sizes / totals, sizes.sum(axis=1, keepdims=True) / sizes.sum()], axis=1)
    targets = np.outer(shares, weights.sum(axis=0))
    best: tuple[float, float] = (np.inf, np.inf)
    result = np.zeros(len(sizes), dtype=np.int64)
    for restart in range(_RESTARTS):
        # Large units first, a little shuffled; every other time fill gaps in the classes before sizes.
        order = np.argsort(-weights[:, -1] * generator.uniform(0.5, 1.5, len(sizes)), kind="stable")
        codes = np.zeros(len(sizes), dtype=np.int64)
        filled = np.zeros_like(targets)
        held = np.zeros((len(shares), 2), dtype=bool)
        for unit in order:
            growth = ((filled + weights[unit] - targets) ** 2 - (filled - targets) ** 2).sum(axis=1)
            gain = (~held & (covers[unit] > 0)).sum(axis=1) if restart % 2 else 0
            cost = growth - 1e6 * gain
            part = used[int(np.argmin(cost[list(used)]))]
            codes[unit] = part
            filled[part] += weights[unit]
            held[part] |= covers[unit] > 0
        score = (float(_missing(codes, covers, used)), float(((filled - targets) ** 2).sum()))
        if score < best:
            best, result = score, codes
    return result


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
    digest = hashlib.sha256(splits.to_csv(index=False, lineterminator="\n").encode()).hexdigest()
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
            f"`python -m preprocessing.make_splits {dataset_dir}` (datasets for inference only need none)."
        )
    content = path.read_bytes()
    try:
        splits = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
    except (ValueError, pd.errors.ParserError) as error:
        raise InputError(f"{path} cannot be read as CSV ({error}).") from error
    splits = check_splits(splits, manifest, str(path))
    if not info.splits or info.splits.get("sha256") != hashlib.sha256(content).hexdigest():
        state = "was edited after it was frozen" if info.splits else "was never frozen"
        raise InputError(
            f"{path} {state}: its hash is not the one in dataset.json. Make the splits again with `python -m "
            f"preprocessing.make_splits {dataset_dir} --force`, or, to use the file as it stands, freeze it with "
            f"`python -m preprocessing.make_splits {dataset_dir} --from-table {path} --force`."
        )
    _check_shared(splits, manifest, info, path)
    return splits


def check_splits(splits: pd.DataFrame, manifest: pd.DataFrame, where: str) -> pd.DataFrame:
    """Check that splits are well-formed and name exactly the patients of the manifest, each once.

    Args:
        splits: columns patient_id and split or fold; folds may be text.
        manifest: column patient_id.
        where: the file, for messages.

    Returns:
        The splits, with folds as integers.

    Raises:
        InputError: they are not, or do not; the message names the patients.
    """
    splits = _check_structure(splits, where)
    _check_patients(splits, manifest, where)
    return splits


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


def _check_patients(splits: pd.DataFrame, manifest: pd.DataFrame, where: str) -> None:
    listed, present = set(splits["patient_id"]), set(manifest["patient_id"])
    problems = [
        f"{len(names)} patients of {one} are not in {other}: {', '.join(sorted(names)[:5])}" + " …" * (len(names) > 5)
        for names, one, other in ((present - listed, "the manifest", where), (listed - present, where, "the manifest"))
        if names
    ]
    if problems:
        raise InputError(
            "; ".join(problems) + ". The splits were made for other patients; make them again with "
            "`python -m preprocessing.make_splits DATASET --force`."
        )


def _check_shared(splits: pd.DataFrame, manifest: pd.DataFrame, info: DatasetInfo, path: Path) -> None:
    part = manifest["patient_id"].map(splits.set_index("patient_id").iloc[:, 0])
    stored = part.groupby([manifest["shard"], manifest["offset"]]).nunique()
    if (stored > 1).any():
        shard, offset = stored.index[stored > 1][0]
        owners = manifest["patient_id"][(manifest["shard"] == shard) & (manifest["offset"] == offset)]
        raise InputError(
            f"the tile at {shard}, byte {offset}, is listed for the patients {sorted(set(owners))}, "
            f"who are in different parts of {path}: this would leak. Correct the table the dataset was made from."
        )
    if (info.splits or {}).get("site_preserved"):
        sites = part.groupby(manifest["site"]).nunique()
        if (sites > 1).any():
            raise InputError(
                f"{path} is recorded as keeping sites together, but site {sites.index[sites > 1][0]!r} is in "
                f"{sites.max()} parts. Make the splits again with --site-preserved --force."
            )


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
        "train", "val" or "test"; the index is that of the manifest, the name is "split".

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
    return manifest["patient_id"].map(names).rename("split")


def describe_splits(manifest: pd.DataFrame, splits: pd.DataFrame) -> pd.DataFrame:
    """Patients and tiles of each class in each split or fold.

    A patient with slides of both classes counts in each of them.

    Returns:
        Columns split (or fold), label ("unlabelled" where unknown), patients, tiles.
    """
    kind = splits.columns[1]
    parts = manifest["patient_id"].map(splits.set_index("patient_id")[kind])
    rows = pd.DataFrame(
        {kind: parts, "label": manifest["label"].fillna("unlabelled"), "patient_id": manifest["patient_id"]}
    )
    table = rows.groupby([kind, "label"], sort=True)["patient_id"].agg(patients="nunique", tiles="size").reset_index()
    if kind == "split":
        table = table.sort_values(kind, key=lambda names: names.map(SPLIT_NAMES.index), kind="stable")
    return table.reset_index(drop=True)
