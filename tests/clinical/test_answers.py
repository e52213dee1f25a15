"""Answers of an evaluation: the figures of metrics.json follow from them."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kdml_med.clinical.answers import read_answers
from kdml_med.errors import InputError
from kdml_med.metrics import binary_auroc
from kdml_med.metrics.aggregation import group_table
from kdml_med.runs import METRICS_FILE, PREDICTIONS_FILE, write_predictions
from tests.clinical.answered import CLASSES, FOUR, NETWORKS, many, predictions_of, write_evaluation, write_run


@pytest.mark.parametrize("level", ["patient", "slide"])
@pytest.mark.parametrize("aggregation", ["mean", "median", "fraction_positive"])
def test_figures_of_the_evaluation_follow_from_the_answers(tmp_path: Path, level: str, aggregation: str) -> None:
    run = write_run(tmp_path / "run", many("V"), level=level, aggregation=aggregation)
    answers = read_answers(run, run)
    assert answers.networks == NETWORKS
    figures = json.loads((run / METRICS_FILE).read_text())["networks"]
    for network in answers.networks:
        labels, probabilities, patients = answers.of(network)
        own = figures[network][level]
        assert (len(labels), labels.sum()) == (own["n"], own["positives"])
        assert binary_auroc(labels, probabilities) == pytest.approx(own["auroc"], abs=1e-12)
        assert len(patients) == len(labels)
    table = group_table(many("V"), level=level, method=aggregation, classes=CLASSES)  # patients.csv
    both = [f"{level}_id", "tiles", *(f"probability_{name}" for name in NETWORKS)]
    pd.testing.assert_frame_equal(answers.table[both], table[both])


def test_patients_without_a_label_are_kept_and_not_judged(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", predictions_of(FOUR | {"e": (-1, [0.5])}))
    answers = read_answers(run, run)
    assert math.isnan(answers.table.set_index("patient_id")["label"]["e"])
    assert list(answers.labelled["patient_id"]) == ["a", "b", "c", "d"]
    np.testing.assert_allclose(answers.of("teacher")[1], [0.2, 0.5, 0.4, 0.9])
    assert answers.of("teacher")[0].tolist() == [0, 1, 0, 1]


def test_a_network_without_numbers_keeps_its_place(tmp_path: Path) -> None:
    predictions = many("V")
    predictions.loc[predictions["network"] == "student_1", "probability"] = math.nan
    run = write_run(tmp_path / "run", predictions)
    answers = read_answers(run, run)
    assert np.isnan(answers.of("student_1")[1]).all()
    assert not np.isnan(answers.of("student_0")[1]).any()


def test_evaluations_are_called_by_their_folder(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", many("V"))
    for folder, name in (("evaluation_test", "test"), ("evaluation_other", "other"), ("elsewhere", "elsewhere")):
        write_evaluation(run / folder, many("X"), split="test")
        assert read_answers(run, run / folder).name == name
    assert read_answers(run, run / "evaluation_test" / "..").name == "validation"
    write_evaluation(run / "evaluation_val", many("V"), split="val")
    assert read_answers(run, run / "evaluation_val").name == "validation"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table[table["network"] != "teacher"], "are of different networks"),
        (lambda table: table[table["sample_id"] != "V00_0"].iloc[1:], "answered about different tiles"),
        (lambda table: table.assign(label=2), "label is 2, expected 0, 1, or -1"),
        (lambda table: table.iloc[:0], "holds no predictions"),
        (lambda table: table.assign(patient_id="V00"), "has the labels"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    run = write_run(tmp_path / "run", many("V"))
    write_predictions(run / PREDICTIONS_FILE, change(many("V")))
    with pytest.raises(InputError, match=message) as caught:
        read_answers(run, run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("split", "tset", "split is 'tset', expected one of train, val, test"),
        ("classes", ["MSI", "MSS"], "classes is"),
        ("networks", [], "networks is"),
        ("level", None, "level is None"),
    ],
)
def test_figures_that_do_not_fit_are_refused(tmp_path: Path, key: str, value: Any, message: str) -> None:
    run = write_run(tmp_path / "run", many("V"))
    content = json.loads((run / METRICS_FILE).read_text())
    (run / METRICS_FILE).write_text(json.dumps(content | {key: value}))
    with pytest.raises(InputError, match=message):
        read_answers(run, run)


def test_ten_thousand_patients_are_read_in_seconds(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    patients = {f"V{place:05}": (place % 2, generator.uniform(size=2)) for place in range(10_000)}
    run = write_run(tmp_path / "run", predictions_of(patients, networks=["student_0"]), networks=["student_0"])
    started = time.process_time()
    assert len(read_answers(run, run).table) == 10_000
    assert time.process_time() - started < 5
