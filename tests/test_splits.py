import hashlib
import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdml_med.errors import InputError
from kdml_med.splits import (
    DEFAULT_FRACTIONS,
    assign_splits,
    check_splits,
    describe_splits,
    freeze_splits,
    has_splits,
    make_splits,
    read_splits,
)
from kdml_med.splits.frozen import _first_shared
from kdml_med.storage.manifest import DatasetInfo, manifest_table, owner_word, read_info, write_info, write_manifest
from tests.examples import examples

CLASSES = ["MSS", "MSI"]


def cohort(negative: int, positive: int, unlabelled: int = 0, sites: int = 4, tiles: int = 2) -> pd.DataFrame:
    labels = ["MSS"] * negative + ["MSI"] * positive + [None] * unlabelled
    rows = [
        {
            "sample_id": f"p{index:03}/{tile}",
            "patient_id": f"p{index:03}",
            "slide_id": f"p{index:03}-s",
            "label": label,
            "site": f"site{index % sites}",
            "shard": f"shards/p{index:03}.tar",
            "offset": 512 * tile,
            "size": 100,
        }
        for index, label in enumerate(labels)
        for tile in range(tiles)
    ]
    return pd.DataFrame(rows).astype({"label": object})


COHORTS = st.builds(cohort, st.integers(5, 60), st.integers(5, 60), st.integers(0, 20))


def counts(manifest: pd.DataFrame, splits: pd.DataFrame) -> pd.DataFrame:
    """Patients by label (rows) and split or fold (columns)."""
    labels = manifest.drop_duplicates("patient_id").set_index("patient_id")["label"].astype("str").fillna("none")
    parts = splits.set_index("patient_id").iloc[:, 0]
    return pd.crosstab(labels, parts)


@settings(max_examples=examples(40), deadline=None)
@given(COHORTS, st.integers(0, 5), st.sampled_from([None, 3, 5]))
def test_every_patient_is_in_one_split_and_classes_keep_their_shares(
    manifest: pd.DataFrame, seed: int, folds: int | None
) -> None:
    splits = make_splits(manifest, classes=CLASSES, folds=folds, seed=seed)
    assert splits["patient_id"].is_unique
    assert set(splits["patient_id"]) == set(manifest["patient_id"])
    table = counts(manifest, splits)
    assert (table.loc[CLASSES] > 0).all(axis=None)
    shares = dict(enumerate([1 / folds] * folds)) if folds else dict(zip(["train", "val", "test"], DEFAULT_FRACTIONS))  # noqa: B905
    for label in CLASSES:
        for part, share in shares.items():
            assert abs(table.loc[label, part] - share * table.loc[label].sum()) <= 2


