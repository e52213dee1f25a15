"""Whole commands of training, before a change and after it: what ``bench_training --before`` prints."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.racing import timed
from tests.benchmarks.turns import ratio

CLI = (sys.executable, "-m", "kdml_med.cli")
BUNDLE = (sys.executable, "-m", "monai.bundle", "run", "--config_file")
FIGURES: dict[str, dict[str, Sequence[str]]] = {
    "msi": {"AUROC of patients": ("patient", "auroc"), "AUROC of tiles": ("tile", "auroc")},
    "polyp": {"AP50": ("ap50",), "AP": ("ap",)},
}
"""Figures of a test by task, and where they are in what metrics.json says of a network."""
AIM = 1.4
"""How much faster a whole command should be than before, at least."""
EPOCH_AIM = 1.05
"""An epoch without its validation by its steps, at most."""


@dataclass(frozen=True)
class Command:
    """One command that is timed.

    Attributes:
        name: in the table.
        task: "msi" or "polyp".
        whole: the demo with its data and its evaluation; else the training command of the bundle's page, on data that
            are there.
    """

    name: str
    task: str
    whole: bool

    def words(self, dataset: Path, out: Path) -> list[str]:
        """What is timed."""
        if self.whole:
            return [*CLI, "demo", "--task", self.task, "--out", str(out)]
        return [*BUNDLE, self._config("train"), *self._places(dataset, out)]

    def evaluation(self, dataset: Path, out: Path) -> list[str] | None:
        """What comes behind it without being timed, for the table of the test; None where that is written already."""
        if self.whole:
            return None
        configs = f"['{self._config('train')}','{self._config('evaluate')}']"
        return [*BUNDLE, configs, *self._places(dataset, out)]

    def _config(self, stage: str) -> str:
        return f"bundles/{self.task}_kdml/configs/{stage}.json"

    def _places(self, dataset: Path, out: Path) -> list[str]:
        return ["--dataset_dir", str(dataset), "--run_dir", str(out / "run")]

    def figures(self, out: Path) -> dict[str, Any]:
        """Figures of the test by network."""
        content = json.loads((out / "run" / "evaluation_test" / "metrics.json").read_text())
        figures: dict[str, Any] = content["networks"]
        return figures

    def epoch_over_steps(self, out: Path) -> float | None:
        """What the training says of its epochs; earlier versions say nothing."""
        content = json.loads((out / "run" / "metrics.json").read_text())
        share: float | None = content.get("training_speed", {}).get("epoch_over_steps")
        return share


COMMANDS = (
    Command("the training command of the bundle msi_kdml", "msi", False),
    Command("`make demo`, everything", "msi", True),
    Command("the training command of the bundle polyp_kdml", "polyp", False),
)


def print_commands(checkouts: Mapping[str, Path], rounds: int) -> None:
    """Time the commands of checkouts in turns, and print times, epochs and figures of the test.

    Raises:
        RaceError: a command failed.
    """
    seconds: dict[tuple[str, str], list[tuple[float, float]]] = {}
    epochs: dict[tuple[str, str], list[float]] = {}
    figures: dict[tuple[str, str], dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = _datasets(Path(folder), list(checkouts.values())[-1])
        for number in range(rounds):
            for command in COMMANDS:
                names = list(checkouts)
                for name in reversed(names) if number % 2 else names:
                    print(f"round {number + 1}: {command.name}, {name}", file=sys.stderr)
                    with tempfile.TemporaryDirectory(dir=folder) as out:
                        once = timed(command.words(data[command.task], Path(out)), checkouts[name])
                        seconds.setdefault((command.name, name), []).append(once)
                        share = command.epoch_over_steps(Path(out))
                        if share is not None:
                            epochs.setdefault((command.name, name), []).append(share)
                        if number == 0:
                            after = command.evaluation(data[command.task], Path(out))
                            if after:
                                timed(after, checkouts[name])
                            figures[command.name, name] = command.figures(Path(out))
    _print_times(checkouts, seconds)
    print()
    _print_epochs(epochs)
    print()
    _print_figures(checkouts, figures)


def _datasets(folder: Path, checkout: Path) -> dict[str, Path]:
    """The demo's datasets by task, which every checkout trains on."""
    for task in FIGURES:
        print(f"data of {task}", file=sys.stderr)
        timed([*CLI, "demo", "--task", task, "--data-only", "--out", str(folder / task)], checkout)
    return {"msi": folder / "msi" / "tiles", "polyp": folder / "polyp" / "frames"}


def _print_times(
    checkouts: Mapping[str, Path], seconds: Mapping[tuple[str, str], Sequence[tuple[float, float]]]
) -> None:
    print("| command | s | × | spread | wanted | reached | CPU s | × |\n" + "|---" * 8 + "|")
    for command in COMMANDS:
        before, after = (seconds[command.name, name] for name in checkouts)
        cells = []
        for part in (0, 1):
            old, new = [pair[part] for pair in before], [pair[part] for pair in after]
            faster = ratio(old, new)
            cells.append(f"{statistics.median(old):.0f} → {statistics.median(new):.0f} | {faster.median:.2f}")
            if part == 0:
                reached = "yes" if faster.median >= AIM else "no"
                cells.append(f"{faster.spread:.0%} | ≥ {AIM} | {reached}")
        print(f"| {command.name} | {' | '.join(cells)} |")


def _print_epochs(epochs: Mapping[tuple[str, str], Sequence[float]]) -> None:
    print("| command | version | epoch by its steps | wanted | reached |\n|---|---|---|---|---|")
    for (command, name), shares in epochs.items():
        share = statistics.median(shares)
        print(f"| {command} | {name} | {share:.3f} | ≤ {EPOCH_AIM} | {'yes' if share <= EPOCH_AIM else 'no'} |")


def _print_figures(checkouts: Mapping[str, Path], figures: Mapping[tuple[str, str], Mapping[str, Any]]) -> None:
    print(
        "| command | network | figure of the test | before, 95 % interval | after | within |\n|---|---|---|---|---|---|"
    )
    for command in COMMANDS:
        before, after = (figures[command.name, name] for name in checkouts)
        for network in before:
            for figure, place in FIGURES[command.task].items():
                old, interval = _figure(before[network], place)
                new, _ = _figure(after[network], place)
                within = "yes" if interval[0] <= new <= interval[1] else "**no**"
                shown = f"{old:.3f} ({interval[0]:.3f}–{interval[1]:.3f}) | {new:.3f}"
                print(f"| {command.name} | {network} | {figure} | {shown} | {within} |")


def _figure(figures: Mapping[str, Any], place: Sequence[str]) -> tuple[float, tuple[float, float]]:
    """A figure and its interval."""
    *outer, name = place
    for key in outer:
        figures = figures[key]
    low, high = figures[f"{name}_ci95"]
    return figures[name], (low, high)
