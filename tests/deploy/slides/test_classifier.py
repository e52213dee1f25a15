"""Networks that answer tiles are those that the prediction records, also where a run is trained again meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kdml_med.deploy.slides.classifier import Classifier, plan_classifier
from kdml_med.errors import InputError
from kdml_med.runs import RunDescription, checkpoint_path, hash_checkpoints
from tests.deploy.slides.green import MPP, GreenNetwork, predict, tiles_of, write_run
from tests.synthetic_slides import write_slide


def train_again(run_dir: Path, *, gain: float) -> None:
    """Another training left other weights in the folder."""
    torch.save(GreenNetwork(gain=gain).state_dict(), checkpoint_path(run_dir, "student_0"))


def test_a_run_that_was_trained_again_answers_with_its_new_weights_in_the_same_session(tmp_path: Path) -> None:
    run_dir, slide = write_run(tmp_path / "run"), tmp_path / "a.svs"
    write_slide(slide, width=300, height=300, mpp=MPP)

    def logits(name: str) -> torch.Tensor:
        predict(run_dir, slide, tmp_path / name, network="student_0")
        recorded = json.loads((tmp_path / name / "prediction.json").read_text())["weights"]
        assert recorded == hash_checkpoints(run_dir, ["student_0"])
        return torch.logit(torch.tensor(tiles_of(tmp_path / name)["probability_student_0"].to_numpy().copy()))

    train_again(run_dir, gain=1.0)
    before = logits("before")
    train_again(run_dir, gain=-2.0)
    torch.testing.assert_close(logits("after"), -2 * before, rtol=1e-3, atol=1e-3)


def test_a_plan_refuses_weights_that_came_after_it(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run")
    run = RunDescription.read(run_dir)
    plan = plan_classifier(run_dir, run, ["student_0"], runtime="torch", folder=tmp_path)
    train_again(run_dir, gain=-2.0)
    with pytest.raises(InputError, match=r"weights of student_0 in .* have changed since this prediction began"):
        Classifier(plan)
    plan_classifier(run_dir, run, ["student_0"], runtime="torch", folder=tmp_path)
