import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdml_med.metrics import aggregate_predictions, aggregate_tiles
from kdml_med.metrics.aggregation import Level
from tests.examples import examples

TILES = st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0, 1)), min_size=1, max_size=40)


@settings(max_examples=examples(50), deadline=None)
@given(TILES, st.integers(1, 5), st.floats(0, 1))
def test_every_method_agrees_with_a_loop_over_groups(
    tiles: list[tuple[str, float]], top_k: int, threshold: float
) -> None:
    groups, values = np.array([group for group, _ in tiles]), np.array([value for _, value in tiles])
    slow = {
        "mean": np.mean,
        "median": np.median,
        "top_k_mean": lambda of_group: np.mean(np.sort(of_group)[-top_k:]),
        "fraction_positive": lambda of_group: np.mean(of_group >= threshold),
    }
    for method, function in slow.items():
        names, fast = aggregate_tiles(values, groups, method, top_k=top_k, threshold=threshold)  # type: ignore[arg-type]
        assert names.tolist() == sorted(set(groups.tolist()))
        np.testing.assert_allclose(fast, [function(values[groups == name]) for name in names], atol=1e-12)


def test_nan_stays_in_its_group() -> None:
    for method in ("mean", "median", "top_k_mean", "fraction_positive"):
        _, values = aggregate_tiles([0.2, np.nan, 0.4], ["a", "a", "b"], method)  # type: ignore[arg-type]
        assert np.isnan(values).tolist() == [True, False]


def test_no_tiles_give_no_groups() -> None:
    names, values = aggregate_tiles([], [])
    assert len(names) == len(values) == 0


@pytest.mark.parametrize(
    ("probabilities", "groups", "options", "message"),
    [
        ([0.1], ["a"], {"method": "max"}, "aggregation 'max'"),
        ([0.1], ["a"], {"top_k": 0}, "top_k is 0"),
        ([0.1, 0.2], ["a"], {}, "one length"),
        ([0.1], [None], {}, "1 tiles have no group"),
    ],
)
def test_unusable_arguments_raise(
    probabilities: list[float], groups: list[str], options: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        aggregate_tiles(probabilities, groups, **options)  # type: ignore[arg-type]


def predictions() -> pd.DataFrame:
    rows = [
        ("t0", "s1", "p1", "teacher", 1, 0.9),
        ("t1", "s1", "p1", "teacher", 1, 0.7),
        ("t2", "s1", "p1", "teacher", 1, 0.8),
        ("t3", "s2", "p1", "teacher", 1, 0.2),
        ("t4", "s3", "p2", "teacher", 0, 0.3),
        ("t4", "s3", "p2", "student_0", 0, 0.1),
    ]
    return pd.DataFrame(rows, columns=["sample_id", "slide_id", "patient_id", "network", "label", "probability"])


def test_patient_pools_its_tiles_by_default() -> None:
    table = aggregate_predictions(predictions())
    assert list(table.columns) == ["network", "patient_id", "label", "probability", "tiles"]
    assert table[["network", "patient_id", "label", "tiles"]].to_numpy().tolist() == [
        ["student_0", "p2", 0, 1],
        ["teacher", "p1", 1, 4],
        ["teacher", "p2", 0, 1],
    ]
    np.testing.assert_allclose(table["probability"], [0.1, 0.65, 0.3])


def test_via_slides_each_slide_counts_once() -> None:
    table = aggregate_predictions(predictions(), via_slides=True)
    np.testing.assert_allclose(table["probability"], [0.1, 0.5, 0.3])
    assert table["tiles"].tolist() == [1, 4, 1]


def test_slides_keep_their_patient() -> None:
    table = aggregate_predictions(predictions(), "slide")
    assert table["slide_id"].tolist() == ["s3", "s1", "s2", "s3"]
    assert table["patient_id"].tolist() == ["p2", "p1", "p1", "p2"]


def test_order_of_rows_does_not_matter() -> None:
    frame = predictions()
    for level in ("patient", "slide"):
        expected = aggregate_predictions(frame, level)  # type: ignore[arg-type]
        shuffled = aggregate_predictions(frame.sample(frac=1, random_state=1), level)  # type: ignore[arg-type]
        pd.testing.assert_frame_equal(expected, shuffled)


def test_group_with_two_labels_is_refused() -> None:
    frame = predictions().assign(label=[1, 1, 1, 0, 0, 0])
    assert len(aggregate_predictions(frame, "slide")) == 4
    with pytest.raises(ValueError, match="patient_id 'p1' has the labels"):
        aggregate_predictions(frame, "patient")


def test_missing_labels_stay_unknown() -> None:
    table = aggregate_predictions(predictions().assign(label=np.nan))
    assert table["label"].tolist() == [-1, -1, -1]


def test_unusable_frames_raise() -> None:
    with pytest.raises(ValueError, match=r"lack the columns \['label'\]"):
        aggregate_predictions(predictions().drop(columns="label"))
    with pytest.raises(ValueError, match="level 'site'"):
        aggregate_predictions(predictions(), "site")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="via_slides"):
        aggregate_predictions(predictions(), "slide", via_slides=True)


@settings(max_examples=examples(50), deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from("ts"), st.floats(0, 1)), min_size=1, max_size=40),
    st.sampled_from(["str", "category", "object"]),
    st.sampled_from(["patient", "slide"]),
)
def test_grouping_by_codes_agrees_with_pandas(rows: list[tuple[int, str, float]], kind: str, level: str) -> None:
    frame = pd.DataFrame(
        {
            "sample_id": [str(place) for place in range(len(rows))],
            "slide_id": [f"s{slide}" for slide, _, _ in rows],
            "patient_id": [f"p{slide // 2}" for slide, _, _ in rows],
            "network": [network for _, network, _ in rows],
            "label": [slide // 2 % 2 for slide, _, _ in rows],
            "probability": [probability for _, _, probability in rows],
        }
    )
    keys = ["network", f"{level}_id"]
    expected = frame.groupby(keys).agg(
        label=("label", "first"), probability=("probability", "mean"), tiles=("probability", "size")
    )
    given_frame = frame.astype({"slide_id": kind, "patient_id": kind, "network": kind})
    found = aggregate_predictions(given_frame, level, "mean")  # type: ignore[arg-type]
    owners = frame.drop_duplicates("slide_id").set_index("slide_id")["patient_id"]
    if level == "slide":
        assert found["patient_id"].tolist() == owners.loc[found["slide_id"]].tolist()
    pd.testing.assert_frame_equal(found.set_index(keys)[list(expected)], expected, check_index_type=False)


@pytest.mark.parametrize("level", ["patient", "slide"])
def test_names_as_categories_group_as_text_does(level: Level) -> None:
    patients = ["7", "007", "e\u0301", "7", "nan", "e\u0301"]
    text = pd.DataFrame(
        {
            "sample_id": list("abcdef"),
            "slide_id": [f"{name}-s" for name in patients],
            "patient_id": patients,
            "label": [1, 0, 0, 1, 1, 0],
            "network": "student_1",
            "probability": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
        }
    )
    text = pd.concat([text, text.assign(network="ensemble", probability=0.5)], ignore_index=True)
    codes = text.copy()
    for name in ("slide_id", "patient_id", "network"):  # in no order, and with words that no row has
        codes[name] = pd.Categorical(text[name], [*dict.fromkeys(text[name]), "0"])
    expected = aggregate_predictions(text, level)
    assert list(expected["patient_id"]) == ["007", "7", "e\u0301", "nan"] * 2
    pd.testing.assert_frame_equal(aggregate_predictions(codes, level), expected)
