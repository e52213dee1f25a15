"""The bench of training trains what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from kdml_med.networks import Cohort
from tests.benchmarks import training_methods
from tests.benchmarks.bench_training import FLOAT32, Lane, Part, parts_of
from tests.benchmarks.training_course import Course, warm_up
from tests.benchmarks.turns import Turn

TASKS = ("classification", "detection")


def course_of(task: str, version: str = "tiny") -> Course:
    return Course(task, version, 64, 4)


@pytest.fixture
def cohorts(monkeypatch: pytest.MonkeyPatch) -> list[Cohort]:
    """Every cohort that a method has built, in order."""
    built: list[Cohort] = []
    build = Course.cohort
    monkeypatch.setattr(Course, "cohort", lambda course: built.append(build(course)) or built[-1])
    return built


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


@pytest.fixture
def updates() -> Iterator[list[torch.Tensor]]:
    """Parameters that optimizers have updated, in order."""
    seen: list[torch.Tensor] = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        seen.extend(p for group in optimizer.param_groups for p in group["params"] if p.grad is not None)

    hook = register_optimizer_step_post_hook(note)
    yield seen
    hook.remove()


@pytest.mark.parametrize("task", TASKS)
def test_methods_update_every_network_in_every_step(
    task: str, cohorts: list[Cohort], updates: list[torch.Tensor]
) -> None:
    course = course_of(task)
    for method in ("cohort", "naive"):
        work = training_methods.METHODS[method](course)
        updates.clear()
        work(3)
        counts = Counter(map(id, updates))
        for name, parameter in cohorts[-1].named_parameters():
            assert counts[id(parameter)] == 3, (method, name)


@pytest.mark.parametrize("task", TASKS)
def test_a_teacher_is_trained_alike_alone_in_the_cohort_and_in_the_naive_loop(task: str, cohorts: list[Cohort]) -> None:
    course = course_of(task)
    for method in (
        training_methods.part(course, "teacher"),
        training_methods.cohort(course),
        training_methods.naive(course),
    ):
        method(1)
    alone, together, naive = (weights(cohort.networks["teacher"]) for cohort in cohorts)
    assert torch.equal(alone, together)
    assert torch.equal(alone, naive)


CONDITIONS = """
import json, sys, torch
from tests.benchmarks import {module} as own
from tests.benchmarks.training_course import Course, warm_up
from kdml_med.networks import memory

def method(course):
    filled = torch.utils.deterministic.fill_uninitialized_memory
    told = [torch.are_deterministic_algorithms_enabled(), filled, memory._blocks, torch.get_num_threads()]
    print(json.dumps(told))
    return lambda steps: None

own.METHODS["none"] = method
own.prepare(Course("classification", "tiny", 64, 4, threads=3).request("none"))
print(json.dumps("kdml_med.engines" in sys.modules))
"""


@pytest.mark.parametrize("module", ["training_methods", "training_peers"])
def test_every_library_trains_under_the_conditions_of_a_training_here(module: str) -> None:
    """In a process of its own, which they are for."""
    words = [sys.executable, "-c", CONDITIONS.format(module=module)]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
    kept = 1 if sys.platform == "linux" else 0
    assert json.loads(said[0]) == [True, False, kept, 3]
    assert json.loads(said[1]) == (module == "training_methods")  # engines need ignite


@pytest.mark.parametrize("task", TASKS)
def test_the_code_of_a_step_is_no_memory_of_what_is_trained(task: str, cohorts: list[Cohort]) -> None:
    """A step of all networks is made before memory is counted, at the size of the smallest images."""
    asked = Course(task, "tiny", 512, 32, "cuda").request("part", network="teacher")
    steps: list[int] = []
    hook = register_optimizer_step_post_hook(lambda optimizer, *_: steps.append(len(optimizer.param_groups)))
    warm_up(asked)
    hook.remove()
    assert steps == [len(cohorts[0].parameter_groups())]
    assert {parameter.grad is not None for parameter in cohorts[0].parameters() if parameter.requires_grad} == {True}


def test_networks_of_one_kind_are_measured_once_and_counted() -> None:
    assert parts_of(course_of("classification", "v1")) == [Part("teacher", 1), Part("student_0", 2)]
    names = [part.name for part in parts_of(course_of("detection", "v3"))]
    assert names == ["teacher", "student_0", "student_1"]


def test_steps_are_compared_with_the_sum_of_the_networks_round_by_round() -> None:
    turns = {
        "teacher": [Turn(2, 4.0, 8.0, 100.0, 0.0), Turn(2, 2.0, 4.0, 120.0, 0.0)],
        "student_0": [Turn(4, 2.0, 4.0, 40.0, 0.0), Turn(4, 1.0, 2.0, 40.0, 0.0)],
        FLOAT32: [Turn(1, 3.0, 3.0, 100.0, 0.0), Turn(1, 3.0, 3.0, 100.0, 0.0)],
    }
    lane = Lane(course_of("classification"), [Part("teacher", 1), Part("student_0", 2)], turns, {}, {})
    assert lane.methods == [FLOAT32]
    assert lane.sum_seconds() == [3.0, 1.5]  # 2 + 2 · 0.5, then 1 + 2 · 0.25
    assert lane.by_sum(FLOAT32).median == 1.5
    assert lane.by_sum_cpu(FLOAT32).median == pytest.approx((3 / 6 + 3 / 3) / 2)
    assert lane.sum_mib() == 200.0
