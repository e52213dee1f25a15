"""Cut slides into tiles: `python -m preprocessing.tile_slides INPUT… --out DIR`."""

from __future__ import annotations

import os

# One thread for each linear algebra call: the slides and bands already keep every core busy.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Annotated, Any  # noqa: E402

from typer import Argument, Option  # noqa: E402

from kdml_med.errors import ExitCode, InputError  # noqa: E402
from kdml_med.program import with_default  # noqa: E402
from kdml_med.programs.like import tiles_like  # noqa: E402
from kdml_med.storage.folder import describe_remade, describe_standing  # noqa: E402
from kdml_med.storage.manifest import FAILURES_FILE, read_info, read_manifest  # noqa: E402
from kdml_med.tables.classes import named_classes  # noqa: E402
from kdml_med.tables.labels import LabelTable, read_labels  # noqa: E402
from kdml_med.tables.usage import say_labels  # noqa: E402
from kdml_med.words import counted, named_failures, printable, verb  # noqa: E402
from kdml_med.wsi.options import TilingOptions, geometry  # noqa: E402
from kdml_med.wsi.tiler import TilingReport, tile_slides  # noqa: E402

_DEFAULT = TilingOptions()


def main(
    inputs: Annotated[list[Path], Argument(help="Slides, plain images, or folders with them.")],
    out: Annotated[Path, Option(help="Dataset folder to write; a run that was cut off goes on there.")],
    labels: Annotated[
        Path | None, Option(help="Table (CSV, TSV, XLSX) with patients and labels. None: inference only.")
    ] = None,
    patient_column: Annotated[str | None, Option(help="Column of --labels with the patient id.")] = None,
    slide_column: Annotated[str | None, Option(help="Column of --labels with the slide name.")] = None,
    label_column: Annotated[str | None, Option(help="Column of --labels with the label.")] = None,
    site_column: Annotated[str | None, Option(help="Column of --labels with the hospital.")] = None,
    mpp_column: Annotated[str | None, Option(help="Column of --labels with micrometres per pixel.")] = None,
    classes: Annotated[tuple[str, str] | None, Option(help="Two classes, the positive one last.")] = None,
    positive: Annotated[str | None, Option(help="The positive class, where words do not say it.")] = None,
    tcga_normals: Annotated[
        bool, Option("--tcga-normals", help="TCGA normal tissue (sample types 10-19) takes its patient's label.")
    ] = False,
    label_level: Annotated[str, Option(help="What carries one label: patient or slide.")] = "patient",
    like: Annotated[
        Path | None, Option(help="Run whose training decides size, resolution and checks of the tiles.")
    ] = None,
    mpp: Annotated[float | None, Option(help=with_default("Micrometres per tile pixel.", _DEFAULT.mpp))] = None,
    tile_size: Annotated[int | None, Option(help=with_default("Tile side, pixels.", _DEFAULT.tile_size_px))] = None,
    preset: Annotated[str | None, Option(help="zenodo-112um or kather-256um; decides --mpp and --tile-size.")] = None,
    workers: Annotated[int, Option(help="Cores to use; with --scheduler, by each worker for its slide.")] = 1,
    scheduler: Annotated[
        str | None, Option(help="Address of a Dask scheduler whose workers tile, such as tcp://node:8786.")
    ] = None,
    image_format: Annotated[
        str | None, Option("--format", help=with_default("jpeg or png.", _DEFAULT.image_format))
    ] = None,
    jpeg_quality: Annotated[int | None, Option(help=with_default("1 to 100.", _DEFAULT.jpeg_quality))] = None,
    stain: Annotated[
        str | None, Option(help=with_default("none, or macenko to store normalised colours.", _DEFAULT.stain))
    ] = None,
    min_tissue: Annotated[
        float | None, Option(help=with_default("Least share of tissue in a tile.", _DEFAULT.min_tissue))
    ] = None,
    max_background: Annotated[
        float | None,
        Option(help=with_default("Largest share of pixels as bright as glass.", _DEFAULT.max_background)),
    ] = None,
    background_level: Annotated[
        float | None,
        Option(help=with_default("Mean from which a pixel is as bright.", f"{_DEFAULT.background_level:.0f}")),
    ] = None,
    max_pen: Annotated[
        float | None, Option(help=with_default("Largest share of ink-coloured pixels.", _DEFAULT.max_pen))
    ] = None,
    min_sharpness: Annotated[
        float | None, Option(help=with_default("Least variance of the Laplacian.", _DEFAULT.min_sharpness))
    ] = None,
    assume_mpp: Annotated[
        float | None, Option(help="Micrometres per pixel of slides whose header says nothing or nonsense.")
    ] = None,
    limit_tiles: Annotated[int | None, Option(help="At most so many tiles of each slide, drawn at random.")] = None,
    seed: Annotated[int, Option(help="Of the draw by --limit-tiles.")] = _DEFAULT.seed,
    reader: Annotated[str, Option(help="auto, or openslide to do without the fast reader.")] = _DEFAULT.reader,
    synthetic: Annotated[bool, Option("--synthetic", help="The slides are generated; reports will say so.")] = False,
    full_hash: Annotated[
        bool, Option("--full-hash", help="Tell large slides apart by all of their bytes, not by some and the time.")
    ] = False,
    keep: Annotated[bool, Option("--keep", help="Slides tiled before that are not named stay in the dataset.")] = False,
    force: Annotated[bool, Option("--force", help="Slides tiled before that are not named are deleted.")] = False,
) -> ExitCode:
    """Cut slides into tiles of a stated physical size, and store them as a dataset folder."""
    cut: dict[str, Any] = {
        "mpp": mpp,
        "tile_size_px": tile_size,
        "min_tissue": min_tissue,
        "max_background": max_background,
        "background_level": background_level,
    }
    stored: dict[str, Any] = {
        "image_format": image_format,
        "jpeg_quality": jpeg_quality,
        "stain": stain,
        "max_pen": max_pen,
        "min_sharpness": min_sharpness,
    }
    if like is not None:
        if preset is not None:
            raise InputError(f"--preset {preset} and --like {like} both decide how tiles are cut: leave one out.")
        taken = tiles_like(like, cut | stored)
        cut, stored = ({name: taken.get(name) for name in part} for part in (cut, stored))
    settings: dict[str, Any] = geometry(preset, **cut) | {
        **{name: value for name, value in stored.items() if value is not None},
        "assume_mpp": assume_mpp,
        "limit_tiles": limit_tiles,
        "seed": seed,
        "reader": reader,
    }
    columns = {
        "patient_column": patient_column,
        "slide_column": slide_column,
        "label_column": label_column,
        "site_column": site_column,
        "mpp_column": mpp_column,
    }
    table = _read_table(labels, columns, named_classes(classes, positive), label_level)
    report = tile_slides(
        inputs,
        out,
        TilingOptions(**settings),
        labels=table,
        tcga_normals=tcga_normals,
        workers=workers,
        synthetic=synthetic,
        full_hash=full_hash,
        keep=keep,
        force=force,
        scheduler=scheduler,
    )
    _print_report(report, out)
    return ExitCode.SOME_FAILED if report.failures or report.absent else ExitCode.OK


