import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from kdml_med.data import NormalizeColourd, RandColourJitterd, RandStainJitterd

SEEDS = st.integers(0, 2**31)


def eight_bit_image(seed=0, darkest=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(darkest, 256, (3, 6, 5), generator=generator) / 255


def drawn(transform, seed):
    """The numbers that a transform draws first, but for whether a sample is changed at all."""
    transform.set_random_state(seed=seed)
    return transform.R.uniform(size=transform.draws)[1:]


def jittered(image, seed, **settings):
    """The image, and the factors and offsets of its change."""
    transform = RandStainJitterd("image", **settings)
    factors = [values[0] for values in transform.factors(drawn(transform, seed)[None])]
    transform.set_random_state(seed=seed)
    return transform({"image": image})["image"], factors


@settings(deadline=None)
@given(SEEDS, st.floats(0, 0.9))
def test_white_stays_white_without_offset(seed, strength):
    changed, _ = jittered(torch.ones(3, 4, 4), seed, strength=strength, offset=0.0)
    assert torch.equal(changed, torch.ones(3, 4, 4))


@settings(deadline=None)
@given(SEEDS)
def test_nothing_changes_without_strength_and_offset(seed):
    # Black has no finite density: it becomes 1/255, the darkest value that 8 bits can tell from it.
    image = eight_bit_image(seed, darkest=1)
    changed, _ = jittered(image, seed, strength=0.0, offset=0.0)
    torch.testing.assert_close(changed, image, rtol=1e-5, atol=1e-6)


@settings(deadline=None)
@given(SEEDS, st.floats(0, 1), st.floats(0, 2))
def test_values_stay_in_range(seed, strength, offset):
    changed, _ = jittered(eight_bit_image(seed), seed, strength=strength, offset=offset)
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert torch.isfinite(changed).all()


@settings(deadline=None)
@given(SEEDS)
def test_optical_density_is_scaled_and_shifted_colour_by_colour(seed):
    # A channel of transmittance e^-1 has density 1, so its new density is factor + offset.
    changed, (factors, offsets) = jittered(torch.full((3, 2, 2), math.exp(-1)), seed, strength=0.2, offset=0.05)
    density = -changed.log()
    for channel in range(3):
        expected = (factors[channel] + offsets[channel]).item()
        assert density[channel].flatten().tolist() == pytest.approx([expected] * 4, rel=1e-5)
        assert 0.8 <= factors[channel] <= 1.2
        assert -0.05 <= offsets[channel] <= 0.05
    assert len(set(factors.tolist())) == 3


def test_the_input_is_left_as_it_was():
    image = eight_bit_image()
    sample = {"image": image, "label": 1}
    before = image.clone()
    transform = RandStainJitterd("image")
    transform.set_random_state(seed=1)
    result = transform(sample)
    assert torch.equal(image, before)
    assert sample["image"] is image
    assert result["label"] == 1
    assert not torch.equal(result["image"], image)


def test_probability_decides_how_many_samples_change():
    transform = RandStainJitterd("image", prob=0.3)
    transform.set_random_state(seed=0)
    image = eight_bit_image(darkest=1)
    changed = sum(not torch.equal(transform({"image": image})["image"], image) for _ in range(1000))
    # Binomial with n = 1000 and p = 0.3: six standard deviations are 6 · sqrt(0.21 · 1000) = 87.
    assert 300 - 87 < changed < 300 + 87


def test_later_random_draws_do_not_depend_on_whether_a_sample_was_changed():
    never, always = RandStainJitterd("image", prob=0.0), RandStainJitterd("image", prob=1.0)
    for transform in (never, always):
        transform.set_random_state(seed=2)
        transform({"image": eight_bit_image()})
    assert never.R.random_sample() == always.R.random_sample()


@pytest.mark.parametrize("transform", [RandStainJitterd, RandColourJitterd, NormalizeColourd])
def test_absent_keys_are_an_error_unless_allowed(transform):
    with pytest.raises(KeyError, match="image"):
        transform("image")({"label": 1})
    assert transform("image", allow_missing_keys=True)({"label": 1}) == {"label": 1}


def test_normalisation_by_hand():
    # (0.5 - 0.25) / 0.5, (0.5 - 0.5) / 0.25 and (0.5 - 1) / 0.125.
    transform = NormalizeColourd("image", mean=(0.25, 0.5, 1.0), std=(0.5, 0.25, 0.125))
    result = transform({"image": torch.full((3, 1, 2), 0.5)})["image"]
    assert result.tolist() == [[[0.5, 0.5]], [[0.0, 0.0]], [[-4.0, -4.0]]]


def test_normalisation_is_the_one_that_imagenet_weights_expect():
    result = NormalizeColourd("image")({"image": torch.zeros(3, 1, 1)})["image"].flatten()
    assert result.tolist() == pytest.approx([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])


def test_normalisation_returns_a_plain_tensor_and_leaves_the_input():
    image = MetaTensor(torch.ones(3, 2, 2))
    sample = {"image": image}
    result = NormalizeColourd("image")(sample)["image"]
    assert type(result) is torch.Tensor
    assert sample["image"] is image
    assert torch.equal(image.as_tensor(), torch.ones(3, 2, 2))


NOTHING = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "balance": 0.0}


