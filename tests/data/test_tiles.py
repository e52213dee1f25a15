import hashlib
import logging
import os
import signal
import struct
import subprocess
import sys
import zlib

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from monai.transforms import Compose, RandFlipd, RandRotate90d
from PIL import Image
from torch.utils.data import BatchSampler

from kdml_med.data import EpochSampler, NormalizeColourd, RandStainJitterd, SampleLoader, TileDataset
from kdml_med.data.images import decode_image, image_to_tensor
from kdml_med.errors import InputError
from kdml_med.storage.manifest import read_info, write_info
from kdml_med.wsi.stain import REFERENCE, StainFit, normalise_stains
from tests.data.folders import CLASSES, encode, tile_pixels, write_dataset

PATIENTS = {
    "p0": ("train", "MSS", 3),
    "p1": ("train", "MSI", 2),
    "p2": ("train", "MSS", 4),
    "p3": ("val", "MSS", 2),
    "p4": ("val", "MSI", 1),
    "p5": ("test", "MSI", 2),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("dataset"), PATIENTS)


def augmentation():
    return Compose(
        [
            RandFlipd("image", prob=0.5, spatial_axis=0),
            RandRotate90d("image", prob=0.5),
            RandStainJitterd("image"),
            NormalizeColourd("image"),
        ]
    )


def augmented(folder, seed=0):
    return TileDataset(folder, "train", transform=augmentation(), seed=seed)


def epoch_tensors(folder, epoch, *, num_workers=0, batch_size=2, seed=0):
    """Augmented tensors of one epoch by sample_id."""
    loader = SampleLoader(augmented(folder), batch_size=batch_size, training=True, seed=seed, num_workers=num_workers)
    loader.sampler.set_epoch(epoch)
    return {
        sample_id: image
        for batch in loader
        for sample_id, image in zip(batch["sample_id"], batch["image"], strict=True)
    }


def test_samples_carry_pixels_label_and_identifiers(folder):
    dataset = TileDataset(folder, "train")
    assert len(dataset) == 9
    assert dataset.classes == CLASSES
    sample = dataset[3]
    assert {name: sample[name] for name in ("label", "sample_id", "slide_id", "patient_id")} == {
        "label": 1,
        "sample_id": "p1/0",
        "slide_id": "p1-s",
        "patient_id": "p1",
    }
    # PNG keeps every value, so pixel (row 2, column 5) is value / 255 in channel-first order.
    pixels = tile_pixels(3, 16)
    assert sample["image"].shape == (3, 16, 16)
    assert sample["image"].dtype == torch.float32
    np.testing.assert_allclose(sample["image"][:, 2, 5].numpy(), pixels[2, 5] / 255, rtol=1e-6)


def test_jpeg_tiles_decode_to_about_their_pixels(folder):
    smooth = np.broadcast_to(np.linspace(40, 200, 16, dtype=np.uint8)[:, None, None], (16, 16, 3))
    decoded = decode_image(encode(smooth, "jpg"), where="tile")
    assert np.abs(decoded.astype(int) - smooth).max() <= 4
    assert TileDataset(folder, "train")[1]["image"].shape == (3, 16, 16)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_images_of_other_modes_become_rgb(tmp_path, mode):
    Image.fromarray(tile_pixels(0, 16)).convert(mode).save(tmp_path / "tile.png")
    assert decode_image((tmp_path / "tile.png").read_bytes(), where="tile").shape == (16, 16, 3)


def test_tiles_are_resized_to_the_image_size(folder):
    assert TileDataset(folder, "train", image_size=24)[0]["image"].shape == (3, 24, 24)
    white = np.full((16, 16, 3), 255, np.uint8)
    assert image_to_tensor(white, 8).tolist() == torch.ones(3, 8, 8).tolist()


@pytest.mark.parametrize(("split", "patients"), [("train", "p0 p1 p2"), ("val", "p3 p4"), ("test", "p5")])
def test_a_split_holds_the_tiles_of_its_patients(folder, split, patients):
    dataset = TileDataset(folder, split)
    assert set(dataset.rows["patient_id"]) == set(patients.split())
    assert len(dataset) == sum(PATIENTS[patient][2] for patient in patients.split())


