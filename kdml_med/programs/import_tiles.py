"""Make a dataset folder from tiles that exist already, without copying them.

python -m preprocessing.import_tiles SOURCE --out DATASET --layout kather
python -m preprocessing.import_tiles IMAGES --out DATASET --layout csv --labels labels.csv
python -m preprocessing.import_tiles TARS --out DATASET --layout webdataset
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from kdml_med.errors import ExitCode, InputError
from kdml_med.program import progress_bar
from kdml_med.splits import has_splits, read_splits
from kdml_med.storage.manifest import FAILURES_FILE, owner_word, read_info, read_manifest
from kdml_med.tables.classes import named_classes
from kdml_med.tables.images import TableColumns
from kdml_med.tables.usage import say_labels
from kdml_med.words import counted, named_failures, printable, verb
from kdml_med.wsi.imported import ImportResult
from kdml_med.wsi.importing import KATHER_MPP, import_tile_folders, import_tile_table
from kdml_med.wsi.sample_import import import_samples

log = logging.getLogger(__name__)


class Layout(StrEnum):
    """How the tiles lie."""

    KATHER = "kather"
    CSV = "csv"
    WEBDATASET = "webdataset"


class Level(StrEnum):
    """What carries one label."""

    PATIENT = "patient"
    SLIDE = "slide"


def import_tiles(
    source: Annotated[
        Path, typer.Argument(help="Folder that holds the tiles; webdataset: a .tar, too.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Dataset folder to write.", show_default=False)],
    layout: Annotated[
        Layout,
        typer.Option(help="kather: <cohort>_TRAIN/<class>/ and _TEST; csv: a table of images; webdataset: .tar files."),
    ],
    labels: Annotated[
        Path | None, typer.Option(help="csv: the table, CSV, TSV or XLSX; webdataset: one of slides or patients.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=VALUE", help="Not kather: take rows, or samples by their .json, with this; repeatable."
        ),
    ] = None,
    image_column: Annotated[
        str | None,
        typer.Option(help="csv: image names (else found by its name); webdataset: one of several, as tile.png."),
    ] = None,
    patient_column: Annotated[str | None, typer.Option(help="Of --labels or .json: patient ids.")] = None,
    slide_column: Annotated[str | None, typer.Option(help="Of --labels or .json: slide names.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Of --labels or .json: classes.")] = None,
    site_column: Annotated[str | None, typer.Option(help="Of --labels or .json: hospitals.")] = None,
    mpp_column: Annotated[str | None, typer.Option(help="Of --labels or .json: micrometres per pixel.")] = None,
    split_column: Annotated[str | None, typer.Option(help="Likewise: train, val, test; used only when named.")] = None,
    label_level: Annotated[Level, typer.Option(help="Not kather: what carries one label.")] = Level.PATIENT,
    key_pattern: Annotated[
        str | None,
        typer.Option(help="webdataset: regular expression with groups (?P<patient>), (?P<slide>), (?P<site>) of keys."),
    ] = None,
    classes: Annotated[tuple[str, str] | None, typer.Option(help="Two classes, the positive one last.")] = None,
    positive: Annotated[str | None, typer.Option(help="The positive class, where words do not say it.")] = None,
    cohort: Annotated[str | None, typer.Option(help="kather: the name before _TRAIN, where there are several.")] = None,
    mpp: Annotated[
        float | None, typer.Option(help=f"Micrometres per pixel (kather: {KATHER_MPP} unless given).")
    ] = None,
    val_fraction: Annotated[
        float, typer.Option(help="Share of train patients that validate, where the split has no validation.")
    ] = 0.15,
    seed: Annotated[int, typer.Option(help="Seed of their choice.")] = 0,
    check_images: Annotated[
        bool, typer.Option("--check-images", help="Parse every header, not only the first (csv always does).")
    ] = False,
    tcga_normals: Annotated[
        bool, typer.Option("--tcga-normals", help="TCGA normal tissue (sample types 10-19) takes its patient's label.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace splits that are frozen already.")] = False,
) -> ExitCode:
    """Write manifest, slides, failures and, where the tiles come with one, the split."""
    chosen = named_classes(classes, positive)
    common: dict[str, Any] = {"classes": chosen, "val_fraction": val_fraction, "seed": seed, "force": force}
    common["tcga_normals"] = tcga_normals
    table_columns = {
        "image": image_column,
        "patient": patient_column,
        "slide": slide_column,
        "label": label_column,
        "site": site_column,
        "mpp": mpp_column,
        "split": split_column,
    }
    of_table: dict[str, Any] = {"labels": labels, "where": where, "label_level": label_level is not Level.PATIENT}
    of_table |= {f"{role}_column": name for role, name in table_columns.items()}
    own: dict[Layout, dict[str, Any]] = {
        Layout.KATHER: {"cohort": cohort},
        Layout.CSV: {},
        Layout.WEBDATASET: {"key_pattern": key_pattern},
    }
    for other, options in own.items():
        if other is not layout:
            _refuse_other_layout(layout, other, options)
    if layout is Layout.KATHER:
        _refuse_other_layout(layout, Layout.CSV, of_table)
        common |= {"cohort": cohort, "mpp": KATHER_MPP if mpp is None else mpp, "check_images": check_images}
        return _report(import_tile_folders(source, out, **common, progress=_progress), out)
    common |= {
        "columns": TableColumns(**table_columns),
        "where": _parse_where(where or []),
        "label_level": label_level.value,
        "mpp": mpp,
    }
    if layout is Layout.WEBDATASET:
        common |= {"labels": labels, "key_pattern": key_pattern, "check_images": check_images}
        return _report(import_samples(source, out, **common, progress=partial(_progress, unit="tar")), out)
    if labels is None:
        raise InputError("--layout csv needs the table: --labels FILE.")
    return _report(import_tile_table(source, out, labels, **common, progress=_progress), out)


def _progress(images: Sequence[Any], *, unit: str = "image") -> Iterable[Any]:
    with progress_bar(len(images), what="importing", unit=unit) as bar:
        for image in images:
            yield image
            bar.update()


def _parse_where(conditions: Sequence[str]) -> dict[str, str]:
    pairs = [condition.partition("=") for condition in conditions]
    wrong = [condition for condition, pair in zip(conditions, pairs, strict=True) if not pair[0] or not pair[1]]
    if wrong:
        raise InputError(f"--where {wrong[0]!r}: expected COLUMN=VALUE, such as task=hrd.")
    twice = [name for number, (name, _, _) in enumerate(pairs) if name in [other for other, _, _ in pairs[:number]]]
    if twice:
        raise InputError(f"--where names column {twice[0]!r} twice: a row can have one value only. Leave one out.")
    return {name: value for name, _, value in pairs}


def _refuse_other_layout(layout: Layout, other: Layout, options: dict[str, Any]) -> None:
    """An option of another layout would be ignored, and labels come from elsewhere than was meant."""
    given = next((name for name, value in options.items() if value), None)
    if given is not None:
        raise InputError(
            f"--{given.replace('_', '-')} belongs to --layout {other.value}, not to {layout.value}: leave it out, or "
            "choose that layout."
        )


def _report(result: ImportResult, out: Path) -> ExitCode:
    info, manifest = read_info(out), read_manifest(out)
    owners = counted(result.patients, owner_word(manifest, info))
    log.info("%s of %s in %s", counted(result.tiles, "tile"), owners, out)
    for line in say_labels(info, manifest):
        log.info("%s", printable(line))
    if result.unlisted:
        images, were = counted(result.unlisted, "image"), verb(result.unlisted, "is", "are")
        log.info("%s in the folder %s named by no row of the table and left out", images, were)
    if result.unused_split is not None:
        log.info("column %r of the table is not used; --split-column keeps its split", result.unused_split)
    if result.same:
        log.info("names, sizes and labels are those of the import before; pixels are read when they are used")
    _report_splits(out)
    if result.failures:
        log.info("%s could not be used:", counted(len(result.failures), "image"))
        for line in named_failures(result.failures, where=out / FAILURES_FILE):
            log.info("%s", line)
        return ExitCode.SOME_FAILED
    return ExitCode.OK


def _report_splits(out: Path) -> None:
    if not has_splits(out):
        log.info("before training: kdml-med split %s", out)
        return
    try:
        read_splits(out, read_manifest(out), read_info(out))
    except InputError as error:
        log.info("training will refuse the splits that are frozen: %s", error)
