import io
import multiprocessing
import os
import tarfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest
from PIL import Image

from kdml_med.errors import InputError
from kdml_med.storage.manifest import read_info, read_manifest, read_member
from kdml_med.tables.labels import LabelMatch as Match
from kdml_med.tables.labels import LabelTable
from kdml_med.wsi import native
from kdml_med.wsi.cutter import SlideJob, in_order, open_cutter, split_rows
from kdml_med.wsi.options import PRESETS, TilingOptions, geometry
from kdml_med.wsi.tile_index import decode_tile
from kdml_med.wsi.tiler import cut_slides, tile_slides
from tests.synthetic_slides import TISSUE_SHARE, damage_native_tile, tissue_picture, write_slide

SMALL = TilingOptions(tile_size_px=112)


def Table(matches, mpps=None):  # noqa: N802
    """A label table with a slide column, by slide."""
    return LabelTable(["MSS", "MSI"], "patient", True, matches, mpps or {})


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "TCGA-AA-3672-01Z-00-DX1.abc.svs"
    write_slide(path, mpp=0.252, width=2000, height=1600)
    return path


def run(inputs, out, options=SMALL, **more):
    return tile_slides([Path(path) for path in inputs], out, options, progress=False, **more)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def stored(out, row):
    return np.asarray(Image.open(io.BytesIO(read_member(out, row.shard, row.offset, row["size"]))))


def reread(handle, row, size_px):
    """A tile as anyone would read it who has only the manifest."""
    side = round(row.size_l0)
    region = handle.read_region((row.x_l0, row.y_l0), 0, (side, side)).convert("RGB")
    return np.asarray(region.resize((size_px, size_px), Image.Resampling.LANCZOS))


def worst_difference(path, out, size_px):
    with openslide.OpenSlide(path) as handle:
        return max(
            np.abs(stored(out, row).astype(int) - reread(handle, row, size_px)).mean()
            for _, row in read_manifest(out).iterrows()
        )


@pytest.mark.parametrize("reader", ["auto", "openslide"])
@pytest.mark.parametrize("mpp", [0.25, 0.5, 0.75])
def test_stored_tile_is_what_the_manifest_points_at(tmp_path, slide, reader, mpp):
    run([slide], tmp_path / "out", replace(SMALL, mpp=mpp, reader=reader))
    manifest = read_manifest(tmp_path / "out")
    assert len(manifest) > 4
    np.testing.assert_allclose(manifest["size_l0"] * 0.252, 112 * mpp, rtol=0.005)
    np.testing.assert_allclose(manifest["size_l0"] * 0.252, 112 * manifest["mpp"])
    assert worst_difference(slide, tmp_path / "out", 112) < 3


def test_readers_agree(tmp_path, slide):
    tables = []
    for reader in ("auto", "openslide"):
        run([slide], tmp_path / reader, replace(SMALL, reader=reader))
        tables.append(read_manifest(tmp_path / reader))
    assert tables[0]["sample_id"].tolist() == tables[1]["sample_id"].tolist()
    for (_, fast), (_, slow) in zip(tables[0].iterrows(), tables[1].iterrows(), strict=True):
        pair = stored(tmp_path / "auto", fast).astype(int), stored(tmp_path / "openslide", slow)
        assert np.abs(pair[0] - pair[1]).mean() < 2


