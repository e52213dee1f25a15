"""An exported detector beside its teacher: size and speed; and the tables for a terminal."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdml_med.data.frames import input_size
from kdml_med.deploy.export.detector_parity import AFTER, BEFORE, Detect, draw_frames
from kdml_med.deploy.export.detectors import DetectorExport, eager_detector, load_detector, write_detector
from kdml_med.deploy.speed import device_name, median_seconds
from kdml_med.keys import NetworkName
from kdml_med.report.tables import text_table
from kdml_med.runs import checkpoint_path

_TIMED_FRAMES = 8


def measure_detector(export: DetectorExport, path: Path) -> dict[str, Any]:
    """Size and speed of the file beside those of the teacher, eager and in the same runtime, on real frames.

    Args:
        export: what was exported.
        path: of the file.

    Returns:
        Content of speed.json.
    """
    size = [*input_size(export.run.image_size)]
    frames = _frames_to_time(export, size)
    floating = export if export.format != "onnx-int8" else replace(export, format="onnx")
    entries: list[tuple[str, str, str, int, Detect]] = []
    with tempfile.TemporaryDirectory(prefix="kdml_med_speed_") as folder:
        others = [replace(floating, network=NetworkName.TEACHER.value)] if export.run.networks.get("teacher") else []
        for one in [*others, floating] if export.network != NetworkName.TEACHER else [floating]:
            weights = sum(checkpoint_path(one.run_dir, name).stat().st_size for name in one.parts)
            entries.append((one.network, "checkpoint", "eager", weights, eager_detector(one.module())))
            if one is export:
                continue
            written = Path(folder) / f"{one.network}{path.suffix}"
            write_detector(one, written, calibration=None)
            entries.append((one.network, one.format, _runtime(written), written.stat().st_size, load_detector(written)))
        entries.append((export.network, export.format, _runtime(path), path.stat().st_size, load_detector(path)))
        timed = {
            str(place): functools.partial(_all_frames, detect, frames) for place, (*_, detect) in enumerate(entries)
        }
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            seconds = list(median_seconds(timed).values())
        finally:
            torch.set_num_threads(threads)
    first = entries[0]
    return {
        "device": device_name("cpu"),
        "threads": 1,
        "batch_size": 1,
        "image_size": size,
        "frames": [list(frame.shape[1:3]) for frame in frames],
        "reference": f"{first[0]} {first[2]}",
        "rows": [
            {
                "network": network,
                "format": format_,
                "runtime": runtime,
                "size_bytes": size_bytes,
                "frames_per_second": len(frames) / own,
                "times_as_fast": seconds[0] / own,
                "times_smaller": first[3] / size_bytes,
            }
            for (network, format_, runtime, size_bytes, _), own in zip(entries, seconds, strict=True)
        ],
    }


def _frames_to_time(export: DetectorExport, size: Sequence[int]) -> list[npt.NDArray[np.uint8]]:
    if export.dataset_dir is None:
        return [np.zeros((1, 2 * size[0], 2 * size[1], 3), np.uint8)]
    dataset = draw_frames(export.run, export.dataset_dir, "val", limit=_TIMED_FRAMES, seed=0)
    return [dataset.read(position)[None] for position in range(len(dataset))]


def _all_frames(detect: Detect, frames: Sequence[npt.NDArray[np.uint8]]) -> None:
    for frame in frames:
        detect(frame)


def _runtime(path: Path) -> str:
    return "ONNX Runtime" if path.suffix == ".onnx" else "TorchScript"


def detector_parity_text(parity: Mapping[str, Any], *, network: str, format: str) -> str:
    """The table of a parity.json for a terminal."""
    if "precision" not in parity:
        return f"{network} as {format}: no frames to compare on; on noise boxes differ by {_apart(parity)}."
    rows = []
    for name, figures in parity["precision"].items():
        cells = [
            "not defined" if one["value"] is None else f"{one['value']:.4f} ({_interval(one['ci95'])})"
            for one in (figures[BEFORE], figures[AFTER])
        ]
        rows.append([name.upper(), *cells, "" if figures["change"] is None else f"{figures['change']:+.4f}"])
    note = (
        f"{network} as {format}, split {parity['split']}: {parity['n_frames']} frames, {parity['n_boxes']} polyps. "
        f"Boxes differ by {_apart(parity)}; only one of both has {parity['boxes_of_one']} of "
        f"{parity['boxes_of_both']}, the best with score {parity['highest_score_of_one']:.3f}. Other decisions at the "
        f"threshold in {parity['frames_with_changed_decisions']} frames."
    )
    return text_table(["", BEFORE, AFTER, "change"], rows, note=note)


def _apart(parity: Mapping[str, Any]) -> str:
    return f"{parity['largest_box_difference_px']:.2g} px and {parity['largest_score_difference']:.2g} of the score"


def _interval(limits: Sequence[float] | None) -> str:
    return "no interval" if not limits or limits[0] is None else f"{limits[0]:.4f} – {limits[1]:.4f}"


def detector_speed_text(speed: Mapping[str, Any]) -> str:
    """The table of a speed.json for a terminal."""
    rows = [
        [
            row["network"],
            row["format"],
            row["runtime"],
            f"{row['size_bytes'] / 1e6:.2f}",
            f"{row['times_smaller']:.1f}",
            f"{row['frames_per_second']:.1f}",
            f"{row['times_as_fast']:.1f}",
        ]
        for row in speed["rows"]
    ]
    header = ["network", "format", "runtime", "MB", "times smaller", "frames/s", "times as fast"]
    height, width = speed["image_size"]
    note = (
        f"From the stored frame to boxes, input {width} x {height} px, one at a time, one thread, {speed['device']}; "
        f"medians of rounds in turns. Compared with {speed['reference']}."
    )
    return text_table(header, rows, note=note)
