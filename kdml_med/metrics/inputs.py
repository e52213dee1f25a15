"""The checks that every binary metric begins with."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd


def as_binary(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Labels as bool [n] and probabilities as float64 [n].

    Raises:
        ValueError: they are not vectors of one length, or a label is neither 0 nor 1.
    """
    truth = np.asarray(labels)
    scores = np.asarray(probabilities, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != scores.shape:
        raise ValueError(
            f"labels and probabilities must be vectors of one length, got shapes {truth.shape} and {scores.shape}."
        )
    wrong = truth[(truth != 0) & (truth != 1)]
    if len(wrong):
        raise ValueError(f"labels must be 0 or 1, found {wrong[0]}; leave unlabelled samples out.")
    return truth.astype(bool), scores


def is_positive(labels: npt.ArrayLike, positive: str) -> npt.NDArray[np.bool_]:
    """Labels of patients.csv as metrics take them: whether each is of the positive class, bool [n].

    A comparison, ``labels == positive``, would take a misspelt class for one that nobody has, and what has no label for
    a negative.

    Args:
        labels: class names, [n].
        positive: name of the positive class.

    Raises:
        ValueError: no label is called so (the message names those there are), or one is missing.
    """
    names = pd.Series(np.asarray(labels, dtype=object))
    missing = int(names.isna().sum())
    if missing:
        raise ValueError(f"{missing} of {len(names)} have no label: leave them out first, with dropna.")
    found = sorted(names.map(str).unique())
    if positive not in found:
        raise ValueError(f"no label is {positive!r}; there are {', '.join(map(repr, found)) or 'none'}.")
    return (names == positive).to_numpy(dtype=np.bool_)


def group_codes(groups: npt.ArrayLike | None, length: int) -> tuple[npt.NDArray[np.intp], int]:
    """Number of each sample's group, [length], and how many groups there are.

    Raises:
        ValueError: another number of groups, or a missing group.
    """
    if groups is None:
        return np.arange(length), length
    codes, unique = pd.factorize(np.asarray(groups), sort=True)  # sorted: the order of rows must not matter
    if len(codes) != length:
        raise ValueError(f"{len(codes)} groups for {length} samples.")
    if (codes < 0).any():
        raise ValueError(f"{int((codes < 0).sum())} samples have no group.")
    return codes, len(unique)


def of_several_groups(groups: npt.ArrayLike | None, *counted: npt.ArrayLike) -> bool:
    """Whether what a figure is divided by comes from two groups or more.

    Of one alone, every resample that has it gives the same ratio, or varies by the other groups only: the interval
    would say nothing about what was counted.

    Args:
        groups: [n], patient of each sample; None when each sample is its own.
        counted: each [n], above 0 where a sample counts; two or more of each have to do so, as the positives and the
            negatives of an AUROC.

    Raises:
        ValueError: another number of groups, or a missing group.
    """
    columns = [np.asarray(column) > 0 for column in counted]
    return all(len(np.unique(group_codes(groups, len(column))[0][column])) > 1 for column in columns)
