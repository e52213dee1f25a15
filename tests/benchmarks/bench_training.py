"""How fast a cohort is trained: beside its networks alone, a naive loop, and other libraries on the same networks.

    python -m tests.benchmarks.bench_training [--tasks …] [--versions …] [--sizes …] [--rounds 3] [--peers PYTHON]
    python -m tests.benchmarks.bench_training --before CHECKOUT
    python -m tests.benchmarks.bench_training --evaluation
    python -m tests.benchmarks.bench_training --cuda

A step is forward, losses, backward and update on one batch of noise that lies in memory. All methods stay ready in
processes of their own and take turns of half a second or one step; see ``training_methods`` and ``training_peers`` for
what they do. Printed are the tables of docs/performance.md, medians over the rounds: the step by the sum of the steps
of the networks alone, and each method's time, CPU time and memory. --before compares whole commands with those of an
earlier checkout, --evaluation measures the parts of an evaluation of detectors. Which precision pays for which network
is the question of ``bench_precision``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdml_med.keys import Task
from kdml_med.networks.registry import cohort_spec
from tests.benchmarks.racing import RaceError, describe_machine
from tests.benchmarks.training_commands import print_commands
from tests.benchmarks.training_course import Course
from tests.benchmarks.training_evaluation import print_evaluation
from tests.benchmarks.training_methods import chosen_for
from tests.benchmarks.turns import Racer, Ratio, Stable, Turn, ratio, stable, take_turns

VERSIONS = ("v1", "v2", "v3", "edge")
SIZES: dict[Task, dict[int, tuple[int, int]]] = {
    Task.CLASSIFICATION: {96: (96, 16), 224: (224, 8)},
    Task.DETECTION: {96: (128, 8), 224: (256, 4)},
}
"""Side of the input in pixels and images of a batch, by task and by the size that is asked for: sides of a detector's
input are multiples of 64 px."""
TURN_S = 0.5
FLOAT32, CHOSEN, NAIVE = "cohort, float32", "cohort, chosen precision", "naive loop"
PEERS = {"KD_Lib": ("kd_lib", "kd-lib"), "torchdistill": ("torchdistill", "torchdistill")}
"""Name in the table: what ``training_peers`` calls it, and its distribution."""
PLAIN = {"precision": "fp32", "memory_format": "contiguous"}
AIMS = {"v1": 1.00, "v2": 1.00, "v3": 1.00, "edge": 1.03}
"""Step of the cohort by the sum of the steps of its networks, at most; on a CPU, in float32 both."""
GPU_AIM = 0.7


@dataclass(frozen=True)
class Part:
    """One network that is trained alone; ``count`` networks of the cohort are like it."""

    name: str
    count: int


@dataclass(frozen=True)
class Lane:
    """What was measured of one course.

    Attributes:
        course: that was run.
        parts: its networks.
        turns: by method, those of parts under the names of their networks.
        chosen: precision and memory format that `auto` chooses here.
        why_not: what kept other libraries from running, by name.
    """

    course: Course
    parts: Sequence[Part]
    turns: Mapping[str, Sequence[Turn]]
    chosen: Mapping[str, Any]
    why_not: Mapping[str, str]

    @property
    def methods(self) -> list[str]:
        """Those that train the whole cohort."""
        return [name for name in self.turns if name not in {part.name for part in self.parts}]

    def seconds(self, method: str) -> list[float]:
        """Of a step, round by round."""
        return [turn.seconds / turn.steps for turn in self.turns[method]]

    def cpu_seconds(self, method: str) -> list[float]:
        """Likewise."""
        return [turn.cpu_seconds / turn.steps for turn in self.turns[method]]

    def mib(self, method: str) -> float:
        """Most memory, of the GPU where there is one."""
        return max(turn.device_mib or turn.peak_mib for turn in self.turns[method])

    def sum_seconds(self) -> list[float]:
        """Of a step of each network alone, round by round."""
        return self._sum([self.seconds(part.name) for part in self.parts])

    def sum_cpu_seconds(self) -> list[float]:
        """Likewise."""
        return self._sum([self.cpu_seconds(part.name) for part in self.parts])

    def sum_mib(self) -> float:
        """Memory of all networks alone."""
        return sum(part.count * self.mib(part.name) for part in self.parts)

    def by_sum(self, method: str) -> Ratio:
        """Step of a method by that sum."""
        return ratio(self.seconds(method), self.sum_seconds())

    def by_sum_cpu(self, method: str) -> Ratio:
        """Likewise, in CPU seconds."""
        return ratio(self.cpu_seconds(method), self.sum_cpu_seconds())

    def _sum(self, values: Sequence[Sequence[float]]) -> list[float]:
        counts = [part.count for part in self.parts]
        return [sum(n * v for n, v in zip(counts, each, strict=True)) for each in zip(*values, strict=True)]


def parts_of(course: Course) -> list[Part]:
    """The networks of a cohort that differ."""
    named: dict[str, Part] = {}
    for name, spec in cohort_spec(course.version, task=Task(course.task)).networks().items():
        key = json.dumps(spec, sort_keys=True)
        named[key] = Part(named[key].name, named[key].count + 1) if key in named else Part(name, 1)
    return list(named.values())


def requests_of(course: Course, parts: Sequence[Part], chosen: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the project's own stable is asked for, by method."""
    requests = {part.name: course.request("part", network=part.name) for part in parts}
    requests[FLOAT32] = course.request("cohort", **PLAIN)
    if not PLAIN.items() <= chosen.items():
        requests[CHOSEN] = course.request("cohort", **chosen)
    return requests | {NAIVE: course.request("naive")}


