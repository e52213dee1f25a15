"""Event files of TensorBoard that a run left when it was interrupted, without the points that it will write again."""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from torch.utils.tensorboard import SummaryWriter

from kdml_med.storage.files import write_atomically

EVENT_FILES = "events.out.tfevents.*"
_SECOND = re.compile(r"events\.out\.tfevents\.(\d+)\.")
_HEAD, _FOOT = 12, 4  # a TFRecord: length (uint64, little-endian) and its checksum, the event, its checksum


def begin_events(folder: Path, *, purge_step: int | None = None) -> SummaryWriter:
    """Begin an event file that is read behind those that a folder holds. This is the only way to begin one.

    TensorBoard reads files in the order of their names, which begin with the second of their making and go on with a
    number that has not always as many digits: of two files of one second the later one can come first.

    Parameters
    ----------
    folder
        Folder of a run, made where it is missing.
    purge_step
        Points of earlier files from this step on are not shown.
    """
    seconds = [int(found[1]) for path in folder.glob(EVENT_FILES) if (found := _SECOND.match(path.name))]
    while int(time.time()) in seconds:
        time.sleep(0.05)
    return SummaryWriter(str(folder), purge_step=purge_step)


def take_back(log_dir: Path, keep: Callable[[str, int], bool]) -> None:
    """Leave only some of the points in the event files below a folder.

    TensorBoard can be told that points are void from a step on (``purge_step``), but of all charts of a file alike,
    while some of ours count iterations and others epochs.

    Args:
        log_dir: folder; may be absent.
        keep: says of the tag and the step of a point whether it stays.

    Raises:
        InputError: a file cannot be written.
    """
    for path in sorted(log_dir.rglob(EVENT_FILES)):
        content = path.read_bytes()
        kept = b"".join(
            record
            for record, event in _records(content)
            if all(keep(value.tag, event.step) for value in event.summary.value)
        )
        if kept != content:
            write_atomically(path, kept)


def has_tag(folder: Path, tag: str) -> bool:
    """Whether an event file below a folder has a point with a tag."""
    files = (path.read_bytes() for path in folder.rglob(EVENT_FILES))
    return any(value.tag == tag for content in files for _, event in _records(content) for value in event.summary.value)


def _records(content: bytes) -> Iterator[tuple[bytes, Event]]:
    """Whole records and their events; a process that is killed can leave a part of one at the end."""
    start = 0
    while start + _HEAD <= len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        end = start + _HEAD + length + _FOOT
        if end > len(content):
            return
        yield content[start:end], Event.FromString(content[start + _HEAD : end - _FOOT])
        start = end
