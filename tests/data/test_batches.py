"""Batches of images that have no common size."""

import gc
import multiprocessing
import re

import pytest
from monai.transforms import Compose

from kdml_med.data import FrameDataset, SampleLoader, TileDataset
from kdml_med.errors import InputError
from tests.data.folders import write_dataset
from tests.data.test_tiles import augmentation
from tests.data.test_views import Darken
from tests.synthetic_frames import write_frame_dataset

# In order: the first batch is p/0 to p/2, the second p/3 to p/5.
MIXED = {"p/4": 40}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("mixed"), {"p": ("train", "MSS", 6)}, other_sizes_px=MIXED)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("chain", "views"), [(Compose, 1), (augmentation, 2), (lambda: Compose([augmentation(), Darken()]), 1), (Darken, 2)]
)
def test_a_tile_of_another_size_is_named_in_one_line(folder, num_workers, chain, views):
    dataset = TileDataset(folder, "train", transform=chain())
    batches = iter(SampleLoader(dataset, batch_size=3, num_workers=num_workers, views=views))
    assert next(batches)["sample_id"] == ["p/0", "p/1", "p/2"]
    message = "'p/4' is 40 x 40 px, 'p/3' in the same batch 16 x 16 px: images need one size. Say --image_size"
    with pytest.raises(InputError, match=re.escape(message)) as error:
        next(batches)
    assert len(str(error.value).splitlines()) == 1


def test_a_reading_process_ends_by_itself_once_its_error_was_told(folder):
    gc.disable()  # nobody has to collect garbage for it
    others = multiprocessing.active_children()
    try:
        batches = iter(SampleLoader(TileDataset(folder, "train", transform=Compose()), batch_size=3, num_workers=1))
        (process,) = {*multiprocessing.active_children()}.difference(others)
        with pytest.raises(InputError, match="is 40 x 40 px"):
            list(batches)
        del batches
        process.join(60)
        assert process.exitcode == 0  # not by a signal
    finally:
        gc.enable()


def test_tiles_of_other_sizes_are_brought_to_the_image_size(folder):
    dataset = TileDataset(folder, "train", image_size=24, transform=augmentation())
    assert [batch["image"].shape for batch in SampleLoader(dataset, batch_size=3)] == [(3, 3, 24, 24)] * 2


def test_width_and_height_of_frames_are_not_mixed_up(tmp_path):
    dataset = FrameDataset(write_frame_dataset(tmp_path / "low", frames=1, height=30, width=64), "train")
    other = FrameDataset(write_frame_dataset(tmp_path / "high", frames=1, height=48, width=20), "train")
    with pytest.raises(InputError, match=r"is 20 x 48 px, .* 64 x 30 px"):
        SampleLoader(dataset).collate_fn([*dataset.make([0, 1]), *other.make([0])])
