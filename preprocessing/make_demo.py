"""Generate a cohort of H&E-like slides with known truth, to try the whole chain without any patient's data."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kdml_med.demo.slides import NOTICE, write_demo_cohort
from preprocessing.program import run


class DemoTask(StrEnum):
    """Tasks that a cohort can be generated for."""

    MSI = "msi"


def make_demo(
    out: Annotated[Path, typer.Option(help="Folder to write; an interrupted one is completed.")],
    task: Annotated[DemoTask, typer.Option(help="msi: slides with MSI-H and MSS patients.")] = DemoTask.MSI,
    patients: Annotated[int, typer.Option(help="Number of patients, one slide each; half are MSI-H.")] = 36,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes; 0 takes all cores.")] = 0,
) -> None:
    """Write generated slides, labels.csv and the truth behind them. They prove plumbing, never accuracy."""
    typer.echo(NOTICE)
    write_demo_cohort(out, patients=patients, seed=seed, workers=workers)
    typer.echo(f"{patients} {task.value} patients in {out}: slides/, labels.csv, truth/, README.txt")


if __name__ == "__main__":
    run(make_demo)
