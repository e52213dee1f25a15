"""How a training computes: chosen once, recorded, and kept when it goes on."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from kdml_med.bundle import build_acceleration, prepare_training
from kdml_med.bundle.running import run_config
from kdml_med.bundle.settings import Settings, check_settings, free_settings
from kdml_med.engines import precision as rule
from kdml_med.errors import InputError
from kdml_med.keys import Task
from kdml_med.networks import Cohort, build_cohort
from kdml_med.storage.manifest import dataset_identity
from tests.bundles.conftest import read_json
from tests.results import lasting

MOBILE = {"name": "mobilenet_v2", "last_block": 6}
SETTINGS: dict[str, Any] = {"device": "cpu", "use_teacher": True, "dataset_dir": "data"}


def settings_of(run_dir: Path, **values: Any) -> Settings:
    return check_settings("classification", "train", SETTINGS | {"run_dir": run_dir} | values)


@pytest.fixture
def cohort() -> Cohort:
    return build_cohort(teacher="resnet10", students=[MOBILE])


@pytest.fixture(autouse=True)
def new_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the tests run on: dense networks from 64 px are faster in bfloat16, separable ones never."""
    monkeypatch.setattr(rule, "native_types", lambda _device: frozenset({"bf16"}))
    monkeypatch.setattr(rule, "processor", lambda: rule._MEASURED_MAKER)
    monkeypatch.setattr(rule, "_BFLOAT16_FROM_PX", {rule.Kind.DENSE: 64})


def write_run(run_dir: Path, **content: Any) -> None:
    """A run that has begun to learn, with what settings.json says of it."""
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "checkpoints/last.pt").touch()
    (run_dir / "settings.json").write_text(json.dumps({"knobs": {}, "dataset": {}} | content, default=str))


@pytest.mark.parametrize(
    ("settings", "size", "expected"),
    [
        ({}, 64, {"precision": "bf16", "in_float32": ["student_0"], "memory_format": "channels_last"}),
        ({}, 63, {"precision": "fp32", "in_float32": [], "memory_format": "channels_last"}),
        ({}, [128, 63], {"precision": "fp32", "in_float32": [], "memory_format": "channels_last"}),
        ({}, None, {"precision": "fp32", "in_float32": [], "memory_format": "channels_last"}),
        ({"precision": "bf16"}, 32, {"precision": "bf16", "in_float32": [], "memory_format": "channels_last"}),
        ({"precision": "fp32"}, 96, {"precision": "fp32", "in_float32": [], "memory_format": "channels_last"}),
        ({"memory_format": "contiguous"}, 64,
         {"precision": "bf16", "in_float32": ["student_0"], "memory_format": "contiguous"}),
        ({"compile": True}, 32, {"precision": "fp32", "in_float32": [], "memory_format": "channels_last"}),
    ],
)  # fmt: skip
def test_settings_say_how_is_computed_and_the_rule_says_the_rest(
    tmp_path: Path, cohort: Cohort, settings: dict[str, Any], size: Any, expected: dict[str, Any]
) -> None:
    built = build_acceleration(settings_of(tmp_path, **settings), cohort, image_size=size)
    assert built.describe() == expected | {"compile": settings.get("compile", False)}


