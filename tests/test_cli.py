"""The console command: its help, the same results as the programs and bundles, and one line for what is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from kdml_med import __version__, cli
from kdml_med.bundle.knobs import KNOBS
from kdml_med.errors import ExitCode
from kdml_med.storage.manifest import read_info
from tests.synthetic_frames import frame_pixels, write_frame_dataset
from tests.synthetic_slides import write_slide
from tests.synthetic_tiles import write_tile_dataset

REPOSITORY = Path(__file__).parents[1]
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command inside this process; gives exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["kdml-med", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        code = caught.value.code
        return code if isinstance(code, int) else 0, *capsys.readouterr()

    return run


def test_alone_it_shows_its_commands_at_once() -> None:
    code = (
        "import sys, kdml_med.cli\nsys.argv = ['kdml-med']\ntry:\n    kdml_med.cli.main()\n"
        "except SystemExit as ending: assert not ending.code\n"
        "print('loaded:', *{'torch', 'monai', 'numpy', 'pandas', 'openslide'} & set(sys.modules))"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert all(f" {name} " in done.stdout for name in cli.COMMANDS)
    assert done.stdout.splitlines()[-1] == "loaded:"
    assert time.monotonic() - started < 20, "it starts an interpreter and no framework"


@pytest.mark.parametrize(
    ("command", "mentioned"),
    [
        ("demo", ["--task", "--out", "--tiny"]),
        ("tile", ["--labels", "--like", "[default: 0.5]"]),
        ("frames", ["--annotations", "--like", "[default: 384]"]),
        ("import", ["--layout"]),
        ("crops", ["--per-polyp", "--near-duplicates", "[default: 96]"]),
        ("split", ["--folds"]),
        ("train", ["--run", "[height, width]", "[default: MSI v1, polyps tiny]"]),
        ("evaluate", ["--data", "--split", "--aggregation"]),
        (
            "predict",
            ["--network", "--workers", "--assume-mpp", "--roi", "--labels", "--no-maps", "--fps", "--annotate"],
        ),
        ("export", ["--network", "--format", "--out"]),
        ("report", ["DIR", "--external", "--labels", "--by", "--temperature", "--data", "--speed"]),
        ("crops", ["--out", "--per-polyp", "--leave-out", "--near-duplicates"]),
        ("compare", ["--jobs", "--out"]),
    ],
)
def test_every_command_has_help(call: Call, command: str, mentioned: list[str]) -> None:
    code, out, _ = call(command, "--help")
    assert code == 0
    assert f"Usage: kdml-med {command} " in out
    for word in mentioned:
        assert word in out
    assert set(cli.COMMANDS) == {
        "demo", "tile", "frames", "import", "crops", "split", "train", "evaluate", "predict", "export", "report",
        "compare",
    }  # fmt: skip


def test_training_has_every_setting(call: Call) -> None:
    _, out, _ = call("train", "--help")
    for knob in KNOBS:
        if "train" in knob.stages and knob.name not in ("dataset_dir", "run_dir"):
            assert f" --{knob.name.replace('_', '-')} " in out
            assert knob.group in out


def test_the_version_is_printed(call: Call) -> None:
    assert call("--version")[:2] == (0, f"kdml-med {__version__}\n")


@pytest.mark.parametrize(
    ("option", "typed", "meant"),
    [
        ("cache", "2026_11_30", "2026_11_30"),
        ("profile", "run #2", "run #2"),
        ("profile", "None", None),
        ("teacher-checkpoint", "0x10", "0x10"),
        ("teacher-checkpoint", "a,b.pt", "a,b.pt"),
        ("teacher-checkpoint", "['a.pt', 'b.pt']", ["a.pt", "b.pt"]),
        ("initial-weights", "1e3", "1e3"),
        ("initial-weights", "{resnet18: imagenet}", {"resnet18": "imagenet"}),
        ("version", "007", "007"),
        ("teacher", "{'name': 'resnet18'}", {"name": "resnet18"}),
        ("experiment-name", "'quoted'", "quoted"),
        ("batch-size", "0x10", 16),
        ("learning-rate", "1e-3", 0.001),
    ],
)
def test_paths_and_names_are_taken_as_they_are_typed(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: str, typed: str, meant: object
) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr("kdml_med.api.train", lambda *_, **settings: given.update(settings))
    assert call("train", tmp_path, "--run", "run", f"--{option}", typed)[0] == 0
    assert given == {option.replace("-", "_"): meant}


def test_train_evaluate_and_report(call: Call, tmp_path: Path) -> None:
    tiles, run = write_tile_dataset(tmp_path / "tiles"), tmp_path / "run"
    tiny = ["--teacher", "tests.networks.tiny.TinyNet", "--students", "['tests.networks.tiny.TinyNet']", "--gamma", "0"]
    code, out, err = call(
        "train",
        tiles,
        "--run",
        run,
        *tiny,
        "--max_epochs=1",
        "--learning-rate",
        "0.002",
        "--no-balance",
        "--device",
        "cpu",
    )
    assert (code, "parsing config_file" in err) == (0, False)
    assert f"kdml-med evaluate {run}" in out
    settings = json.loads((run / "settings.json").read_text())
    assert settings["knobs"]["learning_rate"] == 0.002
    assert settings["free"]["max_epochs"] == 1
    code, _, err = call("train", tiles, "--run", run, *tiny, "--batch-size", 4)
    assert code == 2
    assert f"{run} holds a run with other settings: --batch-size was 16, now 4" in err
    assert "another --run." in err, "options are called as they are here"
    code, out, _ = call("evaluate", run, "--split", "val")
    assert (code, "Split val" in out) == (0, True)
    code, out, _ = call("report", run)
    assert code == 0
    page = (run / "report.html").read_text()
    for part in ("Validation only.", "Generated data", "student 0", "learning_rate", "<svg"):
        assert part in page
    assert str(run / "report.html") in out


def test_what_cannot_be_used_gives_exit_code_3(call: Call, frames_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(frame_pixels([[10, 10, 30, 30]], height=48, width=64)).save(folder / "good.png")
    assert call("predict", frames_run, folder, "--out", tmp_path / "good")[0] == 0
    (folder / "bad.png").write_bytes(b"no picture")
    code, out, _ = call("predict", frames_run, folder, "--out", tmp_path / "out", "--annotate")
    assert (code, "bad.png" in out) == (3, True)
    assert (tmp_path / "out/detections.jpg").is_file()


def test_a_slide_is_predicted_from_its_file(call: Call, tiles_run: Path, slides: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, said, err = call("predict", tiles_run, slides, "--out", out, "--no-maps", "--device", "cpu", "--workers", 1)
    assert code == 0, err
    assert "1 slide, " in said
    table = (out / "patients.csv").read_text().splitlines()
    assert table[0].split(",")[-2:] == ["probability_ensemble", "seen_in"]
    assert table[1].startswith("TCGA-AA-0001,")
    write_slide(slides / "unknown.svs", width=600, height=500, mpp=None)
    code, said, _ = call("predict", tiles_run, slides, "--out", out, "--no-maps", "--device", "cpu")
    (slides / "unknown.svs").unlink()
    assert (code, "unknown.svs: " in said) == (3, True)


def test_a_network_is_exported(call: Call, tiles_run: Path, tmp_path: Path) -> None:
    code, said, err = call("export", tiles_run, "--out", tmp_path / "out", "--format", "torchscript", "--no-speed")
    assert (code, "largest difference" in said) == (0, True), err
    assert (tmp_path / "out/model.json").is_file()


def wrong(tiles_run: Path, frames_run: Path, place: Path) -> list[tuple[list[object], str]]:
    """Command lines that need a correction, and what is said about each."""
    nothing, out = place / "nothing", place / "out"
    (place / "empty").mkdir()
    (place / "file").write_text("")
    tiles = tiles_run.parent / "tiles"
    frames = write_frame_dataset(place / "frames")
    slide = place / "slide.svs"
    write_slide(slide, width=600, height=500, mpp=0.5)
    return [
        (["crops", nothing, "--out", out], "is not a dataset folder"),
        (["crops", tiles, "--out", out], "expected one of frames"),
        (["crops", frames, "--out", out, "--size", "4"], "--size is 4, expected 8 to 2048"),
        (["train", nothing, "--run", out], "is not a dataset folder"),
        (["train", place / "empty", "--run", out], "is not a dataset folder"),
        (["train", tiles, "--run", place / "file"], "file"),
        (["train", tiles, "--run", out, "--version", "v9"], "unknown version 'v9'"),
        (["train", tiles, "--run", out, "--batch-size", "0"], "--batch-size is 0, expected a whole number from 1"),
        (["train", tiles, "--run", out, "--zoom", "[1,1]"], "unknown option --zoom: it is for frames"),
        (["train", tiles, "--run", out, "--max-epoch", "2"], "--max-epochs"),
        (["train", tiles, "--run", frames_run], "was trained for detection"),
        (["compare", nothing, "--out", out, "--jobs", "0"], "`kdml-med compare --help` shows"),
        (["train", tiles, "--run", out, "--students", "['resnet19']"], "resnet19"),
        (["evaluate", nothing], "is not a finished training run"),
        (["evaluate", tiles_run, "--data", frames], "frames"),
        (["evaluate", frames_run, "--data", tiles], "tiles"),
        (["evaluate", tiles_run, "--data", nothing], "is not a dataset folder"),
        (["evaluate", tiles_run, "--split", "tset"], "--split is 'tset', expected one of"),
        (["evaluate", tiles_run, "--out", place / "file"], "file"),
        (["predict", nothing, tiles, "--out", out], "is not a finished training run"),
        (["predict", frames_run, nothing, "--out", out], "nothing does not exist"),
        (["predict", frames_run, place / "empty", "--out", out], "empty"),
        (["predict", frames_run, frames, "--out", out, "--network", "student_9"], "student_9"),
        (["predict", frames_run, tiles, "--out", out], "tiles"),
        (["predict", tiles_run, frames, "--out", out], "frames"),
        (
            ["predict", frames_run, frames, "--out", out, "--assume-mpp", "1"],
            "unknown option --assume-mpp: it is for tiles",
        ),
        (["predict", tiles_run, slide, "--out", out, "--network", "student_9"], "student_9"),
        (["predict", tiles_run, slide, "--out", out, "--fps", "1"], "unknown option --fps: it is for frames"),
        (["predict", tiles_run, slide, "--out", out, "--device", "tpu"], "--device is 'tpu', expected cpu"),
        (["predict", frames_run, frames, "--out", out, "--workers", "-3"], "--workers is -3, expected"),
        (["predict", tiles_run, slide, "--out", out, "--networks", "teacher"], "No such option: --networks"),
        (["predict", tiles_run, slide], "'--out'"),
        (["predict", tiles_run, slide, "--out", place / "file"], "file"),
        (["predict", tiles_run, place / "empty", "--out", out], "empty"),
        (["export", nothing, "--out", out], "is not a finished training run"),
        (["export", tiles_run, "--out", out, "--network", "student_9"], "student_9"),
        (["export", tiles_run, "--out", out, "--format", "tflite"], "tflite"),
        (["export", tiles_run, "--out", place / "file"], "file"),
        (["report", place / "empty"], "holds neither a run"),
        (["report", nothing], "holds neither a run"),
        (["compare", nothing, "--out", out], "does not exist"),
        (["tile", place / "empty", "--out", out], "empty"),
        (["tile", place / "empty", "--out", out, "--like", nothing], "is not a finished training run"),
        (["tile", place / "empty", "--out", out, "--like", frames_run], "was trained for detection"),
        (["frames", place / "empty", "--out", out, "--like", tiles_run], "was trained for classification"),
        (["frames", place / "empty", "--out", out], "empty"),
        (["split", nothing], "is not a dataset folder"),
        (["import", nothing, "--layout", "kather", "--out", out], "nothing"),
        (["demo", "--out", place / "file"], "file"),
    ]


def test_wrong_input_to_each_command_ends_in_one_line(
    call: Call, tiles_run: Path, frames_run: Path, tmp_path: Path
) -> None:
    lines = wrong(tiles_run, frames_run, tmp_path)
    assert {words[0] for words, _ in lines} == set(cli.COMMANDS)
    for words, message in lines:
        code, out, err = call(*words)
        said = [line for line in err.splitlines() if line]
        assert code == 2, (words, out, err)
        assert said[-1].startswith("error: "), (words, err)
        assert message in said[-1], (words, err)
        assert "Traceback" not in err
        assert not (tmp_path / "out").exists(), words


@pytest.mark.parametrize(("trained", "reported", "code"), [(0, 0, 0), (3, 0, 3), (0, 3, 3)])
def test_compare_trains_by_a_plan_and_reports(
    call: Call, monkeypatch: pytest.MonkeyPatch, trained: int, reported: int, code: int
) -> None:
    from kdml_med.experiments import __main__ as experiments

    done: list[object] = []
    monkeypatch.setattr(experiments, "run", lambda *plan, **how: done.append((plan, how)) or ExitCode(trained))
    monkeypatch.setattr(experiments, "report", lambda out: done.append(out) or ExitCode(reported))
    assert call("compare", "plan.json", "--out", "results", "--jobs", "2")[0] == code
    assert done == [((Path("plan.json"), Path("results")), {"jobs": 2, "scheduler": None}), Path("results")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "Did you mean 'train'"),
        (["train", "data", "--run", "run", "--max-epoch", "3"], "--max-epochs"),
        (["train", "data"], "--run"),
        (["predict", "run", "--out", "out"], "INPUT"),
    ],
)
def test_a_slip_on_the_command_line_is_said(call: Call, words: list[str], message: str) -> None:
    code, _, err = call(*words)
    assert (code, message in err) == (2, True)


def test_a_command_can_be_run_from_another_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_command(["--version"]) == 0
    assert capsys.readouterr().out == f"kdml-med {__version__}\n"
    assert cli.run_command(["split", str(tmp_path)]) == 2
    assert "is not a dataset folder" in capsys.readouterr().err


def test_ctrl_c_while_libraries_load_ends_like_later(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: cli.Entry) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.Entry, "load", interrupted)
    code, _, err = call("tile", "x", "--out", "y")
    assert (code, err.count("\n"), "interrupted" in err) == (130, 1, True)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    write_slide(folder / "TCGA-AA-0001-01Z-00-DX1.svs", width=1200, height=1000, mpp=0.5)
    return folder


def described(run: Path, tmp_path: Path, **more: object) -> Path:
    """A copy of a run whose cohort.json says something else."""
    copy = shutil.copytree(run, tmp_path / "described")
    content = json.loads((copy / "cohort.json").read_text())
    (copy / "cohort.json").write_text(json.dumps(content | more))
    return copy


def test_tiles_are_cut_like_those_of_a_run(call: Call, tiles_run: Path, slides: Path, tmp_path: Path) -> None:
    options = {"image_format": "png", "min_tissue": 0.4, "max_pen": 0.2}
    run = described(tiles_run, tmp_path, tile_options=options)
    code, _, err = call("tile", slides, "--out", tmp_path / "new", "--like", run, "--max-pen", "0.2")
    assert code == 0, err
    info = read_info(tmp_path / "new")
    assert (info.mpp, info.tile_size_px) == (1.0, 32)
    assert options.items() <= info.options.items()
    assert info.options["max_background"] == 0.75, "a run of an earlier version does not say: the default"
    for words, option in (("--mpp 0.5", "--mpp"), ("--format jpeg", "--format"), ("--preset kather-256um", "--preset")):
        code, _, err = call("tile", slides, "--out", tmp_path / "other", "--like", run, *words.split())
        assert code == 2
        assert f"error: {option} " in err
    assert not (tmp_path / "other").exists()


def test_a_run_on_imported_tiles_says_nothing_about_slides(
    call: Call, tiles_run: Path, slides: Path, tmp_path: Path
) -> None:
    run = described(tiles_run, tmp_path, mpp=None)
    code, _, err = call("tile", slides, "--out", tmp_path / "new", "--like", run)
    assert (code, "say --mpp and --tile-size" in err) == (2, True)


def test_frames_are_stored_like_those_of_a_run(call: Call, frames_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(frame_pixels([[20, 20, 60, 60]], height=96, width=128)).save(folder / "a.png")
    run = described(frames_run, tmp_path, frame_options={"crop": False, "image_format": "png", "min_box_px": 3.0})
    code, _, err = call("frames", folder, "--out", tmp_path / "new", "--like", run)
    assert code == 0, err
    info = read_info(tmp_path / "new")
    assert info.frame_size_px == 64
    assert {"crop": False, "image_format": "png", "min_box_px": 3.0, "jpeg_quality": 95}.items() <= info.options.items()
    for words in ("--size 128", "--crop", "--min-box 10"):
        code, _, err = call("frames", folder, "--out", tmp_path / "other", "--like", run, *words.split())
        assert (code, f"error: {words.split()[0]} is " in err) == (2, True)


def test_a_run_records_how_its_frames_are_stored(call: Call, tmp_path: Path) -> None:
    from kdml_med.runs import FRAME_OPTIONS, RunDescription

    images, boxes = tmp_path / "images", tmp_path / "boxes.csv"
    lines = ["image,xmin,ymin,xmax,ymax,sequence,split"]
    for number, split in enumerate(["train", "train", "val", "test"]):
        images.mkdir(exist_ok=True)
        picture = frame_pixels([[20, 20, 60, 60]], height=96, width=128, seed=number)
        Image.fromarray(picture).save(images / f"{number}.png")
        lines += [f"{number}.png,20,20,60,60,s{number},{split}"]
    boxes.write_text("\n".join(lines) + "\n")
    small = "{'name':'retinanet','body':'mobilenet_v2','last_block':13,'width':16,'head_convs':1}"
    networks = ["--teacher", small, "--students", f"[{small}]", "--gamma", "0"]
    tiny = [*networks, "--max-epochs", "1", "--image-size", "64", "--device", "cpu"]
    assert call("frames", images, "--annotations", boxes, "--out", tmp_path / "frames", "--min-box", "5")[0] == 0
    assert call("train", tmp_path / "frames", "--run", tmp_path / "run", *tiny)[0] == 0
    options = RunDescription.read(tmp_path / "run").frame_options
    assert set(options) == set(FRAME_OPTIONS)
    assert (options["min_box_px"], options["image_format"]) == (5.0, "jpeg")


@pytest.mark.slow
def test_the_old_commands_know_a_run_too(tiles_run: Path, slides: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "preprocessing.tile_slides", slides, "--out", tmp_path / "new", "--like", tiles_run]
    done = subprocess.run([*map(str, words)], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert read_info(tmp_path / "new").tile_size_px == 32


def test_processes_are_not_started_below_a_launcher(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    code, _, err = call("train", tmp_path, "--run", tmp_path / "run", "--processes", 4)
    assert code == 2
    assert err == "error: --processes 4 starts processes, and 2 were started already: leave it out.\n"
