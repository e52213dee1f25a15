import io
import logging
import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from kdml_med.errors import ExitCode, InputError
from kdml_med.programs.import_tiles import Layout, import_tiles
from kdml_med.splits import assign_splits, freeze_splits, has_splits, make_splits
from kdml_med.storage.locks import sole_user
from kdml_med.storage.manifest import image_root, read_info, read_manifest, read_member
from kdml_med.tables.images import TableColumns
from kdml_med.wsi import importing
from kdml_med.wsi.importing import ImportResult, import_tile_folders


def import_tile_table(source: Path, out: Path, labels: Path, **how: Any) -> ImportResult:
    """The import of a table with the classes a and b, unless others are named."""
    return importing.import_tile_table(source, out, labels, **{"classes": ["a", "b"]} | how)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "preprocessing.import_tiles", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def picture(path: Path, size: tuple[int, int] = (32, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 140, 180)).save(path)


def failures(dataset: Path) -> dict[str, str]:
    table = pd.read_csv(dataset / "failures.csv", dtype=str)
    return dict(zip(table["input"], table["reason"], strict=True))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def kather(tmp_path: Path) -> Path:
    """The form of Zenodo 2530835: 12 patients in train, 4 in test, two tiles each, a third of them MSI."""
    root = tmp_path / "source"
    for number in range(16):
        part = "TRAIN" if number < 12 else "TEST"
        label = "MSIMUT" if number % 3 == 0 else "MSS"
        for tile in "AB":
            name = f"blk-{tile * 12}-TCGA-{'AA' if number % 2 else 'G4'}-36{number:02}-01Z-00-DX1.png"
            picture(root / f"CRC_DX_{part}" / label / name)
    return root


def test_official_split_is_kept_and_validation_comes_from_train(kather: Path, tmp_path: Path) -> None:
    out = tmp_path / "dataset"
    done = run(kather, "--out", out, "--layout", "kather")
    assert done.returncode == 0, done.stderr
    info, manifest = read_info(out), read_manifest(out)
    assert (info.classes, info.tile_size_px, info.mpp) == (["MSS", "MSI"], 32, 0.5)
    assert (len(manifest), manifest["patient_id"].nunique()) == (32, 16)
    split = assign_splits(out, manifest, info)
    official = manifest["shard"].str.startswith("CRC_DX_TEST").map({True: "test", False: "train"})
    assert (split.replace("val", "train") == official).all()
    table = pd.crosstab(manifest["label"], split)
    assert (table[["train", "val", "test"]] > 0).all(axis=None)
    first = manifest.iloc[0]
    assert first["slide_id"] == f"{first['patient_id']}-01Z-00-DX1"
    assert first["site"] in {"AA", "G4"}
    data = read_member(image_root(out, info), first["shard"], first["offset"], first["size"])
    assert Image.open(io.BytesIO(data)).size == (32, 32)


def test_same_command_gives_the_same_bytes(kather: Path, tmp_path: Path) -> None:
    results = []
    for _ in range(2):
        import_tile_folders(kather, tmp_path / "dataset")
        results.append(contents(tmp_path / "dataset"))
    assert results[0] == results[1]
    assert set(results[0]) == {"dataset.json", "manifest.parquet", "slides.csv", "splits.csv", "failures.csv"}


def test_unusable_tiles_are_listed_and_the_others_go_on(kather: Path, tmp_path: Path) -> None:
    folder = kather / "CRC_DX_TRAIN" / "MSS"
    (folder / "blk-BROKEN-TCGA-AA-3601-01Z-00-DX1.png").write_bytes(b"no image")
    (folder / "blk-EMPTY-TCGA-AA-3601-01Z-00-DX1.png").touch()
    (folder / "stranger.png").write_bytes(b"x")
    (folder / "scan-TCGA-AA-3601-01Z-00-DX1.tif").write_bytes(b"x")
    (folder / ".DS_Store").write_bytes(b"x")
    assert import_tiles(kather, tmp_path / "dataset", Layout.KATHER, check_images=True) == ExitCode.SOME_FAILED
    reasons = {Path(name).name[:7]: reason for name, reason in failures(tmp_path / "dataset").items()}
    assert sorted(reasons) == ["blk-BRO", "blk-EMP", "scan-TC", "strange"]
    assert "header" in reasons["blk-BRO"]
    assert "TCGA barcode" in reasons["strange"]
    assert len(read_manifest(tmp_path / "dataset")) == 32


OTHER_SIZE = "CRC_DX_TRAIN/MSS/other-TCGA-AA-3601-01Z-00-DX1.png"


