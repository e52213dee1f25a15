"""What the report takes a run's evaluations for: of which dataset they are, and of whom in it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from kdml_med.clinical.slides.counting import count_flow
from kdml_med.clinical.study import Role, read_study
from kdml_med.errors import InputError
from kdml_med.splits import assign_splits, freeze_splits
from kdml_med.storage.files import write_json
from kdml_med.storage.manifest import MANIFEST_FILE, dataset_identity, read_info, read_manifest, write_manifest
from tests.clinical.answered import predictions_of, write_evaluation
from tests.clinical.studies import write_placed_dataset, write_study
from tests.synthetic_tiles import write_tile_dataset


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_placed_dataset(tmp_path / "tiles")


def test_a_test_split_of_another_dataset_is_refused_and_goes_as_external(dataset: Path, tmp_path: Path) -> None:
    run = write_study(tmp_path / "run", dataset)
    other = dataset_identity(dataset) | {"manifest_sha256": "1"}
    write_json(run / "evaluation_test/evaluation.json", {"dataset": other, "dataset_dir": "/data/other"})
    with pytest.raises(InputError, match=r"is of another dataset, /data/other, than.*move it.*--external") as caught:
        read_study(run)
    assert "\n" not in str(caught.value)
    (run / "evaluation_test").rename(run / "evaluation_other")
    study = read_study(run, external=[run / "evaluation_other"])
    assert [one.role for one in study.evaluations] == [Role.VALIDATION, Role.EXTERNAL]


@pytest.mark.parametrize("left_out", [[], ["classes"], ["classes", "manifest_sha256", "splits"]])
def test_a_test_split_is_the_runs_own_unless_it_says_otherwise(
    dataset: Path, tmp_path: Path, left_out: list[str]
) -> None:
    """Earlier versions noted no classes, or no dataset."""
    run = write_study(tmp_path / "run", dataset)
    own = {name: value for name, value in dataset_identity(dataset).items() if name not in left_out}
    write_json(run / "evaluation_test/evaluation.json", {"dataset": own})
    assert [one.role for one in read_study(run).evaluations] == [Role.VALIDATION, Role.TEST]


@pytest.fixture
def folds(tmp_path: Path) -> Path:
    """Another hospital's tiles in three folds, of two patients, one and one."""
    folder = write_tile_dataset(tmp_path / "folds", patients=4, tiles=2, split=False, seed=5)
    manifest = read_manifest(folder)
    manifest["patient_id"] = "X" + manifest["patient_id"].astype(str)
    write_manifest(folder / MANIFEST_FILE, pa.Table.from_pandas(manifest, preserve_index=False))
    table = pd.DataFrame({"patient_id": sorted(manifest["patient_id"].unique()), "fold": [0, 0, 1, 2]})
    freeze_splits(folder, table, mode="table", seed=None)
    return folder


def write_fold(run: Path, folds: Path, tested: int, **record: object) -> Path:
    """An evaluation of the run on a fold of another dataset."""
    manifest = read_manifest(folds)
    rows = manifest[(assign_splits(folds, manifest, read_info(folds), fold=tested) == "test").to_numpy()]
    patients = {
        name: (int(own["label"].iloc[0] == "MSI"), [0.4, 0.6])
        for name, own in rows.groupby("patient_id", observed=True)
    }
    folder = write_evaluation(run / "evaluation_folds", predictions_of(patients), split="test")
    write_json(folder / "evaluation.json", {"dataset": dataset_identity(folds), "dataset_dir": str(folds), **record})
    return folder


@pytest.mark.parametrize("of_training", [None, 0, 1])
def test_an_external_cohort_is_counted_in_the_fold_that_was_evaluated(
    dataset: Path, folds: Path, tmp_path: Path, of_training: int | None
) -> None:
    run = write_study(tmp_path / "run", dataset, fold=of_training)
    one = read_study(run, external=[write_fold(run, folds, 0, fold=0)]).evaluations[-1]
    assert one.dataset is not None, one.without_dataset
    tested = next(group for group in count_flow(one.dataset).groups if group.name == "test")
    assert tested.patients == one.metrics["networks"]["ensemble"]["patient"]["n"] == 2


def test_an_evaluation_that_notes_no_fold_has_that_of_the_training(dataset: Path, folds: Path, tmp_path: Path) -> None:
    run = write_study(tmp_path / "run", dataset, fold=1)
    one = read_study(run, external=[write_fold(run, folds, 1)]).evaluations[-1]
    assert one.dataset is not None, one.without_dataset
    assert next(group for group in count_flow(one.dataset).groups if group.name == "test").patients == 1
    damaged = read_study(run, external=[write_fold(run, folds, 1, fold="first")]).evaluations[-1]
    assert damaged.dataset is None
    assert "fold is 'first', expected a whole number or null" in damaged.without_dataset
