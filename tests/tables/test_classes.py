import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdml_med.errors import InputError
from kdml_med.tables.classes import is_missing, named_classes, parse_labels, plain_word

POSITIVE = [
    "MSI",
    "MSI-H",
    "MSI-High",
    "MSIMUT",
    "dMMR",
    "MMR deficient",
    "deficient",
    "unstable",
    "Microsatellite instability",
]
NEGATIVE = ["MSS", "MSI-L", "MSI low", "stable", "pMMR", "MMR-proficient", "proficient", "intact", "nonMSIH", "MSI-"]
NOTHING = ["", "NA", "[Not Available]", "Indeterminate", "equivocal", "unknown", "not performed", "?"]
NOTHING += ["'--", "--", "[Discrepancy]", "[Unknown]", "None", "<NA>", "#N/A", "TBD", "Do not report"]
HYPHENS = ["-", "\u2010", "\u2011", "\u2013", "\u2212", " ", "_", "\u00a0"]


def parse(*words: str, classes: list[str] | None = None) -> tuple[list[str | None], list[str]]:
    labels, names = parse_labels(pd.Series(words, name="status", dtype=object), classes, where="t.csv")
    return labels.tolist(), names


def respelled(words: list[str]) -> st.SearchStrategy[str]:
    """A word in another case, with another hyphen or space between its parts, and space around it."""

    def spell(word: str, separator: str, case: str, around: str) -> str:
        middle = word[:-1].replace("-", separator).replace(" ", separator) + word[-1:]
        return around + getattr(middle, case)() + around

    cases = st.sampled_from(["lower", "upper", "title", "swapcase"])
    return st.builds(spell, st.sampled_from(words), st.sampled_from(HYPHENS), cases, st.sampled_from(["", " ", "\t"]))


@given(st.lists(respelled(POSITIVE)), st.lists(respelled(NEGATIVE)), st.lists(st.sampled_from(NOTHING)))
def test_words_of_the_field_are_read_in_any_spelling(positive: list, negative: list, nothing: list) -> None:
    if positive or negative:
        labels, names = parse(*positive, *negative, *nothing)
        assert names == ["MSS", "MSI"]
        assert labels == ["MSI"] * len(positive) + ["MSS"] * len(negative) + [None] * len(nothing)


@given(st.permutations(["responder", "non-responder"]), st.booleans())
def test_the_positive_class_is_what_was_said_whatever_the_alphabet(words: list[str], last: bool) -> None:
    positive = words[last]
    labels, names = parse(*words, *words, words[0].upper(), classes=[positive])
    assert names[1] == positive
    assert labels == [*words, *words, words[0]]
    with pytest.raises(InputError, match="nothing says which of 'non-responder' and 'responder'"):
        parse(*words)


def test_two_spellings_are_one_class_named_as_most_write_it() -> None:
    labels, names = parse("Tumour", "tumour", "tumour", "normal", classes=["TUMOUR"])
    assert (labels, names) == (["tumour"] * 3 + ["normal"], ["normal", "tumour"])


@pytest.mark.parametrize("positive", ["MSS", "stable", "pMMR"])
def test_a_word_of_the_field_can_be_made_positive(positive: str) -> None:
    assert parse("MSI-H", "MSS", classes=[positive]) == (["MSI", "MSS"], ["MSI", "MSS"])


def test_named_classes_win_over_the_vocabulary() -> None:
    assert parse("MSI-L", "msi\u2011h", "", classes=["MSI-L", "MSI-H"]) == (
        ["MSI-L", "MSI-H", None],
        ["MSI-L", "MSI-H"],
    )


@pytest.mark.parametrize("words", [("MSI", "wild type"), ("MSS", "0"), ("stable", "progressive")])
def test_pairs_that_are_half_known_are_refused(words: tuple[str, str]) -> None:
    with pytest.raises(InputError, match=f"row 1: status is '{words[1]}', which is no word for MSI or MSS"):
        parse(*words)


