"""Apply a run to new slides, images, videos, or a dataset folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from kdml_med import api
from kdml_med.errors import ExitCode

_SLIDES, _FRAMES = "Slides", "Images and videos"


def predict(
    run: Annotated[Path, Argument(help="Folder of the run; its task says what can be predicted.", show_default=False)],
    inputs: Annotated[
        list[Path],
        Argument(
            metavar="INPUT",
            help="Slides or folders with slides; an image, a video or a folder with them; or a dataset folder.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, Option(help="Folder for results; the same one again goes on.", show_default=False)],
    network: Annotated[str, Option(help="ensemble of all students, student_0 and so on, or teacher.")] = "ensemble",
    device: Annotated[
        str | None, Option(help="cpu, cuda or cuda:0 and the like, or mps. A GPU where there is one, unless given.")
    ] = None,
    workers: Annotated[
        int | None,
        Option(
            help="Cores to use, 1 unless given; for frames and dataset folders, processes that read, 0 unless given."
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        Option(
            help="Tiles or frames that are answered together. Unless given: 16 of slides and frames, 64 of a dataset "
            "folder with tiles."
        ),
    ] = None,
    assume_mpp: Annotated[
        float | None,
        Option(help="Micrometres per pixel of slides whose header says nothing or nonsense.", rich_help_panel=_SLIDES),
    ] = None,
    roi: Annotated[
        Path | None,
        Option(
            help="GeoJSON with regions outside of which tissue does not count, or a folder with one for each slide.",
            rich_help_panel=_SLIDES,
        ),
    ] = None,
    labels: Annotated[
        Path | None, Option(help="Table that says whose slides they are.", rich_help_panel=_SLIDES)
    ] = None,
    maps: Annotated[
        bool | None,
        Option(
            "--maps/--no-maps",
            help="Heat maps and sheets of tiles, written unless told otherwise.",
            rich_help_panel=_SLIDES,
        ),
    ] = None,
    fps: Annotated[
        float | None,
        Option(help="Frames per second taken from a video, 5 unless given; 0 for all.", rich_help_panel=_FRAMES),
    ] = None,
    annotate: Annotated[
        bool | None, Option("--annotate/--no-annotate", help="Draw the boxes.", rich_help_panel=_FRAMES)
    ] = None,
    annotations: Annotated[
        Path | None,
        Option(
            help="Known boxes, as kdml-med frames takes them: what was missed comes first.", rich_help_panel=_FRAMES
        ),
    ] = None,
    corrections: Annotated[
        list[str] | None,
        Option(
            metavar="WORD", help="Boxes for an annotation tool: coco, yolo or voc; repeatable.", rich_help_panel=_FRAMES
        ),
    ] = None,
) -> ExitCode:
    """Predict with the students of a run: from the file to tables and pictures, research only.

    Slides are cut into tiles as those of the training were, frames cropped and scaled likewise.
    """
    given: dict[str, Any] = {
        "device": device,
        "workers": workers,
        "batch_size": batch_size,
        "assume_mpp": assume_mpp,
        "roi": roi,
        "labels": labels,
        "maps": maps,
        "fps": fps,
        "annotate": annotate,
        "annotations": annotations,
        "corrections": corrections,
    }
    options = {name: value for name, value in given.items() if value not in (None, [])}
    found = api.predict(run, inputs, out, network=network, **options)
    print(*found.lines, sep="\n", end="\n" if found.lines else "")
    return ExitCode.SOME_FAILED if found.failures else ExitCode.OK
