"""Small test sets are cautioned wherever their intervals are shown, and the numbers that decide are measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from kdml_med.metrics.bootstrap import percentile_interval, resample_auroc
from kdml_med.report.caution import ENOUGH, FEW, caution, caution_of


def coverage(per_class: int, *, auroc: float = 0.95, sets: int = 150) -> float:
    """Share of test sets whose interval holds the true AUROC of two normal distributions."""
    generator = np.random.default_rng(per_class)
    labels = np.repeat([0, 1], per_class)
    apart = norm.ppf(auroc) * np.sqrt(2)  # AUROC = Φ(distance / √2)
    held = 0
    for seed in range(sets):
        scores = generator.normal(size=2 * per_class) + apart * labels
        interval = percentile_interval(resample_auroc(labels, scores, resamples=300, seed=seed))
        held += interval.low <= auroc <= interval.high
    return held / sets


def test_below_the_threshold_intervals_miss_the_truth_far_more_often_than_they_promise() -> None:
    assert coverage(5) < 0.7
    assert coverage(FEW) > 0.87


def test_few_of_one_kind_are_named_and_the_others_are_not() -> None:
    said = caution({"MSI patient": 4, "MSS patient": 250})
    assert said.startswith("Only 4 MSI patients: intervals of so few are unreliable")
    assert "250" not in said
    assert caution({"MSI patient": 1, "MSS patient": 0}).startswith("Only 1 MSI patient and 0 MSS patients:")
    assert "19 polyp boxes" in caution({"polyp box": 19})


@pytest.mark.parametrize(
    ("number", "begins"), [(FEW - 1, "Only"), (FEW, "A small set"), (ENOUGH - 1, "A small set"), (ENOUGH, "")]
)
def test_what_is_said_follows_the_rarest(number: int, begins: str) -> None:
    said = caution({"patient": number, "other": 1000})
    assert said.startswith(begins)
    assert bool(said) == bool(begins)
    assert not caution({"patient": max(number, FEW)}, enough=FEW)


def classified(**change: Any) -> dict[str, Any]:
    figures = {"n": 300, "positives": 150, "auroc": 0.9} | change
    return {
        "level": "slide",
        "classes": ["MSS", "MSI"],
        "bootstrap": {"unit": "patient", "units": 200},
        "networks": {"teacher": {"slide": figures, "tile": {}}},
    }


def test_metrics_of_classifiers_know_their_positives_negatives_and_patients() -> None:
    assert caution_of(classified()) == ""
    assert caution_of(classified(positives=3)).startswith("Only 3 MSI slides:")
    assert caution_of(classified(positives=298)).startswith("Only 2 MSS slides:")
    many_slides_of_few = classified() | {"bootstrap": {"unit": "patient", "units": 6}}
    assert caution_of(many_slides_of_few).startswith("Only 6 patients:")
    crops = {"bootstrap": {"unit": "frame", "units": 6}}
    assert caution_of(classified() | crops).startswith("Only 6 frames:")
    assert caution_of(classified() | {"bootstrap": {"unit": "patient"}}) == "", "as earlier versions wrote it"
    unknown = {"bootstrap": {"unit": "slide", "units": 6}}  # whose slides are: the id of a patient is that of a slide
    assert caution_of(classified() | unknown) == ""
    networks = {"teacher": {"patient": {"n": 300, "positives": 150}, "tile": {}}}
    assert caution_of(classified() | unknown | {"level": "patient", "networks": networks}) == ""
    assert caution_of(classified() | {"networks": {}}) == ""
    assert "not c slide" in caution_of(
        classified() | {"classes": ["a", "b", "c"], "networks": {"t": {"slide": {"n": 9, "positives": 2}}}}
    )


@pytest.mark.parametrize(
    ("unit", "units", "said"),
    [("sequence", None, "19 sequences"), ("patient", 7, "7 patients"), ("patient", None, ""), ("frame", None, "")],
)
def test_metrics_of_detectors_know_their_boxes_and_what_is_resampled(unit: str, units: int | None, said: str) -> None:
    metrics = {
        "bootstrap": {"unit": unit} | ({} if units is None else {"units": units}),
        "networks": {"teacher": {"n_boxes": 400, "n_frames": 380, "n_sequences": 19}},
    }
    assert caution_of(metrics).startswith(f"Only {said}:" if said else "")
    assert bool(caution_of(metrics)) == bool(said)


def test_a_class_that_steers_a_terminal_is_written_by_its_number() -> None:
    assert caution_of(classified(positives=3) | {"classes": ["MSS", "\x1b[31mMSI"]}).isprintable()


def test_figures_that_somebody_put_together_by_hand_are_cautioned_too() -> None:
    figures = {"n_boxes": 3, "n_sequences": 2, "n_frames": 5}
    assert caution_of({"networks": {"a": figures}}).startswith("Only 3 polyp boxes:")
    classified = {
        "level": "patient",
        "classes": ["MSS", "MSI"],
        "networks": {"a": {"patient": {"n": 9, "positives": 4}}},
    }
    assert caution_of(classified).startswith("Only 4 MSI patients and 5 MSS patients:")
