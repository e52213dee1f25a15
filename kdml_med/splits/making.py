"""Drawing splits: patients stay whole, classes are spread evenly, and sites stay whole where that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from kdml_med.errors import InputError
from kdml_med.keys import Split
from kdml_med.storage.columns import distinct
from kdml_med.storage.manifest import DatasetInfo, DatasetKind, owner_word
from kdml_med.words import counted, verb

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
    required: Sequence[str] | None = None,
    info: DatasetInfo | None = None,
) -> pd.DataFrame:
    """Assign patients to splits or folds, stratified by label.

    The strata are patients with the negative label only, with both labels (possible when slides carry the labels), with
    the positive label only, and without any. Every split gets the required classes, and others where there are enough.
    The result depends on the patients, their labels (and sites) and the seed, not on the order or number of rows.

    Args:
        manifest: columns patient_id, label and, for ``site_preserved``, site.
        classes: class names in index order; empty without labels.
        fractions: of patients for train, val and test, adding up to 1; val or test may be 0. By default
            ``DEFAULT_FRACTIONS``. Not together with ``folds``.
        folds: number of folds, at least 3: one tests, one validates, the rest train.
        seed: of the shuffling.
        site_preserved: keep all patients of a site together, so that a test site was never seen in training.
        required: classes that every split must have; None for all. Frames need only polyps: many sets have hardly any
            sequence without one.
        info: of the dataset, for the words of errors, see ``owner_word``.

    Returns:
        Columns patient_id and split, or patient_id and fold (int); sorted by patient_id.

    Raises:
        InputError: too few patients (or sites) of a class, unknown labels, missing sites, or unusable fractions.

    Source:
        Why sites: Howard et al. 2021, Nat Commun 12:4423, site-specific signatures in TCGA slides.
    """
    check_request(fractions, folds, seed)
    patients = _patient_table(manifest, classes)
    if folds is not None and folds > len(patients):
        raise InputError(
            f"folds is {folds}, but there are {counted(len(patients), owner_word(manifest, info))}: use fewer folds."
        )
    shares = list(fractions or DEFAULT_FRACTIONS) if folds is None else [1 / folds] * folds
    used = [index for index, share in enumerate(shares) if share > 0]
    unit_name = "site" if site_preserved else owner_word(manifest, info)
    needed = np.array([required is None, required is None or classes[-1] in required])
    units = _site_units(manifest, patients) if site_preserved else np.arange(len(patients))
    covers = _count(units, patients[["negative", "positive"]].to_numpy(dtype=np.int64))
    _check_enough(covers, len(used), unit_name, classes, needed)

    generator = np.random.default_rng(seed)
    strata = patients["stratum"].to_numpy()
    codes = None if site_preserved else _cut_strata(strata, shares, generator)
    # A class that is not required is spread where it has enough units for that.
    wanted = covers * (needed | ((covers > 0).sum(axis=0) >= len(used)))
    if codes is None or _missing(codes, wanted, used):
        sizes = _count(units, np.eye(4, dtype=np.int64)[strata])
        found = _search(sizes, wanted, shares, used, generator)
        if codes is None or _missing(found, wanted, used) < _missing(codes, wanted, used):
            codes = found
        if _missing(codes, covers * needed, used):
            raise InputError(
                f"no assignment of {covers.shape[0]} {unit_name}s to {len(used)} parts was found that gives every part "
                f"{'both classes' if needed.all() else repr(classes[-1])}. Use fewer folds"
                + (", or do not keep sites together." if site_preserved else ".")
            )
    assigned = codes[units]
    values: Any = assigned if folds is not None else [SPLIT_NAMES[code] for code in assigned]
    return pd.DataFrame({"patient_id": patients.index, "fold" if folds is not None else "split": values})


def required_classes(info: DatasetInfo) -> list[str] | None:
    """Classes that every split of a dataset must have, for ``make_splits``: for frames the positive one, else all."""
    return info.classes[-1:] if info.kind == DatasetKind.FRAMES else None


def check_request(fractions: Sequence[float] | None, folds: int | None, seed: int) -> None:
    """Check what is asked for, before anything is read.

    Raises:
        InputError: fractions, folds or the seed make no sense, or both of the first are given.
    """
    if seed < 0:
        raise InputError(f"seed is {seed}, expected a whole number from 0.")
    if folds is not None:
        if fractions is not None:
            raise InputError("give fractions or folds, not both.")
        if folds < 3:
            raise InputError(f"folds is {folds}, expected at least 3: one tests, one validates, the rest train.")
        return
    shares = [float(share) for share in (DEFAULT_FRACTIONS if fractions is None else fractions)]
    # In this form NaN is refused as well.
    right = len(shares) == 3 and shares[0] > 0 and all(share >= 0 for share in shares) and abs(sum(shares) - 1) <= 1e-6
    if not right:
        raise InputError(f"fractions are {shares}, expected three (train, val, test) that add up to 1, train above 0.")


def _patient_table(manifest: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """One row per patient, sorted: whether it has each class, and its stratum 0 … 3."""
    pairs = distinct(manifest, ["patient_id", "label"])
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
    pairs = distinct(manifest, ["patient_id", "site"])
    without = sorted(set(pairs["patient_id"][pairs["site"].isna()]))
    if without:
        raise InputError(
            f"{counted(len(without), 'patient')} {verb(len(without), 'has', 'have')} no site, the first is "
            f"{without[0]!r}. Keeping sites together needs the site of every patient: add a site column to the label "
            "table and make the dataset again."
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


def _check_enough(covers: Codes, parts: int, unit: str, classes: Sequence[str], needed: npt.NDArray[np.bool_]) -> None:
    if len(covers) < parts:
        raise InputError(
            f"{parts} parts need at least {parts} {unit}s, there {verb(len(covers), 'is', 'are')} {len(covers)}."
        )
    if not covers.any():
        return  # nothing is labelled, so there is nothing to balance
    negative = " or ".join(classes[:-1])
    totals = zip((negative, classes[-1]), (covers > 0).sum(axis=0), needed, strict=True)
    counts = {name: int(count) for name, count, must in totals if must}
    if min(counts.values()) < parts:
        found = " and ".join(f"{count} with {name!r}" for name, count in counts.items())
        kind = "of each class" if needed.all() else f"with {classes[-1]!r}"
        raise InputError(
            f"{parts} parts need at least {parts} {unit}s {kind}, there are {found}. "
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
