"""What a network costs: parameters, multiply-accumulates, bytes on disk and milliseconds."""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from kdml_med.networks.registry import NetworkSpec, build_network, cohort_spec
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

    Timed are the networks of one arm, that of the reference where it is done; ``known_latency`` says for others whether
    that tells about theirs.

    Args:
        plan: the plan of the results.
        out: results folder.
        again: measure every version anew, for example on another machine.
        device: to compute on.
        repeats: measurements of each network.

    Returns:
        By version ("versions") the "networks" (specs by name) and the "image_size" that were timed, "milliseconds" by
        network and "cpu_share", the part of the time that this process was let compute; if there are any, the "device"
        and its "threads".
    """
    path = out / SPEED_FILE
    known: dict[str, Any] = read_run_json(out, SPEED_FILE) if path.is_file() and not again else {"versions": {}}
    take(known, "versions", dict[str, dict[str, Any]], path, remedy="Delete it, and it is measured again.")
    wanted = {version: _to_be_timed(folders) for version in plan.versions if (folders := _finished(plan, out, version))}
    # Before the reference was done, other networks may have been timed in its place.
    lacking = [version for version, one in wanted.items() if not one.is_in(known["versions"].get(version, {}))]
    if not lacking:
        return known
    here = {"device": device_name(device), "threads": plan.threads}
    if any(known.get(key, value) != value for key, value in here.items()):
        known = {"versions": {}}  # times of two machines must not stand in one table
        lacking = list(wanted)
    for version in lacking:
        logger.info("measuring the latency of version %s", version)
        known["versions"][version] = _version_latency(plan, wanted[version], device=device, repeats=repeats)
    known |= here
    write_json(path, known)
    return known


def known_latency(
    measured: Mapping[str, Any], networks: Mapping[str, NetworkSpec], image_size: Sequence[int], name: str
) -> float | None:
    """Milliseconds of one of an arm's networks, if the same ones were timed with images of the same size.

    Args:
        measured: of the arm's version in speed.json.
        networks: specs of the arm by name.
        image_size: (height, width) of the arm's images, pixels.
        name: one of the networks, or "ensemble" for all students together.
    """
    if list(image_size) != measured.get("image_size"):
        return None
    if "networks" not in measured:  # by an earlier version
        taken: float | None = measured["milliseconds"].get(name)
        return taken
    # Its own name goes first: networks of one spec were timed one by one.
    for other in (name, *measured["milliseconds"]):
        known = other in measured["milliseconds"]
        if known and _answering(measured["networks"], other) == _answering(networks, name):
            return float(measured["milliseconds"][other])
    return None


def _answering(networks: Mapping[str, NetworkSpec], name: str) -> list[str]:
    """Specs of the networks that answer together under a name, as text in a fixed order."""
    students = [own for own in networks if own != NetworkName.TEACHER]
    wanted = students if name == NetworkName.ENSEMBLE else [own for own in networks if own == name]
    return sorted(json.dumps(_built(networks[own]), sort_keys=True) for own in wanted)


def _built(spec: NetworkSpec) -> dict[str, Any]:
    """A spec without what only the initial weights depend on."""
    named = {"name": spec} if isinstance(spec, str) else spec
    return {key: value for key, value in named.items() if key != "stream"}


@dataclass(frozen=True)
class _Timed:
    """What is timed of a version.

    Attributes:
        folders: run folder of each network by its name.
        networks: their specs.
        image_size: [height, width] of the input, pixels.
    """

    folders: Mapping[str, Path]
    networks: Mapping[str, NetworkSpec]
    image_size: list[int]

    def is_in(self, measured: Mapping[str, Any]) -> bool:
        """Whether it is what was timed."""
        # Earlier versions did not record which networks they had timed.
        known = measured.get("networks", self.networks)
        return (known, measured.get("image_size")) == (self.networks, self.image_size)


def _version_latency(plan: Plan, timed: _Timed, *, device: str, repeats: int) -> dict[str, Any]:
    networks = {name: load_network(folder, name) for name, folder in timed.folders.items()}
    wall, cpu = time.perf_counter(), time.process_time()
    milliseconds = measure_latency(
        networks, task=plan.task, image_size=timed.image_size, threads=plan.threads, device=device, repeats=repeats
    )
    share = (time.process_time() - cpu) / (time.perf_counter() - wall)
    return {
        "networks": timed.networks,
        "image_size": timed.image_size,
        "milliseconds": milliseconds,
        "cpu_share": round(share, 2),
    }


def _finished(plan: Plan, out: Path, version: str) -> list[Path]:
    """Folders of finished trainings, those of the reference first; the teacher alone is none of them."""
    cells = [cell for cell in expand(plan) if cell.version == version and not cell.teacher_alone]
    cells.sort(key=lambda cell: cell.arm != plan.reference)
    return [out / cell.path for cell in cells if (out / cell.path / CELL_FILE).is_file()]


def _to_be_timed(folders: Sequence[Path]) -> _Timed:
    """Every network of the first training, and the teacher of another one if the first has none."""
    first = RunDescription.read(folders[0])
    found = {name: (folders[0], spec) for name, spec in first.networks.items()}
    for folder in folders[1:] if NetworkName.TEACHER not in found else ():
        networks = RunDescription.read(folder).networks
        if NetworkName.TEACHER in networks:
            found[NetworkName.TEACHER.value] = (folder, networks[NetworkName.TEACHER.value])
            break
    names = sorted(found, key=network_order)
    return _Timed(
        {name: found[name][0] for name in names},
        {name: found[name][1] for name in names},
        list(input_size(first.image_size)),
    )
