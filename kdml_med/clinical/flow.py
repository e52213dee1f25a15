"""Who and what came into a study, and what did not, with reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from kdml_med.clinical.study import DatasetContent, Study
from kdml_med.keys import Split
from kdml_med.report.document import Paragraph, Part, Section, Table
from kdml_med.report.wording import count
from kdml_med.storage.manifest import DatasetKind
from kdml_med.tables.usage import RowUse

SHOWN_FAILURES = 200
"""Inputs that are named on the page; failures.csv of the dataset has them all."""

_SPLITS = {Split.TRAIN.value: "training", Split.VAL.value: "validation", Split.TEST.value: "test"}
_ROWS = {
    RowUse.NO_CLASS: "the label table gives no class",
    RowUse.NO_FILE: "no file was there",
    RowUse.UNUSABLE: "the file could not be used",
    RowUse.NOT_CHOSEN: "not chosen by --where",
}
_TILES = {
    "rejected_tissue": "too little tissue",
    "rejected_background": "too much background",
    "rejected_pen": "pen marks",
    "rejected_blur": "blurred",
    "unreadable": "could not be read from the slide",
}


@dataclass(frozen=True)
class Group:
    """What a split holds.

    Attributes:
        name: of the split, for people.
        patients: different ones.
        groups: slides or sequences.
        rows: tiles or frames.
        classes: patients by class; a patient with slides (or frames) of both counts in each.
        unlabelled: tiles or frames without a class, which nothing is learned from and nobody is judged by.
    """

    name: str
    patients: int
    groups: int
    rows: int
    classes: dict[str, int]
    unlabelled: int


@dataclass(frozen=True)
class Exclusion:
    """What did not come in: how many of what, and why."""

    what: str
    reason: str
    number: int


@dataclass(frozen=True)
class Flow:
    """A dataset by splits, and what was left out of it.

    Attributes:
        candidates: rows of the label table; None where the dataset does not say.
        groups: training, validation and test as far as there are splits, then all of them.
        exclusions: with reasons; those of which there are none are left out.
        failures: (input, reason) of every input that could not be used.
    """

    candidates: int | None
    groups: list[Group]
    exclusions: list[Exclusion]
    failures: list[tuple[str, str]]

    def content(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self) | {"failures": len(self.failures)}


def count_flow(data: DatasetContent) -> Flow:
    """Count patients, slides and tiles (or sequences and frames) of a dataset, and what was left out."""
    kind = DatasetKind(data.info.kind)
    groups = []
    if data.split is not None:
        parts = [(words, data.manifest[(data.split == name).to_numpy()]) for name, words in _SPLITS.items()]
        groups = [_count_group(words, rows, kind, data.info.classes) for words, rows in parts if len(rows)]
    groups.append(_count_group("all", data.manifest, kind, data.info.classes))
    rows = (data.info.labels or {}).get("rows", {})
    return Flow(
        candidates=rows.get("all"),
        groups=groups,
        exclusions=[one for one in _find_exclusions(data, kind, rows, groups[-1]) if one.number],
        failures=list(zip(data.failures["input"], data.failures["reason"], strict=True)),
    )


def _count_group(name: str, rows: pd.DataFrame, kind: DatasetKind, classes: Sequence[str]) -> Group:
    by_class = {label: int(rows["patient_id"][rows["label"] == label].nunique()) for label in classes}
    return Group(
        name=name,
        patients=int(rows["patient_id"].nunique()),
        groups=int(rows[kind.group].nunique()),
        rows=len(rows),
        classes=by_class,
        unlabelled=int(rows["label"].isna().sum()),
    )


def _find_exclusions(data: DatasetContent, kind: DatasetKind, rows: dict[str, int], every: Group) -> list[Exclusion]:
    found = [Exclusion("rows of the label table", reason, int(rows.get(use, 0))) for use, reason in _ROWS.items()]
    if kind is DatasetKind.TILES and data.slides is not None:
        counts = data.slides.apply(pd.to_numeric, errors="coerce")
        empty = int((counts["tiles"] == 0).sum()) if "tiles" in counts else 0
        found.append(Exclusion("slides", "no tile was kept", empty))
        found += [
            Exclusion("tiles", reason, int(counts[column].sum()))
            for column, reason in _TILES.items()
            if column in counts
        ]
    found.append(Exclusion(f"{kind.row}s", "without a class: neither learned from nor judged", every.unlabelled))
    return found


def flow_section(study: Study) -> Section:
    """Patients, slides and tiles of every dataset that the run met, and what was excluded."""
    parts: list[Part] = []
    if study.dataset is None:
        parts.append(
            Paragraph(
                f"The dataset folder of the training cannot be read, so that nothing can be counted here. "
                f"{study.without_dataset}",
                lead="Not shown.",
            )
        )
    else:
        parts += _dataset_parts(study.dataset, "Dataset of the training")
    for one in study.evaluations:
        if one.dataset is not None and one.dataset is not study.dataset:
            parts += _dataset_parts(one.dataset, one.title)
        elif one.dataset is None and study.dataset is not None:
            parts.append(Paragraph(one.without_dataset, lead=f"{one.title}: not shown."))
    return Section("Cohort flow", parts)


def _dataset_parts(data: DatasetContent, title: str) -> list[Part]:
    flow, kind = count_flow(data), DatasetKind(data.info.kind)
    group = kind.group.removesuffix("_id")
    columns = [title, "patients", *(f"patients {name}" for name in data.info.classes), f"{group}s", f"{kind.row}s"]
    rows = [
        [one.name, *(f"{number:,}" for number in (one.patients, *one.classes.values(), one.groups, one.rows))]
        for one in flow.groups
    ]
    parts: list[Part] = [Table(columns, rows)]
    if data.split is None:
        parts.append(Paragraph("The dataset has no splits."))
    if flow.candidates is not None:
        source = (data.info.labels or {}).get("table") or "The class folders"
        parts.append(Paragraph(f"{source}: {count(flow.candidates, 'row')}."))
    if flow.exclusions:
        excluded = [[one.what, one.reason, f"{one.number:,}"] for one in flow.exclusions]
        parts.append(Table(["left out", "reason", "number"], excluded, names=2))
    else:
        parts.append(Paragraph("Nothing was left out."))
    limit = data.info.options.get("limit_tiles")
    if limit is not None:
        parts.append(Paragraph(f"At most {count(int(limit), 'tile')} of each slide were drawn at random."))
    parts += _failures(flow, data)
    return parts


def _failures(flow: Flow, data: DatasetContent) -> list[Part]:
    if not flow.failures:
        return []
    shown = [[name, reason] for name, reason in flow.failures[:SHOWN_FAILURES]]
    parts: list[Part] = [Table(["input that could not be used", "reason"], shown, names=2)]
    if len(flow.failures) > len(shown):
        more = len(flow.failures) - len(shown)
        parts.append(Paragraph(f"And {count(more, 'more input')}: failures.csv in {data.folder} names them all."))
    return parts