@pytest.mark.parametrize("size", [(40, 40), (32, 40)])
def test_checked_headers_of_different_sizes_leave_the_size_open_and_are_said(
    kather: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, size: tuple[int, int]
) -> None:
    picture(kather / OTHER_SIZE, size)
    with caplog.at_level(logging.INFO):
        assert import_tiles(kather, tmp_path / "dataset", Layout.KATHER, check_images=True) == ExitCode.OK
    assert read_info(tmp_path / "dataset").tile_size_px is None
    assert failures(tmp_path / "dataset") == {}
    first = "CRC_DX_TEST/MSIMUT/blk-AAAAAAAAAAAA-TCGA-AA-3615-01Z-00-DX1.png"
    said = f"images differ in size: 32 x 32 px ({first}), {size[0]} x {size[1]} px ({OTHER_SIZE}); training needs"
    assert said in caplog.text


def test_checked_headers_of_one_size_are_not_spoken_of(
    kather: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        import_tiles(kather, tmp_path / "dataset", Layout.KATHER, check_images=True)
    assert read_info(tmp_path / "dataset").tile_size_px == 32
    assert "differ in size" not in caplog.text


def test_sizes_that_differ_in_a_table_are_said(images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(images / "deep/large.png", (64, 64))
    path = table(tmp_path, "image,patient,label\ni1,1,a\ni2,1,a\nlarge,2,b\n")
    with caplog.at_level(logging.INFO):
        import_tile_table(images, tmp_path / "dataset", path)
    assert "images differ in size: 40 x 40 px (deep/i1.jpg), 64 x 64 px (deep/large.png)" in caplog.text


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("CRC_DX_TEST/MSS/b-TCGA-G4-3602-01Z-00-DX1.png", "'TCGA-G4-3602' is in the folders"),
        ("CRC_DX_TRAIN/MSIMUT/b-TCGA-G4-3602-01Z-00-DX1.png", "'TCGA-G4-3602' has tiles of the classes"),
        ("STAD_TRAIN/MSS/b-TCGA-G4-4602-01Z-00-DX1.png", r"several cohorts, \['CRC_DX', 'STAD'\]"),
        (
            "CRC_DX_TRAIN/OTHER/b-TCGA-G4-3602-01Z-00-DX1.png",
            "CRC_DX_TRAIN/OTHER: class folder is 'OTHER', which is no word for MSI or MSS",
        ),
    ],
)
def test_contradictions_stop_the_import(kather: Path, tmp_path: Path, path: str, message: str) -> None:
    picture(kather / path)
    with pytest.raises(InputError, match=message):
        import_tile_folders(kather, tmp_path / "dataset")
    assert not (tmp_path / "dataset").exists()


def test_one_of_several_cohorts_can_be_named(kather: Path, tmp_path: Path) -> None:
    picture(kather / "STAD_TRAIN/MSS/b-TCGA-G4-4602-01Z-00-DX1.png")
    assert import_tile_folders(kather, tmp_path / "dataset", cohort="CRC_DX").patients == 16
    with pytest.raises(InputError, match="no folders BRCA_TRAIN"):
        import_tile_folders(kather, tmp_path / "dataset", cohort="BRCA")
    with pytest.raises(InputError, match="not its counterpart"):
        import_tile_folders(kather, tmp_path / "dataset", cohort="STAD")


def test_class_folders_without_an_official_split_get_none(kather: Path, tmp_path: Path) -> None:
    result = import_tile_folders(kather / "CRC_DX_TRAIN", tmp_path / "dataset")
    assert (result.tiles, has_splits(tmp_path / "dataset")) == (24, False)


def test_folder_of_another_dataset_is_not_overwritten(kather: Path, tmp_path: Path) -> None:
    import_tile_folders(kather, tmp_path / "dataset")
    before = contents(tmp_path / "dataset")
    with pytest.raises(
        InputError, match=r"was made with source = .*source., this run has .*CRC_DX_TRAIN.*choose another --out"
    ):
        import_tile_folders(kather / "CRC_DX_TRAIN", tmp_path / "dataset")
    assert contents(tmp_path / "dataset") == before


def test_other_validation_patients_need_force(kather: Path, tmp_path: Path) -> None:
    import_tile_folders(kather, tmp_path / "dataset")
    before = contents(tmp_path / "dataset")
    with pytest.raises(InputError, match="--force"):
        import_tile_folders(kather, tmp_path / "dataset", val_fraction=0.4)
    assert contents(tmp_path / "dataset") == before
    import_tile_folders(kather, tmp_path / "dataset", val_fraction=0.4, force=True)
    assert contents(tmp_path / "dataset") != before


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for number in range(6):
        picture(root / f"deep/i{number}.jpg", (40, 40) if number else (40, 30))
    return root


def table(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text)
    return path


def test_table_names_images_by_path_name_or_stem(images: Path, tmp_path: Path) -> None:
    path = table(tmp_path, "image,patient,grade,mpp\ndeep/i0.jpg,1,a,0.5\ni1.jpg,1,a,0.5\ni2,2,b,\ngone.jpg,2,b,1\n")
    out = tmp_path / "dataset"
    done = run(images, "--out", out, "--layout", "csv", "--labels", path, "--positive", "b")
    assert done.returncode == 3, done.stderr
    assert "3 images in the folder are named by no row of the table" in done.stderr
    manifest, info = read_manifest(out), read_info(out)
    assert manifest["shard"].tolist() == ["deep/i0.jpg", "deep/i1.jpg", "deep/i2.jpg"]
    assert manifest["slide_id"].tolist() == ["1", "1", "2"]
    assert manifest["mpp"].isna().tolist() == [False, False, True]
    assert (info.tile_size_px, info.mpp, info.classes) == (None, None, ["a", "b"])
    assert list(failures(out)) == ["deep/i3.jpg", "deep/i4.jpg", "deep/i5.jpg", "gone.jpg"]
    assert "row 5" in failures(out)["gone.jpg"]
    assert failures(out)["deep/i3.jpg"] == "no row of table.csv names it"


