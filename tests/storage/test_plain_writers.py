"""Writers that stand in for slower ones of libraries give the same bytes."""

import tarfile

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdml_med.storage.files import Rows, table_bytes
from kdml_med.storage.shards import ShardWriter
from tests.examples import examples

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..")
)


@settings(max_examples=examples(30))
@given(members=st.dictionaries(NAMES, st.binary(max_size=1500), max_size=5))
def test_shard_is_the_tar_that_tarfile_writes(members, tmp_path_factory):
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    with ShardWriter(path) as shard:
        offsets = {name: shard.add(name, data) for name, data in members.items()}
    whole = path.read_bytes()
    assert all(whole[offset:].startswith(members[name]) for name, offset in offsets.items())
    expected = b""
    for name, data in members.items():
        header = tarfile.TarInfo(name)
        header.size = len(data)
        expected += header.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)
    assert whole == expected + bytes(1024)
    with tarfile.open(path) as tar:
        assert {member.name: tar.extractfile(member).read() for member in tar} == members


@pytest.mark.parametrize("name", ["x" * 100, "a/" * 60 + "b.jpg"])
def test_long_names_of_members_are_read_back(name, tmp_path):
    with ShardWriter(tmp_path / "a.tar") as shard:
        shard.add(name, b"abc")
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getnames() == [name]


@settings(max_examples=examples(30))
@given(
    rows=st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\0\r")), st.integers(), st.floats(allow_nan=False)
        ),
        max_size=6,
    )
)
def test_table_of_plain_rows_is_written_as_pandas_writes_it(rows):
    names = ["=text", "number", "share"]
    frame = pd.DataFrame(rows, columns=names, dtype=object)
    assert table_bytes(Rows(names, rows)) == table_bytes(frame)


def test_nothing_is_an_empty_cell():
    assert table_bytes(Rows(["a", "b"], [(1, None)])) == b"a,b\n1,\n"