def test_dataset_holds_what_the_contract_names(tmp_path, slide):
    out = tmp_path / "out"
    report = run([slide], out, synthetic=True)
    assert (report.done, report.skipped, report.failures) == (1, 0, [])
    info = read_info(out)
    assert (info.kind, info.tile_size_px, info.mpp, info.synthetic, info.classes) == ("tiles", 112, 0.5, True, [])
    manifest = read_manifest(out)
    assert report.tiles == len(manifest)
    assert manifest[["y_l0", "x_l0"]].to_numpy().tolist() == sorted(manifest[["y_l0", "x_l0"]].to_numpy().tolist())
    assert set(manifest["patient_id"]) == {"TCGA-AA-3672"}
    assert set(manifest["site"]) == {"AA"}
    assert manifest["tissue_fraction"].between(0.5, 1).all()
    row = pd.read_csv(out / "slides.csv").iloc[0]
    assert row.file_name == slide.name
    assert row.tiles == len(manifest)
    grid = (2000 // 222) * (1600 // 222)
    assert row.tiles + row.filter(like="rejected_").sum() + row.unreadable == grid
    assert row.filter(like="stain_").notna().all()
    assert (out / "failures.csv").read_text() == "input,reason\n"
    with tarfile.open(out / manifest["shard"][0]) as shard:
        assert len(shard.getnames()) == len(manifest)
        assert {(m.mtime, m.uid) for m in shard.getmembers()} == {(0, 0)}
    assert str(tmp_path) not in "".join(p.read_text() for p in out.glob("*.csv")) + (out / "dataset.json").read_text()


def test_tiles_lie_on_tissue(tmp_path, slide):
    run([slide], tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    centres = manifest["x_l0"] + manifest["size_l0"] / 2
    low, high = TISSUE_SHARE
    assert centres.between(2000 * low, 2000 * high).all()
    with Image.open(tmp_path / "out" / "thumbnails" / "TCGA-AA-3672-01Z-00-DX1.abc.jpg") as picture:
        pixels = np.asarray(picture).astype(int)
    assert (np.abs(pixels - (0, 150, 60)).sum(axis=2) < 120).any()  # the outline of kept tiles


def test_second_run_does_nothing_and_workers_do_not_change_the_bytes(tmp_path, slide):
    write_slide(tmp_path / "b.svs", width=1500, height=1300, seed=1)
    inputs = [slide, tmp_path / "b.svs"]
    assert run(inputs, tmp_path / "one").done == 2
    before = contents(tmp_path / "one")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "one").rglob("*")}
    again = run(inputs, tmp_path / "one")
    assert (again.done, again.skipped) == (0, 2)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "one").rglob("*")} == times
    run(inputs[:1], tmp_path / "two", workers=3)
    run(inputs, tmp_path / "two", workers=2)
    assert contents(tmp_path / "two") == before


def test_folder_made_with_other_options_is_refused_naming_both_values(tmp_path, slide):
    run([slide], tmp_path / "out")
    with pytest.raises(InputError, match=r"mpp = 0\.5, this run has 0\.6"):
        run([slide], tmp_path / "out", replace(SMALL, mpp=0.6))
    with pytest.raises(InputError, match="labels = False, this run has True"):
        run([slide], tmp_path / "out", labels=Table({}))


def test_foreign_folder_is_refused(tmp_path, slide):
    (tmp_path / "letter.txt").write_text("do not touch")
    with pytest.raises(InputError, match=r"not empty \(it holds letter.txt\)"):
        run([slide], tmp_path)