def test_without_a_split_every_tile_is_there_labelled_or_not(tmp_path):
    folder = write_dataset(tmp_path, {"a": ("test", "MSI", 2), "b": ("test", None, 1)}, freeze=False)
    assert [sample["label"] for sample in (TileDataset(folder)[index] for index in range(3))] == [1, 1, -1]


def test_augmentation_depends_on_seed_epoch_and_sample_only(folder):
    dataset = augmented(folder)
    first = dataset[3, 4]["image"]
    dataset[3, 1], dataset[7, 4], dataset[4]  # other reads in between
    assert torch.equal(dataset[3, 4]["image"], first)
    assert torch.equal(augmented(folder)[3, 4]["image"], first)
    assert not torch.equal(dataset[4, 4]["image"], first)
    assert not torch.equal(augmented(folder, seed=1)[3, 4]["image"], first)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("balance", [False, True])
def test_epochs_repeat_after_so_many_and_until_then_are_those_of_a_training_without(folder, num_workers, balance):
    shown = {}
    for repeat in (None, 2):
        loader = SampleLoader(
            augmented(folder),
            batch_size=3,
            training=True,
            num_workers=num_workers,
            balance=balance,
            repeat_views=repeat,
        )
        for epoch in range(1, 6):
            loader.sampler.set_epoch(epoch)
            shown[repeat, epoch] = [(batch["sample_id"], batch["image"]) for batch in loader]
    for epoch, like in ((1, 1), (2, 2), (3, 1), (4, 2), (5, 1)):
        for (names, images), (others, expected) in zip(shown[2, epoch], shown[None, like], strict=True):
            assert names == others
            assert torch.equal(images, expected)
    assert shown[None, 3][0][0] != shown[None, 1][0][0]


def test_epochs_and_samples_do_not_share_their_augmentation(folder):
    dataset = TileDataset(folder, "train", transform=RandStainJitterd("image"))
    plain = TileDataset(folder, "train")
    seen = set()
    for epoch in range(1, 4):
        for position in range(len(dataset)):
            # How much denser the same grey level became tells what was drawn.
            chosen = (plain[position]["image"] * 255).round() == 100
            seen.add(tuple(dataset[epoch, position]["image"][chosen].tolist()))
    assert len(seen) == 3 * len(dataset)


def test_batches_do_not_depend_on_workers_batch_size_or_order(folder):
    reference = epoch_tensors(folder, 2)
    assert len(reference) == 8  # nine tiles by two: the last tile alone is left out
    for other in (
        epoch_tensors(folder, 2, num_workers=2),
        epoch_tensors(folder, 2, batch_size=3),
        epoch_tensors(folder, 2, seed=9),
    ):
        shared = reference.keys() & other.keys()
        assert len(shared) >= 7
        assert all(torch.equal(reference[name], other[name]) for name in shared)
    later = epoch_tensors(folder, 3)
    assert not any(torch.equal(later[name], reference[name]) for name in later.keys() & reference.keys())


def test_workers_deliver_batches_in_the_same_order(folder):
    def order(num_workers):
        loader = SampleLoader(
            TileDataset(folder, "train"), batch_size=2, training=True, seed=4, num_workers=num_workers
        )
        loader.sampler.set_epoch(1)
        return [batch["sample_id"] for batch in loader]

    assert order(2) == order(0)


def test_loading_leaves_the_global_random_state_alone(folder):
    before = torch.get_rng_state()
    epoch_tensors(folder, 1)
    assert torch.equal(torch.get_rng_state(), before)


def labelled(counts):
    """Stands in for a dataset: what a sampler asks of it, with this many samples in each class."""

    class Labelled(list):
        pass

    dataset = Labelled(range(sum(counts)))
    dataset.labels = np.repeat(np.arange(len(counts)), counts)
    return dataset


def dealt(sampler, epoch):
    """What a sampler deals in an epoch: its number, the index and, where it has come before, how often."""
    sampler.set_epoch(epoch)
    found = list(sampler)
    assert len(found) == len(sampler)
    assert {number for number, *_ in found} == {epoch}
    return found


