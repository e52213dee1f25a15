"""Compare ways of training: run a plan and report it, in one go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from kdml_med.errors import ExitCode
from kdml_med.experiments import __main__ as experiments


def compare(
    plan: Annotated[Path, Argument(help="Plan file.", show_default=False)],
    out: Annotated[Path, Option(help="Results folder; the same one again goes on.", show_default=False)],
    jobs: Annotated[int, Option(min=1, help="Trainings at a time on this machine.")] = 1,
    scheduler: Annotated[
        str | None, Option(help="Address of a Dask scheduler whose workers train, such as tcp://node:8786.")
    ] = None,
) -> ExitCode:
    """Train and evaluate everything in a plan that is not done yet, and report what came out."""
    trained = experiments.run(plan, out, jobs=jobs, scheduler=scheduler)
    return max(trained, experiments.report(out))
