"""Detections handed over for correction, read again by our own preparation and by other readers."""

import contextlib
import io
import json
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from kdml_med.colonoscopy.formats import parse_voc, parse_yolo
from kdml_med.colonoscopy.options import FrameOptions
from kdml_med.colonoscopy.preparing import prepare_frames
from kdml_med.data.frames import FrameDataset
from kdml_med.deploy.polyps import corrections
from kdml_med.deploy.polyps.annotate import SourceSize
from kdml_med.deploy.polyps.correction_files import CORRECTION_FORMATS, CorrectionImage, annotation_files
from kdml_med.deploy.polyps.corrections import CorrectionReport, check_untouched, list_images, write_corrections
from kdml_med.deploy.polyps.frames import boxes_in_source
from kdml_med.errors import InputError
from kdml_med.storage.manifest import read_manifest
from tests.colonoscopy.pictures import frame, save, save_video
from tests.examples import examples
from tests.synthetic_frames import write_frame_dataset

OPTIONS = FrameOptions(size_px=128, fps=5)
WHOLE = FrameOptions(size_px=8192, crop=False, mask_overlays=False, min_box_px=0, fps=5)
STILLS = [
    "plain.png", "pölyp & <ü> \"1'.jpg", "a,b;=c.png", "classes.png", "twin.png", "Twin.jpg", "unter ordner/one.png",
    "unter ordner/x.jpg.png", "back\\slash.png", "-dash %20 #3.png", "e\u0301.png",
]  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "in"
    for seed, name in enumerate(STILLS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save(folder / name, frame(seed=seed))
    save_video(folder / "clip & co.avi")
    return folder


@pytest.fixture(scope="module")
def dataset(source: Path, tmp_path_factory: pytest.TempPathFactory) -> FrameDataset:
    folder = tmp_path_factory.mktemp("data") / "frames"
    report = prepare_frames([source], folder, OPTIONS, None, progress=False)
    assert not report.failures
    return FrameDataset(folder)


def found_in(dataset: FrameDataset) -> pd.DataFrame:
    """Detections in two frames of three, pixels of the stored frames, with scores around the threshold of 0.5."""
    generator = np.random.default_rng(0)
    rows = []
    for place, row in dataset.rows.iterrows():
        for _ in range(int(place) % 3):
            low = generator.uniform(0, 20, 2)
            high = low + generator.uniform(12, [row["width"] - 21, row["height"] - 21])
            rows.append((row["sample_id"], "ensemble", generator.uniform(0.4, 1), *low, *high))
        rows.append((row["sample_id"], "student_0", 0.9, 1.0, 1.0, 20.0, 20.0))
    return pd.DataFrame(rows, columns=["sample_id", "network", "score", "xmin", "ymin", "xmax", "ymax"])


def paths_and_sizes(dataset: FrameDataset, source: Path) -> tuple[dict[str, Path], dict[str, SourceSize]]:
    paths = {name: source / name for name in dataset.rows["source"].unique()}
    sizes = {name: SourceSize(96, 64) if name.endswith(".avi") else SourceSize(200, 160) for name in paths}
    return paths, sizes


def images_of(dataset: FrameDataset, source: Path | None) -> list[CorrectionImage]:
    found = found_in(dataset)
    paths, sizes = paths_and_sizes(dataset, source) if source is not None else ({}, {})
    boxes = boxes_in_source(dataset.rows, found, {"ensemble": 0.5, "student_0": 0.5}, sizes)
    return list_images(dataset, found, boxes, paths, sizes, network="ensemble", threshold=0.5)


def write(
    folder: Path, dataset: FrameDataset, images: list[CorrectionImage], formats=CORRECTION_FORMATS, **more
) -> CorrectionReport:
    return write_corrections(folder, dataset, images, formats, network="ensemble", threshold=0.5, fps=5, **more)


@pytest.fixture(scope="module")
def written(dataset: FrameDataset, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "corrections"
    images = images_of(dataset, source)
    report = write(folder, dataset, images)
    assert report.images == len(dataset) == len(STILLS) + 10
    assert report.boxes == sum(len(image.boxes) for image in images) > 5
    assert report.image_bytes == sum(path.stat().st_size for path in (folder / "images").rglob("*") if path.is_file())
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


ANNOTATIONS = {"coco": "coco.json", "yolo": "labels", "voc": "Annotations"}


@pytest.mark.parametrize("kind", CORRECTION_FORMATS)
def test_our_own_preparation_reads_the_same_boxes_again(
    kind: str, written: Path, dataset: FrameDataset, source: Path, tmp_path: Path
) -> None:
    report = prepare_frames(
        [written / "images"], tmp_path / "again", WHOLE, written / ANNOTATIONS[kind], progress=False
    )
    assert report.failures == []
    again = read_manifest(tmp_path / "again").set_index("source")
    assert again["label"].notna().all(), "a frame without boxes is a negative"
    images = images_of(dataset, source)
    assert sorted(again.index) == sorted(image.name for image in images)
    for image in images:
        boxes = np.array([box for box, _ in image.boxes]).reshape(-1, 4)
        read = np.array([list(box) for box in again.loc[image.name, "boxes"]]).reshape(-1, 4)
        np.testing.assert_allclose(read, boxes, atol=0.51 if kind == "voc" else 0.006)
        assert again.loc[image.name, "label"] == ("polyp" if image.boxes else "negative")


@pytest.mark.parametrize("kind", CORRECTION_FORMATS)
def test_annotations_fit_the_video_itself(kind: str, written: Path, source: Path, tmp_path: Path) -> None:
    for path in (source / "clip & co.avi",):
        report = prepare_frames([path], tmp_path / kind, WHOLE, written / ANNOTATIONS[kind], progress=False)
        rows = read_manifest(tmp_path / kind)
        assert len(rows) == 10
        assert rows["label"].notna().all()
        assert {reason for name, reason in report.failures if name.startswith("clip")} == set()


def test_other_readers_find_the_same(written: Path, dataset: FrameDataset, source: Path) -> None:
    images = {image.name: image for image in images_of(dataset, source)}
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(written / "coco.json")
        results = coco.loadRes([dict(one) for one in coco.anns.values()])
    assert coco.loadCats(coco.getCatIds()) == [{"id": 1, "name": "polyp", "supercategory": ""}]
    assert len(results.anns) == len(coco.anns) == sum(len(image.boxes) for image in images.values())
    assert {one["file_name"] for one in coco.imgs.values()} == set(images)
    for one in coco.imgs.values():
        image = images[one["file_name"]]
        with Image.open(written / "images" / image.name) as picture:
            assert picture.size == (one["width"], one["height"]) == image.size
        found = [annotation["bbox"] for annotation in coco.loadAnns(coco.getAnnIds(one["id"]))]
        expected = [(box[0], box[1], box[2] - box[0], box[3] - box[1]) for box, _ in image.boxes]
        np.testing.assert_allclose(np.reshape(found, (-1, 4)), np.reshape(expected, (-1, 4)), atol=0.006)
        root = ElementTree.parse(written / "Annotations" / f"{image.stem}.xml").getroot()
        assert f"{root.findtext('folder')}/{root.findtext('filename')}" == f"images/{image.name}"
        assert [root.findtext(f"size/{side}") for side in ("width", "height", "depth")] == [
            *map(str, image.size), "3",
        ]  # fmt: skip
        for element, (box, _) in zip(root.findall("object"), image.boxes, strict=True):
            edges = [int(element.findtext(f"bndbox/{edge}") or "") for edge in ("xmin", "ymin", "xmax", "ymax")]
            np.testing.assert_allclose(edges, [box[0] + 1, box[1] + 1, box[2], box[3]], atol=0.51)
            assert [element.findtext(tag) for tag in ("name", "truncated", "difficult")] == ["polyp", "0", "0"]
        lines = (written / "labels" / f"{image.stem}.txt").read_text().splitlines()
        assert len(lines) == len(image.boxes)
        assert all(0 <= float(value) <= 1 for line in lines for value in line.split()[1:])
    assert (written / "classes.txt").read_text() == "polyp\n"


def test_cvat_finds_every_image_under_the_path_that_it_was_uploaded_under(
    written: Path, dataset: FrameDataset, source: Path
) -> None:
    uploaded = {Path(name).with_suffix("").as_posix() for name in files(written / "images")}
    settings = dict(line.split(" = ") for line in (written / "obj.data").read_text().splitlines())
    assert (written / settings["names"]).read_text() == "polyp\n"
    listed = (written / settings["train"]).read_text(encoding="utf-8").splitlines()
    boxes = 0
    for line in listed:  # the text file lies beside the image; the first folder is no part of its name
        boxes += len((written / Path(line).with_suffix(".txt")).read_text().splitlines())
    assert {Path(line).with_suffix("").as_posix().partition("/")[2] for line in listed} == uploaded
    assert len(listed) == len(dataset)
    assert boxes == sum(len(image.boxes) for image in images_of(dataset, source))
    items = (written / "ImageSets/Main/train.txt").read_text(encoding="utf-8").splitlines()
    assert set(items) == uploaded
    assert {f"{item}.xml" for item in items} == set(files(written / "Annotations"))


def test_images_are_the_sources_and_the_frames_that_were_taken(written: Path, source: Path) -> None:
    assert (written / "images/plain.png").read_bytes() == (source / "plain.png").read_bytes()
    assert not (written / "images/plain.png").is_symlink()
    frames = sorted(path.name for path in (written / "images/clip & co.avi").iterdir())
    assert frames == [f"{5 * number:06}.jpg" for number in range(10)]


def test_stored_frames_are_the_images_of_a_dataset_folder(tmp_path: Path) -> None:
    dataset = FrameDataset(write_frame_dataset(tmp_path / "data", frames=2))
    images = images_of(dataset, None)
    write(tmp_path / "out", dataset, images)
    with Image.open(tmp_path / "out/images/P1/0.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), dataset.read(2))
    report = prepare_frames(
        [tmp_path / "out/images"], tmp_path / "again", WHOLE, tmp_path / "out/coco.json", progress=False
    )
    assert (report.frames, report.boxes) == (8, sum(len(image.boxes) for image in images))


def test_the_same_again_touches_nothing_and_other_formats_replace(
    written: Path, dataset: FrameDataset, source: Path, tmp_path: Path
) -> None:
    images = images_of(dataset, source)
    times = {path: path.stat().st_mtime_ns for path in written.rglob("*.*") if path.name != "written.json"}
    before = files(written)
    write(written, dataset, images)
    assert files(written) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
    write(tmp_path, dataset, images, ["voc"])
    write(tmp_path, dataset, images, ["coco"], with_images=False)
    assert set(files(tmp_path)) == {"coco.json", "written.json"}
    assert json.loads(before["coco.json"]) == json.loads((tmp_path / "coco.json").read_bytes())


@pytest.mark.parametrize("name", ["labels/plain.txt", "Annotations/plain.xml", "coco.json", "images/plain.txt"])
def test_what_a_person_corrected_is_never_replaced(
    name: str, dataset: FrameDataset, source: Path, tmp_path: Path
) -> None:
    images = images_of(dataset, source)
    write(tmp_path, dataset, images)
    check_untouched(tmp_path)
    (tmp_path / name).write_text("0 0.5 0.5 0.1 0.1\n")
    before = files(tmp_path)
    with pytest.raises(InputError, match=rf"{name} was (changed|not written).* move the folder"):
        write(tmp_path, dataset, images, ["coco"])
    assert files(tmp_path) == before


def test_an_interrupted_export_goes_on(
    written: Path, dataset: FrameDataset, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = images_of(dataset, source)
    done = []
    original = corrections.write_atomically

    def interrupted(path: Path, data: bytes) -> None:
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(path)
        original(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(corrections, "write_atomically", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, dataset, images)
    assert len(files(tmp_path / "images")) == len(STILLS) + 4
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "images").rglob("*.*") if path.is_file()}
    write(tmp_path, dataset, images)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert files(tmp_path) == files(written)


def test_images_of_a_changed_source_are_made_anew(tmp_path: Path) -> None:
    for seed in (1, 2):
        save(tmp_path / "in/a.png", frame(seed=seed))
        prepare_frames([tmp_path / "in"], tmp_path / "frames", OPTIONS, None, progress=False)
        dataset = FrameDataset(tmp_path / "frames")
        write(tmp_path / "out", dataset, images_of(dataset, tmp_path / "in"))
        assert (tmp_path / "out/images/a.png").read_bytes() == (tmp_path / "in/a.png").read_bytes()


@pytest.mark.parametrize("name", ["a.png", "clip.avi"])
def test_a_source_that_is_lost_while_images_are_written_is_named(name: str, tmp_path: Path) -> None:
    save(tmp_path / "in/a.png", frame(seed=1))
    save_video(tmp_path / "in/clip.avi", frames=2)
    prepare_frames([tmp_path / "in"], tmp_path / "frames", OPTIONS, None, progress=False)
    dataset = FrameDataset(tmp_path / "frames")
    images = images_of(dataset, tmp_path / "in")
    (tmp_path / "in" / name).unlink()
    with pytest.raises(InputError, match=rf"^\S*{name}\b.* cannot be (read|opened) .*Run the same command again\.$"):
        write(tmp_path / "out", dataset, images)


@settings(max_examples=examples(40), deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(-5, 70)] * 4).filter(lambda box: box[0] < box[2] and box[1] < box[3]), max_size=4),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8),
)
def test_any_box_and_name_come_back_from_xml_and_yolo(boxes: list, name: str) -> None:
    taken: set[str] = set()
    size = SourceSize(64, 48)
    kept = [corrections._inside(box, size) for box in boxes]
    kept = [box for box in kept if box[2] - box[0] >= 1 and box[3] - box[1] >= 1]
    image = CorrectionImage(
        corrections._free_name(f"{name}.png", taken), 0, None, None, size, tuple((box, 1.0) for box in kept)
    )
    found = {
        path: data.decode() for path, data in annotation_files([image], CORRECTION_FORMATS, network="e", threshold=0.5)
    }
    voc = parse_voc(found[f"Annotations/{image.stem}.xml"], "x")
    assert voc.problem is None
    np.testing.assert_allclose(np.reshape(voc.boxes, (-1, 4)), np.reshape(kept, (-1, 4)), atol=1.01)
    assert all(0 <= x < right <= 64 and 0 <= y < bottom <= 48 for x, y, right, bottom in voc.boxes)
    yolo = parse_yolo(found[f"labels/{image.stem}.txt"], "x", ["polyp"])
    np.testing.assert_allclose(np.reshape(yolo.boxes, (-1, 4)) * [64, 48, 64, 48], np.reshape(kept, (-1, 4)), atol=1e-6)
    other = corrections._free_name(f"{name}.jpg", taken)
    assert other.rpartition(".")[0].casefold() != image.stem.casefold()
    assert SimpleNamespace(**json.loads(found["coco.json"])["images"][0]).file_name == image.name
