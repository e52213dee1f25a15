"""Groups of patients by what tables say of them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdml_med.clinical.slides.subgroups import (
    MOST_GROUPS,
    NOT_GIVEN,
    OTHERS,
    check_known,
    group_values,
    read_label_columns,
)
from kdml_med.errors import InputError
from tests.examples import examples


def test_few_values_are_groups_in_their_order() -> None:
    groups = group_values(pd.Series(["10", "9", None, "10"]))
    assert list(groups) == ["10", "9", NOT_GIVEN, "10"]
    assert list(groups.cat.categories) == ["9", "10", NOT_GIVEN]


def test_many_numbers_are_thirds_that_share_no_number() -> None:
    groups = group_values(pd.Series([str(age) for age in range(30, 90)]))
    assert dict(groups.value_counts(sort=False)) == {"30 to 49": 20, "50 to 69": 20, "70 to 89": 20, NOT_GIVEN: 0}


def test_of_many_words_the_rare_ones_are_together() -> None:
    words = [f"w{number}" for number in range(40) for _ in range(40 - number)]
    groups = group_values(pd.Series(words))
    assert groups.nunique() == MOST_GROUPS
    assert (groups == OTHERS).sum() == sum(range(1, 40 - MOST_GROUPS + 2))


def test_people_who_write_not_given_are_with_those_of_whom_nothing_is_known() -> None:
    groups = group_values(pd.Series(["f", NOT_GIVEN, None, "Not given", "m"]))
    assert list(groups) == ["f", NOT_GIVEN, NOT_GIVEN, NOT_GIVEN, "m"]
    assert list(groups.cat.categories) == ["f", "m", NOT_GIVEN]
    ages = group_values(pd.Series([*map(str, range(30, 90)), NOT_GIVEN]))
    assert list(ages.value_counts(sort=False)) == [20, 20, 20, 1]


@pytest.mark.parametrize("words", [5, MOST_GROUPS - 1, MOST_GROUPS, 40])
def test_people_who_write_others_are_with_the_rare_words(words: int) -> None:
    values = [f"w{number:02}" for number in range(words) for _ in range(words - number)]
    groups = group_values(pd.Series([*values, *[OTHERS] * 50, "Others"]))
    assert groups.nunique() == min(words + 1, MOST_GROUPS)
    assert list(groups.cat.categories[-2:]) == [OTHERS, NOT_GIVEN]
    rare = words - (words if words < MOST_GROUPS else MOST_GROUPS - 1)
    assert (groups == OTHERS).sum() == 51 + sum(range(1, rare + 1))


def test_thirds_of_long_numbers_are_called_by_all_their_digits() -> None:
    days = [f"{year}03{day:02}" for year in (2017, 2018, 2019) for day in range(11, 31)]
    groups = group_values(pd.Series(days))
    names = [f"{year}0311 to {year}0330" for year in (2017, 2018, 2019)]
    assert dict(groups.value_counts(sort=False)) == dict.fromkeys(names, 20) | {NOT_GIVEN: 0}
    near = group_values(pd.Series([f"0.12345678{number}" for number in range(1, 10)]))
    assert list(near.cat.categories[:2]) == ["0.123456781 to 0.123456783", "0.123456784 to 0.123456786"]


def test_infinity_makes_words_of_numbers() -> None:
    groups = group_values(pd.Series(["inf", "-inf", *map(str, range(6))]))
    assert list(groups.cat.categories) == ["-inf", *map(str, range(6)), "inf", NOT_GIVEN]


_WORDS = st.one_of(
    st.none(),
    st.text(max_size=3),
    st.integers(-5, 200).map(str),
    st.integers(20190301, 20190330).map(str),
    st.sampled_from([NOT_GIVEN, "Not Given", OTHERS, "OTHERS ", "inf"]),
)


@settings(max_examples=examples(60))
@given(st.lists(_WORDS, min_size=1, max_size=60))
def test_everybody_is_in_one_group_and_equal_values_in_the_same(values: list[str | None]) -> None:
    groups = group_values(pd.Series(values, dtype=object))
    assert groups.notna().all()
    together: dict[str | None, str] = {}
    for value, group in zip(values, groups, strict=True):
        assert together.setdefault(value, group) == group
    assert groups.nunique() <= MOST_GROUPS + 1


def test_columns_are_looked_up_by_slide_where_the_table_names_slides(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("image;patient;Grade of  it\na.svs;P1;1\nb.svs;P1;2\nc.svs;P2;unknown\n")
    columns = read_label_columns([tmp_path / "table.csv"], ["Grade of it"])
    assert columns is not None
    answers = pd.DataFrame({"slide_id": ["b", "a", "c", "d"], "patient_id": ["P1", "P1", "P2", "P3"]})
    assert list(columns.values("Grade of it", answers, "slide").fillna("")) == ["2", "1", "", ""]
    assert (
        list(columns.values("Grade of it", answers, "patient").fillna("")) == ["differs between slides"] * 2 + [""] * 2
    )


def test_a_slide_has_no_value_of_another_slide_of_its_patient(tmp_path: Path) -> None:
    (tmp_path / "slides.csv").write_text(
        "patient,slide,scanner\nP1,P1-A,Aperio\nP1,P1-B,\nP2,P2-A,Hamamatsu\nP3,P3-A,Aperio\nP3,P3-B,Hamamatsu\n"
    )
    names = ["P1-A", "P1-B", "P1-C", "P2-A", "P3-A", "P3-C", "P4-A"]
    answers = pd.DataFrame({"slide_id": names, "patient_id": [name[:2] for name in names]})
    columns = read_label_columns([tmp_path / "slides.csv"], ["scanner"])
    assert columns is not None
    own = ["Aperio", "", "", "Hamamatsu", "Aperio", "", ""]
    assert list(columns.values("scanner", answers, "slide").fillna("")) == own
    # What a table without slides says is about all slides of a patient.
    (tmp_path / "patients.csv").write_text("patient,scanner\nP4,Leica\nP1,Aperio\n")
    columns = read_label_columns([tmp_path / "slides.csv", tmp_path / "patients.csv"], ["scanner"])
    assert columns is not None
    own[1], own[2], own[6] = "Aperio", "Aperio", "Leica"
    assert list(columns.values("scanner", answers, "slide").fillna("")) == own


def test_slides_of_tcga_are_found_by_their_barcodes_alone(tmp_path: Path) -> None:
    listed = ["TCGA-AA-3600-01Z-00-DX1", "TCGA-AA-3601-01Z-00-DX1.6f1c0a"]
    (tmp_path / "slides.csv").write_text(f"patient,slide,sex\nTCGA-AA-3600,{listed[0]},m\nTCGA-AA-3601,{listed[1]},f\n")
    columns = read_label_columns([tmp_path / "slides.csv"], ["sex"])
    assert columns is not None
    names = [f"{listed[0]}.0b2d77", listed[1], "TCGA-AA-3601-01Z-00-DX1.ffffff"]
    answers = pd.DataFrame({"slide_id": names, "patient_id": [name[:12] for name in names]})
    assert list(columns.values("sex", answers, "slide").fillna("")) == ["m", "f", ""]


def test_a_row_without_a_slide_is_about_its_patient(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("patient,slide,age\nP1,P1-A,40\nP2,,50\nP3,,60\n")
    columns = read_label_columns([tmp_path / "table.csv"], ["age"])
    assert columns is not None
    answers = pd.DataFrame({"slide_id": ["P1-A", "P1-B", "P2-A"], "patient_id": ["P1", "P1", "P2"]})
    assert list(columns.values("age", answers, "slide").fillna("")) == ["40", "", "50"]


def test_a_table_that_knows_none_of_the_slides_is_refused_by_the_names_of_slides(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("patient,slide,age\nP1,first,40\n")
    columns = read_label_columns([tmp_path / "table.csv"], ["age"])
    assert columns is not None
    answers = pd.DataFrame({"slide_id": ["P1-A"], "patient_id": ["P1"]})
    with pytest.raises(
        InputError, match=r"none of the evaluated slides: the first is 'P1-A', the table has 'first' \(1 slide"
    ):
        check_known(columns, {"test": answers}, "slide")
    check_known(columns, {"test": answers}, "patient")


def test_a_cell_with_not_given_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("patient,sex\nP1,Not given\nP1,f\nP2,not given\n")
    columns = read_label_columns([tmp_path / "table.csv"], ["sex"])
    assert columns is not None
    answers = pd.DataFrame({"patient_id": ["P1", "P2"]})
    assert list(columns.values("sex", answers, "patient").fillna("")) == ["f", ""]


def test_several_tables_are_one(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("patient,sex\nP1,f\n")
    (tmp_path / "b.csv").write_text("patient,age,sex\nP2,50,m\nP1,40,f\n")
    columns = read_label_columns([tmp_path / "a.csv", tmp_path / "b.csv"], ["sex", "age"])
    assert columns is not None
    answers = pd.DataFrame({"patient_id": ["P2", "P1"]})
    assert list(columns.values("sex", answers, "patient")) == ["m", "f"]
    assert list(columns.values("age", answers, "patient")) == ["50", "40"]
    assert read_label_columns([], []) is None
