import contextlib
import hashlib
import os
import resource
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdml_med.errors import InputError
from kdml_med.storage import files
from kdml_med.storage.files import (
    not_alone,
    source_fingerprint,
    take_fingerprints,
    unfinished_path,
    write_atomically,
    write_if_changed,
    write_json,
    write_parquet,
    write_table,
)
from kdml_med.storage.manifest import manifest_table, write_manifest
from kdml_med.storage.shards import ShardWriter

LARGE = files.WHOLE_BYTES + 12_345


@pytest.fixture
def synced(monkeypatch, tmp_path):
    """What was made durable, in order: names of files as they were called then, and of folders."""
    order = []
    sync, rename = os.fsync, Path.replace

    def note_sync(handle):
        state = os.fstat(handle)
        name = next(path.name for path in tmp_path.rglob("*") if path.stat().st_ino == state.st_ino)
        order.append(("folder" if stat.S_ISDIR(state.st_mode) else "file", name))
        sync(handle)

    def note_rename(path, target):
        order.append(("rename", Path(target).name))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_rename)
    return order


@pytest.mark.parametrize("kind", ["file", "shard"])
def test_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_work_goes_on(tmp_path, synced, kind):
    if kind == "file":
        write_atomically(tmp_path / "deep" / "a", b"content")
    else:
        with ShardWriter(tmp_path / "deep" / "a") as shard:
            shard.add("x.png", b"content")
    assert synced == [("file", ".a.part"), ("rename", "a"), ("folder", "deep")]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a"]


def test_two_writers_of_one_file_do_not_meet_in_its_unfinished_copy(tmp_path):
    path = tmp_path / ("ü" * 120 + ".tar")  # as long as a name can be
    with not_alone(), ShardWriter(path) as slow:
        slow.add("x.png", b"content")
        with ShardWriter(path) as quick:
            quick.add("x.png", b"content")
        once = path.read_bytes()
        slow_copy = [other.name for other in tmp_path.iterdir() if other != path]
        assert len(slow_copy) == 1
        assert slow_copy[0].startswith(".ü")
        assert slow_copy[0].endswith(".part")
    assert path.read_bytes() == once
    assert list(tmp_path.iterdir()) == [path]


def test_alone_again_the_next_writer_overwrites_what_a_killed_one_left(tmp_path):
    with not_alone():
        assert unfinished_path(tmp_path / "a") != unfinished_path(tmp_path / "a")
    assert unfinished_path(tmp_path / "a") == tmp_path / ".a.part"


def test_folder_that_cannot_be_synced_is_no_failure_but_a_full_disk_is(tmp_path, monkeypatch):
    sync = os.fsync

    def refuse(code):
        def fsync(handle):
            if stat.S_ISDIR(os.fstat(handle).st_mode):
                raise OSError(code, os.strerror(code))
            sync(handle)

        return fsync

    monkeypatch.setattr(os, "fsync", refuse(22))  # EINVAL, as some network file systems say
    write_atomically(tmp_path / "a", b"content")
    assert (tmp_path / "a").read_bytes() == b"content"
    monkeypatch.setattr(os, "fsync", refuse(28))  # ENOSPC
    with pytest.raises(InputError, match=r"cannot write .*b: No space.* Free some space"):
        write_atomically(tmp_path / "b", b"content")


def test_shard_that_fails_leaves_nothing(tmp_path):
    def tear():
        with ShardWriter(tmp_path / "a.tar") as shard:
            shard.add("x.png", b"content")
            raise ValueError("torn")

    with pytest.raises(ValueError, match="torn"):
        tear()
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_again_is_not_touched(tmp_path):
    writers = {
        "a.bin": lambda path, value: write_if_changed(path, value.encode()),
        "a.json": lambda path, value: write_json(path, {"value": value}),
        "a.csv": lambda path, value: write_table(path, pd.DataFrame({"value": [value]})),
    }
    for name, write in writers.items():
        path = tmp_path / name
        write(path, "old")
        os.utime(path, ns=(1, 1))
        write(path, "old")
        assert path.stat().st_mtime_ns == 1
        write(path, "new")  # of the same size
        assert path.stat().st_mtime_ns > 1
        assert b"new" in path.read_bytes()