def test_inputs_are_checked_before_any_work(tmp_path, slide):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="does not exist"):
        run([slide, tmp_path / "absent.svs"], out)
    twin = tmp_path / slide.with_suffix(".tiff").name
    twin.write_bytes(b"")
    with pytest.raises(InputError, match="would both be slide"):
        run([slide, twin], out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no slide"):
        run([tmp_path / "empty"], out)
    assert not out.exists()


def test_folder_input_leaves_out_the_output_folder(tmp_path):
    (tmp_path / "deep").mkdir()
    write_slide(tmp_path / "deep" / "a.svs", width=1200, height=1000)
    for _ in range(2):
        assert run([tmp_path], tmp_path / "deep" / "out").failures == []


def test_slides_that_cannot_be_used_are_named_and_the_others_go_on(tmp_path, slide):
    Image.fromarray(np.full((900, 900, 3), 244, np.uint8)).save(
        tmp_path / "blank.tif", resolution_unit=3, resolution=20_000
    )
    Image.fromarray(np.full((90, 90, 3), 200, np.uint8)).save(
        tmp_path / "tiny.tif", resolution_unit=3, resolution=20_000
    )
    (tmp_path / "letter.svs").write_bytes(b"no slide")
    write_slide(tmp_path / "silent.svs", mpp=None)
    write_slide(tmp_path / "coarse.svs", mpp=1.0)
    (tmp_path / "cut.svs").write_bytes(slide.read_bytes()[:20_000])
    report = run([tmp_path, slide], tmp_path / "out", workers=2)
    assert report.done == 1
    failures = dict(report.failures)
    assert set(failures) == {"blank.tif", "tiny.tif", "letter.svs", "silent.svs", "coarse.svs", "cut.svs"}
    assert "no tissue" in failures["blank.tif"]
    assert "smaller" in failures["tiny.tif"]
    assert "enlarging by 2.00" in failures["coarse.svs"]
    assert "--assume-mpp" in failures["silent.svs"]
    assert pd.read_csv(tmp_path / "out" / "failures.csv")["input"].tolist() == sorted(failures)


def test_failed_slide_is_tried_again(tmp_path, slide):
    whole = slide.read_bytes()
    path = tmp_path / slide.name
    path.write_bytes(whole[:20_000])
    assert run([path], tmp_path / "out").done == 0
    path.write_bytes(whole)
    assert run([path], tmp_path / "out").failures == []
    run([slide], tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


@pytest.mark.parametrize("reader", ["auto", "openslide"])
def test_damage_costs_only_the_tiles_it_touches(tmp_path, slide, reader):
    options = replace(SMALL, reader=reader)
    run([slide], tmp_path / "sound", options)
    path = tmp_path / slide.name
    path.write_bytes(slide.read_bytes())
    damage_native_tile(path, 8 * 3 + 3)
    damage_native_tile(path, 8 * 4 + 5)
    report = run([path], tmp_path / "out", options)
    lost = pd.read_csv(tmp_path / "out" / "slides.csv")["unreadable"][0]
    assert 2 <= lost <= 18
    assert report.tiles == len(read_manifest(tmp_path / "sound")) - lost
    assert report.failures == [(path.name, f"{lost} tiles unreadable (the other tiles are in the dataset)")]
    assert run([path], tmp_path / "out", options).failures == report.failures


def test_incomplete_tiles_with_tissue_at_the_edge_are_counted(tmp_path):
    picture = tissue_picture(800, 800)[240 : 240 + 300, 240 : 240 + 260]  # tissue up to every edge
    Image.fromarray(picture).save(tmp_path / "field.png")
    options = TilingOptions(mpp=0.5, tile_size_px=112, assume_mpp=0.5)
    report = run([tmp_path / "field.png"], tmp_path / "out", options)
    assert report.tiles == 4
    assert report.rim == 5  # two columns and two rows of whole tiles, three cells at the right and two more below
    assert pd.read_csv(tmp_path / "out" / "slides.csv")["rim"].tolist() == [5]


def test_tinted_glass_gives_the_tiles_of_white_glass(tmp_path):
    white = tissue_picture(1200, 1200).astype(float)
    for name, glass in (("white", (1, 1, 1)), ("yellow", (0.94, 0.92, 0.8)), ("grey", (0.85, 0.85, 0.85))):
        Image.fromarray((white * glass).round().astype(np.uint8)).save(tmp_path / f"{name}.png")
    report = run([tmp_path], tmp_path / "out", TilingOptions(tile_size_px=112, assume_mpp=0.5))
    manifest = read_manifest(tmp_path / "out")
    places = {slide: set(zip(rows.x_l0, rows.y_l0, strict=True)) for slide, rows in manifest.groupby("slide_id")}
    assert not report.failures
    assert places["yellow"] == places["white"] == places["grey"]
    assert 0 < len(places["white"]) < 100
    glass = pd.read_csv(tmp_path / "out" / "slides.csv").set_index("slide_id")[["glass_r", "glass_g", "glass_b"]]
    assert np.abs(glass.loc["yellow"] - glass.loc["white"] * np.array([0.94, 0.92, 0.8])).max() <= 1.5


def test_presets_keep_the_published_background_rule():
    assert geometry("zenodo-112um", mpp=None, tile_size_px=None)["background_level"] == 220
    assert geometry("kather-256um", mpp=None, tile_size_px=None)["max_background"] == 0.5
    assert geometry(None, mpp=None, tile_size_px=None)["background_level"] == TilingOptions().background_level


def test_pen_and_blur_are_rejected_and_counted(tmp_path):
    picture = tissue_picture(1800, 1400)
    picture[300:700, 300:900] = (25, 60, 190)
    smooth = Image.fromarray(picture[700:1100, 300:900]).reduce(25).resize((600, 400), Image.Resampling.BICUBIC)
    picture[700:1100, 300:900] = np.asarray(smooth)
    write_slide(tmp_path / "a.svs", picture=picture)
    # The compressor's block edges are sharp on an even ground: more than 50 here, over 200 for the sharp tissue.
    run([tmp_path / "a.svs"], tmp_path / "out", replace(SMALL, min_sharpness=80))
    row = pd.read_csv(tmp_path / "out" / "slides.csv").iloc[0]
    assert row.rejected_pen >= 2
    assert row.rejected_blur >= 1


def test_labels_name_patients_and_say_who_is_left_out(tmp_path, slide):
    write_slide(tmp_path / "b.svs", width=1500, height=1300)
    write_slide(tmp_path / "c.svs", width=1500, height=1300, mpp=None)
    table = Table({slide.stem: Match("P1", "MSI", "AA"), "c": Match("P2", None)})
    inputs = [slide, tmp_path / "b.svs", tmp_path / "c.svs"]
    report = run(inputs, tmp_path / "out", labels=table)
    assert dict(report.failures) == {
        "b.svs": "no row in the label table for b",
        "c.svs": "label is blank for c (patient P2)",
    }
    manifest = read_manifest(tmp_path / "out")
    assert set(zip(manifest["patient_id"], manifest["label"], manifest["site"], strict=True)) == {("P1", "MSI", "AA")}
    completed = Table(
        {slide.stem: Match("P1", "MSS", "AA"), "b": Match("P3", "MSS"), "c": Match("P2", "MSI")}, {"c": 0.25}
    )
    report = run(inputs, tmp_path / "out", labels=completed)
    assert (report.done, report.skipped, report.failures) == (2, 1, [])
    labels = read_manifest(tmp_path / "out").groupby("slide_id")["label"].first()
    assert labels.to_dict() == {slide.stem: "MSS", "b": "MSS", "c": "MSI"}
    assert pd.read_csv(tmp_path / "out" / "slides.csv")["mpp_source"].tolist()[-1] == "label table"


def test_limit_draws_a_reproducible_spread(tmp_path, slide):
    limited = replace(SMALL, limit_tiles=5)
    for name, options in (("a", limited), ("b", limited), ("c", replace(limited, seed=1))):
        run([slide], tmp_path / name, options)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    places = {n: read_manifest(tmp_path / n)[["x_l0", "y_l0"]].to_numpy().tolist() for n in "ac"}
    assert len(places["a"]) == 5
    assert places["a"] != places["c"]


def test_png_and_normalised_tiles(tmp_path, slide):
    options = replace(SMALL, image_format="png")
    run([slide], tmp_path / "plain", options)
    run([slide], tmp_path / "normal", replace(options, stain="macenko"))
    plain, normal = (read_manifest(tmp_path / name) for name in ("plain", "normal"))
    assert plain["x_l0"].tolist() == normal["x_l0"].tolist()  # judged before normalising
    first = stored(tmp_path / "plain", plain.iloc[0]), stored(tmp_path / "normal", normal.iloc[0])
    assert np.abs(first[0].astype(int) - first[1]).mean() > 2


def test_plain_image_with_stated_resolution(tmp_path):
    Image.fromarray(tissue_picture(900, 700)).save(tmp_path / "field.png")
    assert "--assume-mpp" in run([tmp_path / "field.png"], tmp_path / "a").failures[0][1]
    report = run([tmp_path / "field.png"], tmp_path / "a", replace(SMALL, assume_mpp=0.5))
    with pytest.raises(InputError, match=r"assume_mpp = 0\.5, this run has 0\.25"):
        run([tmp_path / "field.png"], tmp_path / "a", replace(SMALL, assume_mpp=0.25))
    assert report.tiles > 4
    assert set(read_manifest(tmp_path / "a")["size_l0"]) == {112.0}


def test_presets_have_the_published_sizes_and_decide_alone():
    sides_um = {name: preset.mpp * preset.tile_size_px for name, preset in PRESETS.items()}
    assert sides_um == pytest.approx({"zenodo-112um": 112, "kather-256um": 256})
    assert geometry("kather-256um", mpp=None, tile_size_px=None)["max_background"] == 0.5
    with pytest.raises(InputError, match="already decides --mpp"):
        geometry("zenodo-112um", mpp=0.5, tile_size_px=None)
    with pytest.raises(InputError, match="'zenodo'"):
        geometry("zenodo", mpp=None, tile_size_px=None)


@pytest.mark.parametrize(
    "wrong", [{"assume_mpp": 896}, {"min_tissue": 2}, {"image_format": "gif"}, {"tile_size_px": 0}]
)
def test_senseless_option_is_refused_by_name(wrong):
    with pytest.raises(InputError, match=rf"--.* is {next(iter(wrong.values()))!r}, expected"):
        TilingOptions(**wrong)


def test_bands_keep_order_and_threads_do_too():
    assert list(in_order(lambda n: n * n, range(20), threads=4)) == [n * n for n in range(20)]
    assert split_rows([]) == []


@pytest.mark.parametrize("image_format", ["jpeg", "png"])
def test_threads_within_a_slide_change_no_byte(tmp_path, slide, image_format):
    options = replace(SMALL, tile_size_px=64, image_format=image_format)
    for threads in (1, 2, 3):  # one slide: all of them work on it
        run([slide], tmp_path / str(threads), options, workers=threads)
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "3")


def test_native_tile_is_decoded_once_for_all_tiles_that_touch_it(monkeypatch, slide):
    decoded = Counter()

    def decode(file, index, number, factor):
        decoded[index.width, number, factor] += 1
        return decode_tile(file, index, number, factor)

    monkeypatch.setattr(native, "decode_tile", decode)
    options = TilingOptions(tile_size_px=64, min_tissue=0, max_background=1)
    with open_cutter(SlideJob(slide, "a", "a"), options) as cutter:
        decoded.clear()  # of overview and stain fit
        tiles = list(cutter.tiles())
    assert len(tiles) == 15 * 12  # of 127 px at level 0
    assert set(decoded.values()) == {1}
    assert len(decoded) == 8 * 6  # 1905 × 1524 px in native tiles of 256 px


def test_two_runs_in_one_folder_are_kept_apart(tmp_path, slide):
    import fcntl

    out = tmp_path / "out"
    out.mkdir()
    handle = os.open(out, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with pytest.raises(InputError, match="another run"):
            run([slide], out)
    finally:
        os.close(handle)


@dataclass(frozen=True)
class CrashingJob(SlideJob):
    """Takes down the process that receives it, as a fault in a decoder does."""

    def __reduce__(self):
        return os._exit, (1,)


@pytest.mark.slow  # three pools of fresh processes
def test_crash_of_a_decoder_costs_one_slide(tmp_path):
    jobs = []
    for name in "ab":
        write_slide(tmp_path / f"{name}.svs", width=1200, height=1000)
        jobs.append(SlideJob(tmp_path / f"{name}.svs", name, name))
    jobs.insert(1, CrashingJob(tmp_path / "c.svs", "c", "c"))
    counts = []
    ended = cut_slides(jobs, tmp_path / "out", TilingOptions(tile_size_px=64), 2, counts.append)
    failures = {job.slide_id: failure for job, failure in ended}
    assert failures == {"a": None, "b": None, "c": "the reader crashed on this file"}
    assert sum(counts) > 0
    assert not multiprocessing.active_children()
