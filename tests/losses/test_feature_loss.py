import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdml_med.losses import attention_loss
from tests.examples import examples
from tests.reference import attention_distance

SEEDS = st.integers(0, 2**31)
CHANNELS = st.integers(1, 5)
SIDES = st.tuples(st.integers(1, 4), st.integers(1, 4))
BLOCKS = st.tuples(st.integers(1, 3), st.integers(1, 3))


def draw(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for shape in shapes]


def row(*channels):
    """Features [1, channels, 1, width] from one row of values for each channel."""
    return torch.tensor(channels).view(1, len(channels), 1, -1)


def test_value_by_hand():
    # Mean squares over channels: (1, 0), and (3, 4) of length 5. (1 - 3/5)² + (4/5)² = 4/5; the second maps agree
    # but for their scale.
    mine = [row([1.0, 0.0], [-1.0, 0.0]), row([1.0, 2.0])]
    other = [row([3**0.5, -2.0]), row([-2.0, 4.0], [2.0, 4.0])]
    assert attention_loss(mine, other).item() == pytest.approx(0.4)
    assert attention_loss(other, mine).item() == pytest.approx(0.4)


def test_larger_maps_are_averaged_to_the_smaller_by_hand():
    # Squares (6, 0, 4, 4) become the means (3, 4); against (1, 0) it is 4/5 as above.
    large, small = row([6**0.5, 0.0, 2.0, -2.0]), row([1.0, 0.0])
    assert attention_loss([large], [small]).item() == pytest.approx(0.8)
    assert attention_loss([small], [large]).item() == pytest.approx(0.8)


@settings(deadline=None)
@given(SEEDS, CHANNELS, CHANNELS, SIDES, BLOCKS, st.booleans())
def test_equals_the_slow_reference(seed, channels, others, sides, blocks, crossed):
    # Crossed, one map is the higher one and the other the wider one.
    height, width = sides
    first = (2, channels, height * blocks[0], width * (1 if crossed else blocks[1]))
    second = (2, others, height, width * (blocks[1] if crossed else 1))
    one, other = draw(seed, first, second)
    expected = attention_distance(one, other)
    assert attention_loss([one], [other]).item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    both = attention_loss([one, one], [other, one])
    assert both.item() == pytest.approx(expected / 2, rel=1e-4, abs=1e-6)


@settings(deadline=None, max_examples=examples(30))
@given(SEEDS, st.floats(0.01, 100))
def test_scale_and_sign_do_not_matter_and_nothing_is_above_two(seed, scale):
    one, other = draw(seed, (3, 4, 5, 5), (3, 2, 5, 5))
    assert attention_loss([one], [-scale * one]).item() == pytest.approx(0, abs=1e-6)
    loss = attention_loss([one], [other]).item()
    assert 0 < loss <= 2
    assert attention_loss([scale * one], [other]).item() == pytest.approx(loss, rel=1e-4)


def test_only_the_student_receives_a_gradient():
    maps = [part.requires_grad_() for part in draw(0, (2, 4, 8, 8), (2, 3, 4, 4), (2, 6, 4, 4), (2, 3, 4, 4))]
    attention_loss(maps[:2], maps[2:]).backward()
    assert all(part.grad.abs().max() > 0 for part in maps[:2])
    assert all(part.grad is None for part in maps[2:])


@pytest.mark.parametrize("dead", ["student", "source", "both"])
def test_maps_of_zeros_give_a_finite_loss_and_gradient(dead):
    student = torch.zeros(1, 2, 4, 4) if dead != "source" else torch.ones(1, 2, 4, 4)
    source = torch.zeros(1, 3, 2, 2) if dead != "student" else torch.ones(1, 3, 2, 2)
    student.requires_grad_()
    loss = attention_loss([student], [source])
    loss.backward()
    assert loss.item() == pytest.approx(0 if dead == "both" else 1)  # the other map has length 1
    assert student.grad.isfinite().all()


def test_float32_whatever_the_maps_and_autocast():
    one, other = (part.bfloat16() for part in draw(1, (2, 4, 8, 8), (2, 3, 4, 4)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = attention_loss([one], [other])
    assert loss.dtype == torch.float32
    assert torch.equal(loss, attention_loss([one.float()], [other.float()]))


def test_maps_are_needed_and_as_many_on_both_sides():
    one, other = draw(2, (1, 2, 4, 4), (1, 2, 4, 4))
    with pytest.raises(ValueError, match="the student has 1 and the other 2"):
        attention_loss([one], [one, other])
    with pytest.raises(ValueError, match="the student has 0 and the other 0"):
        attention_loss([], [])