def test_label_level_slide_makes_each_image_its_slide(images: Path, tmp_path: Path) -> None:
    path = table(tmp_path, "image,patient,grade\ni1,1,a\ni2,1,b\ni3,2,\n")
    import_tile_table(images, tmp_path / "dataset", path, label_level="slide", mpp=0.62)
    manifest, info = read_manifest(tmp_path / "dataset"), read_info(tmp_path / "dataset")
    assert manifest["slide_id"].tolist() == ["deep/i1", "deep/i2", "deep/i3"]
    assert manifest["label"].isna().tolist() == [False, False, True]
    assert (info.label_level, info.mpp, info.tile_size_px) == ("slide", 0.62, 40)
    with pytest.raises(InputError, match="patient '1' has the labels"):
        import_tile_table(images, tmp_path / "dataset", path)


def test_conditions_choose_rows(images: Path, tmp_path: Path) -> None:
    path = table(tmp_path, "image,task,patient,label\ni1,x,1,0\ni2,x,2,1\ni1,y,1,1\ni2,y,2,0\n")
    import_tiles(images, tmp_path / "dataset", Layout.CSV, labels=path, where=["task=x"], positive="1")
    assert read_manifest(tmp_path / "dataset")["label"].tolist() == ["0", "1"]
    with pytest.raises(InputError, match="COLUMN=VALUE"):
        import_tiles(images, tmp_path / "dataset", Layout.CSV, labels=path, where=["task"])
    with pytest.raises(InputError, match="--labels FILE"):
        import_tiles(images, tmp_path / "dataset", Layout.CSV)


