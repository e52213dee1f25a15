"""How many frames per second a network answers, on the machine at hand."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kdml_med.data.frames import input_size
from kdml_med.engines.detection import average_anchors, decode_anchors, suppress
from kdml_med.keys import NetworkName
from kdml_med.networks.cohort import Cohort
from kdml_med.runs import SPEED_FILE, write_json

WARM_UP = 3
REPEATS = 20


def save_speed(
    network: Cohort, output_dir: str, *, image_size: int | Sequence[int], device: str, repeats: int = REPEATS
) -> dict[str, Any]:
    """Time one frame at a time, from the network's input to boxes, and write speed.json.

    A file of its own, because it is the one result that is not the same twice.

    Args:
        network: the trained cohort; the ensemble is all its students, one after the other.
        output_dir: where the file goes.
        image_size: (height, width) of the input, or the side of a square one.
        device: to compute on.
        repeats: measurements of each network, taken in turns so that a busy moment hits all of them.

    Returns:
        Content of speed.json: frames per second by network (of the median time), and what they were measured on.
    """
    height, width = input_size(image_size)
    image = torch.zeros(1, 3, height, width, device=device)
    limits = torch.tensor([[width, height]], device=device, dtype=torch.float32)
    members = {name: [name] for name in network.names} | {NetworkName.ENSEMBLE.value: network.student_names}
    seconds: dict[str, list[float]] = {name: [] for name in members}
    network.eval()
    with torch.inference_mode():
        for _ in range(WARM_UP + repeats):
            for name, parts in members.items():
                start = time.perf_counter()
                candidates = [decode_anchors(network.networks[part](image), height, width) for part in parts]
                suppress(average_anchors(candidates), limits=limits)  # reads scores, and so waits for a GPU
                seconds[name].append(time.perf_counter() - start)
    rates = {name: 1 / statistics.median(times[WARM_UP:]) for name, times in seconds.items()}
    speed = {
        "device": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "image_size": [height, width],
        "frames_per_second": rates,
    }
    write_json(Path(output_dir) / SPEED_FILE, speed)
    shown = ", ".join(f"{name} {value:.1f}" for name, value in rates.items())
    print(f"Frames per second, one at a time, {height} x {width} px, {speed['device']}: {shown}\n")
    return speed
