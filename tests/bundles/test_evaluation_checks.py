"""An evaluation never takes the place of that of another dataset."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from kdml_med import evaluate
from kdml_med.errors import InputError
from kdml_med.splits import freeze_splits
from kdml_med.storage.manifest import MANIFEST_FILE, read_manifest, write_manifest
from tests.bundles.conftest import read_json
from tests.synthetic_tiles import write_tile_dataset

REFUSED = "holds the evaluation of another dataset than"


def write_cohort(folder: Path, places: dict[str, int | str], *, column: str = "split") -> Path:
    """Patients of another hospital, each with its split or fold."""
    write_tile_dataset(folder, patients=len(places), tiles=2, split=False, seed=5)
    manifest = read_manifest(folder)
    names = dict(zip(sorted(manifest["patient_id"].unique()), places, strict=True))
    manifest["patient_id"] = manifest["patient_id"].astype(str).map(names)
    write_manifest(folder / MANIFEST_FILE, pa.Table.from_pandas(manifest, preserve_index=False))
    table = pd.DataFrame({"patient_id": list(places), column: list(places.values())})
    freeze_splits(folder, table, mode="table", seed=None, force=True)
    return folder


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return write_cohort(tmp_path / "other", dict.fromkeys(("X1", "X2", "X3", "X4"), "test"))


@pytest.fixture(scope="module")
def evaluated(tiles_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the evaluation of its test split; not to be changed."""
    run = shutil.copytree(tiles_run, tmp_path_factory.mktemp("evaluated") / "run")
    evaluate(run, tiles_run.parent / "tiles", device="cpu")
    return run


@pytest.fixture
def run(evaluated: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(evaluated, tmp_path / "run")


def change(path: Path, **content: object) -> None:
    """Change keys of a JSON file; None takes one away."""
    changed = read_json(path) | content
    path.write_text(json.dumps({name: value for name, value in changed.items() if value is not None}))


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(run: Path, dataset: Path, **more: Path) -> str:
    with pytest.raises(InputError, match=REFUSED) as caught:
        evaluate(run, dataset, device="cpu", **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_dataset_does_not_take_the_place_of_the_runs_own_test(run: Path, other: Path) -> None:
    before = files(run / "evaluation_test")
    assert f"such as --output_dir {run}/evaluation_other" in refusal(run, other)
    (run / "evaluation_test/evaluation.json").unlink()  # as an earlier version left it
    refusal(run, other)
    (run / "evaluation_test/evaluation.json").write_text("{torn")
    refusal(run, other)
    after = files(run / "evaluation_test")
    after[run / "evaluation_test/evaluation.json"] = before[run / "evaluation_test/evaluation.json"]
    assert after == before


@pytest.mark.slow
def test_an_evaluation_of_the_same_dataset_is_replaced_wherever_it_is_now(run: Path, tiles_run: Path) -> None:
    record = run / "evaluation_test/evaluation.json"
    before = read_json(record)
    moved = shutil.copytree(tiles_run.parent / "tiles", run.parent / "moved")
    evaluate(run, moved, device="cpu")
    assert read_json(record)["dataset"] == before["dataset"]
    assert read_json(record)["dataset_dir"] == str(moved.resolve())
    # Earlier versions noted no classes, or nothing at all.
    change(record, dataset={name: value for name, value in before["dataset"].items() if name != "classes"})
    evaluate(run, moved, device="cpu")
    record.unlink()
    evaluate(run, moved, device="cpu")
    assert read_json(record)["dataset"] == before["dataset"]


def test_where_no_dataset_was_noted_nothing_is_refused(run: Path, other: Path) -> None:
    change(run / "settings.json", dataset=None)
    (run / "evaluation_test/evaluation.json").unlink()
    assert evaluate(run, other, device="cpu")["networks"]["student_0"]["patient"]["n"] == 4


@pytest.mark.slow
def test_an_external_dataset_may_grow_and_is_kept_from_others(run: Path, other: Path, tiles_run: Path) -> None:
    folder = run / "evaluation_other"
    for patients in (("X1", "X2", "X3", "X4"), ("X1", "X2", "X3", "X4"), ("X1", "X2", "X3", "X4", "X5", "X6")):
        write_cohort(other, dict.fromkeys(patients, "test"))
        metrics = evaluate(run, other, output_dir=folder, device="cpu")
        assert metrics["networks"]["student_0"]["patient"]["n"] == len(patients)
    before = files(folder)
    for dataset in (tiles_run.parent / "tiles", write_cohort(run.parent / "third", {"Y1": "test", "Y2": "test"})):
        refusal(run, dataset, output_dir=folder)
    assert files(folder) == before


def test_a_dataset_of_the_training_that_grew_leaves_the_figures_on_the_old_one(run: Path, tiles_run: Path) -> None:
    tiles = run.parent / "tiles"
    shutil.copytree(tiles_run.parent / "tiles", tiles)
    change(run / "evaluation_test/evaluation.json", dataset_dir=str(tiles.resolve()))
    shutil.rmtree(tiles)
    write_cohort(tiles, dict.fromkeys(("X1", "X2", "X3", "X4"), "test"))
    refusal(run, tiles)


def test_the_fold_that_was_evaluated_is_noted(run: Path) -> None:
    record = run / "evaluation_test/evaluation.json"
    assert read_json(record)["fold"] is None
    folds = write_cohort(run.parent / "folds", {"X1": 0, "X2": 0, "X3": 1, "X4": 2}, column="fold")
    metrics = evaluate(run, folds, fold=0, output_dir=run / "evaluation_folds", device="cpu")
    assert metrics["networks"]["student_0"]["patient"]["n"] == 2
    assert read_json(run / "evaluation_folds/evaluation.json")["fold"] == 0
