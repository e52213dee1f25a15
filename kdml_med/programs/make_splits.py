"""Decide which patients of a dataset folder train, validate and test, and freeze the decision.

python -m preprocessing.make_splits DATASET
python -m preprocessing.make_splits DATASET --folds 5 --site-preserved
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kdml_med.errors import ExitCode, InputError
from kdml_med.splits import (
    DEFAULT_FRACTIONS,
    SPLIT_COLUMNS,
    check_request,
    check_splits,
    describe_splits,
    freeze_splits,
    make_splits,
    read_splits,
    required_classes,
)
from kdml_med.storage.cells import unguarded
from kdml_med.storage.manifest import DatasetKind, read_info, read_manifest
from kdml_med.tables.columns import read_text_table


def command(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder.", show_default=False)],
    fractions: Annotated[
        tuple[float, float, float] | None,
        typer.Option(
            metavar="SHARES", help=f"Shares of patients for train, val and test; {DEFAULT_FRACTIONS} unless given."
        ),
    ] = None,
    folds: Annotated[int | None, typer.Option(help="Make this many folds instead, at least 3.")] = None,
    from_table: Annotated[
        Path | None, typer.Option(help="Freeze this table (patient_id and split or fold) instead of making one.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the shuffling.")] = 0,
    site_preserved: Annotated[
        bool, typer.Option("--site-preserved", help="Keep all patients of a site together.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace splits that are frozen already.")] = False,
) -> ExitCode:
    """Split a dataset by patient, stratified by label, and freeze the result in splits.csv."""
    check_request(fractions, folds, seed)
    info = read_info(dataset)
    names = ["sample_id"] if info.kind == DatasetKind.FRAMES else []  # a frame may be all that is known of a patient
    manifest = read_manifest(dataset, [*SPLIT_COLUMNS, "label", *names])
    details: dict[str, Any] = {"site_preserved": site_preserved}
    if from_table is not None:
        if fractions is not None or folds is not None or site_preserved:
            raise InputError("--from-table takes the splits as they are: leave out the options that make some.")
        # Splits of a dataset may be frozen in another one, so that its guarded cells are read as what they stand for.
        splits, mode, used_seed = unguarded(read_text_table(from_table)), "table", None
        details = {}
    else:
        splits = make_splits(
            manifest,
            classes=info.classes,
            fractions=fractions,
            folds=folds,
            seed=seed,
            site_preserved=site_preserved,
            required=required_classes(info),
            info=info,
        )
        mode, used_seed = ("fractions" if folds is None else "folds"), seed
        details["folds" if folds else "fractions"] = folds or list(fractions or DEFAULT_FRACTIONS)
    splits = check_splits(splits, manifest, str(from_table or "the new splits"), info)
    freeze_splits(dataset, splits, mode=mode, seed=used_seed, force=force, **details)
    frozen = read_splits(dataset, manifest, read_info(dataset))
    print(describe_splits(manifest, frozen, info).to_string(index=False))
    return ExitCode.OK
