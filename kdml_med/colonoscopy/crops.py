"""The crops of some frames of a dataset: settings, and one shard of tiles from one of frames."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from kdml_med.colonoscopy.boxes import Box, FrameError
from kdml_med.colonoscopy.field import Image, Mask, field_mask
from kdml_med.colonoscopy.frames import encode_image
from kdml_med.colonoscopy.near_duplicates import NEAR_BITS
from kdml_med.colonoscopy.options import FrameOptions
from kdml_med.colonoscopy.windows import Window, mucosa_windows, paired_windows
from kdml_med.errors import InputError
from kdml_med.storage.files import not_alone
from kdml_med.storage.manifest import SHARDS_DIR, DatasetKind, read_member
from kdml_med.storage.shards import FailuresRecord, Origin, ShardWriter, shard_path, write_record

CROP_CLASSES = ("mucosa", "polyp")
"""The positive one last."""
MUCOSA, POLYP = CROP_CLASSES


@dataclass(frozen=True)
class CropOptions:
    """Settings of the cutting of crops.

    Attributes:
        size_px: side of a stored crop, pixels.
        per_polyp: pairs of windows for each polyp, one around it and one as large on mucosa of the frame; around the
            polyp, the first is in its middle, others are shifted and up to 1.3 times as wide.
        per_frame: windows on mucosa in each frame without polyps, at most.
        margin: on each side of a polyp, as a share of the longer side of its box.
        smallest_px: side of a window in the frame, pixels, at least; None for half of ``size_px``, so that nothing is
            enlarged more than twice.
        left_out: rectangles of every frame that do not count as field of view, left, top, right and bottom as shares of
            width and height: where text is burned in.
        near_bits: bits in which the perceptual hashes of two frames may differ and still count as the same view.
        image_format: "jpeg" or "png".
        jpeg_quality: 1 to 100; colour is never subsampled.
        seed: of all choices; those of a frame depend on its name and the seed alone.
    """

    size_px: int = 96
    per_polyp: int = 2
    per_frame: int = 4
    margin: float = 0.1
    smallest_px: int | None = None
    left_out: tuple[tuple[float, float, float, float], ...] = ()
    near_bits: int = NEAR_BITS
    image_format: str = "jpeg"
    jpeg_quality: int = 97
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that make no sense.

        Raises:
            InputError: naming the option, its value and what is expected.
        """
        ranges: list[tuple[str, float | None, float, float]] = [
            ("size", self.size_px, 8, 2048),
            ("per-polyp", self.per_polyp, 1, 100),
            ("per-frame", self.per_frame, 1, 100),
            ("margin", self.margin, 0, 2),
            ("smallest", self.smallest_px, 4, 4096),
            ("near-duplicates", self.near_bits, 0, 127),
            ("jpeg-quality", self.jpeg_quality, 1, 100),
            ("seed", self.seed, 0, 2**63 - 1),
        ]
        for name, value, low, high in ranges:
            if value is not None and not low <= value <= high:
                raise InputError(f"--{name} is {value}, expected {low} to {high}.")
        for left, top, right, bottom in self.left_out:
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
                raise InputError(
                    f"--leave-out is {left:g},{top:g},{right:g},{bottom:g}, expected left, top, right and bottom as "
                    "shares of the frame, 0 to 1, such as 0,0.15,0.2,0.7."
                )

    @property
    def smallest(self) -> int:
        """Side of the smallest window, pixels of the frame."""
        return self.smallest_px or max(1, self.size_px // 2)


@dataclass(frozen=True)
class CropJob:
    """Frames of one shard, and where they are.

    Attributes:
        name: of the shard, here and there.
        root: folder that its path starts from.
        frames: rows of the manifest of frames, by column.
        sides: of windows around polyps all over the dataset, pixels; those of frames without polyps are drawn from
            them.
        origin: what tells shard and rows from others.
    """

    name: str
    root: Path
    frames: tuple[Mapping[str, Any], ...]
    sides: tuple[int, ...]
    origin: Origin = field(default_factory=Origin)

    @property
    def facts(self) -> str:
        """Changes with whatever decides the crops beside pixels and options; SHA-256, hexadecimal."""
        return hashlib.sha256(json.dumps([self.frames, self.sides], default=str).encode()).hexdigest()


@dataclass
class CropsRecord(FailuresRecord):
    """What is known about a shard of crops beside its rows.

    Attributes:
        places: left edge, top edge and side of each crop in its frame, pixels, by sample_id.
        unpaired: windows of polyps that are left out because the frame has no room on mucosa for one like them.
    """

    places: dict[str, list[int]] = field(default_factory=dict)
    unpaired: int = 0


def store_crops(job: CropJob, on_frames: Callable[[int], None], *, out_dir: Path, options: CropOptions) -> None:
    """Cut and store the crops of the frames of one shard.

    Args:
        job: which frames.
        on_frames: told how many more frames were looked at.
        out_dir: dataset folder of tiles.
        options: settings.

    Raises:
        InputError: the output cannot be written.
    """
    record = CropsRecord(origin=job.origin)
    rows: list[dict[str, Any]] = []
    path = shard_path(out_dir, job.name)
    with not_alone():
        with ShardWriter(path) as shard:
            for frame in job.frames:
                on_frames(1)
                try:
                    crops = list(cut_frame(frame, read_frame(job.root, frame), job.sides, options))
                except FrameError as error:
                    record.failures.append((str(frame["sample_id"]), str(error)))
                    continue
                pairs = sum(label == POLYP for label, *_ in crops)
                record.unpaired += options.per_polyp * len(frame["boxes"]) - pairs
                for label, number, window, pixels in crops:
                    row = _row(frame, label, number)
                    data = encode_image(pixels, _encoding(options))
                    member = f"{len(rows):06}_{label}.{_encoding(options).suffix}"
                    place = {"shard": f"{SHARDS_DIR}/{path.name}", "offset": shard.add(member, data), "size": len(data)}
                    rows.append(row | place)
                    record.places[row["sample_id"]] = [window.x, window.y, window.side]
        write_record(out_dir, job.name, record, rows, DatasetKind.TILES)


def read_frame(root: Path, frame: Mapping[str, Any]) -> Image:
    """Pixels of a frame: uint8, [height, width, 3], RGB.

    Args:
        root: folder that the path of the shard starts from.
        frame: row of the manifest.

    Raises:
        FrameError: the shard is cut short, or the frame in it is damaged or has another size.
    """
    try:
        data = read_member(root, frame["shard"], frame["offset"], frame["size"])
        with PIL.Image.open(io.BytesIO(data)) as stored:
            pixels = np.asarray(stored.convert("RGB"))
    except (InputError, OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise FrameError(f"cannot be read ({error}); prepare the frames again") from error
    if pixels.shape[:2] != (frame["height"], frame["width"]):
        raise FrameError(
            f"is {pixels.shape[1]} × {pixels.shape[0]} px, the manifest says {frame['width']} × {frame['height']}; "
            "prepare the frames again"
        )
    return pixels


def cut_frame(
    frame: Mapping[str, Any], pixels: Image, sides: tuple[int, ...], options: CropOptions
) -> Iterator[tuple[str, str, Window, Image]]:
    """Crops of a frame.

    Args:
        frame: row of the manifest.
        pixels: uint8, [height, width, 3].
        sides: see ``CropJob``.
        options: settings.

    Yields:
        Label, number, window and pixels, uint8, [size, size, 3]. The number says which polyp of the frame, too, and
        both windows of a pair have the same.

    Raises:
        FrameError: the frame is smaller than the smallest window.
    """
    if min(pixels.shape[:2]) < options.smallest:
        raise FrameError(
            f"is {pixels.shape[1]} × {pixels.shape[0]} px, smaller than the smallest window of {options.smallest} px: "
            "lower --smallest, or prepare larger frames"
        )
    field = _field(pixels, options)
    boxes: list[Box] = [(box[0], box[1], box[2], box[3]) for box in frame["boxes"]]
    generator = np.random.default_rng([options.seed, _number(str(frame["sample_id"]))])
    if not boxes:
        windows = mucosa_windows(
            field, sides=sides, count=options.per_frame, smallest=options.smallest, generator=generator
        )
        for number, window in enumerate(windows):
            yield MUCOSA, str(number), window, _cut(pixels, window, options.size_px)
    for pair in paired_windows(
        boxes,
        field,
        per_polyp=options.per_polyp,
        margin=options.margin,
        smallest=options.smallest,
        generator=generator,
    ):
        for label, window in ((POLYP, pair.around), (MUCOSA, pair.beside)):
            yield label, f"{pair.polyp}-{pair.number}", window, _cut(pixels, window, options.size_px)


def _field(pixels: Image, options: CropOptions) -> Mask:
    """The field of view without what is left out."""
    field = field_mask(pixels)
    height, width = field.shape
    for left, top, right, bottom in options.left_out:
        field[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = False
    return field


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def _cut(pixels: Image, window: Window, size: int) -> Image:
    part = PIL.Image.fromarray(np.ascontiguousarray(pixels[window.part]))
    return np.asarray(part.resize((size, size), PIL.Image.Resampling.LANCZOS))


def _encoding(options: CropOptions) -> FrameOptions:
    return FrameOptions(
        image_format="png" if options.image_format == "png" else "jpeg", jpeg_quality=options.jpeg_quality
    )


def _row(frame: Mapping[str, Any], label: str, number: str) -> dict[str, Any]:
    """Of the manifest of tiles. A slide there has one label, so that a frame becomes one for each class."""
    slide = f"{frame['sample_id']}/{label}"
    return {
        "sample_id": f"{slide}-{number}",
        "patient_id": frame["patient_id"],
        "slide_id": slide,
        "label": label,
        "site": frame["site"],
    }
