import math

import pytest

from kdml_med.keys import LossTerm
from kdml_med.report import wording


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (wording.figure(-0.12345), "−0.123"),
        (wording.figure(2.0, 1), "2.0"),
        (wording.figure(math.nan), "–"),
        (wording.difference(0.0125), "+0.013"),
        (wording.difference(math.nan), "–"),
        (wording.with_interval(0.93, 0.852, 0.996), "0.930 (0.852–0.996)"),
        (wording.with_interval(0.93, math.nan, math.nan), "0.930"),
        (wording.difference_with_interval(0.012, -0.02, 0.045), "+0.012 (−0.020 to 0.045)"),
        (wording.difference_with_interval(-0.012, math.nan, 0.1), "−0.012"),
        (wording.p_words(0.0004), "p < 0.001"),
        (wording.p_words(0.041), "p = 0.041"),
        (wording.p_words(0.41), "p = 0.41"),
        (wording.p_words(math.nan), "p not defined"),
        (wording.listed(["a"]), "a"),
        (wording.listed(["a", "b", "c"]), "a, b and c"),
        (wording.capital("as it is"), "As it is"),
        (wording.capital(""), ""),
        (wording.metric_words("auroc"), "AUROC"),
        (wording.metric_words("froc_sensitivity_0.5"), "sensitivity at 0.5 false positives per frame"),
        (wording.metric_words("of_ones_own"), "of ones own"),
        (wording.network_words("student_0"), "student 0"),
    ],
)
def test_numbers_and_names_in_words(said, expected):
    assert said == expected


def test_an_interval_without_width_is_explained_once_and_no_other_is():
    note = wording.width_note([(None, None), (0.2, 0.9), (1.0, 1.0), (0.0, 0.0)])
    assert note.startswith("An interval without width")
    assert wording.width_note([(0.1 + 0.2, 0.3)]) == note  # equal but for the order of their sums
    assert wording.width_note([(None, None), (math.nan, math.nan), (0.999, 1.0)]) == ""
    assert wording.width_note([]) == ""


def test_terms_have_their_words_and_unknown_ones_their_names():
    words = wording.term_words(["extra", "teacher", "extra"])
    assert words == {"labels": "labels", "teacher": "teacher (KD)", "peers": "peers (ML)", "extra": "extra"}
    assert list(words)[: len(LossTerm.parts())] == [term.source for term in LossTerm.parts()]
