import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from kdml_med.metrics import ClassificationScores, DetectionScores, match_detections, read_frames
from kdml_med.metrics.detection import average_precision
from tests.examples import examples
from tests.metrics.detection_tables import cases, cohort, detection_table, distinct, frame_table

# Label, score, stratum and weight of a sample.
SAMPLE_PARTS = (st.booleans(), st.integers(0, 4), st.sampled_from("ab"), st.integers(0, 3))


def pairs_in_order(labels, values, strata, weights) -> float:
    """AUROC of pairs within strata by a double loop."""
    won = pairs = 0.0
    for positive in np.flatnonzero(labels):
        for negative in np.flatnonzero(~labels):
            if strata[positive] == strata[negative]:
                weight = weights[positive] * weights[negative]
                pairs += weight
                won += weight * (
                    1.0 if values[positive] > values[negative] else 0.5 * (values[positive] == values[negative])
                )
    return won / pairs if pairs else math.nan


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.tuples(*SAMPLE_PARTS), min_size=1, max_size=20))
def test_auroc_within_strata_is_that_of_a_double_loop(samples) -> None:
    labels, values, strata, weights = (np.array(column) for column in zip(*samples, strict=True))
    scores = ClassificationScores.of(np.arange(len(labels)), labels, values / 4, strata=strata)
    found = scores.value(np.stack([weights, np.ones_like(weights)]))
    expected = [pairs_in_order(labels, values, strata, row) for row in (weights, np.ones_like(weights))]
    np.testing.assert_allclose(found, expected)


def test_strata_protect_against_folds_that_are_calibrated_differently() -> None:
    labels = np.tile([0, 0, 1, 1], 2)
    values = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9])
    folds = np.repeat([0, 1], 4)
    once = np.ones((1, 8), dtype=np.int64)
    assert ClassificationScores.of(range(8), labels, values, strata=folds).value(once) == 1
    # The positives of the first fold lose against the negatives of the second: 4 of 16 pairs.
    assert ClassificationScores.of(range(8), labels, values).value(once) == 0.75


@settings(max_examples=examples(40), deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=15))
def test_pooled_classifiers_alone_are_as_before(samples) -> None:
    labels, first, second = (np.array(column) for column in zip(*samples, strict=True))
    a, b = (ClassificationScores.of(np.arange(len(labels)), labels, values / 4) for values in (first, second))
    once = np.ones((1, len(labels)), dtype=np.int64)
    pooled = a.pooled(b)
    np.testing.assert_allclose(pooled.value(np.hstack([once, 0 * once])), a.value(once))
    np.testing.assert_allclose(pooled.value(np.hstack([0 * once, once])), b.value(once))


def test_pooled_classifiers_are_ranked_each_by_itself() -> None:
    labels = [0, 1, 0, 1]
    sure = ClassificationScores.of(range(4), labels, [0.91, 0.99, 0.92, 0.95])
    unsure = ClassificationScores.of(range(4), labels, [0.04, 0.01, 0.02, 0.03])
    # Ranks 1 4 2 3 and 4 1 2 3; samples 0 and 2 of the first, 1 and 3 of the second: 1, 2 against 1, 3.
    mixed = sure.pooled(unsure).value(np.array([[1, 0, 1, 0, 0, 1, 0, 1]]))
    assert mixed == roc_auc_score(labels, [1, 1, 2, 3])
    assert mixed == (0.5 + 0 + 1 + 1) / 4


@settings(max_examples=examples(40), deadline=None)
@given(st.lists(st.tuples(*SAMPLE_PARTS, st.integers(0, 4), st.booleans()), min_size=1, max_size=15))
def test_swapped_samples_are_compared_by_their_ranks_in_the_stratum(samples) -> None:
    labels, first, strata, weights, second, swapped = (np.array(column) for column in zip(*samples, strict=True))
    ids = np.arange(len(labels))
    a, b = (ClassificationScores.of(ids, labels, values / 4, strata=strata) for values in (first, second))
    ranks = [pd.Series(values).groupby(strata).rank().to_numpy() for values in (first, second)]
    expected = pairs_in_order(labels, np.where(swapped, ranks[1], ranks[0]), strata, weights)
    found = a.pooled(b).value(np.concatenate([weights * ~swapped, weights * swapped])[None])
    np.testing.assert_allclose(found, [expected])


