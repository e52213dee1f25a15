import pytest

from kdml_med.report.figures import PANELS, new_panels, style


@pytest.mark.parametrize("count", [1, 2, PANELS, PANELS + 1, 2 * PANELS])
def test_every_title_has_a_chart_and_nothing_else_is_seen(count):
    titles = [f"chart {number}" for number in range(count)]
    with style():
        figure, axes = new_panels(titles, 1.0, 2.0, sharex=True)
    assert [axis.get_title(loc="left") for axis in axes] == titles
    assert [axis for axis in figure.axes if axis.get_visible()] == axes
    assert figure.get_figheight() == 1.0 + 2.0 * -(-count // PANELS)
