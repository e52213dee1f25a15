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
from tests.benchmarks import training_methods, training_peers
from tests.benchmarks.bench_training import (
    CHOSEN,
    FLOAT32,
    NAIVE,
    Lane,
    Part,
    parts_of,
    print_aims,
    print_methods,
    print_ratios,
)
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
import importlib, json, sys, torch
from kdml_med.networks import memory
from tests.benchmarks.training_course import Course

def method(course):
    filled = torch.utils.deterministic.fill_uninitialized_memory
    told = [torch.are_deterministic_algorithms_enabled(), filled, memory._blocks, torch.get_num_threads()]
    print(json.dumps(told + ["kdml_med.engines" in sys.modules]))
    return lambda steps: None

for name in ("training_peers", "training_methods"):
    module = importlib.import_module(f"tests.benchmarks.{name}")
    module.METHODS["none"] = method
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.set_num_threads(1)
    module.prepare(Course("classification", "tiny", 64, 4, threads=3).request("none"))
"""


@pytest.mark.slow
def test_every_library_trains_under_the_conditions_of_a_training_here() -> None:
    """In a process of its own, which they are for. Engines need ignite, which the peers' environment lacks."""
    said = subprocess.run([sys.executable, "-c", CONDITIONS], check=True, capture_output=True, text=True).stdout
    peers, own = map(json.loads, said.splitlines())
    kept = 1 if sys.platform == "linux" else 0
    assert peers == [True, False, kept, 3, False]
    assert own == [True, False, 2 * kept, 3, True]


NEEDED = """
import importlib.metadata, re, sys
from pathlib import Path

def name_of(requirement):
    return re.match("[A-Za-z0-9._-]*", requirement).group().lower().replace("_", "-")

there = {name_of(line) for line in Path("tests/benchmarks/peers_training.txt").read_text().splitlines()}
further = {"kdml-med", "torch"}
while further:
    there |= further
    lines = [line for name in further - {"kdml-med"} for line in importlib.metadata.requires(name) or ()]
    installed = {name_of(one.metadata["Name"]) for one in importlib.metadata.distributions()}
    further = {name_of(line) for line in lines if "extra ==" not in line} & installed - there

class OnlyThese:
    owners = importlib.metadata.packages_distributions()

    @classmethod
    def find_spec(cls, name, *_):
        package = name.partition(".")[0]
        if package in cls.owners and there.isdisjoint(map(name_of, cls.owners[package])):
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)

sys.meta_path.insert(0, OnlyThese)
from tests.benchmarks import training_peers
training_peers.Course("classification", "edge", 64, 4).cohort()
"""


@pytest.mark.slow
def test_the_environment_of_other_libraries_has_what_the_networks_need() -> None:
    """Only what its list names, and what torch needs, can be imported."""
    done = subprocess.run([sys.executable, "-c", NEEDED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


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


def test_the_chosen_precision_is_what_a_training_would_choose_and_trains(cohorts: list[Cohort]) -> None:
    course = course_of("classification")
    chosen = training_methods.chosen_for(course)
    assert chosen["memory_format"] == "channels_last"
    # Channels last as the rule has it: in another order of memory float32 adds up in another order, too.
    bfloat16, float32 = ({"precision": name, "memory_format": "channels_last"} for name in ("bf16", "fp32"))
    for acceleration in (chosen, bfloat16, float32):
        training_methods.cohort(course, **acceleration)(1)
    rule, rounded, plain = (weights(cohort.networks["teacher"]) for cohort in cohorts[-3:])
    assert not torch.equal(rounded, plain)
    assert torch.equal(rule, rounded if chosen["precision"] == "bf16" else plain)


def test_torchdistill_is_given_the_loss_of_the_cohort() -> None:
    course = course_of("classification")
    noise = course.batch_of_noise()
    answers = course.cohort()(noise["image"])
    teacher = answers["teacher"]
    students = {name: answer for name, answer in answers.items() if name != "teacher"}
    said = {"teacher": {".": {"output": teacher}}, "student": {".": {"output": students}}}
    terms = course.loss()(answers, noise["label"])
    assert torch.equal(training_peers.Terms(course.loss())(said, {}, noise["label"]), terms["loss"])
    assert len(students) == 2
    assert terms["student_1_ml"] > 0


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


def test_tables_have_a_cell_for_every_method_and_say_what_was_reached(capsys: pytest.CaptureFixture[str]) -> None:
    def turn(seconds: float, mib: float) -> list[Turn]:
        return [Turn(1, seconds, 2 * seconds, mib, 0.0)] * 2

    turns = {
        "teacher": turn(2.0, 100.0), "student_0": turn(1.0, 50.0), FLOAT32: turn(4.2, 190.0), CHOSEN: turn(2.0, 150.0),
        NAIVE: turn(8.0, 240.0), "torchdistill": turn(5.0, 220.0),
    }  # fmt: skip
    chosen = {"precision": "bf16", "in_float32": ["student_0"], "memory_format": "channels_last"}
    lane = Lane(course_of("classification"), [Part("teacher", 1), Part("student_0", 2)], turns, chosen, {})
    edge = Lane(course_of("classification", "edge"), lane.parts, {**turns, FLOAT32: turn(4.0, 220.0)}, chosen, {})
    for print_table in (print_ratios, print_methods, print_aims):
        print_table([lane, edge])
    lines = capsys.readouterr().out.splitlines()
    assert [line.count("|") for line in lines if line] == [12] * 4 + [13] * 12 + [10] * 4
    first = "| classification | tiny | 64 | 4 |"
    how = "bf16 (student_0: fp32), channels_last"
    assert f"{first} 4.000 | {how} | 1.05 | 0.50 | 2.00 | – | 1.25 |" in lines
    assert f"{first} {FLOAT32} | 4.200 | 1.05 | 0% | 8.400 | 1.05 | 190 | 0.95 |" in lines
    assert f"{first} networks alone, summed | 4.000 | | | 8.000 | | 200 | |" in lines
    assert f"{first} 1.05 | ≤ 1.00 | no | 0.95 | yes |" in lines
    assert "| classification | edge | 64 | 4 | 1.00 | ≤ 1.03 | yes | 1.10 | no |" in lines
