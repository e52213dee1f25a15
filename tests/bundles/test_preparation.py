"""What is refused before a run starts; in this process, because starting MONAI takes seconds."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from kdml_med.bundle import (
    build_loss,
    build_training_cohort,
    fold_of,
    prepare_evaluation,
    prepare_training,
    record_run,
)
from kdml_med.bundle.resuming import recorded_settings
from kdml_med.bundle.settings import Settings, check_settings
from kdml_med.data.tiles import TileDataset
from kdml_med.engines import Acceleration
from kdml_med.errors import InputError
from kdml_med.keys import Task
from kdml_med.networks.registry import build_network
from kdml_med.runs import RunDescription, checkpoint_path, hashed_patient, write_checkpoint
from kdml_med.splits import freeze_splits, make_splits
from kdml_med.storage.manifest import read_info, read_manifest, write_info
from tests.bundles.conftest import refused, train_words
from tests.networks.tiny import TINY
from tests.synthetic_tiles import CLASSES, write_tile_dataset

PLACE: dict[str, Any] = {"device": "cpu", "use_teacher": True}
TEACHER = {"checkpoint_activations": "teacher"}


def training(dataset: Path, run_dir: Path, **values: Any) -> Settings:
    return check_settings("classification", "train", PLACE | {"dataset_dir": dataset, "run_dir": run_dir} | values)


def prepare(settings: Settings) -> None:
    """What the config does before anything is written, as far as it needs no networks."""
    prepare_training(settings, demo_dir="demo")
    tiles = [
        TileDataset(settings["dataset_dir"], split, fold=settings["fold"], stain=settings["stain"])
        for split in ("train", "val")
    ]
    level = settings["level"] or tiles[0].info.label_level
    networks = ["mobilenet_v2"]
    cohort = build_training_cohort(
        Settings(Task.CLASSIFICATION, settings | {"students": networks, "teacher": networks[0]}), num_classes=2
    )
    record_run(settings, *tiles, level=level, built=(cohort, build_loss(settings)), acceleration=Acceleration())


def test_own_starts_need_weights_to_differ_from(tmp_path: Path) -> None:
    dataset = write_tile_dataset(tmp_path / "tiles")
    for start in ("head", ["none", "last_stage"]):
        settings = training(dataset, tmp_path / "run", own_start=start)
        with pytest.raises(InputError, match="--own_start says what students do not take from --initial_weights"):
            prepare_training(settings, demo_dir="demo")
    assert not (tmp_path / "run").exists()


def evaluation(dataset: Path, run_dir: Path, **values: Any) -> Settings:
    place = {"dataset_dir": str(dataset), "run_dir": str(run_dir), "device": "cpu", "stain": "none"}
    return Settings(Task.CLASSIFICATION, place | values)


def describe(run_dir: Path, **changes: Any) -> None:
    """Write the description of a run on tiles of 32 px."""
    usual: dict[str, Any] = {
        "task": Task.CLASSIFICATION, "version": "v1", "networks": {"student_0": "resnet10"}, "classes": CLASSES,
        "image_size": 32,
        "mpp": 1.0, "tile_size_px": 32, "stain": "none", "fold": None, "synthetic": True, "kdml_med": "0",
        "seen_patients": {"train": [], "val": []}, "level": "patient", "aggregation": "mean",
        "ensemble_average": "probabilities",
    }  # fmt: skip
    RunDescription(**usual | changes).write(run_dir)


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
        ({}, {"students": ["resnet18"], "alpha": 0, "beta": 0}, "no student would learn from labels"),
        ({}, {"alpha": 0, "beta": 0}, "no student would learn from labels"),
        ({}, {"teacher_warmup_epochs": 2, "max_epochs": 2}, "would never learn from the teacher"),
        ({}, {"teacher_warmup_epochs": 1, "teacher_checkpoint": "t.pt"}, "is for a teacher that learns along"),
        ({}, {"student_views": True, "peer_link": "both"}, "set --peer_link to predictions"),
        ({}, {"student_views": True, "peer_link": ["predictions", "features"]}, "set --peer_link to predictions"),
        ({}, {"device": "cuda"}, "use --device cpu"),
        ({}, {"precision": "fp16"}, "use --precision auto"),
        ({}, {"fold": 1}, "has splits, not folds"),
        ({}, {"stain": "macenko"}, "no stain matrix"),
    ],
)
def test_training_that_cannot_work_is_refused(
    copy: Path, tmp_path: Path, info: dict, settings: dict, message: str
) -> None:
    change_info(copy, **info)
    run_dir = tmp_path / "run"
    with pytest.raises(InputError, match=message):
        prepare(training(copy, run_dir, **settings))
    assert not run_dir.exists()


def test_what_was_written_is_what_a_run_goes_on_with(copy: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    prepare(training(copy, run_dir))
    (run_dir / "checkpoints").mkdir()
    (run_dir / "checkpoints/last.pt").touch()
    prepare_training(training(copy, run_dir, max_epochs=9, num_workers=1), demo_dir="demo")
    with pytest.raises(InputError, match=r"--gamma was 1\.0, now 2\.0"):
        prepare_training(training(copy, run_dir, gamma=2.0), demo_dir="demo")
    with pytest.raises(InputError, match="already holds a run"):
        prepare_training(training(copy, run_dir, resume=False), demo_dir="demo")
    change_info(copy, splits={"mode": "other"})
    with pytest.raises(InputError, match="the dataset was"):
        prepare_training(training(copy, run_dir), demo_dir="demo")


@pytest.mark.parametrize("recorded", [True, False])
def test_the_other_class_as_the_positive_one_is_another_dataset(copy: Path, tmp_path: Path, recorded: bool) -> None:
    run_dir = tmp_path / "run"
    prepare(training(copy, run_dir))
    (run_dir / "checkpoints").mkdir()
    (run_dir / "checkpoints/last.pt").touch()
    if not recorded:  # as earlier versions wrote it
        content = json.loads((run_dir / "settings.json").read_text())
        del content["dataset"]["classes"]
        (run_dir / "settings.json").write_text(json.dumps(content))
    prepare_training(training(copy, run_dir), demo_dir="demo")
    change_info(copy, classes=CLASSES[::-1])
    with pytest.raises(InputError, match=r"classes, the positive one last, was \['MSS', 'MSI'\], now \['MSI', 'MSS'\]"):
        prepare_training(training(copy, run_dir), demo_dir="demo")


@pytest.mark.parametrize("checkpoint", ["last", "student_0"])
def test_weights_are_never_overwritten_with_other_settings(copy: Path, tmp_path: Path, checkpoint: str) -> None:
    run_dir = tmp_path / "run"
    prepare(training(copy, run_dir))
    prepare_training(training(copy, run_dir, gamma=2.0), demo_dir="demo")  # nothing was learned so far
    (run_dir / "checkpoints").mkdir()
    (run_dir / f"checkpoints/{checkpoint}.pt").touch()
    prepare_training(training(copy, run_dir), demo_dir="demo")
    with pytest.raises(InputError, match="--gamma was"):
        prepare_training(training(copy, run_dir, gamma=2.0), demo_dir="demo")
    with pytest.raises(InputError, match="already holds a run"):
        prepare_training(training(copy, run_dir, resume=False), demo_dir="demo")
    (run_dir / "settings.json").unlink()
    with pytest.raises(InputError, match=r"without its settings\.json"):
        prepare_training(training(copy, run_dir), demo_dir="demo")


def test_one_class_is_nothing_to_learn_from(tmp_path: Path) -> None:
    folder = write_tile_dataset(tmp_path / "tiles", split=False)
    patients = sorted(set(read_manifest(folder)["patient_id"]))  # every other one is MSI
    parts = ["train" if place % 2 else "val" if place < 4 else "test" for place in range(len(patients))]
    freeze_splits(folder, pd.DataFrame({"patient_id": patients, "split": parts}), mode="table", seed=None)
    with pytest.raises(InputError, match=r"split 'train' .* has only tiles of 'MSI'"):
        prepare(training(folder, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_validation_of_one_class_is_said_when_the_training_starts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_tile_dataset(tmp_path / "tiles", split=False)
    patients = sorted(set(read_manifest(folder)["patient_id"]))  # every other one is MSI
    parts = ["val", "test", "val", *["train"] * (len(patients) - 3)]
    freeze_splits(folder, pd.DataFrame({"patient_id": patients, "split": parts}), mode="table", seed=None)
    prepare(training(folder, tmp_path / "run", early_stopping=3))
    (said,) = [message for message in caplog.messages if "AUROC" in message]
    assert said.startswith(f"split 'val' of {folder} has only tiles of 'MSS': no AUROC is defined there")
    assert "the last epoch counts as the best, and --early_stopping does nothing." in said


def test_a_frozen_teacher_may_move_and_stays_the_same_one(copy: Path, tmp_path: Path) -> None:
    networks = {"teacher": TINY, "students": [TINY]}
    first, moved, run_dir = tmp_path / "first.pt", tmp_path / "moved.pt", tmp_path / "run"
    state = build_network(TINY, num_classes=2).state_dict()
    torch.save(state, first)
    settings = training(copy, run_dir, **networks, teacher_checkpoint=str(first))
    prepare_training(settings, demo_dir="demo")
    write_checkpoint(checkpoint_path(run_dir, "teacher"), state)
    (run_dir / "settings.json").write_text(json.dumps(recorded_settings(settings)))
    first.rename(moved)
    settings = training(copy, run_dir, **networks, teacher_checkpoint=str(moved))
    prepare_training(settings, demo_dir="demo")
    torch.save({name: value + 1 for name, value in state.items()}, moved)
    with pytest.raises(InputError, match=r"other settings: --teacher_checkpoint was '.*first\.pt', now '.*moved\.pt'"):
        prepare_training(settings, demo_dir="demo")


def test_a_teacher_that_a_run_trained_is_not_taken_for_a_frozen_one(copy: Path, tmp_path: Path) -> None:
    networks, run_dir = {"teacher": TINY, "students": [TINY]}, tmp_path / "run"
    own = checkpoint_path(run_dir, "teacher")
    settings = training(copy, run_dir, **networks)
    write_checkpoint(own, build_network(TINY, num_classes=2).state_dict())
    (run_dir / "settings.json").write_text(json.dumps(recorded_settings(settings)))
    with pytest.raises(InputError, match=r"other settings: --teacher_checkpoint was None, now '.*teacher\.pt'"):
        prepare_training(training(copy, run_dir, **networks, teacher_checkpoint=str(own)), demo_dir="demo")


def test_a_frozen_teacher_stays_the_same_one_where_it_lies(copy: Path, tmp_path: Path) -> None:
    file, run_dir = tmp_path / "teacher.pt", tmp_path / "run"
    state = build_network(TINY, num_classes=2).state_dict()
    other = {name: value + 1 for name, value in state.items()}
    settings = training(copy, run_dir, teacher=TINY, students=[TINY], teacher_checkpoint=str(file))
    torch.save(other, file)
    write_checkpoint(checkpoint_path(run_dir, "teacher"), state)
    (run_dir / "settings.json").write_text(json.dumps(recorded_settings(settings)))
    prepare_training(settings, demo_dir="demo")  # its last.pt was deleted, to begin anew with this one
    network = {f"networks.teacher.{name}": value for name, value in state.items()}
    write_checkpoint(checkpoint_path(run_dir, "last"), {"network": network})
    with pytest.raises(InputError, match=r"another teacher than .*run began with: bring that one back"):
        prepare_training(settings, demo_dir="demo")
    # What it holds is what counts: other precision, and no counters of batches.
    plain = {name: value.double() for name, value in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(plain, file)
    prepare_training(settings, demo_dir="demo")


def test_a_run_whose_last_checkpoint_was_lost_keeps_where_it_came_from(copy: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    prepare(training(copy, run_dir))
    path = run_dir / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"initial_weights": {"teacher": {"file": "a.pt"}}}))
    write_checkpoint(checkpoint_path(run_dir, "step_00000008"), {})
    prepare(training(copy, run_dir))  # it is refused later, and may go on when the file is back
    assert json.loads(path.read_text())["initial_weights"] == {"teacher": {"file": "a.pt"}}


def test_answers_of_a_teacher_that_learns_are_not_kept(copy: Path, tmp_path: Path) -> None:
    settings = training(copy, tmp_path, cache_teacher="disk")
    with pytest.raises(InputError, match=r"--cache_teacher keeps what a frozen teacher answers.*--teacher_checkpoint"):
        prepare_training(settings, demo_dir="demo")
    with pytest.raises(InputError, match="only the answers of a frozen teacher"):
        build_training_cohort(settings, num_classes=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"initial_weights": "nowhere.pth"}, r"weights file nowhere\.pth does not exist"),
        ({"initial_weights": {"student_0": "nowhere.pth"}}, r"weights file nowhere\.pth does not exist"),
        ({"initial_weights": {"student_7": "nowhere.pth"}}, r"names \['student_7'\], but this cohort has"),
        ({"initial_weights": "imagenet"}, "no package has ImageNet weights of resnet18, resnet50"),
        ({"teacher_checkpoint": "nowhere.pt"}, r"weights file nowhere\.pt does not exist"),
    ],
)
def test_missing_weights_are_told_at_once(copy: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare_training(training(copy, tmp_path / "run", **settings), demo_dir="demo")


def test_nothing_is_cached_for_a_training_whose_weights_are_missing(copy: Path, tmp_path: Path) -> None:
    """Caching a large cohort takes hours."""
    words = train_words(copy, tmp_path / "run", "--cache", "disk", "--initial_weights", "nowhere.pth")
    assert "weights file nowhere.pth does not exist" in refused(*words)
    assert not (copy / "cache").exists()


@pytest.mark.parametrize(("epochs", "views", "said"), [(3, None, True), (3, 3, True), (3, 2, False), (1, None, False)])
def test_that_answers_are_kept_which_no_later_epoch_needs_is_said(
    copy: Path, tmp_path: Path, epochs: int, views: int | None, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    weights = tmp_path / "teacher.pt"
    torch.save(build_network(TINY, num_classes=2).state_dict(), weights)
    networks = {"teacher": TINY, "students": [TINY], "teacher_checkpoint": str(weights)}
    keeping = {"cache_teacher": "disk", "max_epochs": epochs, "repeat_views": views}
    with caplog.at_level(logging.INFO, "kdml_med"):
        build_training_cohort(training(copy, tmp_path, **networks, **keeping), num_classes=2)
    fill = f"no training view of these 3 epochs comes again; their answers fill {copy}/cache/teachers for other runs"
    assert (fill in caplog.text) == said


@pytest.mark.parametrize(
    ("settings", "what", "whose"),
    [
        ({"ema_decay": 0.9}, "--ema_decay 0.9", "--average ema"),
        ({"average": "swa", "ema_decay": 0.9, "swa_start": 0.5}, "--ema_decay 0.9", "--average ema"),
        ({"average": "ema", "ema_decay": 0.9, "swa_start": 0.5}, "--swa_start 0.5", "--average swa"),
        ({"tracking_uri": "sqlite:///x.db"}, "--tracking_uri sqlite:///x.db", "--tracking mlflow"),
        ({**TEACHER, "teacher_checkpoint": "teacher.pt"}, "--checkpoint_activations teacher", "a teacher that learns"),
        ({**TEACHER, "use_teacher": False, "beta": 0.0}, "--checkpoint_activations teacher", "a teacher that learns"),
        ({"teacher_warmup_epochs": 2, "beta": 0.0}, "--teacher_warmup_epochs 2", "--beta above 0"),
        ({"student_views": True, "students": ["resnet10"]}, "--student_views True", "several students"),
        ({"own_labels": True, "students": ["resnet10"]}, "--own_labels True", "several students and --alpha above 0"),
        ({"own_labels": True, "alpha": 0.0}, "--own_labels True", "several students and --alpha above 0"),
        (
            {"average_teaches": True, "average": "swa"},
            "--average_teaches True",
            "--average ema, --beta above 0 and a teacher that learns",
        ),
        ({"average_teaches": True, "average": "ema"}, None, None),
        (TEACHER, None, None),
        ({"checkpoint_activations": "all", "teacher_checkpoint": "teacher.pt"}, None, None),
    ],
)
def test_settings_that_others_leave_without_effect_are_named(
    copy: Path, tmp_path: Path, settings: dict[str, Any], what: str, whose: str, caplog: pytest.LogCaptureFixture
) -> None:
    if "teacher_checkpoint" in settings:
        settings = {**settings, "teacher_checkpoint": str(tmp_path / settings["teacher_checkpoint"])}
        Path(settings["teacher_checkpoint"]).write_bytes(b"found, and read later")
    with caplog.at_level(logging.WARNING, "kdml_med"):
        prepare_training(training(copy, tmp_path / "run", **settings), demo_dir="demo")
    assert caplog.messages == ([] if what is None else [f"{what} does nothing: it is for {whose}."])


WARM_UP = (
    "--warmup_epochs {} of --max_epochs {}: the learning rate only rises, and never falls. Lower it (0 for no rise), "
    "or train longer."
)
RAMP_UP = (
    "--ramp_up_epochs {} of --max_epochs {}: {} would be reached in epoch {}. Lower it (0 for full weight at once), or "
    "train longer."
)


@pytest.mark.parametrize(
    ("settings", "messages"),
    [
        ({}, []),
        ({"max_epochs": 2}, []),  # as the first tutorial of Python trains
        ({"max_epochs": 1}, [WARM_UP.format(1, 1), RAMP_UP.format(1, 1, "--beta 1 and --gamma 1", 2)]),
        ({"max_epochs": 1, "warmup_epochs": 0.5, "ramp_up_epochs": 0}, []),
        ({"max_epochs": 3, "warmup_epochs": 3}, [WARM_UP.format(3, 3)]),
        ({"max_epochs": 3, "ramp_up_epochs": 2}, []),
        ({"max_epochs": 3, "ramp_up_epochs": 3, "beta": 0}, [RAMP_UP.format(3, 3, "--gamma 1", 4)]),
        ({"max_epochs": 3, "ramp_up_epochs": 3, "beta": 0, "gamma": 0}, []),
        ({"max_epochs": 3, "ramp_up_epochs": 3, "students": ["resnet10"]}, [RAMP_UP.format(3, 3, "--beta 1", 4)]),
        ({"max_epochs": 4, "teacher_warmup_epochs": 2}, []),
        ({"max_epochs": 4, "teacher_warmup_epochs": 3}, [RAMP_UP.format(1, 4, "--beta 1", 5)]),
    ],
)
def test_a_rise_that_lasts_as_long_as_the_training_is_named(
    copy: Path, tmp_path: Path, settings: dict[str, Any], messages: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "kdml_med"):
        prepare_training(training(copy, tmp_path / "run", **settings), demo_dir="demo")
    assert caplog.messages == messages


def test_wrong_networks_and_losses_are_said_in_one_line(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown version 'v9'"):
        build_training_cohort(training(copy, tmp_path, version="v9"), num_classes=2)
    with pytest.raises(InputError, match="the cohort has no teacher"):
        build_training_cohort(training(copy, tmp_path, use_teacher=False, teacher_checkpoint="x.pt"), num_classes=2)
    with pytest.raises(InputError, match="both zero"):
        build_loss(training(copy, tmp_path, alpha=0, beta=0, gamma=0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["benign", "malignant"]}, "the run knows the classes"),
        ({"mpp": 0.5}, "trained at 0.5 µm/px"),
        ({"tile_size_px": 64}, "trained on tiles of 64 px"),
        ({"stain": "macenko"}, "leave --stain out"),
    ],
)
def test_run_and_dataset_must_fit(dataset: Path, tmp_path: Path, changes: dict, message: str) -> None:
    describe(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        prepare_evaluation(evaluation(dataset, tmp_path, split="test"), level="patient")


def test_tiles_stored_normalised_do_not_fit_a_run_without(copy: Path, tmp_path: Path) -> None:
    change_info(copy, options={"stain": "macenko"})
    describe(tmp_path)
    with pytest.raises(InputError, match="come with stain normalisation 'macenko'"):
        prepare_evaluation(evaluation(copy, tmp_path, split="test"), level="patient")


def test_patients_seen_in_training_are_no_test(dataset: Path, tmp_path: Path) -> None:
    patient = TileDataset(dataset, "test").rows["patient_id"].iloc[0]
    describe(tmp_path, seen_patients={"train": [hashed_patient(patient)], "val": []})
    with pytest.raises(InputError, match=f"1 patient of split 'test' has an id .* first '{patient}'"):
        prepare_evaluation(evaluation(dataset, tmp_path, split="test"), level="patient")


def hashes(dataset: Path, split: str) -> list[str]:
    return sorted({hashed_patient(name) for name in TileDataset(dataset, split).rows["patient_id"]})


def test_patients_that_were_learned_from_are_no_validation(dataset: Path, tmp_path: Path) -> None:
    validated = hashes(dataset, "val")
    describe(tmp_path, seen_patients={"train": [], "val": validated})
    prepare_evaluation(evaluation(dataset, tmp_path, split="val"), level="patient")
    describe(tmp_path, seen_patients={"train": validated[:1], "val": validated})
    with pytest.raises(InputError, match="1 patient of split 'val'"):
        prepare_evaluation(evaluation(dataset, tmp_path, split="val"), level="patient")
    prepare_evaluation(evaluation(dataset, tmp_path, split="train"), level="patient")


def test_nothing_is_chosen_on_patients_whom_training_did_not_validate_on(dataset: Path, tmp_path: Path) -> None:
    validated = hashes(dataset, "val")
    describe(tmp_path, seen_patients={"train": [], "val": validated[1:]})
    with pytest.raises(InputError, match="split 'val' has 1 patient whom this run did not validate on"):
        prepare_evaluation(evaluation(dataset, tmp_path, split="val"), level="patient")


def test_splits_that_were_swapped_make_no_validation_of_test_patients(copy: Path, tmp_path: Path) -> None:
    describe(tmp_path, seen_patients={split: hashes(copy, split) for split in ("train", "val")})
    splits = pd.read_csv(copy / "splits.csv", dtype=str)
    swapped = splits.assign(split=splits["split"].replace({"val": "test", "test": "val"}))
    freeze_splits(copy, swapped, mode="table", seed=None, force=True)
    for split, message in (("val", "whom this run did not validate on"), ("test", "used in training this run")):
        with pytest.raises(InputError, match=message):
            prepare_evaluation(evaluation(copy, tmp_path, split=split), level="patient")


@pytest.mark.parametrize(
    ("name", "value"),
    [("aggregation", "median"), ("level", "slide"), ("ensemble_average", "logits"), ("image_size", 64)],
)
@pytest.mark.parametrize("split", ["test", "train"])
def test_how_networks_are_judged_is_chosen_at_training(
    dataset: Path, tmp_path: Path, name: str, value: str | int, split: str
) -> None:
    describe(tmp_path, seen_patients={"train": [], "val": hashes(dataset, "val")})
    settings: dict[str, Any] = {
        "level": "patient", "aggregation": "mean", "ensemble_average": "probabilities", "image_size": [32, 32],
    }  # fmt: skip
    prepare_evaluation(evaluation(dataset, tmp_path, split=split, **settings), level="patient")
    settings[name] = value
    with pytest.raises(InputError, match=f"^--{name} is {value!r}, the run was trained with"):
        prepare_evaluation(evaluation(dataset, tmp_path, split=split, **settings), level=settings["level"])
    # It can be tried by the patients of the validation, beside what training left.
    prepare_evaluation(evaluation(dataset, tmp_path, split="val", **settings), level=settings["level"])
    own = settings | {"output_dir": str(tmp_path / "." / "sub" / "..")}
    with pytest.raises(InputError, match=f"those of another --{name}"):
        prepare_evaluation(evaluation(dataset, tmp_path, split="val", **own), level=settings["level"])


@pytest.mark.parametrize("split", ["test", "train"])
def test_figures_of_other_splits_do_not_go_where_thresholds_are_chosen(
    dataset: Path, tmp_path: Path, split: str
) -> None:
    run = tmp_path / "run"
    describe(run, seen_patients={"train": [], "val": hashes(dataset, "val")})
    (tmp_path / "link").symlink_to(run)
    for folder in (run, tmp_path / "link", run / "evaluation_test" / ".."):
        with pytest.raises(InputError, match="--output_dir is the folder of the run"):
            prepare_evaluation(evaluation(dataset, run, split=split, output_dir=str(folder)), level="patient")
    prepare_evaluation(evaluation(dataset, run, split="val", output_dir=str(run)), level="patient")


def test_inference_works_on_a_dataset_with_folds(tmp_path: Path) -> None:
    folder = write_tile_dataset(tmp_path / "folds", split=False)
    splits = make_splits(read_manifest(folder), classes=CLASSES, folds=3, seed=0)
    freeze_splits(folder, splits, mode="folds", seed=0)
    describe(tmp_path, fold=2)
    prepare_evaluation(evaluation(folder, tmp_path), level="patient")
    assert fold_of(folder, 2) == 2


def test_the_fold_of_a_run_is_not_asked_of_a_dataset_with_plain_splits(dataset: Path) -> None:
    assert fold_of(dataset, 2) is None
