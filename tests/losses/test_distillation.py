import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdml_med.losses import distillation_loss, mutual_loss
from tests.reference import mutual_divergence, softened_kl, softened_kl_gradient

SHAPES = st.tuples(st.integers(1, 5), st.integers(2, 6))
TEMPERATURES = st.floats(0.5, 20)
SEEDS = st.integers(0, 2**31)


def draw(shape, seed, count=2, scale=2.0):
    arrays = np.random.default_rng(seed).normal(0, scale, (count, *shape)).astype(np.float32)
    return [torch.from_numpy(array) for array in arrays]


def test_value_by_hand():
    # Student logits (0, ln 3) mean probabilities (1/4, 3/4); equal teacher logits mean (1/2, 1/2).
    # KL(teacher ‖ student) = 1/2 ln((1/2)/(1/4)) + 1/2 ln((1/2)/(3/4)) = 1/2 ln 2 + 1/2 ln 2/3 = 1/2 ln 4/3.
    student, teacher = torch.tensor([[0.0, math.log(3)]]), torch.zeros(1, 2)
    assert distillation_loss(student, teacher, temperature=1).item() == pytest.approx(0.5 * math.log(4 / 3))
    # The other way round: KL((1/4, 3/4) ‖ (1/2, 1/2)) = 1/4 ln 1/2 + 3/4 ln 3/2.
    swapped = 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)
    assert distillation_loss(teacher, student, temperature=1).item() == pytest.approx(swapped)


def test_temperature_divides_logits_and_its_square_multiplies_the_loss():
    # Doubled logits at T = 2 give the probabilities of the test above; T² = 4 makes it 4 · 1/2 ln 4/3.
    student = torch.tensor([[0.0, 2 * math.log(3)]])
    loss = distillation_loss(student, torch.zeros(1, 2), temperature=2)
    assert loss.item() == pytest.approx(2 * math.log(4 / 3))


def test_loss_is_the_mean_over_the_batch():
    # One row as above, three rows where teacher and student agree: a quarter of 1/2 ln 4/3.
    student = torch.zeros(4, 2)
    student[0, 1] = math.log(3)
    loss = distillation_loss(student, torch.zeros(4, 2), temperature=1)
    assert loss.item() == pytest.approx(math.log(4 / 3) / 8)


@settings(deadline=None)
@given(SHAPES, TEMPERATURES, SEEDS)
def test_loss_and_gradient_equal_the_reference(shape, temperature, seed):
    student, teacher = draw(shape, seed)
    student.requires_grad_()
    loss = distillation_loss(student, teacher, temperature=temperature)
    loss.backward()
    # float32 loses the digits that p and q share; T² times that rounding is what may remain.
    rounding = 1e-6 * max(1.0, temperature**2)
    assert loss.item() == pytest.approx(softened_kl(teacher, student.detach(), temperature), rel=1e-4, abs=rounding)
    expected = softened_kl_gradient(teacher, student.detach(), temperature)
    np.testing.assert_allclose(student.grad.numpy(), expected, rtol=1e-4, atol=rounding)


@settings(deadline=None)
@given(SHAPES, TEMPERATURES, SEEDS)
def test_identical_logits_cost_nothing_and_others_never_less(shape, temperature, seed):
    student, teacher = draw(shape, seed)
    assert distillation_loss(student, student.clone(), temperature=temperature).item() == 0
    assert distillation_loss(student, teacher, temperature=temperature).item() > -1e-6 * temperature**2


@settings(deadline=None)
@given(SHAPES, TEMPERATURES, SEEDS)
def test_a_constant_added_to_a_row_changes_nothing(shape, temperature, seed):
    student, teacher, shift = draw(shape, seed, count=3)
    plain = distillation_loss(student, teacher, temperature=temperature).item()
    shifted = distillation_loss(student + shift[:, :1], teacher - 2 * shift[:, :1], temperature=temperature).item()
    assert shifted == pytest.approx(plain, rel=1e-4, abs=2e-6 * max(1.0, temperature**2))


def test_at_high_temperature_the_gradient_matches_centred_logits():
    # Hinton et al. 2015, equations 3 and 4: T² · dKL/dz_i → ((z_i - mean z) - (v_i - mean v)) / N for N = 4 classes;
    # the mean over the batch divides by 6.
    student, teacher = draw((6, 4), seed=1)
    student.requires_grad_()
    distillation_loss(student, teacher, temperature=500).backward()
    z, v = student.detach(), teacher
    expected = ((z - z.mean(1, keepdim=True)) - (v - v.mean(1, keepdim=True))) / 4 / 6
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(student.grad, expected, atol=2e-3, rtol=0)


def test_no_gradient_reaches_teacher_or_peers():
    student, teacher = (logits.requires_grad_() for logits in draw((3, 2), seed=0))
    (distillation_loss(student, teacher, temperature=2) + mutual_loss(student, [teacher])).backward()
    assert teacher.grad is None
    assert student.grad.abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(dtype):
    student, teacher = (logits.to(dtype) for logits in draw((4, 3), seed=3))
    loss = distillation_loss(student, teacher, temperature=3)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, distillation_loss(student.float(), teacher.float(), temperature=3))
    assert mutual_loss(student, [teacher]).dtype == torch.float32


@pytest.mark.parametrize("temperature", [0, -1.0])
def test_temperature_must_be_positive(temperature):
    student, teacher = draw((2, 2), seed=0)
    with pytest.raises(ValueError, match="temperature must be positive"):
        distillation_loss(student, teacher, temperature=temperature)
    with pytest.raises(ValueError, match="temperature must be positive"):
        mutual_loss(student, [teacher], temperature=temperature)


@pytest.mark.parametrize("shape", [(1, 3), (4, 1), (3, 4)])
def test_shapes_that_would_broadcast_are_refused(shape):
    with pytest.raises(ValueError, match=r"shapes differ: target \(.*\), logits \(4, 3\)"):
        distillation_loss(torch.zeros(4, 3), torch.zeros(shape), temperature=1)


@settings(deadline=None)
@given(SHAPES, st.integers(1, 4), TEMPERATURES, SEEDS)
def test_mutual_loss_is_the_mean_over_the_peers(shape, count, temperature, seed):
    student, *peers = draw(shape, seed, count=count + 1)
    expected = mutual_divergence(peers, student, temperature)
    loss = mutual_loss(student, peers, temperature=temperature).item()
    assert loss == pytest.approx(expected, rel=1e-4, abs=1e-6 * max(1.0, temperature**2))


def test_mutual_loss_by_hand():
    # Peers (1/2, 1/2) and (1/4, 3/4) for a student at (1/4, 3/4): the first diverges by 1/2 ln 4/3, the second by 0.
    student = torch.tensor([[0.0, math.log(3)]])
    loss = mutual_loss(student, [torch.zeros(1, 2), student.clone()])
    assert loss.item() == pytest.approx(0.25 * math.log(4 / 3))


def test_a_student_without_peers_has_no_mutual_loss():
    assert mutual_loss(torch.ones(3, 2), []).item() == 0
