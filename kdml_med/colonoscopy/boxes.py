"""Boxes around polyps in pixels, and the checks that they pass before a frame is used; pure functions, no files.

A box is [xmin, ymin, xmax, ymax], float, in pixels. The numbers are edges, not pixel numbers: the pixel in column c
covers c to c + 1, so an object in columns 3, 4 and 5 has xmin 3 and xmax 6, and xmax − xmin is its width. Every format
is brought to this on reading and back on writing (``kdml_med.colonoscopy.formats``):

    masks   components of touching pixels (corners count); a box is the half-open range of their rows and columns
    VOC     pixel numbers from 1, both included: xmin = n − 1, xmax = n
    COCO    left edge, top edge, width, height: edges already
    YOLO    centre and size as shares of the image, edge to edge
    table   edges, as here

Source:
    Everingham and Winn, "The PASCAL VOC Challenge Development Kit" (top left pixel is (1, 1)); the same reading in
    Detectron2's loader, ``detectron2/data/datasets/pascal_voc.py``. COCO: cocodataset.org/#format-data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from skimage.measure import label, regionprops

Box = tuple[float, float, float, float]
"""xmin, ymin, xmax, ymax; edges, pixels."""

ROUNDING_PX = 1.0
"""How far a box may reach out of its image before it counts as wrong: tools round."""


class FrameError(ValueError):
    """Why an image, a video or the boxes of a frame cannot be used; the text stands in failures.csv."""


@dataclass(frozen=True)
class FrameBoxes:
    """What annotations say about one image or video frame.

    Attributes:
        image: name of the image or video as the annotations give it.
        boxes: around polyps; empty for a frame that was looked at and shows none.
        relative: the boxes are shares of the image instead of pixels.
        classes: of each box, None where no class is given; empty when no box has one.
        polyps: name of the polyp in each box, None where unknown; empty when none has one.
        frame: number of the video frame, from 0.
        width: of the image that the boxes were drawn on, pixels; None when not stated.
        height: likewise.
        sequence: what the frame belongs to; None when not stated. So the next three.
        patient: whose it is.
        site: hospital.
        split: train, val or test.
        other_name: a second name that the annotations give the image; used when no input has the first one.
        mask: picture of the polyps that the boxes are still to be taken from; None where the boxes are known.
        place: where this stands, for messages, such as "row 7".
        problem: why the frame must not be used; None when everything could be read.
        stray: this may be no annotation at all, but notes among them; unless an input is named so, it does not count.
    """

    image: str
    boxes: tuple[Box, ...] = ()
    relative: bool = False
    classes: tuple[str | None, ...] = ()
    polyps: tuple[str | None, ...] = ()
    frame: int | None = None
    width: int | None = None
    height: int | None = None
    sequence: str | None = None
    patient: str | None = None
    site: str | None = None
    split: str | None = None
    other_name: str | None = None
    mask: Path | None = None
    place: str = ""
    problem: str | None = None
    stray: bool = False


@dataclass
class BoxTable:
    """Everything that was read from one source of annotations.

    Attributes:
        frames: one entry for each frame that is mentioned.
        problems: (place, reason) of what could not be tied to any frame.
        untied: places of boxes among them, which may belong to any frame of which nothing is said.
        columns: which of sequence, patient, site and split the source has.
    """

    frames: list[FrameBoxes] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    untied: list[str] = field(default_factory=list)
    columns: frozenset[str] = frozenset()


def check_boxes(frame: FrameBoxes, width: int, height: int) -> list[Box]:
    """Boxes of a frame in pixels of its image, clipped where rounding took them out of it.

    Args:
        frame: what the annotations say.
        width: of the image, pixels.
        height: of the image, pixels.

    Returns:
        Boxes as in ``frame``, [xmin, ymin, xmax, ymax], pixels.

    Raises:
        FrameError: a box is not finite, empty, inverted or outside the image, or was drawn on an image of another size.
            The message says which.
    """
    if frame.problem is not None:
        raise FrameError(frame.problem)
    stated = (frame.width or width, frame.height or height)
    if stated != (width, height):
        raise FrameError(
            f"its boxes are for an image of {stated[0]}×{stated[1]} pixels, but it has {width}×{height}: "
            "annotate this image, or bring the one that was annotated"
        )
    if not frame.relative and any(edge % 1 for box in frame.boxes for edge in box) and np.max(frame.boxes) <= 1:
        raise FrameError("its boxes have no coordinate over 1, as shares of the image have; expected pixels")
    factors = np.array([width, height, width, height]) if frame.relative else np.ones(4)
    limits = np.array([width, height, width, height], dtype=np.float64)
    checked: list[Box] = []
    for box in frame.boxes:
        edges = np.asarray(box, dtype=np.float64) * factors
        shown = "[" + ", ".join(f"{value:g}" for value in edges) + "]"
        if not np.isfinite(edges).all():
            raise FrameError(f"box {shown} has a coordinate that is not a number")
        if edges[0] >= edges[2] or edges[1] >= edges[3]:
            raise FrameError(f"box {shown} is empty or inverted: expected xmin < xmax and ymin < ymax")
        if (edges < -ROUNDING_PX).any() or (edges > limits + ROUNDING_PX).any():
            raise FrameError(f"box {shown} reaches out of the image of {width}×{height} pixels")
        inside = np.clip(edges, 0, limits)
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            raise FrameError(f"box {shown} lies outside the image of {width}×{height} pixels")
        checked.append((float(inside[0]), float(inside[1]), float(inside[2]), float(inside[3])))
    return checked


def keep_classes(frame: FrameBoxes, names: Sequence[str]) -> FrameBoxes:
    """The frame with boxes of the named classes only; all of them when no name is given.

    A box without a class makes the frame unusable, because it may be of any.
    """
    if not names or not frame.boxes:
        return frame
    if not all(frame.classes or (None,)):
        return replace(frame, problem=frame.problem or "a box has no class, so that it is open whether it is a polyp")
    wanted = {name.casefold() for name in names}
    kept = [i for i, name in enumerate(frame.classes) if name is not None and name.casefold() in wanted]
    return replace(
        frame,
        boxes=tuple(frame.boxes[i] for i in kept),
        classes=tuple(frame.classes[i] for i in kept),
        polyps=tuple(frame.polyps[i] for i in kept) if frame.polyps else (),
    )


def drop_twins(frame: FrameBoxes) -> FrameBoxes:
    """The frame with each box once: the same edges are the same polyp, however often they are given.

    Twins with different names of the polyp stay, since one of them is wrong.
    """
    polyps = frame.polyps or (None,) * len(frame.boxes)
    first = {key: i for i, key in reversed(list(enumerate(zip(frame.boxes, polyps, strict=True))))}
    kept = sorted(first.values())
    if len(kept) == len(frame.boxes):
        return frame
    return replace(
        frame,
        boxes=tuple(frame.boxes[i] for i in kept),
        classes=tuple(frame.classes[i] for i in kept) if frame.classes else (),
        polyps=tuple(frame.polyps[i] for i in kept) if frame.polyps else (),
    )


def boxes_of_mask(mask: npt.NDArray[np.bool_]) -> tuple[Box, ...]:
    """One box around each component of touching pixels, corners included; from top to bottom.

    Args:
        mask: [height, width], True on polyps.
    """
    regions = regionprops(label(mask, connectivity=2))
    # bbox is (first row, first column, row after the last, column after the last).
    return tuple((float(r.bbox[1]), float(r.bbox[0]), float(r.bbox[3]), float(r.bbox[2])) for r in regions)
