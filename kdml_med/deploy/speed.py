"""How fast networks answer one image at a time, on the machine at hand."""

from __future__ import annotations

import functools
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdml_med.data.frames import input_size
from kdml_med.keys import NetworkName, Task
from kdml_med.networks.boxes import average_anchors, decode_anchors, suppress
from kdml_med.networks.cohort import Cohort

WARM_UP = 3
REPEATS = 20


def measure_speed(
    network: Cohort, *, image_size: int | Sequence[int], device: str, repeats: int = REPEATS
) -> dict[str, Any]:
    """Time one frame at a time, from the network's input to boxes.

    Args:
        network: the trained cohort; the ensemble is all its students, one after the other.
        image_size: (height, width) of the input, or the side of a square one.
        device: to compute on.
        repeats: measurements of each network, taken in turns so that a busy moment hits all of them.

    Returns:
        Content of speed.json: frames per second by network (of the median time), and what they were measured on.
    """
    height, width = input_size(image_size)
    image = torch.zeros(1, 3, height, width, device=device)
    members = {name: [name] for name in network.names} | {NetworkName.ENSEMBLE.value: network.student_names}
    network.eval()
    seconds = median_seconds(
        {
            name: functools.partial(find_boxes, [network.networks[part] for part in parts], image)
            for name, parts in members.items()
        },
        repeats=repeats,
    )
    return {
        "device": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "image_size": [height, width],
        "frames_per_second": {name: 1 / value for name, value in seconds.items()},
    }


def median_seconds(answers: Mapping[str, Callable[[], object]], *, repeats: int = REPEATS) -> dict[str, float]:
    """Median time of each answer, see ``round_seconds``."""
    return {name: statistics.median(times) for name, times in round_seconds(answers, repeats=repeats).items()}


def round_seconds(
    answers: Mapping[str, Callable[[], object]],
    *,
    repeats: int = REPEATS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Times of each answer, in rounds in which all take turns, so that a busy moment hits all of them.

    Args:
        answers: what is timed, by name; each waits for its own result.
        repeats: rounds that count, after ``WARM_UP`` that do not.
        clock: gives seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in answers}
    with torch.inference_mode():
        for _ in range(WARM_UP + repeats):
            for name, answer in answers.items():
                start = clock()
                answer()
                seconds[name].append(clock() - start)
    return {name: times[WARM_UP:] for name, times in seconds.items()}


def measure_latency(
    networks: Mapping[str, nn.Module],
    *,
    task: Task,
    image_size: int | Sequence[int],
    threads: int,
    device: str = "cpu",
    repeats: int = REPEATS,
) -> dict[str, float]:
    """Milliseconds for one image, from a network's input to its answer.

    Args:
        networks: by name; all but the teacher are students, and the ensemble asks one after the other.
        task: detectors answer with boxes, classifiers with probabilities.
        image_size: (height, width) of the input, or the side of a square one.
        threads: to compute with, on a CPU.
        device: to compute on.
        repeats: measurements of each network; see ``median_seconds``.

    Returns:
        Median by network; "ensemble" where there are several students.
    """
    image = torch.zeros(1, 3, *input_size(image_size), device=device)
    placed = {name: network.to(device).eval() for name, network in networks.items()}
    members = {name: [network] for name, network in placed.items()}
    students = [network for name, network in placed.items() if name != NetworkName.TEACHER]
    if len(students) > 1:
        members[NetworkName.ENSEMBLE.value] = students
    answer = find_boxes if task is Task.DETECTION else classify
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        seconds = median_seconds(
            {name: functools.partial(answer, parts, image) for name, parts in members.items()}, repeats=repeats
        )
    finally:
        torch.set_num_threads(before)
    return {name: 1000 * value for name, value in seconds.items()}


def find_boxes(networks: Sequence[nn.Module], image: torch.Tensor) -> object:
    """Boxes of one detector, or of the ensemble of several, in one image.

    Args:
        networks: in evaluation mode.
        image: float, [1, 3, height, width].
    """
    height, width = image.shape[-2:]
    candidates = [decode_anchors(network(image), height, width) for network in networks]
    limits = torch.tensor([[width, height]], device=image.device, dtype=torch.float32)
    return suppress(average_anchors(candidates), limits=limits)  # reads scores, and so waits for a GPU


def classify(networks: Sequence[nn.Module], image: torch.Tensor) -> object:
    """Class probabilities of one classifier, or of the ensemble of several, in one image.

    Args:
        networks: in evaluation mode.
        image: float, [1, 3, height, width].
    """
    return torch.stack([network(image).softmax(1) for network in networks]).mean(0).cpu()  # waits for a GPU


def device_name(device: str) -> str:
    """What a person calls the processor, such as "NVIDIA H100" or the CPU's model."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
