"""Trainings that would learn nothing, or something else, are refused in one line before a file is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdml_med.bundle import build_loss, build_training_cohort, record_run
from kdml_med.bundle.running import run_config
from kdml_med.bundle.settings import check_settings
from kdml_med.data import SampleLoader, TileDataset
from kdml_med.engines import Acceleration
from kdml_med.errors import InputError
from kdml_med.handlers.random_state import random_state
from kdml_med.keys import Task
from tests.networks.test_trial import OtherAnchors
from tests.networks.tiny import STEADY_DETECTOR, TINY, TinyNet

ALONE: dict[str, Any] = {"device": "cpu", "max_epochs": 1, "use_teacher": False, "beta": 0}
HERE = "tests.bundles.test_network_checks"


def three_classes(num_classes: int) -> nn.Module:
    return TinyNet(3)


def few_anchors(num_classes: int) -> nn.Module:
    return OtherAnchors(-5)


class Drawing(TinyNet):
    """Draws random numbers whenever it answers."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image) + 1e-3 * torch.rand(1)


def refusal(task: Task, run_dir: Path, **settings: Any) -> str:
    """What a training says before it has written anything."""
    with pytest.raises(InputError) as caught:
        run_config(task, "train", run_dir=run_dir, **(ALONE | settings))
    assert not run_dir.exists()
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_a_spec_that_names_other_classes_is_refused(dataset: Path, tmp_path: Path) -> None:
    network = {"name": "convnet", "num_classes": 3}
    said = refusal(Task.CLASSIFICATION, tmp_path / "run", dataset_dir=dataset, students=[TINY, network])
    assert said.startswith("network 'convnet' names num_classes 3, by the dataset it has to be 2: leave it out")


def test_a_classifier_that_does_not_heed_num_classes_is_refused(dataset: Path, tmp_path: Path) -> None:
    students = [TINY, f"{HERE}.three_classes"]
    said = refusal(Task.CLASSIFICATION, tmp_path / "run", dataset_dir=dataset, students=students)
    assert said.startswith("student_1 (TinyNet) answers to 2 images of 32 x 32 px with logits [2, 3]")


def test_a_detector_with_anchors_of_its_own_is_refused(frames: Path, tmp_path: Path) -> None:
    students = [STEADY_DETECTOR, f"{HERE}.few_anchors"]
    said = refusal(Task.DETECTION, tmp_path / "run", dataset_dir=frames, students=students, image_size=[64, 128])
    assert said.startswith("student_1 (OtherAnchors) answers to 2 images of 64 x 128 px with logits [2, 165, 1]")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 1}, "--batch_size 1 is too small for the batch norm of student_0: "),
        ({"tiles_per_epoch": 1, "batch_size": 4}, "--tiles_per_epoch 1 is too small for the batch norm of student_0: "),
    ],
)
def test_batches_of_one_sample_are_refused_where_maps_have_one_position(
    dataset: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    students = ["resnet10", TINY]
    said = refusal(Task.CLASSIFICATION, tmp_path / "run", dataset_dir=dataset, students=students, **settings)
    assert said.startswith(message)
    assert "Raise it to 2" in said


@pytest.mark.parametrize("settings", [{"batch_size": 1, "tiles_per_epoch": 2}, {"batch_size": 4, "tiles_per_epoch": 1}])
def test_batches_of_one_sample_train_where_maps_are_larger(
    dataset: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    place = ALONE | {"dataset_dir": dataset, "run_dir": tmp_path / "run", "image_size": 64, "students": ["resnet10"]}
    run_config("classification", "train", **place, gamma=0, **settings)
    assert (tmp_path / "run/checkpoints/last.pt").is_file()


def test_too_few_patients_for_the_students_are_refused_before_a_file_is_written(dataset: Path, tmp_path: Path) -> None:
    said = refusal(
        Task.CLASSIFICATION, tmp_path / "run", dataset_dir=dataset, students=[TINY] * 6, own_labels=True, batch_size=8
    )
    assert "shared out to 6 students" in said


def test_a_training_draws_the_same_random_numbers_as_if_nothing_had_been_tried(dataset: Path, tmp_path: Path) -> None:
    settings = check_settings(
        "classification", "train",
        ALONE | {"dataset_dir": dataset, "run_dir": tmp_path / "run", "students": [f"{HERE}.Drawing"], "batch_size": 1},
    )  # fmt: skip
    training, validation = (TileDataset(dataset, split) for split in ("train", "val"))
    cohort = build_training_cohort(settings, num_classes=2)
    loader = SampleLoader(training, batch_size=1, training=True)
    before = random_state()
    record_run(
        settings, training, validation, level="patient", built=(cohort, build_loss(settings)),
        acceleration=Acceleration(), loaders=(loader,),
    )  # fmt: skip
    after = random_state()
    assert torch.equal(before["cpu"], after["cpu"])
    assert torch.equal(before["numpy"]["keys"], after["numpy"]["keys"])
    assert torch.equal(before["python"]["words"], after["python"]["words"])
