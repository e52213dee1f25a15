"""The report of a run: its thresholds cannot come from test patients, whatever lies in its folder."""

from __future__ import annotations

import ast
import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kdml_med.clinical.writing import write_report
from kdml_med.errors import InputError
from kdml_med.runs import DETECTIONS_FILE, METRICS_FILE, PREDICTIONS_FILE, SEQUENCES_FILE, SETTINGS_FILE
from tests.clinical.answered import (
    frames_of,
    many,
    write_detector_evaluation,
    write_detector_run,
    write_evaluation,
)

LIBRARY = Path(__file__).parents[2] / "kdml_med"
CHOOSERS = {"threshold_for_sensitivity", "youden_threshold", "fit_temperature", "choose_threshold", "choose_thresholds"}
MAY_CHOOSE = {
    "clinical/rules.py",  # on the validation patients of the run, who are recognised
    "bundle/evaluation.py",  # likewise
    "handlers/detection.py",  # in training, on the validation split, for its curves
}


def calls(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            function = node.func
            names.add(getattr(function, "id", getattr(function, "attr", "")))
    return names


def test_thresholds_and_temperatures_are_chosen_in_these_modules_only() -> None:
    found = {
        path.relative_to(LIBRARY).as_posix(): calls(path) & CHOOSERS
        for path in LIBRARY.rglob("*.py")
        if path.parent != LIBRARY / "metrics"
    }
    assert {name for name, called in found.items() if called} == MAY_CHOOSE
    assert found["clinical/rules.py"] == {"threshold_for_sensitivity", "youden_threshold", "fit_temperature"}


def test_a_report_takes_no_threshold_temperature_or_aggregation() -> None:
    parameters = inspect.signature(write_report).parameters
    assert parameters["temperature"].annotation == "bool"  # whether to show it, not which
    assert not {"thresholds", "threshold", "aggregation", "level", "rules"} & set(parameters)


def read(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "report.json").read_text())
    return content


def refusal(run: Path, **options: Any) -> str:
    """What the report says of a run that it refuses; it writes nothing then."""
    for name in ("report.html", "report.json"):
        (run / name).unlink(missing_ok=True)
    with pytest.raises(InputError) as caught:
        write_report(run, speed=False, **options)
    assert not list(run.glob("report.*"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_other_test_patients_leave_the_thresholds_as_they_are(run: Path) -> None:
    write_report(run, speed=False)
    before = read(run)["rules"]
    assert before["thresholds"]["ensemble"]["rule_out"] > 0
    write_evaluation(run / "evaluation_test", many("X", seed=4, shift=-0.2), split="test")
    write_report(run, speed=False)
    assert read(run)["rules"] == before


def test_test_predictions_copied_to_the_run_give_no_report(run: Path) -> None:
    test = run / "evaluation_test"
    shutil.copy(test / PREDICTIONS_FILE, run / PREDICTIONS_FILE)
    assert "this run did not validate on" in refusal(run)
    shutil.copy(test / METRICS_FILE, run / METRICS_FILE)
    assert "split" in refusal(run)
    metrics = json.loads((run / METRICS_FILE).read_text())
    (run / METRICS_FILE).write_text(json.dumps(metrics | {"split": "val"}))
    assert "this run did not validate on" in refusal(run)


def test_an_evaluation_that_was_aggregated_in_another_way_gives_no_report(run: Path) -> None:
    write_evaluation(run / "evaluation_test", many("X", seed=1), split="test", aggregation="median")
    assert "aggregation is 'median'" in refusal(run)


def test_validation_patients_called_test_patients_give_no_report(run: Path) -> None:
    write_evaluation(run / "evaluation_test", many("V"), split="test")
    assert "this run has seen 30 patients" in refusal(run)


@pytest.mark.parametrize("split", ["val", "train"])
def test_patients_of_the_training_are_no_external_cohort(run: Path, split: str) -> None:
    names = {"val": "V", "train": "T"}[split]
    folder = write_evaluation(run / "evaluation_other", many(names), split=split)
    assert f"is of the split '{split}', expected 'test'" in refusal(run, external=[folder])


def test_test_patients_are_no_external_cohort_whatever_the_folder_is_called(run: Path) -> None:
    dataset = {"manifest_sha256": "1", "classes": ["a"]}
    settings = json.loads((run / SETTINGS_FILE).read_text())
    (run / SETTINGS_FILE).write_text(json.dumps(settings | {"dataset": dataset}))
    copy = shutil.copytree(run / "evaluation_test", run / "evaluation_other")
    (copy / "evaluation.json").write_text(json.dumps({"dataset": dict(reversed(dataset.items()))}))
    assert "is of the dataset that the run was trained on" in refusal(run, external=[copy])
    (copy / "evaluation.json").write_text(json.dumps({"dataset": dataset | {"manifest_sha256": "2"}}))
    twin = shutil.copytree(copy, run / "evaluation_twin")
    assert "is of the same dataset as External: other" in refusal(run, external=[copy, twin])


@pytest.fixture
def detectors(tmp_path: Path) -> Path:
    folder = write_detector_run(tmp_path / "run", *frames_of([f"V{place}" for place in range(6)]))
    thresholds = json.loads((folder / METRICS_FILE).read_text())["thresholds"]
    frames = frames_of([f"X{place}" for place in range(6)], seed=1)
    write_detector_evaluation(folder / "evaluation_test", *frames, thresholds, split="test")
    return folder


def test_detections_copied_to_the_run_give_no_report(detectors: Path) -> None:
    write_report(detectors, speed=False)
    test = detectors / "evaluation_test"
    for name in (DETECTIONS_FILE, SEQUENCES_FILE):
        shutil.copy(test / name, detectors / name)
        assert "this run did not validate on" in refusal(detectors)


def test_detectors_judged_at_thresholds_of_the_test_frames_give_no_report(detectors: Path) -> None:
    frames = frames_of([f"X{place}" for place in range(6)], seed=1)
    write_detector_evaluation(
        detectors / "evaluation_test", *frames, {"student_0": 0.01, "ensemble": 0.01}, split="test"
    )
    assert "the threshold of student_0 is 0.01" in refusal(detectors)


def test_frames_of_the_validation_called_test_frames_give_no_report(detectors: Path) -> None:
    thresholds = json.loads((detectors / METRICS_FILE).read_text())["thresholds"]
    frames = frames_of([f"V{place}" for place in range(6)])
    write_detector_evaluation(detectors / "evaluation_test", *frames, thresholds, split="test")
    assert "this run has seen 6 sequences" in refusal(detectors)