@given(content=st.binary(min_size=1, max_size=300), place=st.integers(0, 299), step=st.integers(1, 255))
def test_any_changed_byte_of_a_small_file_is_seen_and_its_time_is_not_looked_at(tmp_path_factory, content, place, step):
    path = tmp_path_factory.getbasetemp() / "small.bin"
    path.write_bytes(content)
    before = source_fingerprint(path, "a")
    os.utime(path, ns=(5, 5))
    assert source_fingerprint(path, "a") == before
    changed = bytearray(content)
    changed[place % len(content)] = (changed[place % len(content)] + step) % 256
    path.write_bytes(changed)
    assert source_fingerprint(path, "a") != before
    path.write_bytes(content)
    assert source_fingerprint(path, "a") == before
    assert source_fingerprint(path, "b") != before


@pytest.fixture
def large(tmp_path):
    path = tmp_path / "large.bin"
    with path.open("wb") as stream:
        stream.truncate(LARGE)
    return path


def put(path, place, keep_time=False):
    time = path.stat().st_mtime_ns
    with path.open("r+b") as stream:
        stream.seek(place)
        stream.write(b"x")
    os.utime(path, ns=(time, time) if keep_time else (time + 1, time + 1))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("place", [0, LARGE - 1, LARGE // 2, 3_333_333])
def test_change_anywhere_in_a_large_file_is_seen(large, full, place):
    before = source_fingerprint(large, "a", full=full)
    put(large, place)
    assert source_fingerprint(large, "a", full=full) != before


@pytest.mark.parametrize("place", [0, LARGE - 1])
def test_ends_of_a_large_file_are_hashed(large, place):
    before = source_fingerprint(large, "a")
    put(large, place, keep_time=True)
    assert source_fingerprint(large, "a").digest != before.digest


def test_only_a_full_hash_sees_a_change_that_forged_its_time_and_only_it_does_without_times(large):
    sampled, full = (source_fingerprint(large, "a", full=kind) for kind in (False, True))
    put(large, 3_333_333, keep_time=True)  # in none of the blocks
    assert source_fingerprint(large, "a") == sampled
    assert source_fingerprint(large, "a", full=True) != full
    assert full.time_ns is None
    assert sampled.time_ns is not None
    assert sampled.digest != full.digest


def test_file_that_cannot_be_read_is_like_no_other(tmp_path, large):
    absent = source_fingerprint(tmp_path / "absent", "a")
    assert absent.digest == "unreadable: No such file or directory"
    assert absent != source_fingerprint(large, "a")


def test_several_files_keep_their_order_whatever_the_threads(tmp_path):
    names = [f"{number}.bin" for number in range(20)]
    for name in names:
        (tmp_path / name).write_text(name)
    pairs = [(tmp_path / name, name) for name in names]
    counted = []
    found = take_fingerprints(pairs, threads=3, on_done=lambda: counted.append(1))
    assert found == [source_fingerprint(*pair) for pair in pairs]
    assert len(counted) == 20


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may become larger than this, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", ["bytes", "table", "json", "parquet", "manifest", "shard"])
def test_full_disk_is_one_line_leaves_what_was_there_and_nothing_torn(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    large = "x" * 200_000
    table = pd.DataFrame({"a": [hashlib.sha256(str(number).encode()).hexdigest() for number in range(20_000)]})
    ids = [dict.fromkeys(("sample_id", "patient_id", "slide_id", "shard"), value) for value in table["a"]]
    manifest = manifest_table([row | {"offset": 0, "size": 1} for row in ids])

    def write() -> None:
        if kind == "shard":
            with ShardWriter(path) as shard:
                for number in range(20):
                    shard.add(f"{number}.png", large.encode())
        else:
            {
                "bytes": lambda: write_atomically(path, large.encode()),
                "table": lambda: write_table(path, table),
                "json": lambda: write_json(path, large),
                "parquet": lambda: write_parquet(path, table),
                "manifest": lambda: write_manifest(path, manifest),
            }[kind]()

    with room_for(100_000), pytest.raises(InputError, match=r"^cannot write .*a: File too large\. Free some space"):
        write()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"a": b"old"}
    write()  # there is room again
    assert path.stat().st_size > 100_000


def test_a_shard_leaves_errors_of_those_who_read_for_it_as_they_are(tmp_path: Path) -> None:
    def read() -> None:
        with ShardWriter(tmp_path / "a.tar") as shard:
            shard.add("x.png", b"content")
            raise OSError(5, "of the slide")

    with pytest.raises(OSError, match="of the slide") as caught:
        read()
    assert not isinstance(caught.value, InputError)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_or_went_away_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*file/a: "):
        write_atomically(tmp_path / "file" / "a", b"x")
    shard = ShardWriter(tmp_path / "folder/a.tar")
    shutil.rmtree(tmp_path / "folder")
    with pytest.raises(InputError, match=r"cannot write .*a\.tar: "):
        shard.__exit__(None, None, None)
