"""Detections to look at: videos with boxes drawn in, and a contact sheet of frames."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from kdml_med.colonoscopy.boxes import Box
from kdml_med.colonoscopy.contact_sheet import CONTACT_SHEET_FILE, write_contact_sheet
from kdml_med.colonoscopy.field import Image
from kdml_med.colonoscopy.video import (
    VIDEO_SUFFIXES,
    VideoCutShortError,
    iterate_video,
    only_stream,
    open_video,
    write_video,
)
from kdml_med.storage.files import naming

SHEET_FRAMES = 40
RESEARCH_ONLY = "Research only, not for diagnosis"

_FOUND = (0, 255, 150)  # annotated boxes are yellow on every contact sheet
_RIM = (0, 0, 0)  # keeps a line visible on bright mucosa
_LEAST_PX = 480  # a picture is enlarged until its longest side has this, so that text can be read
_SHEET_CELL_PX = 240
_USUAL_RATE = Fraction(25)


class Detected(NamedTuple):
    """A box that a network drew."""

    box: Box
    score: float


class SourceSize(NamedTuple):
    """Pixels of an image or of the frames of a video."""

    width: int
    height: int


def source_size(path: Path) -> SourceSize:
    """Size of an image or of the frames of a video, as they are shown; the file must be one that could be read."""
    if path.suffix.lower() in VIDEO_SUFFIXES:
        _, first = next(iterate_video(path, 0))
        return SourceSize(first.shape[1], first.shape[0])
    with Pillow.open(path) as image:
        return SourceSize(*image.size)


def sampled_rate(path: Path, fps: float) -> Fraction:
    """Frames per second that ``iterate_video`` gives out on average: ``fps``, or all that the video has."""
    with open_video(path) as container:
        rate = only_stream(container).average_rate or _USUAL_RATE
    return min(rate, Fraction(fps).limit_denominator(1000)) if fps > 0 else Fraction(rate)


def draw_detections(image: Image, detected: Iterable[Detected], footer: str) -> Image:
    """A frame with boxes and scores, and below it a line of text.

    Args:
        image: uint8, [height, width, 3], RGB; a small one is enlarged by a whole factor.
        detected: in its pixels.
        footer: follows the words that this is research only; shortened where there is no room.

    Returns:
        uint8, [height, width, 3], both sides even as video codecs want them.
    """
    factor = -(-_LEAST_PX // max(image.shape[:2]))
    height, width = image.shape[0] * factor, image.shape[1] * factor
    text_px = max(12, round(max(height, width) / 45))
    strip = text_px + 8
    canvas = Pillow.new("RGB", (width + width % 2, height + strip + (height + strip) % 2))
    canvas.paste(Pillow.fromarray(image).resize((width, height), Pillow.Resampling.BILINEAR))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=text_px)
    line = max(2, round(max(height, width) / 300))
    ordered = sorted(detected, key=lambda one: one.score)  # the best on top
    edges = [_inside([side * factor for side in one.box], width, height) for one in ordered]
    for box in edges:
        _draw_box(draw, box, line)
    for one, box in zip(ordered, edges, strict=True):
        _draw_score(draw, box, f"{one.score:.2f}", font, width)
    text = f"{RESEARCH_ONLY} · {footer}"
    while len(text) > len(RESEARCH_ONLY) and draw.textlength(text, font=font) > width - 8:
        text = text[:-1]
    draw.text((4, height + 3), text, fill=(235, 235, 235), font=font)
    return np.asarray(canvas)


def _inside(box: Sequence[float], width: int, height: int) -> list[int]:
    """First and last pixel of a box, as Pillow wants it: xmin, ymin, xmax, ymax."""
    xmin, ymin, xmax, ymax = (round(edge) for edge in box)
    left, top = min(max(xmin, 0), width - 1), min(max(ymin, 0), height - 1)
    return [left, top, max(left, min(xmax, width) - 1), max(top, min(ymax, height) - 1)]


def _draw_box(draw: ImageDraw.ImageDraw, box: list[int], line: int) -> None:
    left, top, right, bottom = box
    draw.rectangle([left - 1, top - 1, right + 1, bottom + 1], outline=_RIM, width=1)
    draw.rectangle(box, outline=_FOUND, width=line)
    if right - left > 2 * line and bottom - top > 2 * line:
        draw.rectangle([left + line, top + line, right - line, bottom - line], outline=_RIM, width=1)


def _draw_score(draw: ImageDraw.ImageDraw, box: list[int], text: str, font: Any, width: int) -> None:
    """Above the box, or inside at its upper edge where there is no room."""
    length, height = int(draw.textlength(text, font=font)) + 6, int(font.size) + 4
    x = max(0, min(box[0], width - length))
    y = box[1] - height if box[1] >= height else box[1]
    draw.rectangle([x, y, x + length - 1, y + height - 1], fill=_FOUND)
    draw.text((x + 3, y), text, fill=(0, 0, 0), font=font)


def write_annotated_video(
    target: Path, video: Path, fps: float, detected: Mapping[int, Sequence[Detected]], footer: str
) -> int:
    """Write the frames of a video that ``iterate_video`` gives out, with the boxes that were found in them.

    A video that is cut short gives the frames up to there. The same input gives the same bytes on the same machine.

    Args:
        target: MP4 file; written atomically.
        video: the source.
        fps: as given to ``iterate_video``.
        detected: by number of the frame, pixels of the source; a frame without detections need not be there.
        footer: see ``draw_detections``; the number of the frame is added.

    Returns:
        How many frames were written.

    Raises:
        FrameError: the source is no video.
    """

    def drawn() -> Iterator[Image]:
        with contextlib.suppress(VideoCutShortError):
            for number, image in iterate_video(video, fps):
                yield draw_detections(image, detected.get(number, ()), f"{footer} · frame {number}")

    return write_video(target, drawn(), rate=sampled_rate(video, fps))


def write_detection_sheet(
    target: Path, dataset: Any, positions: Sequence[int], detected: Mapping[str, Sequence[Detected]], threshold: float
) -> None:
    """Draw frames as a contact sheet: detections in green, and in yellow the annotation where there is one.

    Args:
        target: JPEG file.
        dataset: gives ``rows`` of a manifest and ``read(position)`` (uint8, [height, width, 3]).
        positions: of the frames, in the order in which they are drawn; see ``choose_frames``.
        detected: by sample_id, all of them, pixels of the stored frames.
        threshold: score from which a detection is drawn.
    """
    if not positions:
        target.unlink(missing_ok=True)
        return
    with naming(target):
        _draw_sheet(target, dataset, positions, detected, threshold)


def _draw_sheet(
    target: Path,
    dataset: Any,
    positions: Sequence[int],
    detected: Mapping[str, Sequence[Detected]],
    threshold: float,
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # A contact sheet is drawn from a dataset folder: here is one, with the detections drawn into its frames.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".sheet-") as name:
        folder, cells = Path(name), []
        with (folder / "frames").open("wb") as stream:
            for position in positions:
                row = dataset.rows.iloc[position]
                found = detected.get(row["sample_id"], ())
                data = _with_boxes(dataset.read(position), [one.box for one in found if one.score >= threshold])
                cells.append(
                    {
                        "sample_id": row["sample_id"],
                        "label": _describe(row["label"], found),
                        "boxes": [] if row["boxes"] is None else row["boxes"],
                        "shard": "frames",
                        "offset": stream.tell(),
                        "size": len(data),
                    }
                )
                stream.write(data)
        write_contact_sheet(folder, pd.DataFrame(cells))
        (folder / CONTACT_SHEET_FILE).replace(target)


def choose_frames(
    rows: pd.DataFrame, detected: Mapping[str, Sequence[Detected]], *, at_most: int = SHEET_FRAMES
) -> list[int]:
    """Positions of the frames with the highest scores, one of each sequence before a second one of any.

    Frames of a sequence are much alike, so that the best of all would often be one picture many times.

    Args:
        rows: of a manifest.
        detected: by sample_id.
        at_most: how many to choose.
    """
    best = np.array([max((one.score for one in detected.get(name, ())), default=0.0) for name in rows["sample_id"]])
    scores = pd.Series(best, index=rows.index)
    place = scores.groupby(rows["sequence_id"]).rank(method="first", ascending=False).to_numpy()
    order: npt.NDArray[np.intp] = np.lexsort((np.arange(len(rows)), -best, place))
    return [int(position) for position in order[:at_most]]


def _with_boxes(image: Image, boxes: Sequence[Box]) -> bytes:
    """PNG file of a frame with the boxes that were found."""
    picture = Pillow.fromarray(image)
    draw = ImageDraw.Draw(picture)
    line = max(1, round(2 * max(picture.size) / _SHEET_CELL_PX))
    for box in boxes:
        _draw_box(draw, _inside(box, picture.width, picture.height), line)
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _describe(label: str | None, found: Sequence[Detected]) -> str:
    best = f"best score {max(one.score for one in found):.2f}" if found else "nothing found"
    return f"{best}, annotated {label}" if isinstance(label, str) else best
