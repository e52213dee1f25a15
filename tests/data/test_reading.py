import os
import pickle
import resource
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kdml_med.data.reading import ShardReader
from kdml_med.errors import InputError
from kdml_med.storage.shards import ShardWriter
from tests.data.folders import encode, tile_pixels

SHARDS, TILES = 5, 3
HANDLES = Path("/proc/self/fd")


@pytest.fixture
def rows(tmp_path):
    """Rows of tiles, of which tile n has the pixels of number n."""
    found = []
    for shard in range(SHARDS):
        with ShardWriter(tmp_path / f"{shard}.tar") as writer:
            for _ in range(TILES):
                data = encode(tile_pixels(len(found), 8), "png")
                offset = writer.add(f"{len(found)}.png", data)
                found.append((f"tile {len(found)}", f"{shard}.tar", offset, len(data)))
    return pd.DataFrame(found, columns=["sample_id", "shard", "offset", "size"])


def open_files(folder):
    """How many files of a folder this process has open."""
    paths = [os.path.realpath(handle) for handle in HANDLES.iterdir()]
    return sum(path.startswith(f"{folder}/") for path in paths)


@pytest.mark.parametrize("shard_type", ["str", "category"])
def test_pixels_are_those_of_the_row_in_any_order(tmp_path, rows, shard_type):
    reader = ShardReader(tmp_path, rows.astype({"shard": shard_type}), "tile")
    for position in (14, 0, 7, 7, 3):
        np.testing.assert_array_equal(reader.read(position), tile_pixels(position, 8))
    chosen = reader.select([9, 2])
    np.testing.assert_array_equal(chosen.read(0), tile_pixels(9, 8))
    np.testing.assert_array_equal(chosen.read(1), tile_pixels(2, 8))


@pytest.mark.skipif(not HANDLES.is_dir(), reason="counts open files as Linux shows them")
def test_few_shards_are_open_at_a_time_and_none_afterwards(tmp_path, rows):
    reader = ShardReader(tmp_path, rows, "tile", open_shards=2)
    for position in np.random.default_rng(0).integers(0, len(rows), 50).tolist():
        np.testing.assert_array_equal(reader.read(position), tile_pixels(position, 8))
        assert open_files(tmp_path) <= 2
    assert open_files(tmp_path) == 2
    sent = pickle.loads(pickle.dumps(reader))
    assert open_files(tmp_path) == 2
    np.testing.assert_array_equal(sent.read(4), tile_pixels(4, 8))
    sent.close()
    reader.close()
    assert open_files(tmp_path) == 0
    np.testing.assert_array_equal(reader.read(5), tile_pixels(5, 8))


@pytest.mark.skipif(not HANDLES.is_dir(), reason="counts open files as Linux shows them")
def test_many_shards_are_read_where_few_files_may_be_open(tmp_path):
    data = encode(tile_pixels(0, 8), "png")
    for number in range(60):
        (tmp_path / f"{number}.tar").write_bytes(data)
    rows = pd.DataFrame({"sample_id": "a", "shard": [f"{number}.tar" for number in range(60)]})
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    # As many more as training and validation need together, and not one for each shard.
    few = len(list(HANDLES.iterdir())) + 40
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, limits[1]))
    try:
        reader = ShardReader(tmp_path, rows.assign(offset=0, size=len(data)), "tile")
        for position in range(60):
            np.testing.assert_array_equal(reader.read(position), tile_pixels(0, 8))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_shard_that_does_not_open_is_named(tmp_path, rows):
    (tmp_path / "1.tar").unlink()
    with pytest.raises(InputError, match=r"^tile 'tile 3': cannot read image data from .*1\.tar: No such file"):
        ShardReader(tmp_path, rows, "tile").read(3)


def test_a_shard_that_is_cut_short_while_it_is_open_is_named(tmp_path, rows):
    reader = ShardReader(tmp_path, rows, "tile")
    reader.read(0)
    path = tmp_path / "0.tar"
    os.truncate(path, int(rows["offset"][2]) + 1)
    reader.read(1)
    size = rows["size"][2]
    with pytest.raises(
        InputError, match=rf"^tile 'tile 2': {path} is cut short: {size} bytes expected at \d+, 1 found"
    ):
        reader.read(2)


def test_an_imported_file_that_was_replaced_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(tile_pixels(0, 8), "png"))
    size = (tmp_path / "a.png").stat().st_size
    rows = pd.DataFrame([("a", "a.png", 0, size)], columns=["sample_id", "shard", "offset", "size"])
    reader = ShardReader(tmp_path, rows, "tile")
    np.testing.assert_array_equal(reader.read(0), tile_pixels(0, 8))
    (tmp_path / "a.png").write_bytes(encode(tile_pixels(0, 8), "png") + b"more")
    with pytest.raises(InputError, match=r"^tile 'a': .*a\.png was replaced"):
        reader.read(0)
