import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdml_med.errors import InputError
from kdml_med.splits import describe_splits, make_splits, required_classes
from kdml_med.storage.manifest import FRAME_CLASSES, DatasetInfo
from tests.examples import examples

NEEDED = required_classes(DatasetInfo(kind="frames", classes=list(FRAME_CLASSES)))


def sequences(polyp, negative, both=0, patients=False):
    kinds = [["polyp"]] * polyp + [["negative"]] * negative + [["polyp", "negative"]] * both
    rows = [
        {"sequence_id": f"s{i}", "patient_id": f"p{i}" if patients else f"s{i}", "label": label}
        for i, labels in enumerate(kinds)
        for label in labels
    ]
    return pd.DataFrame(rows)


def labels_of(manifest, splits):
    parts = manifest["patient_id"].map(splits.set_index("patient_id")["split"])
    return {part: set(manifest["label"][parts == part]) for part in ("train", "val", "test")}


@settings(max_examples=examples(15), deadline=None)
@given(st.integers(3, 30), st.integers(0, 12), st.integers(0, 5), st.integers(0, 9))
def test_every_split_of_frames_has_polyps_and_negatives_where_there_are_enough(polyp, negative, both, seed):
    manifest = sequences(polyp, negative, both)
    splits = make_splits(manifest, classes=FRAME_CLASSES, seed=seed, required=NEEDED)
    assert splits["patient_id"].is_unique
    found = labels_of(manifest, splits)
    assert all("polyp" in labels for labels in found.values())
    if negative >= 3:
        assert all("negative" in labels for labels in found.values())


def test_tiles_still_need_both_classes():
    assert required_classes(DatasetInfo(classes=["MSS", "MSI"])) is None
    with pytest.raises(InputError, match="sequences of each class, there are 1 with 'negative' and 5 with 'polyp'"):
        make_splits(sequences(5, 1), classes=FRAME_CLASSES)


def test_too_few_sequences_with_polyps_are_counted():
    with pytest.raises(InputError, match="3 parts need at least 3 sequences with 'polyp', there are 2 with 'polyp'"):
        make_splits(sequences(2, 9), classes=FRAME_CLASSES, required=NEEDED)


def test_summary_counts_sequences_or_patients_and_frames():
    for patients, word in ((False, "sequences"), (True, "patients")):
        manifest = sequences(6, 3, patients=patients)
        splits = make_splits(manifest, classes=FRAME_CLASSES, required=NEEDED)
        assert describe_splits(manifest, splits).columns.tolist() == [
            *["split", word, "negative", "polyp", "frames", "negative frames", "polyp frames"]
        ]


def test_frames_of_which_nothing_is_known_are_counted_once():
    manifest = sequences(6, 3).assign(sample_id=lambda rows: rows["sequence_id"])
    splits = make_splits(manifest, classes=FRAME_CLASSES, required=NEEDED)
    table = describe_splits(manifest, splits)
    assert table.columns.tolist() == ["split", "frames", "negative", "polyp"]
    assert table.iloc[-1].tolist() == ["all", 9, 3, 6]
