"""What was found in slides, joined into tables of tiles, slides and patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from kdml_med.deploy.prediction_folder import DISAGREEMENT, PROBABILITY, Finished
from kdml_med.keys import NetworkName, PredictionColumn
from kdml_med.metrics.aggregation import group_table
from kdml_med.runs import RunDescription
from kdml_med.wsi.cutter import SlideJob
from kdml_med.wsi.tiler import EMPTY_RECORD

_IDENTIFIERS = ["sample_id", "patient_id", "slide_id"]


@dataclass(frozen=True)
class PredictionTables:
    """Tables of a prediction.

    Attributes:
        tiles: one row for each tile: identifiers, place, and probabilities by network.
        slides: one row for each slide: what is known of it, label where known, and probabilities.
        patients: see ``kdml_med.metrics.aggregation.group_table``.
    """

    tiles: pd.DataFrame
    slides: pd.DataFrame
    patients: pd.DataFrame


def join_slides(
    finished: Mapping[str, Finished], jobs: Mapping[str, SlideJob], networks: Sequence[str], run: RunDescription
) -> PredictionTables:
    """Join slides into tables.

    Args:
        finished: slides that were predicted, by name, in the order of the rows.
        jobs: what the label table says about them now.
        networks: that answered; several students are an ensemble, too.
        run: says how tiles are aggregated, and to what.
    """
    answered = [*networks, *([NetworkName.ENSEMBLE.value] if len(networks) > 1 else [])]
    parts = [
        slide.tiles.assign(patient_id=jobs[slide_id].patient_id, label=jobs[slide_id].label)
        for slide_id, slide in finished.items()
    ]
    tiles = pd.concat(parts, ignore_index=True) if parts else _no_tiles(answered)
    predictions = _long(tiles, answered, run.classes)
    method = run.aggregation or "mean"
    by_slide = group_table(predictions, level="slide", method=method, classes=run.classes)
    rows = [
        slide.record.to_row() | {"patient_id": jobs[slide_id].patient_id, "label": jobs[slide_id].label}
        for slide_id, slide in finished.items()
    ]
    slides = pd.DataFrame(rows, columns=[*EMPTY_RECORD.to_row(), "label"])
    probabilities = by_slide.drop(columns=["patient_id", "label", "tiles"])
    others = [name for name in tiles if name not in (*_IDENTIFIERS, "label")]
    return PredictionTables(
        tiles[[*_IDENTIFIERS, *others]],
        slides.merge(probabilities, on="slide_id", how="left"),
        group_table(predictions, level=run.level or "patient", method=method, classes=run.classes),
    )


def _no_tiles(networks: Sequence[str]) -> pd.DataFrame:
    numbers = ["x_l0", "y_l0", "size_l0", "mpp", "tissue_fraction"]
    numbers += [*(f"{PROBABILITY}{name}" for name in networks), DISAGREEMENT]
    texts = dict.fromkeys([*_IDENTIFIERS, "label"], pd.Series(dtype=object))
    return pd.DataFrame(texts | dict.fromkeys(numbers, pd.Series(dtype=float)))


def _long(tiles: pd.DataFrame, networks: Sequence[str], classes: Sequence[str]) -> pd.DataFrame:
    """One row for each tile and network, as predictions.parquet has them."""
    numbers = {name: number for number, name in enumerate(classes)}
    own = tiles[_IDENTIFIERS].assign(label=tiles["label"].map(numbers).fillna(-1).astype("int64"))
    rows = [own.assign(network=name, probability=tiles[f"{PROBABILITY}{name}"]) for name in networks]
    return pd.concat(rows, ignore_index=True)[[str(column) for column in PredictionColumn]]
