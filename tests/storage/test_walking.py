import os
from pathlib import Path

from kdml_med.storage.walking import walk_folder


def test_folders_are_entered_once_and_those_left_out_or_around_never(tmp_path: Path) -> None:
    top = tmp_path / "top"
    for name in ("z/a.png", "out/b.png", "slide/Data.dat", "closed/mark", ".hidden/c.png", "@eaDir/d.png"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).touch()
    (tmp_path / "beside.png").touch()
    for link, target in {"a": top / "z", "way_out": top / "out", "up": tmp_path, "itself": top / "itself"}.items():
        (top / link).symlink_to(target)
    found = walk_folder(
        top, leave_out=[top / "out"], parts=lambda folder, names: None if "mark" in names else {"slide"}
    )
    assert found.files == {top / "z" / "a.png": (top / "z" / "a.png").resolve()}
    assert [path.name for path, _ in found.failures] == ["itself"]


def test_targets_of_no_files_are_one_line_that_a_table_can_hold(tmp_path: Path) -> None:
    (tmp_path / "x.png").symlink_to(os.fsdecode(b"/no\nwhere/caf\xe9"))
    [(path, reason)] = walk_folder(tmp_path).no_files
    assert path.name == "x.png"
    assert reason.encode().decode().isprintable()


def test_a_pipe_is_named_and_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    found = walk_folder(tmp_path)
    assert not found.files
    assert [path.name for path, _ in found.failures] == ["a.png"]
