"""Activations that are computed again: batch norm of one process and of several learns as without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdml_med.engines import Acceleration
from kdml_med.networks import Cohort, build_cohort

SMALL = {"name": "convnet", "width": 2, "stages": 2}


def learned(recomputing: Any, *, shared: bool, momentum: float | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State and gradients of a cohort behind two batches, with the layers of several processes if it is shared."""
    cohort = build_cohort(seed=1, teacher=SMALL, students=[SMALL])
    for module in cohort.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    network = Acceleration(checkpoint_activations=recomputing).prepare(cohort)
    if shared:  # as ``share_network`` does on GPUs; torch computes it on a CPU, too, where there is one process
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    generator = torch.Generator().manual_seed(3)
    assert isinstance(network, Cohort)
    for _ in range(2):
        answers = network(torch.rand(4, 3, 16, 16, generator=generator))
        torch.stack([logits.square().sum() for logits in answers.values()]).sum().backward()
    gradients = {name: value.grad for name, value in network.named_parameters() if value.grad is not None}
    return network.state_dict(), gradients


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("shared", [False, True])
def test_statistics_counts_and_gradients_are_those_without_recomputing(shared: bool, momentum: float | None) -> None:
    plain = learned("none", shared=shared, momentum=momentum)
    again = learned("all", shared=shared, momentum=momentum)
    counts = [value for name, value in again[0].items() if name.endswith("num_batches_tracked")]
    assert counts
    assert all(count == 2 for count in counts)
    for expected, found in zip(plain, again, strict=True):
        assert expected.keys() == found.keys()
        assert all(torch.equal(value, found[name]) for name, value in expected.items())
