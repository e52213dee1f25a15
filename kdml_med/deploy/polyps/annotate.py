"""Detections to look at: frames and videos with boxes drawn in."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import av.error
import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from kdml_med.colonoscopy.boxes import Box, FrameError
from kdml_med.colonoscopy.field import Image
from kdml_med.colonoscopy.sheet import ANNOTATED, draw_box, inside
from kdml_med.colonoscopy.video import (
    VideoCutShortError,
    is_video,
    iterate_video,
    only_stream,
    open_video,
    read_note,
    write_video,
)
from kdml_med.storage.files import source_fingerprint
from kdml_med.words import RESEARCH_ONLY

FOUND = (0, 255, 150)

_LEAST_PX = 480  # a picture is enlarged until its longest side has this, so that text can be read
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
    """Size of an image or of the frames of a video, as they are shown.

    Raises:
        FrameError: it is no video any more, or cannot be opened.
        OSError: likewise of an image.
    """
    if is_video(path):
        _, first = next(iterate_video(path, 0))
        return SourceSize(first.shape[1], first.shape[0])
    with Pillow.open(path) as image:
        return SourceSize(*image.size)


def sampled_rate(path: Path, fps: float) -> Fraction:
    """Frames per second that ``iterate_video`` gives out on average: ``fps``, or all that the video has.

    Raises:
        FrameError: it is no video, or cannot be opened.
    """
    try:
        with open_video(path) as container:
            rate = only_stream(container).average_rate or _USUAL_RATE
    except (av.error.FFmpegError, OSError) as error:
        raise FrameError(f"cannot be opened as a video: {error.strerror or error}") from error
    return min(rate, Fraction(fps).limit_denominator(1000)) if fps > 0 else Fraction(rate)


def draw_detections(image: Image, detected: Iterable[Detected], footer: str, annotated: Iterable[Box] = ()) -> Image:
    """A frame with boxes and scores, and below it a line of text.

    Args:
        image: uint8, [height, width, 3], RGB; a small one is enlarged by a whole factor.
        detected: in its pixels.
        footer: follows the words that this is research only; shortened where there is no room.
        annotated: boxes, likewise; yellow and below the others.

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
    edges = [inside([side * factor for side in one.box], width, height) for one in ordered]
    for truth in annotated:
        draw_box(draw, inside([side * factor for side in truth], width, height), line, ANNOTATED)
    for box in edges:
        draw_box(draw, box, line, FOUND)
    for one, box in zip(ordered, edges, strict=True):
        _draw_score(draw, box, f"{one.score:.2f}", font, width)
    text = f"{RESEARCH_ONLY} · {footer}"
    while len(text) > len(RESEARCH_ONLY) and draw.textlength(text, font=font) > width - 8:
        text = text[:-1]
    draw.text((4, height + 3), text, fill=(235, 235, 235), font=font)
    return np.asarray(canvas)


def _draw_score(draw: ImageDraw.ImageDraw, box: list[int], text: str, font: Any, width: int) -> None:
    """Above the box, or inside at its upper edge where there is no room."""
    length, height = int(draw.textlength(text, font=font)) + 6, int(font.size) + 4
    x = max(0, min(box[0], width - length))
    y = box[1] - height if box[1] >= height else box[1]
    draw.rectangle([x, y, x + length - 1, y + height - 1], fill=FOUND)
    draw.text((x + 3, y), text, fill=(0, 0, 0), font=font)


def write_annotated_video(
    target: Path,
    video: Path,
    fps: float,
    detected: Mapping[int, Sequence[Detected]],
    footer: str,
    *,
    annotated: Mapping[int, Sequence[Box]] | None = None,
    on_frame: Callable[[], object] = lambda: None,
) -> None:
    """Write the frames of a video that ``iterate_video`` gives out, with the boxes that were found in them.

    A video that is cut short gives the frames up to there. The same input gives the same bytes on the same machine, and
    a file that was made of the same input is left as it is: the note in its metadata says so.

    Args:
        target: MP4 file; written atomically.
        video: the source.
        fps: as given to ``iterate_video``.
        detected: by number of the frame, pixels of the source; a frame without detections need not be there.
        footer: see ``draw_detections``; the number of the frame is added.
        annotated: boxes, likewise.
        on_frame: called after each frame; not at all where the file is left as it is.

    Raises:
        FrameError: the source is no video.
    """
    boxes = [[int(number), [[*map(float, one.box), float(one.score)] for one in of]] for number, of in detected.items()]
    known = [[int(number), [[*map(float, box)] for box in of]] for number, of in (annotated or {}).items()]
    libraries = [version(name) for name in ("kdml_med", "av", "pillow")]
    content = [str(source_fingerprint(video, video.name)), fps, footer, boxes, known, libraries]
    note = f"{RESEARCH_ONLY}. {footer}. {hashlib.sha256(json.dumps(content).encode()).hexdigest()}"
    if read_note(target) == note:
        return

    def drawn() -> Iterator[Image]:
        with contextlib.suppress(VideoCutShortError):
            for number, image in iterate_video(video, fps):
                truth = (annotated or {}).get(number, ())
                yield draw_detections(image, detected.get(number, ()), f"{footer} · frame {number}", truth)
                on_frame()

    write_video(target, drawn(), rate=sampled_rate(video, fps), preset="veryfast", note=note)
