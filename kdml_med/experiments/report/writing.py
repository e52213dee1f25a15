"""The report of a plan: tables, figures, Markdown, and one HTML page that needs nothing else.

results.parquet         every figure of every training
summary.csv             arms with intervals
comparisons.csv         the reference against each other arm, and further pairs, by each endpoint
gains.csv               the ensemble of each arm against the mean of its students
diagnostics.csv         how alike the networks are
loss_shares.csv         what students learned from, by epoch
speed.json              milliseconds per image on the machine at hand; the only file that is not the same twice
figures/*.png           as in the report
report.md, report.html  all of it, in words
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kdml_med.data.frames import input_size
from kdml_med.experiments.comparison import comparison_table, gain_table, summary_table
from kdml_med.experiments.costs import latency
from kdml_med.experiments.diagnostics import diagnostics_table, loss_shares
from kdml_med.experiments.doubts import doubt_table
from kdml_med.experiments.plan import Plan
from kdml_med.experiments.report.content import ArmNetworks, Evaluation, Findings
from kdml_med.experiments.report.reliability import reliability_table
from kdml_med.experiments.report.sections import all_sections
from kdml_med.experiments.report.seeds import seed_table
from kdml_med.experiments.results import RESULTS_FILE, Results, collect, results_table, write_results
from kdml_med.experiments.scores import folds_share_samples
from kdml_med.keys import NetworkName
from kdml_med.report.document import Table
from kdml_med.report.pages import REPORT_NAME, write_pages
from kdml_med.report.tables import markdown_table
from kdml_med.runs import SPEED_FILE, read_run_json
from kdml_med.storage.files import write_table
from kdml_med.words import counted


@dataclass(frozen=True, eq=False)
class Report:
    """What was written.

    Attributes:
        found: what it says.
        table: Markdown of the metric that arms are compared by, one table for each version and evaluation.
        files: relative to the results folder.
    """

    found: Findings
    table: str
    files: list[str]


def write_report(plan: Plan, out: Path, *, speed: bool | None = None) -> Report:
    """Write every table and figure of what is done so far.

    Args:
        plan: the plan of the results.
        out: results folder.
        speed: True measures the latency anew, False does not measure it; None measures what is not known yet.

    Raises:
        InputError: a finished training has other settings than the plan.
    """
    results = collect(plan, out)
    found = find(results, _speed(plan, out, speed))
    write_results(out / RESULTS_FILE, found.results)
    tables = {
        "summary.csv": found.summary,
        "comparisons.csv": found.comparisons,
        "gains.csv": found.gains,
        "diagnostics.csv": found.diagnostics,
        "loss_shares.csv": found.losses,
    }
    for name, table in tables.items():
        write_table(out / name, table)
    sections = all_sections(found)
    pictures = write_pages(out, plan.name, sections)
    main = [part for section in sections if section.title == "Accuracy" for part in section.parts]
    shown = [markdown_table(part) for part in main if isinstance(part, Table) and "seeds" in part.columns]
    files = [RESULTS_FILE, *tables, *pictures, f"{REPORT_NAME}.md", f"{REPORT_NAME}.html"]
    return Report(found, "\n\n".join(shown), files)


def _speed(plan: Plan, out: Path, speed: bool | None) -> dict[str, Any]:
    if speed is False:
        return read_run_json(out, SPEED_FILE) if (out / SPEED_FILE).is_file() else {}
    return latency(plan, out, again=speed is True)


def find(results: Results, speed: Mapping[str, Any]) -> Findings:
    """Compute everything that a report is written from."""
    table = results_table(results)
    return Findings(
        plan=results.plan,
        trainings=len(results.finished) + len(results.missing),
        missing=[(cell.path, reason) for cell, reason in results.missing],
        results=table,
        summary=summary_table(results),
        seeds=seed_table(results, table),
        comparisons=comparison_table(results),
        gains=gain_table(results),
        doubts=doubt_table(results),
        diagnostics=diagnostics_table(results),
        losses=loss_shares(results),
        evaluations={name: _evaluation(results, table, name) for name in results.evaluations if results.finished},
        networks={version: _arm_networks(results, version) for version in results.plan.versions},
        speed=speed,
        reliability={name: reliability_table(results, name) for name in results.evaluations},
    )


def _evaluation(results: Results, table: pd.DataFrame, name: str) -> Evaluation:
    metrics, cohort = results.metrics(results.finished[0], name), results.cohort(results.finished[0])
    settings = results.plan.evaluations[name]
    own = table[(table["evaluation"] == name) & (table["level"] != "tile")]
    return Evaluation(
        data=Path(str(settings.get("dataset_dir", results.plan.dataset_dir))).name,
        split=str(metrics.get("split", settings.get("split", "test"))),
        classes=cohort.classes,
        samples=counted(_samples(results, own, name), str(own["level"].iloc[0])),
        synthetic=bool(metrics.get("synthetic")),
    )


def _samples(results: Results, own: pd.DataFrame, evaluation: str) -> int:
    """Number of samples that a seed of an arm judges: those of all its folds, or one test set that all of them have."""
    keys = ["version", "arm", "seed"]
    by_seed = own.drop_duplicates([*keys, "fold"]).groupby(keys)["n"]
    most: Any = by_seed.sum().idxmax()  # others may lack folds
    cells = [cell for cell in results.finished if (cell.version, cell.arm, cell.seed) == most]
    counts = by_seed.max() if folds_share_samples(results, cells, evaluation) else by_seed.sum()
    return int(counts[most])


def _arm_networks(results: Results, version: str) -> dict[str, ArmNetworks]:
    """Networks of each arm; all its trainings have the same ones."""
    first = {cell.arm: cell for cell in reversed(results.finished) if cell.version == version}
    found = {}
    for arm, cell in first.items():
        cohort = results.cohort(cell)
        stored = {name: own for name, own in results.networks(cell).items() if name != NetworkName.ENSEMBLE}
        specs = {name: cohort.networks[own] for name, own in stored.items()}
        found[arm] = ArmNetworks(specs, input_size(cohort.image_size))
    return found
