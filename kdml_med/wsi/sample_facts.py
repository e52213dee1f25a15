"""What is known of the samples of tars: by their .json, by their keys, and by a label table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from kdml_med.errors import InputError
from kdml_med.tables.columns import find_column, is_blank, read_text_table
from kdml_med.tables.ids import same_patient
from kdml_med.tables.images import TableColumns, slide_column
from kdml_med.tables.labels import LabelMatch, LabelTable
from kdml_med.tables.names import same_name_form, slide_name, tcga_patient
from kdml_med.tables.usage import LabelSource
from kdml_med.wsi.sample_tars import Sample

KEY = "__key__"  # as WebDataset calls it
_ROLES = ("patient", "slide", "site")
_OF_TABLE = {role: f"__{role}__" for role in (*_ROLES, "label")}  # beside values of .json, which may have these names


@dataclass(frozen=True)
class SampleFacts:
    """Samples as ``kdml_med.tables.images.check_image_table`` checks them.

    Attributes:
        frame: one row per sample, all text, ``KEY`` its name; "" where nothing is said.
        columns: of that, by role; None where it is recognised or there is none.
        table_keys: of ``LabelTable.matches``, by the name of the sample; empty without a table.
        source: what was read of the table.
    """

    frame: pd.DataFrame
    columns: TableColumns
    table_keys: dict[str, str] = field(default_factory=dict)
    source: LabelSource = field(default_factory=LabelSource)


def compile_pattern(pattern: str | None) -> re.Pattern[str] | None:
    """What is searched in keys.

    Raises:
        InputError: it is no regular expression, or has other groups than patient, slide and site.
    """
    if pattern is None:
        return None
    try:
        found = re.compile(pattern)
    except re.error as error:
        raise InputError(f"--key-pattern {pattern!r} is no regular expression: {error}.") from error
    unknown = set(found.groupindex) - set(_ROLES)
    if unknown or not found.groupindex:
        raise InputError(
            f"--key-pattern {pattern!r} has the groups {sorted(found.groupindex)}, expected some of "
            f"{', '.join(f'(?P<{name}>…)' for name in _ROLES)}."
        )
    return found


def list_facts(
    samples: Mapping[str, tuple[str, Sample]],
    pattern: re.Pattern[str] | None,
    columns: TableColumns,
    table: LabelTable | None,
    failures: list[tuple[str, str]],
    name: str,
) -> SampleFacts:
    """The values of .json of each sample, and what the pattern finds in its key, which comes first.

    Args:
        samples: with the tar that each is in, by their names in the dataset.
        pattern: with groups for some of patient, slide and site.
        columns: names of values in .json, or of columns of the table; None recognises them.
        table: that is to be asked.
        failures: gets samples whose keys the pattern does not fit.
        name: of the samples, for messages.

    Raises:
        InputError: several values of .json could be one that the pattern does not find everywhere.
    """
    rows: list[dict[str, str]] = []
    groups: list[dict[str, str]] = []
    for sample_id, (_, sample) in samples.items():
        match = None if pattern is None else pattern.search(sample.key)
        if pattern is not None and match is None:
            failures.append((sample_id, f"its key does not fit --key-pattern {pattern.pattern}"))
            continue
        groups.append({} if match is None else {role: text for role, text in match.groupdict().items() if text})
        rows.append(sample.facts | {KEY: sample_id})
    facts = pd.DataFrame(rows, index=range(1, len(rows) + 1), dtype=object)
    for role in _ROLES:
        found = pd.Series([group.get(role) for group in groups], facts.index, dtype=object)
        if found.isna().all():
            continue
        said = _find(facts, role, columns, name, table) if found.isna().any() else None
        facts[role] = found if said is None else found.where(found.notna(), facts[said])
        columns = replace(columns, **{role: role})
    return SampleFacts(facts, columns)


def name_owners(known: SampleFacts, failures: list[tuple[str, str]], name: str) -> SampleFacts:
    """The samples that name a patient, and a slide where samples do.

    A sample that has no value for its patient belongs to the TCGA barcode that its key begins with. The label is called
    as in tables, else it is .cls, else .txt.

    Args:
        known: what ``list_facts`` gave.
        failures: gets the others.
        name: of the samples, for messages.

    Raises:
        InputError: nothing tells patients, or several values could.
    """
    facts, columns = known.frame, known.columns
    patient = _find(facts, "patient", columns, name)
    barcodes = facts[KEY].map(lambda key: tcga_patient(key.rpartition("/")[2])).astype(object)
    if patient is None and barcodes.notna().any():
        patient, facts = "patient", facts.assign(patient=barcodes)
    elif patient is not None:
        facts[patient] = facts[patient].where(facts[patient].notna(), barcodes)
    facts = facts.fillna("")
    if patient is None:
        raise InputError(
            f"nothing tells whose {name} are: name a value of their .json with --patient-column, find the patient in "
            "their keys with --key-pattern, such as '^(?P<patient>[^_]+)_', or give a table with --labels. "
            f"A sample has {list(facts.columns)}."
        )
    usual = columns.label or find_column(facts.columns, "label", None, required=False, where=name)
    label = usual or next((column for column in ("cls", "txt") if column in facts), None)
    for role, column in {"patient": patient, "slide": _find(facts, "slide", columns, name)}.items():
        if column is not None:
            blank = facts[column].map(is_blank)
            failures += [(key, f"its {column} is blank, which would be its {role}") for key in facts.loc[blank, KEY]]
            facts = facts[~blank]
    return SampleFacts(facts, replace(columns, image=KEY, patient=patient, label=label))


def ask_table(
    known: SampleFacts,
    samples: Mapping[str, tuple[str, Sample]],
    table: LabelTable,
    path: Path,
    failures: list[tuple[str, str]],
    name: str,
) -> SampleFacts:
    """The samples that a label table knows, with what it says of them beside what they say themselves.

    A column that is named for resolutions or splits is one of the table where no sample has such a value.

    Args:
        known: what ``list_facts`` gave.
        samples: with the tar that each is in, by their names in the dataset.
        table: of slides or patients.
        path: of its file.
        failures: gets samples that have no row, or name another patient than their row.
        name: of the samples, for messages.

    Raises:
        InputError: several values of .json could be the patient or the slide.
    """
    said = {}
    for role in ("patient", "slide"):
        column = _find(known.frame, role, known.columns, name, table)
        said[role] = [""] * len(known.frame) if column is None else list(known.frame[column].fillna(""))
    answers: list[tuple[LabelMatch, str, str] | None] = []
    for sample_id, patient, slide in zip(known.frame[KEY], said["patient"], said["slide"], strict=True):
        shard, sample = samples[sample_id]
        patient, slide = ("" if is_blank(text) else text for text in (patient, slide))
        answer = _ask(table, sample.key, patient, slide, Path(shard).parent.name)
        if isinstance(answer, str):
            failures.append((sample_id, answer))
        answers.append(None if isinstance(answer, str) else answer)
    facts = known.frame[[answer is not None for answer in answers]].fillna("")
    found = [answer for answer in answers if answer is not None]
    for role, values in {
        "patient": [match.patient_id for match, _, _ in found],
        "slide": [slide for _, slide, _ in found],
        "label": [match.label or "" for match, _, _ in found],
        "site": [match.site or "" for match, _, _ in found],
    }.items():
        facts[_OF_TABLE[role]] = pd.Series(values, facts.index, dtype=object)
    used = {role: column for role, column in table.source.columns.items() if role != "mpp"}  # of whole slides
    for role, named in {"mpp": known.columns.mpp, "split": known.columns.split}.items():
        column = same_name_form(named or "")
        whole = read_text_table(path) if column and column not in facts else pd.DataFrame()
        if column in whole:
            cells = dict(zip(whole.index, whole[column], strict=True))
            facts[column] = pd.Series([cells[match.row] for match, _, _ in found], facts.index, dtype=object)
            used[role] = column
    columns = TableColumns(image=KEY, mpp=known.columns.mpp, split=known.columns.split, **_OF_TABLE)
    keys = dict(zip(facts[KEY], (key for _, _, key in found), strict=True))
    return SampleFacts(facts, columns, keys, replace(table.source, columns=used))


def _find(
    facts: pd.DataFrame, role: str, columns: TableColumns, name: str, table: LabelTable | None = None
) -> str | None:
    """The value of .json that tells patient, slide or site; with a table, a column that is named may be one of it."""
    named: str | None = getattr(columns, role)
    if table is not None:
        likely = (named, table.source.columns.get(role))
        named = next((column for column in likely if column in facts), None)
    if role == "slide":
        return slide_column(list(facts.columns), named, name)
    return find_column(facts.columns, role, named, required=False, where=name)


def _ask(table: LabelTable, key: str, patient: str, slide: str, inside: str) -> tuple[LabelMatch, str, str] | str:
    """Row, slide and key of ``LabelTable.matches`` of a sample, or why it has none.

    Args:
        table: of slides or patients.
        key: of the sample.
        patient: that the sample names, or "".
        slide: likewise.
        inside: name of the folder that its tar is in.
    """
    named = slide or key.rpartition("/")[0]
    called = named or key
    if patient and not table.by_slide:
        match, row = table.match_patient(patient), None
        if match is None:
            return table.explain_patient(patient)
    else:
        match, row = table.match(called, inside), table.key(called)
        if match is None:
            return table.explain(called, inside)
    if patient and not same_patient(patient, match.patient_id):
        return (
            f"row {match.row} of the label table says patient {match.patient_id}, the sample {patient}: correct the "
            "one that is wrong"
        )
    # A key is that of one image: as everywhere, the patient stands for a slide that nobody names.
    own = slide_name(called) if named or table.by_slide else match.patient_id
    return match, own, row or match.patient_id


def name_classes(values: pd.Series[str], classes: Sequence[str] | None) -> pd.Series[str]:
    """Numbers as the classes that they count, where two are named by other words."""
    if classes is None or len(classes) != 2 or not set(values) <= {"0", "1", ""} or set(values) & set(classes):
        return values
    return values.map({"0": classes[0], "1": classes[1], "": ""}).astype(object)
