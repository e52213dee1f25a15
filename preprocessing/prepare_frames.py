"""Turn colonoscopy images and videos into a dataset: `python -m preprocessing.prepare_frames INPUT… --out DIR`."""

from __future__ import annotations

import os

# One thread for each linear algebra call: the worker processes already keep every core busy.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

from pathlib import Path  # noqa: E402
from typing import Annotated, Any  # noqa: E402

from typer import Argument, Option  # noqa: E402

from kdml_med.colonoscopy.options import FrameOptions  # noqa: E402
from kdml_med.colonoscopy.preparing import prepare_frames  # noqa: E402
from kdml_med.errors import ExitCode  # noqa: E402
from preprocessing.program import run  # noqa: E402

_DEFAULT = FrameOptions()


def main(
    inputs: Annotated[list[Path], Argument(help="Images, videos, or folders with them.")],
    out: Annotated[Path, Option(help="Dataset folder to write; a run that was cut off goes on there.")],
    annotations: Annotated[Path | None, Option(help="Masks, VOC or YOLO folder, COCO or CSV file.")] = None,
    size: Annotated[int, Option(help="Longest side of a stored frame, pixels.")] = _DEFAULT.size_px,
    workers: Annotated[int, Option(help="Processes; 0 takes all cores.")] = 0,
) -> ExitCode:
    """Crop, scale and store frames with their boxes."""
    settings: dict[str, Any] = {"size_px": size}
    report = prepare_frames(inputs, out, FrameOptions(**settings), annotations, workers=workers or os.cpu_count() or 1)
    print(report.frames, report.polyps, report.negatives, report.boxes, report.cropped, report.painted)
    for name, reason in report.failures:
        print(f"  {name}: {reason}")
    return ExitCode.SOME_FAILED if report.failures else ExitCode.OK


if __name__ == "__main__":
    run(main)
