"""Commands that are recorded can be typed again, and a run that goes on keeps where it came from."""

from __future__ import annotations

import shlex
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdml_med import evaluate, train, write_report
from kdml_med.bundle import evaluation
from kdml_med.bundle.provenance import made_by, words_to_type
from kdml_med.engines.trainer import KDMLTrainer
from kdml_med.errors import InputError
from kdml_med.handlers.metrics import CohortMetrics
from kdml_med.runs import checkpoint_path, read_run_json
from tests.examples import examples
from tests.networks.tiny import TINY

PYTHON = "/opt/project/.venv/bin/python"


@pytest.mark.parametrize(
    ("arguments", "original", "module", "expected"),
    [
        (
            ["/opt/project/.venv/bin/kdml-med", "train", "my data", "--run", "runs/a"],
            [PYTHON, "/opt/project/.venv/bin/kdml-med", "train", "my data", "--run", "runs/a"],
            None,
            "kdml-med train 'my data' --run runs/a",
        ),
        (
            ["/opt/site-packages/monai/bundle/__main__.py", "run", "--max_epochs", "3"],
            [PYTHON, "-m", "monai.bundle", "run", "--max_epochs", "3"],
            "monai.bundle.__main__",
            "python -m monai.bundle run --max_epochs 3",
        ),
        (
            ["/opt/preprocessing/tile_slides.py", "in"],
            [PYTHON, "-m", "preprocessing.tile_slides", "in"],
            "preprocessing.tile_slides",
            "python -m preprocessing.tile_slides in",
        ),
        (["study.py", "-x"], [PYTHON, "study.py", "-x"], None, "python study.py -x"),
        (["-c"], [PYTHON, "-c", "import kdml_med; print(1)"], None, "python -c 'import kdml_med; print(1)'"),
        ([""], [PYTHON], None, "python"),
        ([], [], None, "python"),
    ],
)
def test_commands_are_recorded_as_they_are_typed(
    arguments: list[str], original: list[str], module: str | None, expected: str
) -> None:
    assert words_to_type(arguments, original, module) == expected


@settings(max_examples=examples(50))
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))))
def test_every_word_comes_back_from_a_shell(words: list[str]) -> None:
    assert shlex.split(words_to_type(["kdml-med", *words], [], None)) == ["kdml-med", *words]


def test_a_run_that_goes_on_keeps_its_first_command_and_notes_others_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def typed(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["kdml-med", *words])

    typed("train", "a")
    first = made_by()
    assert first["command"] == "kdml-med train a"
    assert first["versions"]["torch"] == version("torch")
    assert made_by(first) == first, "the same command again"
    typed("train", "a", "--max-epochs", "9")
    longer = made_by(first)
    assert {name: longer[name] for name in first} == first
    assert [one["command"] for one in longer["continued"]] == ["kdml-med train a --max-epochs 9"]
    assert made_by(longer) == longer
    typed("train", "a")
    assert len(made_by(longer)["continued"]) == 2
    assert made_by({}) == made_by() == first, "earlier versions noted nothing"


def test_an_evaluation_of_weights_that_change_meanwhile_ends_and_vouches_for_nothing(
    tiles_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, tiles = shutil.copytree(tiles_run, tmp_path / "run"), tiles_run.parent / "tiles"
    run_evaluator = evaluation.run_evaluator

    def meanwhile(*arguments: object) -> object:
        found = run_evaluator(*arguments)
        # As a training that goes on writes a better student.
        shutil.copy(checkpoint_path(run, "student_1"), checkpoint_path(run, "student_0"))
        return found

    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "run_evaluator", meanwhile)
        with pytest.raises(InputError, match=r"run has other weights now .*: evaluate again when it has ended\.$"):
            evaluate(run, tiles, device="cpu")
    assert not any((run / "evaluation_test" / name).exists() for name in ("metrics.json", "evaluation.json"))


def test_an_evaluation_of_the_students_alone_is_no_other_one(tiles_run: Path, tmp_path: Path) -> None:
    run, tiles = shutil.copytree(tiles_run, tmp_path / "run"), tiles_run.parent / "tiles"
    evaluate(run, tiles, device="cpu", **{"network_def#students_only": True})
    networks = read_run_json(run / "evaluation_test", "metrics.json")["networks"]
    assert sorted(networks) == ["ensemble", "student_0", "student_1"]


@pytest.mark.slow
def test_a_finished_run_that_goes_on_has_no_figures_until_it_has_ended_again(
    tiles_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, tiles = shutil.copytree(tiles_run, tmp_path / "run"), tiles_run.parent / "tiles"
    settings = {"device": "cpu", "teacher": TINY, "students": [TINY, TINY], "max_epochs": 3}
    step, figures = KDMLTrainer._iteration, CohortMetrics._figures

    def interrupted(self: KDMLTrainer, *arguments: object) -> object:
        if self.state.epoch == 3:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(KDMLTrainer, "_iteration", interrupted)
        # The second epoch is the best so far.
        patched.setattr(CohortMetrics, "_figures", lambda *args: figures(*args) | {"ensemble_patient_auroc": 1.0})
        with pytest.raises(KeyboardInterrupt):
            train(tiles, run, **settings)
    with pytest.raises(InputError, match="is a training that is not finished: go on with the same command"):
        write_report(run)
    assert train(tiles, run, **settings).metrics["best_epoch"] >= 2
