"""Whole reports as people open them: in a real browser, in windows of any width, light and dark, printed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from kdml_med import evaluate, train
from kdml_med.clinical.slides import findings, judging
from kdml_med.clinical.writing import write_report
from kdml_med.experiments.report.sections import all_sections
from kdml_med.programs.make_splits import command as make_splits
from kdml_med.programs.prepare_frames import main as prepare_frames
from kdml_med.programs.tile_slides import main as tile_slides
from kdml_med.report.pages import write_pages
from tests.clinical import detectors
from tests.clinical.answered import write_evaluation
from tests.clinical.studies import predictions_on, write_placed_dataset, write_study
from tests.experiments.findings import made_up_findings
from tests.report.browser import DARK, needs_browser, open_page, print_page, widths_of
from tests.report.documents import HOSTILE, MARKUP
from tests.synthetic_slides import write_slide
from tests.test_hostile_names import FILES, PATIENTS, frames_of_hostile_patients, write_labels

pytestmark = [pytest.mark.slow, needs_browser]

SPLITS = dict(zip(PATIENTS, ["test", "test", "val", "val", "train", "train"], strict=True))


def _of_slides(folder: Path) -> Path:
    """With an external cohort, whose patients have names that want to be more than text."""
    dataset = write_placed_dataset(folder / "tiles")
    run = write_study(folder / "run", dataset)
    other = predictions_on(dataset, "test", seed=5)
    names = dict(zip(other["patient_id"].unique(), HOSTILE[:5], strict=False))
    other["patient_id"] = other["patient_id"].replace(names)
    write_report(run, external=[write_evaluation(run / "evaluation_<b>", other, split="test")])
    return run / "report.html"


def _of_polyps(folder: Path) -> Path:
    run = detectors.write_study(folder)
    write_report(run, speed=False)
    return run / "report.html"


def _of_experiments(folder: Path) -> Path:
    found = made_up_findings(missing=[(HOSTILE[0], HOSTILE[1])])
    write_pages(folder, HOSTILE[0], all_sections(found))
    return folder / "report.html"


def _of_hostile_slides(folder: Path) -> Path:
    """From files and a table to the report, and everybody's name wants to be more than text."""
    (folder / "slides").mkdir()
    for seed, name in enumerate(FILES):
        write_slide(folder / "slides" / f"{name}.svs", width=400, height=300, seed=seed)
    rows = list(zip(FILES, PATIENTS, ["MSI-H", "MSS"] * 3, strict=True))
    labels = write_labels(folder / "labels.csv", ["slide", "patient", "MSIStatus"], rows)
    tiles = folder / "tiles"
    tile_slides([folder / "slides"], tiles, labels, tile_size=64, mpp=0.5, label_column="MSIStatus", workers=1)
    make_splits(tiles, from_table=write_labels(folder / "parts.csv", ["patient_id", "split"], list(SPLITS.items())))
    networks = {"teacher": {"name": "mobilenet_v2", "last_block": 3}}
    networks |= {"students": [{"name": "mobilenet_v2", "last_block": 2}] * 2}
    run = train(tiles, folder / MARKUP.replace("/", "_"), max_epochs=1, batch_size=8, **networks)
    evaluate(run)
    write_report(run.folder)
    return run.folder / "report.html"


def _of_hostile_frames(folder: Path) -> Path:
    images, boxes = frames_of_hostile_patients(folder)
    table = pd.read_csv(boxes)
    table.assign(split=table["patient"].map(SPLITS).fillna("train")).to_csv(boxes, index=False)
    prepare_frames([images], folder / "frames", boxes, workers=1)
    small = {"name": "retinanet", "body": "mobilenet_v2", "last_block": 13, "width": 16, "head_convs": 1}
    networks = {"teacher": small, "students": [small, small]}
    run = train(folder / "frames", folder / "run", image_size=64, batch_size=4, max_epochs=1, **networks)
    evaluate(run, measure_speed=False)
    write_report(run.folder, speed=False)
    return run.folder / "report.html"


def _research_data() -> Path:
    root = os.environ.get("KDML_MED_DATA")
    if not root or not (Path(root) / "polyp").is_dir():
        pytest.skip("the research data folder is not at hand; KDML_MED_DATA names it")
    return Path(root)


