"""Turn colonoscopy images and videos into a dataset: `python -m preprocessing.prepare_frames INPUT… --out DIR`."""

from __future__ import annotations

import os

# One thread for each linear algebra call: the worker processes already keep every core busy.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

from pathlib import Path  # noqa: E402
from typing import Annotated, Any  # noqa: E402

from typer import Argument, Option  # noqa: E402

from kdml_med.colonoscopy.frozen_splits import describe_frozen  # noqa: E402
from kdml_med.colonoscopy.options import FrameOptions  # noqa: E402
from kdml_med.colonoscopy.preparing import prepare_frames  # noqa: E402
from kdml_med.colonoscopy.readers import FORMATS  # noqa: E402
from kdml_med.colonoscopy.report import NO_FOLDERS, describe_report  # noqa: E402
from kdml_med.errors import ExitCode, InputError  # noqa: E402
from kdml_med.program import usable_cores, with_default  # noqa: E402
from kdml_med.programs.like import frames_like  # noqa: E402
from kdml_med.splits import (  # noqa: E402
    DEFAULT_FRACTIONS,
    check_request,
    freeze_splits,
    has_splits,
    make_splits,
    required_classes,
)
from kdml_med.storage.manifest import read_info, read_manifest  # noqa: E402

_DEFAULT = FrameOptions()


def main(
    inputs: Annotated[list[Path], Argument(help="Images, videos, or folders with them.")],
    out: Annotated[Path, Option(help="Dataset folder to write; a run that was cut off goes on there.")],
    annotations: Annotated[
        Path | None, Option(help="Folder of masks, Pascal VOC or YOLO files; COCO or CSV file. None: no labels.")
    ] = None,
    annotation_format: Annotated[
        str, Option("--format", help=f"{', '.join(FORMATS)}, or auto to tell by the files.")
    ] = _DEFAULT.annotation_format,
    like: Annotated[
        Path | None, Option(help="Run whose training decides size, borders and format of the stored frames.")
    ] = None,
    size: Annotated[
        int | None,
        Option(help=with_default("Longest side of a stored frame, pixels; never enlarged.", _DEFAULT.size_px)),
    ] = None,
    unlisted: Annotated[
        str, Option(help="A frame that the annotations do not mention is: unlabelled, negative, or left out (skip).")
    ] = _DEFAULT.unlisted,
    polyp_class: Annotated[
        list[str] | None,
        Option(metavar="NAME", help="Annotated class that is a polyp; repeatable. Unless given, all are."),
    ] = None,
    min_box: Annotated[
        float | None,
        Option(help=with_default("Boxes with a side under this, in stored pixels, are dropped.", _DEFAULT.min_box_px)),
    ] = None,
    fps: Annotated[float, Option(help="Frames per second taken from a video; 0 for every frame.")] = _DEFAULT.fps,
    sequence_from: Annotated[
        str, Option(help="What keeps images together: column, folder, none, or auto.")
    ] = _DEFAULT.sequence_from,
    crop: Annotated[
        bool | None, Option("--crop/--no-crop", help=with_default("Cut off the dark border.", "crop"))
    ] = None,
    mask_overlays: Annotated[
        bool | None,
        Option(
            "--mask-overlays/--no-mask-overlays",
            help=with_default("Paint text in the dark corners black.", "mask-overlays"),
        ),
    ] = None,
    png: Annotated[bool, Option("--png", help="Store PNG instead of JPEG.")] = False,
    jpeg_quality: Annotated[int | None, Option(help=with_default("1 to 100.", _DEFAULT.jpeg_quality))] = None,
    split: Annotated[str | None, Option(help="Put every frame into this split: test, for data from elsewhere.")] = None,
    fractions: Annotated[
        tuple[float, float, float] | None,
        Option(
            metavar="SHARES",
            help=f"Shares for train, val and test where no split is given; {DEFAULT_FRACTIONS} unless given.",
        ),
    ] = None,
    seed: Annotated[int, Option(help="Seed of that choice.")] = 0,
    no_splits: Annotated[bool, Option("--no-splits", help="Choose none; kdml-med split can later.")] = False,
    workers: Annotated[int, Option(help="Processes on this machine; 0 takes all cores.")] = 0,
    scheduler: Annotated[
        str | None, Option(help="Address of a Dask scheduler whose workers do it instead, such as tcp://node:8786.")
    ] = None,
    full_hash: Annotated[
        bool, Option("--full-hash", help="Tell large files apart by all of their bytes, not by some and the time.")
    ] = False,
    keep: Annotated[bool, Option("--keep", help="Shards of inputs that are not named stay in the dataset.")] = False,
    force: Annotated[
        bool,
        Option("--force", help="Replace frozen splits; without --keep, delete shards of inputs that are not named."),
    ] = False,
    synthetic: Annotated[bool, Option("--synthetic", help="The frames are generated; reports will say so.")] = False,
) -> ExitCode:
    """Crop, scale and store frames with their boxes, as a dataset folder."""
    stored: dict[str, Any] = {
        "size_px": size,
        "min_box_px": min_box,
        "crop": crop,
        "mask_overlays": mask_overlays,
        "image_format": "png" if png else None,
        "jpeg_quality": jpeg_quality,
    }
    if like is not None:
        stored = frames_like(like, stored)
    settings: dict[str, Any] = {
        **{name: value for name, value in stored.items() if value is not None},
        "annotation_format": annotation_format,
        "unlisted": unlisted,
        "polyp_classes": tuple(polyp_class or ()),
        "fps": fps,
        "sequence_from": sequence_from,
        "split": split,
    }
    check_request(fractions, None, seed)
    if workers and scheduler is not None:
        raise InputError("--workers are processes of this machine, --scheduler has workers of its own: leave one out.")
    report = prepare_frames(
        inputs,
        out,
        FrameOptions(**settings),
        annotations,
        workers=workers or usable_cores(),
        synthetic=synthetic,
        full_hash=full_hash,
        keep=keep,
        force=force,
        scheduler=scheduler,
    )
    print(*describe_report(report, out), sep="\n")
    if not no_splits and not report.has_splits and report.polyps:
        _choose_splits(out, fractions, seed, force=force, by_folder=bool(report.folders))
    if has_splits(out) and report.frames:
        print(describe_frozen(out, forced=force))
    return ExitCode.SOME_FAILED if report.failures else ExitCode.OK


def _choose_splits(
    out: Path, fractions: tuple[float, float, float] | None, seed: int, *, force: bool, by_folder: bool
) -> None:
    """Draw splits as ``preprocessing.make_splits`` does, unless some are there and no others are asked for."""
    if has_splits(out) and fractions is None and not force:
        return
    info, manifest = read_info(out), read_manifest(out)
    try:
        splits = make_splits(
            manifest, classes=info.classes, fractions=fractions, seed=seed, required=required_classes(info), info=info
        )
    except InputError as error:
        how = f" If the folders are no sequences: {NO_FOLDERS}." if by_folder else ""
        print(f"no splits: {error}{how}")  # the frames are stored and good for other uses than training
        return
    details = {"site_preserved": False, "fractions": list(fractions or DEFAULT_FRACTIONS)}
    freeze_splits(out, splits, mode="fractions", seed=seed, force=force, **details)
