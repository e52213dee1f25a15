"""What a network costs: parameters, multiply-accumulates, bytes on disk and milliseconds."""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdml_med.data.frames import input_size
from kdml_med.deploy.speed import REPEATS, device_name, measure_latency
from kdml_med.experiments.plan import Cell, Plan, expand
from kdml_med.experiments.training import CELL_FILE
from kdml_med.keys import NetworkName, Task, network_order
from kdml_med.networks.registry import build_network, cohort_spec
from kdml_med.runs import SPEED_FILE, RunDescription, load_network, read_run_json
from kdml_med.storage.files import write_json
from kdml_med.storage.reading import take

logger = logging.getLogger(__name__)

_TRAINED, _FROZEN = 3.0, 1.0  # a backward pass costs about two forward passes


def multiply_accumulates(network: nn.Module, height: int, width: int) -> int:
    """Multiply-accumulates of one forward pass of one image, convolutions and linear layers.

    Args:
        network: takes float [1, 3, height, width].
        height: of the input, pixels.
        width: likewise.
    """
    training = network.training
    network.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, height, width))
    network.train(training)
    return int(counter.get_total_flops()) // 2


def cell_cost(cell: Cell, plan: Plan) -> float:
    """How long a cell takes compared with others of the plan, for the remaining time; no unit."""
    settings = cell.settings
    spec = cohort_spec(cell.version, task=plan.task, teacher=settings.get("teacher"), students=settings.get("students"))
    cost = 0.0
    for name, network in spec.networks().items():
        if name == NetworkName.TEACHER and (settings.get("beta") == 0 or settings.get("use_teacher") is False):
            continue
        frozen = name == NetworkName.TEACHER and cell.needs is not None
        cost += (_FROZEN if frozen else _TRAINED) * _relative_cost(json.dumps(network), plan.task)
    return cost


@functools.cache
def _relative_cost(network: str, task: Task) -> float:
    spec: str | Mapping[str, Any] = json.loads(network)
    built = build_network(spec, num_classes=1 if task is Task.DETECTION else 2)
    return float(multiply_accumulates(built, 128, 128))


def latency(
    plan: Plan, out: Path, *, again: bool = False, device: str = "cpu", repeats: int = REPEATS
) -> dict[str, Any]:
    """What is in speed.json of a results folder, measured now for versions that it lacks.

    Args:
        plan: the plan of the results.
        out: results folder.
        again: measure every version anew, for example on another machine.
        device: to compute on.
        repeats: measurements of each network.

    Returns:
        By version ("versions") the "image_size", "milliseconds" by network and "cpu_share", the part of the time that
        this process was let compute; if there are any, the "device" and its "threads".
    """
    path = out / SPEED_FILE
    known: dict[str, Any] = read_run_json(out, SPEED_FILE) if path.is_file() and not again else {"versions": {}}
    take(known, "versions", dict[str, dict[str, Any]], path, remedy="Delete it, and it is measured again.")
    folders = {version: _finished(plan, out, version) for version in plan.versions}
    lacking = [version for version in plan.versions if folders[version] and version not in known["versions"]]
    if not lacking:
        return known
    here = {"device": device_name(device), "threads": plan.threads}
    if any(known.get(key, value) != value for key, value in here.items()):
        known = {"versions": {}}  # times of two machines must not stand in one table
        lacking = [version for version in plan.versions if folders[version]]
    for version in lacking:
        logger.info("measuring the latency of version %s", version)
        known["versions"][version] = _version_latency(plan, folders[version], device=device, repeats=repeats)
    known |= here
    write_json(path, known)
    return known


def _version_latency(plan: Plan, folders: Sequence[Path], *, device: str, repeats: int) -> dict[str, Any]:
    networks = {name: load_network(folder, name) for name, folder in _where_networks_are(folders).items()}
    size = RunDescription.read(folders[0]).image_size
    wall, cpu = time.perf_counter(), time.process_time()
    milliseconds = measure_latency(
        networks, task=plan.task, image_size=size, threads=plan.threads, device=device, repeats=repeats
    )
    share = (time.process_time() - cpu) / (time.perf_counter() - wall)
    return {"image_size": list(input_size(size)), "milliseconds": milliseconds, "cpu_share": round(share, 2)}


def _finished(plan: Plan, out: Path, version: str) -> list[Path]:
    """Folders of finished trainings, those of the reference first; the teacher alone is none of them."""
    cells = [cell for cell in expand(plan) if cell.version == version and not cell.teacher_alone]
    cells.sort(key=lambda cell: cell.arm != plan.reference)
    return [out / cell.path for cell in cells if (out / cell.path / CELL_FILE).is_file()]


def _where_networks_are(folders: Sequence[Path]) -> dict[str, Path]:
    """A folder for every network of the first training, and for the teacher if another one has it."""
    found = dict.fromkeys(RunDescription.read(folders[0]).networks, folders[0])
    for folder in folders[1:]:
        if NetworkName.TEACHER in RunDescription.read(folder).networks:
            found.setdefault(NetworkName.TEACHER.value, folder)
    return {name: found[name] for name in sorted(found, key=network_order)}