def test_order_of_rows_does_not_matter() -> None:
    generator = np.random.default_rng(0)
    labels, values = np.arange(20) % 2, generator.uniform(size=20)
    names = np.array([f"p{index:02}" for index in range(20)])
    order = generator.permutation(20)
    strata = np.arange(20) // 10
    first = ClassificationScores.of(names, labels, values, units=names, strata=strata)
    second = ClassificationScores.of(
        names[order], labels[order], values[order], units=names[order], strata=strata[order]
    )
    for name in ("sample_ids", "truth", "probabilities", "units", "strata"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_average_precision_of_strata_is_their_mean_weighted_by_boxes() -> None:
    frames, detections = cohort(sequences=8)
    folds = frames["sequence_id"].str[1].astype(int) // 3
    scores = DetectionScores.of(frames, detections, strata=folds)
    weights = np.random.default_rng(0).integers(0, 3, (4, len(frames)))
    expected = np.zeros(4)
    boxes = np.zeros(4)
    for fold in range(3):
        rows = np.flatnonzero(folds == fold)  # the cohort's frames are sorted by name
        own = frames.iloc[rows]
        truth = read_frames(own)
        matches = match_detections(truth, detections[detections["sample_id"].isin(own["sample_id"])])
        annotated = weights[:, rows] @ truth.boxes_per_frame
        expected += annotated * average_precision(matches, weights[:, rows])[:, 0]
        boxes += annotated
    np.testing.assert_allclose(scores.value(weights), expected / boxes)
    shuffled = frames.sample(frac=1, random_state=0)
    again = DetectionScores.of(shuffled, detections, strata=folds[shuffled.index])
    np.testing.assert_allclose(again.value(weights), expected / boxes)


def ranked(rows: pd.DataFrame, stratum_of: dict[str, int]) -> pd.DataFrame:
    """Detections with their rank from the top of their stratum as score, to be compared with those of others."""
    strata = rows["sample_id"].map(stratum_of)
    return rows.assign(score=-rows["score"].groupby(strata).rank(ascending=False))


@settings(max_examples=examples(40), deadline=None)
@given(cases(levels=20), cases(levels=20), st.integers(0, 2**5 - 1), st.booleans(), st.sampled_from(["ap50", "ap"]))
def test_swapped_frames_give_the_average_precision_of_the_mixed_table(one, two, mask, folded, metric) -> None:
    annotated, first = one
    second = {name: two[1].get(name, []) for name in annotated}
    frames = frame_table(annotated)
    stratum_of = {name: int(folded and index > 1) for index, name in enumerate(annotated)}
    # Ranks differ within a network; ties between the two are left, and are broken by frame.
    tables = [detection_table(distinct(own, seed)) for seed, own in enumerate((first, second))]
    strata = [stratum_of[name] for name in frames["sample_id"]]
    a, b = (DetectionScores.of(frames, table, metric=metric, strata=strata) for table in tables)
    swapped = {name: bool(mask >> index & 1) for index, name in enumerate(annotated)}
    by_rank = [ranked(table, stratum_of) for table in tables]
    mixed = pd.concat(
        [table[table["sample_id"].map(swapped).astype(bool) == index] for index, table in enumerate(by_rank)]
    )
    expected = DetectionScores.of(frames, mixed, metric=metric, strata=strata)
    other = np.array([[swapped[name] for name in expected.sample_ids]]).astype(np.int64)
    found = a.pooled(b).value(np.hstack([1 - other, other]))
    np.testing.assert_allclose(found, expected.value(np.ones_like(other)), atol=1e-12)


@settings(max_examples=examples(40), deadline=None)
@given(cases(levels=3), st.integers(0, 2**5 - 1))
def test_frames_of_matches_are_those_of_a_new_matching(case, mask) -> None:
    annotated, detected = case
    kept = [name for index, name in enumerate(annotated) if mask >> index & 1]
    whole = match_detections(read_frames(frame_table(annotated)), detection_table(detected))
    found = whole.of_frames(np.array([list(annotated).index(name) for name in kept], dtype=np.intp))
    expected = match_detections(
        read_frames(frame_table({name: annotated[name] for name in kept})),
        detection_table({name: detected[name] for name in kept}),
    )
    for name in ("score", "frame", "box", "boxes_per_frame"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_what_has_no_value() -> None:
    frames = frame_table({"a": [], "b": []})
    once = np.ones((1, 2), dtype=np.int64)
    assert np.isnan(DetectionScores.of(frames, detection_table({"a": [(0.5, (0, 0, 1, 1))]})).value(once))
    assert np.isnan(ClassificationScores.of([1, 2], [1, 1], [0.1, 0.2]).value(once))
    # One class in each stratum: no pair to compare.
    assert np.isnan(ClassificationScores.of([1, 2], [0, 1], [0.1, 0.2], strata=[0, 1]).value(once))
    assert np.isnan(ClassificationScores.of([1, 2], [0, 1], [0.1, math.nan]).value(once))


def test_unusable_columns_raise() -> None:
    with pytest.raises(ValueError, match="no labelled samples"):
        ClassificationScores.of([], [], [])
    with pytest.raises(ValueError, match="'x' occurs more than once"):
        ClassificationScores.of(["x", "y", "x"], [0, 1, 1], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="units have the shape"):
        ClassificationScores.of([1, 2], [0, 1], [0.1, 0.2], units=["p"])
    with pytest.raises(ValueError, match="1 strata are missing"):
        ClassificationScores.of([1, 2], [0, 1], [0.1, 0.2], strata=[0, None])
    frames, detections = cohort()
    with pytest.raises(ValueError, match="metric 'ap60'"):
        DetectionScores.of(frames, detections, metric="ap60")
    with pytest.raises(ValueError, match="group 'video'"):
        DetectionScores.of(frames, detections, group="video")
    with pytest.raises(ValueError, match="no labelled samples"):
        DetectionScores.of(frames.assign(label=None), detections)
