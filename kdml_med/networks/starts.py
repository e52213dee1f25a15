"""Students that start from one file of weights and yet apart: each draws a part of its own random stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from kdml_med.errors import InputError
from kdml_med.networks.retinanet import RetinaNet
from kdml_med.networks.stages import final_stage
from kdml_med.networks.weights import CLASSIFIER_PREFIXES

OwnStart = Literal["none", "head", "last_stage"]
"""What a student does not take from a file: nothing, the classifier, or that and the last stage of its body."""
OWN_STARTS = get_args(OwnStart)


def starts_of(own_start: str | Sequence[str], students: int) -> list[str]:
    """One start for each student.

    Raises:
        InputError: a list of another length.
    """
    if isinstance(own_start, str):
        return [own_start] * students
    if len(own_start) != students:
        raise InputError(f"own_start has {len(own_start)} entries for {students} students: give one, or one for each.")
    return list(own_start)


def own_part(network: nn.Module, start: str) -> dict[str, Tensor]:
    """Copies of the parameters and statistics that a student keeps as they were drawn, by name.

    Args:
        network: as it was built, with no weights loaded. Of a detector the body counts; its pyramid and its heads are
            in no file.
        start: one of ``OWN_STARTS``.

    Raises:
        InputError: there is no such classifier; or the last stage is asked for, and the network does not say which it
            is.
    """
    if start == "none":
        return {}
    state = network.state_dict()
    names = [] if isinstance(network, RetinaNet) else [name for name in state if name.startswith(CLASSIFIER_PREFIXES)]
    if not names and not isinstance(network, RetinaNet):
        raise InputError(
            f"own_start is {start}, but a {type(network).__name__} has no classifier called "
            f"{', '.join(prefix.rstrip('.') for prefix in CLASSIFIER_PREFIXES)} that it could draw: set it to none."
        )
    if start == "last_stage":
        body = network.body if isinstance(network, RetinaNet) else network
        parts = final_stage(body)
        if not parts:
            raise InputError(
                f"own_start is last_stage, but a {type(body).__name__} does not say which stage is its last: take "
                "head, or give it a method feature_stages() that returns its modules by stride."
            )
        own = {tensor.data_ptr() for part in parts for tensor in part.state_dict().values() if tensor.numel()}
        names += [name for name, tensor in state.items() if tensor.data_ptr() in own and name not in names]
    return {name: state[name].clone() for name in names}


def keep_own(network: nn.Module, part: dict[str, Tensor]) -> None:
    """Put back what ``own_part`` copied, in place."""
    state = network.state_dict()
    with torch.no_grad():
        for name, value in part.items():
            state[name].copy_(value)
