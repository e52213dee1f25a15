import errno
import fcntl
import os
import pickle
import threading

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandFlipd

from kdml_med.data import NormalizeColourd, RandStainJitterd, SampleLoader, TileDataset
from kdml_med.data import cache as caching
from kdml_med.data.frames import FrameDataset
from kdml_med.data.reading import ShardReader
from kdml_med.errors import InputError
from tests.data.folders import encode, tile_pixels, write_dataset
from tests.synthetic_frames import write_frame_dataset

PATIENTS = {"a": ("train", "MSS", 5), "b": ("train", "MSI", 3), "c": ("val", "MSI", 2)}


@pytest.fixture
def folder(tmp_path):
    return write_dataset(tmp_path / "dataset", PATIENTS)


@pytest.fixture
def decoded(monkeypatch):
    """Positions that were decoded, by whatever dataset."""
    positions = []
    read = ShardReader.read
    monkeypatch.setattr(ShardReader, "read", lambda self, place: positions.append(int(place)) or read(self, place))
    return positions


def epochs(folder, cache, num_workers=0):
    transform = Compose([RandFlipd("image", prob=0.5), RandStainJitterd("image"), NormalizeColourd("image")])
    dataset = TileDataset(folder, "train", transform=transform, cache=cache)
    loader = SampleLoader(dataset, batch_size=3, training=True, num_workers=num_workers)
    found = []
    for epoch in (1, 2):
        loader.sampler.set_epoch(epoch)
        found += [(batch["sample_id"], batch["label"].tolist(), batch["image"]) for batch in loader]
    return found


@pytest.mark.parametrize("num_workers", [0, 2])
def test_samples_are_the_same_with_a_cache_and_decoded_once(folder, decoded, num_workers):
    plain = epochs(folder, "none")
    decoded.clear()
    for _ in range(2):  # made, and found
        for one, other in zip(plain, epochs(folder, "disk", num_workers), strict=True):
            assert one[:2] == other[:2]
            assert torch.equal(one[2], other[2])
    assert sorted(decoded) == sorted([*range(8), 0, 1, 3, 5, 7])  # five tell the size


def test_frames_of_any_size_come_back(tmp_path):
    folder = write_frame_dataset(tmp_path / "frames", frames=6)
    plain, cached = FrameDataset(folder, "train"), FrameDataset(folder, "train", cache=str(tmp_path / "elsewhere"))
    for position in range(len(plain)):
        np.testing.assert_array_equal(plain.read(position), cached.read(position))
    assert not (folder / "cache").exists()


def test_selected_rows_are_those_of_the_cache(folder):
    plain, cached = TileDataset(folder, "train"), TileDataset(folder, "train", cache="disk")
    for dataset in (plain, cached):
        dataset.keep([6, 0, 3])
    for position in range(3):
        np.testing.assert_array_equal(plain.read(position), cached.read(position))
    copy = pickle.loads(pickle.dumps(cached.source))
    np.testing.assert_array_equal(copy.read(2), plain.read(2))


def test_changed_images_are_not_read_stale(folder):
    dataset = TileDataset(folder, "train", cache="disk")
    before = dataset.read(0).copy()
    path = folder / dataset.rows["shard"][0]
    state, size = path.stat(), path.stat().st_size
    data = encode(255 - tile_pixels(0, 16), "png")
    path.write_bytes(data[:size].ljust(size, b"\0"))  # the same number of bytes, so that the manifest stays true
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # as copying does that keeps the times
    after = TileDataset(folder, "train", cache="disk")
    np.testing.assert_array_equal(after.read(0), TileDataset(folder, "train").read(0))
    assert (after.read(0) != before).any()
    assert sorted(file.suffix for file in (folder / "cache").iterdir()) == [".npy", ".pixels"]  # the old one is gone


def test_only_the_earlier_cache_of_the_same_part_is_replaced(folder, tmp_path):
    shared, other = tmp_path / "shared", write_dataset(tmp_path / "other", PATIENTS)
    TileDataset(folder, "train", cache=str(shared))
    before = {path.name for path in shared.iterdir()}
    (left,) = (path.with_name(f".{path.name}.part") for path in shared.glob("*.pixels"))
    left.write_bytes(b"of a build that was killed")
    for place, split in ((other, "train"), (folder, "val"), (folder, None)):
        TileDataset(place, split, cache=str(shared))
    assert before <= {path.name for path in shared.iterdir()}
    image = folder / TileDataset(folder, "train").rows["shard"][0]
    os.utime(image, ns=(0, 0))
    TileDataset(folder, "train", cache=str(shared))
    names = {path.name for path in shared.iterdir()}
    assert not before & names
    assert not left.exists()
    assert len(names) == 8


