import json
import time

import numpy as np
import pandas as pd
import pytest

from kdml_med.metrics import bootstrap_interval, evaluate_predictions
from kdml_med.metrics.classification import METRICS, ClassificationMetric, binary_auroc, sensitivity

NETWORKS = ["ensemble", "student_0", "student_1", "teacher"]


def predictions(patients: int = 40, tiles: int = 10) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    patient = np.repeat(np.arange(patients), tiles)
    label = (patient % 3 == 0).astype(int)
    frames = [
        pd.DataFrame(
            {
                "sample_id": [f"t{index}" for index in range(len(patient))],
                "slide_id": [f"p{number}-{index % 2}" for index, number in enumerate(patient)],
                "patient_id": [f"p{number}" for number in patient],
                "network": network,
                "label": label,
                "probability": np.clip(generator.normal(0.4 + 0.1 * label, 0.2), 0, 1),
            }
        )
        for network in NETWORKS
    ]
    return pd.concat(frames, ignore_index=True)


def test_figures_of_tiles_and_patients() -> None:
    frame = predictions()
    result = evaluate_predictions(frame, resamples=100)
    assert sorted(result) == NETWORKS
    tiles = frame[frame["network"] == "teacher"]
    patients = tiles.groupby("patient_id", as_index=False)[["label", "probability"]].mean()
    assert result["teacher"]["tile"]["auroc"] == pytest.approx(binary_auroc(tiles["label"], tiles["probability"]))
    assert result["teacher"]["patient"]["auroc"] == pytest.approx(
        binary_auroc(patients["label"].astype(int), patients["probability"])
    )
    assert (result["teacher"]["tile"]["n"], result["teacher"]["patient"]["n"]) == (400, 40)
    interval = bootstrap_interval(
        binary_auroc, tiles["label"], tiles["probability"], groups=tiles["patient_id"], resamples=100
    )
    assert result["teacher"]["tile"]["auroc_ci95"] == [interval.low, interval.high]


def test_slides_are_resampled_by_patient() -> None:
    result = evaluate_predictions(predictions(), level="slide", resamples=50)
    assert result["teacher"]["slide"]["n"] == 80
    low, high = result["teacher"]["slide"]["auroc_ci95"]
    assert low < result["teacher"]["slide"]["auroc"] < high


def test_unlabelled_rows_are_left_out() -> None:
    frame = predictions()
    unknown = frame["patient_id"] == "p0"
    expected = evaluate_predictions(frame[~unknown], resamples=20)
    assert evaluate_predictions(frame.assign(label=frame["label"].where(~unknown, -1)), resamples=20) == expected
    assert evaluate_predictions(frame.assign(label=frame["label"].where(~unknown)), resamples=20) == expected


def test_result_is_json_with_null_for_what_is_undefined() -> None:
    for frame in (predictions(patients=1), predictions().assign(label=-1), predictions().assign(probability=np.nan)):
        result = evaluate_predictions(frame, resamples=10)
        json.dumps(result, allow_nan=False)
        assert result["teacher"]["patient"]["auroc"] is None
        assert result["teacher"]["patient"]["auroc_ci95"] == [None, None]


def test_no_resamples_give_no_interval() -> None:
    figures = evaluate_predictions(predictions(), resamples=0)["teacher"]["tile"]
    assert figures["auroc_ci95"] == [None, None]
    assert figures["auroc"] is not None


def test_a_metric_at_a_threshold_has_its_interval_at_the_same_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "sensitivity", ClassificationMetric(sensitivity, at_threshold=True, interval=True))
    frame = predictions(tiles=2)
    tiles = frame[frame["network"] == "teacher"]
    columns = [tiles[name].to_numpy() for name in ("label", "probability", "patient_id")]
    found = []
    for threshold in (0.4, 0.6):
        figures = evaluate_predictions(frame, threshold=threshold, resamples=100)["teacher"]["tile"]
        expected = bootstrap_interval(
            lambda labels, values, limit=threshold: sensitivity(labels, values, limit),
            *columns[:2],
            groups=columns[2],
            resamples=100,
        )
        assert figures["sensitivity"] == sensitivity(*columns[:2], threshold)
        assert figures["sensitivity_ci95"] == [expected.low, expected.high]
        found.append(figures["sensitivity_ci95"])
    assert found[0] != found[1]


def test_missing_columns_are_named() -> None:
    with pytest.raises(ValueError, match="network"):
        evaluate_predictions(predictions().drop(columns="network"))


@pytest.mark.slow
def test_five_thousand_tiles_take_seconds() -> None:
    frame = predictions(patients=100, tiles=50)
    start = time.perf_counter()
    evaluate_predictions(frame)
    assert time.perf_counter() - start < 10
