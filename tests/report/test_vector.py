"""Figures as part of a page."""

import re
from xml.etree import ElementTree

import pytest

from kdml_med.report import figures
from kdml_med.report.figures import (
    COLOURS,
    INK,
    ON_DARK,
    STUDENT_COLOURS,
    label_text,
    network_colour,
    new_figure,
    style,
)
from kdml_med.report.vector import colour_variables, inline_svg
from tests.report.documents import HOSTILE

LIGHT, DARK = "#ffffff", "#17181a"


def drawing(*texts, colour=INK):
    with style():
        figure, (axis,) = new_figure(2)
        axis.plot([0, 1], [0, 1], "o-", color=colour, label="a")
        axis.fill_between([0, 1], 0, 1, color=colour, alpha=0.1, clip_on=True)
        for place, text in enumerate(texts):
            axis.text(0, place, text, in_layout=False)
    return figure


def contrast(one, other):
    """WCAG 2.2: ratio of relative luminances."""

    def luminance(colour):
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_text_of_a_figure_is_text():
    root = ElementTree.fromstring(inline_svg(drawing(*HOSTILE[:5]), 1, "words"))
    texts = ["".join(element.itertext()) for element in root.iter("text")]
    assert set(HOSTILE[:5]) <= set(texts)
    assert root.attrib["aria-label"] == "words"


def test_mathematics_of_a_name_is_text():
    assert "$\\frac{1}{2}$" in inline_svg(drawing("$\\frac{1}{2}$"), 1, "")


def test_names_within_figures_of_a_page_differ():
    one, other = (inline_svg(drawing("same"), number, "") for number in (1, 2))
    names = [set(re.findall(r' id="([^"]*)"', text)) for text in (one, other)]
    assert names[0]
    assert not names[0] & names[1]
    for own, text in zip(names, (one, other), strict=True):
        assert set(re.findall(r"url\(#([^)]*)\)|href=\"#([^\"]*)\"", text)) <= {(name, "") for name in own} | {
            ("", name) for name in own
        }


def test_colours_are_those_of_the_page():
    text = inline_svg(drawing(colour=COLOURS[0]), 1, "")
    assert "var(--c-0072b2)" in text
    assert not re.search("#[0-9a-f]{6}", text)


def test_a_colour_of_ones_own_stays():
    assert "#123456" in inline_svg(drawing(colour="#123456"), 1, "")


def test_the_ground_is_that_of_the_page():
    assert "#ffffff" not in inline_svg(drawing(), 1, "")


def test_every_colour_of_the_house_can_be_seen_on_a_dark_ground():
    named = {INK, figures.FAINT, figures.NEUTRAL, *COLOURS, *STUDENT_COLOURS, figures.ENSEMBLE_COLOUR}
    assert named | {figures.GRID} <= set(ON_DARK)
    for colour in named:
        assert contrast(ON_DARK[colour], DARK) >= 4.5, colour
    assert len(set(ON_DARK.values())) == len(ON_DARK)
    assert colour_variables()["--c-0072b2"] == ("#0072b2", ON_DARK["#0072B2"])


def test_every_network_can_be_seen_on_a_light_ground():
    names = ["teacher", "ensemble", *(f"student_{number}" for number in range(len(STUDENT_COLOURS)))]
    colours = [network_colour(name) for name in names]
    assert len(set(colours)) == len(names)
    assert all(contrast(colour, LIGHT) >= 3 for colour in colours)


def test_a_network_keeps_its_colour_whoever_else_is_drawn():
    assert network_colour("student_7") == STUDENT_COLOURS[7 % len(STUDENT_COLOURS)]
    assert network_colour("student_x") == network_colour("external") == network_colour("teacher")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two\nlines", "two lines"),
        ("\x1b[31mred", "[31mred"),
        ("a\udc80b", "a b"),
        ("x" * 61, "x" * 59 + "…"),
        (HOSTILE[0], HOSTILE[0]),
    ],
)
def test_labels_are_one_line_of_bearable_length(text, expected):
    assert label_text(text) == expected