def test_without_its_cache_a_training_goes_on(folder, caplog):
    plain, cached = TileDataset(folder, "train"), TileDataset(folder, "train", cache="disk")
    for path in (folder / "cache").iterdir():
        path.unlink()
    for position in range(len(plain)):
        np.testing.assert_array_equal(cached.read(position), plain.read(position))
    assert [record.getMessage().count("decoded again") for record in caplog.records] == [1]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_does_not_take_it_is_named_and_nothing_stays(folder, monkeypatch, error):
    def fail(descriptor):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match=r"train-[0-9a-f]{32}\.pixels") as caught:
        TileDataset(folder, "train", cache="disk")
    assert os.strerror(error) in str(caught.value)
    assert not list((folder / "cache").iterdir())


def test_tiles_of_other_sizes_than_the_first_are_foreseen(folder, monkeypatch):
    sizes = iter([1000, 10, 10, 10, 10])
    source = type("Source", (), {"read": lambda self, place: np.zeros((1, next(sizes), 3), np.uint8)})()
    rows = TileDataset(folder, "train").rows
    seen = []
    usage = type("Usage", (), {"free": 2**26 + 8 * 3 * 208})
    monkeypatch.setattr(caching.shutil, "disk_usage", lambda path: seen.append(path) or usage)
    caching._check_room(folder / "x.pixels", source, rows, "tile")
    assert seen


def test_another_split_and_another_dataset_have_caches_of_their_own(folder, tmp_path):
    shared = str(tmp_path / "shared")
    other = write_dataset(tmp_path / "other", {name: (*PATIENTS[name][:2], 2) for name in "cba"})
    for place, split in ((folder, "train"), (folder, "val"), (other, "train")):
        cached, plain = TileDataset(place, split, cache=shared), TileDataset(place, split)
        for position in range(len(plain)):
            np.testing.assert_array_equal(cached.read(position), plain.read(position))
    assert len(list((tmp_path / "shared").glob("*.pixels"))) == 3


def test_a_damaged_tile_is_named_as_without_a_cache(folder):
    rows = TileDataset(folder, "train").rows
    path = folder / rows["shard"][2]
    path.write_bytes(b"\0" * path.stat().st_size)
    messages = []
    for cache in ("none", "disk", "disk"):
        dataset = TileDataset(folder, "train", cache=cache)
        assert dataset.read(3).shape == (16, 16, 3)
        with pytest.raises(InputError, match="a/2") as caught:
            dataset.read(2)
        messages.append(str(caught.value))
    assert len(set(messages)) == 1


@pytest.mark.parametrize("damage", ["pixels", "sizes.npy", "part"])
def test_a_cache_that_is_not_whole_is_made_again(folder, decoded, damage):
    plain = [TileDataset(folder, "train").read(place).copy() for place in range(8)]
    TileDataset(folder, "train", cache="disk")
    (pixels,) = (folder / "cache").glob("*.pixels")
    if damage == "part":  # as a build that was killed leaves it
        pixels.rename(pixels.with_name(f".{pixels.name}.part"))
    else:
        path = pixels.with_suffix(f".{damage}")
        path.write_bytes(path.read_bytes()[:-5])
    decoded.clear()
    dataset = TileDataset(folder, "train", cache="disk")
    assert set(decoded) == set(range(8))
    for place in range(8):
        np.testing.assert_array_equal(dataset.read(place), plain[place])


def test_a_cache_that_does_not_fit_is_refused_before_it_is_begun(folder, monkeypatch):
    monkeypatch.setattr(caching.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2**26 + 100})())
    with pytest.raises(InputError, match=r"the cache of 8 tiles takes .* free some space, .* --cache") as caught:
        TileDataset(folder, "train", cache="disk")
    assert "\n" not in str(caught.value)
    assert not list((folder / "cache").iterdir())


def test_a_folder_that_cannot_be_made_is_named(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=str(tmp_path / "file")):
        TileDataset(folder, "train", cache=str(tmp_path / "file" / "below"))


def test_a_second_training_waits_for_the_cache_of_the_first(folder, decoded):
    TileDataset(folder, "train", cache="disk")
    for path in (folder / "cache").iterdir():
        path.unlink()
    decoded.clear()
    handle = os.open(folder / "cache", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)  # as another process that is making it
    found = []
    thread = threading.Thread(target=lambda: found.append(TileDataset(folder, "train", cache="disk")), daemon=True)
    thread.start()
    thread.join(0.5)
    assert thread.is_alive()
    assert not decoded
    os.close(handle)
    thread.join(60)
    np.testing.assert_array_equal(found[0].read(1), TileDataset(folder, "train").read(1))
