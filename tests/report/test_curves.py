"""Curves of networks, drawn."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.lines import Line2D

from kdml_med.metrics.calibration import reliability
from kdml_med.metrics.curves import precision_recall_curve, roc_curve
from kdml_med.metrics.decision import decision_curve
from kdml_med.report import curves
from kdml_med.report.figures import network_colour
from kdml_med.report.vector import inline_svg
from tests.report.documents import HOSTILE, NETWORKS, answers, froc, roc

BY_NETWORK = {name: roc(seed) for seed, name in enumerate(NETWORKS)}
NOTHING = roc_curve([1, 1], [0.5, 0.6])


def entries(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def colours(figure):
    (legend,) = figure.legends
    lines = [handle for handle in legend.legend_handles if isinstance(handle, Line2D)]
    return {line.get_label().split(":")[0]: line.get_color() for line in lines}


def test_the_legend_holds_the_areas_in_the_order_of_a_cohort():
    figure = curves.draw_roc(dict(reversed(BY_NETWORK.items())))
    assert [text.split(":")[0] for text in entries(figure)[:4]] == ["teacher", "student 0", "student 1", "ensemble"]
    area = BY_NETWORK["teacher"]
    assert entries(figure)[0] == f"teacher: {area.area:.3f} ({area.area_low:.3f}–{area.area_high:.3f})"


def test_lines_go_through_the_points_of_the_curve():
    (axis,) = curves.draw_roc({"ensemble": BY_NETWORK["ensemble"]}).axes
    drawn = axis.lines[-1].get_xydata()
    assert np.array_equal(drawn, np.column_stack([BY_NETWORK["ensemble"].x, BY_NETWORK["ensemble"].y]))


def test_a_network_has_one_colour_in_every_figure():
    drawn = [
        curves.draw_roc(BY_NETWORK),
        curves.draw_precision_recall({name: precision_recall_curve(*answers(), resamples=0) for name in NETWORKS}),
        curves.draw_froc({name: froc() for name in NETWORKS}),
        curves.draw_decision({name: decision_curve(*answers()) for name in NETWORKS}),
        curves.draw_history({name: pd.DataFrame({"epoch": [1], "value": [0.5]}) for name in NETWORKS}, "AUROC"),
    ]
    expected = {name.replace("_", " "): network_colour(name) for name in NETWORKS}
    for figure in drawn:
        assert expected.items() <= colours(figure).items()


def test_points_look_in_the_legend_as_on_the_curve_and_both_are_seen_at_one_place():
    figure = curves.draw_roc(BY_NETWORK, points={"ensemble": [("rule-out", 0.4, 0.95), ("Youden", 0.4, 0.95)]})
    drawn = figure.axes[0].lines[-2:]
    named = figure.legends[0].legend_handles[-2:]

    def look(line):
        return line.get_marker(), line.get_markersize(), line.get_color(), line.get_markerfacecolor()

    assert [look(line) for line in drawn] == [look(line) for line in named]
    ring, inner = drawn
    assert inner.get_zorder() > ring.get_zorder()
    assert inner.get_markersize() < ring.get_markersize() / 2
    assert inner.get_markerfacecolor() != ring.get_markerfacecolor() == "white"


def test_operating_points_lie_where_they_are_said_to():
    figure = curves.draw_roc(
        BY_NETWORK, points={"ensemble": [("rule-out", 0.4, 0.95)], "teacher": [("rule-out", 0.5, 1)]}
    )
    marks = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [tuple(line.get_xydata()[0]) for line in marks] == [(0.4, 0.95), (0.5, 1)]
    assert entries(figure)[4:] == ["ensemble, 95 % at each place", "rule-out"]


@pytest.mark.parametrize(
    ("names", "banded"),
    [
        (["teacher"], ["teacher"]),
        (["teacher", "student_0"], ["teacher", "student 0"]),
        (["teacher", "student_0", "student_1"], ["student 1"]),
        (NETWORKS, ["ensemble"]),
    ],
)
def test_bands_are_drawn_and_named_as_long_as_they_do_not_hide_each_other(names, banded):
    figure = curves.draw_roc({name: BY_NETWORK[name] for name in names})
    assert len(figure.axes[0].collections) == len(banded)
    assert entries(figure)[len(names) :] == [f"{name}, 95 % at each place" for name in banded]


def test_a_band_lies_where_it_is_known():
    own = BY_NETWORK["ensemble"]
    (band,) = curves.draw_roc({"ensemble": own}).axes[0].collections
    corners = {tuple(point) for point in band.get_paths()[0].vertices}
    assert set(zip(own.grid, own.low, strict=True)) | set(zip(own.grid, own.high, strict=True)) <= corners


def test_a_froc_curve_starts_at_the_left_edge_and_stays_at_its_highest_to_the_right_one():
    own = dataclasses.replace(froc(), x=np.array([0, 0.5]), y=np.array([0.2, 0.7]))
    (axis,) = curves.draw_froc({"teacher": own}).axes
    assert axis.lines[0].get_xydata().tolist() == [[0.01, 0.2], [0.5, 0.7], [10, 0.7]]
    beyond = dataclasses.replace(froc(), x=np.array([0, 0.5, 20]), y=np.array([0.2, 0.7, 0.9]))
    (axis,) = curves.draw_froc({"teacher": beyond}).axes
    assert axis.lines[0].get_xydata().tolist() == [[0.01, 0.2], [0.5, 0.7], [10, 0.7]]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_every_network_has_its_chart_of_reliability(count):
    names = [f"student_{number}" for number in range(count)]
    figure = curves.draw_reliability({name: reliability(*answers(number)) for number, name in enumerate(names)})
    shown = [axis.get_title(loc="left") for axis in figure.axes if axis.get_visible()]
    assert shown == [f"student {number}" for number in range(count)]
    inline_svg(figure, 1, "")


def test_the_axis_of_net_benefit_ends_where_nothing_is_to_be_seen():
    (axis,) = curves.draw_decision({"ensemble": decision_curve(*answers())}).axes
    low, high = axis.get_ylim()
    assert -0.3 < low < 0 < high < 1
    assert entries(axis.figure) == ["ensemble", "everybody", "nobody"]


@pytest.mark.parametrize(
    "figure",
    [
        lambda: curves.draw_roc({}),
        lambda: curves.draw_roc({"teacher": NOTHING}),
        lambda: curves.draw_precision_recall({"teacher": NOTHING}),
        lambda: curves.draw_froc({"teacher": NOTHING}),
        lambda: curves.draw_reliability({"teacher": reliability([], [])}),
        lambda: curves.draw_reliability({}),
        lambda: curves.draw_decision({}),
        lambda: curves.draw_history({"teacher": pd.DataFrame({"epoch": [1], "value": [math.nan]})}, "AUROC"),
        lambda: curves.draw_history({}, "AUROC"),
    ],
)
def test_what_is_not_defined_is_said_in_the_chart(figure):
    text = inline_svg(figure(), 1, "")
    assert "not defined" in text
    assert "nan" not in text.replace("transparent", "")


def test_an_area_that_is_not_defined_is_a_dash():
    assert entries(curves.draw_roc({"teacher": NOTHING, "ensemble": roc()}))[0] == "teacher: –"


@pytest.mark.parametrize("text", HOSTILE)
def test_names_of_points_and_networks_are_text(text):
    figure = curves.draw_roc({text: roc()}, points={text: [(text, 0.2, 0.8)]})
    curves.draw_history({text: pd.DataFrame({"epoch": [1], "value": [0.5]})}, text)
    assert "<script" not in inline_svg(figure, 1, text)


def test_losses_without_networks_are_not_drawn():
    assert curves.draw_losses(pd.DataFrame({"epoch": [], "network": [], "term": [], "value": []})) is None
