from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdml_med.data import NormalizeColourd
from kdml_med.data.images import image_to_tensor
from kdml_med.deploy.export.modules import ExportedClassifier, NormalizedImage
from kdml_med.engines import ensemble_probabilities
from tests.examples import examples


def random_images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def as_in_training(images: np.ndarray) -> torch.Tensor:
    normalize = NormalizeColourd("image")
    return torch.stack([normalize({"image": image_to_tensor(image, None)})["image"] for image in images])


class Linear(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        nn.init.normal_(self.linear.weight, generator=torch.Generator().manual_seed(seed))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return self.linear(image.mean(dim=(2, 3)))


@settings(max_examples=examples(50), deadline=None)
@given(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_pixels_are_normalised_to_the_last_bit_as_in_training(batch: int, height: int, width: int, seed: int) -> None:
    images = random_images(batch, height, width, seed=seed)
    assert torch.equal(NormalizedImage()(torch.from_numpy(images)), as_in_training(images))


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_an_ensemble_is_that_of_the_evaluation(average: str) -> None:
    students = {f"student_{seed}": Linear(seed).train() for seed in range(3)}
    images = random_images(4, 8, 9)
    probability = ExportedClassifier(students, average=average)(torch.from_numpy(images))
    with torch.no_grad():
        logits = {name: student(as_in_training(images)) for name, student in students.items()}
    torch.testing.assert_close(probability, ensemble_probabilities(logits, average=average)["ensemble"])


@pytest.mark.parametrize("name", ["teacher", "student_0"])
def test_one_network_answers_with_its_own_softmax(name: str) -> None:
    images = random_images(2, 8, 8)
    network = Linear(0)
    probability = ExportedClassifier({name: network})(torch.from_numpy(images))
    torch.testing.assert_close(probability, network(as_in_training(images)).softmax(1))


@pytest.mark.parametrize("names", [[], ["teacher", "student_0"]])
def test_a_teacher_is_no_part_of_an_ensemble(names: list[str]) -> None:
    with pytest.raises(ValueError, match="one network or several students"):
        ExportedClassifier({name: Linear(0) for name in names})


def test_an_unknown_average_is_refused() -> None:
    with pytest.raises(ValueError, match="average"):
        ExportedClassifier({"student_0": Linear(0)}, average="median")
