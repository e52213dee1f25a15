"""Predictions of finished cells, as what arms are compared by."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import pandas as pd

from kdml_med.bundle import fold_of
from kdml_med.data.selection import select_rows
from kdml_med.errors import InputError
from kdml_med.experiments.plan import Cell
from kdml_med.experiments.results import Results
from kdml_med.experiments.training import CELL_FILE, evaluation_dir
from kdml_med.keys import NetworkName, Split, Task
from kdml_med.metrics.aggregation import GROUP_COLUMNS, aggregate_predictions
from kdml_med.metrics.box_matching import Group
from kdml_med.metrics.paired_scores import (
    BrierScores,
    ClassificationScores,
    DetectionMetric,
    DetectionScores,
    Scores,
)
from kdml_med.runs import DETECTIONS_FILE, PREDICTIONS_FILE, TRAIN_AGAIN, read_run_json
from kdml_med.storage.files import content_hash
from kdml_med.storage.manifest import MANIFEST_FILE, read_info
from kdml_med.storage.reading import damaged, read_rows

Role = Literal["teacher", "students", "ensemble"]

TILE = "tile"


def read_predictions(results: Results, cell: Cell, evaluation: str) -> pd.DataFrame:
    """Tiles of a classification cell that have a label, columns of ``PredictionColumn``, networks as in tables."""
    table = _read(results, cell, evaluation, PREDICTIONS_FILE)
    return table[table["label"].fillna(-1) != -1].reset_index(drop=True)


def read_detections(results: Results, cell: Cell, evaluation: str) -> pd.DataFrame:
    """Boxes of a detection cell, columns of ``DetectionColumn``, networks as in tables."""
    return _read(results, cell, evaluation, DETECTIONS_FILE)


def _read(results: Results, cell: Cell, evaluation: str, name: str) -> pd.DataFrame:
    path = results.folder(cell) / evaluation_dir(evaluation) / name
    table = read_rows(path, ["sample_id", "patient_id", "network"], remedy=TRAIN_AGAIN)
    shown = {stored: name for name, stored in results.networks(cell).items()}
    kept: pd.DataFrame = table[table["network"].isin(list(shown))]
    return kept.assign(network=kept["network"].map(shown)).reset_index(drop=True)


def at_level(results: Results, cell: Cell, evaluation: str, predictions: pd.DataFrame, level: str) -> pd.DataFrame:
    """Predictions as the evaluation has aggregated them.

    Args:
        results: of the cell.
        cell: that the predictions are of.
        evaluation: likewise.
        predictions: see ``read_predictions``.
        level: "tile", or the level of the evaluation's metrics.json.

    Returns:
        Columns sample_id, patient_id, network, label, probability; one row for each network and tile, slide or patient.
    """
    columns = ["sample_id", "patient_id", "network", "label", "probability"]
    if level == TILE:
        return predictions[columns]
    metrics = results.metrics(cell, evaluation)
    groups = aggregate_predictions(predictions, cast(Any, level), metrics["aggregation"])
    return groups.assign(sample_id=groups[GROUP_COLUMNS[level]])[columns]


def evaluated_frames(results: Results, cell: Cell, evaluation: str) -> pd.DataFrame:
    """Manifest rows of the frames that a detection cell was evaluated on.

    Raises:
        InputError: the dataset folder is missing, or no longer the one that the cell was evaluated on.
    """
    settings = results.plan.evaluations[evaluation]
    folder = Path(settings.get("dataset_dir", results.plan.dataset_dir))
    path = results.folder(cell) / CELL_FILE
    known = read_run_json(path.parent, CELL_FILE)
    with damaged(path, remedy=TRAIN_AGAIN):
        recorded = known["datasets"][evaluation if "dataset_dir" in settings else ""]["manifest_sha256"]
    fold = settings["fold"] if "fold" in settings else fold_of(folder, cell.fold)
    return _frames(folder, recorded, settings.get("split", Split.TEST.value), fold)


@functools.cache
def _frames(folder: Path, sha256: str, split: str | None, fold: int | None) -> pd.DataFrame:
    info = read_info(folder)
    if content_hash(folder / MANIFEST_FILE) != sha256:
        raise InputError(
            f"{folder} has changed since detectors were evaluated on it; their boxes cannot be judged on other frames. "
            "Put the dataset back, or run the plan again with another --out."
        )
    return select_rows(folder, info, split, fold)


def resampling_unit(results: Results, cell: Cell, evaluation: str) -> str:
    """What the intervals of an evaluation resample: "patient", "sequence" or "frame"."""
    return str(results.metrics(cell, evaluation)["bootstrap"]["unit"])


def role_networks(results: Results, cell: Cell, role: Role) -> list[str]:
    """Networks of a cell whose figures are averaged for a role; none where there is no such network."""
    names = results.networks(cell)
    if role == "students":
        return [name for name in names if name not in (NetworkName.TEACHER, NetworkName.ENSEMBLE)]
    return [role] if role in names else []


def network_roles(networks: pd.Series[str]) -> pd.Series[str]:
    """Role of each network of a table, by its name there."""
    return networks.where(networks.isin([NetworkName.TEACHER, NetworkName.ENSEMBLE]), "students")


def load_scores(results: Results, cells: Sequence[Cell], evaluation: str, metric: str) -> list[dict[str, Scores]]:
    """What the networks of one seed of an arm said.

    Where every fold has tested samples of its own, their networks count as one that was tested on all of them, and the
    fold is the stratum. Where every fold has judged the same samples, as on another dataset, each fold is a repetition
    of its own: its training has seen other patients.

    Args:
        results: of the cells.
        cells: one for each fold.
        evaluation: name.
        metric: one of ``kdml_med.experiments.endpoints.ENDPOINT_METRICS``.

    Returns:
        For each repetition the scores by network, networks as in tables.

    Raises:
        InputError: some samples were judged in several folds and some were not.
    """
    load = _detection if results.plan.task is Task.DETECTION else _classification
    return load(results, cells, evaluation, metric)


def folds_share_samples(results: Results, cells: Sequence[Cell], evaluation: str) -> bool:
    """Whether every fold has judged the same samples, see ``load_scores``.

    Args:
        results: of the cells.
        cells: one for each fold.
        evaluation: name.

    Raises:
        InputError: see ``load_scores``.
    """
    read = evaluated_frames if results.plan.task is Task.DETECTION else read_predictions
    return len(_repetitions([read(results, cell, evaluation) for cell in cells], evaluation)) > 1


def _classification(results: Results, cells: Sequence[Cell], evaluation: str, metric: str) -> list[dict[str, Scores]]:
    kind = BrierScores if metric.removeprefix("tile_") == "brier" else ClassificationScores
    tables = []
    for cell in cells:
        level = TILE if metric.startswith("tile_") else results.metrics(cell, evaluation)["level"]
        predictions = read_predictions(results, cell, evaluation)
        tables.append(at_level(results, cell, evaluation, predictions, level))
    return [
        {
            str(name): kind.of(
                rows["sample_id"],
                rows["label"],
                rows["probability"],
                units=rows["patient_id"],
                strata=rows["stratum"],
            )
            for name, rows in _concat([tables[place] for place in places]).groupby("network", sort=False)
        }
        for places in _repetitions(tables, evaluation)
    ]


def _detection(results: Results, cells: Sequence[Cell], evaluation: str, metric: str) -> list[dict[str, Scores]]:
    frames = [evaluated_frames(results, cell, evaluation) for cell in cells]
    detections = [read_detections(results, cell, evaluation) for cell in cells]
    group = cast(Group, resampling_unit(results, cells[0], evaluation))
    scores: list[dict[str, Scores]] = []
    for places in _repetitions(frames, evaluation):
        truth = _concat([frames[place] for place in places])
        boxes = _concat([detections[place] for place in places])
        by_network: dict[str, Scores] = {}
        for name in results.networks(cells[0]):
            own = boxes[boxes["network"] == name]
            by_network[name] = DetectionScores.of(
                truth, own, metric=cast(DetectionMetric, metric), group=group, strata=truth["stratum"]
            )
        scores.append(by_network)
    return scores


def _repetitions(tables: Sequence[pd.DataFrame], evaluation: str) -> list[list[int]]:
    """Folds that belong together: all of them, or each alone when they hold the same samples."""
    samples = [frozenset(table["sample_id"]) for table in tables]
    if sum(map(len, samples)) == len(frozenset().union(*samples)):
        return [list(range(len(tables)))]
    if len(set(samples)) > 1:
        raise InputError(
            f"evaluation {evaluation!r}: folds share some of their samples, not all or none; what one fold tests must "
            "be its own, or be a test set for all of them."
        )
    return [[place] for place in range(len(tables))]


def _concat(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables of folds that belong together, as strata; one table alone always has the same stratum."""
    return pd.concat([table.assign(stratum=number) for number, table in enumerate(tables)], ignore_index=True)