def test_processes_on_unlike_machines_compute_as_the_main_one_chooses(
    tmp_path: Path, cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = {"precision": "fp32", "in_float32": [], "memory_format": "contiguous", "compile": False}
    monkeypatch.setattr("kdml_med.bundle.acceleration.from_main", lambda _: main)
    assert build_acceleration(settings_of(tmp_path), cohort, image_size=64).describe() == main


def test_the_choice_is_said_on_screen(tmp_path: Path, cohort: Cohort, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="kdml_med")
    build_acceleration(settings_of(tmp_path), cohort, image_size=96)
    build_acceleration(settings_of(tmp_path, precision="bf16", compile=True), cohort, image_size=96)
    write_run(tmp_path)
    build_acceleration(settings_of(tmp_path), cohort, image_size=96)
    assert [record.message for record in caplog.records] == [
        "Computed in teacher bf16, student_0 fp32; channels_last (cpu, 96 px)",
        "Computed in bf16; channels_last; compiled (cpu, 96 px)",
        "Computed in fp32; contiguous (as the run was begun)",
    ]


def test_a_run_goes_on_as_it_was_begun_on_any_machine(
    tmp_path: Path, cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = build_acceleration(settings_of(tmp_path), cohort, image_size=96)
    write_run(tmp_path, acceleration=begun.describe())
    monkeypatch.setattr(rule, "native_types", lambda _device: frozenset())
    assert build_acceleration(settings_of(tmp_path / "other"), cohort, image_size=96).precision == "fp32"
    assert build_acceleration(settings_of(tmp_path), cohort, image_size=96).describe() == begun.describe()
    again = build_acceleration(settings_of(tmp_path, checkpoint_activations="teacher"), cohort, image_size=96)
    assert (again.describe(), again.checkpoint_activations) == (begun.describe(), "teacher")


def test_a_run_of_an_earlier_version_goes_on_in_float32(tmp_path: Path, cohort: Cohort) -> None:
    write_run(tmp_path, knobs={"amp": False})
    kept = build_acceleration(settings_of(tmp_path), cohort, image_size=96)
    assert kept.describe() == {
        "precision": "fp32", "in_float32": [], "memory_format": "contiguous", "compile": False
    }  # fmt: skip


def test_a_run_in_mixed_precision_of_an_earlier_version_needs_its_gpu(tmp_path: Path, cohort: Cohort) -> None:
    write_run(tmp_path, knobs={"amp": True})
    with pytest.raises(InputError, match="precision fp16 needs a CUDA GPU, the device is 'cpu'"):
        build_acceleration(settings_of(tmp_path), cohort, image_size=96)


@pytest.mark.parametrize("amp", [True, False])
def test_the_setting_of_earlier_versions_is_none_that_differs(tmp_path: Path, dataset: Path, amp: bool) -> None:
    settings = settings_of(tmp_path, dataset_dir=dataset)
    recorded = settings.recorded
    own = {"precision", "memory_format", "compile"}
    knobs = {name: value for name, value in recorded.items() if name not in free_settings() | own} | {"amp": amp}
    write_run(tmp_path, knobs=knobs, dataset=dataset_identity(dataset))
    prepare_training(settings, demo_dir="demo")
    with pytest.raises(InputError, match="--precision was 'auto', now 'bf16'"):
        prepare_training(settings_of(tmp_path, dataset_dir=dataset, precision="bf16"), demo_dir="demo")


@pytest.mark.parametrize(
    "content", [{"precision": "int8"}, {"precision": "bf16", "speed": 3}, {"memory_format": None}, "bf16"]
)
def test_a_damaged_record_is_told(tmp_path: Path, cohort: Cohort, content: Any) -> None:
    write_run(tmp_path, acceleration=content)
    with pytest.raises(InputError, match=r"settings\.json.*Train again"):
        build_acceleration(settings_of(tmp_path), cohort, image_size=96)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "fp16"}, "precision fp16 needs a CUDA GPU, the device is 'cpu': use --precision auto"),
        ({"compile": True, "checkpoint_activations": "all"}, "leave --checkpoint_activations out"),
        ({"compile": True, "teacher_link": "features"}, "--compile does not go with links by features"),
    ],
)
def test_what_cannot_be_computed_is_refused_before_work(
    tmp_path: Path, dataset: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run_config(
            Task.CLASSIFICATION, "train", dataset_dir=str(dataset), run_dir=str(tmp_path / "run"), device="cpu",
            teacher=MOBILE, students=[MOBILE], **settings,
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_measuring_prints_the_table_of_this_machine_and_trains_nothing(
    tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    with pytest.raises(SystemExit) as ended:
        run_config(
            Task.CLASSIFICATION, "train", dataset_dir=str(dataset), run_dir=str(run_dir), device="cpu",
            teacher=MOBILE, students=[MOBILE], batch_size=2, precision="measure",
        )  # fmt: skip
    assert ended.value.code == 0
    assert not run_dir.exists()
    lines = capsys.readouterr().out.strip().splitlines()
    heading, table = next(line for line in lines if "milliseconds" in line), lines[-3:]
    assert "batches of 2 images of 32 x 32 px" in heading
    assert f"threads: {torch.get_num_threads()}" in heading
    assert [line.split()[0] for line in table[1:]] == ["teacher", "student_0"]
    assert all(len([word for word in line.split() if word.replace(".", "").isdigit()]) == 4 for line in table[1:])
    assert all(line.endswith("fp32, channels_last") for line in table[1:])


def test_a_training_records_how_it_computes_and_repeats_it(tmp_path: Path, dataset: Path) -> None:
    words: dict[str, Any] = {
        "dataset_dir": str(dataset), "device": "cpu", "teacher": {"name": "resnet10", "widen_factor": 0.1},
        "students": [MOBILE], "image_size": 64,
        "tiles_per_epoch": 8, "batch_size": 4, "max_epochs": 1,
    }  # fmt: skip
    results = []
    for name in ("one", "two"):
        run_config(Task.CLASSIFICATION, "train", run_dir=str(tmp_path / name), **words)
        results.append([lasting(tmp_path / name / file) for file in ("checkpoints/best.pt", "metrics.json")])
    assert results[0] == results[1]
    settings = read_json(tmp_path / "one/settings.json")
    assert settings["knobs"]["precision"] == "auto"
    assert settings["acceleration"] == {
        "precision": "bf16", "in_float32": ["student_0"], "memory_format": "channels_last", "compile": False
    }  # fmt: skip
    # It is evaluated in float32 with contiguous weights, at the end of training as in an evaluation later.
    later = run_config(
        Task.CLASSIFICATION, "evaluate", dataset_dir=str(dataset), run_dir=str(tmp_path / "one"), split="val",
        output_dir=str(tmp_path / "later"), device="cpu", batch_size=4,
    )  # fmt: skip
    assert later["networks"] == read_json(tmp_path / "one/metrics.json")["networks"]
