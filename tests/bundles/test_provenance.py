"""Commands that are recorded can be typed again, and a run that goes on keeps where it came from."""

from __future__ import annotations

import shlex
import sys
from importlib.metadata import version

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdml_med.bundle.provenance import made_by, words_to_type
from tests.examples import examples

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