def _of_glas(folder: Path) -> Path:
    """Glands of twelve real patients; a training that is too short to be good."""
    source = _research_data() / "histology/glas"
    tiles = folder / "tiles"
    columns = {"label_level": "slide", "label_column": "grade", "positive": "malignant"}
    tile_slides(
        [source / "images"], tiles, source / "labels.csv", assume_mpp=0.62, mpp=1.4, tile_size=96, workers=1, **columns
    )
    make_splits(tiles, folds=3)
    run = train(tiles, folder / "run", version="edge", fold=0, max_epochs=2, tiles_per_epoch=64, **_weights())
    evaluate(run)
    write_report(run.folder)
    return run.folder / "report.html"


def _of_kvasir_and_clinicdb(folder: Path) -> Path:
    """Real frames, a part of them, and as external cohort those of another hospital."""
    source = _research_data() / "polyp"
    own = pd.read_csv(source / "kvasir-seg/boxes.csv")
    own = own[own["image"].isin(own["image"].unique()[:120])]
    order = own["image"].map({name: place for place, name in enumerate(own["image"].unique())})
    own = own.assign(split=["test" if place % 4 == 0 else "val" if place % 4 == 1 else "train" for place in order])
    other = pd.read_csv(source / "cvc-clinicdb/boxes.csv").iloc[::8].assign(split="test")
    for name, table in (("kvasir-seg", own), ("cvc-clinicdb", other)):
        table.to_csv(folder / f"{name}.csv", index=False)
        prepare_frames([source / name / "images"], folder / name, folder / f"{name}.csv", unlisted="skip", workers=1)
    small = {"image_size": 128, "frozen_stages": 2, "batch_size": 8, "max_epochs": 1}
    run = train(folder / "kvasir-seg", folder / "run", version="edge", **small, **_weights())
    evaluate(run, measure_speed=False)
    external = folder / "run/evaluation_clinicdb"
    evaluate(run, folder / "cvc-clinicdb", output_dir=external, measure_speed=False)
    write_report(run.folder, external=[external], speed=False)
    return run.folder / "report.html"


def _weights() -> dict[str, str]:
    return {"initial_weights": str(_research_data() / "weights/mobilenet_v2_features.imagenet.fp16.safetensors")}


def _report_of(write: Callable[[Path], Path], folder: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "RESAMPLES", 50)
        patch.setattr(findings, "RESAMPLES_OF_GROUPS", 50)
        path = write(folder)
    assert path.stat().st_size < 10_000_000
    return path.read_text()


@pytest.fixture(
    scope="module",
    params=[
        _of_slides,
        _of_polyps,
        _of_experiments,
        pytest.param(_of_glas, marks=pytest.mark.real_data),
        pytest.param(_of_kvasir_and_clinicdb, marks=pytest.mark.real_data),
    ],
)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return _report_of(request.param, tmp_path_factory.mktemp("report"))


@pytest.mark.parametrize("flags", [(), (DARK,)])
def test_it_opens_without_errors_and_asks_for_nothing(page: str, tmp_path: Path, flags: tuple[str, ...]) -> None:
    script = "return [document.scripts.length, document.querySelectorAll('svg[role=img]').length]"
    opened = open_page(page, tmp_path, *flags, script=script)
    assert opened.console == []
    assert opened.requests == []
    assert opened.result == [2, page.count("<svg ")]


def test_it_is_never_wider_than_its_window(page: str, tmp_path: Path) -> None:
    assert [own for own, given in widths_of(page, tmp_path, [320, 390, 768, 1600]) if own > given] == []


def test_it_is_printed(page: str, tmp_path: Path) -> None:
    assert print_page(page, tmp_path) >= 2


@pytest.mark.parametrize(("write", "file"), [(_of_hostile_slides, FILES[0]), (_of_hostile_frames, f"{FILES[0]}/0.png")])
def test_names_of_patients_and_files_are_text_on_the_whole_report(
    write: Callable[[Path], Path], file: str, tmp_path: Path
) -> None:
    page = _report_of(write, tmp_path)
    script = """
        document.querySelectorAll("details").forEach((one) => { one.open = true; });
        const made = [...document.querySelectorAll("script, [onerror], a[href^=http]")].length;
        return [made, document.body.innerText];
    """
    (tmp_path / "opened").mkdir()
    opened = open_page(page, tmp_path / "opened", script=script)
    assert opened.console == []  # where a script that is none of the page's would be named
    assert opened.requests == []
    made, words = opened.result
    assert made == 2
    assert MARKUP in words
    assert file in words
