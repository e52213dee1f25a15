"""Compare ways of training: run a plan, and report what came out.

python -m kdml_med.experiments run PLAN.json --out DIR
python -m kdml_med.experiments report DIR
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from kdml_med.errors import ExitCode, InputError
from kdml_med.experiments.plan import PLAN_FILE, expand, make_plan, read_plan
from kdml_med.experiments.report.writing import write_report
from kdml_med.experiments.scheduling import run_plan
from kdml_med.program import run_commands
from kdml_med.report.pages import REPORT_NAME
from kdml_med.runs import read_run_json

logger = logging.getLogger(__name__)


def run(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="Plan file.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Results folder; the same one again goes on.", show_default=False)],
    jobs: Annotated[int, typer.Option(min=1, help="Trainings at a time on this machine.")] = 1,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler whose workers train, such as tcp://node:8786.")
    ] = None,
) -> ExitCode:
    """Train and evaluate everything in a plan that is not done yet."""
    plan = read_plan(plan_file)
    cells = expand(plan)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot use {out} as results folder: {error.strerror}.") from error
    outcome = run_plan(plan, cells, out.absolute(), jobs=jobs, scheduler=scheduler)
    logger.info(
        "%d trainings: %d done now, %d before, %d failed. Next: kdml-med report %s",
        len(cells), outcome.done, outcome.skipped, len(outcome.failures), out,
    )  # fmt: skip
    return ExitCode.SOME_FAILED if outcome.failures else ExitCode.OK


def report(
    results: Annotated[Path, typer.Argument(metavar="DIR", help="Results folder of run.", show_default=False)],
    speed: Annotated[
        bool | None,
        typer.Option(help="Measure the latency anew, or not at all; else what is not known yet is measured."),
    ] = None,
) -> ExitCode:
    """Write results.parquet, tables, figures and the report of what is done so far."""
    if not (results / PLAN_FILE).is_file():
        raise InputError(f"{results} holds no {PLAN_FILE}: run a plan with --out {results} first.")
    plan = make_plan(read_run_json(results, PLAN_FILE), where=str(results / PLAN_FILE), stored=True)
    written = write_report(plan, results, speed=speed)
    print(f"{written.table}\n")
    logger.info("%s: %s", results, ", ".join(written.files))
    logger.info("Read %s", results / f"{REPORT_NAME}.html")
    missing = len(written.found.missing)
    if missing:
        logger.warning("%d of %d trainings are missing; the report lists them.", missing, written.found.trainings)
    return ExitCode.SOME_FAILED if missing else ExitCode.OK


if __name__ == "__main__":
    run_commands(run, report)
