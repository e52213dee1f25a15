"""Contact sheets of frames with what was found and what is annotated: missed polyps first, then false alarms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from kdml_med.colonoscopy.boxes import Box
from kdml_med.colonoscopy.field import Image
from kdml_med.colonoscopy.sheet import (
    ANNOTATED,
    BRIGHT,
    CELL_PX,
    COLUMNS,
    MARGIN_PX,
    Cell,
    draw_box,
    jpeg_bytes,
    new_sheet,
)
from kdml_med.deploy.polyps.annotate import FOUND, Detected
from kdml_med.storage.files import write_atomically
from kdml_med.words import RESEARCH_ONLY

PAGE_FRAMES = 40
MOST_PAGES = 5
"""Of a dataset with labels; without any there is one page."""

_LEAST_COLUMNS = 3
_LINE_PX, _FONT_PX = 20, 14
_GREY = (170, 170, 170)
_MISSED, _FALSE = (255, 110, 110), (255, 170, 60)


@dataclass(frozen=True)
class SheetFrame:
    """A frame and how it was judged.

    Attributes:
        position: in the dataset.
        sample_id: its name.
        sequence_id: what it belongs to.
        boxes: annotated, pixels of the stored frame.
        missed: of each annotated box, whether the network missed it.
        detected: with a score of at least the threshold, likewise.
        best: highest score of any detection, 0 without one.
        false: detections that found nothing; None where the frame is not labelled.
    """

    position: int
    sample_id: str
    sequence_id: str
    boxes: tuple[Box, ...]
    missed: tuple[bool, ...]
    detected: tuple[Detected, ...]
    best: float
    false: int | None

    @property
    def group(self) -> int:
        """0 with a missed polyp, 1 with false alarms only, 2 else."""
        return 0 if any(self.missed) else 1 if self.false else 2

    @property
    def caption(self) -> tuple[str, tuple[int, int, int]]:
        """What a person reads below it, and in which colour."""
        best = f"best {self.best:.2f}" if self.best else "nothing detected"
        false = f"{self.false} false" if self.false else ""
        if self.false is None:
            return best, _GREY
        if any(self.missed):
            parts = [f"MISSED {sum(self.missed)} of {len(self.boxes)}", *([false] if false else []), best]
            return ", ".join(parts), _MISSED
        found = f"found {len(self.boxes)} of {len(self.boxes)}" if self.boxes else "no polyp"
        if self.false:
            return f"FALSE ALARM: {false}, {found}, {best}", _FALSE
        return f"{found}, {best}", FOUND if self.boxes else _GREY


def collect_frames(
    rows: pd.DataFrame,
    positions: Sequence[int],
    detected: Mapping[str, Sequence[Detected]],
    judged: pd.DataFrame,
    threshold: float,
) -> list[SheetFrame]:
    """Frames for a sheet, in the order in which they are shown.

    Missed polyps come first, then false alarms, then the rest. In each of the three, one frame of each sequence comes
    before a second one of any, because frames of a sequence are much alike; of a sequence, first what has most misses,
    then the best scores.

    Args:
        rows: of a manifest.
        positions: of the frames that are to be shown.
        detected: by sample_id, all of them, pixels of the stored frames.
        judged: of the same rows, from ``kdml_med.deploy.polyps.frames.judge_frames``.
        threshold: score from which a detection counts.
    """
    frames = []
    for position in positions:
        row, missed, false = rows.iloc[position], judged["missed_boxes"].iloc[position], judged["false"].iloc[position]
        found = detected.get(row["sample_id"], ())
        frames.append(
            SheetFrame(
                position,
                str(row["sample_id"]),
                str(row["sequence_id"]),
                tuple(tuple(map(float, box)) for box in (() if missed is None else row["boxes"])),  # type: ignore[misc]
                () if missed is None else tuple(missed),
                tuple(one for one in found if one.score >= threshold),
                max((one.score for one in found), default=0.0),
                None if pd.isna(false) else int(false),
            )
        )
    frames.sort(key=lambda frame: (frame.group, -sum(frame.missed), -frame.best, frame.position))
    counts: dict[tuple[int, str], int] = {}
    turns = []
    for frame in frames:
        key = (frame.group, frame.sequence_id)
        counts[key] = counts.get(key, 0) + 1
        turns.append((frame.group, counts[key], -sum(frame.missed), -frame.best, frame.position))
    order: npt.NDArray[np.intp] = np.lexsort(np.array(turns, dtype=np.float64).reshape(-1, 5).T[::-1])
    return [frames[place] for place in order]


def write_sheets(
    target: Path, dataset: Any, frames: Sequence[SheetFrame], *, network: str, threshold: float, warning: str = ""
) -> list[str]:
    """Draw pages of frames: detections green, annotated boxes yellow, missed ones with a red rim.

    Args:
        target: JPEG file of the first page; the second is "<stem>-2.jpg". Pages of earlier runs go.
        dataset: ``read(position)`` gives pixels, uint8, [height, width, 3].
        frames: from ``collect_frames``.
        network: whose detections they are.
        threshold: of that network.
        warning: for the head of every page.

    Returns:
        Names of the files.

    Raises:
        InputError: one cannot be written.
    """
    labelled = any(frame.false is not None for frame in frames)
    pages = min(-(-len(frames) // PAGE_FRAMES), MOST_PAGES if labelled else 1)
    names = [target.name if page == 0 else f"{target.stem}-{page + 1}{target.suffix}" for page in range(pages)]
    for page, name in enumerate(names):
        shown = frames[page * PAGE_FRAMES : (page + 1) * PAGE_FRAMES]
        words = [*_heading(frames, page, pages, network, threshold, labelled), *([warning] if warning else [])]
        write_atomically(target.with_name(name), _draw_page(dataset, shown, words, legend=labelled))
    for path in target.parent.glob(f"{target.stem}*{target.suffix}"):
        page_number = path.stem.removeprefix(target.stem).removeprefix("-")
        if path.name not in names and (page_number.isdecimal() or path == target):
            path.unlink()
    return names


def _heading(
    frames: Sequence[SheetFrame], page: int, pages: int, network: str, threshold: float, labelled: bool
) -> Iterator[str]:
    yield f"{RESEARCH_ONLY} · {network}, scores from {threshold:.2f}"
    first, last = page * PAGE_FRAMES + 1, min((page + 1) * PAGE_FRAMES, len(frames))
    left = len(frames) - min(pages * PAGE_FRAMES, len(frames))
    rest = f" ({left:,} more are in frames.csv only)" if left else ""
    yield f"page {page + 1} of {pages}: frames {first:,} to {last:,} of {len(frames):,}{rest}"
    if labelled:
        counts = [sum(frame.group == group for frame in frames) for group in range(3)]
        yield (
            f"{counts[0]:,} frames with a missed polyp come first, then {counts[1]:,} with false alarms only, then the "
            f"{counts[2]:,} others; a box is found at an IoU of 0.5"
        )


def _draw_page(dataset: Any, frames: Sequence[SheetFrame], words: Sequence[str], *, legend: bool) -> bytes:
    columns = min(COLUMNS, max(_LEAST_COLUMNS, len(frames)))
    font = ImageFont.load_default(size=_FONT_PX)
    lines = [line for text in words for line in _wrapped(text, font, columns * (CELL_PX + MARGIN_PX) - 12)]
    top = _LINE_PX * (len(lines) + legend) + 10
    cells = [_draw_cell(dataset.read(frame.position), frame) for frame in frames]
    page = new_sheet(cells, top=top, least_columns=_LEAST_COLUMNS)
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        draw.text((6, 5 + number * _LINE_PX), line, fill=BRIGHT, font=font)
    if legend:
        _draw_legend(draw, 5 + len(lines) * _LINE_PX, font)
    return jpeg_bytes(page)


def _draw_legend(draw: ImageDraw.ImageDraw, y: int, font: Any) -> None:
    x = 6
    for text, colour, rim in (
        ("detected", FOUND, None),
        ("annotated", ANNOTATED, None),
        ("missed", ANNOTATED, _MISSED),
    ):
        draw.rectangle([x, y + 3, x + 14, y + 15], outline=colour, width=2)
        if rim is not None:
            draw.rectangle([x - 3, y, x + 17, y + 18], outline=rim, width=3)
        draw.text((x + 22, y), text, fill=BRIGHT, font=font)
        x += 44 + int(draw.textlength(text, font=font))


def _wrapped(text: str, font: Any, width: int) -> Iterator[str]:
    line = ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if line and font.getlength(longer) > width:
            yield line
            longer = word
        line = longer
    yield line


def _draw_cell(image: Image, frame: SheetFrame) -> Pillow.Image:
    cell = Cell(image)
    for box, missed in zip(frame.boxes, frame.missed, strict=True):
        edges = cell.edges(box)
        if missed:
            outer = [edges[0] - 4, edges[1] - 4, edges[2] + 4, edges[3] + 4]
            cell.draw.rectangle(outer, outline=_MISSED, width=3)
        draw_box(cell.draw, edges, 2, ANNOTATED)
    for one in frame.detected:
        draw_box(cell.draw, cell.edges(one.box), 2, FOUND)
    text, colour = frame.caption
    return cell.finish(frame.sample_id, text, colour, name_colour=BRIGHT, rim=frame.group < 2)
