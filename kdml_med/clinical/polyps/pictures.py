"""Frames that a detector is wrong about, as small pictures: dashed where people annotated, solid where it detected."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from kdml_med.clinical.polyps.detections import DetectorEvaluation, main_network
from kdml_med.colonoscopy.sheet import ANNOTATED, inside
from kdml_med.data.frames import FrameDataset
from kdml_med.data.images import Pixels
from kdml_med.deploy.pictures.lettering import font
from kdml_med.deploy.polyps.annotate import FOUND
from kdml_med.errors import InputError
from kdml_med.handlers.tensorboard_frames import Judgement, judge_frame, worst_frames
from kdml_med.metrics.box_matching import finite, read_frames
from kdml_med.report.document import Gallery, Paragraph, Part, Thumbnail
from kdml_med.report.wording import network_words
from kdml_med.words import counted

MOST_FRAMES = 15
"""Of each evaluation."""
LEGEND = (
    "Dashed yellow, “missed”: annotated, and not found. Dashed yellow without a word: annotated, and found. Solid "
    "green with a score: a detection that finds an annotated polyp. Solid magenta with a score and “false”: a false "
    "alarm. A detection beside a polyp, or of another size (IoU below 0.5), counts as a false alarm, and that "
    "polyp as missed."
)
_SIDE_PX, _TEXT_PX, _DASH_PX, _LINE_PX = 400, 26, 14, 4  # a page shows them at half that size
_MOST_BOXES = 5
_FALSE, _RIM, _INK = (255, 90, 255), (0, 0, 0), (0, 0, 0)
_QUALITY = 82
_Box = tuple[int, int, int, int]


def picture_parts(judged: DetectorEvaluation) -> list[Part]:
    """Frames that the ensemble, or the only network, is most wrong about; or why they cannot be shown."""
    network = main_network(judged)
    if judged.frames is None:
        return [Paragraph(f"No pictures: {judged.without_frames}", f"{judged.title}.")]
    detections, threshold = judged.detections[network], judged.thresholds[network]
    if not finite(detections):
        return [
            Paragraph(f"No pictures: {network_words(network)} gives scores that are no numbers.", f"{judged.title}.")
        ]
    ranked = worst_frames(judged.frames, detections, threshold)
    if not ranked:
        return [Paragraph(f"The {network_words(network)} missed no polyp and gave no false alarm.", f"{judged.title}.")]
    shown = ranked[:MOST_FRAMES]
    try:
        dataset = _dataset(judged)
        items = [_thumbnail(judged, dataset, network, index) for index, _ in shown]
    except InputError as error:
        return [Paragraph(f"No pictures: {error}", f"{judged.title}.")]
    more = f", {len(shown)} of {len(ranked)} shown" if len(shown) < len(ranked) else ""
    title = (
        f"{judged.title}: {len(ranked)} frames with a missed polyp or a false alarm of the {network_words(network)} at "
        f"its threshold of {threshold:.3f}{more}, the worst first"
    )
    return [Gallery(items, title)]


def _thumbnail(judged: DetectorEvaluation, dataset: FrameDataset, network: str, index: int) -> Thumbnail:
    row = dataset.rows.iloc[[index]]
    judgement = judge_frame(row, judged.detections[network], judged.thresholds[network])
    image = draw_finding(dataset.read(index), read_frames(row).boxes, judgement)
    name, sequence = row["sample_id"].iloc[0], row["sequence_id"].iloc[0]
    where = name if name == sequence else f"{name}, sequence {sequence}"
    wrong = _wrong(judgement, len(read_frames(row).boxes))
    return Thumbnail(image, f"{where}\n{wrong}", f"Frame {where}: {wrong}.")


def _wrong(judgement: Judgement, annotated: int) -> str:
    """What is wrong in a frame, in words."""
    missed, false = len(judgement.missed), judgement.scores[~judgement.hits]
    parts = [f"{missed} of {annotated} missed"] if missed else []
    if len(false):
        parts.append(f"{counted(len(false), 'false alarm')}, {'' if len(false) == 1 else 'up to '}{false.max():.2f}")
    return "; ".join(parts)


def _dataset(judged: DetectorEvaluation) -> FrameDataset:
    """The evaluated frames as a dataset that reads their pixels, without choosing its rows again."""
    assert judged.frames is not None
    assert judged.evaluation.dataset is not None
    dataset = FrameDataset(judged.evaluation.dataset.folder)
    dataset.keep(pd.Index(dataset.rows["sample_id"]).get_indexer(pd.Index(judged.frames["sample_id"])))
    return dataset


def draw_finding(frame: Pixels, annotated: np.ndarray, judgement: Judgement) -> bytes:
    """A frame with its annotation and what was detected in it, as a JPEG file.

    Args:
        frame: uint8, [height, width, 3].
        annotated: float, [boxes, 4], pixels of the frame.
        judgement: of one network; at most ``_MOST_BOXES`` of its detections are drawn, the best.
    """
    scale = _SIDE_PX / max(frame.shape[:2])
    size = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
    picture = Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture)
    missed = {tuple(box) for box in judgement.missed.tolist()}
    shown = range(min(_MOST_BOXES, len(judgement.boxes)))
    found = [inside((judgement.boxes[index] * scale).tolist(), *size) for index in shown]
    colours = [FOUND if judgement.hits[index] else _FALSE for index in shown]
    for edges, colour in reversed(list(zip(found, colours, strict=True))):  # the best on top
        for width, line in ((_LINE_PX + 2, _RIM), (_LINE_PX, colour)):
            draw.rectangle(edges, outline=line, width=width)
    labels: list[tuple[list[int], str, tuple[int, int, int]]] = []
    for box in np.asarray(annotated, dtype=np.float64).tolist():
        edges = inside([side * scale for side in box], *size)
        _dashed(draw, edges)
        if tuple(box) in missed:
            labels.append((edges, "missed", ANNOTATED))
    for index, edges, colour in zip(shown, found, colours, strict=True):
        word = "" if judgement.hits[index] else " false"
        labels.append((edges, f"{judgement.scores[index]:.2f}{word}", colour))
    taken: list[_Box] = []
    for edges, text, colour in labels:  # when all boxes are there, whose lines would go through letters
        _label(draw, edges, text, colour, size, taken)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()


def _dashed(draw: ImageDraw.ImageDraw, edges: list[int]) -> None:
    """A dashed box, light on a dark rim, which keeps it visible on bright and on dark mucosa."""
    left, top, right, bottom = edges
    for width, colour in ((_LINE_PX + 2, _RIM), (_LINE_PX, ANNOTATED)):
        for start in range(left, right + 1, 2 * _DASH_PX):
            end = min(start + _DASH_PX, right)
            draw.line([(start, top), (end, top)], fill=colour, width=width)
            draw.line([(start, bottom), (end, bottom)], fill=colour, width=width)
        for start in range(top, bottom + 1, 2 * _DASH_PX):
            end = min(start + _DASH_PX, bottom)
            draw.line([(left, start), (left, end)], fill=colour, width=width)
            draw.line([(right, start), (right, end)], fill=colour, width=width)


def _label(
    draw: ImageDraw.ImageDraw,
    edges: list[int],
    text: str,
    colour: tuple[int, int, int],
    size: tuple[int, int],
    taken: list[_Box],
) -> None:
    """Beside its box where the picture has room and no other label stands; ``taken`` gets its place."""
    letters = font(_TEXT_PX, bold=True)
    length, height = round(letters.getlength(text)) + 8, _TEXT_PX + 5
    left, top, right, bottom = edges
    beginnings = (left, right - length)
    heights = (bottom + 1, top - height, bottom - height, top)  # below, above, and inside at either end
    places = [(x, y) for y in heights for x in beginnings if y >= 0 and y + height <= size[1]] or [(left, 0)]
    boxes = [_placed(x, y, length, height, size[0]) for x, y in places]
    place = next((one for one in boxes if not any(_overlap(one, other) for other in taken)), boxes[0])
    taken.append(place)
    draw.rectangle(place, fill=colour, outline=_RIM)
    draw.text((place[0] + 4, place[1] + 1), text, fill=_INK, font=letters)


def _placed(x: int, y: int, length: int, height: int, width: int) -> _Box:
    """A label moved into the picture from the left and the right."""
    start = max(0, min(x, width - length))
    return (start, y, start + length - 1, y + height - 1)


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]
