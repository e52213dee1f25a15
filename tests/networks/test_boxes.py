import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdml_med.errors import InputError
from kdml_med.metrics.box_matching import box_iou
from kdml_med.networks.boxes import weighted_box_fusion
from tests.examples import examples
from tests.reference import fused_boxes

ONE, NEAR, FAR = (0, 0, 10, 10), (0, 0, 10, 8), (50, 50, 60, 70)
sides = st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(1, 8), st.integers(1, 8))
boxes = sides.map(lambda side: (side[0], side[1], side[0] + side[2], side[1] + side[3]))
models = st.lists(st.lists(boxes, max_size=5), min_size=1, max_size=4)


def distinct_scores(detected: list[list]) -> list[list[float]]:
    count = sum(map(len, detected))
    scores = iter((np.random.default_rng(count).permutation(count) + 1) / (count + 1))
    return [[float(next(scores)) for _ in own] for own in detected]


def test_two_models_by_hand() -> None:
    fused, scores = weighted_box_fusion([[ONE, FAR], [NEAR]], [[0.9, 0.6], [0.3]])
    # (0.9 · 10 + 0.3 · 8) / 1.2 = 9.5; mean score 0.6. What one of two models sees has half its score.
    np.testing.assert_allclose(fused, [[0, 0, 10, 9.5], FAR])
    np.testing.assert_allclose(scores, [0.6, 0.3])


def test_more_boxes_than_models_do_not_raise_the_score() -> None:
    fused, scores = weighted_box_fusion([[ONE, ONE, ONE]], [[0.9, 0.6, 0.3]])
    np.testing.assert_allclose(fused, [ONE])
    np.testing.assert_allclose(scores, [0.6])


def test_weights_by_hand() -> None:
    fused, scores = weighted_box_fusion([[ONE], [NEAR, FAR]], [[0.4], [0.4, 0.8]], weights=[3, 1])
    np.testing.assert_allclose(fused, [[0, 0, 10, 9.5], FAR])
    np.testing.assert_allclose(scores, [0.4, 0.2])
    again = weighted_box_fusion([[ONE], [NEAR, FAR]], [[0.4], [0.4, 0.8]], weights=[6, 2])
    np.testing.assert_allclose(again[1], scores)


def test_a_box_must_overlap_by_more_than_the_threshold() -> None:
    assert len(weighted_box_fusion([[ONE], [NEAR]], [[0.9], [0.8]], iou_threshold=0.8)[1]) == 2
    assert len(weighted_box_fusion([[ONE], [NEAR]], [[0.9], [0.8]], iou_threshold=0.79)[1]) == 1


def test_low_scores_are_left_out_before_fusion() -> None:
    fused, scores = weighted_box_fusion([[ONE], [NEAR, FAR]], [[0.5], [0.2, 0.0]], score_threshold=0.3)
    np.testing.assert_allclose(fused, [ONE])
    np.testing.assert_allclose(scores, [0.25])
    assert len(weighted_box_fusion([[ONE], [FAR]], [[0.5], [0.0]])[1]) == 1


def test_nothing_fuses_to_nothing() -> None:
    for empty in ([], np.empty((0, 4))):
        fused, scores = weighted_box_fusion([empty, empty], [[], []])
        assert fused.shape == (0, 4)
        assert scores.shape == (0,)


@settings(max_examples=examples(100), deadline=None)
@given(models, st.sampled_from([0.3, 0.55, 0.8]))
def test_fusion_is_that_of_the_paper(detected: list[list], iou_threshold: float) -> None:
    given_scores = distinct_scores(detected)
    fused, scores = weighted_box_fusion(detected, given_scores, iou_threshold=iou_threshold)
    expected = fused_boxes(detected, given_scores, iou_threshold)
    np.testing.assert_allclose(scores, [score for score, _ in expected], atol=1e-12)
    order, other = (
        np.lexsort(fused.round(9).T),
        np.lexsort(np.reshape([box for _, box in expected], (-1, 4)).round(9).T),
    )
    np.testing.assert_allclose(fused[order], np.reshape([box for _, box in expected], (-1, 4))[other], atol=1e-9)


@settings(max_examples=examples(50), deadline=None)
@given(models, st.lists(st.sampled_from([0.25, 0.5, 1.0]), min_size=20, max_size=20), st.randoms(use_true_random=False))
def test_the_order_of_the_models_does_not_matter_even_where_scores_tie(
    detected: list[list], values: list[float], random
) -> None:
    remaining = iter(values)
    scores = [[next(remaining) for _ in own] for own in detected]
    weights = [1.0 + 0.37 * index for index in range(len(detected))]
    order = list(range(len(detected)))
    random.shuffle(order)
    for used in (None, weights):
        expected = weighted_box_fusion(detected, scores, weights=used)
        found = weighted_box_fusion(
            [detected[index] for index in order],
            [scores[index] for index in order],
            weights=None if used is None else [used[index] for index in order],
        )
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


@settings(max_examples=examples(50), deadline=None)
@given(st.lists(boxes, max_size=5))
def test_one_model_with_disjoint_boxes_is_unchanged(detected: list[tuple]) -> None:
    apart = [tuple(np.add(box, 20 * index)) for index, box in enumerate(detected)]
    scores = np.sort(distinct_scores([apart])[0])[::-1]
    fused, found = weighted_box_fusion([apart], [scores])
    np.testing.assert_allclose(fused, np.reshape(apart, (-1, 4)))
    np.testing.assert_allclose(found, scores)


@settings(max_examples=examples(50), deadline=None)
@given(models, st.lists(st.floats(0.1, 10), min_size=4, max_size=4))
def test_fused_boxes_lie_within_the_others_and_scores_below_the_highest(detected: list[list], weights) -> None:
    scores = distinct_scores(detected)
    fused, found = weighted_box_fusion(detected, scores, weights=weights[: len(detected)])
    every = np.reshape([box for own in detected for box in own], (-1, 4))
    assert len(fused) <= len(every)
    if len(every):
        assert (fused >= every.min(axis=0) - 1e-9).all()
        assert (fused <= every.max(axis=0) + 1e-9).all()
        assert (found <= max(map(max, filter(None, scores))) + 1e-12).all()
        assert (found > 0).all()
        assert (np.diff(found) <= 0).all()
        assert (box_iou(fused, every).max(axis=1) > 0).all()


@pytest.mark.parametrize(
    ("detected", "scores", "options", "message"),
    [
        ([], [], {}, "at least one"),
        ([[ONE]], [[0.5], [0.5]], {}, "the same number"),
        ([[ONE]], [[0.5]], {"weights": [1, 1]}, "2 weights"),
        ([[ONE]], [[0.5]], {"weights": [0]}, "positive"),
        ([[ONE]], [[0.5, 0.5]], {}, "model 0"),
        ([[ONE]], [[1.5]], {}, "outside of 0..1"),
        ([[ONE]], [[float("nan")]], {}, "outside of 0..1"),
    ],
)
def test_unusable_arguments_raise(detected, scores, options, message) -> None:
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        weighted_box_fusion(detected, scores, **options)
