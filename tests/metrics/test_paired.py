import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from kdml_med.metrics import (
    ClassificationScores,
    DetectionScores,
    binary_auroc,
    bootstrap_interval,
    compare,
    estimate,
    evaluate_detections,
    holm,
)
from kdml_med.metrics.paired import Arm, resampled
from kdml_med.metrics.paired_scores import BrierScores
from tests.examples import examples
from tests.metrics.detection_tables import cohort, detection_table

NETWORKS = [f"student_{index}" for index in range(8)]
FAST = {"resamples": 50, "permutations": 60}


def network(labels: np.ndarray, seed: int, *, skill: float = 1.0, **columns) -> ClassificationScores:
    """A network whose scores of the classes are ``skill`` standard deviations apart."""
    values = np.random.default_rng(seed).normal(skill * labels)
    return ClassificationScores.of(np.arange(len(labels)), labels, 1 / (1 + np.exp(-values)), **columns)


def patients(labels: np.ndarray, seed: int, *, seeds: int = 2, networks: int = 1, **options) -> Arm:
    """An arm of classifiers."""
    return [
        [network(labels, 1000 * seed + 10 * run + index, **options) for index in range(networks)]
        for run in range(seeds)
    ]


def detectors(seed: int, *, seeds: int = 2, networks: int = 1, noise: float = 0.5, **options) -> Arm:
    """An arm of detectors on the frames of one cohort; noise spoils the order of their scores."""
    frames, detections = cohort(networks=NETWORKS)
    result = []
    for run in range(seeds):
        own = []
        for index in range(networks):
            generator = np.random.default_rng([seed, run, index])
            rows = detections[detections["network"] == generator.choice(NETWORKS)]
            scores = rows["score"] * generator.uniform(1 - noise, 1, len(rows))
            own.append(DetectionScores.of(frames, rows.assign(score=scores), **options))
        result.append(own)
    return result


LABELS = np.tile([0, 1, 1], 8)
ONCE = np.ones((1, 12), dtype=np.int64)
ARMS = {"classification": lambda seed, **options: patients(LABELS, seed, **options), "detection": detectors}


def once(arm: Arm) -> np.ndarray:
    return np.ones((1, len(arm[0][0].sample_ids)), dtype=np.int64)


# The permutation test.


def swapped_difference(a: Arm, b: Arm, units: np.ndarray, swapped: Sequence[bool]) -> float:
    """Difference of two arms after a swap, by scikit-learn on the samples that each arm then has."""
    exchanged = np.array(swapped)[units]
    differences = []
    for own, others in zip(a, b, strict=True):
        for one, other in product(own, others):
            ranks = [np.argsort(np.argsort(scores.probabilities)) for scores in (one, other)]
            kept = roc_auc_score(one.truth, np.where(exchanged, ranks[1], ranks[0]))
            given_away = roc_auc_score(one.truth, np.where(exchanged, ranks[0], ranks[1]))
            differences.append(kept - given_away)
    return float(np.mean(differences))


@pytest.mark.parametrize("networks_b", [1, 2])
def test_exact_p_value_is_that_of_a_loop_over_all_swaps(networks_b: int) -> None:
    units = np.array([0, 1, 2, 3, 4, 5, 5, 0, 1, 2, 3, 4])
    labels = np.array([0, 1, 0, 1, 0, 1, 0, 0, 1, 0, 1, 1])
    a = patients(labels, 1, skill=2, units=units)
    b = patients(labels, 2, skill=0.5, units=units, networks=networks_b)
    found = compare(a, b, resamples=0, permutations=64)
    slow = [swapped_difference(a, b, units, swapped) for swapped in product([False, True], repeat=6)]
    assert found.difference == pytest.approx(slow[0])
    assert found.p_value == np.mean(np.abs(slow) >= abs(slow[0]) - 1e-12)
    assert (found.exact, found.permutations, found.units, found.seeds) == (True, 64, 6, 2)
    drawn = compare(a, b, resamples=0, permutations=63)
    assert (drawn.exact, drawn.permutations) == (False, 63)
    assert drawn.p_value == pytest.approx(found.p_value, abs=0.2)