def test_one_class_of_the_field_alone_is_enough_to_know_both() -> None:
    assert parse("dMMR", "dMMR") == (["MSI", "MSI"], ["MSS", "MSI"])


@given(st.text(max_size=12))
def test_comparing_words_twice_changes_nothing_more_and_blanks_are_missing(text: str) -> None:
    assert plain_word(text.upper().lower()) == plain_word(text.upper().lower().casefold())
    if not text.strip():
        assert is_missing(text)


def test_a_sign_at_the_end_counts() -> None:
    assert parse("MSI-", "MSI+")[0] == ["MSS", "MSI"]


def test_options_that_contradict_each_other_are_refused() -> None:
    assert named_classes(None, None) is None
    assert named_classes(None, "b") == ("b",)
    assert named_classes(("a", "b"), "B") == ("a", "b")
    with pytest.raises(InputError, match="--positive is 'a', but --classes names 'b' last"):
        named_classes(("a", "b"), "a")


def parse_column(name: str, *words: str, classes: list[str] | None = None) -> tuple[list[str | None], list[str]]:
    labels, names = parse_labels(pd.Series(words, name=name, dtype=object), classes, where="t.csv")
    return labels.tolist(), names


@given(st.sampled_from([*NOTHING[1:], "-", "ND"]), st.sampled_from(["alpha", "+", "MSI"]), st.booleans())
def test_a_word_that_is_named_as_a_class_is_never_missing(word: str, other: str, both: bool) -> None:
    labels, names = parse(word, other, classes=[other, word] if both else [word])
    assert labels == [word, other]
    assert names == [other, word]


def test_minus_is_a_word_where_plus_is_one() -> None:
    assert parse("+", "-", "-", classes=["+"])[0] == ["+", "-", "-"]
    assert parse("MSI", "-")[0] == ["MSI", None]


@pytest.mark.parametrize("column", ["HRD", "PTEN IHC", "homologous recombination"])
@pytest.mark.parametrize("words", [("deficient", "proficient"), ("unstable", "stable"), ("deficient", "intact")])
def test_short_words_are_of_the_field_only_in_a_column_about_it(column: str, words: tuple[str, str]) -> None:
    with pytest.raises(InputError, match="nothing says which"):
        parse_column(column, *words)
    assert parse_column(column, *words, classes=[words[0]]) == (list(words), [words[1], words[0]])
    assert parse_column("MMR (IHC)", *words) == (["MSI", "MSS"], ["MSS", "MSI"])


@given(st.sampled_from(POSITIVE), st.sampled_from(POSITIVE), st.sampled_from(NEGATIVE), st.sampled_from("/|,;&("))
def test_words_made_of_several_are_read_where_all_mean_the_same(one: str, two: str, three: str, mark: str) -> None:
    assert parse(f"{one}{mark}{two}", f"{three} {mark} {three}")[0] == ["MSI", "MSS"]
    with pytest.raises(InputError, match="no word for MSI or MSS"):
        parse(f"{one}{mark}{three}", "MSS")


def test_separators_between_digits_count() -> None:
    with pytest.raises(InputError, match="found 'G1-2', 'G12', 'G3'"):
        parse("G1-2", "G12", "G3", classes=["G3"])
    assert parse("CMS 4", "cms4", "CMS1", classes=["cms-4"])[0] == ["CMS 4", "CMS 4", "CMS1"]


def test_neither_of_two_words_is_suggested_as_the_positive_one() -> None:
    with pytest.raises(InputError, match="Say which: --positive 'Ja' or --positive 'Nein'"):
        parse("Nein", "Ja")


def test_a_column_without_any_class_is_said_to_be_one() -> None:
    with pytest.raises(InputError, match=r"no row has a class, as far as known words tell: '', 'NA', '\[Unknown\]'"):
        parse("", "NA", "[Unknown]", "NA")
