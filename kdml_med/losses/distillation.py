"""Knowledge distillation from logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def kl_divergence(target_logits: Tensor, logits: Tensor, *, temperature: float) -> Tensor:
    """KL(softmax(target / T) ‖ softmax(logits / T)) times T².

    Both are brought to float32 first: under autocast, differences of half-precision logarithms lose small divergences.

    Args:
        target_logits: float, [batch, classes]; detached here.
        logits: float, [batch, classes]; gradient flows.
        temperature: softening T > 0, dimensionless.

    Returns:
        Scalar, nats, mean over the batch.

    Raises:
        ValueError: temperature is not positive, or the shapes differ.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}.")
    if target_logits.shape != logits.shape:
        raise ValueError(f"shapes differ: target {tuple(target_logits.shape)}, logits {tuple(logits.shape)}.")
    # T² belongs to the loss: gradients of the softened KL shrink with 1/T².
    with torch.autocast(logits.device.type, enabled=False):
        log_target = F.log_softmax(target_logits.detach().float() / temperature, dim=1)
        log_predicted = F.log_softmax(logits.float() / temperature, dim=1)
        return F.kl_div(log_predicted, log_target, reduction="batchmean", log_target=True) * temperature**2


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Temperature-scaled KL(teacher ‖ student), multiplied by T².

    Args:
        student_logits: float, [batch, classes]; gradient flows.
        teacher_logits: float, [batch, classes]; detached here.
        temperature: softening T > 0, dimensionless.

    Returns:
        Scalar, nats, mean over the batch.

    Raises:
        ValueError: temperature is not positive, or the shapes differ.

    Source:
        Hinton et al. 2015, arXiv:1503.02531, section 2.
    """
    return kl_divergence(teacher_logits, student_logits, temperature=temperature)