def coloured(image, seed, **ranges):
    """The image with only the named kinds of jitter, and their factors."""
    transform = RandColourJitterd("image", **(NOTHING | ranges))
    factors = transform.factors(drawn(transform, seed)).tolist()
    transform.set_random_state(seed=seed)
    return transform({"image": image})["image"], factors


def middling(seed):
    """Values that no jitter of a tenth brings to 0 or 1."""
    return 0.3 + 0.4 * torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(SEEDS)
def test_no_colour_jitter_changes_nothing(seed):
    image = eight_bit_image(seed)
    changed, factors = coloured(image, seed)
    torch.testing.assert_close(changed, image, rtol=1e-5, atol=1e-6)
    assert factors == [1.0] * 6


@settings(deadline=None)
@given(SEEDS)
def test_brightness_is_a_factor(seed):
    image = middling(seed)
    changed, (brightness, *_) = coloured(image, seed, brightness=0.1)
    assert 0.9 <= brightness <= 1.1
    torch.testing.assert_close(changed, image * brightness)


@settings(deadline=None)
@given(SEEDS)
def test_contrast_is_a_factor_around_the_mean(seed):
    image = middling(seed)
    changed, (_, contrast, *_) = coloured(image, seed, contrast=0.1)
    assert 0.9 <= contrast <= 1.1
    assert changed.mean().item() == pytest.approx(image.mean().item(), rel=1e-4)
    assert changed.std().item() == pytest.approx(contrast * image.std().item(), rel=1e-4)


@settings(deadline=None)
@given(SEEDS)
def test_saturation_leaves_grey_alone_and_scales_the_difference_from_it(seed):
    image = middling(seed)
    changed, (_, _, saturation, *_) = coloured(image, seed, saturation=0.1)
    assert 0.9 <= saturation <= 1.1
    torch.testing.assert_close(changed.mean(dim=0), image.mean(dim=0))
    torch.testing.assert_close(changed[0] - changed[2], saturation * (image[0] - image[2]))
    grey = image[:1].expand(3, -1, -1)
    torch.testing.assert_close(coloured(grey, seed, saturation=0.9)[0], grey)


@settings(deadline=None)
@given(SEEDS)
def test_balance_is_a_factor_for_each_colour(seed):
    image = middling(seed)
    changed, factors = coloured(image, seed, balance=0.1)
    assert len(set(factors[3:])) == 3
    for channel, factor in enumerate(factors[3:]):
        assert 0.9 <= factor <= 1.1
        torch.testing.assert_close(changed[channel], image[channel] * factor)


@settings(deadline=None)
@given(SEEDS, st.floats(0, 1), st.floats(0, 1))
def test_jittered_colours_stay_in_range_and_the_input_as_it_was(seed, strength, balance):
    image = eight_bit_image(seed)
    before = image.clone()
    changed, _ = coloured(image, seed, **dict.fromkeys(NOTHING, strength) | {"balance": balance})
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert torch.equal(image, before)


def test_colour_jitter_is_seeded_and_does_not_shift_later_draws():
    image = middling(0)
    (first, _), (again, _), (other, _) = (coloured(image, seed, brightness=0.2, balance=0.1) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    never, always = RandColourJitterd("image", prob=0.0), RandColourJitterd("image", prob=1.0)
    for transform in (never, always):
        transform.set_random_state(seed=2)
        changed = transform({"image": image})["image"]
        assert torch.equal(changed, image) == (transform is never)
    assert never.R.random_sample() == always.R.random_sample()


def test_colour_jitter_leaves_black_padding_black():
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    image[:, :, 4:] = 0
    jitter = RandColourJitterd("image", contrast=0.9)
    jitter.set_random_state(seed=0)
    changed = jitter({"image": image})["image"]
    assert changed[:, :, 4:].abs().max() == 0
    assert not torch.equal(changed[:, :, :4], image[:, :, :4])
