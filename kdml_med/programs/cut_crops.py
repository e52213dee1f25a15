"""Cut labelled crops from a dataset of frames: `python -m preprocessing.cut_crops FRAMES --out DIR`."""

from __future__ import annotations

import os

# One thread for each linear algebra call: the worker processes already keep every core busy.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

from pathlib import Path  # noqa: E402
from typing import Annotated  # noqa: E402

from typer import Argument, Option  # noqa: E402

from kdml_med.colonoscopy.cropping import cut_crops, describe_crop_report  # noqa: E402
from kdml_med.colonoscopy.crops import CropOptions  # noqa: E402
from kdml_med.colonoscopy.frozen_splits import describe_frozen  # noqa: E402
from kdml_med.colonoscopy.near_duplicates import HASH_BITS  # noqa: E402
from kdml_med.errors import ExitCode, InputError  # noqa: E402
from kdml_med.program import usable_cores  # noqa: E402
from kdml_med.splits import has_splits  # noqa: E402

_DEFAULT = CropOptions()


def main(
    frames: Annotated[Path, Argument(help="Dataset folder of frames with boxes, as `kdml-med frames` makes it.")],
    out: Annotated[Path, Option(help="Dataset folder of tiles to write; a run that was cut off goes on there.")],
    size: Annotated[int, Option(help="Side of a stored crop, pixels.")] = _DEFAULT.size_px,
    per_polyp: Annotated[
        int, Option(help="Crops of each polyp, each with one as large on mucosa of its frame.")
    ] = _DEFAULT.per_polyp,
    per_frame: Annotated[
        int, Option(help="Crops of mucosa of each frame without polyps, at most.")
    ] = _DEFAULT.per_frame,
    margin: Annotated[
        float, Option(help="Added on each side of a polyp, as a share of its box's longer side.")
    ] = _DEFAULT.margin,
    smallest: Annotated[
        int | None,
        Option(help="Side of a window in the frame, pixels, at least. Unless given, half of --size."),
    ] = None,
    leave_out: Annotated[
        list[str] | None,
        Option(
            metavar="LEFT,TOP,RIGHT,BOTTOM",
            help="Part of every frame that does not count as field of view, in shares of width and height; for text in "
            "the picture. Repeatable.",
        ),
    ] = None,
    near_duplicates: Annotated[
        int,
        Option(
            help=f"Bits of {HASH_BITS} in which the perceptual hashes of frames of two splits may differ and still "
            "count as one view, which is then left out of training."
        ),
    ] = _DEFAULT.near_bits,
    png: Annotated[bool, Option("--png", help="Store PNG instead of JPEG.")] = False,
    jpeg_quality: Annotated[int, Option(help="1 to 100.")] = _DEFAULT.jpeg_quality,
    seed: Annotated[int, Option(help="Of the places of crops.")] = _DEFAULT.seed,
    workers: Annotated[int, Option(help="Processes on this machine; 0 takes all cores.")] = 0,
    force: Annotated[
        bool, Option("--force", help="Replace frozen splits, and delete shards of frames that are gone.")
    ] = False,
) -> ExitCode:
    """Cut polyps and mucosa beside them from frames, as tiles with a class, with the splits of the frames."""
    options = CropOptions(
        size_px=size,
        per_polyp=per_polyp,
        per_frame=per_frame,
        margin=margin,
        smallest_px=smallest,
        left_out=tuple(_rectangle(text) for text in leave_out or ()),
        near_bits=near_duplicates,
        image_format="png" if png else _DEFAULT.image_format,
        jpeg_quality=jpeg_quality,
        seed=seed,
    )
    report = cut_crops(frames, out, options, workers=workers or usable_cores(), force=force)
    print(*describe_crop_report(report, out), sep="\n")
    if has_splits(out):
        print(describe_frozen(out, forced=force))
    return ExitCode.SOME_FAILED if report.failures else ExitCode.OK


def _rectangle(text: str) -> tuple[float, float, float, float]:
    try:
        left, top, right, bottom = map(float, text.split(","))
    except ValueError as error:
        raise InputError(f"--leave-out is {text!r}, expected four numbers such as 0,0.15,0.2,0.7.") from error
    return left, top, right, bottom
