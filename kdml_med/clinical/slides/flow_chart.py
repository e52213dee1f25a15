"""The flow of a cohort as a chart: from the rows of a table down to the splits, and beside that what was left out."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdml_med.clinical.slides.counting import Exclusion, Flow, Group
from kdml_med.report.figures import FAINT, INK, WIDTH, label_text, new_figure, style
from kdml_med.words import counted

# Inches, as all of the chart.
_LINE, _PAD, _GAP, _EDGE = 0.18, 0.1, 0.28, 0.04
_MAIN, _BESIDE = (0.0, 3.4), (4.1, 3.9)
"""Left edge and width of the boxes of the flow, and of those beside it."""
_LETTERS_PER_INCH = 13.5
_MOST_REASONS = 7


@dataclass(frozen=True)
class _Box:
    """Lines of text in a frame."""

    left: float
    width: float
    lines: Sequence[str]

    @classmethod
    def of(cls, place: tuple[float, float], texts: Sequence[str]) -> _Box:
        """A box as high as its texts need."""
        letters = int((place[1] - 2 * _PAD) * _LETTERS_PER_INCH)
        wrapped = [textwrap.wrap(label_text(text), letters, subsequent_indent="   ") for text in texts]
        return cls(*place, list(itertools.chain.from_iterable(wrapped)))

    @property
    def height(self) -> float:
        """Inches."""
        return len(self.lines) * _LINE + 2 * _PAD

    @property
    def middle(self) -> float:
        """Where arrows meet it."""
        return self.left + self.width / 2

    def draw(self, axis: Axes, top: float, *, colour: str) -> None:
        """Draw it, its upper edge at a height."""
        corners = [self.left, self.left + self.width], [top - self.height, top]
        axis.plot(*_outline(*corners), color=colour, linewidth=1, clip_on=False)
        for number, line in enumerate(self.lines):
            place = self.left + _PAD, top - _PAD - (number + 0.5) * _LINE
            axis.text(*place, line, ha="left", va="center", color=INK, fontsize=9)


def _outline(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    return [x[0], x[1], x[1], x[0], x[0]], [y[0], y[0], y[1], y[1], y[0]]


def draw_flow(flow: Flow, *, group: str, row: str, table: str) -> Figure:
    """Who came in, who did not, and where they went.

    Args:
        flow: counts of a dataset.
        group: what a patient has several of, such as "slide".
        row: what that is cut into, such as "tile".
        table: what the candidates are rows of.
    """
    *splits, every = flow.groups
    of_table = [one for one in flow.exclusions if one.of_table]
    others = [one for one in flow.exclusions if not one.of_table]
    unusable = [f"{counted(len(flow.failures), 'input')}: not or not wholly usable"] if flow.failures else []
    steps = [([f"{table}: {counted(flow.candidates, 'row')}"], _reasons(of_table))] if flow.candidates else []
    steps.append((["In the dataset:", *_counted(every, flow.owner, group, row)], [*unusable, *_reasons(others)]))
    rows = [(_Box.of(_MAIN, main), _Box.of(_BESIDE, beside)) for main, beside in steps]
    width = (WIDTH - 0.15 * (len(splits) - 1)) / max(1, len(splits)) if len(splits) > 1 else _MAIN[1]
    places = [(number * (width + 0.15), width) for number in range(len(splits))]
    last = [
        _Box.of(place, [f"{one.name.capitalize()}:", *_counted(one, flow.owner, group, row)])
        for place, one in zip(places, splits, strict=True)
    ]
    heights = [max(main.height, beside.height if beside.lines else 0) for main, beside in rows]
    total = sum(heights) + _GAP * (len(rows) - 1) + 2 * _EDGE
    total += _GAP + max(box.height for box in last) if last else 0
    with style():
        figure, (axis,) = new_figure(total)
        figure.set_layout_engine("none")
        axis.set_position((0, 0, 1, 1))
        axis.set(xlim=(-_EDGE, WIDTH + _EDGE), ylim=(0, total))
        axis.axis("off")
        top = total - _EDGE
        for number, ((main, beside), height) in enumerate(zip(rows, heights, strict=True)):
            main.draw(axis, top, colour=INK)
            if beside.lines:
                beside.draw(axis, top, colour=FAINT)
                middle = top - min(main.height, beside.height) / 2
                _draw_arrow(axis, (main.left + main.width, middle), (beside.left, middle))
            below = [box.middle for box in last] if number == len(rows) - 1 else [main.middle]
            for x in below:
                _draw_arrow(axis, (main.middle, top - main.height), (x, top - height - _GAP))
            top -= height + _GAP
        for box in last:
            box.draw(axis, top, colour=INK)
    return figure


def _draw_arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": FAINT, "shrinkA": 0, "shrinkB": 0})


def _counted(group: Group, owner: str, of: str, row: str) -> list[str]:
    """Patients by class, and what they have."""
    classes = ", ".join(f"{number:,} {name}" for name, number in group.classes.items())
    patients = counted(group.patients, owner) + (f" ({classes})" if classes else "")
    slides = [] if owner == of else [counted(group.groups, of)]
    return [patients, ", ".join([*slides, counted(group.rows, row)])]


def _reasons(exclusions: Sequence[Exclusion]) -> list[str]:
    lines = [f"{one.number:,} {one.what}: {one.reason}" for one in exclusions]
    more = len(lines) - _MOST_REASONS
    return [*lines[:_MOST_REASONS], f"and {counted(more, 'more reason')}"] if more > 0 else lines