@settings(max_examples=examples(20), deadline=None)
@given(COHORTS, st.integers(0, 5), st.booleans(), st.integers(0, 1000))
def test_order_of_rows_does_not_matter(manifest: pd.DataFrame, seed: int, sites: bool, order: int) -> None:
    shuffled = manifest.sample(frac=1, random_state=order).iloc[: len(manifest) // 2]
    shuffled = pd.concat([shuffled, manifest.drop_duplicates("patient_id")])  # fewer tiles, the same patients
    first, second = (make_splits(m, classes=CLASSES, seed=seed, site_preserved=sites) for m in (manifest, shuffled))
    pd.testing.assert_frame_equal(first, second)


@settings(max_examples=examples(20), deadline=None)
@given(st.integers(40, 120), st.integers(20, 60), st.integers(8, 20), st.integers(0, 5))
def test_sites_stay_together(negative: int, positive: int, sites: int, seed: int) -> None:
    manifest = cohort(negative, positive, sites=sites)
    splits = make_splits(manifest, classes=CLASSES, seed=seed, site_preserved=True)
    part = manifest["patient_id"].map(splits.set_index("patient_id")["split"])
    assert (part.groupby(manifest["site"]).nunique() == 1).all()
    table = counts(manifest, splits)
    assert (table > 0).all(axis=None)
    assert 0.4 <= table["train"].sum() / table.sum(axis=None) <= 0.75


def test_seeds_give_different_splits() -> None:
    manifest = cohort(30, 30)
    found = {tuple(make_splits(manifest, classes=CLASSES, seed=seed)["split"]) for seed in range(4)}
    assert len(found) == 4


def test_patient_seen_at_two_sites_joins_them() -> None:
    manifest = cohort(30, 30, sites=10)
    moved = (manifest["patient_id"] == "p000") & manifest["sample_id"].str.endswith("/1")
    manifest.loc[moved, "site"] = "site5"
    splits = make_splits(manifest, classes=CLASSES, site_preserved=True).set_index("patient_id")["split"]
    together = manifest["patient_id"][manifest["site"].isin(["site0", "site5"])]
    assert splits[together].nunique() == 1


def test_patients_with_slides_of_both_classes_serve_both() -> None:
    manifest = cohort(4, 4)
    mixed = cohort(3, 0).assign(patient_id=lambda m: "x" + m["patient_id"], label=["MSS", "MSI"] * 3)
    manifest = pd.concat([manifest, mixed], ignore_index=True)
    table = describe_splits(manifest, make_splits(manifest, classes=CLASSES))
    assert table["split"].tolist() == ["train", "val", "test", "all"]
    assert (table[["MSI", "MSS"]] > 0).all().all()


def test_rare_class_held_partly_by_mixed_patients_reaches_every_split() -> None:
    manifest = cohort(20, 2)
    mixed = cohort(1, 0).assign(patient_id="x", label=["MSS", "MSI"])
    manifest = pd.concat([manifest, mixed], ignore_index=True)
    for seed in range(10):
        table = describe_splits(manifest, make_splits(manifest, classes=CLASSES, seed=seed))
        assert (table.get("MSI", 0) + table["both"] > 0).all()


def test_the_summary_counts_each_patient_once_and_has_a_total() -> None:
    mixed = cohort(2, 0, tiles=4).assign(label=["MSS", "MSI"] * 4)
    mixed["patient_id"] = "mixed-" + mixed["patient_id"]
    manifest = pd.concat([cohort(5, 3, unlabelled=2), mixed], ignore_index=True)
    patients = sorted(manifest["patient_id"].unique())
    splits = pd.DataFrame({"patient_id": patients, "split": ["test"] * 4 + ["train"] * 6 + ["val"] * 2})
    table = describe_splits(manifest, splits)
    groups = ["MSI", "MSS", "both", "unlabelled"]
    # p000 … p004 are MSS, p005 … p007 MSI, p008 and p009 unlabelled; each has two tiles, mixed ones, which come
    # first in the order of names, two of each class.
    expected = pd.DataFrame(
        [
            ["train", 6, 3, 3, 0, 0, 12, 6, 6, 0],
            ["val", 2, 0, 0, 0, 2, 4, 0, 0, 4],
            ["test", 4, 0, 2, 2, 0, 12, 4, 8, 0],
            ["all", 12, 3, 5, 2, 2, 28, 10, 14, 4],
        ],
        columns=["split", "patients", *groups, "tiles", "MSI tiles", "MSS tiles", "unlabelled tiles"],
    )
    pd.testing.assert_frame_equal(table, expected, check_dtype=False)


@given(st.integers(3, 9), st.integers(3, 9), st.integers(0, 3), st.integers(0, 3), st.integers(3, 4))
@settings(max_examples=examples(15), deadline=None)
def test_rows_of_the_summary_add_up(negative: int, positive: int, unlabelled: int, mixed: int, folds: int) -> None:
    both = cohort(9, 0).assign(label=["MSS", "MSI"] * 9).iloc[: 2 * mixed]
    manifest = pd.concat(
        [cohort(negative, positive, unlabelled), both.assign(patient_id="mixed-" + both["patient_id"])],
        ignore_index=True,
    )
    table = describe_splits(manifest, make_splits(manifest, classes=CLASSES, folds=folds)).set_index("fold")
    assert table.index.tolist() == [*range(folds), "all"]
    pd.testing.assert_series_equal(table.iloc[:-1].sum(), table.loc["all"], check_names=False, check_dtype=False)
    groups = [name for name in ("MSI", "MSS", "both", "unlabelled") if name in table]
    assert (table[groups].sum(axis=1) == table["patients"]).all()
    assert table.loc["all", "patients"] == negative + positive + unlabelled + mixed
    assert table.loc["all", "tiles"] == len(manifest)


@pytest.mark.parametrize(
    ("columns", "word"),
    [
        ({"slide_id": ["a", "b"]}, "patient"),
        ({"sequence_id": ["a", "b"], "sample_id": ["a", "b"]}, "frame"),
        ({"sequence_id": ["a", "b"], "sample_id": ["a/1", "b/1"]}, "sequence"),
        ({"sequence_id": ["a1", "b1"], "sample_id": ["a/1", "b/1"]}, "patient"),
    ],
)
def test_patients_that_are_not_known_are_not_called_patients(columns: dict[str, list[str]], word: str) -> None:
    assert owner_word(pd.DataFrame({"patient_id": ["a", "b"]} | columns)) == word


@pytest.mark.parametrize(
    ("level", "sequences", "word"),
    [
        ("patient", ["a", "b"], "patient"),  # each is in one sequence, which is called like the patient
        ("sequence", ["a", "b1"], "sequence"),  # of the second one the patient is known
        ("frame", ["a", "b"], "frame"),
    ],
)
def test_frames_are_of_patients_where_each_was_named(level: str, sequences: list[str], word: str) -> None:
    rows = pd.DataFrame({"patient_id": ["a", "b"], "sequence_id": sequences, "sample_id": ["a", "b/1"]})
    assert owner_word(rows, DatasetInfo(kind="frames", label_level=level)) == word


def test_errors_call_patients_what_the_dataset_does() -> None:
    manifest = pd.DataFrame({"patient_id": list("abcdef"), "label": ["MSS", "MSI"] * 3})
    info = DatasetInfo(owner="sequence")
    with pytest.raises(InputError, match="folds is 9, but there are 6 sequences"):
        make_splits(manifest, classes=CLASSES, folds=9, info=info)
    splits = pd.DataFrame({"patient_id": list("abcde"), "split": ["train", "val", "test", "train", "train"]})
    with pytest.raises(InputError, match="1 sequence of the manifest is not in here: f"):
        check_splits(splits, manifest, "here", info)


@pytest.mark.parametrize(
    ("slides", "labels", "word"),
    [
        (["a", "b"], None, "slide"),
        (["a", "b"], {"columns": {"slide": "file", "label": "MSI"}}, "slide"),
        (["a", "b"], {"columns": {"patient": "case", "label": "MSI"}}, "patient"),
        (["a-1", "b-1"], None, "patient"),
    ],
)
def test_a_slide_is_its_own_patient_where_no_column_says_whose_it_is(
    slides: list[str], labels: dict[str, Any] | None, word: str
) -> None:
    rows = pd.DataFrame({"patient_id": ["a", "b"], "slide_id": slides})
    assert owner_word(rows, DatasetInfo(labels=labels)) == word


def test_fraction_zero_leaves_a_split_empty() -> None:
    splits = make_splits(cohort(4, 2), classes=CLASSES, fractions=(0.8, 0.2, 0))
    assert set(splits["split"]) == {"train", "val"}


def test_unlabelled_cohort_can_be_split() -> None:
    splits = make_splits(cohort(0, 0, 10), classes=[])
    assert splits["split"].value_counts().to_dict() == {"train": 6, "val": 2, "test": 2}


@pytest.mark.parametrize(
    ("manifest", "options", "message"),
    [
        (cohort(10, 2), {}, "3 parts need at least 3 patients of each class, there are 10 with 'MSS' and 2 with 'MSI'"),
        (cohort(10, 4), {"folds": 5}, "5 parts need at least 5 patients of each class"),
        (cohort(1, 1), {}, "need at least 3 patients, there are 2"),
        (cohort(9, 9, sites=2), {"site_preserved": True}, "need at least 3 sites, there are 2"),
        (cohort(9, 9).assign(site=None), {"site_preserved": True}, "18 patients have no site, the first is 'p000'"),
        *((cohort(9, 9), {"folds": folds}, f"folds is {folds}") for folds in (2, 1, 0, -1)),
        (cohort(9, 9), {"folds": 10**12}, "folds is 1000000000000, but there are 18 patients: use fewer"),
        (cohort(9, 9), {"seed": -1}, "seed is -1, expected a whole number from 0"),
        (cohort(9, 9), {"fractions": (np.nan,) * 3}, "fractions are .*, expected three"),
        (cohort(9, 9), {"fractions": (np.inf, 0, 0)}, "fractions are .*, expected three"),
        (cohort(9, 9), {"fractions": (np.inf, -np.inf, 1)}, "fractions are .*, expected three"),
        (cohort(9, 9), {"fractions": (1.4, -0.2, -0.2)}, "fractions are .*, expected three"),
        (cohort(9, 9), {"fractions": (0, 0.5, 0.5)}, "train above 0"),
        (cohort(9, 9), {"folds": 3, "fractions": (0.6, 0.2, 0.2)}, "not both"),
        (cohort(9, 9), {"fractions": (0.6, 0.2, 0.1)}, "add up to 1"),
        (cohort(9, 9), {"fractions": (0.8, 0.2)}, "expected three"),
        (cohort(9, 9), {"classes": ["a", "b"]}, r"labels \['MSI', 'MSS'\] that are not among"),
    ],
)
def test_impossible_splits_say_what_is_needed(manifest: pd.DataFrame, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_splits(manifest, **{"classes": CLASSES, **options})


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write_manifest(tmp_path / "manifest.parquet", manifest_table(cohort(6, 6).to_dict("records")))  # type: ignore[arg-type]
    write_info(tmp_path, DatasetInfo(classes=CLASSES))
    return tmp_path


def freeze(dataset: Path, manifest: pd.DataFrame, **options: Any) -> pd.DataFrame:
    splits = make_splits(manifest, classes=CLASSES, **options)
    freeze_splits(dataset, splits, mode="folds" if "folds" in options else "fractions", seed=0, force=True)
    return splits


def test_frozen_splits_come_back(dataset: Path) -> None:
    manifest = cohort(6, 6)
    assert not has_splits(dataset)
    splits = freeze(dataset, manifest)
    assert has_splits(dataset)
    info = read_info(dataset)
    assert info.splits is not None
    assert (info.splits["mode"], info.splits["seed"]) == ("fractions", 0)
    pd.testing.assert_frame_equal(read_splits(dataset, manifest, info), splits, check_dtype=False)
    assigned = assign_splits(dataset, manifest, info)
    assert assigned.index.equals(manifest.index)
    assert assigned.tolist() == splits.set_index("patient_id")["split"].loc[manifest["patient_id"]].tolist()


def test_folds_take_turns(dataset: Path) -> None:
    manifest = cohort(6, 6)
    folds = freeze(dataset, manifest, folds=4).set_index("patient_id")["fold"]
    of_row = manifest["patient_id"].map(folds).to_numpy()
    info = read_info(dataset)
    for fold in range(4):
        assigned = assign_splits(dataset, manifest, info, fold=fold).to_numpy()
        np.testing.assert_array_equal(assigned == "test", of_row == fold)
        np.testing.assert_array_equal(assigned == "val", of_row == (fold + 1) % 4)
    for wrong, message in ((None, "say which one tests, 0 to 3"), (4, "has the folds 0 to 3")):
        with pytest.raises(InputError, match=message):
            assign_splits(dataset, manifest, info, fold=wrong)


def test_fold_of_splits_is_refused(dataset: Path) -> None:
    freeze(dataset, cohort(6, 6))
    with pytest.raises(InputError, match="has splits, not folds"):
        assign_splits(dataset, cohort(6, 6), read_info(dataset), fold=0)


def test_other_splits_need_force(dataset: Path) -> None:
    manifest = cohort(6, 6)
    first, second = (make_splits(manifest, classes=CLASSES, seed=seed) for seed in (0, 1))
    freeze_splits(dataset, first, mode="fractions", seed=0)
    before = [(dataset / name).read_bytes() for name in ("splits.csv", "dataset.json")]
    freeze_splits(dataset, first, mode="fractions", seed=0)
    with pytest.raises(InputError, match="--force"):
        freeze_splits(dataset, second, mode="fractions", seed=1)
    assert before == [(dataset / name).read_bytes() for name in ("splits.csv", "dataset.json")]
    freeze_splits(dataset, second, mode="fractions", seed=1, force=True)
    read_splits(dataset, manifest, read_info(dataset))


def rewrite(dataset: Path, old: str, new: str, *, refreeze: bool) -> None:
    """Edit splits.csv; with ``refreeze`` the hash in dataset.json follows, so that other checks must catch it."""
    path = dataset / "splits.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    if refreeze:
        info = read_info(dataset)
        info.splits = {**(info.splits or {}), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        write_info(dataset, info)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "p000,train\np000,test\n",
            r"patient 'p000' is in splits \['test', 'train'\]: this would leak \(rows \[2, 3\]\)",
        ),
        ("p000,train\np000,train\n", "patient 'p000' occurs 2 times"),
        ("", "1 patient of the manifest is not in .*splits.csv: p000"),
        ("p000,train\nzz,test\n", "1 patient of .*splits.csv is not in the manifest: zz"),
        ("p000,training\n", "row 2: split is 'training', expected one of"),
    ],
)
def test_gate_stops_leaks_even_when_the_hash_fits(dataset: Path, row: str, message: str) -> None:
    manifest = cohort(6, 6)
    splits = freeze(dataset, manifest).set_index("patient_id")["split"]
    rewrite(dataset, f"p000,{splits['p000']}\n", row, refreeze=True)
    with pytest.raises(InputError, match=message):
        assign_splits(dataset, manifest, read_info(dataset))


