"""Patient by patient: a table of all answers, and pictures of those that are right or wrong most clearly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kdml_med.clinical.rules import Point
from kdml_med.clinical.slides.findings import Findings
from kdml_med.clinical.slides.judging import POINT_WORDS, probabilities_of
from kdml_med.clinical.study import DatasetContent, Evaluation
from kdml_med.clinical.wording import either
from kdml_med.data.tiles import TileDataset
from kdml_med.deploy.pictures.dataset_maps import SlideSize, read_slide_sizes
from kdml_med.deploy.pictures.thumbnail import map_thumbnail
from kdml_med.errors import InputError
from kdml_med.keys import NetworkName, PredictionColumn
from kdml_med.report.document import Gallery, Paragraph, Part, Section, Table, Thumbnail
from kdml_med.report.wording import capital, figure, network_words
from kdml_med.runs import PREDICTIONS_FILE, TRAIN_AGAIN
from kdml_med.storage.manifest import SLIDES_FILE
from kdml_med.storage.reading import read_rows
from kdml_med.words import counted

MOST_ROWS = 2000
"""Of the table; of more, those are shown whose answer is furthest from the truth."""
_EACH = 3
"""Pictures of each kind."""
_HALF = 0.5


def patient_table(found: Findings) -> Section:
    """Every patient or slide with its answers and decisions, to sort and to filter."""
    rows = pd.concat(
        [_answer_rows(found, one) for one in [*found.study.judged, found.study.validation]], ignore_index=True
    )
    total, note = len(rows), ""
    if total > MOST_ROWS:
        rows = rows.sort_values("error", ascending=False, kind="stable").head(MOST_ROWS).sort_index()
        note = (
            f" Of {counted(total, 'row')}, those {MOST_ROWS:,} are shown whose probability is furthest from the truth; "
            "patients.csv in the run and in its evaluations has all."
        )
    level, ids = found.level, _id_columns(found)
    columns = ["cohort", *ids, "truth", *POINT_WORDS.values(), "probability", "students differ by", "tiles"]
    text = (
        f"Probability of {found.study.description.classes[-1]} by the {network_words(found.network)}, and what it is "
        "called at each threshold: ✓ right, ✗ wrong. Students differ by: the largest difference between two of them."
        f"{note}"
    )
    table = Table(
        columns, rows["cells"].tolist(), names=2 + len(ids) + len(POINT_WORDS), sortable=True, filterable=True
    )
    return Section(f"{capital(level)} by {level}", [Paragraph(text), table], folded=total > 200)


def _id_columns(found: Findings) -> dict[str, str]:
    """Columns of ids by their headings; of slides also whose they are, where that is known."""
    if found.level == "patient":
        return {"patient": "patient_id"}
    owners = [owner for owner in found.owners if owner != "slide"]
    return {"slide": "slide_id"} | ({either(owners): "patient_id"} if owners else {})


def _answer_rows(found: Findings, one: Evaluation) -> pd.DataFrame:
    """Cells of the table, and how far each answer is from the truth (-1 where that is unknown)."""
    answers = found.answers[one.name]
    table, classes = answers.table, found.study.description.classes
    students = [name for name in answers.networks if name not in (NetworkName.TEACHER, NetworkName.ENSEMBLE)]
    spread = np.zeros(len(table))
    if students:
        spread = np.ptp([probabilities_of(table, name) for name in students], axis=0)
    values = probabilities_of(table, found.network)
    thresholds = found.rules.thresholds.get(found.network, {})
    cells = []
    for row, value, differ in zip(table.to_dict("records"), values, spread, strict=True):
        label = row["label"]
        truth = "–" if np.isnan(label) else classes[int(label)]
        calls = [_call(value, thresholds.get(point, np.nan), label, classes) for point in POINT_WORDS]
        ids = [str(row[name]) for name in _id_columns(found).values()]
        spread_cell = figure(differ) if len(students) > 1 else "–"
        cells.append([one.title, *ids, truth, *calls, figure(value), spread_cell, f"{int(row['tiles']):,}"])
    error = np.nan_to_num(np.abs(values - table["label"].to_numpy()), nan=-1)
    return pd.DataFrame({"cells": cells, "error": error})


def _call(value: float, threshold: float, label: float, classes: list[str]) -> str:
    """As in "✗ MSS"; a dash where nothing can be decided."""
    if np.isnan(value) or np.isnan(threshold):
        return "–"
    called = value >= threshold
    mark = "" if np.isnan(label) else "✓ " if called == bool(label) else "✗ "
    return f"{mark}{classes[int(called)]}"


@dataclass(frozen=True)
class _Kind:
    """Which patients a gallery shows: their truth, what they are called, and how the most certain come first."""

    words: str
    label: int
    called: int


_KINDS = (
    _Kind("missed {positive}, the lowest probabilities", 1, 0),
    _Kind("{negative} called {positive}, the highest probabilities", 0, 1),
    _Kind("{positive} found, the highest probabilities", 1, 1),
    _Kind("{negative} left alone, the lowest probabilities", 0, 0),
)


def gallery(found: Findings) -> Section:
    """Maps of the patients whose answers are right or wrong most clearly."""
    threshold = found.rules.thresholds.get(found.network, {}).get(Point.YOUDEN.value, np.nan)
    point = f"the {POINT_WORDS[Point.YOUDEN.value]} threshold of {figure(threshold)}"
    if np.isnan(threshold):
        threshold, point = _HALF, "0.5, because validation could choose no threshold"
    parts: list[Part] = []
    for one in found.study.judged or found.study.evaluations:
        parts += _evaluation_galleries(found, one, threshold)
    text = (
        f"Right and wrong at {point}. Each picture: the part of a slide that has tiles, and the "
        f"{network_words(found.network)}'s probability of {found.study.description.classes[-1]} for each tile, from "
        "dark blue (0) to yellow (1). A map shows where a network sees something, not that it is there."
    )
    return Section("Most certain and most wrong", [Paragraph(text), *parts])


def _evaluation_galleries(found: Findings, one: Evaluation, threshold: float) -> list[Part]:
    def skipped(reason: str) -> list[Part]:
        return [Paragraph(reason, lead=f"{one.title}: no pictures.")]

    if one.dataset is None:
        return skipped(one.without_dataset)
    try:
        maps = _Maps.of(found, one, one.dataset)
        if maps is None:
            return skipped("The tiles were imported, and nothing says where in their slides they lie.")
        positive, negative = found.study.description.classes[-1], found.study.description.classes[0]
        parts: list[Part] = []
        for kind in _KINDS:
            chosen = _choose(found, one, kind, threshold)
            title = f"{one.title}: {kind.words.format(positive=positive, negative=negative)}"
            if len(chosen):
                parts.append(
                    Gallery([maps.draw(row, threshold) for row in chosen.to_dict("records")], title, wide=True)
                )
            else:
                parts.append(Paragraph("none.", lead=f"{title}:"))
        return parts
    except InputError as error:  # shards that were moved must not cost the report
        return skipped(str(error))


def _choose(found: Findings, one: Evaluation, kind: _Kind, threshold: float) -> pd.DataFrame:
    """The rows of answers that a gallery shows, the clearest first."""
    table = found.answers[one.name].labelled
    table = table.assign(probability=probabilities_of(table, found.network)).dropna(subset="probability")
    own = table[(table["label"] == kind.label) & ((table["probability"] >= threshold) == bool(kind.called))]
    return own.sort_values("probability", ascending=not kind.called, kind="stable").head(_EACH)


@dataclass(frozen=True)
class _Maps:
    """What pictures of an evaluation are drawn from."""

    found: Findings
    tiles: TileDataset
    placed: pd.DataFrame
    sizes: dict[str, SlideSize]

    @classmethod
    def of(cls, found: Findings, one: Evaluation, data: DatasetContent) -> _Maps | None:
        """None where tiles have no positions.

        Raises:
            InputError: the dataset or the predictions cannot be read.
        """
        places = ["x_l0", "y_l0", "size_l0"]
        predictions = read_rows(one.folder / PREDICTIONS_FILE, list(PredictionColumn), remedy=TRAIN_AGAIN)
        own = predictions[predictions[PredictionColumn.NETWORK] == found.network].set_index("sample_id")
        own = own[["patient_id", "slide_id", "probability"]]
        placed = data.manifest[["sample_id", *places]].join(own, on="sample_id", how="inner")
        if placed.empty:
            raise InputError(f"{data.folder} holds none of the tiles that were evaluated.")
        if placed[places].isna().any(axis=None):
            return None
        return cls(found, TileDataset(data.folder), placed, read_slide_sizes(data.folder / SLIDES_FILE))

    def draw(self, row: dict[Any, Any], threshold: float) -> Thumbnail:
        """The slide of a row of answers; of several, the one that speaks most for what the patient is called.

        Args:
            row: of the answers.
            threshold: from which the patient is called positive.
        """
        level, value = self.found.level, row["probability"]
        own = self.placed[self.placed[f"{level}_id"] == row[f"{level}_id"]]
        means = own.groupby("slide_id")["probability"].mean()
        slide = str(means.idxmax() if value >= threshold else means.idxmin())
        if slide not in self.sizes:
            raise InputError(f"{self.tiles.dataset_dir / SLIDES_FILE} has no slide {slide!r}, which has tiles.")
        tiles, size = _cropped(own[own["slide_id"] == slide], self.sizes[slide])
        classes, synthetic = self.found.study.description.classes, self.found.study.synthetic
        several = f" (of {counted(len(means), 'slide')})" if len(means) > 1 else ""
        named = f"Patient {row['patient_id']}"
        named += "" if slide == row["patient_id"] else f", slide {slide}{several}"
        caption = f"{named}\n{classes[int(row['label'])]}, probability {figure(value)}; {counted(len(tiles), 'tile')}"
        image = map_thumbnail(self.tiles, tiles, size, synthetic=synthetic)
        return Thumbnail(image, caption, f"Slide and map. {caption}")


def _cropped(tiles: pd.DataFrame, slide: SlideSize) -> tuple[pd.DataFrame, SlideSize]:
    """Tiles as if the slide ended where they do: glass is wide, and pictures are small."""
    left, top = tiles["x_l0"].min(), tiles["y_l0"].min()
    placed = tiles.assign(x_l0=tiles["x_l0"] - left, y_l0=tiles["y_l0"] - top)
    width, height = ((placed[name] + placed["size_l0"]).max() for name in ("x_l0", "y_l0"))
    return placed, SlideSize(int(np.ceil(width)), int(np.ceil(height)), slide.mpp)
