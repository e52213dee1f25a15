"""The tables of a run, read and written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kdml_med.keys import DetectionColumn, HistoryColumn, LossColumn, PlaceColumn, PredictionColumn
from kdml_med.runs.files import HISTORY_FILE, LOSSES_FILE, TRAIN_AGAIN
from kdml_med.storage.files import write_parquet
from kdml_med.storage.reading import damaged, read_table

if TYPE_CHECKING:
    import pandas as pd


def read_losses(run_dir: str | Path) -> pd.DataFrame:
    """Rows of losses.csv, columns of ``LossColumn``.

    Raises:
        InputError: the file is missing or damaged.
    """
    whole, real = (LossColumn.EPOCH, LossColumn.ITERATIONS), (LossColumn.WEIGHT, LossColumn.VALUE)
    return _read_numbers(Path(run_dir) / LOSSES_FILE, list(LossColumn), whole, real)


def read_history(run_dir: str | Path) -> pd.DataFrame:
    """Rows of history.csv, columns of ``HistoryColumn``.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = Path(run_dir) / HISTORY_FILE
    return _read_numbers(path, list(HistoryColumn), [HistoryColumn.EPOCH], [HistoryColumn.VALUE])


def _read_numbers(path: Path, columns: Sequence[str], whole: Sequence[str], real: Sequence[str]) -> pd.DataFrame:
    table = read_table(path, columns, remedy=TRAIN_AGAIN)
    with damaged(path, remedy=TRAIN_AGAIN):
        return table.astype({str(name): "int64" for name in whole} | {str(name): "float64" for name in real})


def write_predictions(path: Path, predictions: pd.DataFrame, tiles: pd.DataFrame | None = None) -> None:
    """Write predictions.parquet; the same rows give the same bytes.

    Args:
        path: of the file.
        predictions: columns of ``PredictionColumn``.
        tiles: rows of the manifest that the predictions are of, which know where each tile was cut; None: unknown.
    """
    import pandas as pd

    own = predictions[[str(column) for column in PredictionColumn]]
    known = pd.DataFrame(columns=["sample_id", *PlaceColumn]) if tiles is None else tiles
    rows = _rows_of(own["sample_id"], known["sample_id"])
    places = known[list(map(str, PlaceColumn))].reset_index(drop=True).reindex(rows)  # −1 is no row: unknown
    kinds = {PlaceColumn.X_L0.value: "Int64", PlaceColumn.Y_L0.value: "Int64", PlaceColumn.SIZE_L0.value: "float64"}
    write_parquet(path, own.assign(**places.set_index(own.index).astype(kinds)))


def _rows_of(wanted: pd.Series, known: pd.Series) -> npt.NDArray[np.intp]:
    """Row of each id, [wanted]; −1 for those that are not known.

    An evaluation predicts all tiles in their order, network by network, which is told without a look-up of every id.
    """
    import pandas as pd

    size = len(known)
    parts = [wanted.iloc[start : start + size] for start in range(0, len(wanted), size)] if size else []
    if parts and all(part.reset_index(drop=True).equals(known.reset_index(drop=True)) for part in parts):
        return np.tile(np.arange(size), len(parts))
    return np.asarray(pd.Index(known).get_indexer(pd.Index(wanted)), dtype=np.intp)


def write_detections(path: Path, detections: pd.DataFrame) -> None:
    """Write detections.parquet, columns of ``DetectionColumn``; the same rows give the same bytes."""
    write_parquet(path, detections[[str(column) for column in DetectionColumn]])