def _read_table(
    path: Path | None, columns: dict[str, str | None], classes: tuple[str, ...] | None, label_level: str
) -> LabelTable | None:
    if path is None:
        given = [name for name, value in {**columns, "classes": classes}.items() if value is not None]
        if given:
            raise InputError(f"--{given[0].replace('_', '-')} needs --labels: name the table it is about.")
        return None
    if label_level not in ("patient", "slide"):
        raise InputError(f"--label-level is {label_level!r}, expected patient or slide.")
    return read_labels(path, **columns, classes=classes, label_level="slide" if label_level == "slide" else "patient")


def _print_report(report: TilingReport, out: Path) -> None:
    print(
        f"{out}: {counted(report.tiles, 'tile')}; {counted(report.done, 'slide')} tiled, {report.skipped:,} finished "
        f"before, {counted(len(report.failures), 'problem')}"
    )
    info = read_info(out)
    if info.classes:
        print(*map(printable, say_labels(info, read_manifest(out))), sep="\n")
    if report.rim:
        are = verb(report.rim, "is", "are")
        rim = counted(report.rim, "incomplete tile")
        print(f"{rim} with tissue at the right and lower edges of slides {are} not cut")
    if report.kept:
        was, kept = verb(report.kept, "was", "were"), verb(report.kept, "is kept", "are kept")
        print(f"{counted(report.kept, 'slide')} that {was} not named {kept}")
    print(*describe_remade(report.remade), sep="\n", end="\n" if report.remade else "")
    if report.left_out:
        several = counted(len(report.left_out), "picture")
        are = verb(len(report.left_out), "is no slide", "are no slides")
        print(printable(f"{several} beside slides {are}, such as {report.left_out[0][0]}"))
    _print_failures(report.failures, out)
    print(*describe_standing(report.standing, out), sep="\n", end="\n" if report.standing else "")
    if report.absent:
        print(f"rows of the label table without their slide: {len(report.absent)}")
        _print_failures(report.absent, out, shown=3)
    if report.without_slide:
        print(
            f"patients of the label table without a slide: {len(report.without_slide)}, named in {out / FAILURES_FILE}"
        )


def _print_failures(failures: Sequence[tuple[str, str]], out: Path, shown: int = 20) -> None:
    """The first few; a table of a whole archive would bury them among its absent slides."""
    for line in named_failures(failures, shown=shown, where=out / FAILURES_FILE):
        print(line)