def test_gate_stops_an_edited_file(dataset: Path) -> None:
    manifest = cohort(6, 6)
    splits = freeze(dataset, manifest).set_index("patient_id")["split"]
    other = "test" if splits["p000"] == "train" else "train"
    rewrite(dataset, f"p000,{splits['p000']}\n", f"p000,{other}\n", refreeze=False)
    with pytest.raises(InputError, match=r"edited after it was frozen.*--from-table"):
        read_splits(dataset, manifest, read_info(dataset))


def test_gate_stops_a_file_that_was_never_frozen(dataset: Path) -> None:
    manifest = cohort(6, 6)
    make_splits(manifest, classes=CLASSES).to_csv(dataset / "splits.csv", index=False)
    with pytest.raises(InputError, match="was never frozen"):
        read_splits(dataset, manifest, read_info(dataset))


def test_gate_stops_one_stored_tile_in_two_splits(dataset: Path) -> None:
    manifest = cohort(6, 6)
    splits = freeze(dataset, manifest)
    train, test = (splits["patient_id"][splits["split"] == name].iloc[0] for name in ("train", "test"))
    shared = manifest["patient_id"].isin([train, test])
    leaking = manifest.assign(shard=manifest["shard"].where(~shared, "shards/both.tar"))
    with pytest.raises(InputError, match=f"both.tar, byte 0, is listed for the patients .*{min(train, test)}"):
        assign_splits(dataset, leaking, read_info(dataset))