def test_split_column_is_kept_when_named(images: Path, tmp_path: Path) -> None:
    text = "".join(f"i{n},p{n},{'ab'[n % 2]},{'training' if n < 4 else 'Test'}\n" for n in range(6))
    path = table(tmp_path, "image,patient,label,set\n" + text)
    out = tmp_path / "dataset"
    import_tile_table(images, out, path, columns=TableColumns(split="set"), val_fraction=0.5)
    split = assign_splits(out, read_manifest(out), read_info(out))
    assert split.value_counts().to_dict() == {"train": 2, "val": 2, "test": 2}


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("image,patient,label\ni1,1,a\ni1.jpg,2,b\n", {}, "rows 2 and 3 name the same image deep/i1.jpg"),
        ("image,patient,label\ni1,,a\ni2,2,b\n", {}, "row 2: no patient id"),
        ("image,patient,label,s\ni1,1,a,train\ni2,2,b,no\n", {"split": "s"}, "row 3: s is 'no'"),
        ("image,patient,label,s\ni1,1,a,train\ni2,1,a,test\ni3,2,b,test\n", {"split": "s"}, "'1' is in two splits"),
        ("image,patient,label,slide\ni1,1,a,x\ni2,2,b,x\n", {}, "slide 'x' belongs to 2 patients"),
        ("name,patient,label\ni1,1,a\ni2,2,b\n", {}, "no image column recognised"),
        ("image,patient,label\nz1,1,a\nz2,2,b\n", {}, "no usable image"),
    ],
)
def test_bad_tables_name_the_row(
    images: Path, tmp_path: Path, text: str, columns: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        import_tile_table(images, tmp_path / "dataset", table(tmp_path, text), columns=TableColumns(**columns))


def test_links_to_one_image_for_two_patients_are_refused_naming_both(images: Path, tmp_path: Path) -> None:
    (images / "deep/link.jpg").symlink_to("i1.jpg")
    path = table(tmp_path, "image,patient,label,s\ni1,1,a,train\nlink,9,a,test\ni2,2,b,test\ni3,3,b,train\n")
    result = import_tile_table(images, tmp_path / "dataset", path, columns=TableColumns(split="s"), val_fraction=0)
    reasons = {name: reason for name, reason in result.failures if "same file" in reason}
    assert set(reasons) == {"i1", "link"}
    assert reasons["link"].startswith(
        "row 3: is the same file as deep/i1.jpg, which row 2 lists for patient 1 with the label a, and this one for "
        "patient 9 with the label a: correct the table"
    )
    assert "deep/link.jpg, which row 3 lists for patient 9" in reasons["i1"]
    assert read_manifest(tmp_path / "dataset")["patient_id"].tolist() == ["2", "3"]


def test_links_to_one_image_of_one_patient_stay(images: Path, tmp_path: Path) -> None:
    (images / "deep/link.jpg").symlink_to("i1.jpg")
    path = table(tmp_path, "image,patient,label\ni1,1,a\nlink,1,a\ni2,2,b\n")
    import_tile_table(images, tmp_path / "dataset", path)
    assert read_manifest(tmp_path / "dataset")["sample_id"].tolist() == ["deep/i1.jpg", "deep/i2.jpg", "deep/link.jpg"]


ROWS = "".join(f"i{n},p{n},{'ab'[n % 2]}\n" for n in range(6))


def test_unchanged_import_touches_nothing(images: Path, tmp_path: Path, kather: Path) -> None:
    path = table(tmp_path, "image,patient,label\n" + ROWS)
    importers = {
        "csv": lambda out: import_tile_table(images, out, path),
        "kather": lambda out: import_tile_folders(kather, out),
    }
    for name, import_again in importers.items():
        out = tmp_path / name
        assert not import_again(out).same
        for file in out.iterdir():
            os.utime(file, ns=(7, 7))
        assert import_again(out).same
        assert {file.stat().st_mtime_ns for file in out.iterdir()} == {7}


def test_image_replaced_since_the_import_is_refused_in_training_and_followed_by_the_next_import(
    images: Path, tmp_path: Path
) -> None:
    out, path = tmp_path / "dataset", table(tmp_path, "image,patient,label\n" + ROWS)
    import_tile_table(images, out, path)
    old = read_manifest(out).set_index("sample_id").loc["deep/i1.jpg"]
    picture(images / "deep/i1.jpg", (64, 64))
    with pytest.raises(InputError, match=r"i1\.jpg was replaced: .* Run the import again"):
        read_member(images, old["shard"], old["offset"], old["size"])
    assert not import_tile_table(images, out, path).same
    new = read_manifest(out).set_index("sample_id").loc["deep/i1.jpg"]
    data = read_member(images, new["shard"], new["offset"], new["size"])
    assert Image.open(io.BytesIO(data)).size == (64, 64)


def test_renamed_and_further_images_are_followed(kather: Path, tmp_path: Path) -> None:
    out = tmp_path / "dataset"
    import_tile_folders(kather, out, val_fraction=0)
    folder = kather / "CRC_DX_TEST" / "MSS"
    old = sorted(folder.iterdir())[0]
    old.rename(old.with_name(f"renamed-{old.name}"))
    picture(folder / f"further-{old.name}")
    import_tile_folders(kather, out, val_fraction=0)
    shards = set(read_manifest(out)["shard"])
    assert {Path(shard).name for shard in shards if "renamed" in shard or "further" in shard} == {
        f"renamed-{old.name}",
        f"further-{old.name}",
    }
    assert old.relative_to(kather).as_posix() not in shards
    assert len(shards) == 33


def test_second_batch_of_the_same_names_from_another_folder_is_refused(images: Path, tmp_path: Path) -> None:
    out, path = tmp_path / "dataset", table(tmp_path, "image,patient,label\n" + ROWS)
    import_tile_table(images, out, path)
    before = contents(out)
    batch = tmp_path / "batch"
    for number in range(6):
        picture(batch / f"deep/i{number}.jpg", (50, 50))
    with pytest.raises(InputError, match=r"was made with source = '.*images', this run has '.*batch'"):
        import_tile_table(batch, out, path)
    assert contents(out) == before


def test_changed_label_table_is_followed_and_frozen_splits_stay_true(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "dataset"
    import_tile_table(images, out, table(tmp_path, "image,patient,label\n" + ROWS))
    manifest, info = read_manifest(out), read_info(out)
    freeze_splits(out, make_splits(manifest, classes=info.classes), mode="fractions", seed=0)
    frozen = (out / "splits.csv").read_bytes()
    corrected = table(tmp_path, "image,patient,label\n" + ROWS.replace("i1,p1,b", "i1,p1,a"))
    import_tile_table(images, out, corrected)
    manifest = read_manifest(out)
    assert manifest.set_index("patient_id").loc["p1", "label"] == "a"
    assert (out / "splits.csv").read_bytes() == frozen
    assert len(assign_splits(out, manifest, read_info(out))) == 6  # the gate lets the same patients pass
    with caplog.at_level("INFO"):
        other = table(tmp_path, "image,patient,label\n" + ROWS.replace("p1", "q1"))
        import_tiles(images, out, Layout.CSV, labels=other, positive="b")
    assert "training will refuse the splits that are frozen: 1 patient of the manifest" in caplog.text


def test_official_splits_of_a_changed_table_need_force_and_nothing_is_written_before(
    images: Path, tmp_path: Path
) -> None:
    text = "".join(f"i{n},p{n},{'ab'[n % 2]},{'train' if n < 4 else 'test'}\n" for n in range(6))
    out, columns = tmp_path / "dataset", TableColumns(split="set")
    how = {"columns": columns, "val_fraction": 0.0}
    import_tile_table(images, out, table(tmp_path, "image,patient,label,set\n" + text), **how)
    before = contents(out)
    changed = table(tmp_path, "image,patient,label,set\n" + text.replace("i3,p3,b,train", "i3,p3,b,test"))
    with pytest.raises(InputError, match="--force"):
        import_tile_table(images, out, changed, **how)
    assert contents(out) == before


def test_folder_of_something_else_or_in_use_is_refused(images: Path, tmp_path: Path) -> None:
    path = table(tmp_path, "image,patient,label\n" + ROWS)
    with pytest.raises(InputError, match="not empty"):
        import_tile_table(images, images, path)
    with sole_user(tmp_path / "dataset"), pytest.raises(InputError, match="another run is writing"):
        import_tile_table(images, tmp_path / "dataset", path)


def research_data() -> Path:
    root = os.environ.get("KDML_MED_DATA")
    if not root or not (Path(root) / "histology").is_dir():
        pytest.skip("the research data folder is not at hand; KDML_MED_DATA names it")
    return Path(root) / "histology"


@pytest.mark.real_data
def test_gland_fields_import_by_slide(tmp_path: Path) -> None:
    source = research_data() / "glas"
    result = import_tile_table(
        source, tmp_path / "dataset", source / "labels.csv", classes=["malignant"], label_level="slide", mpp=0.62
    )
    manifest = read_manifest(tmp_path / "dataset")
    assert (result.tiles, result.patients, result.failures) == (118, 12, [])
    assert manifest["slide_id"].nunique() == 118
    assert read_info(tmp_path / "dataset").classes == ["benign", "malignant"]


@pytest.mark.real_data
def test_repair_deficiency_tiles_import_by_task(tmp_path: Path) -> None:
    source = research_data() / "tcga_hrd_tp53_tiles"
    for task in ("hrd", "tp53"):
        result = import_tile_table(
            source, tmp_path / task, source / "labels.csv", classes=["0", "1"], where={"task": task}
        )
        assert (result.tiles, result.patients, result.unlisted, result.failures) == (100, 10, 0, [])
        assert read_info(tmp_path / task).tile_size_px == 224


def test_ambiguous_names_are_failures(images: Path, tmp_path: Path) -> None:
    picture(images / "other/i1.jpg")
    path = table(tmp_path, "image,patient,label\ni1,1,a\nother/i1.jpg,1,a\ni2,2,b\n")
    result = import_tile_table(images, tmp_path / "dataset", path)
    assert result.tiles == 2
    assert "fits 2 files" in failures(tmp_path / "dataset")["i1"]


def imported(images: Path, tmp_path: Path, text: str, **how: Any) -> tuple[list[str], dict[str, str]]:
    """Shards of the manifest, and the failures."""
    import_tile_table(images, tmp_path / "dataset", table(tmp_path, text), **how)
    return read_manifest(tmp_path / "dataset")["shard"].tolist(), failures(tmp_path / "dataset")


@pytest.fixture
def twins(tmp_path: Path) -> Path:
    """Same file names in two folders, and one that is in one of them only."""
    for name in ("a/1.png", "b/1.png", "b/2.png"):
        picture(tmp_path / "twins" / name)
    return tmp_path / "twins"


@pytest.mark.parametrize(
    "named", ["a/2.png", "a\\2", "./2.png", "/elsewhere/2.png", "C:\\b\\2.png", "twins/b/2.png", "../2"]
)
def test_image_named_by_a_path_is_that_path_or_nothing(twins: Path, tmp_path: Path, named: str) -> None:
    shards, left_out = imported(twins, tmp_path, f"image,patient,label\na/1.png,1,a\n{named},2,b\n")
    assert shards == ["a/1.png"]
    assert "not found" in left_out[named]
    assert set(left_out) == {named, "b/1.png", "b/2.png"}


@pytest.mark.parametrize(
    "named", ["b/2.png", "b\\2.png", "./b/2", "a/../b/2.png", "2.png", "2", "{source}/b/2.png", "{link}/2.png"]
)
def test_image_is_found_by_each_way_to_name_it(twins: Path, tmp_path: Path, named: str) -> None:
    (tmp_path / "link").symlink_to(twins / "b")
    named = named.format(source=twins, link=tmp_path / "link")
    shards, left_out = imported(twins, tmp_path, f"image,patient,label\na/1.png,1,a\n{named},2,b\n")
    assert shards == ["a/1.png", "b/2.png"]
    assert set(left_out) == {"b/1.png"}


def test_names_of_either_unicode_form_meet_and_two_files_of_one_name_do_not(images: Path, tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))
    picture(images / f"{apart}.png")
    text = f"image,patient,label,task\n{composed},{apart},a,{apart}\ni1,2,b,{composed}\ni2,{composed},,{composed}\n"
    how = {"where": {"task": apart}, "columns": TableColumns(split=None)}
    shards, _ = imported(images, tmp_path, text, **how)
    assert shards == [f"{apart}.png", "deep/i1.jpg", "deep/i2.jpg"]
    patients = read_manifest(tmp_path / "dataset").set_index("shard")["patient_id"]
    assert patients[f"{apart}.png"] == patients["deep/i2.jpg"] == composed
    picture(images / f"{composed}.png")
    assert "fits 2 files" in imported(images, tmp_path, text, **how)[1][composed]


def test_images_of_one_stem_are_two_slides(images: Path, tmp_path: Path) -> None:
    picture(images / "deep/i1.png")
    text = "image,patient,label\ndeep/i1.jpg,1,a\ndeep/i1.png,1,b\ndeep/i2.jpg,2,b\n"
    imported(images, tmp_path, text, label_level="slide")
    assert read_manifest(tmp_path / "dataset")["slide_id"].tolist() == ["deep/i1.jpg", "deep/i1.png", "deep/i2"]


def test_slides_of_one_name_in_different_folders_are_refused(images: Path, tmp_path: Path) -> None:
    text = "image,patient,label,slide\ni1,1,a,x/s.svs\ni2,1,a,s.svs\ni3,1,a,y/s.svs\ni4,2,b,t\n"
    with pytest.raises(InputError, match=r"rows 2 and 4: the slides 'x/s\.svs' and 'y/s\.svs' have one name"):
        imported(images, tmp_path, text)


def test_images_without_a_row_and_kinds_that_are_not_read_are_named_unless_another_row_names_them(
    images: Path, tmp_path: Path
) -> None:
    for name in ("deep/x.bmp", "y.gif"):
        (images / name).write_bytes(b"x")
    (images / "deep/notes.txt").touch()
    text = "image,task,patient,label\ni1,x,1,a\ni2,x,2,b\nx.bmp,x,3,b\ni3,y,1,a\n"
    shards, left_out = imported(images, tmp_path, text, where={"task": "x"})
    assert shards == ["deep/i1.jpg", "deep/i2.jpg"]
    assert set(left_out) == {"deep/i0.jpg", "deep/i4.jpg", "deep/i5.jpg", "y.gif", "x.bmp"}
    assert left_out["x.bmp"] == "row 4: not PNG or JPEG; convert it"


def test_labels_are_said_and_recorded_and_follow_a_corrected_table(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "dataset"
    rows = "i0,1,MSI-H,x\ni1,1,,x\ni2,2,MSI-L,x\ni3,3,MSS,x\ni4,4,[Not Available],x\ngone,5,MSS,x\ni5,5,MSS,y\n"
    text = "image,patient,MSIStatus,task\n" + rows
    with caplog.at_level("INFO"):
        import_tiles(images, out, Layout.CSV, labels=table(tmp_path, text), where=["task=x"])
    labels = read_info(out).labels
    assert labels is not None
    assert (labels["table"], labels["positive"], labels["patients"]) == ("table.csv", "MSI", {"MSS": 2, "MSI": 1})
    assert labels["columns"] == {"image": "image", "label": "MSIStatus", "patient": "patient"}
    assert labels["rows"] == {"all": 7, "used": 4, "no_class": 1, "no_file": 1, "unusable": 0, "not_chosen": 1}
    assert labels["words"]["MSI-L"] == {"class": "MSS", "rows": 1}
    for said in (
        "positive class MSI: 1 patient; MSS 2; without a class 1",
        "table.csv: image from 'image', label from 'MSIStatus', patient from 'patient'",
        "7 rows: 4 used, 1 without a class, 1 without a file, 1 not chosen by --where",
        "MSI-H → MSI (1), MSI-L → MSS (1), [Not Available] → no class (1)",
    ):
        assert said in caplog.text
    import_tiles(images, out, Layout.CSV, labels=table(tmp_path, text.replace("MSI-L", "MSS")), where=["task=x"])
    corrected = read_info(out).labels
    assert corrected is not None
    assert "MSI-L" not in corrected["words"]


@pytest.mark.parametrize("asked", [False, True])
def test_normal_tissue_takes_no_label_of_its_patient_unless_asked(kather: Path, tmp_path: Path, asked: bool) -> None:
    folder = kather / "CRC_DX_TRAIN" / "MSS"
    picture(folder / "blk-N-TCGA-AA-3601-11A-01-TS1.png")
    result = import_tile_folders(kather, tmp_path / "folders", tcga_normals=asked)
    assert (result.tiles, len(result.failures)) == ((33, 0) if asked else (32, 1))
    path = table(
        tmp_path,
        "image,patient,label\nblk-N-TCGA-AA-3601-11A-01-TS1,1,a\nblk-AAAAAAAAAAAA-TCGA-AA-3601-01Z-00-DX1,1,b\n",
    )
    level = import_tile_table(folder, tmp_path / "table", path, label_level="slide", tcga_normals=False)
    assert level.tiles == 2  # the row is about this very image
    path.write_text(path.read_text().replace("1,b", "2,b"))
    assert import_tile_table(folder, tmp_path / "table", path, tcga_normals=asked).tiles == 1 + asked


def test_image_whose_barcode_is_that_of_another_patient_is_left_out(images: Path, tmp_path: Path) -> None:
    picture(images / "TCGA-AA-3601-01Z-00-DX1.png")
    text = "image,patient,label\nTCGA-AA-3601-01Z-00-DX1.png,TCGA-AA-3602,a\ni1,TCGA-AA-3601,b\n"
    shards, left_out = imported(images, tmp_path, text)
    assert shards == ["deep/i1.jpg"]
    assert "says patient TCGA-AA-3602, the file name TCGA-AA-3601" in left_out["TCGA-AA-3601-01Z-00-DX1.png"]


def test_images_outside_the_class_folders_are_named(kather: Path, tmp_path: Path) -> None:
    picture(kather / "loose.png")
    picture(kather / "CRC_DX_TRAIN" / "loose.png")
    for number in range(3):
        picture(kather / "CRC_DX_VAL" / "MSS" / f"{number}.png")
    (kather / "CRC_DX_TRAIN" / "MSS" / "b-TCGA-AA-3601-01Z-00-DX1.gif").write_bytes(b"x")
    result = import_tile_folders(kather, tmp_path / "dataset")
    assert result.tiles == 32
    reasons = failures(tmp_path / "dataset")
    assert "3 images in a folder that belongs to neither train nor test" in reasons.pop("CRC_DX_VAL")
    assert sorted(reasons) == [
        "CRC_DX_TRAIN/MSS/b-TCGA-AA-3601-01Z-00-DX1.gif",
        "CRC_DX_TRAIN/loose.png",
        "loose.png",
    ]
    labels = read_info(tmp_path / "dataset").labels
    assert labels is not None
    assert labels["table"] is None
    assert labels["words"] == {"MSIMUT": {"class": "MSI", "rows": 12}, "MSS": {"class": "MSS", "rows": 21}}
    assert labels["rows"] == {"all": 33, "used": 32, "no_class": 0, "no_file": 0, "unusable": 1, "not_chosen": 0}


def test_other_cohorts_are_no_strays(kather: Path, tmp_path: Path) -> None:
    picture(kather / "STAD_TRAIN/MSS/b-TCGA-G4-4602-01Z-00-DX1.png")
    assert import_tile_folders(kather, tmp_path / "dataset", cohort="CRC_DX").failures == []


def test_links_to_themselves_and_names_that_are_not_utf8_cost_themselves_only(images: Path, tmp_path: Path) -> None:
    (images / "loop.png").symlink_to(images / "loop.png")
    (images / "deep/i5.jpg").rename(images / os.fsdecode(b"deep/\xfc.jpg"))
    shards, left_out = imported(images, tmp_path, "image,patient,label\ni1,1,a\ni2,2,b\nloop.png,3,b\n")
    assert shards == ["deep/i1.jpg", "deep/i2.jpg"]
    assert left_out["loop.png"] == "row 4: the file is empty or a broken link"
    assert "deep/\\xfc.jpg" in left_out


@pytest.mark.parametrize("link", ["a", "z"])  # before the real folder, and behind it
@pytest.mark.parametrize("named", ["fold", "link"])
def test_a_link_beside_a_folder_hides_none_of_its_images(tmp_path: Path, link: str, named: str) -> None:
    for number in range(2):
        picture(tmp_path / "images" / "fold" / f"{number}.png")
    picture(tmp_path / "elsewhere" / "2.png")
    (tmp_path / "images" / link).symlink_to("fold")
    (tmp_path / "images" / "further").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images" / "fold" / "up").symlink_to(tmp_path)  # a loop
    folder = link if named == "link" else "fold"
    shards, left_out = imported(
        tmp_path / "images", tmp_path, f"image,patient,label\n{folder}/0,1,a\n{folder}/1.png,2,b\nfurther/2,3,b\n"
    )
    assert (shards, left_out) == (["fold/0.png", "fold/1.png", "further/2.png"], {})


@pytest.mark.parametrize(
    ("rest", "slide"),
    [
        ("-01Z-00-DX1_x224_y0", "-01Z-00-DX1"),
        ("-01Z-00-DX2.23748E80-a45b-4CDE-8f01-0123456789ab_(7,8)", "-01Z-00-DX2.23748E80-a45b-4CDE-8f01-0123456789ab"),
        ("-01A-02-TSA.7", "-01A-02-TSA"),
        ("-01Z-00-DX1", "-01Z-00-DX1"),
        ("_x224_y0", ""),
        ("-01Z-00-DX1x224", ""),
        ("-01Z-tile7", ""),
    ],
)
def test_tiles_of_class_folders_belong_to_the_slide_of_their_barcode_else_to_the_patient(
    tmp_path: Path, rest: str, slide: str
) -> None:
    for label, patient in (("MSIMUT", "TCGA-AA-3601"), ("MSS", "TCGA-AA-3602")):
        picture(tmp_path / "source" / label / f"blk-{patient}{rest}.png")
    import_tile_folders(tmp_path / "source", tmp_path / "dataset")
    assert read_manifest(tmp_path / "dataset")["slide_id"].tolist() == [f"TCGA-AA-3601{slide}", f"TCGA-AA-3602{slide}"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": Layout.KATHER, "labels": Path("t.csv")}, "--labels belongs to --layout csv, not to kather"),
        ({"layout": Layout.KATHER, "label_column": "x"}, "--label-column belongs to --layout csv"),
        ({"layout": Layout.CSV, "labels": Path("t.csv"), "cohort": "A"}, "--cohort belongs to --layout kather"),
        ({"layout": Layout.CSV, "labels": Path("t.csv"), "where": ["a=1", "a=2"]}, "--where names column 'a' twice"),
    ],
)
def test_options_that_would_be_ignored_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        import_tiles(tmp_path, tmp_path / "dataset", **options)


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", ".cache"])
@pytest.mark.parametrize("inside", ["", "CRC_DX_TRAIN", "CRC_DX_TRAIN/MSS"])
def test_what_a_system_keeps_for_itself_is_no_class_and_no_image(
    kather: Path, tmp_path: Path, name: str, inside: str
) -> None:
    picture(kather / inside / name / "b-TCGA-G4-3699-01Z-00-DX1.png")
    (kather / inside / "Thumbs.db").write_bytes(b"x")
    result = import_tile_folders(kather, tmp_path / "dataset")
    assert (result.tiles, result.failures) == (32, [])


def test_training_and_testing_folders_are_the_split(kather: Path, tmp_path: Path) -> None:
    for part in ("TRAIN", "TEST"):
        (kather / f"CRC_DX_{part}").rename(kather / f"CRC_DX_{part.title()}ing")
    import_tile_folders(kather, tmp_path / "dataset")
    split = assign_splits(tmp_path / "dataset", read_manifest(tmp_path / "dataset"), read_info(tmp_path / "dataset"))
    assert split.value_counts()["test"] == 8


def test_images_whose_name_holds_two_patients_belong_to_none(kather: Path, tmp_path: Path) -> None:
    picture(kather / "CRC_DX_TRAIN/MSS/TCGA-AA-9901-01Z_TCGA-AA-9902-01Z.png")
    result = import_tile_folders(kather, tmp_path / "dataset")
    assert result.failures == [
        ("CRC_DX_TRAIN/MSS/TCGA-AA-9901-01Z_TCGA-AA-9902-01Z.png", "barcodes of two TCGA patients in the file name")
    ]


@pytest.mark.parametrize(
    "row", ["blk-TCGA-AA-0001-01Z.png,TCGA-AA-0002,", "x.png,TCGA-AA-0002,TCGA-AA-0001-01Z-00-DX1"]
)
def test_a_barcode_anywhere_in_a_name_tells_the_patient(tmp_path: Path, row: str) -> None:
    slide = row.rsplit(",", 1)[1]
    for name in (row.split(",")[0], "y.png"):
        picture(tmp_path / "images" / name)
    header, other = ("image,patient,slide,label", "y.png,P,S,b") if slide else ("image,patient,label", "y.png,P,b")
    path = table(tmp_path, f"{header}\n{row.rstrip(',')},a\n{other}\n")
    result = import_tile_table(tmp_path / "images", tmp_path / "dataset", path)
    assert [name for name, _ in result.failures] == [row.split(",")[0]]
    assert "says patient TCGA-AA-0002, the" in result.failures[0][1]


@pytest.mark.parametrize("mpp", [0.0, 500.0, -1.0, float("nan"), float("inf")])
def test_a_resolution_of_tiles_is_one_that_can_be(kather: Path, images: Path, tmp_path: Path, mpp: float) -> None:
    path = table(tmp_path, f"image,patient,label,mpp\ni0,1,a,8\ni1,2,b,{mpp}\n")
    with pytest.raises(InputError, match=r"--mpp is .*, from 0.05 to 100"):
        import_tile_folders(kather, tmp_path / "dataset", mpp=mpp)
    with pytest.raises(InputError, match=r"--mpp is .*, from 0.05 to 100"):
        import_tile_table(images, tmp_path / "dataset", path, mpp=mpp)
    if mpp == mpp:  # a cell "nan" is a blank one
        with pytest.raises(InputError, match=r"row 3: mpp is .*, from 0.05 to 100"):
            import_tile_table(images, tmp_path / "dataset", path)


def test_images_of_an_external_test_set_need_no_validation_patients(images: Path, tmp_path: Path) -> None:
    path = table(tmp_path, "image,patient,label,set\n" + "".join(f"i{n},p{n},{'ab'[n % 2]},test\n" for n in range(6)))
    import_tile_table(images, tmp_path / "dataset", path, columns=TableColumns(split="set"))
    manifest = read_manifest(tmp_path / "dataset")
    assert set(assign_splits(tmp_path / "dataset", manifest, read_info(tmp_path / "dataset"))) == {"test"}
    result = import_tile_table(images, tmp_path / "other", path)
    assert (result.unused_split, has_splits(tmp_path / "other")) == ("set", False)
