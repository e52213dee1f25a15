"""Example frames with the boxes of all networks, for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, zip_longest
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageColor, ImageDraw, ImageFont

from kdml_med.keys import NetworkName
from kdml_med.metrics.box_matching import BOX_COLUMNS, Floats, match_detections, read_frames
from kdml_med.report.figures import ON_DARK, network_colour

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Colour = tuple[int, int, int]

MAX_BOXES = 5
"""Drawn of each network and frame: those that found something first, then the others, by score."""
_COLUMNS = 3
_PANEL_PX = 320
_LINE_PX = 22
_GAP_PX = 6
_DASH_PX = 7
_BACKGROUND, _TEXT, _WRONG = (32, 32, 32), (240, 240, 240), (255, 140, 130)
# Not red, which is the colour of mucosa; green and magenta differ for colour-blind eyes too.
_ANNOTATED, _HIT, _FALSE = (255, 235, 0), (0, 255, 150), (255, 90, 255)


@dataclass(frozen=True)
class Judgement:
    """What one network found in one frame at its threshold, highest score first.

    Attributes:
        boxes: float64, [detections, 4], pixels.
        scores: [detections].
        hits: bool, [detections]; whether a detection finds an annotated box.
        missed: float64, [missed, 4], annotated boxes that no detection finds.
    """

    boxes: Floats
    scores: Floats
    hits: np.ndarray[Any, np.dtype[np.bool_]]
    missed: Floats

    @property
    def wrong(self) -> bool:
        """Whether a polyp was missed or a false alarm given."""
        return len(self.missed) > 0 or not bool(self.hits.all())

    @property
    def shown(self) -> list[int]:
        """Which detections are drawn, the most important one last, so that it lies on top."""
        first = np.argsort(~self.hits, kind="stable")[:MAX_BOXES]
        return [int(index) for index in first[::-1]]


def judge_frame(frame: pd.DataFrame, detections: pd.DataFrame, threshold: float) -> Judgement:
    """Compare detections of one network with the annotation of one frame, as the metrics do.

    Args:
        frame: one row of a manifest.
        detections: of one network; those of other frames are left out.
        threshold: score from which a detection counts.
    """
    truth = read_frames(frame)
    # As match_detections sorts them, so that both stand in the same order.
    used = detections[(detections["sample_id"] == frame["sample_id"].iloc[0]) & (detections["score"] >= threshold)]
    used = used.sort_values("score", ascending=False, kind="stable")
    found = match_detections(truth, used, iou_thresholds=(0.5,)).row(0.5)
    used = used.iloc[: len(found)]
    missed = np.setdiff1d(np.arange(len(truth.boxes)), found)
    return Judgement(used[BOX_COLUMNS].to_numpy(np.float64), used["score"].to_numpy(), found >= 0, truth.boxes[missed])


def worst_frames(frames: pd.DataFrame, detections: pd.DataFrame, threshold: float) -> list[tuple[int, str]]:
    """Frames that a network is most wrong about: missed polyps and false alarms in turn, the worst of each first.

    The worst miss is the polyp whose best detection scores lowest, the worst false alarm the one that scores highest.
    Frames of a sequence are much alike, so that the first ones named are of different sequences, as far as they go.

    Args:
        frames: rows of a manifest.
        detections: of one network.
        threshold: score from which a detection counts.

    Returns:
        Position in ``frames``, and what is wrong, in words; each frame once.
    """
    truth = read_frames(frames)
    matches = match_detections(truth, detections, iou_thresholds=(0.5,))
    box = matches.row(0.5)
    best = np.zeros(len(truth.boxes))
    best[box[box >= 0]] = matches.score[box >= 0]
    missed = [index for index in np.argsort(best, kind="stable") if best[index] < threshold]
    misses = [(truth.box_frame[index], f"missed polyp, best box on it {best[index]:.2f}") for index in missed]
    false = np.flatnonzero((box < 0) & (matches.score >= threshold))  # scores fall
    alarms = [(matches.frame[index], f"false alarm {matches.score[index]:.2f}") for index in false]
    positions = {name: position for position, name in enumerate(frames["sample_id"])}
    first: dict[int, str] = {}
    later: dict[int, str] = {}
    sequences: set[str] = set()
    for pair in zip_longest(misses, alarms):
        for frame, reason in filter(None, pair):
            position = positions[truth.sample_ids[frame]]
            if position not in first:
                (later if truth.sequences[frame] in sequences else first).setdefault(position, reason)
                sequences.add(truth.sequences[frame])
    return [*first.items(), *later.items()]


def frame_figures(
    dataset: Any,
    detections: Mapping[str, pd.DataFrame],
    thresholds: Mapping[str, float],
    *,
    spread: int = 6,
    worst: int = 4,
) -> dict[str, Pixels]:
    """Example frames: all boxes, the annotation, and the answer of each network, side by side in a picture of a frame.

    Some are spread evenly over the split and stay the same from epoch to epoch; on the others the ensemble is most
    wrong now, see ``worst_frames``.

    Args:
        dataset: gives ``rows`` of a manifest and ``read(index)`` (uint8 [height, width, 3]).
        detections: columns of ``DetectionColumn``, pixels of the stored frames, by network; numbers only.
        thresholds: score from which a detection is drawn, by network, in the order of the panels.
        spread: number of frames that stay the same.
        worst: number of frames of the others.

    Returns:
        uint8, [height, width, 3], by tag.
    """
    frames: pd.DataFrame = dataset.rows
    fixed = np.unique(np.linspace(0, len(frames) - 1, min(spread, len(frames))).round().astype(int)).tolist()
    chosen = [(f"val_frames_spread/{number}", index, "") for number, index in enumerate(fixed, start=1)]
    ensemble = NetworkName.ENSEMBLE.value
    if worst and ensemble in thresholds:
        ranked = worst_frames(frames, detections[ensemble], thresholds[ensemble])
        others = [(index, reason) for index, reason in ranked if index not in fixed][:worst]
        chosen += [(f"val_frames_worst/{place}", *other) for place, other in enumerate(others, start=1)]
    figures = {}
    for tag, index, reason in chosen:
        row = frames.iloc[[index]]
        judged = {
            network: judge_frame(row, detections[network], threshold) for network, threshold in thresholds.items()
        }
        title = " · ".join(filter(None, [row["sample_id"].iloc[0], reason]))
        figures[tag] = draw_frame(dataset.read(index), read_frames(row).boxes, judged, title=title)
    return figures


def draw_frame(frame: Pixels, annotated: Floats, judged: Mapping[str, Judgement], *, title: str) -> Pixels:
    """Panels of one frame: all boxes in the colours of their networks, the annotation, then each network by itself.

    A panel of a network with an error has a red title.

    Args:
        frame: uint8, [height, width, 3].
        annotated: [boxes, 4], pixels of the frame.
        judged: by network.
        title: of the whole picture.

    Returns:
        uint8, [height, width, 3].
    """
    count = len(annotated)
    scale = _PANEL_PX / max(frame.shape[:2])
    size = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
    picture = Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)
    together = _panel(picture, "all boxes, in the colours of the squares", _TEXT)
    for name, judgement in judged.items():
        _draw_boxes(together, judgement.boxes[judgement.shown] * scale, _network_colour(name))
    annotation = _panel(picture, f"annotated: {count or 'no'} polyp{'s' * (count != 1)}", _TEXT)
    _draw_boxes(annotation, annotated * scale, _ANNOTATED)
    panels = [together, annotation]
    for name, judgement in judged.items():
        panel = _panel(picture, _verdict(name, judgement, count), _WRONG if judgement.wrong else _TEXT, network=name)
        _draw_boxes(panel, judgement.missed * scale, _ANNOTATED, dashed=True)
        colours = [_HIT if hit else _FALSE for hit in judgement.hits]
        for index in judgement.shown:
            _draw_boxes(panel, judgement.boxes[[index]] * scale, colours[index])
        for index in judgement.shown:
            _draw_score(panel, judgement.boxes[index] * scale, colours[index], judgement.scores[index])
        panels.append(panel)
    return _assemble(panels, title)


def _verdict(name: str, judgement: Judgement, annotated: int) -> str:
    false = int((~judgement.hits).sum())
    parts = [f"{annotated - len(judgement.missed)} of {annotated} found"] if annotated else []
    parts += [f"{false} false"] if false or not annotated else []
    return f"{name}: {', '.join(parts)}"


def _assemble(panels: list[Image.Image], title: str) -> Pixels:
    columns = min(_COLUMNS, len(panels))
    width, height = panels[0].width + _GAP_PX, panels[0].height + _GAP_PX
    lines = _legend_lines(columns * width)
    bottom = _LINE_PX + -(-len(panels) // columns) * height
    sheet = Image.new("RGB", (columns * width + _GAP_PX, bottom + len(lines) * _LINE_PX), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP_PX, 3), _shorten(title, sheet.width - 2 * _GAP_PX), fill=_TEXT, font=_font())
    for place, panel in enumerate(panels):
        sheet.paste(panel, (_GAP_PX + place % columns * width, _LINE_PX + place // columns * height))
    for number, line in enumerate(lines):
        left = float(_GAP_PX)
        for text, colour in line:
            draw.text((left, bottom + number * _LINE_PX + 1), text, fill=colour, font=_font())
            left += draw.textlength(text, font=_font()) + 3 * _GAP_PX
    return np.asarray(sheet)


def _legend_lines(width: int) -> list[list[tuple[str, Colour]]]:
    entries = [("annotated; dashed: missed", _ANNOTATED), ("found", _HIT), ("false alarm", _FALSE)]
    lines: list[list[tuple[str, Colour]]] = [[]]
    left = 0.0
    for text, colour in entries:
        needed = _font().getlength(text) + 3 * _GAP_PX
        if lines[-1] and left + needed > width:
            lines.append([])
            left = 0.0
        lines[-1].append((text, colour))
        left += needed
    return lines


def _panel(picture: Image.Image, title: str, colour: Colour, *, network: str | None = None) -> Image.Image:
    """The frame below a title; of a network with a square in its colour before it."""
    panel = Image.new("RGB", (picture.width, picture.height + _LINE_PX), _BACKGROUND)
    panel.paste(picture, (0, _LINE_PX))
    draw = ImageDraw.Draw(panel)
    left = 1
    if network is not None:
        draw.rectangle([1, 5, 11, 15], fill=_network_colour(network))
        left = 16
    draw.text((left, 3), _shorten(title, picture.width - left), fill=colour, font=_font())
    return panel


def _network_colour(name: str) -> Colour:
    """As in figures on a dark ground."""
    colour = network_colour(name)
    red, green, blue = ImageColor.getrgb(ON_DARK.get(colour, colour))[:3]
    return red, green, blue


def _draw_boxes(panel: Image.Image, boxes: Floats, colour: Colour, *, dashed: bool = False) -> None:
    draw = ImageDraw.Draw(panel)
    for box in boxes:
        left, top, right, bottom = _edges(panel, box)
        corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
        for line_colour, width in (((0, 0, 0), 4), (colour, 2)):  # a dark rim keeps it visible on bright mucosa
            for start, end in pairwise(corners):
                _draw_line(draw, start, end, line_colour, width, dashed=dashed)


def _draw_score(panel: Image.Image, box: Floats, colour: Colour, score: float) -> None:
    """Above the box, or at its upper edge where there is no room."""
    draw = ImageDraw.Draw(panel)
    left, top, _, _ = _edges(panel, box)
    text = f"{score:.2f}"
    length = int(draw.textlength(text, font=_font())) + 4
    x = max(0, min(left - 1, panel.width - length))
    y = top - 17 if top - 17 >= _LINE_PX else top
    draw.rectangle([x, y, x + length, y + 16], fill=colour)
    draw.text((x + 2, y), text, fill=(0, 0, 0), font=_font())


def _edges(panel: Image.Image, box: Floats) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a box of the frame in its panel, below the title."""
    xmin, ymin, xmax, ymax = np.round(box).astype(int).tolist()
    right, bottom = min(xmax, panel.width) - 1, min(ymax + _LINE_PX, panel.height) - 1
    return max(min(xmin, right), 0), max(min(ymin + _LINE_PX, bottom), _LINE_PX), right, bottom


def _draw_line(
    draw: ImageDraw.ImageDraw, start: tuple[int, int], end: tuple[int, int], colour: Colour, width: int, *, dashed: bool
) -> None:
    length = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
    if not dashed or length == 0:
        draw.line([start, end], fill=colour, width=width)
        return
    step = ((end[0] - start[0]) / length, (end[1] - start[1]) / length)
    for first in range(0, length, 2 * _DASH_PX):
        last = min(first + _DASH_PX, length)
        ends = [(start[0] + step[0] * at, start[1] + step[1] * at) for at in (first, last)]
        draw.line(ends, fill=colour, width=width)


def _shorten(text: str, width: int) -> str:
    """Text that fits; the end is kept, because the end of a path tells frames apart."""
    if _font().getlength(text) <= width:
        return text
    while len(text) > 1 and _font().getlength("…" + text) > width:
        text = text[1:]
    return "…" + text


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=14)
