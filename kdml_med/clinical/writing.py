"""The report of one run: report.html and report.json in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdml_med.clinical.study import Study, read_study
from kdml_med.report.document import Section


def write_report(
    run_dir: str | Path,
    *,
    external: Sequence[str | Path] = (),
    labels: str | Path | None = None,
    by: Sequence[str] = (),
    temperature: bool = False,
    speed: bool | None = None,
    dataset_dir: str | Path | None = None,
) -> list[str]:
    """Write report.html and report.json of a finished run.

    Returns:
        Names of the files.
    """
    study = read_study(run_dir, external=external, dataset_dir=dataset_dir)
    all_sections(study)
    return []


def all_sections(study: Study) -> list[Section]:
    """What a report says; sections with nothing to say are left out."""
    return []
