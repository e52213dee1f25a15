import hashlib
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdml_med.storage import records as records_module
from kdml_med.storage.records import KEY_BYTES, RecordStore
from tests.examples import examples

SIZE = 5


def key(name: object) -> bytes:
    return hashlib.blake2b(str(name).encode(), digest_size=KEY_BYTES).digest()


def record(name: object) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(f"record {name}".encode()).digest()[:SIZE], np.uint8)


def keep(store: RecordStore, *names: object) -> None:
    store.write([key(name) for name in names], np.stack([record(name) for name in names]))


def known(store: RecordStore, *names: object) -> list[bool]:
    """Which names there are; the records of those are right."""
    there, found = store.read([key(name) for name in names])
    for name, is_there, content in zip(names, there, found, strict=True):
        assert np.array_equal(content, record(name) if is_there else np.zeros(SIZE))
    return there.tolist()


def files(folder: Path) -> dict[str, Path]:
    """The files of the only process that has kept anything."""
    paths = {path.suffix: path for path in folder.iterdir()}
    assert sorted(path.suffix for path in folder.iterdir()) == [".keys", ".values"]
    return paths


def test_records_are_found_by_who_keeps_them_and_by_who_comes_later(tmp_path: Path) -> None:
    first = RecordStore(tmp_path / "new", SIZE)
    assert known(first, 1, 2) == [False, False]
    assert not (tmp_path / "new").exists()
    keep(first, 1, 2)
    keep(first, 3)
    assert known(first, 3, 4, 1) == [True, False, True]
    second = RecordStore(tmp_path / "new", SIZE)
    assert len(second) == 3
    keep(second, 4)
    assert known(second, 1, 2, 3, 4, 5) == [True] * 4 + [False]
    assert known(first, 4) == [False]  # it looked before
    assert known(RecordStore(tmp_path / "new", SIZE), 1, 4) == [True, True]


@settings(deadline=None, max_examples=examples(25))
@given(st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=5), max_size=8), st.integers(1, 6))
def test_a_store_is_a_dictionary_whatever_is_kept_by_how_many_and_put_in_order_when(tmp_path_factory, batches, most):
    folder = tmp_path_factory.mktemp("records")
    before = records_module._MOST_NEW
    records_module._MOST_NEW = most
    try:
        stores = [RecordStore(folder, SIZE)]
        kept: list[set[int]] = [set()]
        for number, batch in enumerate(batches):
            if number % 3 == 2:
                stores.append(RecordStore(folder, SIZE))
                kept.append(set().union(*kept))
            keep(stores[-1], *batch)
            kept[-1] |= set(batch)
            for store, own in zip(stores, kept, strict=True):
                assert known(store, *range(21)) == [name in own for name in range(21)]
    finally:
        records_module._MOST_NEW = before


@pytest.mark.parametrize("suffix", [".keys", ".values"])
@pytest.mark.parametrize("lost", [1, 2 * SIZE, 10_000])
def test_what_was_cut_off_is_not_there_and_the_rest_is(tmp_path: Path, suffix: str, lost: int) -> None:
    keep(RecordStore(tmp_path, SIZE), *range(10))
    path = files(tmp_path)[suffix]
    whole = path.read_bytes()
    path.write_bytes(whole[: max(len(whole) - lost, 0)])
    one = KEY_BYTES if suffix == ".keys" else SIZE + 4
    left = max(len(whole) - lost, 0) // one
    again = RecordStore(tmp_path, SIZE)
    assert known(again, *range(10)) == [name < left for name in range(10)]
    keep(again, *range(10))
    assert known(again, *range(10)) == [True] * 10


def test_a_damaged_record_is_not_there_until_it_is_kept_again(tmp_path: Path) -> None:
    keep(RecordStore(tmp_path, SIZE), *range(3))
    path = files(tmp_path)[".values"]
    content = bytearray(path.read_bytes())
    content[SIZE + 4] ^= 1  # of record 1
    path.write_bytes(content)
    store = RecordStore(tmp_path, SIZE)
    assert known(store, 0, 1, 2) == [True, False, True]
    keep(store, 1)
    assert known(store, 0, 1, 2) == [True] * 3


def test_a_record_that_stands_at_the_place_of_another_is_not_taken_for_it(tmp_path: Path) -> None:
    # As when somebody interrupts a program between record and key, and goes on with it.
    store = RecordStore(tmp_path, SIZE)
    keep(store, 1)
    path = files(tmp_path)[".values"]
    path.write_bytes(path.read_bytes() * 2)
    keep(store, 2)
    assert known(store, 1, 2) == [True, False]
    assert known(RecordStore(tmp_path, SIZE), 1, 2) == [True, False]


def test_files_that_vanish_are_not_missed(tmp_path: Path) -> None:
    keep(RecordStore(tmp_path, SIZE), 1)
    store = RecordStore(tmp_path, SIZE)
    for path in files(tmp_path).values():
        path.unlink()
    assert known(store, 1) == [False]
    assert known(RecordStore(tmp_path, SIZE), 1) == [False]


def test_where_nothing_can_be_written_that_is_said_once_and_what_is_there_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(RecordStore(tmp_path, SIZE), 1)
    store = RecordStore(tmp_path, SIZE)

    def refuse(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records_module, "_append", refuse)
    with caplog.at_level(logging.WARNING):
        keep(store, 2)
        keep(store, 3)
    assert [line.message for line in caplog.records] == [
        f"cannot write to {tmp_path} (No space left on device): no more is kept there"
    ]
    assert known(store, 1, 2, 3) == [True, False, False]


def test_the_last_room_on_a_disk_is_left_to_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [2 * 2**30 + 3 * (SIZE + 4)]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free[0]))
    store = RecordStore(tmp_path / "new", SIZE)
    keep(store, 1, 2, 3)
    free[0] -= 1
    with caplog.at_level(logging.WARNING):
        keep(store, 4, 5, 6)
        free[0] *= 2
        keep(store, 7)
    assert [line.message for line in caplog.records] == [
        f"cannot write to {tmp_path / 'new'} (less than 2 GiB of its disk are free): no more is kept there"
    ]
    for one in (store, RecordStore(tmp_path / "new", SIZE)):
        assert known(one, *range(1, 8)) == [True] * 3 + [False] * 4
