import pytest
import torch

from kdml_med.networks import build_cohort, build_network
from kdml_med.networks.stages import answer_with_features


def test_each_stage_halves_the_resolution_and_doubles_the_channels():
    network = build_network({"name": "convnet", "width": 4}, num_classes=3).eval()
    answer = answer_with_features(network, torch.zeros(2, 3, 24, 24), (1, 2, 4, 8))
    assert [tuple(level.shape) for level in answer.features] == [
        (2, 4, 24, 24), (2, 8, 12, 12), (2, 16, 6, 6), (2, 32, 3, 3),
    ]  # fmt: skip
    assert answer.logits.shape == (2, 3)


def test_parameters_are_those_of_the_convolutions_the_norms_and_the_classifier():
    network = build_network({"name": "convnet", "width": 2, "stages": 2, "convs": 2}, num_classes=2)
    weights = 9 * (3 * 2 + 2 * 2 + 2 * 4 + 4 * 4)
    assert sum(p.numel() for p in network.parameters()) == weights + 2 * (2 + 2 + 4 + 4) + 4 * 2 + 2


def test_the_small_cohort_learns_tiles_of_24_px_apart_in_brightness():
    cohort = build_cohort("small", seed=0)
    images = torch.rand(16, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 0.5
    labels = torch.arange(16) % 2
    images[labels == 1] += 0.5
    optimiser = torch.optim.AdamW(cohort.parameters(), 0.01)
    for _ in range(8):
        loss = sum(torch.nn.functional.cross_entropy(logits, labels) for logits in cohort(images).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.5
    counts = cohort.parameter_counts()
    assert counts["teacher"] > 10 * counts["student_0"]


@pytest.mark.parametrize("name", ["width", "stages", "convs"])
def test_nothing_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        build_network({"name": "convnet", name: 0}, num_classes=2)
