"""Mutual learning between peers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdml_med.losses.distillation import kl_divergence


def mutual_loss(student_logits: Tensor, peer_logits: Sequence[Tensor], *, temperature: float = 1.0) -> Tensor:
    """Mean over the peers of KL(peer ‖ student) at temperature T, multiplied by T².

    Args:
        student_logits: float, [batch, classes]; gradient flows.
        peer_logits: one tensor [batch, classes] for each of the K - 1 other students; detached here.
        temperature: softening T > 0, dimensionless; 1 as published.

    Returns:
        Scalar, nats, mean over the batch and the peers; zero for a student without peers.

    Raises:
        ValueError: temperature is not positive, or the shapes differ.

    Source:
        Zhang et al. 2018, Deep Mutual Learning, arXiv:1706.00384, equation 8.
    """
    if not peer_logits:
        return student_logits.new_zeros((), dtype=torch.float32)
    terms = [kl_divergence(peer, student_logits, temperature=temperature) for peer in peer_logits]
    return torch.stack(terms).mean()
