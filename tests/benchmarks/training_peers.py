"""Other libraries training the same networks, in an environment of their own (peers_training.txt).

    python -m tests.benchmarks.training_peers

serves racers, see ``turns``; classifiers only. KD_Lib's mutual learning takes the whole cohort as peers: it has no
teacher. In torchdistill the students are one module, so that its box distils to both; the losses are those of this
project, and so the arithmetic is the same.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch import library as torch_operators
from torch.nn import functional as F

from kdml_med.keys import LossTerm, NetworkName
from kdml_med.losses import CohortLoss
from tests.benchmarks.training_course import Batches, Course, adamw, device_mib, warm_up
from tests.benchmarks.turns import Work, serve

DISTRIBUTIONS = {"kd_lib": "kd-lib", "torchdistill": "torchdistill"}
"""Method: distribution whose version is told."""


class Nothing:
    """A loader for a validation that reads nothing; its length is divided by."""

    dataset = (None,)

    def __iter__(self) -> Any:
        return iter(())


def kd_lib(course: Course) -> Work:
    """An epoch of KD_Lib's ``DML`` for each turn, its validation left out."""
    networks = list(course.cohort().networks.values())
    noise = course.batch_of_noise()
    batches = Batches((noise["image"], noise["label"]), course.batch)
    optimizers = [adamw(network.parameters()) for network in networks]
    trainer = _mutual_learning().DML(
        networks, batches, Nothing(), optimizers, loss_fn=_divergence, device=course.device
    )

    def work(steps: int) -> None:
        batches.steps = steps
        trainer.train_students(epochs=1, plot_losses=False, save_model=False)
        course.wait()

    return work


def _divergence(student: Tensor, peer: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(student, dim=1), F.log_softmax(peer, dim=1), reduction="batchmean", log_target=True)


def _mutual_learning() -> ModuleType:
    """The module of mutual learning, by its file: the package around it imports what is not needed."""
    files = importlib.metadata.files(DISTRIBUTIONS["kd_lib"]) or []
    path = next(path.locate() for path in files if path.parts[-2:] == ("DML", "dml.py"))
    specification = importlib.util.spec_from_file_location("kd_lib_dml", os.fspath(path))
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class Students(nn.Module):
    """Several students as the one that torchdistill knows."""

    def __init__(self, networks: dict[str, nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Logits by name."""
        return {name: network(image) for name, network in self.networks.items()}


class Terms(nn.Module):
    """The losses of this project, of what torchdistill hands to a loss of its teacher and its student.

    Args:
        loss: of the course.
    """

    def __init__(self, loss: CohortLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, io_dict: Any, model_loss_dict: Any, targets: Tensor) -> Tensor:
        """The weighted sum of all terms; a scalar."""
        teacher, students = (io_dict[name]["."]["output"] for name in ("teacher", "student"))
        terms: dict[str, Tensor] = self.loss({NetworkName.TEACHER.value: teacher, **students}, targets)
        return terms[LossTerm.LOSS]


def torchdistill(course: Course) -> Work:
    """Steps of torchdistill's box with a teacher that learns, too."""
    box = _box(course)
    noise = course.batch_of_noise()

    def step() -> None:
        box.pre_forward_process()
        loss = box.forward_process(noise["image"], noise["label"], None)
        box.post_forward_process(loss=loss)

    return course.repeated(step)


def _box(course: Course) -> Any:
    _declare_operators()
    from torchdistill.core.distillation import get_distillation_box
    from torchdistill.losses.registry import register_high_level_loss

    register_high_level_loss(key="Terms")(partial(Terms, course.loss()))
    networks = dict(course.cohort().networks.items())
    teacher = networks.pop(NetworkName.TEACHER)
    config = {
        "num_epochs": 1,
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": True},
        "student": {"forward_proc": "forward_batch_only", "requires_grad": True},
        "criterion": {"key": "Terms", "kwargs": {}},
        "optimizer": {"key": "AdamW", "kwargs": {"lr": 1e-4, "weight_decay": 0.01, "fused": True}},
    }
    device = torch.device(course.device)
    return get_distillation_box(teacher, Students(networks), {}, config, device, None, False, 1.0)


def _declare_operators() -> None:
    """Let torchvision be imported beside a torch that its compiled operators do not fit; none of them is used."""
    with contextlib.suppress(RuntimeError):  # declared already
        operators = torch_operators.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(operators)


_KEPT: list[Any] = []
METHODS = {"kd_lib": kd_lib, "torchdistill": torchdistill}


def prepare(asked: dict[str, Any]) -> Work:
    """Get a method ready; ``Course.request`` says what is asked."""
    course = Course(**asked["course"])
    course.prepare()
    work = METHODS[asked["method"]](course)
    work(1)  # what does not work is told now
    return work


if __name__ == "__main__":
    serve(prepare, warm_up=warm_up, device_mib=device_mib)