def test_p_value_by_hand() -> None:
    labels = [0, 0, 1, 1]
    right = [[ClassificationScores.of([1, 2, 3, 4], labels, [0.1, 0.2, 0.8, 0.9])]]
    wrong = [[ClassificationScores.of([1, 2, 3, 4], labels, [0.9, 0.8, 0.2, 0.1])]]
    # Difference 1 − 0. Only the swap of all or of none has it: with ranks 1 2 3 4 against 4 3 2 1, any other leaves a
    # pair that both arms order wrongly or tie.
    found = compare(right, wrong, resamples=0)
    assert (found.value_a, found.value_b, found.difference) == (1, 0, 1)
    assert found.p_value == 2 / 16
    # A random test counts the observed arms among the swaps, so that no p value is 0.
    many = np.tile([0, 1], 30)
    effect = compare([[network(many, 0, skill=9)]], [[network(many, 1, skill=-9)]], resamples=0, permutations=99)
    assert effect.p_value == 1 / 100


@pytest.mark.parametrize("task", ARMS)
@pytest.mark.parametrize("networks_b", [1, 2])
def test_exchanging_the_arms_negates_the_difference_and_keeps_p(task: str, networks_b: int) -> None:
    a, b = ARMS[task](1), ARMS[task](2, networks=networks_b)
    there, back = compare(a, b, **FAST), compare(b, a, **FAST)
    assert there.difference == -back.difference != 0
    assert there.p_value == back.p_value < 1
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert (there.value_a, there.value_b) == (back.value_b, back.value_a)


@settings(max_examples=examples(20), deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(2, 4))
def test_exchange_holds_with_ties_and_few_units(seed: int, networks_b: int, levels: int) -> None:
    generator = np.random.default_rng(seed)
    units, labels = np.arange(12) % 6, np.arange(12) % 3 > 0
    a, b = (
        [
            [ClassificationScores.of(np.arange(12), labels, generator.integers(0, levels, 12) / levels, units=units)]
            * count
        ]
        for count in (1, networks_b)
    )
    there, back = compare(a, b, resamples=20, permutations=64), compare(b, a, resamples=20, permutations=64)
    assert there.difference == pytest.approx(-back.difference)
    assert there.p_value == back.p_value
    assert 2 / 64 <= there.p_value <= 1


@pytest.mark.parametrize("task", ARMS)
def test_an_arm_does_not_differ_from_itself(task: str) -> None:
    a = ARMS[task](3)
    found = compare(a, a, **FAST)
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


@pytest.mark.parametrize("task", ARMS)
def test_a_monotone_transform_of_one_arm_changes_nothing(task: str) -> None:
    a, b = ARMS[task](1), ARMS[task](2)
    if task == "classification":
        bent = [[replace(scores, probabilities=scores.probabilities**5) for scores in own] for own in b]
    else:
        bent = [
            [
                replace(
                    scores, folds=tuple((rows, replace(found, score=found.score**5)) for rows, found in scores.folds)
                )
                for scores in own
            ]
            for own in b
        ]
    assert compare(a, bent, **FAST) == compare(a, b, **FAST)


def test_p_values_are_uniform_when_the_arms_are_alike() -> None:
    # Every patient has a difficulty of its own, which both arms share, as real patients do.
    found = []
    for trial in range(200):
        generator = np.random.default_rng(trial)
        labels = generator.permutation(np.arange(30) % 2)
        shared = labels + generator.normal(size=30)
        a, b = (
            [[ClassificationScores.of(np.arange(30), labels, shared + generator.normal(0, 0.7, 30))] for _ in range(2)]
            for _ in range(2)
        )
        found.append(compare(a, b, resamples=0, permutations=99).p_value)
    assert 0.45 < np.mean(found) < 0.55
    assert 0.02 <= np.mean(np.array(found) <= 0.05) <= 0.09
    assert 0.4 < np.mean(np.array(found) <= 0.5) < 0.6


