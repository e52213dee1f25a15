"""The report of one run: report.html and report.json in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdml_med.clinical.checklists.facts import collect_facts
from kdml_med.clinical.checklists.sections import checklist_sections
from kdml_med.clinical.networks import count_costs
from kdml_med.clinical.plain import plain
from kdml_med.clinical.polyps.sections import polyp_report
from kdml_med.clinical.provenance import provenance_sections
from kdml_med.clinical.rules import rules_of_run
from kdml_med.clinical.slides import sections as slides
from kdml_med.clinical.slides import thresholds
from kdml_med.clinical.slides.findings import Findings, find
from kdml_med.clinical.slides.flow import flow_section
from kdml_med.clinical.slides.patients import gallery, patient_table
from kdml_med.clinical.study import Study, read_study
from kdml_med.clinical.training import training_sections
from kdml_med.errors import InputError
from kdml_med.keys import Task
from kdml_med.report.caution import generated_data
from kdml_med.report.document import Section
from kdml_med.report.pages import REPORT_NAME, write_html
from kdml_med.storage.files import write_json
from kdml_med.storage.locks import keep_out_others
from kdml_med.storage.reading import read_json

REPORT_PAGE, REPORT_FIGURES = f"{REPORT_NAME}.html", f"{REPORT_NAME}.json"
_SCHEMA_VERSION = 1


def write_report(
    run_dir: str | Path,
    *,
    external: Sequence[str | Path] = (),
    labels: Sequence[str | Path] = (),
    by: Sequence[str] = (),
    temperature: bool = False,
    speed: bool | None = None,
    dataset_dir: str | Path | None = None,
) -> list[str]:
    """Write report.html and report.json of a finished run into its folder.

    Args:
        run_dir: folder of the run.
        external: folders of evaluations of the run on other datasets.
        labels: tables with the columns that subgroups are made by; slides only.
        by: names of these columns.
        temperature: show probabilities after temperature scaling, too; slides only.
        speed: measure the latency anew, or not at all; None measures what no earlier report knows.
        dataset_dir: where the dataset of the training is now; None for where it was.

    Returns:
        Names of the files.

    Raises:
        InputError: the run, an evaluation, a table or the named dataset cannot be read, they do not fit together, or
            another process is writing to the folder.
    """
    study = read_study(run_dir, external=external, dataset_dir=dataset_dir)
    hold = keep_out_others(study.folder, option=None)
    path = study.folder / REPORT_FIGURES
    earlier = _read_earlier(path)
    if study.description.task is Task.DETECTION:
        _refuse_for_detectors(labels=bool(labels), by=bool(by), temperature=temperature)
        costs = count_costs(study, earlier, speed=speed)
        polyps = polyp_report(study, rules_of_run(study.folder), costs)
        sections, content = polyps.sections, polyps.content | {"networks": plain(costs)}
    else:
        found = find(study, labels=labels, by=by, temperature=temperature, speed=speed, earlier=earlier)
        sections, content = slide_sections(found), found.content()
    sections = with_shared(study, sections)
    # The page first: drawing it takes time, and whoever ends it is left with figures and page of the same report.
    write_html(study.folder / REPORT_PAGE, f"Run {study.name}", sections)
    write_json(path, {"schema_version": _SCHEMA_VERSION, **_about(study), **content})
    del hold
    return [REPORT_PAGE, REPORT_FIGURES]


def _about(study: Study) -> dict[str, Any]:
    return {
        "run": study.name,
        "task": study.description.task.value,
        "classes": study.description.classes,
        "synthetic": study.synthetic,
    }


def _refuse_for_detectors(**given: bool) -> None:
    """Options that would be ignored in silence."""
    named = next((name for name, value in given.items() if value), None)
    if named is not None:
        raise InputError(
            f"--{named} is for runs on slides; a report of detectors shows sequences and sizes by itself: leave it out."
        )


def _read_earlier(path: Path) -> dict[str, Any]:
    """What an earlier report knows of the networks; nothing where there is none or it is damaged."""
    try:
        found = read_json(path, remedy="")["networks"] if path.is_file() else {}
    except (InputError, KeyError):
        return {}
    return found if isinstance(found, dict) else {}


def slide_sections(found: Findings) -> list[Section]:
    """What the report of a run of classifiers says, in the order in which it is read."""
    return [
        *slides.few_patients(found),
        slides.summary(found),
        flow_section(found.study),
        slides.performance(found),
        thresholds.operating_points(found),
        thresholds.confusion(found),
        slides.calibration(found),
        slides.decision(found),
        thresholds.subgroups(found),
        thresholds.cohorts(found),
        slides.networks(found),
        patient_table(found),
        gallery(found),
    ]


def with_shared(study: Study, sections: Sequence[Section]) -> list[Section]:
    """Around the sections of a task those that both have: warnings, training, provenance and checklists."""
    warnings = [generated_data()] if study.synthetic else []
    every = [*warnings, *sections, *training_sections(study), *provenance_sections(study)]
    return [*every, *checklist_sections(collect_facts(study, every))]
