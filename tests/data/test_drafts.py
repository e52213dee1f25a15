import hashlib
import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import Compose, Flip, Identityd, RandFlipd, RandGaussianNoised, RandRotate90d, Rotate90
from scipy.stats import chisquare, kstest

from kdml_med.data import (
    FrameDataset,
    NormalizeColourd,
    RandColourJitterd,
    RandPlaceFrame,
    RandStainJitterd,
    SampleLoader,
    TileDataset,
)
from kdml_med.data.drafts import Drafts, Unfinished, apply_maps, apply_tables, random_numbers, split_chain
from tests.data.folders import write_dataset
from tests.examples import examples
from tests.synthetic_frames import write_frame_dataset

SEEDS = st.integers(0, 2**31)
FLIPS_AND_TURNS = [
    RandFlipd("image", prob=0.5, spatial_axis=0),
    RandFlipd("image", prob=0.5, spatial_axis=1),
    RandRotate90d("image", prob=0.5, max_k=3),
]


def draft(pixels):
    return Drafts([{"image": image} for image in pixels])


def picture(seed, height=6, width=5):
    """Pixels of any colour, some of them quite black."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (height, width, 3), np.uint8) * generator.integers(
        0, 2, (height, width, 1), np.uint8
    )


def as_float(pixels):
    return torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32) / 255)


def quickly(chain, pixels, numbers):
    """Finished images of a chain all of whose transforms are quick, with these numbers for every image."""
    steps, rest = split_chain(Compose(chain))
    assert rest is None
    drafts, used = draft(pixels), 0
    for step in steps:
        step.quick(drafts, numbers[:, used : used + step.draws])
        used += step.draws
    assert used == numbers.shape[1]
    return drafts.finish()


def test_flips_and_turns_are_monais_with_its_probabilities():
    # Each random number decides by one half, or by thirds, so that these are all cases, equally probable.
    halves, thirds = (0.25, 0.75), (1 / 6, 3 / 6, 5 / 6)
    pixels, seen = picture(1, 5, 5), Counter()
    for rows, columns, turned, turn in itertools.product(halves, halves, halves, thirds):
        found = quickly(FLIPS_AND_TURNS, [pixels], np.array([[rows, columns, turned, turn]]))[0]
        expected = as_float(pixels)
        expected = Flip(spatial_axis=0)(expected) if rows < 0.5 else expected
        expected = Flip(spatial_axis=1)(expected) if columns < 0.5 else expected
        expected = Rotate90(k=1 + thirds.index(turn))(expected) if turned < 0.5 else expected
        assert torch.equal(found, torch.as_tensor(expected))
        seen[found.numpy().tobytes()] += 1
    # The turns by 0 and 180 degrees and the two flips have 1/6 each, the other four 1/12.
    assert sorted(seen.values()) == [2] * 4 + [4] * 4


def test_orientations_that_occur_are_distributed_as_monais(tmp_path):
    folder = write_dataset(tmp_path, {"a": ("train", "MSS", 1)}, size_px=4)
    dataset, plain = TileDataset(folder, transform=Compose(FLIPS_AND_TURNS)), TileDataset(folder)[0]
    ours, theirs = Counter(), Counter()
    monai = Compose(FLIPS_AND_TURNS)
    monai.set_random_state(seed=0)
    for sample in dataset.make([(epoch, 0) for epoch in range(1200)]):
        ours[sample["image"].numpy().tobytes()] += 1
        theirs[monai({"image": plain["image"]})["image"].numpy().tobytes()] += 1
    assert set(ours) == set(theirs)
    names = sorted(ours)
    often = sorted(names, key=lambda name: -theirs[name])[:4]
    shares = np.array([1 / 6 if name in often else 1 / 12 for name in names])
    for counts in (ours, theirs):
        assert chisquare([counts[name] for name in names], 1200 * shares).pvalue > 1e-4


@settings(deadline=None, max_examples=examples(50))
@given(SEEDS, st.floats(0, 0.9), st.floats(0, 0.5), st.sampled_from([0.0, 0.5, 1.0]))
def test_tables_give_what_stain_jitter_and_normalisation_give_pixel_by_pixel(seed, strength, offset, prob):
    jitter = RandStainJitterd("image", strength=strength, offset=offset, prob=prob)
    normalise = NormalizeColourd("image")
    pixels, numbers = [picture(seed), picture(seed + 1)], np.random.default_rng(seed).uniform(size=(2, 7))
    found = quickly([jitter, normalise], pixels, numbers)
    for image, own, result in zip(pixels, numbers, found, strict=True):
        changed = jitter.change(as_float(image), own[1:]) if own[0] < prob else as_float(image)
        torch.testing.assert_close(result, normalise({"image": changed})["image"], rtol=1e-6, atol=1e-6)


def vary_colours(image, factors):
    """Brightness and balance, then contrast, then saturation, one after the other, in double precision."""
    brightness, contrast, saturation, *balance = factors
    changed = image * brightness * np.reshape(balance, (3, 1, 1))
    changed = (changed - changed.mean()) * contrast + changed.mean()
    grey = changed.mean(axis=0, keepdims=True)
    changed = np.clip((changed - grey) * saturation + grey, 0, 1)
    return changed * (image.max(axis=0, keepdims=True) > 0)


@settings(deadline=None, max_examples=examples(50))
@given(SEEDS, st.floats(0, 1), st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0]))
def test_maps_give_what_colour_jitter_and_normalisation_give_step_by_step(seed, strength, balance, prob):
    jitter = RandColourJitterd(
        "image", brightness=strength, contrast=strength, saturation=strength, balance=balance, prob=prob
    )
    normalise = NormalizeColourd("image")
    pixels, numbers = [picture(seed), picture(seed + 1)], np.random.default_rng(seed).uniform(size=(2, 7))
    found = quickly([jitter, normalise], pixels, numbers)
    for image, own, result in zip(pixels, numbers, found, strict=True):
        plain = image.transpose(2, 0, 1) / 255
        factors = jitter.factors(own[1:])
        expected = torch.from_numpy(vary_colours(plain, factors) if own[0] < prob else plain).float()
        torch.testing.assert_close(result, normalise({"image": expected})["image"], rtol=1e-5, atol=1e-5)
        if own[0] < prob:
            torch.testing.assert_close(jitter.change(as_float(image), own[1:]), expected, rtol=1e-5, atol=1e-5)


def test_images_of_different_sizes_are_finished_apart():
    pixels = [picture(0, 4, 5), picture(1, 6, 3)]
    drafts = draft(pixels)
    assert drafts.stack() is None
    assert drafts.finish() is None
    for image, sample in zip(pixels, drafts.samples, strict=True):
        assert torch.equal(sample["image"], as_float(image))


@pytest.mark.parametrize(
    ("chain", "quick"),
    [
        ([RandStainJitterd("image"), NormalizeColourd("image")], 2),
        ([RandColourJitterd("image"), NormalizeColourd("image")], 2),
        ([RandStainJitterd("image"), RandColourJitterd("image")], 1),  # which needs the grey levels
        ([RandColourJitterd("image"), RandStainJitterd("image")], 1),  # there is no table any more
        ([NormalizeColourd("image"), RandFlipd("image", spatial_axis=1)], 2),
        ([NormalizeColourd(["image", "other"])], 0),
        ([RandFlipd("image", spatial_axis=None)], 0),
        ([RandRotate90d("image", spatial_axes=(1, 0))], 0),
        ([Identityd("image"), NormalizeColourd("image")], 0),
    ],
)
def test_a_chain_is_quick_up_to_what_needs_finished_images(chain, quick):
    steps, rest = split_chain(Compose(chain))
    assert len(steps) == quick
    assert (0 if rest is None else len(rest.transforms)) == len(chain) - quick


def test_transforms_of_other_kinds_mix_with_quick_ones_in_order(tmp_path):
    folder = write_dataset(tmp_path, {"a": ("train", "MSS", 4)})
    quick = [*FLIPS_AND_TURNS, RandStainJitterd("image")]
    whole = TileDataset(folder, transform=Compose([*quick, NormalizeColourd("image")]))
    split = TileDataset(folder, transform=Compose([*quick, Identityd("image"), NormalizeColourd("image")]))
    noisy = TileDataset(
        folder, transform=Compose([*quick, RandGaussianNoised("image", prob=1.0), NormalizeColourd("image")])
    )
    indices = [(3, position) for position in range(4)]
    for one, other in zip(whole.make(indices), split.make(indices), strict=True):
        torch.testing.assert_close(one["image"], other["image"])
    first, again = noisy.make(indices), [noisy[index] for index in reversed(indices)][::-1]
    for one, other, plain in zip(first, again, whole.make(indices), strict=True):
        assert torch.equal(one["image"], other["image"])
        assert not torch.equal(one["image"], plain["image"])
        # Noise of a standard deviation of at most 0.1, in the units of the normalisation.
        assert (one["image"] - plain["image"]).abs().max() < 6 * 0.1 / 0.224
    assert not torch.equal(noisy[4, 0]["image"], first[0]["image"])


def training_data(kind, folder):
    """A dataset of five samples with the augmentation of its bundle."""
    if kind == "tiles":
        chain = Compose([*FLIPS_AND_TURNS, RandStainJitterd("image"), NormalizeColourd("image")])
        return TileDataset(write_dataset(folder, {"a": ("train", "MSS", 5)}), transform=chain)
    chain = Compose([RandPlaceFrame((24, 32)), RandColourJitterd("image"), NormalizeColourd("image")])
    data = FrameDataset(write_frame_dataset(folder, frames=2), transform=chain)
    data.keep(range(5))
    return data


@pytest.mark.parametrize("kind", ["tiles", "frames"])
def test_a_batch_is_the_same_to_the_bit_wherever_it_is_finished(tmp_path, kind):
    dataset = training_data(kind, tmp_path / "data")
    expected = list(SampleLoader(dataset, batch_size=2))
    for num_workers in (1, 2):
        found = list(SampleLoader(dataset, batch_size=2, num_workers=num_workers))
        assert len(found) == len(expected) == 3  # the last of one sample
        for one, other in zip(found, expected, strict=True):
            assert one.keys() == other.keys()
            assert torch.equal(one["image"], other["image"])
            assert all(torch.equal(*pair) for pair in zip(one["label"], other["label"], strict=True))
            assert one["sample_id"] == other["sample_id"]
    assert torch.equal(dataset[3]["image"], expected[1]["image"][1])


@pytest.mark.parametrize("kind", ["tiles", "frames"])
def test_processes_and_devices_are_sent_bytes(tmp_path, kind, monkeypatch):
    dataset = training_data(kind, tmp_path / "data")
    sent = []
    finish = Unfinished.finish
    monkeypatch.setattr(Unfinished, "finish", lambda batch, device: sent.append(batch) or finish(batch, device))
    for choices in ({"num_workers": 1}, {"device": "meta"}):
        sent.clear()
        (batch,) = SampleLoader(dataset, batch_size=5, **choices)
        assert [part.pixels.dtype for part in sent] == [torch.uint8]
        assert batch["image"].device.type == choices.get("device", "cpu")
        assert batch["image"].dtype == torch.float32
        assert batch["image"].shape == (5, 3, *sent[0].pixels.shape[1:3])


@settings(deadline=None, max_examples=examples(50))
@given(SEEDS, st.booleans())
def test_devices_compute_what_the_cpu_computes(seed, mixed):
    # The arithmetic of a device on tensors of the CPU.
    jitter = RandColourJitterd("image") if mixed else RandStainJitterd("image")
    drafts, numbers = draft([picture(seed), picture(seed + 1)]), np.random.default_rng(seed).uniform(size=(2, 7))
    jitter.quick(drafts, numbers)
    NormalizeColourd("image").quick(drafts, np.empty((2, 0)))
    batch = drafts.stack()
    expected = batch.finish(torch.device("cpu"))
    if mixed:
        torch.testing.assert_close(apply_maps(batch.pixels, batch.colours), expected, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(apply_tables(batch.pixels, batch.colours), expected)


def test_random_numbers_are_those_of_the_hash_of_a_key():
    digest = hashlib.shake_128(b"0/1/a").digest(24)
    expected = [int.from_bytes(digest[start : start + 8], "little") // 2**11 / 2**53 for start in (0, 8, 16)]
    assert random_numbers(["b", "0/1/a"], 3)[1].tolist() == expected
    assert random_numbers(["0/1/a"], 2)[0].tolist() == expected[:2]
    assert random_numbers(["a", "b"], 0).shape == (2, 0)


def test_random_numbers_of_neighbouring_keys_are_uniform_and_unrelated():
    numbers = random_numbers([f"0/{epoch}/tile" for epoch in range(4000)], 3)
    for column in numbers.T:
        assert kstest(column, "uniform").pvalue > 1e-4
    related = np.corrcoef(np.column_stack([numbers[1:], numbers[:-1]]).T) - np.eye(6)
    assert np.abs(related).max() < 6 / np.sqrt(4000)