def indices(sampler, epoch):
    return [index for _, index, *_ in dealt(sampler, epoch)]


@st.composite
def shared_epochs(draw):
    """Options of a sampler, and the number of processes that share its batches."""
    replicas = draw(st.integers(1, 4))
    options = {
        "batch_size": draw(st.integers(replicas, 9)),
        "samples_per_epoch": draw(st.none() | st.integers(1, 70)),
        "balance": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
    }
    return labelled(draw(st.sampled_from([[1], [7], [5, 2], [20, 9]]))), options, replicas


def batches_of(sampler, epoch):
    return list(BatchSampler(dealt(sampler, epoch), sampler.share, drop_last=False))


@settings(deadline=None)
@given(shared_epochs(), st.integers(1, 50))
def test_processes_share_every_batch_of_one_process_alone(epoch_of, epoch):
    dataset, options, replicas = epoch_of
    alone = batches_of(EpochSampler(dataset, **options), epoch)
    samplers = [EpochSampler(dataset, **options, num_replicas=replicas, rank=rank) for rank in range(replicas)]
    shares = [batches_of(sampler, epoch) for sampler in samplers]
    assert {len(share) for share in shares} == {len(alone)}
    for number, batch in enumerate(alone):
        last = number == len(alone) - 1
        for rank, (share, sampler) in enumerate(zip(shares, samplers, strict=True)):
            own = batch[rank::replicas]
            spare = share[number][len(own) :]
            assert share[number][: len(own)] == own
            # Whoever has next to nothing of it keeps the others company, where there are some with other samples.
            assert len(spare) == (sampler.spare if last else 0)
            assert len(share[number]) >= min(2, sampler.share) or replicas == 1
            assert set(spare) <= set(batch)
            assert len(own + spare) == len(set(own + spare)) or len(batch) == 1


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 50))
def test_an_epoch_has_every_sample_once_or_as_often_as_it_goes(size, wanted):
    counts = np.bincount(indices(EpochSampler(labelled([size]), samples_per_epoch=wanted), 1), minlength=size)
    assert counts.sum() == wanted
    assert counts.max() - counts.min() <= 1


def test_a_batch_that_is_too_small_for_all_processes_is_refused():
    with pytest.raises(InputError, match="--batch_size 3 cannot be shared by 4 processes"):
        EpochSampler(labelled([30]), batch_size=3, num_replicas=4, rank=1)


