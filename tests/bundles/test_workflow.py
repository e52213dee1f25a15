"""Entrances to a bundle: names, checks and errors are the same for the command line and for Python."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigWorkflow, create_workflow
from monai.bundle import run as monai_run

from kdml_med.bundle import find_root, training_checks
from kdml_med.bundle.workflow import check_names
from kdml_med.errors import InputError
from tests.bundles.conftest import CONFIGS, POLYP_CONFIGS, REPOSITORY, run_bundle

CONFIG = str(REPOSITORY / CONFIGS / "train.json")
EVALUATE = str(REPOSITORY / CONFIGS / "evaluate.json")

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file")


def start(how: str, **overrides: Any) -> None:
    """Begin a training as far as its checks, from Python."""
    if how == "run":
        monai_run(config_file=CONFIG, logging_file=False, **overrides)
    elif how == "create_workflow":
        create_workflow(config_file=CONFIG, logging_file=False, **overrides)
    else:
        ConfigWorkflow(config_file=CONFIG, logging_file=False, **overrides).initialize()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host program with a command line of its own, started in some other folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["host", "--config_file", "mine.json", "--batch_size", "-3", "--help"])
    return tmp_path


@pytest.mark.parametrize("how", ["run", "create_workflow", "ConfigWorkflow"])
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"batch_size": 0}, "--batch_size is 0, expected a whole number from 1"),
        ({"batch_sise": 8}, r"unknown option --batch_sise\. Did you mean --batch_size\?"),
        ({"split": "test"}, "unknown option --split"),
        ({"task": "detection"}, "this config is for classification"),
        (
            {"train#trainer#non_blocking": "false"},
            "--train#trainer#non_blocking false: write False, with a capital letter",
        ),
        ({"version": "v9"}, "unknown version 'v9'"),
        ({"seed": "$1/0"}, r"--seed is '\$1/0', which gives ZeroDivisionError: division by zero"),
        ({"alpha": "$["}, r"--alpha is '\$\[', which gives SyntaxError"),
        ({"max_epochs": "@nothing"}, "--max_epochs is '@nothing', which gives"),
        ({"temperature": 1e308}, "--temperature is 1e.308, expected a number above 0 to 1000"),
        ({"run_dir": "a\0b"}, "--run_dir is .* expected a path"),
        ({"dataset_dir": "nowhere"}, "nowhere is not a dataset folder"),
    ],
)
def test_python_gets_an_error_that_it_can_catch(
    elsewhere: Path, how: str, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        start(how, **{"run_dir": "run", "dataset_dir": "data"} | overrides)
    assert list(elsewhere.iterdir()) == []


def test_names_of_every_config_count(elsewhere: Path) -> None:
    with pytest.raises(InputError, match="not a finished training run"):
        monai_run(config_file=[CONFIG, EVALUATE], logging_file=False, run_dir="run", split="val")
    with pytest.raises(InputError, match=r"unknown option --spli\. Did you mean --split\?"):
        monai_run(config_file=[CONFIG, EVALUATE], logging_file=False, run_dir="run", spli="val")
    with pytest.raises(InputError, match="not a finished training run"):
        ConfigWorkflow(config_file=[CONFIG, EVALUATE], logging_file=False, run_dir="run", split="val").initialize()


def test_a_wrong_setting_is_said_before_a_missing_run(elsewhere: Path) -> None:
    with pytest.raises(InputError, match="--split is 'tset', expected one of: train, val, test"):
        monai_run(config_file=[CONFIG, EVALUATE], logging_file=False, run_dir="run", split="tset")


@pytest.mark.parametrize("how", ["run", "create_workflow", "ConfigWorkflow"])
def test_tracking_may_add_names_of_its_own(elsewhere: Path, how: str) -> None:
    tracking = {"tracking": "mlflow", "save_execute_config": False, "output_dir": "out", "run_name": "mine"}
    with pytest.raises(InputError, match="--batch_size is 0"):
        start(how, run_dir="run", dataset_dir="nowhere", batch_size=0, **tracking)
    with pytest.raises(InputError, match="unknown option --run_name"):
        start(how, run_dir="run", dataset_dir="nowhere", run_name="mine")


@pytest.mark.parametrize("how", ["run", "create_workflow", "ConfigWorkflow"])
def test_tracking_is_an_option_of_monai_and_a_setting(
    elsewhere: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_checks, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="--tracking mlflow needs MLflow: pip install"):
        start(how, run_dir="run", dataset_dir="nowhere", tracking="mlflow", save_execute_config=False)
    assert list(elsewhere.iterdir()) == []


def test_files_beside_the_configs_that_are_none_do_no_harm(elsewhere: Path) -> None:
    copy = shutil.copytree(REPOSITORY / "bundles/msi_kdml/configs", elsewhere / "mine/configs")
    (copy / "list.json").write_text("[1]")
    (copy / "broken.json").write_text("{")
    (copy / "own.yaml").write_text("my_rate: 0.1\nlearning_rate: '@my_rate'\nbatch_size: 0\n")
    files = [str(copy / name) for name in ("train.json", "own.yaml")]
    with pytest.raises(InputError, match="--batch_size is 0"):
        ConfigWorkflow(config_file=files, logging_file=False, run_dir="run").initialize()


def test_an_own_config_may_bring_names_of_its_own(elsewhere: Path) -> None:
    own = elsewhere / "own.json"
    own.write_text(json.dumps({"my_rate": 0.1, "learning_rate": "@my_rate", "batch_size": 0}))
    with pytest.raises(InputError, match="--batch_size is 0"):
        monai_run(config_file=[CONFIG, str(own)], logging_file=False, run_dir="run")


def test_an_own_config_has_no_setting_with_a_slip(elsewhere: Path) -> None:
    own = elsewhere / "own.json"
    own.write_text(json.dumps({"max_epoch": 3}))
    with pytest.raises(InputError, match=r"unknown option --max_epoch\. Did you mean --max_epochs\?"):
        monai_run(config_file=[CONFIG, str(own)], logging_file=False, run_dir="run")


def test_parts_below_the_settings_can_be_overridden(elsewhere: Path) -> None:
    with pytest.raises(InputError, match="--batch_size is 0"):
        start("run", **{"optimizer#betas": [0.9, 0.99], "batch_size": 0, "run_dir": "run"})


def test_other_errors_stay_as_they_are() -> None:
    from monai.bundle import ConfigExpression

    with pytest.raises(RuntimeError, match="Failed to evaluate"):
        ConfigExpression("$1 / 0", id="x").evaluate()


@pytest.mark.parametrize("folder", [".", "bundles/msi_kdml"])
def test_root_is_found_from_the_current_folder(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY / folder)
    assert find_root("msi_kdml") == str(REPOSITORY / "bundles/msi_kdml")


def test_root_is_found_from_the_config_file(elsewhere: Path) -> None:
    copy = shutil.copytree(REPOSITORY / "bundles/msi_kdml/configs", elsewhere / "mine/configs")
    for workflow in (
        ConfigWorkflow(config_file=str(copy / "train.json"), logging_file=False, init_id="run_dir"),
        ConfigWorkflow(config_file="mine/configs/train.json", logging_file=False, init_id="run_dir"),
    ):
        assert workflow.initialize() == [str(elsewhere / "mine/runs/train")]


def test_a_missing_bundle_is_said(elsewhere: Path) -> None:
    with pytest.raises(InputError, match="'nowhere' was not found"):
        find_root("nowhere")


@pytest.mark.parametrize(
    ("name", "known"),
    [("optimizer#betas", True), ("train::handlers::0::interval", True), ("train#handler#0#interval", False),
     ("train#handlers#9#interval", False), ("optimiser#betas", False), ("train#max_epochs", False)],
)  # fmt: skip
def test_nested_names_are_known_by_what_they_are_a_part_of(name: str, known: bool) -> None:
    written = {"optimizer": {"_target_": "AdamW", "lr": 1}, "train": {"handlers": [{"interval": 1}]}}
    if known:
        check_names([name], written, "classification")
    else:
        with pytest.raises(InputError, match=f"unknown option --{name}"):
            check_names([name], written, "classification")


def test_a_setting_of_the_other_task_is_unknown() -> None:
    with pytest.raises(InputError, match="--zoom"):
        check_names(["zoom"], {"train": {}}, "classification")
    check_names(["zoom"], {"train": {}}, "detection")


def test_the_command_line_gets_one_line_and_exit_code_2(tmp_path: Path) -> None:
    words = ["--config_file", CONFIGS / "train.json", "--run_dir", tmp_path / "run"]
    result = run_bundle("run", *words, "--batch_size", "0", check=False)
    assert result.returncode == 2
    assert "error: --batch_size is 0, expected a whole number from 1.\n" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_help_prints_every_setting_and_does_nothing(tmp_path: Path) -> None:
    result = run_bundle("run", "--config_file", POLYP_CONFIGS / "train.json", "--run_dir", tmp_path / "run", "--help")
    for name in ("--fusion", "--frames_per_epoch", "--ramp_up_epochs"):
        assert f"  {name}  (" in result.stdout
    assert "--stain" not in result.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_args_file_can_be_yaml(tmp_path: Path) -> None:
    (tmp_path / "args.yaml").write_text(
        f"config_file: {CONFIG}\nrun_dir: {tmp_path / 'run'}\nbatch_size: 16\nmax_epochs: 0\n"
    )
    result = run_bundle("run", "--args_file", tmp_path / "args.yaml", check=False)
    assert (result.returncode, "error: --max_epochs is 0" in result.stderr) == (2, True)
    with pytest.raises(InputError, match=r"Did you mean --max_epochs\?"):
        monai_run(args_file=str(tmp_path / "args.yaml"), logging_file=False, max_epoch=3)
