"""What was found in slides, joined into tables of tiles, slides and patients."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kdml_med.deploy.slides.prediction_folder import DISAGREEMENT, PROBABILITY, Finished
from kdml_med.keys import NetworkName, PredictionColumn
from kdml_med.metrics.aggregation import group_table
from kdml_med.runs import RunDescription
from kdml_med.wsi.cutter import SlideJob
from kdml_med.wsi.shards import slide_rows
from kdml_med.wsi.tiler import EMPTY_RECORD

SEEN_IN = "seen_in"
"""Column: the part of the training data that the patient was in, "train" or "val"; empty for those it has not seen."""

_GAP = re.compile(r"[-_. ]")
_IDENTIFIERS = ["sample_id", "patient_id", "slide_id"]


@dataclass(frozen=True)
class PredictionTables:
    """Tables of a prediction.

    Attributes:
        tiles: one row for each tile: identifiers, place, and probabilities by network.
        slides: one row for each slide: what is known of it, label where known, and probabilities.
        patients: see ``kdml_med.metrics.aggregation.group_table``; and where in training they were seen.
    """

    tiles: pd.DataFrame
    slides: pd.DataFrame
    patients: pd.DataFrame

    @property
    def slides_of(self) -> dict[str, list[str]]:
        """Names of the slides of each row of ``patients``, by its first column."""
        key = str(self.patients.columns[0])
        return {str(name): own.tolist() for name, own in self.slides.groupby(key)["slide_id"]}


def join_slides(
    finished: Mapping[str, Finished],
    jobs: Mapping[str, SlideJob],
    networks: Sequence[str],
    run: RunDescription,
    seen_in: Mapping[str, str | None],
) -> PredictionTables:
    """Join slides into tables.

    Args:
        finished: slides that were predicted, by name, in the order of the rows.
        jobs: what the label table says about them now.
        networks: that answered; several students are an ensemble, too.
        run: says how tiles are aggregated, and to what.
        seen_in: by slide, where in training its patient was seen, "train", "val" or None.
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
        row | {"patient_id": jobs[slide_id].patient_id, "label": jobs[slide_id].label}
        for slide_id, row in zip(finished, slide_rows([slide.record for slide in finished.values()]), strict=True)
    ]
    slides = pd.DataFrame(rows, columns=list(rows[0]) if rows else [*EMPTY_RECORD.to_row(), "label"])
    probabilities = by_slide.drop(columns=["patient_id", "label", "tiles"])
    others = [name for name in tiles if name not in (*_IDENTIFIERS, "label")]
    patients = group_table(predictions, level=run.level or "patient", method=method, classes=run.classes)
    slides = slides.merge(probabilities, on="slide_id", how="left")
    slides[SEEN_IN] = slides["slide_id"].map(dict(seen_in)).astype(object)
    by_patient = {jobs[slide_id].patient_id: part for slide_id, part in seen_in.items() if part is not None}
    return PredictionTables(tiles[[*_IDENTIFIERS, *others]], slides, with_seen(patients, by_patient))


def with_seen(patients: pd.DataFrame, seen_in: Mapping[str, str | None]) -> pd.DataFrame:
    """A table of patients or slides with the column ``SEEN_IN``.

    Args:
        patients: with the column patient_id.
        seen_in: by patient, "train", "val" or None; patients may be absent.
    """
    return patients.assign(**{SEEN_IN: patients["patient_id"].map(dict(seen_in)).astype(object)})


def could_be_of(job: SlideJob, *, labelled: bool) -> list[str]:
    """Names that the patient of a slide may have had in training.

    Without a label table nothing but the name of the slide is known, and that often begins with the patient's.

    Args:
        job: of the slide.
        labelled: a label table says whose it is.
    """
    parts = [] if labelled else [job.slide_id[: gap.start()] for gap in _GAP.finditer(job.slide_id)]
    return [job.patient_id, *filter(None, parts)]


def networks_of(table: pd.DataFrame) -> list[str]:
    """Networks that a table of tiles has probabilities of."""
    return [name.removeprefix(PROBABILITY) for name in map(str, table) if name.startswith(PROBABILITY)]


def with_disagreement(table: pd.DataFrame) -> pd.DataFrame:
    """A table of tiles with the largest minus the smallest probability of the students, float32; null with one."""
    others = (NetworkName.TEACHER, NetworkName.ENSEMBLE)
    students = table[[f"{PROBABILITY}{name}" for name in networks_of(table) if name not in others]]
    apart = students.max(axis=1) - students.min(axis=1) if students.shape[1] > 1 else np.nan
    return table.assign(**{DISAGREEMENT: pd.Series(apart, table.index, np.float32)})


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