def test_p_values_of_detectors_are_uniform_when_only_the_tail_differs() -> None:
    # One of two like detectors also reports boxes with scores below all others, which costs no average precision.
    found = []
    for trial in range(60):
        frames, detections = cohort(networks=["student_0", "student_1"], seed=trial)
        first, second = (detections[detections["network"] == name] for name in ("student_0", "student_1"))
        tail = first.assign(score=first["score"] / 1e3, xmin=900.0, xmax=950.0)
        longer = pd.concat([second.assign(network="student_0"), *[tail] * 3])
        a, b = ([[DetectionScores.of(frames, rows, group="frame")]] for rows in (first, longer))
        found.append(compare(a, b, resamples=0, permutations=99).p_value)
    assert 0.4 < np.mean(found) < 0.6
    assert np.mean(np.array(found) <= 0.1) <= 0.2


@pytest.mark.parametrize("task", ARMS)
def test_a_clear_effect_has_a_small_p_value_and_an_interval_above_zero(task: str) -> None:
    if task == "classification":
        labels = np.arange(60) % 2
        a, b = patients(labels, 1, skill=3), patients(labels, 2, skill=0)
    else:
        frames, _ = cohort()
        annotation = {name: [(0.9, box) for box in own] for name, own in frames.set_index("sample_id")["boxes"].items()}
        a = [[DetectionScores.of(frames, detection_table(annotation), group="frame")]] * 2
        b = detectors(2, group="frame")
    found = compare(a, b, resamples=200, permutations=499)
    assert found.p_value <= 0.01
    assert 0 < found.low < found.difference < found.high


# Intervals.


@pytest.mark.parametrize("task", ARMS)
def test_intervals_contain_the_value(task: str) -> None:
    a, b = ARMS[task](4, seeds=3, networks=2), ARMS[task](5, seeds=3)
    found, alone = compare(a, b, resamples=200, permutations=10), estimate(a, resamples=200)
    assert found.low < found.difference < found.high
    assert alone.low < alone.value < alone.high
    assert alone.value == found.value_a
    assert (alone.seeds, alone.units) == (3, found.units)


def test_one_classifier_has_the_interval_of_the_bootstrap() -> None:
    units = np.arange(24) // 2
    scores = network(LABELS, 0, units=units)
    found = estimate([[scores]], resamples=300, seed=4)
    expected = bootstrap_interval(binary_auroc, LABELS, scores.probabilities, groups=units, resamples=300, seed=4)
    assert found.value == pytest.approx(binary_auroc(LABELS, scores.probabilities))
    assert (found.low, found.high, found.units) == (expected.low, expected.high, 12)


@pytest.mark.parametrize("metric", ["ap50", "ap75", "ap"])
@pytest.mark.parametrize("group", ["sequence", "patient", "frame"])
def test_one_detector_has_the_figures_of_the_evaluation(metric: str, group: str) -> None:
    frames, detections = cohort()
    expected = evaluate_detections(frames, detections, threshold=0.5, group=group, resamples=100)["student_0"]
    found = estimate([[DetectionScores.of(frames, detections, metric=metric, group=group)]], resamples=100)
    assert found.value == pytest.approx(expected[metric])
    assert [found.low, found.high] == pytest.approx(expected[f"{metric}_ci95"])


def test_value_is_the_mean_over_seeds_of_the_mean_over_networks() -> None:
    arm = [patients(LABELS, 1, seeds=1, networks=3)[0], patients(LABELS, 2, seeds=1)[0]]
    figures = [[binary_auroc(LABELS, scores.probabilities) for scores in own] for own in arm]
    assert estimate(arm, resamples=0).value == pytest.approx((np.mean(figures[0]) + figures[1][0]) / 2)


