"""A page about a run, or about a folder of experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from kdml_med import api
from kdml_med.errors import ExitCode, InputError
from kdml_med.experiments import __main__ as experiments
from kdml_med.experiments.plan import PLAN_FILE
from kdml_med.runs import COHORT_FILE


def report(
    folder: Annotated[
        Path, Argument(metavar="DIR", help="Folder of a run, or results folder of experiments.", show_default=False)
    ],
    external: Annotated[
        list[Path] | None,
        Option(
            metavar="DIR",
            help="Run: evaluation on another dataset, as evaluate --data OTHER --out DIR wrote it; again for each.",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        list[Path] | None,
        Option(
            metavar="TABLE",
            help="Run on slides: table with columns for subgroups, such as the label table; again for each.",
            show_default=False,
        ),
    ] = None,
    by: Annotated[
        list[str] | None,
        Option(metavar="COLUMN", help="Run on slides: such a column; again for each.", show_default=False),
    ] = None,
    temperature: Annotated[
        bool, Option("--temperature", help="Run on slides: show probabilities after temperature scaling, too.")
    ] = False,
    data: Annotated[
        Path | None, Option(help="Run: dataset of the training, where it was moved.", show_default=False)
    ] = None,
    speed: Annotated[
        bool | None, Option(help="Measure the latency anew, or not at all; else what is not known yet.")
    ] = None,
) -> ExitCode:
    """Write report.html into the folder: tables, curves, pictures and settings on one page that needs nothing else.

    Of a run: cohort flow, performance, calibration, operating points, subgroups, external cohorts, networks side by
    side, patients, provenance and reporting checklists; every figure also in report.json.
    """
    if (folder / PLAN_FILE).is_file():
        given = {"external": external, "labels": labels, "by": by, "temperature": temperature, "data": data}
        named = next((name for name, value in given.items() if value), None)
        if named is not None:
            raise InputError(f"--{named} is for the report of a run, but {folder} holds experiments: leave it out.")
        return experiments.report(folder, speed=speed)
    if not (folder / COHORT_FILE).is_file():
        raise InputError(
            f"{folder} holds neither a run ({COHORT_FILE}) nor experiments ({PLAN_FILE}): train, or run a plan first."
        )
    page = api.write_report(
        folder, external=external or [], labels=labels or [], by=by or [], temperature=temperature, dataset_dir=data,
        speed=speed,
    )  # fmt: skip
    print(f"Read {page}; its figures as numbers: {page.with_suffix('.json').name}")
    return ExitCode.OK
