"""Samples that come several times in an epoch."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import Compose

from kdml_med.data import (
    EpochSampler,
    FrameDataset,
    NormalizeColourd,
    RandColourJitterd,
    RandPlaceFrame,
    RandStainJitterd,
    SampleLoader,
    TileDataset,
)
from kdml_med.data.drafts import random_numbers
from tests.data.folders import write_dataset
from tests.data.test_tiles import augmented, dealt, labelled
from tests.data.test_views import Darken
from tests.synthetic_frames import write_frame_dataset

# One tile of MSI among eight: with classes balanced it comes about half of the time.
PATIENTS = {"a": ("train", "MSS", 7), "b": ("train", "MSI", 1)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("dataset"), PATIENTS)


def frames(folder):
    chain = Compose([RandPlaceFrame((24, 32)), RandColourJitterd("image"), NormalizeColourd("image")])
    return FrameDataset(write_frame_dataset(folder, frames=2), "train", transform=chain)


def epoch(dataset, number=3, *, start=None, **how):
    """(names, images) of the batches of an epoch."""
    loader = SampleLoader(dataset, **({"batch_size": 4, "training": True, "balance": True} | how))
    loader.sampler.set_epoch(number)
    loader.sampler.start = start or loader.sampler.start
    return [(list(batch["sample_id"]), batch["image"]) for batch in loader]


def same(batches, others):
    return len(batches) == len(others) and all(
        names == other_names and torch.equal(images, other_images)
        for (names, images), (other_names, other_images) in zip(batches, others, strict=True)
    )


def by_sample(batches):
    """Images of every sample in the order in which they came."""
    found = {}
    for names, images in batches:
        for name, image in zip(names, images, strict=True):
            found.setdefault(name, []).append(image)
    return found


@settings(deadline=None)
@given(st.sampled_from([[1], [7], [5, 2], [20, 1]]), st.booleans(), st.none() | st.integers(1, 60), st.integers(0, 99))
def test_a_sample_is_dealt_with_how_often_it_has_come_before(counts, balance, wanted, seed):
    sampler = EpochSampler(labelled(counts), seed=seed, balance=balance, samples_per_epoch=wanted)
    seen = Counter()
    for _, index, *times in dealt(sampler, 4):
        assert times == ([seen[index]] if seen[index] else [])
        seen[index] += 1


def test_an_epoch_without_repeats_is_dealt_in_pairs():
    assert {len(one) for one in dealt(EpochSampler(labelled([9, 4])), 1)} == {2}


@pytest.mark.parametrize("how", [{"balance": True}, {"balance": False, "samples_per_epoch": 24}])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_sample_looks_different_each_time_and_at_first_as_it_does_alone(folder, how, num_workers):
    dataset = TileDataset(folder, "train", transform=RandStainJitterd("image"))
    position = {name: number for number, name in enumerate(dataset.rows["sample_id"])}
    found = by_sample(epoch(dataset, num_workers=num_workers, **how))
    assert max(len(images) for images in found.values()) > 2
    for name, images in found.items():
        assert torch.equal(images[0], dataset[3, position[name]]["image"])
        assert len({image.numpy().tobytes() for image in images}) == len(images)


def test_random_numbers_of_a_repeat_are_those_of_a_key_that_no_other_sample_has(folder):
    # The first number decides whether it acts, the others how.
    jitter = RandStainJitterd("image", prob=1.0)
    dataset = TileDataset(folder, "train", transform=jitter, seed=5)
    plain = TileDataset(folder, "train")[2]["image"]
    for index, key in (((3, 2), "5/3/a/2"), ((3, 2, 1), "5/3+1/a/2"), ((3, 2, 11), "5/3+11/a/2")):
        expected = jitter.change(plain, random_numbers([key], jitter.draws)[0, 1:])
        torch.testing.assert_close(dataset[index]["image"], expected, rtol=1e-5, atol=1e-5)


def test_repeats_of_frames_differ_in_pixels_and_boxes(tmp_path):
    dataset = frames(tmp_path / "frames")
    with_box = next(number for number in range(len(dataset)) if len(dataset.boxes(number)))
    first, again, third = dataset.make([(2, with_box), (2, with_box, 1), (2, with_box, 2)])
    assert torch.equal(first["image"], dataset[2, with_box]["image"])
    for one, other in ((first, again), (first, third), (again, third)):
        assert not torch.equal(one["image"], other["image"])
        assert one["label"].tolist() != other["label"].tolist()


def test_repeats_differ_under_transforms_of_ones_own_too(folder):
    dataset = TileDataset(folder, "train", transform=Darken())
    shown = [sample["image"] for sample in dataset.make([(2, 0), (2, 0, 1), (2, 0, 2)])]
    assert torch.equal(shown[0], dataset[2, 0]["image"])
    assert len({image.numpy().tobytes() for image in shown}) == 3


def test_every_view_of_a_repeat_is_another_one(folder):
    dataset = TileDataset(folder, "train", transform=RandStainJitterd("image", prob=1.0))
    alone, views = by_sample(epoch(dataset)), by_sample(epoch(dataset, views=3))
    for name, images in views.items():
        assert torch.equal(torch.stack(images)[:, 0], torch.stack(alone[name]))
        assert len({view.numpy().tobytes() for image in images for view in image}) == 3 * len(images)


def test_repeats_have_the_reader_of_their_patient(tmp_path):
    patients = {name: ("train", label, 1) for name, label in zip("abcd", ["MSS", "MSI"] * 2, strict=True)}
    dataset = augmented(write_dataset(tmp_path, patients))
    loader = SampleLoader(dataset, batch_size=4, training=True, samples_per_epoch=16, students=2)
    readers = {}
    for batch in loader:
        for patient, learner in zip(batch["patient_id"], batch["learner"].tolist(), strict=True):
            readers.setdefault(patient, set()).add(learner)
    assert all(len(own) == 1 for own in readers.values())
    assert sorted(readers) == list("abcd")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_repeats_go_on_behind_a_batch_as_if_nothing_had_been(folder, num_workers):
    whole = epoch(augmented(folder), samples_per_epoch=20)
    rest = epoch(augmented(folder), samples_per_epoch=20, start=(3, 8), num_workers=num_workers)
    assert same(rest, whole[2:])
    before, behind = ({name for names, _ in part for name in names} for part in (whole[:2], rest))
    assert before & behind


def test_repeats_are_those_of_one_process_alone_and_of_every_size_of_batch(folder):
    alone = epoch(augmented(folder), samples_per_epoch=20)
    shares = [epoch(augmented(folder), samples_per_epoch=20, processes=(rank, 2)) for rank in range(2)]
    for (names, images), *own in zip(alone, *shares, strict=True):
        for rank, (own_names, own_images) in enumerate(own):
            assert own_names == names[rank::2]
            assert torch.equal(own_images, images[rank::2])
    larger = by_sample(epoch(augmented(folder), samples_per_epoch=20, batch_size=10))
    for name, images in by_sample(alone).items():
        assert torch.equal(torch.stack(images), torch.stack(larger[name]))


def test_epochs_that_come_again_have_the_same_repeats(folder):
    how = {"samples_per_epoch": 12, "repeat_views": 2}
    assert same(epoch(augmented(folder), 1, **how), epoch(augmented(folder), 3, **how))
    assert not same(epoch(augmented(folder), 1, **how), epoch(augmented(folder), 2, **how))