def test_interval_resamples_seeds() -> None:
    labels = np.arange(40) % 2
    perfect, inverted = network(labels, 0, skill=99), network(labels, 0, skill=-99)
    # Whatever the patients, two drawn seeds give 0, one half or 1, with chances of 1/4, 1/2 and 1/4.
    found = estimate([[perfect], [inverted]], resamples=400)
    assert (found.value, found.low, found.high) == (0.5, 0, 1)
    # The arms share the drawn seeds, so their difference does not vary.
    both = compare([[perfect], [inverted]], [[perfect], [inverted]], resamples=400, permutations=0)
    assert (both.difference, both.low, both.high) == (0, 0, 0)
    assert math.isnan(both.p_value)


def test_equal_seeds_have_the_interval_of_one() -> None:
    scores = network(LABELS, 0)
    one, three = (estimate([[scores]] * count, resamples=100) for count in (1, 3))
    assert (one.value, one.low, one.high) == pytest.approx((three.value, three.low, three.high))


@pytest.mark.parametrize("task", ARMS)
def test_chunks_change_nothing(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = ARMS[task](1), ARMS[task](2)
    whole, exact = compare(a, b, **FAST), compare(a, b, resamples=0, permutations=2**8)
    monkeypatch.setattr("kdml_med.metrics.bootstrap.CHUNK_ELEMENTS", 200)
    monkeypatch.setattr("kdml_med.metrics.paired.CHUNK_ELEMENTS", 2000)
    assert compare(a, b, **FAST) == whole
    assert compare(a, b, resamples=0, permutations=2**8).p_value == exact.p_value


# What is not defined, and what cannot be compared.


def test_an_arm_that_diverged_has_no_figures() -> None:
    good = patients(LABELS, 1)
    bad = [good[0], [replace(good[1][0], probabilities=np.full(len(LABELS), np.nan))]]
    found, alone = compare(good, bad, **FAST), estimate(bad, resamples=50)
    for value in (found.difference, found.p_value, found.low, found.value_b, alone.value, alone.low):
        assert math.isnan(value)
    assert (found.permutations, found.exact) == (0, False)
    frames, detections = cohort()
    spoilt = DetectionScores.of(frames, detections.assign(score=math.nan))
    assert math.isnan(compare(detectors(1, seeds=1), [[spoilt]], **FAST).p_value)


def test_one_unit_has_no_interval_and_no_evidence() -> None:
    a, b = (patients(LABELS, seed, units=["p"] * len(LABELS)) for seed in (1, 2))
    found = compare(a, b, **FAST)
    assert math.isnan(found.low)
    assert (found.p_value, found.exact, found.permutations) == (1, True, 2)


def test_what_is_counted_in_one_unit_alone_has_no_interval() -> None:
    units = np.where(LABELS == 0, "n", np.arange(24))  # all negatives are of one patient
    a, b = (patients(LABELS, seed, units=units) for seed in (1, 2))
    assert math.isnan(compare(a, b, **FAST).low)
    assert math.isnan(estimate(a, resamples=50).high)
    brier = [[BrierScores.of(np.arange(24), LABELS, one[0].probabilities, units=units)] for one in a]
    assert estimate(brier, resamples=50).low > 0
    frames, detections = cohort(sequences=4)
    kept = frames["sequence_id"] == "s0"
    frames["boxes"] = [own if held else [] for own, held in zip(frames["boxes"], kept, strict=True)]
    frames["polyp_ids"] = None
    arms = [[[DetectionScores.of(frames, detections, metric=metric)]] for metric in ("ap50", "ap50")]
    found = compare(*arms, **FAST)
    assert found.value_a > 0
    assert math.isnan(found.low)
    assert math.isnan(estimate(arms[0], resamples=50).low)


def test_other_samples_raise() -> None:
    a = patients(LABELS, 1)
    columns = {"sample_ids": np.arange(24), "labels": LABELS, "probabilities": np.linspace(0, 1, 24)}

    def against(message: str, **changed) -> None:
        units, strata = changed.pop("units", None), changed.pop("strata", None)
        other = ClassificationScores.of(*(columns | changed).values(), units=units, strata=strata)
        for pair in ((a, [[other], [other]]), ([[other], [other]], a)):
            with pytest.raises(ValueError, match=message):
                compare(*pair, **FAST)

    against("sample 7 is there", sample_ids=np.where(np.arange(24) == 7, 99, np.arange(24)))
    against("sample 5 has the truth", labels=np.where(np.arange(24) == 5, 1 - LABELS, LABELS))
    against("sample 23 is there", **{name: values[:-1] for name, values in columns.items()})
    against("sample 1 has the unit", units=np.arange(24) // 2)
    against("sample 4 has the stratum", strata=np.where(np.arange(24) == 4, 1, 0))
    with pytest.raises(ValueError, match="2 seeds cannot be paired with 3"):
        compare(a, patients(LABELS, 1, seeds=3))
    with pytest.raises(ValueError, match="auroc and ap50"):
        compare(a, detectors(1))
    with pytest.raises(ValueError, match="at least one"):
        estimate([])
    with pytest.raises(ValueError, match="at least one"):
        estimate([a[0], []])


# Several tests.


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.04 by 4, 3, 2, 1: 0.04, 0.06, 0.06, and 0.04, which must not fall below the one before.
    np.testing.assert_allclose(holm([0.04, 0.01, math.nan, 0.03, 0.02]), [0.06, 0.04, math.nan, 0.06, 0.06])
    assert holm([0.6, 0.9]).tolist() == [1, 1]
    assert holm([]).tolist() == []
    assert np.isnan(holm([math.nan])).all()
    for wrong in ([1.2], [-0.1], [[0.5]]):
        with pytest.raises(ValueError, match="between 0 and 1"):
            holm(wrong)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms())
def test_holm_lies_between_the_raw_value_and_bonferroni(values: list[float], random) -> None:
    adjusted = holm(values)
    assert (adjusted >= values).all()
    assert (adjusted <= np.minimum(np.array(values) * len(values), 1)).all()
    assert adjusted.min() == min(1, min(values) * len(values))
    order = list(range(len(values)))
    random.shuffle(order)
    np.testing.assert_array_equal(holm([values[index] for index in order]), adjusted[order])


@given(st.integers(0, 10**6), st.integers(2, 5))
@settings(max_examples=examples(30))
def test_the_parts_of_samples_give_the_difference_after_any_swap(seed: int, levels: int) -> None:
    generator = np.random.default_rng(seed)
    labels, strata = generator.permutation(np.arange(12) % 2), np.arange(12) // 4 % 2
    for kind in (ClassificationScores, BrierScores):
        own, other = (
            kind.of(np.arange(12), labels, generator.integers(0, levels, 12) / levels, strata=strata) for _ in range(2)
        )
        swapped = generator.integers(0, 2, (5, 12))
        pooled = own.pooled(other)
        after = pooled.value(np.hstack([1 - swapped, swapped])) - pooled.value(np.hstack([swapped, 1 - swapped]))
        parts = own.parts(other)
        assert ((1 - 2 * swapped) @ parts).tolist() == pytest.approx(after.tolist(), abs=1e-12)
        assert parts.sum() == pytest.approx(float((own.value(ONCE) - other.value(ONCE))[0]), abs=1e-12)


def test_figures_that_are_drawn_before_give_the_same_interval() -> None:
    a, b = patients(LABELS, 1, seeds=3), patients(LABELS, 2, seeds=3, networks=2)
    drawn = resampled(a, resamples=50), resampled(b, resamples=50)
    assert drawn[0].shape == (3, 50)
    assert compare(a, b, drawn=drawn, permutations=60) == compare(a, b, **FAST)
    assert estimate(a, drawn=drawn[0]) == estimate(a, resamples=50)
