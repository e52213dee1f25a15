"""Our bundle configs run from Python: checked by name and value first, the same results, nothing left behind."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from monai.bundle import ConfigParser
from monai.bundle import run as monai_run

from kdml_med.bundle import find_root, folders
from kdml_med.bundle.running import bundle_dir, run_config
from kdml_med.bundle.settings import check_settings
from kdml_med.data import NormalizeColourd, SampleLoader, TileDataset
from kdml_med.errors import InputError
from kdml_med.keys import Task
from kdml_med.networks.committee import Committee
from kdml_med.runs import checkpoint_path, load_network, read_losses, trained_on
from tests.bundles.conftest import CONFIGS, REPOSITORY, read_json

TINY = "tests.networks.tiny.TinyNet"


@pytest.fixture(scope="module")
def ran(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Run folder, and what training and evaluation returned."""
    run_dir = tmp_path_factory.mktemp("running") / "run"
    place = {"dataset_dir": dataset, "run_dir": run_dir, "device": "cpu"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # MONAI warns of every config that is named to it
        trained = run_config("classification", "train", **place, max_epochs=1, teacher=TINY, students=[TINY, TINY])
        evaluated = run_config(Task.CLASSIFICATION, "evaluate", **place, split="val")
    return run_dir, trained, evaluated


def as_json(content: Any) -> Any:
    return json.loads(json.dumps(content))


def test_training_and_evaluation_return_what_they_write(ran: Any) -> None:
    run_dir, trained, evaluated = ran
    assert trained["split"] == evaluated["split"] == "val"
    assert as_json(trained) == read_json(run_dir / "metrics.json")
    assert as_json(evaluated) == read_json(run_dir / "evaluation_val/metrics.json")
    assert evaluated["networks"] == trained["networks"]


def test_a_run_knows_its_dataset_until_it_moves(ran: Any, dataset: Path, tmp_path: Path) -> None:
    assert trained_on(ran[0]) == dataset.resolve()
    content = read_json(ran[0] / "settings.json")
    for there, message in (
        (str(tmp_path / "gone"), "was trained on .*gone, which is not there"),
        (None, "does not say"),
    ):
        content.pop("dataset_dir")
        (tmp_path / "settings.json").write_text(json.dumps(content | ({"dataset_dir": there} if there else {})))
        with pytest.raises(InputError, match=f"{message}.*--data"):
            trained_on(tmp_path)
        content["dataset_dir"] = there


def test_a_run_that_knows_no_dataset_goes_on(ran: Any, dataset: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(ran[0], tmp_path / "run")
    settings = read_json(run_dir / "settings.json")
    (run_dir / "settings.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "dataset_dir"}))
    place = {"dataset_dir": dataset, "run_dir": run_dir, "device": "cpu"}
    again = run_config("classification", "train", **place, max_epochs=1, teacher=TINY, students=[TINY, TINY])
    assert as_json(again) == as_json(ran[1])
    assert trained_on(run_dir) == dataset.resolve()


def test_switches_and_loggers_of_the_program_around_are_as_before(ran: Any, dataset: Path, tmp_path: Path) -> None:
    ignite = logging.getLogger("ignite")
    ignite.setLevel(logging.DEBUG)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        run_config("classification", "evaluate", dataset_dir=dataset, run_dir=ran[0], output_dir=tmp_path / "out")
        assert ignite.level == logging.DEBUG
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.utils.deterministic.fill_uninitialized_memory
    finally:
        ignite.setLevel(logging.NOTSET)
        torch.use_deterministic_algorithms(before, warn_only=True)
    assert (tmp_path / "out/metrics.json").is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_epoch": 3}, r"unknown option --max_epoch\. Did you mean --max_epochs\?"),
        ({"zoom": [1, 1]}, "unknown option --zoom"),
        ({"optimiser#betas": [0.9, 0.99]}, "unknown option --optimiser#betas"),
        ({"batch_size": 0}, "--batch_size is 0, expected a whole number from 1"),
        ({"balance": "false"}, "--balance false: write False"),
        ({"amp": True}, "unknown option --amp: say --precision fp16, or nothing"),
        ({"run_dir": None}, "run_dir is not given"),
        ({"dataset_dir": "nowhere"}, "nowhere is not a dataset folder"),
        ({"version": "v9"}, "unknown version 'v9'"),
    ],
)
def test_a_wrong_setting_is_said_and_nothing_is_done(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    place = {"run_dir": tmp_path / "run", "dataset_dir": tmp_path / "data"}
    with pytest.raises(InputError, match=message) as caught:
        run_config("classification", "train", **place | settings)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def parsed_by_hand(dataset: Path, run_dir: Path, **more: Any) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(str(REPOSITORY / CONFIGS / "train.json"))
    parser.update({"dataset_dir": str(dataset), "run_dir": str(run_dir), "device": "cpu", **more})
    return parser


def test_a_parser_filled_by_hand_takes_no_setting_with_a_slip(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--max_epoch\. Did you mean --max_epochs\?"):
        parsed_by_hand(dataset, tmp_path, max_epoch=1).get_parsed_content("settings")
    with pytest.raises(InputError, match=r"unknown option --max_epoch\. Did you mean --max_epochs\?"):
        check_settings("classification", "train", {"max_epoch": 1})


def test_it_takes_names_of_ones_own(dataset: Path, tmp_path: Path) -> None:
    own = {"learning_rates": 0.25, "learning_rate": "$@learning_rates / 2", "evaluate_all": "$None", "note": "mine"}
    assert parsed_by_hand(dataset, tmp_path, **own).get_parsed_content("settings")["learning_rate"] == 0.125


def test_a_config_of_others_is_still_warned_of(tmp_path: Path) -> None:
    (tmp_path / "foreign.json").write_text(json.dumps({"run": ["$1 + 1"]}))
    with pytest.warns(UserWarning, match=r"parsing config_file .*foreign\.json"):
        monai_run(config_file=str(tmp_path / "foreign.json"), logging_file=False)


def test_bundles_are_found_beside_the_package_or_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bundle_dir("detection") == REPOSITORY / "bundles/polyp_kdml"
    monkeypatch.setattr(folders, "INSTALLED", tmp_path)
    shutil.copytree(REPOSITORY / "bundles/msi_kdml/configs", tmp_path / "msi_kdml/configs")
    assert bundle_dir(Task.CLASSIFICATION) == tmp_path / "msi_kdml"
    monkeypatch.setattr(folders, "_PACKAGE", tmp_path / "elsewhere")
    with pytest.raises(InputError, match="'polyp_kdml' is neither in"):
        bundle_dir("detection")


def test_an_installed_bundle_keeps_data_and_runs_out_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package"
    shutil.copytree(REPOSITORY / "bundles/msi_kdml/configs", package / "msi_kdml/configs")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("kdml_med.bundle.workflow.INSTALLED", package)
    assert find_root("msi_kdml") == str(tmp_path / "work")


def test_the_first_student_sees_what_it_sees_without_views_and_the_second_one_something_else(
    dataset: Path, tmp_path: Path
) -> None:
    losses = {}
    for views in (False, True):
        run_dir = tmp_path / str(views)
        place = {"dataset_dir": dataset, "run_dir": run_dir, "device": "cpu", "max_epochs": 1}
        alone = {"students": [TINY, TINY], "beta": 0, "gamma": 0}
        run_config("classification", "train", **place, **alone, student_views=views)
        rows = read_losses(run_dir)
        losses[views] = dict(zip(rows["network"], rows["value"], strict=True))
    assert losses[True]["student_0"] == losses[False]["student_0"]
    assert losses[True]["student_1"] != losses[False]["student_1"]


def test_students_with_labels_of_their_own_read_those_of_different_patients(dataset: Path, tmp_path: Path) -> None:
    place = {"dataset_dir": dataset, "device": "cpu", "max_epochs": 1, "students": [TINY, TINY], "beta": 0, "gamma": 0}
    run_config("classification", "train", **place, run_dir=tmp_path / "own", own_labels=True)
    run_config("classification", "train", **place, run_dir=tmp_path / "all")
    own, every = (read_losses(tmp_path / name).set_index("network")["value"] for name in ("own", "all"))
    assert ((own - every).abs() > 1e-3).all(), "means over other samples, not other roundings"
    training = TileDataset(dataset, "train")
    loader = SampleLoader(training, batch_size=4, training=True, students=2)
    learner_of: dict[str, int] = {}
    for batch in loader:
        for patient, learner in zip(batch["patient_id"], batch["learner"].tolist(), strict=True):
            assert learner_of.setdefault(patient, learner) == learner
    assert sorted(set(learner_of.values())) == [0, 1]
    assert training.learners is None, "the dataset itself is left as it was"


def test_with_an_average_that_teaches_students_have_other_losses_and_the_teacher_the_same(
    dataset: Path, tmp_path: Path
) -> None:
    losses = []
    for teaches in (True, False):
        place = {"dataset_dir": dataset, "run_dir": tmp_path / str(teaches), "device": "cpu", "max_epochs": 1}
        run_config(
            "classification", "train", **place, teacher=TINY, students=[TINY], average="ema", average_teaches=teaches
        )
        rows = read_losses(tmp_path / str(teaches)).set_index(["network", "term"])["value"]
        losses.append(rows)
    assert losses[0]["teacher", "task"] == losses[1]["teacher", "task"]
    assert losses[0]["student_0", "kd"] != losses[1]["student_0", "kd"]


def test_a_committee_that_was_trained_alone_teaches_frozen_what_it_was_evaluated_to_say(
    dataset: Path, tmp_path: Path
) -> None:
    committee = {"name": "committee", "members": [TINY, {"name": TINY, "width": 6}]}
    place = {"dataset_dir": dataset, "device": "cpu", "max_epochs": 1}
    alone = {"students": [committee | {"stream": "teacher"}], "beta": 0, "gamma": 0}
    trained = run_config("classification", "train", **place, **alone, run_dir=tmp_path / "alone")
    file = checkpoint_path(tmp_path / "alone", "student_0")
    taught = run_config(
        "classification", "train", **place, run_dir=tmp_path / "taught",
        teacher=committee, students=[TINY, TINY], teacher_checkpoint=str(file),
    )  # fmt: skip
    assert taught["networks"]["teacher"] == trained["networks"]["student_0"]
    network = load_network(tmp_path / "taught", "teacher")
    assert isinstance(network, Committee)
    dataset_of_val = TileDataset(dataset, "val", transform=NormalizeColourd("image"))
    tiles = [dataset_of_val[number] for number in range(len(dataset_of_val))]
    with torch.no_grad():
        said = torch.softmax(network(torch.stack([tile["image"] for tile in tiles])), dim=1)[:, 1]
    table = pd.read_parquet(tmp_path / "taught/predictions.parquet")
    known = table[table["network"] == "teacher"].set_index("sample_id")["probability"]
    assert np.allclose(known[[tile["sample_id"] for tile in tiles]], said, atol=1e-6)
