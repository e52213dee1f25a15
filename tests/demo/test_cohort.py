"""A generated cohort is readable, true to its recorded truth, reproducible, and refuses to mix with anything else."""

import json
import shutil
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest
from PIL import Image
from scipy import special
from skimage.filters import threshold_otsu
from sklearn.metrics import roc_auc_score

from kdml_med.demo import artefacts, tissue
from kdml_med.demo.phenotype import draw_phenotype, patient_label, patient_seed
from kdml_med.demo.slides import render_slide, write_demo_cohort
from kdml_med.errors import InputError

PATIENTS = 4


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_cohort(tmp_path_factory.mktemp("demo") / "cohort", patients=PATIENTS, workers=1, progress=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_openslide_reads_the_slide_as_aperio_with_resolution_and_levels(cohort: Path) -> None:
    with openslide.OpenSlide(cohort / "slides" / "DEMO-0001-01.svs") as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert float(slide.properties["openslide.mpp-x"]) == tissue.MPP
        assert slide.properties["openslide.objective-power"] == "20"
        assert slide.level_downsamples == (1.0, 4.0)
        assert set(slide.associated_images) == {"thumbnail"}


def test_the_file_keeps_the_painted_colours(cohort: Path) -> None:
    image, _, _ = render_slide(0, 1)
    with openslide.OpenSlide(cohort / "slides" / "DEMO-0002-01.svs") as slide:
        read = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    difference = read.astype(float) - image
    assert np.abs(difference.mean((0, 1))).max() < 1.0
    assert np.abs(difference).mean() < 4.0


def test_truth_mask_agrees_with_what_is_visible(cohort: Path) -> None:
    for path in sorted((cohort / "slides").glob("*.svs")):
        truth = json.loads((cohort / "truth" / f"{path.stem}.json").read_text())
        mask = np.asarray(Image.open(cohort / "truth" / f"{path.stem}_tissue.png")) > 0
        with openslide.OpenSlide(path) as slide:
            thumbnail = slide.read_region((0, 0), 1, slide.level_dimensions[1]).convert("RGB")
        darkness = 255 - np.asarray(thumbnail.resize(mask.shape[::-1], Image.Resampling.BOX), dtype=float).min(-1)
        pen = artefacts.pen_mask([artefacts.PenStroke(**stroke) for stroke in truth["pen"]], truth["size_px"], 8)
        visible = darkness > threshold_otsu(np.minimum(darkness, 110)) * 0.75
        visible, mask = visible[~pen], mask[~pen]
        assert 2 * (visible & mask).sum() / (visible.sum() + mask.sum()) > 0.9, path.name
        assert 0.3 < mask.mean() < 0.6


def test_local_truth_adds_up_to_the_placed_lymphocytes_and_mask() -> None:
    patient = draw_phenotype("MSI-H", np.random.SeedSequence(1), np.random.SeedSequence(2))
    painted = tissue.paint_tissue(patient, 896, np.random.default_rng(5))
    local = tissue.local_truth(painted)
    covered = np.array(local["tissue_fraction"])
    area_mm2 = covered * (tissue.CELL_PX * tissue.MPP / 1000) ** 2
    assert covered.mean() == pytest.approx(painted.mask.mean(), abs=1e-3)
    assert (np.array(local["lymphocytes_per_mm2"]) * area_mm2).sum() == pytest.approx(
        len(painted.lymphocytes), rel=0.02
    )
    assert (np.array(local["mucin_fraction"]) <= 1).all()


def test_no_property_decides_alone_and_stain_knows_nothing_of_the_label() -> None:
    patients = [draw_phenotype(patient_label(0, index), *patient_seed(0, index).spawn(2)) for index in range(1000)]
    label = np.array([patient.label == "MSI-H" for patient in patients])
    tissue_properties = np.array(
        [
            (
                np.log(patient.lymphocytes_per_mm2),
                special.logit(patient.mucin_fraction),
                -special.logit(patient.gland_regularity),
            )
            for patient in patients
        ]
    )
    alone = [roc_auc_score(label, values) for values in tissue_properties.T]
    together = roc_auc_score(label, (tissue_properties / tissue_properties.std(0)).sum(1))
    assert max(alone) < 0.98 < together < 1
    assert min(alone) > 0.9
    scan = np.array([(*patient.hematoxylin, *patient.eosin, *patient.white, patient.gamma) for patient in patients])
    # 1000 patients: the standard error of an AUROC without information is 0.018.
    assert all(abs(roc_auc_score(label, values) - 0.5) < 0.08 for values in scan.T)


def test_labels_are_balanced_for_any_number_of_patients(cohort: Path) -> None:
    table = pd.read_csv(cohort / "labels.csv")
    assert list(table.columns) == ["patient", "slide", "MSIStatus"]
    assert table.MSIStatus.value_counts().to_dict() == {"MSS": 2, "MSI-H": 2}
    for patients in range(4, 41):
        positive = sum(patient_label(3, index) == "MSI-H" for index in range(patients))
        assert positive in (patients // 2, patients - patients // 2)


def test_a_deleted_slide_comes_back_with_the_same_bytes_for_any_number_of_workers(cohort: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(cohort, copy)
    (copy / "slides" / "DEMO-0002-01.svs").unlink()
    (copy / "truth" / "DEMO-0003-01.json").unlink()
    kept = copy / "slides" / "DEMO-0001-01.svs"
    before = kept.stat().st_mtime_ns
    write_demo_cohort(copy, patients=PATIENTS, workers=2, progress=False)
    assert contents(copy) == contents(cohort)
    assert kept.stat().st_mtime_ns == before


def test_another_seed_gives_another_picture() -> None:
    assert not np.array_equal(render_slide(0, 0, 512)[0], render_slide(1, 0, 512)[0])


@pytest.mark.parametrize("arguments", [{"patients": 3}, {"seed": -1}, {"workers": -1}, {"patients": 10_000}])
def test_numbers_out_of_range_are_refused(tmp_path: Path, arguments: dict[str, int]) -> None:
    with pytest.raises(InputError, match="expected"):
        write_demo_cohort(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else_is_refused_and_left_alone(cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        write_demo_cohort(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(InputError, match="is a file"):
        write_demo_cohort(tmp_path / "mine.txt")
    before = contents(cohort)
    for other in ({"patients": PATIENTS + 1}, {"patients": PATIENTS, "seed": 1}):
        with pytest.raises(InputError, match="choose another --out"):
            write_demo_cohort(cohort, **other)
    assert contents(cohort) == before


def test_damaged_settings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        write_demo_cohort(tmp_path)
