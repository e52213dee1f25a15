"""What a network costs: parameters, multiply-accumulates, bytes on disk and milliseconds."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdml_med.experiments.plan import Cell, Plan
from kdml_med.keys import NetworkName, Task
from kdml_med.networks.registry import build_network, cohort_spec

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
