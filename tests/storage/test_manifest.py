import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from kdml_med.errors import InputError
from kdml_med.storage.files import content_hash
from kdml_med.storage.manifest import (
    DATASET_FILE,
    MANIFEST_FILE,
    TILE_COLUMNS,
    DatasetInfo,
    image_root,
    manifest_table,
    read_info,
    read_manifest,
    read_member,
    write_info,
    write_manifest,
)


def tile(number: int, **changes: Any) -> dict[str, Any]:
    row = {"sample_id": f"t{number}", "patient_id": "p1", "slide_id": "s1", "shard": "shards/s1.tar", "offset": 512}
    return row | {"size": 3} | changes


def test_manifest_comes_back_with_its_columns_and_nulls(tmp_path: Path) -> None:
    write_manifest(tmp_path / MANIFEST_FILE, manifest_table([tile(0, label="MSI", mpp=0.5), tile(1)]))
    frame = read_manifest(tmp_path)
    assert list(frame.columns) == TILE_COLUMNS.names
    assert frame["label"].isna().tolist() == [False, True]
    assert frame["offset"].tolist() == [512, 512]


def test_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_manifest(tmp_path / name, manifest_table([tile(0), tile(1)]))
    assert content_hash(tmp_path / "a") == content_hash(tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([tile(0), tile(0)], "sample_id 't0' occurs more than once"),
        ([tile(0, patient_id="")], "row 0 has no patient_id"),
        ([tile(0), tile(1, patient_id="p2")], "slide 's1' belongs to 2 patients"),
    ],
)
def test_broken_rows_are_not_written(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_manifest(tmp_path / MANIFEST_FILE, manifest_table(rows))
    assert not (tmp_path / MANIFEST_FILE).exists()


def test_missing_or_damaged_manifest_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Run the same command again"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST_FILE).write_bytes(b"not parquet at all")
    with pytest.raises(InputError, match="cannot be read as parquet"):
        read_manifest(tmp_path)


def test_info_comes_back(tmp_path: Path) -> None:
    info = DatasetInfo(classes=["MSS", "MSI"], tile_size_px=224, mpp=0.5, options={"größe": 1})
    write_info(tmp_path, info)
    assert read_info(tmp_path) == info


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        (json.dumps({"schema_version": 99}), "schema version 99"),
        (json.dumps({"schema_version": 1, "tile_size": 3}), r"unknown key 'tile_size'"),
    ],
)
def test_unreadable_info_says_why(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / DATASET_FILE).write_text(content)
    with pytest.raises(InputError, match=message):
        read_info(tmp_path)


def test_folder_without_info_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a dataset folder"):
        read_info(tmp_path)


def test_member_is_a_byte_range(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    assert read_member(tmp_path, "file", 3, 4) == b"3456"
    with pytest.raises(InputError, match="cut short"):
        read_member(tmp_path, "file", 8, 4)
    with pytest.raises(InputError, match="cannot read image data"):
        read_member(tmp_path, "absent", 0, 4)


def test_image_root_is_the_folder_itself_or_elsewhere(tmp_path: Path) -> None:
    assert image_root(tmp_path, DatasetInfo()) == tmp_path.resolve()
    assert image_root(tmp_path, DatasetInfo(image_root="/data/tiles")) == Path("/data/tiles")


def test_an_imported_tar_of_another_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"0123")
    info = DatasetInfo(image_root=str(tmp_path), shard_bytes={"a.tar": 4})
    assert image_root(tmp_path, info) == tmp_path.resolve()
    (tmp_path / "a.tar").write_bytes(b"01234")
    with pytest.raises(InputError, match=r"a.tar was replaced: it has 5 bytes, 4 when it was imported. Run the import"):
        image_root(tmp_path, info)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(InputError, match=r"a.tar: No such file.*Run the import again"):
        image_root(tmp_path, info)


GOOD = DatasetInfo(classes=["MSS", "MSI"], tile_size_px=32, mpp=0.5, options={"stain": "none"}, made_by={"a": "b"})
TEXT, WHOLE, LIST, OBJECT = "some words", 3, ["MSS", 3], {"a": 3}
OTHERS: dict[str, list[Any]] = {
    "kind": ["pictures", WHOLE, LIST, None],
    "classes": ["MSI", OBJECT, LIST, ["MSI"], ["MSI", "MSI"], ["", "MSI"], ["a", "b", "c"], None, [["MSS"], ["MSI"]]],
    "tile_size_px": ["32", 32.5, 0, -1, True, LIST],
    "frame_size_px": ["32", 1e300, OBJECT],
    "mpp": ["0.5", 0, -0.5, True, LIST],
    "image_root": [WHOLE, None, LIST],
    "label_level": [WHOLE, "tile", None, "sequence", LIST],
    "options": [TEXT, LIST, None],
    "made_by": [TEXT, {"program": 3}, None],
    "splits": [TEXT, LIST, True],
    "synthetic": ["no", 0, None],
    "labels": [TEXT, LIST, 3],
    "shard_bytes": [TEXT, LIST, {"a.tar": "3"}],
    "owner": ["patient", "", WHOLE, LIST],
    "schema_version": ["1", 2, None, 1.5],
}


def test_every_key_of_dataset_json_is_tried() -> None:
    assert set(OTHERS) == set(DatasetInfo.__dataclass_fields__)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in OTHERS.items() for value in values])
def test_a_wrong_value_in_dataset_json_is_refused_by_its_key(tmp_path: Path, name: str, value: Any) -> None:
    write_info(tmp_path, GOOD)
    path = tmp_path / DATASET_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(InputError) as caught:
        read_info(tmp_path)
    for part in (str(path), name.replace("_", " ") if name == "schema_version" else name, repr(value)[:70]):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 1, 4, 1000, -8, -1])
def test_a_manifest_cut_short_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / MANIFEST_FILE
    write_manifest(path, manifest_table([tile(number) for number in range(50)]))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"manifest\.parquet cannot be read as parquet") as caught:
        read_manifest(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("column", ["offset", "size", "mpp", "sample_id"])
def test_columns_of_a_manifest_that_are_of_another_type_are_refused(tmp_path: Path, column: str) -> None:
    frame = manifest_table([tile(0), tile(1)]).to_pandas()
    frame[column] = [["a"], ["b"]]
    frame.to_parquet(tmp_path / MANIFEST_FILE)
    with pytest.raises(InputError, match=f"{MANIFEST_FILE} has columns of other types"):
        read_manifest(tmp_path)


def test_a_foreign_table_in_place_of_the_manifest_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / MANIFEST_FILE)
    with pytest.raises(InputError, match="lacks the columns"):
        read_manifest(tmp_path)
