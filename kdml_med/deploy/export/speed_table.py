"""Size and speed of exported files beside those of the teacher, measured in one run on the machine at hand."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kdml_med.data.frames import input_size as sides_of
from kdml_med.deploy.export.runtimes import Answer
from kdml_med.deploy.speed import device_name, round_seconds
from kdml_med.networks.devices import one_thread
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
        figure: how good its answers are, where that was measured.
    """

    network: str
    format: str
    runtime: str
    size_bytes: int
    figure: float | None = None


def measure(
    answers: Sequence[tuple[Entry, Answer]],
    images: Sequence[npt.NDArray[np.uint8]],
    *,
    unit: str,
    figure: str,
    input_size: int | Sequence[int],
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    """Time all entries in turns, one thread each.

    Args:
        answers: entries and what computes them; all others are compared with the first.
        images: what they answer in each round, uint8 [batch, height, width, 3] each.
        unit: what an image is called.
        figure: what the figures of the entries are.
        input_size: of the networks, see ``kdml_med.data.frames.input_size``.
        rounds: that count.

    Returns:
        Content of speed.json.
    """
    timed = {str(place): functools.partial(_answer_all, answer, images) for place, (_, answer) in enumerate(answers)}
    with one_thread():
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
                "images_per_second": sum(map(len, images)) / statistics.median(own),
                "times_as_fast": statistics.median(ratios),
                "times_as_fast_quartiles": [quarters[0], quarters[2]],
                "times_smaller": first.size_bytes / entry.size_bytes,
            }
        )
    return {
        "device": device_name("cpu"),
        "threads": 1,
        "clock": "processor time",
        "unit": unit,
        "figure": figure,
        "batch_size": len(images[0]),
        "image_size": [*sides_of(input_size)],
        "images": [list(image.shape[1:3]) for image in images],
        "rounds": rounds,
        "reference": f"{first.network} {first.runtime}",
        "rows": rows,
    }


def _answer_all(answer: Answer, images: Sequence[npt.NDArray[np.uint8]]) -> None:
    for image in images:
        answer(image)


def speed_text(speed: Mapping[str, Any]) -> str:
    """The table of a speed.json for a terminal."""
    header = ["network", "format", "runtime", "MB", "times smaller", f"{speed['unit']}s/s", "times as fast"]
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
                f"{row['images_per_second']:.1f}",
                f"{row['times_as_fast']:.1f} ({low:.1f} – {high:.1f})",
                "" if row["figure"] is None else f"{row['figure']:.4f}",
            ]
        )
    height, width = speed["image_size"]
    note = (
        f"From stored pixels to answers, input {width} x {height} px, {speed['batch_size']} at a time, one thread of "
        f"{speed['device']}, processor time; medians of {speed['rounds']} rounds in turns. Compared with "
        f"{speed['reference']}, round by round; quartiles in brackets."
    )
    return text_table([*header, speed["figure"]], rows, note="\n".join([note, *speed["notes"]]))