@pytest.mark.parametrize(("tiles", "batch_size", "count"), [(9, 2, 2), (9, 4, 3), (9, 100, 4), (4, 2, 4), (7, 3, 1)])
def test_processes_evaluate_blocks_of_batches_one_behind_the_other(tmp_path, tiles, batch_size, count):
    dataset = TileDataset(write_dataset(tmp_path, {"a": ("val", "MSS", tiles)}, size_px=8), "val")
    parts = [
        [list(batch["sample_id"]) for batch in SampleLoader(dataset, batch_size=batch_size, processes=(rank, count))]
        for rank in range(count)
    ]
    assert all(parts)
    together = [batch for part in parts for batch in part]
    assert [name for batch in together for name in batch] == list(dataset.rows["sample_id"])
    if -(-tiles // batch_size) >= count:  # enough batches for all: the same as of one process
        assert together == [list(batch["sample_id"]) for batch in SampleLoader(dataset, batch_size=batch_size)]


def test_fewer_samples_than_processes_are_refused(tmp_path):
    dataset = TileDataset(write_dataset(tmp_path, {"a": ("val", "MSS", 2)}, size_px=8), "val")
    with pytest.raises(InputError, match="2 samples cannot be shared by 3 processes"):
        SampleLoader(dataset, processes=(0, 3))


def test_one_process_sees_every_index_exactly_once_and_in_another_order_each_epoch():
    sampler = EpochSampler(labelled([30]), seed=3)
    first, second = indices(sampler, 1), indices(sampler, 2)
    assert sorted(first) == sorted(second) == list(range(30))
    assert first != second
    assert first == indices(EpochSampler(labelled([30]), seed=3), 1)
    assert first != indices(EpochSampler(labelled([30]), seed=4), 1)
    assert first != list(range(30))


def test_balancing_draws_every_class_equally_often():
    sampler = EpochSampler(labelled([190, 10]), balance=True, samples_per_epoch=4000)
    positive = np.mean([index >= 190 for index in indices(sampler, 1)])
    # Binomial with n = 4000 and p = 1/2: six standard deviations are 6 · sqrt(1/4 / 4000) = 0.047.
    assert positive == pytest.approx(0.5, abs=0.048)
    assert indices(sampler, 1) != indices(sampler, 2)
    unbalanced = EpochSampler(labelled([190, 10]), samples_per_epoch=4000)
    assert np.mean([index >= 190 for index in indices(unbalanced, 1)]) == 0.05


def test_balancing_draws_the_samples_of_a_class_equally_often_and_none_without_a_class():
    dataset = labelled([3, 0, 2, 4])
    dataset.labels = np.array([2, 0, -1, 2, 0, -1, 0, 3, 3])  # class 1 has no sample, two samples have no class
    counts = np.bincount(indices(EpochSampler(dataset, balance=True, samples_per_epoch=9000), 1), minlength=9)
    # Each of three classes has 3000 draws; six standard deviations of a binomial with p = 1/6 are 212.
    expected = [1500, 1000, 0, 1500, 1000, 0, 1000, 1500, 1500]
    np.testing.assert_allclose(counts, expected, atol=212)
    assert counts[[2, 5]].sum() == 0


@settings(deadline=None)
@given(shared_epochs(), st.integers(0, 9))
def test_an_epoch_goes_on_behind_what_any_number_of_processes_have_seen(epoch_of, seen):
    dataset, options, replicas = epoch_of
    alone = batches_of(EpochSampler(dataset, **options), 7)
    assume(seen < len(alone))
    samplers = [EpochSampler(dataset, **options, num_replicas=replicas, rank=rank) for rank in range(replicas)]
    whole = [list(sampler) for sampler in samplers]
    for rank, sampler in enumerate(samplers):
        sampler.start = (7, seen * options["batch_size"])
        assert list(sampler) == whole[rank], "another epoch is whole"
        sampler.set_epoch(7)
        rest = list(sampler)
        wanted = [index for batch in alone[seen:] for index in batch[rank::replicas]]
        assert rest[: len(wanted)] == wanted
        assert rest == whole_epoch(sampler)[len(whole[rank]) - len(rest) :]


def whole_epoch(sampler):
    sampler.start = (0, 0)
    return list(sampler)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_goes_on_behind_a_batch_and_starts_the_next_epoch_at_its_beginning(folder, num_workers):
    def epoch(number, **start):
        loader = SampleLoader(augmented(folder), batch_size=2, training=True, seed=4, num_workers=num_workers)
        loader.sampler.set_epoch(number)
        loader.sampler.start = start.get("start", loader.sampler.start)
        return [(batch["sample_id"], batch["image"]) for batch in loader]

    whole, rest = epoch(3), epoch(3, start=(3, 4))
    assert [names for names, _ in rest] == [names for names, _ in whole[2:]]
    assert all(torch.equal(image, other) for (_, image), (_, other) in zip(rest, whole[2:], strict=True))
    assert [names for names, _ in epoch(4, start=(3, 4))] == [names for names, _ in epoch(4)]


@pytest.mark.parametrize(
    ("tiles", "batch_size", "sizes"),
    [(9, 4, [4, 4]), (9, 2, [2, 2, 2, 2]), (9, 5, [5, 4]), (9, 9, [9]), (9, 10, [9]), (3, 1, [1, 1, 1]), (1, 4, [1])],
)
def test_only_a_single_last_tile_is_left_out_of_training(tmp_path, tiles, batch_size, sizes):
    folder = write_dataset(tmp_path, {"a": ("train", "MSS", tiles)}, size_px=8)
    loader = SampleLoader(TileDataset(folder, "train"), batch_size=batch_size, training=True)
    assert [len(batch["label"]) for batch in loader] == sizes
    assert len(loader) == len(sizes)


def test_evaluation_reads_every_tile_in_order(folder):
    loader = SampleLoader(TileDataset(folder, "train"), batch_size=4)
    names = [name for batch in loader for name in batch["sample_id"]]
    assert names == list(TileDataset(folder, "train").rows["sample_id"])


def test_unlabelled_tiles_are_left_out_of_a_split_and_counted(tmp_path, caplog):
    folder = write_dataset(tmp_path, {"a": ("train", "MSS", 2), "b": ("train", None, 1), "c": ("val", None, 1)})
    with caplog.at_level(logging.INFO):
        assert set(TileDataset(folder, "train").rows["patient_id"]) == {"a"}
    assert "1 tile without a label is left out" in caplog.text
    assert len(TileDataset(folder)) == 4
    with pytest.raises(InputError, match=r"split 'val' of .* has no labelled tiles"):
        TileDataset(folder, "val")


def test_a_label_that_is_no_class_of_the_dataset_is_refused(tmp_path):
    folder = write_dataset(tmp_path, {"a": ("train", "MSI-H", 1)})
    with pytest.raises(InputError, match="has label 'MSI-H', expected one of"):
        TileDataset(folder, "train")


def test_an_empty_split_is_refused(tmp_path):
    folder = write_dataset(tmp_path, {"a": ("train", "MSS", 1)})
    with pytest.raises(InputError, match=r"split 'val' of .* has no tiles; present: \['train'\]"):
        TileDataset(folder, "val")


def test_a_patient_in_two_splits_is_refused_even_for_inference(tmp_path):
    folder = write_dataset(tmp_path, {"a": ("train", "MSS", 1), "b": ("test", "MSI", 1)})
    path = folder / "splits.csv"
    leaking = pd.DataFrame({"patient_id": ["a", "a", "b"], "split": ["train", "test", "test"]}).to_csv(index=False)
    path.write_text(leaking)
    info = read_info(folder)
    info.splits["sha256"] = hashlib.sha256(leaking.encode()).hexdigest()
    write_info(folder, info)
    for split in ("train", "test", None):
        with pytest.raises(InputError, match=r"patient 'a' is in splits \['test', 'train'\]: this would leak"):
            TileDataset(folder, split)


def test_edited_splits_are_refused(tmp_path):
    folder = write_dataset(tmp_path, {"a": ("train", "MSS", 1), "b": ("test", "MSI", 1)})
    path = folder / "splits.csv"
    path.write_text(path.read_text().replace("b,test", "b,train"))
    with pytest.raises(InputError, match="was edited after it was frozen"):
        TileDataset(folder, "train")


@pytest.mark.parametrize("tile", [0, 1])
def test_a_broken_tile_is_named_with_its_file(tmp_path, tile):
    folder = write_dataset(tmp_path, {"a": ("train", "MSS", 2)})
    dataset = TileDataset(folder, "train")
    path = folder / dataset.rows["shard"][tile]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    with pytest.raises(InputError, match=rf"tile 'a/{tile}': .*a_{tile}\.\w+ cannot be decoded as an image"):
        dataset[tile]
    path.write_bytes(content[:-10])
    with pytest.raises(InputError, match=rf"a_{tile}\.\w+ is cut short: {len(content)} bytes expected"):
        dataset[tile]
    path.unlink()
    with pytest.raises(InputError, match=rf"cannot read image data from .*a_{tile}"):
        dataset[tile]


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_damaged_images_raise_nothing_but_input_errors(suffix):
    whole = encode(tile_pixels(0, 12), suffix)
    refused = 0
    for position in range(len(whole)):
        # Single bits matter: a chunk that claims to be a little shorter fails elsewhere than a nonsensical one.
        flipped = [whole[:position] + bytes([whole[position] ^ bits]) + whole[position + 1 :] for bits in (1, 16, 255)]
        for content in (*flipped, whole[:position]):
            try:
                assert decode_image(content, where="tile").ndim == 3
            except InputError:
                refused += 1
    assert refused > len(whole)


def test_an_image_that_claims_an_absurd_size_is_refused():
    content = bytearray(encode(tile_pixels(0, 12), "png"))
    content[16:24] = struct.pack(">II", 30_000, 30_000)  # width and height in the header chunk, which ends with a CRC
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    with pytest.raises(InputError, match=r"tile 7 cannot be decoded as an image: .*900000000 pixels"):
        decode_image(bytes(content), where="tile 7")


def with_stain_fits(folder, names):
    fit = REFERENCE
    values = [*fit.matrix.T.ravel(), *(fit.max_concentrations * 0.5)]
    columns = [f"stain_{stain}_{part}" for stain in "he" for part in "rgb"] + ["stain_h_max", "stain_e_max"]
    pd.DataFrame([[name, *values] for name in names], columns=["slide_id", *columns]).to_csv(
        folder / "slides.csv", index=False
    )


def test_stains_are_normalised_with_the_matrix_of_the_slide(tmp_path):
    folder = write_dataset(tmp_path, {"a": ("train", "MSS", 1)})
    plain = TileDataset(folder, "train")
    with_stain_fits(folder, plain.rows["slide_id"].unique())
    normalised = TileDataset(folder, "train", stain="macenko")
    fit = StainFit(REFERENCE.matrix, REFERENCE.max_concentrations * 0.5)
    np.testing.assert_array_equal(normalised.read(0), normalise_stains(plain.read(0), fit))
    assert (normalised.read(0) != plain.read(0)).any()
    assert (plain.stain, normalised.stain) == ("none", "macenko")


def test_tiles_stored_normalised_are_not_normalised_twice(tmp_path):
    folder = write_dataset(tmp_path, {"a": ("train", "MSS", 1)})
    info = read_info(folder)
    info.options = {"stain": "macenko"}
    write_info(folder, info)
    for asked in ("none", "macenko"):
        dataset = TileDataset(folder, "train", stain=asked)
        assert dataset.stain == "macenko"
        np.testing.assert_array_equal(dataset.read(0), TileDataset(folder).read(0))


def test_a_slide_without_a_stain_matrix_is_named(tmp_path):
    folder = write_dataset(tmp_path, {"a": ("train", "MSS", 1)})
    with pytest.raises(InputError, match="no stain matrix for 1 slide,"):
        TileDataset(folder, "train", stain="macenko")
    with pytest.raises(InputError, match="stain must be one of none, macenko, got 'vahadane'"):
        TileDataset(folder, "train", stain="vahadane")


@pytest.fixture
def impatient(monkeypatch):
    """Do not wait long for reading processes that have failed to end."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("num_workers", "what"), [(0, "cut short"), (0, "gone"), (0, "overwritten"), (1, "cut short")])
def test_a_damaged_tile_is_named_with_its_shard_in_one_line_whoever_reads_it(tmp_path, num_workers, what):
    folder = write_dataset(tmp_path / "dataset", PATIENTS)
    dataset = TileDataset(folder, "train")
    row = dataset.rows.iloc[-1]
    path = folder / row["shard"]
    if what == "gone":
        path.unlink()
    elif what == "cut short":
        path.write_bytes(path.read_bytes()[: row["offset"] + 5])
    else:
        with path.open("r+b") as stream:
            stream.seek(row["offset"])
            stream.write(b"x" * row["size"])
    with pytest.raises(InputError, match=rf"^tile '{row['sample_id']}'[^\n]*{path.name}[^\n]*$"):
        list(SampleLoader(dataset, batch_size=4, num_workers=num_workers))


@pytest.mark.usefixtures("impatient")
def test_a_reading_process_that_is_killed_is_said_in_one_line(folder, monkeypatch):
    dataset = TileDataset(folder, "train")
    monkeypatch.setattr(dataset, "sample", lambda position: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(InputError, match=r"^a process that reads samples was ended from outside[^\n]*$"):
        list(SampleLoader(dataset, batch_size=4, num_workers=1))


_INTERRUPTED_FORK = """
import os, signal, sys
from kdml_med.data import SampleLoader, TileDataset

os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGINT))
try:
    for batch in SampleLoader(TileDataset(sys.argv[1], "train"), batch_size=2, num_workers=1):
        print("the work goes on")
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_while_reading_processes_are_started_ends_the_work(folder):
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED_FORK, str(folder)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "interrupted\n"
