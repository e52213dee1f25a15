"""Frames that belong to no sequence, in the shards of earlier runs.

Their shards are numbered, so that a name says nothing about what is in one: what is stored is compared frame by frame.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kdml_med.colonoscopy.planning import FrameItem, Plan, ShardJob, group_loose, loose_name
from kdml_med.colonoscopy.sources import natural_key
from kdml_med.colonoscopy.storing import FramesRecord
from kdml_med.errors import InputError
from kdml_med.storage.folder import DatasetFolder

_LOOSE_NAME = re.compile(r"frames-\d{4,}")
_SHOWN = 3


@dataclass(frozen=True)
class LooseShard:
    """What a finished shard of frames that belong to no sequence holds.

    Attributes:
        frames: inputs whose frames are stored.
        inputs: these, and those that could not be used.
        digests: hashes of files by name, as far as they were recorded.
    """

    frames: frozenset[str]
    inputs: frozenset[str]
    digests: Mapping[str, str] = field(default_factory=dict)


def is_loose_name(name: str) -> bool:
    """Whether a shard of this name may hold frames that belong to no sequence."""
    return _LOOSE_NAME.fullmatch(name) is not None


def read_loose(folder: DatasetFolder[FramesRecord]) -> dict[str, LooseShard]:
    """Finished shards of frames that belong to no sequence, by name; without those that are damaged."""
    found: dict[str, LooseShard] = {}
    for name in filter(is_loose_name, folder.finished()):
        try:
            record, rows = folder.read(name)
        except InputError:
            continue
        if rows.column("sequence_id").to_pylist() != rows.column("sample_id").to_pylist():
            continue  # a sequence of that name
        frames = frozenset(rows.column("source").to_pylist())
        digests = {file.name: file.digest for file in record.origin.sources} if record.origin else {}
        found[name] = LooseShard(frames, frames | {name for name, _ in record.failures}, digests)
    return found


def check_loose_stay(path: Path, stored: Mapping[str, LooseShard], plan: Plan) -> None:
    """Check that no stored frame goes because the run does not name its input any more.

    An input under another name, and one of which the plan says why it cannot be used, count as named.

    Args:
        path: of the dataset.
        stored: from ``read_loose``.
        plan: its jobs know their origins.

    Raises:
        InputError: one would go.
    """
    frames = {name for shard in stored.values() for name in shard.frames}
    named = {item.source.name for job in plan.jobs for item in job.items} | {name for name, _ in plan.failures}
    renamed = {file.digest for job in plan.jobs for file in job.origin.sources if file.name not in frames}
    gone = [
        name for shard in stored.values() for name in shard.frames - named if shard.digests.get(name) not in renamed
    ]
    refuse_gone(path, gone, "pass --keep and name only what is new, or --force to delete them")


def refuse_gone(path: Path, gone: Collection[str], remedy: str) -> None:
    """Refuse a run that would delete frames because it does not name them.

    Args:
        path: of the dataset.
        gone: their names.
        remedy: what else can be done than naming them or choosing another folder.

    Raises:
        InputError: there are any.
    """
    if gone:
        shown = ", ".join(sorted(gone, key=natural_key)[:_SHOWN])
        more = f" and {len(gone) - _SHOWN:,} more" if len(gone) > _SHOWN else ""
        raise InputError(
            f"{path} holds what is not among the inputs of this run: {shown}{more}. Name all inputs in one run, choose "
            f"another --out, or {remedy}."
        )


def number_behind(
    jobs: Sequence[ShardJob], stored: Mapping[str, LooseShard], finished: Collection[str]
) -> list[ShardJob]:
    """Give frames that belong to no sequence shards that replace none of an earlier run.

    A finished shard whose inputs are all named is one that this run made before it was cut off, or is given whole:
    its frames stay in it. All others go, in their order, into the lowest numbers that are free, which are the same
    shards whichever of them were finished before.

    Args:
        jobs: of the plan.
        stored: from ``read_loose``.
        finished: names of all finished shards.

    Returns:
        The jobs, sorted by name.
    """
    others = [job for job in jobs if not job.is_loose]
    loose = sorted(
        (item for job in jobs if job.is_loose for item in job.items), key=lambda item: natural_key(item.source.name)
    )
    names = {item.source.name for item in loose}
    home = {source: name for name, shard in stored.items() if shard.inputs <= names for source in shard.inputs}
    groups: dict[str, list[FrameItem]] = {}
    for item in loose:
        if item.source.name in home:
            groups.setdefault(home[item.source.name], []).append(item)
    taken = {name.lower() for name in (*finished, *(job.name for job in others))}
    free = (number for number in itertools.count() if loose_name(number) not in taken)
    groups |= group_loose([item for item in loose if item.source.name not in home], free)
    return sorted([*others, *(ShardJob(name, tuple(own)) for name, own in groups.items())], key=lambda job: job.name)
