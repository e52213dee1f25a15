"""Curves over the epochs, as far as a run left them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdml_med.clinical.study import read_study
from kdml_med.clinical.training import training_sections
from kdml_med.errors import InputError
from kdml_med.report.document import Paragraph, Picture
from kdml_med.runs import HISTORY_FILE, LOSSES_FILE
from tests.clinical.detectors import write_study

LOSSES = """epoch,iterations,network,term,weight,value
1,9,teacher,task,1.0,1.5
1,9,student_0,task,1.0,1.25
1,9,student_0,kd,0.5,0.5
2,9,teacher,task,1.0,1.0
2,9,student_0,task,1.0,0.75
2,9,student_0,kd,1.0,0.25
"""
HISTORY = """epoch,network,figure,value
1,teacher,ap50,0.25
1,ensemble,ap50,0.5
1,teacher,loss,1.5
1,teacher,f1,0.125
2,teacher,ap50,0.75
2,ensemble,ap50,0.875
2,teacher,loss,1.25
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_study(tmp_path)


def pictures(run: Path) -> dict[str, Picture]:
    parts = [part for section in training_sections(read_study(run)) for part in section.parts]
    return {part.name: part for part in parts if isinstance(part, Picture)}


def lines(picture: Picture) -> list[tuple[list[float], list[float]]]:
    drawn = [line for axis in picture.figure.axes for line in axis.lines]
    return [(list(map(float, line.get_xdata())), list(map(float, line.get_ydata()))) for line in drawn]


def test_a_run_that_left_no_curves_has_no_section(run):
    assert training_sections(read_study(run)) == []


def test_losses_and_validations_are_drawn_as_they_were_noted(run):
    (run / LOSSES_FILE).write_text(LOSSES)
    (run / HISTORY_FILE).write_text(HISTORY)
    found = pictures(run)
    assert list(found) == ["losses.png", "validation_ap50.png", "validation_loss.png"]
    assert ([1, 2], [0.5, 0.25]) in lines(found["losses.png"])
    assert lines(found["validation_ap50.png"])[:2] == [([1, 2], [0.25, 0.75]), ([1, 2], [0.5, 0.875])]
    assert lines(found["validation_loss.png"])[0] == ([1, 2], [1.5, 1.25])
    assert found["validation_ap50.png"].caption.startswith("AP50 on the validation split")


def test_the_epoch_of_the_weights_is_said(run):
    (run / LOSSES_FILE).write_text(LOSSES)
    (section,) = training_sections(read_study(run))
    text = section.parts[0]
    assert isinstance(text, Paragraph)
    assert text.text.startswith("2 epochs. The weights of epoch 2 are used everywhere on this page")


@pytest.mark.parametrize("asked", [1, 12])
def test_epochs_are_those_that_were_trained_whatever_the_last_command_asked_for(tmp_path, asked):
    run = write_study(tmp_path, knobs={"max_epochs": asked})
    (run / LOSSES_FILE).write_text(LOSSES)
    (section,) = training_sections(read_study(run))
    assert section.parts[0].text.startswith("2 epochs. ")


def test_a_damaged_history_is_said_in_one_line(run):
    (run / HISTORY_FILE).write_text("epoch,network\n1,teacher\n")
    with pytest.raises(InputError, match="lacks the columns"):
        training_sections(read_study(run))


def test_a_training_that_stopped_early_and_averaged_weights_are_said(tmp_path):
    knobs = {"max_epochs": 4, "early_stopping": 1, "average": "swa", "swa_start": 0.4}
    words = {}
    for name, changed in (("swa", {}), ("before", {"swa_start": 0.5}), ("ema", {"average": "ema"})):
        run = write_study(tmp_path / name, knobs=knobs | changed)
        (run / LOSSES_FILE).write_text(LOSSES)
        (section,) = training_sections(read_study(run))
        assert isinstance(section.parts[0], Paragraph)
        words[name] = section.parts[0].text
    assert all(
        text.startswith("Stopped early after 2 of up to 4 epochs. The weights of epoch 2") for text in words.values()
    )
    assert "They are averages over the ends of the last epochs" in words["swa"]
    assert "averages" not in words["before"]
    assert "They are exponential averages" in words["ema"]
