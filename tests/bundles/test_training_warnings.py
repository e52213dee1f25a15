from __future__ import annotations

from pathlib import Path

import pandas as pd

from kdml_med.bundle.training_warnings import classifier_warnings, detector_warnings
from kdml_med.report.doubts import ALIKE, UNDERFIT, UNTAUGHT, WARNINGS, WEAK_TEACHER
from tests.bundles.conftest import read_json

LABELS = [0, 0, 1, 1]


def answers(**probabilities: list[float]) -> pd.DataFrame:
    frames = [
        pd.DataFrame(
            {"sample_id": [f"t{number}" for number in range(len(own))], "network": name, "probability": own,
             "label": LABELS[: len(own)]}
        )
        for name, own in probabilities.items()
    ]  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def figures(**aurocs: float | None) -> dict:
    return {"networks": {name: {"tile": {"auroc": value}} for name, value in aurocs.items()}, "best_epoch": 2}


def write_losses(folder: Path, training: dict[str, float], validation: dict[str, float]) -> None:
    rows = [(epoch, 5, name, "task", 1.0, value + epoch - 2) for epoch in (1, 2) for name, value in training.items()]
    columns = ["epoch", "iterations", "network", "term", "weight", "value"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "losses.csv", index=False)
    judged = [(epoch, name, "loss", value - epoch + 2) for epoch in (1, 2) for name, value in validation.items()]
    pd.DataFrame(judged, columns=["epoch", "network", "figure", "value"]).to_csv(folder / "history.csv", index=False)


def test_students_that_answer_alike_err_alike(tmp_path):
    same = answers(student_0=[0.1, 0.4, 0.6, 0.7], student_1=[0.1, 0.4, 0.6, 0.7])
    assert set(classifier_warnings(figures(student_0=0.9, student_1=0.9), same, str(tmp_path))) == {ALIKE}
    other = answers(student_0=[0.1, 0.4, 0.6, 0.7], student_1=[0.4, 0.1, 0.7, 0.6])
    assert classifier_warnings(figures(student_0=0.9, student_1=0.9), other, str(tmp_path)) == {}


def test_answers_of_students_are_paired_by_tile_whatever_their_order(tmp_path):
    table = answers(student_0=[0.1, 0.4, 0.6, 0.7], student_1=[0.1, 0.4, 0.6, 0.7])
    shuffled = pd.concat([table.iloc[:4], table.iloc[[7, 5, 6, 4]]], ignore_index=True)
    assert set(classifier_warnings(figures(student_0=0.9, student_1=0.9), shuffled, str(tmp_path))) == {ALIKE}


def test_tiles_without_a_label_have_no_error(tmp_path):
    # Without the last tile the errors are opposite, with it they would be nearly one.
    table = answers(student_0=[0.3, 0.1, 0.7, 0.9], student_1=[0.1, 0.3, 0.9, 0.9])
    table.loc[table["sample_id"] == "t3", "label"] = -1
    assert ALIKE not in classifier_warnings(figures(student_0=0.9, student_1=0.9), table, str(tmp_path))


def test_the_losses_of_the_epoch_that_is_kept_are_compared(tmp_path):
    table = answers(student_0=[0.1, 0.4, 0.6, 0.7])
    write_losses(tmp_path, {"teacher": 9.0, "student_0": 0.5}, {"teacher": 0.1, "student_0": 0.5})
    assert set(classifier_warnings(figures(student_0=0.9), table, str(tmp_path))) == {UNDERFIT}
    assert classifier_warnings(figures(student_0=0.9) | {"best_epoch": 1}, table, str(tmp_path)) == {}


def test_students_of_an_epoch_within_the_head_start_were_not_taught(tmp_path):
    table = answers(teacher=[0.1, 0.2, 0.8, 0.9], student_0=[0.1, 0.4, 0.6, 0.7])
    rows = [(1, 5, "student_0", "kd", 0.0, 0.3), (2, 5, "student_0", "kd", 0.5, 0.3)]
    columns = ["epoch", "iterations", "network", "term", "weight", "value"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "losses.csv", index=False)
    of_epoch = figures(teacher=1.0, student_0=0.9)
    assert classifier_warnings(of_epoch, table, str(tmp_path)) == {}
    assert set(classifier_warnings(of_epoch | {"best_epoch": 1}, table, str(tmp_path))) == {UNTAUGHT}


def test_a_teacher_without_a_figure_is_not_judged(tmp_path):
    table = answers(teacher=[0.5] * 4, student_0=[0.1, 0.4, 0.6, 0.7])
    assert classifier_warnings(figures(teacher=None, student_0=0.9), table, str(tmp_path)) == {}
    assert set(classifier_warnings(figures(teacher=0.8, student_0=0.9), table, str(tmp_path))) == {WEAK_TEACHER}


def test_a_training_tells_its_warnings_on_screen_and_in_its_metrics(trained):
    metrics = read_json(trained / "metrics.json")
    predictions = pd.read_parquet(trained / "predictions.parquet")
    assert metrics[WARNINGS] == classifier_warnings(metrics, predictions, str(trained))
    screen = (trained / "screen.txt").read_text()
    assert screen.count("Warning: ") == len(metrics[WARNINGS])
    assert all(f"Warning: {sentence}\n" in screen for sentence in metrics[WARNINGS].values())


def test_detectors_that_miss_the_same_polyps_err_alike(trained_detectors, frames, tmp_path):
    metrics = read_json(trained_detectors / "metrics.json")
    screen = (trained_detectors / "screen.txt").read_text()
    assert screen.count("Warning: ") == len(metrics[WARNINGS])
    rows = pd.DataFrame(
        {"sample_id": ["a", "b", "c"], "sequence_id": "s", "patient_id": "p", "width": 64, "height": 64,
         "boxes": [[[0.0, 0.0, 20.0, 20.0]]] * 3}
    )  # fmt: skip
    made_up = {
        "networks": {"student_0": {"ap": 0.5}, "student_1": {"ap": 0.5}},
        "thresholds": {"student_0": 0.5, "student_1": 0.5},
        "best_epoch": 1,
    }

    def found(*samples: str) -> pd.DataFrame:
        boxes = [
            {"sample_id": sample, "sequence_id": "s", "patient_id": "p", "network": f"student_{number}", "score": 0.9,
             "xmin": 0.0, "ymin": 0.0, "xmax": 20.0, "ymax": 20.0}
            for number, own in enumerate(samples)
            for sample in own
        ]  # fmt: skip
        return pd.DataFrame(boxes)

    assert set(detector_warnings(made_up, rows, found("ab", "ab"), str(tmp_path))) == {ALIKE}
    assert detector_warnings(made_up, rows, found("ab", "bc"), str(tmp_path)) == {}
