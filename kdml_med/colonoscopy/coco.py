"""COCO files: parsed JSON in, ``FrameBoxes`` out, and back; pure functions, no files."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kdml_med.colonoscopy.boxes import BoxTable, FrameBoxes
from kdml_med.colonoscopy.formats import TURNED, are_corners, drop_empty_names, is_turned, read_side
from kdml_med.errors import InputError


def parse_coco(content: Any, where: str) -> BoxTable:
    """Frames of COCO annotations; an image without annotations is a frame without polyps.

    ``file_name`` names the image, or "<video>/<number>" a frame of a video.

    Args:
        content: of the JSON file.
        where: the file, for messages.

    Ids are compared as text, so that 7, 7.0 and "7" are one id. Where an annotation belongs to no image, images without
    one are no negatives: it may be theirs.

    Raises:
        InputError: it has no lists of images and annotations.
    """
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "annotations")):
        raise InputError(f"{where} is not COCO: expected an object with the lists images and annotations.")
    kinds = content.get("categories")
    names = _read_categories(kinds if isinstance(kinds, list) else [])
    result = BoxTable()
    frames: dict[str, FrameBoxes] = {}
    for place, image in enumerate(content["images"]):
        key = _read_id(image.get("id")) if isinstance(image, dict) else None
        name = image.get("file_name") if isinstance(image, dict) else None
        if not isinstance(name, str) or not name.strip():
            result.problems.append((where, f"images[{place}] has no file_name"))
            continue
        if key is None:
            problem = f"images[{place}]: its id is {reprlib.repr(image.get('id'))}, expected a number or text"
            result.frames.append(FrameBoxes(name, place=f"images[{place}]", problem=problem))
            continue
        new = _read_coco_image(image, name, f"image id {key}")
        if key in frames:
            problem = f"two images have the id {key}, so that it is open whose the boxes are"
            result.frames.append(replace(new, problem=problem))  # the first of them gets it in frames
            new = replace(frames[key], problem=problem)
        frames[key] = new
    for place, found in enumerate(content["annotations"]):
        key = _read_id(found.get("image_id")) if isinstance(found, dict) else None
        if key not in frames or key is None:
            given = reprlib.repr(found.get("image_id") if isinstance(found, dict) else found)
            result.problems.append((where, f"annotations[{place}]: no image has its image_id {given}"))
            result.untied.append(f"annotations[{place}]")
            continue
        frames[key] = _add_coco_box(frames[key], found, f"annotations[{place}]", names)
    if result.untied:
        doubt = f"no annotation is its own, but {result.untied[0]} belongs to no image and may be; correct its image_id"
        frames = {key: frame if frame.boxes else _with_problem(frame, doubt) for key, frame in frames.items()}
    if are_corners(frames.values()):
        doubt = (
            "the boxes of this file reach out of their images as [x, y, width, height], but not as corners; correct it"
        )
        frames = {key: _with_problem(frame, doubt) if frame.boxes else frame for key, frame in frames.items()}
    result.frames += [drop_empty_names(frame) for frame in frames.values()]
    return result


def _with_problem(frame: FrameBoxes, problem: str) -> FrameBoxes:
    """The frame with a reason not to use it, unless it has one."""
    return replace(frame, problem=frame.problem or problem)


def _read_categories(kinds: Sequence[Any]) -> dict[str, str]:
    """Names of the categories; where one id has two names, it has none, and nothing fits it."""
    names: dict[str, str] = {}
    unclear: set[str] = set()
    for item in kinds:
        key = _read_id(item.get("id")) if isinstance(item, dict) else None
        if key is not None and names.setdefault(key, str(item.get("name"))) != str(item.get("name")):
            unclear.add(key)
    return {key: name for key, name in names.items() if key not in unclear}


def _read_id(value: Any) -> str | None:
    """An id as text; None where there is none."""
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return str(int(value) if value == value // 1 else value)


def _read_coco_image(image: Mapping[str, Any], name: str, place: str) -> FrameBoxes:
    frame = FrameBoxes(name, place=place)
    try:
        sides = [read_side(float(image.get(side) or 0)) for side in ("width", "height")]
    except (TypeError, ValueError, OverflowError):
        given = reprlib.repr((image.get("width"), image.get("height")))
        return replace(frame, problem=f"{place} states the size {given}, expected whole numbers of pixels")
    return replace(frame, width=sides[0], height=sides[1])


def _add_coco_box(frame: FrameBoxes, found: Mapping[str, Any], place: str, names: Mapping[str, str]) -> FrameBoxes:
    given = found.get("bbox")
    try:
        x, y, width, height = (float(value) for value in (given if isinstance(given, list) else ()))
    except (TypeError, ValueError, OverflowError):
        return _with_problem(frame, f"{place}: bbox is {reprlib.repr(given)}, expected [x, y, width, height]")
    if any(found.get(mark) not in (None, 0, "0", "") for mark in ("iscrowd", "ignore")):
        return _with_problem(frame, f"{place} marks a crowd or what is to be ignored, not one polyp; draw boxes")
    more = found.get("attributes")
    if isinstance(more, dict) and is_turned(more.get("rotation")):
        return _with_problem(frame, f"{place} is a turned box: {TURNED}")
    kind = _read_id(found.get("category_id"))
    if found.get("category_id") is not None and names and kind not in names:
        given = reprlib.repr(found["category_id"])
        return _with_problem(frame, f"{place}: no category, or several, have its category_id {given}")
    box = (x, y, x + width, y + height)
    return replace(frame, boxes=(*frame.boxes, box), classes=(*frame.classes, names.get(kind or "")))


def format_coco(frames: Iterable[FrameBoxes]) -> dict[str, Any]:
    """COCO content that ``parse_coco`` reads back; boxes without a class are polyps."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories: dict[str, int] = {}
    for frame in frames:
        image = {"id": len(images) + 1, "file_name": frame.image, "width": frame.width, "height": frame.height}
        images.append({name: value for name, value in image.items() if value is not None})
        for i, (xmin, ymin, xmax, ymax) in enumerate(frame.boxes):
            name = (frame.classes[i] if frame.classes else None) or "polyp"
            box = [xmin, ymin, xmax - xmin, ymax - ymin]
            kind = categories.setdefault(name, len(categories) + 1)
            entry = {"id": len(annotations) + 1, "image_id": len(images), "category_id": kind, "iscrowd": 0}
            annotations.append(entry | {"bbox": box, "area": box[2] * box[3]})
    kinds = [{"id": number, "name": name} for name, number in categories.items()]
    return {"images": images, "annotations": annotations, "categories": kinds}
