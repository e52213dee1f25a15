"""From tile probabilities to one probability for each slide or patient."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from kdml_med.keys import PredictionColumn, network_order

AggregationMethod = Literal["mean", "median", "top_k_mean", "fraction_positive"]
Level = Literal["patient", "slide"]

GROUP_COLUMNS: dict[str, str] = {
    "patient": PredictionColumn.PATIENT_ID.value,
    "slide": PredictionColumn.SLIDE_ID.value,
}
"""Column of a prediction table that names the groups of a level."""


def aggregate_tiles(
    probabilities: npt.ArrayLike,
    groups: npt.ArrayLike,
    method: AggregationMethod = "mean",
    *,
    top_k: int = 10,
    threshold: float = 0.5,
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    """One value for each group of tiles.

    Args:
        probabilities: [tiles], of the positive class.
        groups: [tiles], slide or patient of each tile.
        method: "mean"; "median"; "top_k_mean", the mean of the ``top_k`` highest (of all, when there are fewer);
            "fraction_positive", the share of tiles with a probability of at least ``threshold``.
        top_k: tiles that "top_k_mean" takes, at least 1.
        threshold: probability from which "fraction_positive" counts a tile.

    Returns:
        Sorted unique groups, [groups], and their values, float64 [groups]. A group with a NaN is NaN.

    Raises:
        ValueError: unknown method, shapes differ, ``top_k`` below 1, or a missing group.
    """
    _check_method(method, top_k)
    values = np.asarray(probabilities, dtype=np.float64)
    names = np.asarray(groups)
    if values.ndim != 1 or names.shape != values.shape:
        raise ValueError(f"expected two vectors of one length, got shapes {values.shape} and {names.shape}.")
    codes, unique = pd.factorize(names, sort=True)
    if (codes < 0).any():
        raise ValueError(f"{int((codes < 0).sum())} tiles have no group.")
    return np.asarray(unique), _aggregate(values, codes, len(unique), method, top_k, threshold)


def _check_method(method: str, top_k: int) -> None:
    if method not in get_args(AggregationMethod):
        raise ValueError(f"aggregation {method!r}: expected one of {list(get_args(AggregationMethod))}.")
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}, expected at least 1.")


def _aggregate(
    values: npt.NDArray[np.float64],
    codes: npt.NDArray[np.intp],
    groups: int,
    method: AggregationMethod,
    top_k: int,
    threshold: float,
) -> npt.NDArray[np.float64]:
    counts = np.bincount(codes, minlength=groups)
    if method == "mean":
        return np.bincount(codes, weights=values, minlength=groups) / counts
    if method == "fraction_positive":
        result = np.bincount(codes, weights=values >= threshold, minlength=groups) / counts
    else:
        ordered = values[np.lexsort((values, codes))]
        ends = np.cumsum(counts)
        starts = ends - counts
        if method == "median":
            result = (ordered[starts + (counts - 1) // 2] + ordered[starts + counts // 2]) / 2
        else:
            taken = np.minimum(counts, top_k)
            group = np.repeat(np.arange(groups), counts)
            from_top = ends[group] - np.arange(len(ordered))  # 1 for the highest of its group
            kept = from_top <= top_k
            result = np.bincount(group[kept], weights=ordered[kept], minlength=groups) / taken
    result[codes[np.isnan(values)]] = np.nan
    return result


def aggregate_predictions(
    frame: pd.DataFrame,
    level: Level = "patient",
    method: AggregationMethod = "mean",
    *,
    top_k: int = 10,
    threshold: float = 0.5,
    via_slides: bool = False,
) -> pd.DataFrame:
    """One row for each network and group of a table with the columns of ``PredictionColumn``.

    A patient's tiles are pooled, so that a slide counts by its number of tiles. With ``via_slides`` a patient is the
    mean of the patient's slides, each slide counting once.

    Args:
        frame: one row for each tile and network; labels are class indices, -1 or missing where unknown.
        level: "patient" or "slide".
        method: as for ``aggregate_tiles``.
        top_k: as for ``aggregate_tiles``.
        threshold: as for ``aggregate_tiles``.
        via_slides: only for level "patient".

    Returns:
        Columns network, patient_id (at slide level also slide_id), label, probability, tiles; sorted by network and
        group. A label is an int; -1 where unknown.

    Raises:
        ValueError: a column is missing, a group has two labels, or an argument is unknown.
    """
    if level not in GROUP_COLUMNS:
        raise ValueError(f"level {level!r}: expected one of {list(GROUP_COLUMNS)}.")
    if via_slides and level != "patient":
        raise ValueError('via_slides needs level "patient".')
    missing = sorted({column.value for column in PredictionColumn} - set(frame.columns))
    if missing:
        raise ValueError(f"the predictions lack the columns {missing}; they have {list(frame.columns)}.")
    group_column = GROUP_COLUMNS["slide" if via_slides else level]
    table = _aggregate_by(frame, group_column, method, top_k, threshold)
    if via_slides:
        patient = GROUP_COLUMNS["patient"]
        tiles = table.groupby(["network", patient], sort=True)["tiles"].sum().to_numpy()
        table = _aggregate_by(table, patient, "mean", top_k, threshold).assign(tiles=tiles)
    patient_column = [] if level == "patient" else [GROUP_COLUMNS["patient"]]
    return table[["network", GROUP_COLUMNS[level], *patient_column, "label", "probability", "tiles"]]


def _aggregate_by(
    frame: pd.DataFrame, group_column: str, method: AggregationMethod, top_k: int, threshold: float
) -> pd.DataFrame:
    _check_method(method, top_k)
    found, group_codes = frame["network"].unique(), frame[group_column].astype("category").cat
    if pd.isna(found).any() or (group_codes.codes < 0).any():
        raise ValueError(f"the predictions have rows without a network or without a {group_column}.")
    networks, ranks = sorted(found), group_codes.categories.argsort().argsort()
    # Of ten million tiles each vector takes 80 MB, so that codes stay narrow and few vectors are held at a time.
    positions = ranks[group_codes.codes.to_numpy()]
    for place, network in enumerate(networks):
        positions[(frame["network"] == network).to_numpy()] += place * len(ranks)
    unique = np.flatnonzero(np.bincount(positions))
    places = np.zeros(len(networks) * len(ranks), dtype=np.intp)
    places[unique] = np.arange(len(unique))
    positions = places[positions]
    probabilities = np.asarray(frame["probability"], dtype=np.float64)
    values = _aggregate(probabilities, positions, len(unique), method, top_k, threshold)
    labels = frame["label"].fillna(-1).to_numpy(dtype=np.int64)
    first = np.zeros(len(unique), dtype=np.int64)
    first[positions[::-1]] = np.arange(len(frame))[::-1]  # the last assignment counts
    differing = np.flatnonzero(labels != labels[first][positions])
    if len(differing):
        row = int(differing[0])
        raise ValueError(
            f"{group_column} {frame[group_column].iloc[row]!r} has the labels {labels[first][positions][row]} and "
            f"{labels[row]}; aggregate to a level at which labels agree."
        )
    columns: dict[str, Any] = {"network": np.asarray(networks, dtype=object)[unique // max(len(ranks), 1)]}
    for name in ("patient_id", "slide_id"):
        columns[name] = frame[name].iloc[first].to_numpy(dtype=object) if name in frame else None
    columns |= {"label": labels[first], "probability": values, "tiles": np.bincount(positions, minlength=len(unique))}
    return pd.DataFrame(columns)


def group_table(
    predictions: pd.DataFrame, *, level: Level, method: AggregationMethod, classes: list[str]
) -> pd.DataFrame:
    """One row per patient or slide: identifiers, label where known, number of tiles, one probability per network.

    Args:
        predictions: columns of ``PredictionColumn``.
        level: "patient" or "slide".
        method: see ``kdml_med.metrics.aggregation.aggregate_tiles``.
        classes: class names in index order; probabilities are of the last one.
    """
    groups = aggregate_predictions(predictions, level, method)
    identifiers = ["patient_id"] if level == "patient" else ["slide_id", "patient_id"]
    wide = groups.pivot(index=[*identifiers, "label", "tiles"], columns="network", values="probability").reset_index()
    wide.columns.name = None
    names = dict(enumerate(classes))
    wide["label"] = [names.get(label) for label in wide["label"]]
    ordered = [name for name in wide.columns if name not in (*identifiers, "label", "tiles")]
    ordered.sort(key=network_order)
    renamed = {name: f"probability_{name}" for name in ordered}
    return wide[[*identifiers, "label", "tiles", *ordered]].rename(columns=renamed)
