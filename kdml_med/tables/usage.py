"""What became of the rows and words of a label table, as dataset.json and the screen say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from kdml_med.storage.manifest import DatasetInfo, owner_word
from kdml_med.tables.classes import describe_classes, plain_word
from kdml_med.words import counted

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 8


class RowUse(StrEnum):
    """What became of a row; the value is its key in dataset.json."""

    USED = "used"
    NO_CLASS = "no_class"
    NO_FILE = "no_file"
    UNUSABLE = "unusable"
    NOT_CHOSEN = "not_chosen"


_SAID = {
    RowUse.USED: "used",
    RowUse.NO_CLASS: "without a class",
    RowUse.NO_FILE: "without a file",
    RowUse.UNUSABLE: "whose file could not be used",
    RowUse.NOT_CHOSEN: "not chosen by --where",
}


@dataclass(frozen=True)
class LabelSource:
    """Where labels come from.

    Attributes:
        table: file name of the table; None for class folders.
        columns: column of each role, such as "label".
        words: each word as it is written, the class that it stands for (None for none) and how many rows have it.
    """

    table: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    words: dict[str, tuple[str | None, int]] = field(default_factory=dict)


def count_words(values: pd.Series[str], labels: pd.Series[str]) -> dict[str, tuple[str | None, int]]:
    """``LabelSource.words`` of a column and the classes that its words became."""
    counts = values.value_counts()
    found = dict(zip(values, labels, strict=True))
    return {word: (found[word], int(counts[word])) for word in sorted(found)}


def describe_labels(
    source: LabelSource,
    uses: Mapping[RowUse, int],
    manifest: pd.DataFrame,
    classes: Sequence[str],
    *,
    tcga_normals: bool = False,
) -> dict[str, Any]:
    """Key "labels" of dataset.json.

    Args:
        source: what was read.
        uses: how many rows of the table, or images of class folders, became what.
        manifest: columns patient_id and label.
        classes: class names in index order.
        tcga_normals: normal tissue was given the label of its patient; named only where it was.
    """
    asked = {"tcga_normals": True} if tcga_normals else {}
    return asked | {
        "table": source.table,
        "columns": source.columns,
        "positive": classes[-1],
        "patients": {name: int(manifest["patient_id"][manifest["label"] == name].nunique()) for name in classes},
        "rows": {"all": sum(uses.values())} | {use.value: uses.get(use, 0) for use in RowUse},
        "words": {word: {"class": label, "rows": count} for word, (label, count) in source.words.items()},
    }


def say_labels(info: DatasetInfo, manifest: pd.DataFrame) -> list[str]:
    """Lines for a person: the positive class and its patients, the columns, the rows, and words with another meaning.

    Args:
        info: content of dataset.json; one that an earlier version wrote does not say where labels are from.
        manifest: of that dataset.
    """
    labels = info.labels
    lines = [describe_classes(manifest, info.classes, owner=owner_word(manifest, info))]
    if labels is None:
        return lines
    what = "class folders" if labels["table"] is None else labels["table"]
    if labels["columns"]:
        lines.append(f"{what}: " + ", ".join(f"{role} from {name!r}" for role, name in labels["columns"].items()))
    rows = labels["rows"]
    parts = [f"{rows[use]} {_SAID[use]}" for use in RowUse if rows[use] or use is RowUse.USED]
    lines.append(f"{what}: {counted(rows['all'], 'image' if labels['table'] is None else 'row')}: {', '.join(parts)}")
    words = [
        f"{word or 'blank'} → {known['class'] or 'no class'} ({known['rows']})"
        for word, known in sorted(labels["words"].items(), key=lambda item: -item[1]["rows"])
        if known["class"] is None or plain_word(word) != plain_word(known["class"])
    ]
    if words:
        lines.append(
            "words: " + ", ".join(words[:_SHOWN]) + (f" and {len(words) - _SHOWN} more" * (len(words) > _SHOWN))
        )
    return lines
