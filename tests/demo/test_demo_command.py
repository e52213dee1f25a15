"""The command `demo`: which steps it runs, and what stands at the end of the screen."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from kdml_med.programs import demo as program
from kdml_med.programs.make_demo import DemoTask


@pytest.mark.parametrize(
    ("task", "steps", "report"),
    [
        (DemoTask.MSI, ["tile", "split", "train", "evaluate", "predict", "report"], "run/report.html"),
        (DemoTask.POLYP, ["frames", "train", "evaluate", "predict", "report"], "polyps/report.html"),
    ],
)
def test_demo_ends_with_its_report(
    task: DemoTask,
    steps: list[str],
    report: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ran: list[list[str]] = []

    def run(words: list[str], check: bool) -> SimpleNamespace:
        ran.append(words[words.index("kdml_med.cli") + 1 :])
        return SimpleNamespace(returncode=0)

    def run_here(words: list[str]) -> int:
        ran.append(words)
        return 0

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(program, "run_command", run_here)
    monkeypatch.setattr(program, "make_demo", lambda *args, **settings: None)
    monkeypatch.setattr(program, "_test_slide", lambda tiles: "S1")
    program.demo(task=task, out=tmp_path)
    assert [words[0] for words in ran] == steps
    assert ran[-1] == ["report", str((tmp_path / report).parent)]
    assert capsys.readouterr().out.splitlines()[-1] == f"Report: {tmp_path / report}"


def test_a_command_that_fails_ends_the_demo_with_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run_here(words: list[str]) -> int:
        ran.append(words[0])
        return 3 if words[0] == "evaluate" else 0

    monkeypatch.setattr(program, "_in_own_process", run_here)
    monkeypatch.setattr(program, "run_command", run_here)
    monkeypatch.setattr(program, "make_demo", lambda *args, **settings: None)
    with pytest.raises(typer.Exit) as ending:
        program.demo(task=DemoTask.POLYP, out=tmp_path)
    assert ending.value.exit_code == 3
    assert ran == ["frames", "train", "evaluate"]
