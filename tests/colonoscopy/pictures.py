"""Endoscope-like pictures, videos and annotation folders with known truth, for tests."""

from __future__ import annotations

from collections.abc import Collection
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw


def octagon(width: int, height: int, field: tuple[int, int, int, int], cut: int) -> np.ndarray:
    """[height, width] bool: a rectangle xmin, ymin, xmax, ymax with its corners cut off."""
    y, x = np.mgrid[:height, :width]
    xmin, ymin, xmax, ymax = field
    inside = (x >= xmin) & (x < xmax) & (y >= ymin) & (y < ymax)
    for left, top in ((True, True), (True, False), (False, True), (False, False)):
        dx = x - xmin if left else xmax - 1 - x
        dy = y - ymin if top else ymax - 1 - y
        inside &= dx + dy >= cut
    return inside


def frame(
    width: int = 200,
    height: int = 160,
    field: tuple[int, int, int, int] = (30, 10, 190, 150),
    *,
    cut: int = 30,
    border: int = 0,
    seed: int = 0,
    text: tuple[int, int] | None = None,
) -> np.ndarray:
    """uint8 [height, width, 3]: mucosa-like noise in an octagon; ``text`` is the place of white letters."""
    rng = np.random.default_rng(seed)
    picture = np.full((height, width, 3), border, np.uint8)
    inside = octagon(width, height, field, cut)
    picture[inside] = np.clip(rng.normal((190, 110, 90), 12, (int(inside.sum()), 3)), 90, 255).astype(np.uint8)
    if text is not None:
        image = Image.fromarray(picture)
        ImageDraw.Draw(image).text(text, "ID 7", fill=(255, 255, 255))
        picture = np.array(image)
    return picture


def save(path: Path, picture: np.ndarray | None = None, **how: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    quality = {"quality": 95} if path.suffix in (".jpg", ".jpeg") else {}
    Image.fromarray(frame(**how) if picture is None else picture).save(path, **quality)
    return path


def save_mask(path: Path, boxes: list[tuple[int, int, int, int]], size: tuple[int, int] = (200, 160)) -> Path:
    """White rectangles on black; size is (width, height)."""
    mask = np.zeros((size[1], size[0]), np.uint8)
    for xmin, ymin, xmax, ymax in boxes:
        mask[ymin:ymax, xmin:xmax] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)
    return path


def save_video(
    path: Path,
    frames: int = 50,
    rate: int = 25,
    size: tuple[int, int] = (96, 64),
    *,
    codec: str = "mpeg4",
    b_frames: bool = False,
    dropped: Collection[int] = (),
    start: int = 0,
    turn: float = 0,
    title: str = "",
    **how: object,
) -> Path:
    """A video whose frame k has brightness 40 + 4 k (mod 200), so that its number can be read off.

    ``dropped`` frames leave a gap in time, ``start`` frames one before the first; ``turn`` is by how many degrees
    players turn the picture, to the left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", **how) as container:
        container.metadata["title"] = title
        stream = container.add_stream(codec, rate=rate, options={"bf": "2", "g": "12"} if b_frames else {})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *size, "yuv420p", 4_000_000
        stream.codec_context.time_base = Fraction(1, rate)
        if turn:
            stream.set_display_rotation(turn)
        for number in range(frames):
            if number in dropped:
                continue
            level = 40 + 4 * number % 200
            noise = np.random.default_rng(number).integers(0, 40, (size[1], size[0], 1))
            picture = np.broadcast_to(np.clip(level + noise - 20, 0, 255), (size[1], size[0], 3)).astype(np.uint8)
            shown = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            shown.pts, shown.time_base = start + number, Fraction(1, rate)
            for packet in stream.encode(shown):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def number_of(picture: np.ndarray) -> int:
    """Number of a frame of ``save_video``, below 50."""
    return round((float(picture.mean()) - 39.5) / 4)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
