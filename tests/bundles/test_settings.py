"""The list of settings: what is refused, and that configs, help and documentation follow it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fire.parser import DefaultParseValue
from monai.bundle import ConfigWorkflow

from kdml_med.bundle import settings as module
from kdml_med.bundle.help import help_text, page_with_tables, settings_tables, write_pages
from kdml_med.bundle.kinds import number
from kdml_med.bundle.knobs import KNOBS, LOSSES, Knob, Shown
from kdml_med.bundle.settings import check_settings, free_settings, knobs_of
from kdml_med.bundle.training import prepare_training
from kdml_med.errors import InputError
from kdml_med.keys import Task
from tests.bundles.conftest import REPOSITORY, read_json

BUNDLES = {Task.CLASSIFICATION: "msi_kdml", Task.DETECTION: "polyp_kdml"}
PLACE = {"dataset_dir": "data", "run_dir": "run", "device": "cpu", "use_teacher": True}


def config_of(task: Task, stage: str) -> dict[str, Any]:
    return read_json(REPOSITORY / "bundles" / BUNDLES[task] / "configs" / f"{stage}.json")


def refused(task: Task = Task.CLASSIFICATION, **values: Any) -> str:
    with pytest.raises(InputError) as caught:
        check_settings(task, "train", PLACE | values)
    return str(caught.value)


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("stage", ["train", "evaluate", "inference"])
def test_configs_name_every_setting_once_with_the_default_of_the_list(task: Task, stage: Any) -> None:
    config = config_of(task, stage)
    own = [knob for knob in knobs_of(task, stage) if stage != "evaluate" or "train" not in knob.stages]
    for knob in own:
        assert knob.name in config, knob.name
        value, default = config[knob.name], knob.default_of(task)
        worked_out = isinstance(value, str) and value.startswith("$")
        assert worked_out if isinstance(default, Shown) else worked_out or value == default, knob.name
    text = (REPOSITORY / "bundles" / BUNDLES[task] / "configs" / f"{stage}.json").read_text()
    for knob in own:
        assert text.count(f'\n    "{knob.name}":') == 1, knob.name


@pytest.mark.parametrize("task", Task)
def test_every_plain_value_at_the_top_of_a_config_is_in_the_list(task: Task) -> None:
    for stage in ("train", "evaluate", "inference"):
        names = {name for name, value in config_of(task, stage).items() if not isinstance(value, dict | list | str)}
        assert names <= {knob.name for knob in KNOBS if task in knob.tasks}, stage


def test_names_occur_once_for_each_task_and_config() -> None:
    for task in Task:
        for stage in ("train", "evaluate", "inference"):
            names = [knob.name for knob in knobs_of(task, stage)]  # type: ignore[arg-type]
            assert len(names) == len(set(names)), (task, stage)


@pytest.mark.parametrize("task", Task)
def test_defaults_pass_their_own_checks(task: Task) -> None:
    checked = check_settings(task, "train", PLACE)
    assert set(checked) == {knob.name for knob in knobs_of(task, "train")} - {"split", "output_dir", "measure_speed"}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("batch_size", 0, "--batch_size is 0, expected a whole number from 1."),
        ("batch_size", 1.5, "a whole number from 1"),
        ("batch_size", True, "a whole number from 1"),
        ("max_epochs", 0, "a whole number from 1"),
        ("max_epochs", 1.5, "a whole number from 1"),
        ("max_epochs", "3", "a whole number from 1"),
        ("val_interval", 0, "a whole number from 1"),
        ("log_interval", 0, "a whole number from 1"),
        ("early_stopping", 0, "a whole number from 1, or None for all epochs"),
        ("average", "mean", "--average is 'mean', expected one of: none, ema, swa"),
        ("ema_decay", 1.5, "a number from 0 to 1"),
        ("swa_start", -0.5, "a number from 0 to 1"),
        ("tracking", "wandb", "one of: none, mlflow"),
        ("seed", -1, "a whole number from 0"),
        ("fold", -1, "a whole number from 0, or None"),
        ("tiles_per_epoch", 0, "or None for each training tile once"),
        ("learning_rate", "abc", "--learning_rate is 'abc', expected a number above 0."),
        ("learning_rate", 0, "a number above 0"),
        ("alpha", -1, "a number from 0"),
        ("alpha", float("nan"), "a number from 0"),
        ("alpha", float("inf"), "a number from 0"),
        ("warmup_epochs", -1, "a number from 0"),
        ("temperature", 0, "a number above 0"),
        ("device", "gpu", "--device is 'gpu', expected cpu, cuda or cuda:0"),
        ("students", "resnet18", "a list of networks, such as ['resnet18','resnet18']"),
        ("students", [{"body": "resnet18"}], "a list of networks"),
        ("teacher", 50, "a network's name"),
        ("balance", "yes", "--balance is 'yes', expected True or False."),
        ("resume", "no", "True or False"),
        ("resume", 1, "True or False"),
        ("balance", "true", "--balance true: write True, with a capital letter."),
        ("precision", "half", "one of: auto, fp32, bf16, fp16, measure"),
        ("memory_format", "nhwc", "one of: auto, contiguous, channels_last"),
        ("checkpoint_activations", True, "one of: none, teacher, all"),
        ("aggregation", "max", "one of: mean, median, top_k_mean, fraction_positive"),
        ("level", "tile", "one of: patient, slide, or None"),
        ("ensemble_average", "median", "one of: probabilities, logits"),
        ("stain", "reinhard", "one of: none, macenko"),
        ("teacher_link", "feature", "one of: predictions, features, both; or a list with one for each student"),
        ("teacher_link", ["predictions", "all"], "one of: predictions, features, both"),
        ("initial_weights", 1.5, "a path, imagenet, or a mapping"),
        ("run_dir", "", "a path"),
        ("run_dir", None, "a path"),
    ],
)
def test_a_value_of_another_kind_is_refused_in_one_line(name: str, value: Any, message: str) -> None:
    error = refused(**{name: value})
    assert message in error
    assert f"--{name}" in error
    assert "\n" not in error


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("frames_per_epoch", 0, "or None for each training frame once"),
        ("image_size", 100, "multiples of 64"),
        ("image_size", [128], "multiples of 64"),
        ("image_size", None, "multiples of 64"),
        ("frozen_stages", 6, "a whole number from 0 to 5"),
        ("zoom", [1.2, 0.8], "[low, high]"),
        ("zoom", 1.0, "[low, high]"),
        ("colour_jitter", 2, "a number from 0 to 1"),
        ("fusion", "mean", "one of: anchors, boxes"),
        ("box_weight", -1, "a number from 0"),
    ],
)
def test_values_of_detection_likewise(name: str, value: Any, message: str) -> None:
    assert message in refused(Task.DETECTION, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("device", "cuda:1"), ("fold", 0), ("warmup_epochs", 0.5), ("students", ["a.b"]), ("teacher_link", ["both"]),
     ("initial_weights", {"resnet18": "x.pth"}), ("learning_rate", 1), ("beta", 0)],
)  # fmt: skip
def test_values_that_make_sense_pass_unchanged(name: str, value: Any) -> None:
    assert check_settings("classification", "train", PLACE | {name: value})[name] == value


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [("learning_rate", "1e-3", 0.001), ("learning_rate", np.float64(0.5), 0.5), ("batch_size", np.int64(3), 3),
     ("device", torch.device("cuda", 1), "cuda:1"), ("dataset_dir", Path("a/b"), "a/b"),
     ("teacher_checkpoint", Path("t.pt"), "t.pt"), ("teacher_checkpoint", (Path("a.pt"), 2026), ["a.pt", "2026"])],
)  # fmt: skip
def test_values_are_read_as_yaml_and_python_mean_them(name: str, value: Any, meant: Any) -> None:
    read = check_settings("classification", "train", PLACE | {name: value})[name]
    assert (type(read), read) == (type(meant), meant)


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "", "1e-3x", np.float64("nan")])
def test_a_text_that_is_no_number_in_range_is_refused(value: Any) -> None:
    assert "--learning_rate is " in refused(learning_rate=value)


def test_a_folder_of_digits_is_a_path() -> None:
    assert check_settings("classification", "train", PLACE | {"run_dir": 2026})["run_dir"] == "2026"


@pytest.mark.parametrize("task", Task)
def test_builders_are_given_their_settings_whole(task: Task) -> None:
    settings = check_settings(task, "train", PLACE)
    assert {"alpha", "beta", "gamma", "peer_link"} <= set(settings.part("loss"))
    assert {"version", "seed", "students"} <= set(settings.part("networks"))
    assert ("box_weight" in settings.part("loss")) is (task is Task.DETECTION)
    assert not {"run_dir", "dataset_dir", "resume", "log_interval"} & set(settings.recorded)


@pytest.mark.parametrize("task", Task)
def test_help_says_every_setting_with_its_meaning(task: Task) -> None:
    text = help_text(task, "train")
    for knob in knobs_of(task, "train"):
        assert f"--{knob.name}  (" in text
    assert "](" not in text, "links are for the documentation"


@pytest.mark.parametrize(
    ("name", "mark"),
    [
        ("docs/reference/settings.md", "settings"),
        ("bundles/msi_kdml/docs/README.md", "settings of classification"),
        ("bundles/polyp_kdml/docs/README.md", "settings of detection"),
    ],
)
def test_pages_have_the_tables_of_the_list(name: str, mark: str) -> None:
    page = REPOSITORY / name
    assert f"<!-- {mark}: begin -->" in page.read_text()
    assert page.read_text() == page_with_tables(page.read_text()), "make it anew: make settings-page"


def test_pages_are_made_anew_between_their_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- settings of detection: begin -->\nold\n<!-- settings: end -->\nafter\n")
    write_pages([page])
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1], "old" in lines) == ("before", "after", False)
    assert "| `version` | `tiny` | a name | named cohort |" in lines, "a link would lead elsewhere from here"
    assert not any("`stain`" in line for line in lines)


def test_a_new_setting_is_one_entry_of_the_list_and_one_line_of_a_config(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = Knob("toy_weight", number(0), help="weight of a toy", default=0.5, group=LOSSES)
    monkeypatch.setattr(module, "KNOBS", KNOBS)
    KNOBS.append(toy)  # the same list everywhere
    try:
        for task, bundle in BUNDLES.items():
            assert "--toy_weight  (0.5)" in help_text(task, "train")
            copy = tmp_path / bundle / "configs"
            copy.mkdir(parents=True)
            config = config_of(task, "train")
            (copy / "train.json").write_text(json.dumps(config | {"toy_weight": 0.25, "toy": "$2 * @toy_weight"}))
            (copy / "metadata.json").write_text("{}")
            words: dict[str, Any] = {"config_file": str(copy / "train.json"), "logging_file": False, "run_dir": "run"}
            assert ConfigWorkflow(**words, init_id="settings").initialize()[0]["toy_weight"] == 0.25
            assert ConfigWorkflow(**words, init_id="toy").initialize() == [0.5]
            with pytest.raises(InputError, match="--toy_weight is -1, expected a number from 0"):
                ConfigWorkflow(**words, init_id="settings", toy_weight=-1).initialize()
        assert "| `toy_weight` | train | `0.5` | a number from 0 | weight of a toy |" in settings_tables()
        run_dir = tmp_path / "run"
        settings = check_settings(
            "classification", "train", PLACE | {"run_dir": run_dir, "dataset_dir": dataset, "toy_weight": 2.0}
        )
        (run_dir / "checkpoints").mkdir(parents=True)
        (run_dir / "checkpoints/last.pt").touch()
        before = {name: value for name, value in settings.recorded.items() if name != "toy_weight"}
        knobs = {name: value for name, value in before.items() if name not in free_settings()}
        (run_dir / "settings.json").write_text(json.dumps({"knobs": knobs, "dataset": {}}))
        with pytest.raises(InputError, match=r"--toy_weight was 0\.5, now 2\.0"):
            prepare_training(settings, demo_dir="demo")
    finally:
        KNOBS.remove(toy)


# As a person types them; what the command line makes of them is what fire does.
WRITTEN = [
    "yes", "no", "on", "off", "true", "false", "TRUE", "none", "1.5", "-1", "0", "0.5", "-0.5", "nan", "inf", "-inf",
    "1e3", "1e400", "9" * 30, "9" * 400, "1e-3x", "1,2", "[]", "{}", "[0]", "[nan,1]", "[[1]]", "{'name':3}",
    "{'name':None}", "['resnet18',3]", "['resnet18','']", "", " ", "½", "b'a'", "cuda:-1", "cpu:", "1 2", "0x1p3",
]  # fmt: skip


def is_meant(kind: Any, text: str) -> bool:
    """Whether a text can be read as a setting of this kind, told in another way than the list does."""
    words = kind.words.partition(", or None")[0]
    number = float(text) if re.fullmatch(r"-?[0-9.]+(e[0-9]+)?", text) else math.nan
    if words.startswith("a whole number"):
        low, high = 1 - ("from 0" in words), 5 if words.endswith("to 5") else 2**31 - 1
        return re.fullmatch(r"[0-9]+", text) is not None and low <= number <= high
    if words.startswith("a number"):
        high = float(words.partition(" to ")[2] or math.inf)
        return 0 <= number <= high and number < math.inf and not (number == 0 and "above" in words)
    if words.startswith("one of: "):
        return text in words.removeprefix("one of: ").split(", ")
    return words.startswith("[low, high]") and text == "1,2"


@pytest.mark.parametrize(
    ("task", "stage"), [(task, stage) for task in Task for stage in ("train", "evaluate", "inference")]
)
def test_whatever_is_written_behind_a_setting_is_read_as_meant_or_refused_in_one_line(task: Task, stage: Any) -> None:
    # A folder may be called anything, and a name that there is none of is refused by who looks for it.
    knobs = [knob for knob in knobs_of(task, stage) if not re.match("a (path|name)|a network's name", knob.kind.words)]
    assert len(knobs) > 5
    for knob in knobs:
        for text in WRITTEN:
            value = DefaultParseValue(text)
            if is_meant(knob.kind, text):
                knob.check(value)
            else:
                with pytest.raises(InputError, match=rf"^--{knob.name} [^\n]*$"):
                    knob.check(value)


@pytest.mark.parametrize("text", ["yes", "no", "on", "0", "1", "true", "FALSE", "''", "None"])
def test_a_switch_takes_true_and_false_and_nothing_that_python_would_take_for_it(text: str) -> None:
    for knob in KNOBS:
        if knob.kind.words == "True or False":
            with pytest.raises(InputError, match=f"--{knob.name} "):
                knob.check(DefaultParseValue(text))


def test_a_number_that_overflows_is_told_the_largest() -> None:
    assert refused(max_epochs=2**31).endswith("expected a whole number from 1, at most 2147483647.")
    assert check_settings("classification", "train", PLACE | {"alpha": 10**23})["alpha"] == 1e23


def test_files_of_weights_are_paths_whatever_they_are_called() -> None:
    for value, meant in ((0, "0"), ({"resnet18": 7}, {"resnet18": "7"})):
        assert check_settings("classification", "train", PLACE | {"initial_weights": value})["initial_weights"] == meant
