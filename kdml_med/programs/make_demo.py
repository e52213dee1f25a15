"""Generate a cohort with known truth, to try the whole chain without any patient's data."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kdml_med.demo import clips, slides
from kdml_med.errors import InputError


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
        int | None, typer.Option(help="msi: number of patients, one slide each; half are MSI-H. 80 by default.")
    ] = None,
    sequences: Annotated[
        int | None, typer.Option(help="polyp: number of sequences; two thirds show polyps. 36 by default.")
    ] = None,
    frames: Annotated[int | None, typer.Option(help="polyp: frames in each sequence. 12 by default.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes; 0 takes all cores.")] = 0,
) -> None:
    """Write a generated cohort and the truth behind it. It proves plumbing, never accuracy."""
    foreign = {"--sequences": sequences, "--frames": frames} if task is DemoTask.MSI else {"--patients": patients}
    for option, value in foreign.items():
        if value is not None:
            raise InputError(f"{option} has no meaning for --task {task.value}: leave it out.")
    if task is DemoTask.MSI:
        typer.echo(slides.NOTICE)
        patients = slides.PATIENTS if patients is None else patients
        slides.write_demo_cohort(out, patients=patients, seed=seed, workers=workers)
        typer.echo(f"{patients} msi patients in {out}: slides/, labels.csv, truth/, README.txt")
    else:
        typer.echo(clips.NOTICE)
        sequences = clips.SEQUENCES if sequences is None else sequences
        frames = clips.FRAMES if frames is None else frames
        clips.write_demo_clips(out, sequences=sequences, frames=frames, seed=seed, workers=workers)
        typer.echo(
            f"{sequences} polyp sequences in {out}: frames/, annotations.csv, masks/, truth/, videos/, README.txt"
        )
