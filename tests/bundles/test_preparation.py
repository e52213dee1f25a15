"""What is refused before a run starts; in this process, because starting MONAI takes seconds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from kdml_med.bundle import build_loss, build_training_cohort, fold_of, prepare_evaluation, prepare_training
from kdml_med.runs import COHORT_FILE
from kdml_med.splits import freeze_splits, make_splits
from kdml_med.storage.files import write_json
from kdml_med.storage.manifest import read_info, read_manifest, write_info
from tests.bundles.conftest import REPOSITORY, read_json
from tests.synthetic_tiles import CLASSES, write_tile_dataset

SETTINGS: dict[str, Any] = {
    "seed": 0, "device": "cpu", "amp": False, "fold": None, "stain": "none", "image_size": None, "level": None,
    "aggregation": "mean", "ensemble_average": "probabilities", "version": "v1", "students": None, "alpha": 1.0,
    "beta": 1.0, "use_teacher": True,
}  # fmt: skip
EVALUATION: dict[str, Any] = {"fold": None, "level": "patient", "stain": "none", "device": "cpu"}


def refused(capsys: pytest.CaptureFixture[str], call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(SystemExit) as caught:
        call(*args, **kwargs)
    assert caught.value.code == 2
    return capsys.readouterr().err


def description(**changes: Any) -> dict[str, Any]:
    usual = {
        "classes": CLASSES, "mpp": 1.0, "tile_size_px": 32, "stain": "none", "fold": None,
        "seen_patients": {"train": []},
    }  # fmt: skip
    return usual | changes


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    return shutil.copytree(dataset, tmp_path / "copy")


def change_info(folder: Path, **changes: Any) -> Path:
    info = read_info(folder)
    for name, value in changes.items():
        setattr(info, name, value)
    write_info(folder, info)
    return folder


@pytest.mark.parametrize(
    ("info", "settings", "message"),
    [
        ({"tile_size_px": None}, {}, "differ in size: say --image_size"),
        ({"label_level": "slide"}, {"level": "patient"}, "use --level slide"),
        ({}, {"use_teacher": False}, "Set --beta 0"),
        ({}, {"students": ["resnet18"], "alpha": 0, "beta": 0}, "has no peers"),
        ({}, {"aggregation": "max"}, "--aggregation is 'max', expected one of: mean"),
        ({}, {"level": "tile"}, "expected one of: patient, slide"),
        ({}, {"ensemble_average": "median"}, "expected one of: probabilities, logits"),
        ({}, {"device": "cuda"}, "use --device cpu"),
        ({}, {"amp": True}, "leave --amp out"),
        ({}, {"fold": 1}, "has splits, not folds"),
        ({}, {"stain": "macenko"}, "no stain matrix"),
    ],
)
def test_training_that_cannot_work_is_refused(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], info: dict, settings: dict, message: str
) -> None:
    change_info(copy, **info)
    run_dir = tmp_path / "run"
    error = refused(capsys, prepare_training, str(copy), str(run_dir), settings=SETTINGS | settings)
    assert message in error
    assert not run_dir.exists()


def test_wrong_networks_and_losses_are_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown version 'v9'" in refused(capsys, build_training_cohort, version="v9")
    error = refused(capsys, build_training_cohort, use_teacher=False, teacher_checkpoint="x.pt")
    assert "the cohort has no teacher" in error
    assert "gamma must not be negative" in refused(capsys, build_loss, gamma=-1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["benign", "malignant"]}, "the run knows the classes"),
        ({"mpp": 0.5}, "trained at 0.5 µm/px"),
        ({"tile_size_px": 64}, "trained on tiles of 64 px"),
        ({"stain": "macenko"}, "leave --stain out"),
    ],
)
def test_run_and_dataset_must_fit(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict, message: str
) -> None:
    write_json(tmp_path / COHORT_FILE, description(**changes))
    error = refused(
        capsys,
        prepare_evaluation,
        str(dataset),
        str(tmp_path),
        split="test",
        **EVALUATION,
    )
    assert message in error


def test_tiles_stored_normalised_do_not_fit_a_run_without(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_info(copy, options={"stain": "macenko"})
    write_json(tmp_path / COHORT_FILE, description())
    error = refused(
        capsys,
        prepare_evaluation,
        str(copy),
        str(tmp_path),
        split="test",
        **EVALUATION,
    )
    assert "come with stain normalisation 'macenko'" in error


def test_inference_works_on_a_dataset_with_folds(tmp_path: Path) -> None:
    folder = write_tile_dataset(tmp_path / "folds", split=False)
    splits = make_splits(read_manifest(folder), classes=CLASSES, folds=3, seed=0)
    freeze_splits(folder, splits, mode="folds", seed=0)
    write_json(tmp_path / COHORT_FILE, description(fold=2))
    prepare_evaluation(str(folder), str(tmp_path), split=None, **EVALUATION)
    assert fold_of(str(folder), description(fold=2)) == 2


def test_the_fold_of_a_run_is_not_asked_of_a_dataset_with_plain_splits(dataset: Path) -> None:
    assert fold_of(str(dataset), description(fold=2)) is None


def test_every_knob_is_recorded_and_so_compared_when_a_run_goes_on() -> None:
    config = read_json(REPOSITORY / "bundles/msi_kdml/configs/train.json")
    names = list(config)
    knobs = names[names.index("seed") : names.index("log_interval")]
    assert set(knobs) == set(config["settings"])