def test_gate_stops_a_shared_site_that_was_to_be_preserved(dataset: Path) -> None:
    manifest = cohort(6, 6)
    freeze_splits(dataset, make_splits(manifest, classes=CLASSES), mode="fractions", seed=0, site_preserved=True)
    with pytest.raises(InputError, match="recorded as keeping sites together"):
        read_splits(dataset, manifest, read_info(dataset))


def test_dataset_without_splits_says_how_to_make_them(dataset: Path) -> None:
    with pytest.raises(InputError, match=r"kdml-med split"):
        assign_splits(dataset, cohort(6, 6), read_info(dataset))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"patient_id": ["a"], "part": ["train"]}, "columns are"),
        ({"patient_id": [], "split": []}, "no patients"),
        ({"patient_id": ["a", "b", "c"], "fold": ["0", "1", "3"]}, "without gaps"),
        ({"patient_id": ["a", "b", "c"], "fold": ["0", "1", "x"]}, "without gaps"),
    ],
)
def test_malformed_splits_are_refused(table: dict[str, list[str]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_splits(pd.DataFrame(table), pd.DataFrame({"patient_id": ["a", "b", "c"]}), "table.csv")


def test_record_is_json(dataset: Path) -> None:
    freeze(dataset, cohort(6, 6))
    assert set(json.loads((dataset / "dataset.json").read_text())["splits"]) == {"mode", "seed", "sha256"}


NAMES = ["=1+1", "-3", "@x", "+a", "'=q", "-1-1", "\tz", "Müller", "a,b", 'a"b', " ", "ordinary"]


def test_patients_whose_names_a_spreadsheet_would_run_stay_themselves(tmp_path: Path) -> None:
    manifest = cohort(6, 6)
    names = dict(zip(sorted(manifest["patient_id"].unique()), NAMES, strict=True))
    manifest["patient_id"] = manifest["patient_id"].map(names)
    write_manifest(tmp_path / "manifest.parquet", manifest_table(manifest.to_dict("records")))  # type: ignore[arg-type]
    write_info(tmp_path, DatasetInfo(classes=CLASSES))
    splits = freeze(tmp_path, manifest)
    read = read_splits(tmp_path, manifest, read_info(tmp_path))
    assert dict(read.itertuples(index=False)) == dict(splits.itertuples(index=False))
    assert set(assign_splits(tmp_path, manifest, read_info(tmp_path))) == {"train", "val", "test"}
    for line in (tmp_path / "splits.csv").read_text().splitlines()[1:]:
        assert not line.startswith(("=", "@", "+", "\t", "-1-")), line


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_name_is_the_same_in_both_unicode_forms(form: Any) -> None:
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    manifest = cohort(6, 6)
    manifest["patient_id"] = [unicodedata.normalize(form, name.replace("p00", "é")) for name in manifest["patient_id"]]
    splits = make_splits(manifest, classes=CLASSES)
    table = splits.assign(patient_id=[unicodedata.normalize(other, name) for name in splits["patient_id"]])
    assert check_splits(table, manifest, "f")["patient_id"].tolist() == splits["patient_id"].tolist()
    with pytest.raises(InputError, match="occurs 2 times"):
        check_splits(pd.concat([table, splits[:1]]), manifest, "f")


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace(b",", b";"),
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text + b"\n",
        lambda text: text[:-3],
        lambda text: b"",
        lambda text: text.replace(b"p000", b"p\xe900"),
        lambda text: text.replace(b"p000,", b","),
        lambda text: text.replace(b"p000,", b"p000,,"),
        lambda text: text.replace(b"patient_id", b"patient"),
    ],
)
def test_splits_that_an_editor_touched_are_refused_in_one_line(dataset: Path, edit: Any) -> None:
    manifest = cohort(6, 6)
    freeze(dataset, manifest)
    path = dataset / "splits.csv"
    path.write_bytes(edit(path.read_bytes()))
    with pytest.raises(InputError, match=r"splits\.csv") as caught:
        read_splits(dataset, manifest, read_info(dataset))
    assert "\n" not in str(caught.value)


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)), max_size=12), st.booleans())
def test_an_image_in_two_parts_is_found_as_by_a_loop(rows: list[tuple[int, int, int]], ordered: bool) -> None:
    shards, offsets, parts = np.array(sorted(rows) if ordered else rows, dtype=np.int64).reshape(-1, 3).T
    held: dict[tuple[int, int], set[int]] = {}
    for shard, offset, part in zip(shards, offsets, parts, strict=True):
        held.setdefault((shard, offset), set()).add(part)
    leaking = {place for place, own in held.items() if len(own) > 1}
    found = _first_shared(shards, offsets, parts)
    assert (found is not None) == bool(leaking)
    if found is not None:
        assert (shards[found], offsets[found]) == min(leaking)
