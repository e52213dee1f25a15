"""Generate a cohort with known truth, to try the whole chain without any patient's data."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kdml_med.demo import clips, slides
from kdml_med.errors import InputError
from preprocessing.program import run


class DemoTask(StrEnum):
    """Tasks that a cohort can be generated for."""

    MSI = "msi"
    POLYP = "polyp"


def make_demo(
    out: Annotated[Path, typer.Option(help="Folder to write; an interrupted one is completed.")],
    task: Annotated[
        DemoTask, typer.Option(help="msi: slides with MSI-H and MSS patients; polyp: colonoscopy-like clips.")
    ] = DemoTask.MSI,
    patients: Annotated[
        int | None, typer.Option(help="msi: number of patients, one slide each; half are MSI-H. 36 by default.")
    ] = None,
    sequences: Annotated[
        int | None, typer.Option(help="polyp: number of sequences; two thirds show polyps. 36 by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes; 0 takes all cores.")] = 0,
) -> None:
    """Write a generated cohort and the truth behind it. It proves plumbing, never accuracy."""
    if task is DemoTask.MSI:
        if sequences is not None:
            raise InputError("--sequences belongs to --task polyp; slides are counted by --patients.")
        typer.echo(slides.NOTICE)
        count = 36 if patients is None else patients
        slides.write_demo_cohort(out, patients=count, seed=seed, workers=workers)
        typer.echo(f"{count} msi patients in {out}: slides/, labels.csv, truth/, README.txt")
    else:
        if patients is not None:
            raise InputError("--patients belongs to --task msi; clips are counted by --sequences.")
        typer.echo(clips.NOTICE)
        count = 36 if sequences is None else sequences
        clips.write_demo_clips(out, sequences=count, seed=seed, workers=workers)
        typer.echo(f"{count} polyp sequences in {out}: frames/, annotations.csv, masks/, truth/, videos/, README.txt")


if __name__ == "__main__":
    run(make_demo)
