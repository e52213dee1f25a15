"""Thresholds, temperatures and aggregation come from the validation patients of a run, and from nowhere else."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdml_med.clinical.answers import read_answers
from kdml_med.clinical.rules import Rules, rules_of_run
from kdml_med.errors import InputError
from kdml_med.keys import Task
from kdml_med.metrics.calibration import fit_temperature
from kdml_med.runs import DETECTIONS_FILE, METRICS_FILE, PREDICTIONS_FILE, SEQUENCES_FILE, RunDescription
from tests.clinical.answered import (
    FOUR,
    frames_of,
    many,
    predictions_of,
    write_detector_evaluation,
    write_detector_run,
    write_evaluation,
    write_run,
)
from tests.examples import examples


def test_thresholds_by_hand(tmp_path: Path) -> None:
    rules = rules_of_run(write_run(tmp_path / "run", predictions_of(FOUR)))
    # Both positives have to be found, and at 0.5 no negative is.
    assert rules.thresholds["teacher"] == {"rule_out": pytest.approx(0.5), "youden": pytest.approx(0.5)}
    assert (rules.level, rules.aggregation, rules.n, rules.positives) == ("patient", "mean", 4, 2)
    assert any("Only 2 of the 4 validation patients are MSI" in text for text in rules.problems)
    # b and everybody else is on the right side of 0.5: no temperature is best.
    assert math.isnan(rules.temperature["teacher"])
    assert any(text.startswith("teacher: no temperature fits") for text in rules.temperature_problems)
    assert not any("temperature" in text for text in rules.problems)


def test_rules_follow_level_and_aggregation_of_the_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", predictions_of(FOUR), aggregation="top_k_mean", level="slide")
    rules = rules_of_run(run)
    assert (rules.level, rules.aggregation) == ("slide", "top_k_mean")
    assert list(read_answers(run, run).table.columns[:4]) == ["patient_id", "slide_id", "label", "tiles"]


def test_rules_are_the_same_whatever_was_evaluated(run: Path) -> None:
    before = rules_of_run(run).plain()
    shutil.rmtree(run / "evaluation_test")
    assert rules_of_run(run).plain() == before
    write_evaluation(run / "evaluation_test", many("Y", seed=7, shift=-0.3), split="test")
    write_evaluation(run / "evaluation_other", many("Z", seed=8, shift=0.3), split="test")
    assert rules_of_run(run).plain() == before
    assert json.loads(json.dumps(before)) == before
    assert before["temperature"]["teacher"] == fit_temperature(*read_answers(run, run).of("teacher")[:2])


def copy_files(source: Path, run: Path, *names: str) -> None:
    for name in names:
        shutil.copy(source / name, run / name)


def test_test_predictions_in_the_place_of_the_validation_are_refused(run: Path) -> None:
    test = run / "evaluation_test"
    copy_files(test, run, PREDICTIONS_FILE)
    with pytest.raises(InputError, match="called a validation, but this run did not validate on 30 patients"):
        rules_of_run(run)
    copy_files(test, run, PREDICTIONS_FILE, METRICS_FILE)
    with pytest.raises(InputError, match=r"is of the split 'test', expected that of the validation"):
        rules_of_run(run)
    metrics = json.loads((run / METRICS_FILE).read_text())
    (run / METRICS_FILE).write_text(json.dumps(metrics | {"split": "val"}))
    with pytest.raises(InputError, match="did not validate on 30 patients of it, first 'X00'"):
        rules_of_run(run)


def test_one_test_patient_among_those_of_the_validation_is_refused(run: Path) -> None:
    both = pd.concat([many("V"), many("X", n=2)], ignore_index=True)
    write_evaluation(run, both[both["patient_id"] != "X01"], split="val")
    with pytest.raises(InputError, match="did not validate on 1 patient of it"):
        rules_of_run(run)


def test_patients_that_were_learned_from_choose_nothing(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", many("V"), train=["V03"])
    with pytest.raises(InputError, match="did not validate on 1 patient of it, first 'V03'"):
        rules_of_run(folder)


def test_files_of_two_evaluations_are_refused(run: Path) -> None:
    fewer = many("V")
    write_evaluation(run / "fewer", fewer[fewer["patient_id"] != "V04"], split="val")
    copy_files(run / "fewer", run, METRICS_FILE)
    with pytest.raises(InputError, match=r"is of 29 patients, 15 positive, the predictions beside it are of 30, 15"):
        rules_of_run(run)


@pytest.mark.parametrize(("name", "value"), [("aggregation", "median"), ("level", "slide")])
@pytest.mark.parametrize("place", ["", "evaluation_test"])
def test_answers_that_were_aggregated_in_another_way_are_refused(run: Path, name: str, value: str, place: str) -> None:
    split = "test" if place else "val"
    predictions = many("X", seed=1) if place else many("V")
    write_evaluation(run / place, predictions, split=split, **{name: value})
    with pytest.raises(InputError, match=f"{name} is '{value}', the run .* has .*: it is chosen at training"):
        read_answers(run, run / place)


def test_patients_of_the_training_are_no_test_patients(run: Path) -> None:
    write_evaluation(run / "swapped", many("V"), split="test")
    with pytest.raises(InputError, match="called a test, but this run has seen 30 patients"):
        read_answers(run, run / "swapped")


@pytest.mark.parametrize(
    "attempt",
    [
        lambda rules: Rules(),
        lambda rules: Rules("patient", "mean", {"teacher": {"youden": 0.3}}, {}, 30, 15, ()),
        lambda rules: Rules(**{field.name: getattr(rules, field.name) for field in dataclasses.fields(Rules)}),
        lambda rules: dataclasses.replace(rules, thresholds={"teacher": {"youden": 0.3}}),
        lambda rules: setattr(rules, "thresholds", {}),
        lambda rules: rules.thresholds.update(teacher={"youden": 0.3}),
        lambda rules: rules.thresholds["teacher"].__setitem__("youden", 0.3),
        lambda rules: rules.temperature.__setitem__("teacher", 2.0),
    ],
)
def test_rules_are_neither_made_nor_changed_by_hand(run: Path, attempt: Callable[[Rules], Any]) -> None:
    rules = rules_of_run(run)
    before = rules.plain()
    with pytest.raises((TypeError, AttributeError)):
        attempt(rules)
    assert rules.plain() == before


def test_rules_are_told_the_run_and_nothing_else() -> None:
    assert list(inspect.signature(rules_of_run).parameters) == ["run_dir"]


@settings(max_examples=examples(20))
@given(data=st.data())
def test_any_validation_set_gives_rules_that_can_be_written(data: st.DataObject, tmp_path_factory: Any) -> None:
    labels = data.draw(st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=6))
    probability = st.sampled_from([0.0, 0.2, 0.5, 1.0, math.nan])
    patients = {f"V{place}": (label, data.draw(st.lists(probability, min_size=1, max_size=3)))
                for place, label in enumerate(labels)}  # fmt: skip
    folder = tmp_path_factory.mktemp("any") / "run"
    rules = rules_of_run(write_run(folder, predictions_of(patients, networks=["student_0"]), networks=["student_0"]))
    known = [label for label in labels if label >= 0]
    assert (rules.n, rules.positives) == (len(known), sum(known))
    json.dumps(rules.plain(), allow_nan=False)
    missing = [value for own in rules.thresholds.values() for value in own.values() if math.isnan(value)]
    assert rules.problems or rules.temperature_problems or not missing


def test_a_run_without_its_figures_is_not_finished(run: Path) -> None:
    (run / METRICS_FILE).unlink()
    with pytest.raises(InputError, match=r"holds no finished evaluation: it has no metrics\.json"):
        rules_of_run(run)


@pytest.mark.parametrize("name", [METRICS_FILE, PREDICTIONS_FILE])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"{}"])
def test_damaged_files_are_named_in_one_line(run: Path, name: str, content: bytes) -> None:
    (run / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        rules_of_run(run)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def detectors(tmp_path: Path) -> Path:
    return write_detector_run(tmp_path / "run", *frames_of([f"V{place}" for place in range(6)]))


def test_detectors_have_the_thresholds_that_training_chose(detectors: Path) -> None:
    rules = rules_of_run(detectors)
    chosen = json.loads((detectors / METRICS_FILE).read_text())["thresholds"]
    assert {name: dict(own) for name, own in rules.thresholds.items()} == {
        name: {"best_f1": value} for name, value in chosen.items()
    }
    assert RunDescription.read(detectors).task is Task.DETECTION


@pytest.mark.parametrize("lost", [0.2, math.nan])
def test_a_detector_that_finds_no_validation_box_has_a_threshold_that_nobody_chose(tmp_path: Path, lost: float) -> None:
    frames, detections = frames_of([f"V{place}" for place in range(24)])
    assert rules_of_run(write_detector_run(tmp_path / "fine", frames, detections)).problems == ()
    own = detections["network"] == "student_0"
    detections.loc[own, "score"] = lost
    detections.loc[own, ["xmin", "xmax"]] += 200.0
    rules = rules_of_run(write_detector_run(tmp_path / "run", frames, detections))
    assert rules.by_default == ("student_0",)
    assert rules.thresholds["student_0"] == {"best_f1": 0.5}
    (problem,) = rules.problems
    assert problem.startswith("student 0 finds none of the 24 validation boxes")
    assert rules.plain()["by_default"] == ["student_0"]


def test_validation_frames_without_boxes_choose_nothing_for_any_detector(tmp_path: Path) -> None:
    frames, detections = frames_of([f"V{place}" for place in range(6)])
    frames["boxes"] = [[] for _ in range(6)]
    rules = rules_of_run(write_detector_run(tmp_path / "run", frames, detections))
    assert rules.by_default == ("student_0", "ensemble")
    (problem,) = rules.problems
    assert problem.endswith("no threshold is better than another, and a score of 0.5 is taken.")


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize(
    "names", [[DETECTIONS_FILE], [SEQUENCES_FILE], [DETECTIONS_FILE, SEQUENCES_FILE, METRICS_FILE]]
)
def test_detections_of_test_patients_in_the_place_of_the_validation_are_refused(
    detectors: Path, tmp_path: Path, names: list[str], split: str
) -> None:
    frames, detections = frames_of([f"X{place}" for place in range(6)], seed=1)
    thresholds = json.loads((detectors / METRICS_FILE).read_text())["thresholds"]
    other = write_detector_evaluation(tmp_path / "other", frames, detections, thresholds, split=split)
    copy_files(other, detectors, *names)
    expected = "is of the split 'test'" if split == "test" and METRICS_FILE in names else "did not validate on"
    with pytest.raises(InputError, match=expected):
        rules_of_run(detectors)


def test_the_threshold_of_the_documentation_works(tmp_path: Path) -> None:
    write_run(tmp_path, predictions_of(FOUR))
    write_evaluation(
        tmp_path / "evaluation_test", predictions_of({f"t{name}": own for name, own in FOUR.items()}), split="test"
    )
    text = (Path(__file__).parents[2] / "docs/how_to/evaluate_and_apply.md").read_text()
    code = text.split("## A threshold")[1].split("## From Python")[0]
    code = textwrap.dedent("\n".join(line for line in code.splitlines() if line.startswith("    ")))
    values: dict[str, Any] = {}
    exec(code.replace("runs/crc", str(tmp_path)), values)
    assert values["found"].threshold == values["rules"].thresholds["ensemble"]["rule_out"]
    assert (values["found"].confusion.tp, values["found"].confusion.fn) == (2, 0)
