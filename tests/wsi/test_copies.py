"""The same slide under several patients or classes: named, and never in training and test."""

import shutil
from pathlib import Path

import pytest

from kdml_med.storage import files
from kdml_med.storage.files import Fingerprint
from kdml_med.storage.folder import DatasetFolder
from kdml_med.storage.manifest import DatasetInfo, read_manifest
from kdml_med.storage.shards import Origin
from kdml_med.wsi.copies import find_copies
from kdml_med.wsi.cutter import SlideJob
from kdml_med.wsi.options import TilingOptions
from kdml_med.wsi.shards import SlideRecord
from kdml_med.wsi.tiler import tile_slides
from tests.synthetic_slides import write_slide
from tests.wsi.test_tiler import Match, Table, contents

OPTIONS = TilingOptions(tile_size_px=112)
TWO = {"a": Match("P1", "MSI"), "b": Match("P2", "MSS"), "c": Match("P3", "MSS")}
ONE = TWO | {"b": Match("P1", "MSI")}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for name, seed in (("a", 0), ("c", 1)):
        write_slide(folder / f"{name}.svs", width=1200, height=1000, seed=seed)
    return folder


@pytest.fixture
def slides(pictures, tmp_path):
    """Slides a and c, and b, a copy of a."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for name, source in (("a", "a"), ("b", "a"), ("c", "c")):
        shutil.copy(pictures / f"{source}.svs", folder / f"{name}.svs")
    return folder


def tile(inputs, out, matches=TWO, **more):
    inputs = inputs if isinstance(inputs, list) else [inputs]
    labels = None if matches is None else Table(matches)
    return tile_slides(inputs, out, OPTIONS, labels=labels, progress=False, **more)


def tiled(out):
    return set(read_manifest(out)["slide_id"])


def test_one_slide_under_two_patients_is_refused_naming_both_files_and_patients(slides, tmp_path):
    report = tile(slides, tmp_path / "out")
    reasons = dict(report.failures)
    assert set(reasons) == {"a.svs", "b.svs"}
    assert reasons["a.svs"].startswith(
        "has the same bytes as b.svs of patient P2 and is listed for patient P1: correct"
    )
    assert reasons["b.svs"].startswith(
        "has the same bytes as a.svs of patient P1 and is listed for patient P2: correct"
    )
    assert tiled(tmp_path / "out") == {"c"}
    assert report.done == 1


def test_one_slide_with_two_labels_is_refused_naming_both(slides, tmp_path):
    report = tile(slides, tmp_path / "out", TWO | {"b": Match("P1", "MSS")})
    assert "b.svs of patient P1 with the label MSS and is listed with the label MSI" in dict(report.failures)["a.svs"]
    assert tiled(tmp_path / "out") == {"c"}


@pytest.mark.parametrize("matches", [ONE, None])
def test_copies_of_one_patient_and_copies_without_labels_stay(slides, tmp_path, matches):
    report = tile(slides, tmp_path / "out", matches)
    assert report.failures == []
    assert tiled(tmp_path / "out") == {"a", "b", "c"}


def test_copies_are_tiled_once_the_table_is_corrected(slides, tmp_path):
    out = tmp_path / "out"
    tile(slides, out)
    assert tile(slides, out, ONE).failures == []
    tile(slides, tmp_path / "fresh", ONE)
    assert contents(out) == contents(tmp_path / "fresh")


@pytest.mark.parametrize("keep", [False, True])
def test_copy_that_comes_later_is_refused_and_the_slide_that_is_tiled_stays(slides, tmp_path, keep):
    out = tmp_path / "out"
    tile([slides / "a.svs", slides / "c.svs"], out)
    before = contents(out)
    report = tile(slides / "b.svs" if keep else slides, out, keep=keep)
    assert (report.done, report.remade) == (0, {})
    assert [name for name, _ in report.failures] == ["b.svs"]
    assert "a.svs of patient P1, which is tiled already, and is listed for patient P2" in report.failures[0][1]
    changed = {name for name, data in contents(out).items() if data != before[name]}
    assert changed == {"failures.csv", "dataset.json"}  # which counts what became of the rows of the table
    assert tiled(out) == {"a", "c"}


def test_copies_that_are_tiled_both_leave_the_dataset_and_come_back_with_the_corrected_table(slides, tmp_path):
    out = tmp_path / "out"
    tile(slides, out, ONE)
    before = contents(out)
    assert {name for name, _ in tile(slides, out).failures} == {"a.svs", "b.svs"}
    assert tiled(out) == {"c"}
    assert tile(slides, out, ONE).done == 0
    assert contents(out) == before


def test_slides_of_many_files_are_copies_when_all_files_are_whatever_their_names(tmp_path):
    def job(name, patient, *digests):
        sources = [Fingerprint(f"{name}/{number}.dat", 9, digest) for number, digest in enumerate(digests)]
        return SlideJob(Path(f"{name}.mrxs"), name, patient, "MSI", origin=Origin(tuple(sources)))

    jobs = [job("a", "P1", "sha256:1", "sha256:2"), job("b", "P2", "sha256:2", "sha256:1")]
    jobs += [job("c", "P3", "sha256:1"), job("d", "P4", "sha256:1", "sha256:3")]
    with DatasetFolder(tmp_path / "out", DatasetInfo(made_by={"program": "a program"}), SlideRecord) as folder:
        assert set(find_copies(jobs, folder, [], Table(TWO))) == {"a", "b"}


def test_of_large_slides_it_is_said_that_not_all_bytes_were_compared(slides, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "WHOLE_BYTES", 1000)
    for full, words in (
        (False, "the same size and, as far as compared, the same bytes as"),
        (True, "the same bytes as"),
    ):
        report = tile(slides, tmp_path / f"{full}", full_hash=full)
        assert dict(report.failures)["a.svs"].startswith(f"has {words} b.svs of patient P2")
