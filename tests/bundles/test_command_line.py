from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdml_med.bundle.command_line import check_command_line, find_root
from kdml_med.errors import InputError


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    configs = tmp_path / "here" / "configs"
    configs.mkdir(parents=True)
    (configs / "metadata.json").write_text("{}")
    config = {"max_epochs": 3, "train": {"handlers": [{"interval": 1}], "trainer": {"amp": False}}}
    (configs / "train.json").write_text(json.dumps(config))
    (configs / "more.json").write_text(json.dumps({"split": "test"}))
    return tmp_path / "here"


def command(bundle: Path, *words: str, files: str | None = None) -> list[str]:
    return ["run", "--config_file", files or str(bundle / "configs/train.json"), *words]


@pytest.mark.parametrize(
    "words",
    [
        ["--max_epochs", "4"],
        ["--max_epochs=4"],
        ["--train#trainer#amp", "True"],
        ["--train#handlers#0#interval", "2"],
        ["--train#trainer#epoch_length", "5"],
        ["--logging_file", "x.conf", "--run_id", "run"],
    ],
)
def test_known_names_pass(bundle: Path, words: list[str]) -> None:
    check_command_line(command(bundle, *words))


@pytest.mark.parametrize(
    ("words", "unknown", "nearest"),
    [
        (["--max_epoch", "4"], "--max_epoch.", "--max_epochs?"),
        (["--maxepochs=4"], "--maxepochs.", "--max_epochs?"),
        (["--train#handler#0#interval", "2"], "--train#handler#0#interval.", ""),
        (["--config_fil", "x"], "--config_fil.", "--config_file?"),
    ],
)
def test_unknown_names_are_refused(bundle: Path, words: list[str], unknown: str, nearest: str) -> None:
    with pytest.raises(InputError) as caught:
        check_command_line(command(bundle, *words))
    assert unknown in str(caught.value)
    assert nearest in str(caught.value)


@pytest.mark.parametrize("form", ["['{0}','{1}']", "[{0},{1}]", "('{0}', '{1}')"])
def test_names_of_every_listed_file_count(bundle: Path, form: str) -> None:
    files = form.format(bundle / "configs/train.json", bundle / "configs/more.json")
    check_command_line(command(bundle, "--split", "val", files=files))
    with pytest.raises(InputError, match="--spli"):
        check_command_line(command(bundle, "--spli", "val", files=files))


@pytest.mark.parametrize("word", ["true", "false"])
def test_a_switch_that_would_count_as_true_either_way_is_refused(bundle: Path, word: str) -> None:
    with pytest.raises(InputError, match=f"--max_epochs {word}: write {word.capitalize()}"):
        check_command_line(command(bundle, "--max_epochs", word))


def test_names_in_an_args_file_are_checked_too(bundle: Path, tmp_path: Path) -> None:
    arguments = {"config_file": str(bundle / "configs/train.json"), "max_epoch": 3}
    (tmp_path / "args.json").write_text(json.dumps(arguments))
    with pytest.raises(InputError, match="--max_epochs"):
        check_command_line(["run", "--args_file", str(tmp_path / "args.json")])


def test_other_programs_are_left_alone() -> None:
    check_command_line(["-q", "--strict", "tests"])


def test_root_is_found_from_the_config_file_or_the_current_folder(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_root("here", command(bundle)) == str(bundle)
    monkeypatch.chdir(bundle)
    assert find_root("here", []) == str(bundle)
    (bundle.parent / "bundles").mkdir()
    bundle.rename(bundle.parent / "bundles" / "here")
    monkeypatch.chdir(bundle.parent)
    assert find_root("here", []) == str(bundle.parent / "bundles" / "here")


def test_a_missing_bundle_ends_with_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        find_root("nowhere", [])
    assert caught.value.code == 2
    assert "'nowhere'" in capsys.readouterr().err
