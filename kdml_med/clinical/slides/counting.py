"""Who and what is in a dataset, and what was left out of it, with reasons: the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from kdml_med.clinical.study import DatasetContent
from kdml_med.keys import Split
from kdml_med.storage.columns import distinct
from kdml_med.storage.manifest import DatasetKind, owner_word
from kdml_med.tables.usage import RowUse

_BOTH, _NO_CLASS = "both", "without a class"
TABLE_ROWS = "rows of the label table"
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
        patients: different ones, or what stands for them, see ``Flow.owner``.
        groups: slides or sequences.
        rows: tiles or frames.
        classes: patients by class, those with slides (or tiles) of both under "both" and those with none under
            "without a class", where there are any; they add up to all.
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

    @property
    def of_table(self) -> bool:
        """Whether rows of the label table are meant, before anything was cut."""
        return self.what == TABLE_ROWS


@dataclass(frozen=True)
class Flow:
    """A dataset by splits, and what was left out of it.

    Attributes:
        owner: what has the id of a patient: "patient", or what stands for patients where they are not known.
        candidates: rows of the label table; None where the dataset does not say.
        groups: training, validation and test as far as there are splits, then all of them.
        exclusions: with reasons; those of which there are none are left out.
        failures: (input, reason) of every input that could not be used.
    """

    owner: str
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
        owner=owner_word(data.manifest, data.info),
        candidates=rows.get("all"),
        groups=groups,
        exclusions=[one for one in _find_exclusions(data, kind, rows, groups[-1]) if one.number],
        failures=list(zip(data.failures["input"], data.failures["reason"], strict=True)),
    )


def _count_group(name: str, rows: pd.DataFrame, kind: DatasetKind, classes: Sequence[str]) -> Group:
    labels = distinct(rows, ["patient_id", "label"]).groupby("patient_id")["label"].agg(["first", "nunique"])
    counts = labels["first"].fillna(_NO_CLASS).where(labels["nunique"] < 2, _BOTH).value_counts()
    by_class = {name: int(counts.get(name, 0)) for name in [*classes, _BOTH, _NO_CLASS]}
    return Group(
        name=name,
        patients=int(rows["patient_id"].nunique()),
        groups=int(rows[kind.group].nunique()),
        rows=len(rows),
        classes={label: number for label, number in by_class.items() if number or label in classes},
        unlabelled=int(rows["label"].isna().sum()),
    )


def _find_exclusions(data: DatasetContent, kind: DatasetKind, rows: dict[str, int], every: Group) -> list[Exclusion]:
    found = [Exclusion(TABLE_ROWS, reason, int(rows.get(use, 0))) for use, reason in _ROWS.items()]
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