def run_course(course: Course, own: Stable, peers: Stable | None, rounds: int, why_not: dict[str, str]) -> Lane:
    """Let all methods train a course in turns; other libraries that fail are not tried again."""
    parts, chosen = parts_of(course), chosen_for(course)
    racers: dict[str, Racer] = {}
    with ExitStack() as stack:
        for name, request in requests_of(course, parts, chosen).items():
            racers[name] = own.racer(request)
            stack.callback(racers[name].close)
        if peers is not None and course.task == Task.CLASSIFICATION:
            for name, (method, _) in PEERS.items():
                if name in why_not:
                    continue
                try:
                    racers[name] = peers.racer(course.request(method))
                    stack.callback(racers[name].close)
                except RaceError as error:
                    why_not[name] = str(error)
        turns = take_turns(racers, rounds, seconds=TURN_S)
    return Lane(course, parts, turns, chosen, dict(why_not))


def describe(course: Course) -> str:
    """First cells of a row."""
    return f"{course.task} | {course.version} | {course.side_px} | {course.batch}"


HEAD = "| task | version | px | batch |"


def in_words(chosen: Mapping[str, Any]) -> str:
    """How is computed."""
    plain = ", ".join(chosen.get("in_float32", ()))
    return f"{chosen['precision']}{f' ({plain}: fp32)' if plain else ''}, {chosen['memory_format']}"


def print_ratios(lanes: Sequence[Lane]) -> None:
    """Steps by the sum of the networks alone, a row for each course."""
    names = [FLOAT32, CHOSEN, NAIVE, *PEERS]
    print(f"{HEAD} networks alone, s | chosen | " + " | ".join(names) + " |\n" + "|---" * (6 + len(names)) + "|")
    for lane in lanes:
        chosen = in_words(lane.chosen)
        cells = [f"{statistics.median(lane.sum_seconds()):.3f}", chosen]
        for name in names:
            measured = FLOAT32 if name == CHOSEN and name not in lane.turns else name
            cells.append(f"{lane.by_sum(measured).median:.2f}" if measured in lane.turns else "–")
        print(f"| {describe(lane.course)} | {' | '.join(cells)} |")


def print_methods(lanes: Sequence[Lane]) -> None:
    """Every method of every course."""
    print(f"{HEAD} method | s a step | × alone | spread | CPU s | × alone | peak MiB | × alone |\n" + "|---" * 12 + "|")
    for lane in lanes:
        total, cpu = statistics.median(lane.sum_seconds()), statistics.median(lane.sum_cpu_seconds())
        first = describe(lane.course)
        print(f"| {first} | networks alone, summed | {total:.3f} | | | {cpu:.3f} | | {lane.sum_mib():.0f} | |")
        for name in lane.methods:
            wall, busy = lane.by_sum(name), lane.by_sum_cpu(name)
            cells = [
                f"{statistics.median(lane.seconds(name)):.3f} | {wall.median:.2f} | {wall.spread:.0%}",
                f"{statistics.median(lane.cpu_seconds(name)):.3f} | {busy.median:.2f}",
                f"{lane.mib(name):.0f} | {lane.mib(name) / lane.sum_mib():.2f}",
            ]
            print(f"| {first} | {name} | {' | '.join(cells)} |")


