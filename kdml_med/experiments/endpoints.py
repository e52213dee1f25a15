"""What a plan says beforehand that arms are compared by: endpoints, and pairs of arms beside those of the reference."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, get_args

from kdml_med.errors import InputError
from kdml_med.keys import Task

ComparedRole = Literal["ensemble", "students"]
"""What is judged of an arm: the ensemble, or the mean of its single students."""
COMPARED_ROLES: tuple[ComparedRole, ...] = get_args(ComparedRole)
METRICS: dict[Task, tuple[str, ...]] = {
    Task.CLASSIFICATION: ("auroc", "tile_auroc"),
    Task.DETECTION: ("ap50", "ap75", "ap"),
}
"""What arms can be compared by; the first is what a plan compares unless it says otherwise."""
ENDPOINT_METRICS: dict[Task, tuple[str, ...]] = {
    Task.CLASSIFICATION: (*METRICS[Task.CLASSIFICATION], "brier", "tile_brier"),
    Task.DETECTION: METRICS[Task.DETECTION],
}
"""What endpoints can be about. Of detectors there is no Brier score: their boxes are not the same from arm to arm."""


@dataclass(frozen=True)
class Endpoint:
    """One figure that arms are compared by.

    Attributes:
        role: of whom.
        metric: one of ``ENDPOINT_METRICS``.
    """

    role: ComparedRole
    metric: str


def read_endpoints(names: Sequence[str], metric: str, task: Task, where: str = "the plan") -> list[Endpoint]:
    """Endpoints of a plan, in its order.

    Args:
        names: each a role, for the plan's metric, or role_metric, such as "ensemble_brier".
        metric: of the plan.
        task: of its bundle.
        where: the plan, for messages.

    Raises:
        InputError: no list of texts, an unknown name, or one that occurs twice.
    """
    known: dict[str, Endpoint] = {role: Endpoint(role, metric) for role in COMPARED_ROLES}
    known |= {f"{role}_{name}": Endpoint(role, name) for role in COMPARED_ROLES for name in ENDPOINT_METRICS[task]}
    _check_list("endpoints", names, '["ensemble", "students"]', where)
    for name in names:
        if not isinstance(name, str) or name not in known:
            near = get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(f"{where}: unknown endpoint {name!r}.{hint} Known: {', '.join(known)}.")
    endpoints = [known[name] for name in names]
    for place, endpoint in enumerate(endpoints):
        if endpoint in endpoints[:place]:
            raise InputError(f"{where}: endpoint {names[place]!r} is there twice.")
    return endpoints


def check_contrasts(contrasts: Sequence[Sequence[str]], arms: Collection[str], reference: str, where: str) -> None:
    """Check the pairs of arms of a plan.

    Raises:
        InputError: one is no pair of two arms of the plan, is there twice, or is of the reference anyhow.
    """
    _check_list("contrasts", contrasts, '[["kd_online", "independent"]]', where, empty=True)
    seen: list[set[Any]] = []
    for pair in contrasts:
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise InputError(f'{where}: contrast {pair!r}: expected two arms such as ["kd_online", "independent"].')
        for arm in pair:
            if arm not in arms:
                raise InputError(f"{where}: contrast {list(pair)}: {arm!r} is none of the arms {', '.join(arms)}.")
        both = set(pair)
        if len(both) == 1 or both in seen:
            raise InputError(f"{where}: contrast {list(pair)}: expected two different arms, each pair once.")
        if reference in both:
            raise InputError(f"{where}: contrast {list(pair)}: {reference!r} is compared with all arms anyhow.")
        seen.append(both)


def _check_list(key: str, value: Any, example: str, where: str, *, empty: bool = False) -> None:
    if isinstance(value, str) or not isinstance(value, Sequence) or not (value or empty):
        raise InputError(f"{where}: {key} is {value!r}, expected a list such as {example}.")
