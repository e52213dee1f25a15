"""Ways to train the networks of a cohort, as racers of ``bench_training``.

    python -m tests.benchmarks.training_methods

serves racers, see ``turns``. Methods: ``part`` is a step of one network alone, on the labels; ``cohort`` that of
``KDMLTrainer``; ``naive`` what one writes first, where each student runs its teacher and its peers again and has a
backward pass and an optimizer of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kdml_med.bundle.acceleration import build_acceleration
from kdml_med.bundle.settings import check_settings
from kdml_med.engines import KDMLTrainer, prepare_cohort_batch
from kdml_med.engines.acceleration import Acceleration
from kdml_med.keys import NetworkName
from tests.benchmarks.training_course import Batches, Course, adamw, device_mib, warm_up
from tests.benchmarks.turns import Work, serve

NO_RUN = "/no run yet"


def part(course: Course, network: str) -> Work:
    """One network of the cohort, trained alone on the labels by a plain loop, in float32 as it comes."""
    alone, loss = course.cohort().networks[network], course.loss()
    optimizer = adamw(alone.parameters())
    image, target = prepare_cohort_batch(course.batch_of_noise())

    def step() -> None:
        optimizer.zero_grad()
        answer = alone(image)
        loss.task_loss(answer, loss.prepare_target({network: answer}, target)).backward()
        optimizer.step()

    return course.repeated(step)


def cohort(course: Course, **acceleration: Any) -> Work:
    """The trainer of the bundles, an epoch for each turn.

    Args:
        course: what is trained.
        **acceleration: see ``Acceleration``; nothing is float32 as it comes.
    """
    networks = course.cohort()
    batches = Batches(course.batch_of_noise(), course.batch)
    trainer = KDMLTrainer(
        device=torch.device(course.device),
        max_epochs=1,
        train_data_loader=batches,
        network=networks,
        loss_function=course.loss(),
        optimizer=adamw(networks.parameter_groups()),
        acceleration=Acceleration(course.device, **acceleration),
    )

    def work(steps: int) -> None:
        batches.steps = trainer.state.epoch_length = steps  # the first run would keep what the constructor saw
        trainer.run()
        course.wait()

    return work


def naive(course: Course) -> Work:
    """Each student runs its teacher and its peers again, without gradients, and is updated by itself."""
    networks, loss = course.cohort().networks, course.loss()
    students = [name for name in networks if name != NetworkName.TEACHER]
    optimizers = {name: adamw(network.parameters()) for name, network in networks.items()}
    image, target = prepare_cohort_batch(course.batch_of_noise())

    def own_loss(name: str) -> Tensor:
        answer = networks[name](image)
        truth = loss.prepare_target({name: answer}, target)
        labels = loss.task_loss(answer, truth)
        if name == NetworkName.TEACHER:
            return labels
        with torch.no_grad():
            teacher = networks[NetworkName.TEACHER](image)
            peers = [networks[peer](image) for peer in students if peer != name]
        return labels + loss.teacher_loss(answer, teacher, truth) + loss.peer_loss(answer, peers, truth)

    def step() -> None:
        for name, optimizer in optimizers.items():
            optimizer.zero_grad()
            own_loss(name).backward()
            optimizer.step()

    return course.repeated(step)


def chosen_for(course: Course) -> dict[str, Any]:
    """How the rule of `--precision auto` computes a course, by argument of ``Acceleration``."""
    settings = check_settings(course.task, "train", {"device": course.device, "run_dir": NO_RUN})
    return build_acceleration(settings, course.cohort(), image_size=course.side_px).describe()


METHODS: dict[str, Callable[..., Work]] = {"part": part, "cohort": cohort, "naive": naive}


def prepare(asked: dict[str, Any]) -> Work:
    """Get a method ready; ``Course.request`` says what is asked."""
    settings = dict(asked)
    course, method = Course(**settings.pop("course")), settings.pop("method")
    course.prepare()
    return METHODS[method](course, **settings)


if __name__ == "__main__":
    serve(prepare, warm_up=warm_up, device_mib=device_mib)
