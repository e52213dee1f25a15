"""Size and speed of exported files beside those of the teacher, measured in one run on the machine at hand."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from kdml_med.deploy.export.runtimes import Answer
from kdml_med.deploy.speed import device_name, round_seconds
from kdml_med.report.tables import text_table

ROUNDS = 15
MEGABYTE = 1e6


@dataclass(frozen=True)
class Entry:
    """One network in one file format and one runtime.

    Attributes:
        network: its name.
        format: "checkpoint", or what it is exported to.
        runtime: what computes.
        size_bytes: of the file.
        auroc: of tiles, where it was measured.
    """

    network: str
    format: str
    runtime: str
    size_bytes: int
    auroc: float | None = None


def measure(
    answers: Sequence[tuple[Entry, Answer]], *, image_size: int, batch_size: int = 1, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Time all entries in turns, one thread each.

    Args:
        answers: entries and what computes them; all others are compared with the first.
        image_size: side of the images, pixels.
        batch_size: images at a time.
        rounds: that count.

    Returns:
        Content of speed.json.
    """
    shape = (batch_size, image_size, image_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    timed = {str(place): functools.partial(answer, images) for place, (_, answer) in enumerate(answers)}
    with _one_thread():
        # Of the processor, which one thread is always busy with: what else the machine does is not counted.
        seconds = list(round_seconds(timed, repeats=rounds, clock=time.process_time).values())
    first = answers[0][0]
    rows = []
    for (entry, _), own in zip(answers, seconds, strict=True):
        # Round by round: what slows the machine for a while slows both.
        ratios = [then / now for then, now in zip(seconds[0], own, strict=True)]
        quarters = statistics.quantiles(ratios, n=4)
        rows.append(
            asdict(entry)
            | {
                "tiles_per_second": batch_size / statistics.median(own),
                "times_as_fast": statistics.median(ratios),
                "times_as_fast_quartiles": [quarters[0], quarters[2]],
                "times_smaller": first.size_bytes / entry.size_bytes,
            }
        )
    return {
        "device": device_name("cpu"),
        "threads": 1,
        "clock": "processor time",
        "batch_size": batch_size,
        "image_size": image_size,
        "rounds": rounds,
        "reference": f"{first.network} {first.runtime}",
        "rows": rows,
    }


def speed_text(speed: Mapping[str, Any]) -> str:
    """The table of a speed.json for a terminal."""
    header = ["network", "format", "runtime", "MB", "times smaller", "tiles/s", "times as fast", "tile AUROC"]
    rows = []
    for row in speed["rows"]:
        low, high = row["times_as_fast_quartiles"]
        rows.append(
            [
                row["network"],
                row["format"],
                row["runtime"],
                f"{row['size_bytes'] / MEGABYTE:.2f}",
                f"{row['times_smaller']:.1f}",
                f"{row['tiles_per_second']:.1f}",
                f"{row['times_as_fast']:.1f} ({low:.1f} – {high:.1f})",
                "" if row["auroc"] is None else f"{row['auroc']:.4f}",
            ]
        )
    note = (
        f"{speed['image_size']} px, {speed['batch_size']} at a time, one thread of {speed['device']}, processor time; "
        f"medians of {speed['rounds']} rounds in turns. Compared with {speed['reference']}, round by round; quartiles "
        "in brackets."
    )
    return text_table(header, rows, note=note)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
