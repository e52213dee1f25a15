"""What is to be stored where: every frame gets a sequence, a patient and a split before any pixel is read."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kdml_med.colonoscopy.annotations import Annotations, describe_frame
from kdml_med.colonoscopy.boxes import FrameBoxes
from kdml_med.colonoscopy.options import FrameOptions
from kdml_med.colonoscopy.sources import Source, names_a_sequence, natural_key
from kdml_med.errors import InputError
from kdml_med.storage.shards import Origin

_LOOSE_FRAMES = 500  # in one shard, where no sequences are known


@dataclass(frozen=True)
class FrameItem:
    """One image, or one video with all its frames.

    Attributes:
        source: the file.
        sequence_id: what the frames belong to; None where unknown.
        patient_id: whose they are; None where unknown.
        site: hospital.
        frame_index: of an image: its place in the sequence, from 0; None where unknown, and for videos.
        entries: what the annotations say; the key is the number of the video frame, None for an image.
        blocked: frames that must not be used, by the same key; of a video, None for those that are not annotated and
            would be negatives.
    """

    source: Source
    sequence_id: str | None
    patient_id: str | None = None
    site: str | None = None
    frame_index: int | None = None
    entries: dict[int | None, FrameBoxes] = field(default_factory=dict)
    blocked: frozenset[int | None] = frozenset()


@dataclass(frozen=True)
class ShardJob:
    """Everything that goes into one shard.

    Attributes:
        name: of the shard, without suffix.
        items: in the order in which they are stored.
        origin: what tells its files and annotations from others; found when the plan is made.
    """

    name: str
    items: tuple[FrameItem, ...]
    origin: Origin = field(default_factory=Origin)

    @property
    def is_loose(self) -> bool:
        """Whether its frames belong to no sequence, so that its name says nothing about what is in it."""
        return all(item.sequence_id is None for item in self.items)

    @property
    def files(self) -> list[tuple[Path, str]]:
        """Everything whose bytes decide the shard's: images, videos and masks, with their names within the input."""
        files = [(item.source.path, item.source.name) for item in self.items]
        entries = [entry for item in self.items for entry in item.entries.values()]
        return files + [(entry.mask, f"mask {entry.image}") for entry in entries if entry.mask is not None]

    @property
    def facts(self) -> str:
        """Changes whenever the annotations of the shard do, or whom its frames belong to; SHA-256, hexadecimal."""
        content = [
            [
                [item.sequence_id, item.patient_id, item.site, item.frame_index],
                [[str(key), describe_frame(entry)] for key, entry in item.entries.items()],
                sorted(map(str, item.blocked)),
            ]
            for item in self.items
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass
class Plan:
    """What a preparation is going to do.

    Attributes:
        jobs: one for each shard, sorted by name.
        splits: split of each patient, where the annotations or the options tell it.
        label_level: for dataset.json: "patient", "sequence" or "frame".
        failures: (input, reason) of what is known to be unusable.
        skipped: frames left out because the annotations do not mention them.
        folders: that were taken for sequences without anybody saying so, of unknown patients; in natural order.
    """

    jobs: list[ShardJob]
    splits: dict[str, str] | None
    label_level: str
    failures: list[tuple[str, str]] = field(default_factory=list)
    skipped: int = 0
    folders: list[str] = field(default_factory=list)


def make_plan(sources: Sequence[Source], annotations: Annotations, options: FrameOptions) -> Plan:
    """Decide sequence, patient, split and shard of every source.

    Raises:
        InputError: the sequences are not told as the options say, a sequence has two patients, or a sequence or patient
            is in two splits. The message names it.
    """
    plan = Plan([], None, "frame", list(annotations.failures))
    by_source: dict[str, dict[int | None, FrameBoxes]] = {}
    for (name, number), entry in annotations.frames.items():
        by_source.setdefault(name, {})[number] = entry
    blocked: dict[str, set[int | None]] = {}
    for name, number in annotations.blocked:
        blocked.setdefault(name, set()).add(number)
    origin = _sequence_origin(sources, annotations, options)
    items: list[FrameItem] = []
    for source in sources:
        entries, closed = by_source.get(source.name, {}), frozenset(blocked.get(source.name, ()))
        if closed and not source.is_video:
            continue  # annotations.failures names it
        if not entries and options.unlisted == "skip":
            plan.skipped += 1
            continue
        items.append(_make_item(source, entries, closed, origin))
    items = _fill_patients(items)
    if origin == "column":
        items = _drop_unplaced(plan, items, {item.source.name for item in items if item.sequence_id is None}, options)
    _find_splits(plan, items, annotations, options)
    if plan.splits is not None:
        lost = {item.source.name for item in items if owner_of(item) not in plan.splits}
        items = _drop_unplaced(plan, items, lost, options)
    if items and all(item.sequence_id is not None for item in items):
        plan.label_level = "patient" if all(item.patient_id is not None for item in items) else "sequence"
    if origin == "folder" and options.sequence_from == "auto":
        told = [item for item in items if not item.source.is_video and item.patient_id is None]
        plan.folders = sorted({owner_of(item) for item in told}, key=natural_key)
    plan.jobs = _make_jobs(_number_frames(items))
    return plan


def owner_of(item: FrameItem) -> str:
    """patient_id of an item's frames: the patient, else the sequence, else the image itself."""
    return item.patient_id or item.sequence_id or item.source.name


def _sequence_origin(sources: Sequence[Source], annotations: Annotations, options: FrameOptions) -> str:
    """What tells the sequence of an image: "column", "folder" or "none"."""
    has_column = "sequence" in annotations.columns
    if options.sequence_from == "column" and not has_column:
        raise InputError(
            "--sequence-from column, but the annotations have no sequence column. Only a CSV table can have one; add "
            "it, or use --sequence-from folder or none."
        )
    if options.sequence_from != "auto":
        return options.sequence_from
    if has_column:
        return "column"
    folders = {source.folder for source in sources if not source.is_video}
    return "folder" if len(folders) > 1 and any(map(names_a_sequence, folders)) else "none"


def _make_item(
    source: Source, entries: dict[int | None, FrameBoxes], blocked: frozenset[int | None], origin: str
) -> FrameItem:
    stated = {name: _only_value(source, entries, name) for name in ("sequence", "patient", "site")}
    sequence: str | None = None
    if origin == "column" and entries:
        sequence = stated["sequence"]
        if sequence is None:
            row = next(iter(entries.values()))
            raise InputError(
                f"{row.image} ({row.place}) has no sequence, others have one. Fill the cell, or use --sequence-from "
                "none."
            )
    elif source.is_video:
        sequence = source.name
    elif origin == "folder":
        sequence = source.folder or source.path.resolve().parent.name
    index = entries[None].frame if None in entries else None
    return FrameItem(source, sequence, stated["patient"], stated["site"], index, entries, blocked)


def _only_value(source: Source, entries: dict[int | None, FrameBoxes], name: str) -> str | None:
    values = {value: entry.place for entry in entries.values() if (value := getattr(entry, name)) is not None}
    if len(values) > 1:
        (one, first), (two, second) = sorted(values.items())[:2]
        raise InputError(f"{source.name} has the {name}s {one!r} ({first}) and {two!r} ({second}); expected one.")
    return next(iter(values), None)


def _fill_patients(items: list[FrameItem]) -> list[FrameItem]:
    """Give every frame of a sequence the patient that some of them name."""
    patients: dict[str, tuple[str, str]] = {}
    for item in items:
        if item.sequence_id is not None and item.patient_id is not None:
            other, name = patients.setdefault(item.sequence_id, (item.patient_id, item.source.name))
            if other != item.patient_id:
                raise InputError(
                    f"sequence {item.sequence_id!r} belongs to the patients {other!r} ({name}) and {item.patient_id!r} "
                    f"({item.source.name}), expected one. Correct the table, or give the sequences different names."
                )
    return [
        replace(item, patient_id=patients[item.sequence_id][0])
        if item.sequence_id in patients and item.sequence_id is not None
        else item
        for item in items
    ]


def _drop_unplaced(plan: Plan, items: list[FrameItem], names: set[str], options: FrameOptions) -> list[FrameItem]:
    """Leave out what the annotations do not mention, where only they tell the sequence or the split."""
    if names and options.unlisted == "negative":
        raise InputError(
            f"{min(names)} is not among the annotations, which alone tell the sequence or split of a frame "
            f"({len(names)} such inputs), so it cannot be stored as negative. Add rows with empty box fields for them, "
            "or use --unlisted skip."
        )
    plan.skipped += len(names)
    return [item for item in items if item.source.name not in names]


def _find_splits(plan: Plan, items: list[FrameItem], annotations: Annotations, options: FrameOptions) -> None:
    """Split of each patient, from the option or the column."""
    if options.split is not None:
        plan.splits = {owner_of(item): options.split for item in items}
        return
    if "split" not in annotations.columns:
        return
    found: dict[str, tuple[str, FrameBoxes, FrameItem]] = {}
    for item in items:
        for entry in item.entries.values():
            if entry.split is None:
                raise InputError(f"{entry.image} ({entry.place}) has no split, others have one. Fill the cell.")
            owner = owner_of(item)
            split, first, other = found.setdefault(owner, (entry.split, entry, item))
            if split != entry.split:
                same = item.sequence_id is not None and item.sequence_id == other.sequence_id
                what = f"sequence {item.sequence_id!r}" if same else f"patient {owner!r}"
                raise InputError(
                    f"{what} is in two splits: {first.image} ({first.place}) in {split}, {entry.image} ({entry.place}) "
                    f"in {entry.split}. This would leak: what is almost the same picture would train and test. Correct "
                    "the split column."
                )
    plan.splits = {owner: split for owner, (split, _, _) in found.items()}


def _number_frames(items: list[FrameItem]) -> list[FrameItem]:
    """Give images their place in the sequence, where the annotations give no number."""
    counts: dict[str, int] = {}
    numbered = []
    for item in items:
        if item.sequence_id is not None and not item.source.is_video:
            index = counts.get(item.sequence_id, 0)
            counts[item.sequence_id] = index + 1
            item = item if item.frame_index is not None else replace(item, frame_index=index)
        numbered.append(item)
    return numbered


def _make_jobs(items: list[FrameItem]) -> list[ShardJob]:
    groups: dict[str, list[FrameItem]] = {}
    loose: list[FrameItem] = []
    by_sequence: dict[str, list[FrameItem]] = {}
    for item in items:  # once: there may be a hundred thousand items and as many sequences
        (loose if item.sequence_id is None else by_sequence.setdefault(item.sequence_id, [])).append(item)
    groups |= group_loose(loose, itertools.count())
    taken = {name.lower() for name in groups}
    for sequence, own in sorted(by_sequence.items(), key=lambda pair: pair[0]):
        name = shard_name(sequence)
        if name.lower() in taken:  # some file systems do not tell "A" from "a"
            name = f"{name}-{hashlib.sha256(sequence.encode()).hexdigest()[:8]}"
        taken.add(name.lower())
        groups[name] = own
    return [ShardJob(name, tuple(group)) for name, group in sorted(groups.items())]


def group_loose(items: Sequence[FrameItem], numbers: Iterable[int]) -> dict[str, list[FrameItem]]:
    """Frames that belong to no sequence by shard, ``_LOOSE_FRAMES`` in each.

    Args:
        items: in their order.
        numbers: of the shards, as many as are needed.
    """
    starts = range(0, len(items), _LOOSE_FRAMES)
    return {
        loose_name(number): list(items[start : start + _LOOSE_FRAMES])
        for start, number in zip(starts, numbers, strict=False)
    }


def loose_name(number: int) -> str:
    """Name of a shard of frames that belong to no sequence."""
    return f"frames-{number:04}"


def shard_name(sequence_id: str) -> str:
    """File name for a sequence: letters, digits, point, "-" and "_", at most 80 of them."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", sequence_id).strip(".")[:80] or "sequence"
