"""One shard: frames in, a tar of images out, and beside it a table of them with what went wrong."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kdml_med.colonoscopy.boxes import Box, FrameBoxes, FrameError, boxes_of_mask, check_boxes
from kdml_med.colonoscopy.field import Image
from kdml_med.colonoscopy.frames import PreparedFrame, encode_image, prepare_image
from kdml_med.colonoscopy.images import read_image, read_mask
from kdml_med.colonoscopy.options import FrameOptions
from kdml_med.colonoscopy.planning import FrameItem, ShardJob, owner_of
from kdml_med.colonoscopy.video import VideoCutShortError, iterate_video
from kdml_med.storage.files import not_alone
from kdml_med.storage.manifest import FRAME_CLASSES, SHARDS_DIR, DatasetKind
from kdml_med.storage.shards import FailuresRecord, ShardWriter, shard_path, write_record
from kdml_med.words import counted

NEGATIVE, POLYP = FRAME_CLASSES
_MAX_LOST = 0.25  # share of a box that may lie on what was cut off or painted over; people draw loosely


@dataclass
class FramesRecord(FailuresRecord):
    """What is known about a shard beside its frames.

    Attributes:
        hashes: SHA-256 of the decoded source pixels, by sample_id.
        passed_over: annotated video frames that the frame rate did not take.
        unlisted: frames that the annotations do not mention, stored or not.
        cropped: frames whose border was cut off.
        painted: frames in which something beside the field was painted over.
    """

    hashes: dict[str, str] = field(default_factory=dict)
    passed_over: int = 0
    unlisted: int = 0
    cropped: int = 0
    painted: int = 0


def store_shard(
    job: ShardJob, on_frames: Callable[[int], None] = lambda frames: None, *, out_dir: Path, options: FrameOptions
) -> None:
    """Prepare and store the frames of one shard.

    Args:
        job: what goes in.
        on_frames: told how many more frames were looked at.
        out_dir: dataset folder.
        options: settings.

    Raises:
        InputError: the output cannot be written.
    """
    path = shard_path(out_dir, job.name)
    with not_alone():
        with ShardWriter(path) as shard:
            builder = _ShardBuilder(shard, f"{SHARDS_DIR}/{path.name}", options, FramesRecord(origin=job.origin))
            for item in job.items:
                for number, image in builder.read(item):
                    builder.add(item, number, image)
                    on_frames(1)
        write_record(out_dir, job.name, builder.record, builder.rows, DatasetKind.FRAMES)


class _ShardBuilder:
    """Rows and record of a shard while it grows."""

    def __init__(self, shard: ShardWriter, name: str, options: FrameOptions, record: FramesRecord) -> None:
        self._shard, self._name, self._options = shard, name, options
        self.record = record
        self.rows: list[dict[str, Any]] = []
        self._members = 0
        self._seen: set[int | None] = set()  # numbers of the frames of the video at work

    def read(self, item: FrameItem) -> Iterator[tuple[int | None, Image]]:
        """Frames of an image or video; what cannot be read goes to the record."""
        try:
            if item.source.is_video:
                yield from self._read_video(item)
            else:
                yield None, read_image(item.source.path)
        except FrameError as error:
            self.record.failures.append((item.source.name, str(error)))

    def _read_video(self, item: FrameItem) -> Iterator[tuple[int, Image]]:
        self._seen = set()
        try:
            count = yield from iterate_video(item.source.path, self._options.fps)
        except VideoCutShortError as error:
            self._check_numbers(item, error.frames)
            raise
        self._check_numbers(item, count)
        numbers = [number for number in item.entries if number is not None]
        if count in numbers and min(numbers) > 0:
            self._withdraw(item)
            raise FrameError(
                f"frame {count} is annotated, but the {count} frames are 0 to {count - 1} and frame 0 has none: "
                "the numbers seem to begin with 1; subtract 1 from them, or correct that annotation"
            )

    def _withdraw(self, item: FrameItem) -> None:
        """Forget the frames of an input; the tar keeps bytes that nothing points at."""
        gone = {row["sample_id"] for row in self.rows if row["source"] == item.source.name}
        self.rows = [row for row in self.rows if row["sample_id"] not in gone]
        for sample_id in gone:
            del self.record.hashes[sample_id]

    def _check_numbers(self, item: FrameItem, count: int) -> None:
        """Note annotated frames that were not handed out, by the frame rate or because the video has no such frame."""
        for number in sorted(number for number in item.entries if number is not None and number not in self._seen):
            if number < count:
                self.record.passed_over += 1
            else:
                reason = f"annotated, but the video has only {counted(count, 'frame')}"
                self.record.failures.append((f"{item.source.name}/{number}", reason))

    def add(self, item: FrameItem, number: int | None, image: Image) -> None:
        """Store one frame, or note why not."""
        self._seen.add(number)
        sample_id = item.source.name if number is None else f"{item.source.name}/{number:06}"
        entry = item.entries.get(number)
        in_doubt = entry is None and None in item.blocked and self._options.unlisted == NEGATIVE
        if number in item.blocked or in_doubt:
            return
        if entry is None:
            self.record.unlisted += 1
            if self._options.unlisted == "skip":
                return
        prepared = prepare_image(image, self._options)
        try:
            boxes, polyps = self._place(sample_id, entry, image, prepared) if entry else ([], None)
        except FrameError as error:
            self.record.failures.append((sample_id, str(error)))
            return
        self.record.hashes[sample_id] = hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()
        self.record.cropped += prepared.cropped
        self.record.painted += prepared.painted is not None
        unlisted = NEGATIVE if self._options.unlisted == "negative" else None
        sequence = item.sequence_id
        if polyps is not None and sequence is not None:
            polyps = [f"{sequence}/{polyp}" for polyp in polyps]  # tables number polyps anew in each sequence
        data = encode_image(prepared.pixels, self._options)
        row = {
            "sample_id": sample_id,
            "patient_id": owner_of(item),
            "sequence_id": sequence or sample_id,
            "label": POLYP if boxes else NEGATIVE if entry else unlisted,
            "site": item.site,
            "frame_index": item.frame_index if number is None else number,
            "boxes": [list(box) for box in boxes],
            "polyp_ids": polyps,
            "source": item.source.name,
            "shard": self._name,
            "offset": self._shard.add(self._member_name(sample_id), data),
            "size": len(data),
        }
        self.rows.append(row | asdict(prepared.placement))

    def _member_name(self, sample_id: str) -> str:
        """Short enough for a tar header, unique in the shard by the number."""
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(sample_id).stem)[-60:]
        self._members += 1
        return f"{self._members - 1:06}_{stem}.{self._options.suffix}"

    def _place(
        self, sample_id: str, entry: FrameBoxes, image: Image, prepared: PreparedFrame
    ) -> tuple[list[Box], list[str] | None]:
        """Boxes in pixels of the stored frame and names of their polyps, without specks.

        Raises:
            FrameError: a box is wrong or lies where pixels were cut off or painted over, or all of them are specks.
        """
        height, width = image.shape[:2]
        if entry.mask is not None:
            mask = read_mask(entry.mask)
            entry = replace(entry, boxes=boxes_of_mask(mask), width=mask.shape[1], height=mask.shape[0])
        checked = check_boxes(entry, width, height)
        limit, scale = self._options.min_box_px, prepared.placement.scale
        kept = [i for i, box in enumerate(checked) if min(box[2] - box[0], box[3] - box[1]) * scale >= limit]
        specks = len(checked) - len(kept)
        if specks and not kept:
            raise FrameError(
                f"no box has sides of at least {limit:g} px when stored; a speck is no polyp and no negative"
            )
        for box in (checked[i] for i in kept):
            lost = prepared.lost_share(box)
            if lost > _MAX_LOST:
                shown = ", ".join(f"{edge:g}" for edge in box)
                raise FrameError(
                    f"{lost:.0%} of box [{shown}] lies on what was taken for border or overlay; if that is wrong, "
                    "prepare the frames with --no-crop --no-mask-overlays"
                )
        if specks:
            reason = f"{specks} of {len(checked)} boxes dropped: a side is under {limit:g} px when stored"
            self.record.failures.append((sample_id, reason))
        stored = prepared.placement.to_stored(checked)
        polyps = [entry.polyps[i] for i in kept] if entry.polyps else []
        named = [polyp for polyp in polyps if polyp is not None]
        return [stored[i] for i in kept], named if kept and len(named) == len(kept) else None
