"""Who and what came into a study, and what did not, with reasons: the section of the page."""

from __future__ import annotations

from kdml_med.clinical.slides.counting import Flow, count_flow
from kdml_med.clinical.slides.flow_chart import draw_flow
from kdml_med.clinical.study import DatasetContent, Study
from kdml_med.report.document import Paragraph, Part, Picture, Section, Table
from kdml_med.report.wording import listed
from kdml_med.storage.manifest import DatasetKind
from kdml_med.words import counted

SHOWN_FAILURES = 200
"""Inputs that are named on the page; failures.csv of the dataset has them all."""


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
    classes = list(flow.groups[-1].classes)  # all of them have every class that a part has
    columns = [title, f"{flow.owner}s", *(f"{flow.owner}s {name}" for name in classes), f"{group}s", f"{kind.row}s"]
    rows = [
        [one.name, *(f"{number:,}" for number in (one.patients, *numbers, one.groups, one.rows))]
        for one in flow.groups
        for numbers in [[one.classes.get(name, 0) for name in classes]]
    ]
    if flow.owner == group:  # one and the same
        columns, rows = [*columns[:-2], columns[-1]], [[*row[:-2], row[-1]] for row in rows]
    table = (data.info.labels or {}).get("table") or "Class folders"
    drawn = draw_flow(flow, group=group, row=kind.row, table=table)
    what = [] if flow.owner == group else [f"{flow.owner}s"]
    caption = f"{title}: flow of {listed([*what, f'{group}s', f'{kind.row}s'])}."
    parts: list[Part] = [Picture(f"flow-{title}.png", caption, drawn)]
    parts.append(Table(columns, rows))
    if flow.owner == group:
        parts.append(Paragraph(f"Nothing says which {group}s are of one patient: each counts as its own."))
    if data.split is None:
        parts.append(Paragraph("The dataset has no splits."))
    if flow.exclusions:
        excluded = [[one.what, one.reason, f"{one.number:,}"] for one in flow.exclusions]
        parts.append(Table(["left out", "reason", "number"], excluded, names=2))
    else:
        parts.append(Paragraph("Nothing was left out."))
    limit = data.info.options.get("limit_tiles")
    if limit is not None:
        parts.append(Paragraph(f"At most {counted(int(limit), 'tile')} of each slide were drawn at random."))
    parts += _failures(flow, data)
    return parts


def _failures(flow: Flow, data: DatasetContent) -> list[Part]:
    if not flow.failures:
        return []
    shown = [[name, reason] for name, reason in flow.failures[:SHOWN_FAILURES]]
    parts: list[Part] = [Table(["input that could not be used", "reason"], shown, names=2)]
    if len(flow.failures) > len(shown):
        more = len(flow.failures) - len(shown)
        parts.append(Paragraph(f"And {counted(more, 'more input')}: failures.csv in {data.folder} names them all."))
    return parts
