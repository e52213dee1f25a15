"""Tables beside the figures of a run against scikit-learn, and what is left where little or nothing is defined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from kdml_med.bundle import figures
from kdml_med.bundle.figures import (
    write_classification_figures,
    write_detection_figures,
    write_training_figures,
)
from kdml_med.metrics import choose_thresholds, evaluate_detections
from kdml_med.metrics.detection import by_network
from kdml_med.runs import networks_by_default
from tests.bundles.conftest import read_json
from tests.metrics.detection_tables import cohort, frame_table

NETWORKS = ["teacher", "student_0", "student_1", "ensemble"]
CURVES = ["calibration", "decision_curve", "precision_recall", "roc"]
FILES = {f"{name}.{end}" for name in CURVES for end in ("png", "csv")} | {"roc_band.csv", "precision_recall_band.csv"}


def patients(labels: list[str | None], seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    table = pd.DataFrame({"patient_id": [f"P{number}" for number in range(len(labels))], "label": labels, "tiles": 3})
    return table.assign(**{f"probability_{name}": generator.random(len(labels)).round(2) for name in NETWORKS})


def draw(folder: Path, table: pd.DataFrame) -> None:
    known = table["label"].dropna()
    figures = {"patient": {"n": len(known), "positives": int((known == "MSI").sum())}}
    metrics = {
        "split": "test", "level": "patient", "classes": ["MSS", "MSI"], "synthetic": True,
        "bootstrap": {"resamples": 50, "unit": "patient"}, "networks": dict.fromkeys(NETWORKS, figures),
    }  # fmt: skip
    write_classification_figures(folder, table, metrics)


def test_tables_of_classifiers_are_those_of_scikit_learn(tmp_path: Path) -> None:
    table = patients(["MSS", "MSI", "MSI", None] * 15)
    draw(tmp_path, table)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == FILES
    known = table[table["label"].notna()]
    truth = known["label"] == "MSI"
    roc, recall = (pd.read_csv(tmp_path / f"figures/{name}.csv") for name in ("roc", "precision_recall"))
    assert list(dict.fromkeys(roc["network"])) == NETWORKS
    for name in NETWORKS:
        scores = known[f"probability_{name}"]
        own, x, y = roc[roc["network"] == name], "false_positive_rate", "sensitivity"
        rates, found, _ = roc_curve(truth, scores, drop_intermediate=False)
        np.testing.assert_allclose(own[[x, y]], np.column_stack([rates, found]), atol=1e-12)
        assert np.trapezoid(own[y], own[x]) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
        own = recall[recall["network"] == name]
        area = (own["recall"].diff().fillna(0) * own["precision"]).sum()
        assert area == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
    bins = pd.read_csv(tmp_path / "figures/calibration.csv")
    assert (bins.groupby("network")["n"].sum() == len(known)).all()


@pytest.mark.parametrize("labels", [["MSI"] * 5, [None] * 3, ["MSS"]], ids=["one class", "no label", "one patient"])
def test_what_is_not_defined_has_a_figure_that_says_so_and_no_rows(tmp_path: Path, labels: list[str | None]) -> None:
    draw(tmp_path, patients(labels))
    assert {path.name for path in (tmp_path / "figures").iterdir()} == FILES
    assert pd.read_csv(tmp_path / "figures/roc.csv").empty
    with Image.open(tmp_path / "figures/roc.png") as image:
        assert image.width > 300


def detections_of(frames: pd.DataFrame, detections: pd.DataFrame) -> dict:
    thresholds = choose_thresholds(frames, detections, networks=NETWORKS)
    figures = evaluate_detections(frames, detections, threshold=thresholds, networks=NETWORKS, resamples=20)
    bootstrap = {"resamples": 20, "unit": "sequence"}
    return {"split": "val", "synthetic": False, "bootstrap": bootstrap, "networks": figures}


def test_tables_of_detectors_hold_the_curves(tmp_path: Path) -> None:
    frames, detections = cohort(networks=NETWORKS)
    metrics = detections_of(frames, detections)
    write_detection_figures(tmp_path, frames, by_network(detections, NETWORKS), metrics)
    froc = pd.read_csv(tmp_path / "figures/froc.csv")
    for name in NETWORKS:
        own, at = froc[froc["network"] == name], metrics["networks"][name]
        for rate in (0.1, 0.25, 0.5, 1):
            reached = own["sensitivity"][own["false_positives_per_frame"] <= rate + 1e-9].max()
            assert reached == pytest.approx(at[f"froc_sensitivity_{rate:g}"], abs=1e-12)
    assert (tmp_path / "figures/froc.png").is_file()
    assert (tmp_path / "figures/precision_recall.png").is_file()


def test_a_threshold_that_nobody_chose_is_not_called_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marked = {}
    monkeypatch.setattr(figures, "draw_froc", lambda curves, points: marked.update(points) or Figure())
    frames, detections = cohort(networks=NETWORKS)
    detections = detections[detections["network"] != "teacher"]
    metrics = detections_of(frames, detections)
    for figure in metrics["networks"].values():
        figure["threshold"] = 0.5  # which validation frames can choose, too
    shown = by_network(detections, NETWORKS)
    write_detection_figures(tmp_path, frames, shown, metrics, by_default=networks_by_default(metrics))
    words = {name: every[0][0] for name, every in marked.items()}
    assert words.pop("teacher") == "threshold 0.5"
    assert set(words.values()) == {"threshold chosen on validation frames"}


def test_detectors_that_found_nothing_and_frames_without_polyps_have_figures_too(tmp_path: Path) -> None:
    some, detections = cohort(networks=NETWORKS)
    for number, frames in enumerate((some, frame_table({"a": [], "b": []}))):
        nothing = detections.iloc[:0]
        write_detection_figures(
            tmp_path / str(number), frames, by_network(nothing, NETWORKS), detections_of(frames, nothing)
        )
        assert (tmp_path / str(number) / "figures/froc.png").is_file()


def test_a_training_leaves_its_curves(trained: Path, trained_detectors: Path) -> None:
    history = {"losses.png", "validation_loss.png", "validation_patient_auroc.png", "validation_patient_accuracy.png"}
    assert {path.name for path in (trained / "figures").iterdir()} == FILES | history
    assert {"froc.png", "validation_loss.png", "validation_ap50.png", "losses.png"} <= {
        path.name for path in (trained_detectors / "figures").iterdir()
    }
    band = pd.read_csv(trained / "figures/roc_band.csv")
    assert set(band["network"]) == set(read_json(trained / "metrics.json")["networks"])


def test_a_run_of_an_earlier_version_has_no_curves_to_draw(tmp_path: Path) -> None:
    write_training_figures(tmp_path)
    assert list(tmp_path.iterdir()) == []