def print_aims(lanes: Sequence[Lane]) -> None:
    """What was wanted of the step, and what was measured."""
    print(f"{HEAD} step by the networks alone | wanted | reached | memory by theirs | not above |\n" + "|---" * 9 + "|")
    for lane in lanes:
        on_gpu = lane.course.device != "cpu"
        method = CHOSEN if on_gpu and CHOSEN in lane.turns else FLOAT32
        wanted = GPU_AIM if on_gpu else AIMS.get(lane.course.version, 1.0)
        measured, memory = lane.by_sum(method).median, lane.mib(method) / lane.sum_mib()
        reached, small = ("yes" if value <= limit else "no" for value, limit in ((measured, wanted), (memory, 1.0)))
        print(f"| {describe(lane.course)} | {measured:.2f} | ≤ {wanted:.2f} | {reached} | {memory:.2f} | {small} |")


def peer_version(python: Path, distribution: str) -> str:
    """Installed version of another library; "" when it is not there."""
    if not python.exists():
        return ""
    code = f"import importlib.metadata as m; print(m.version({distribution!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=False).stdout.strip()


def _courses(arguments: argparse.Namespace) -> list[Course]:
    device = "cuda" if arguments.cuda else "cpu"
    courses = []
    for task in arguments.tasks:
        for size in arguments.sizes:
            side, batch = SIZES[Task(task)][size]
            batch = arguments.batch or batch
            courses += [Course(task, version, side, batch, device, arguments.threads) for version in arguments.versions]
    return courses


def _print_steps(arguments: argparse.Namespace) -> None:
    courses = _courses(arguments)
    why_not: dict[str, str] = {}
    with ExitStack() as stack:
        own = stack.enter_context(stable([sys.executable, "-m", "tests.benchmarks.training_methods"]))
        peers = None
        if arguments.peers:
            versions = {name: peer_version(arguments.peers, distribution) for name, (_, distribution) in PEERS.items()}
            why_not |= {name: "not installed" for name, version in versions.items() if not version}
            try:
                peers = stack.enter_context(stable([str(arguments.peers), "-m", "tests.benchmarks.training_peers"]))
            except (RaceError, OSError) as error:
                why_not |= dict.fromkeys(PEERS, str(error))
        lanes = []
        for course in courses:
            print(describe(course), file=sys.stderr)
            lanes.append(run_course(course, own, peers, arguments.rounds, why_not))
    for print_table in (print_ratios, print_methods, print_aims):
        print_table(lanes)
        print()
    for name, reason in why_not.items():
        print(f"{name}: {reason}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(Task), default=list(Task))
    parser.add_argument("--versions", nargs="+", default=list(VERSIONS))
    parser.add_argument("--sizes", nargs="+", type=int, choices=(96, 224), default=[96, 224], help="pixels")
    parser.add_argument("--batch", type=int, help="images; by default fewer of the larger size")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of torch; as many as it takes by default")
    parser.add_argument("--peers", type=Path, help="Python of an environment with tests/benchmarks/peers_training.txt")
    parser.add_argument("--before", type=Path, help="compare whole commands with those of this checkout instead")
    parser.add_argument("--evaluation", action="store_true", help="measure the evaluation of detectors instead")
    parser.add_argument("--cuda", action="store_true", help="measure on a GPU")
    arguments = parser.parse_args()
    if arguments.cuda and not torch.cuda.is_available():
        print("There is no CUDA GPU here: nothing was measured. Run this where there is one.")
        return
    where = (
        torch.cuda.get_device_name() if arguments.cuda else f"{arguments.threads or torch.get_num_threads()} threads"
    )
    print(f"{describe_machine()}\n\ntorch {torch.__version__}, {where}; {arguments.rounds} rounds\n")
    if arguments.before:
        print_commands({"before": arguments.before.resolve(), "after": Path(__file__).parents[2]}, arguments.rounds)
    elif arguments.evaluation:
        print_evaluation(arguments.versions, arguments.rounds)
    else:
        _print_steps(arguments)


if __name__ == "__main__":
    main()
