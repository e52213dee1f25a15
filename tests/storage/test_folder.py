import errno
import fcntl
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from kdml_med.errors import InputError
from kdml_med.storage import folder as storage_folder
from kdml_med.storage.files import Fingerprint
from kdml_med.storage.folder import FULL_HASH, DatasetFolder, describe_remade
from kdml_med.storage.locks import keep_out_others, sole_user
from kdml_med.storage.manifest import DatasetInfo, DatasetKind, manifest_table, read_info, read_manifest
from kdml_med.storage.shards import Origin, ShardRecord, ShardWriter, shard_path, sidecar_path, write_record


@dataclass
class Record(ShardRecord):
    """A shard that remembers a number."""

    number: int = 0


def describe(**options):
    return DatasetInfo(options={"mpp": 0.5} | options, made_by={"program": "a program"})


def origin(digest="sha256:1", name="a.svs", time_ns=None, facts=""):
    return Origin((Fingerprint(name, 3, digest, time_ns),), facts)


def row(name):
    return {"sample_id": name, "patient_id": "p", "slide_id": name, "shard": f"shards/{name}.tar", "offset": 512} | {
        "size": 3
    }


def store(path, name, made_from):
    with ShardWriter(shard_path(path, name)) as shard:
        shard.add("x.png", b"abc")
    write_record(path, name, Record(7, origin=made_from), [row(name)], DatasetKind.TILES)


@pytest.fixture
def folder(tmp_path):
    """A dataset of the shards a and b, finished."""
    path = tmp_path / "out"
    with DatasetFolder(path, describe(), Record) as opened:
        for name in "ab":
            store(path, name, origin(name=f"{name}.svs"))
        opened.write_tables(manifest_table([row("a"), row("b")]), [], {"slides.csv": pd.DataFrame({"slide_id": ["a"]})})
    return path


def contents(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def plan(path, origins, *, named=(), keep=False, force=False):
    with DatasetFolder(path, describe(), Record) as opened:
        strangers = opened.find_strangers([*origins, *named], allowed=keep or force)
        return opened.plan(origins, strangers, keep=keep)


BOTH = {"a": origin(), "b": origin(name="b.svs")}


def test_finished_shards_of_the_same_origin_are_left_alone(folder):
    before = contents(folder)
    work = plan(folder, BOTH | {"c": origin(name="c.svs")})
    assert (work.pending, work.remade, work.kept) == ({"c"}, {}, [])
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        (origin("sha256:2"), "a.svs has changed"),
        (origin(name="d.svs"), "d.svs is new"),
        (origin(facts="others"), "what is known about it has changed"),
        (Origin(origin().sources + origin(name="e.svs").sources), "e.svs is new"),
        (Origin(), "a.svs is not among its inputs any more"),
    ],
)
def test_shard_of_another_origin_is_made_anew_and_the_manifest_goes_first(folder, new, reason):
    work = plan(folder, BOTH | {"a": new})
    assert (work.pending, work.remade) == ({"a"}, {"a": reason})
    assert sorted(path.name for path in (folder / "shards").iterdir()) == ["b.parquet", "b.tar"]
    assert not (folder / "manifest.parquet").exists()
    assert describe_remade(work.remade) == [f"made anew: a ({reason})"]


def unread(name, reason="Stale file handle"):
    return Fingerprint(name, -1, f"unreadable: {reason}")


def test_shard_whose_file_cannot_be_read_now_stays_and_is_named(folder):
    before = contents(folder)
    work = plan(folder, BOTH | {"a": Origin((unread("a.svs"),))})
    assert (work.pending, work.remade) == (set(), {})
    assert {name: [file.problem for file in files] for name, files in work.unread.items()} == {
        "a": ["Stale file handle"]
    }
    assert contents(folder) == before
    assert plan(folder, BOTH).unread == {}


def test_file_that_could_never_be_read_is_no_news_and_one_that_can_be_now_is(folder):
    never = Origin((*origin().sources, unread("mask.png", "Permission denied")))
    store(folder, "a", never)
    again = plan(folder, BOTH | {"a": Origin((*origin().sources, unread("mask.png")))})
    assert (again.pending, again.remade, again.unread) == (set(), {}, {})
    assert plan(folder, BOTH | {"a": Origin((unread("a.svs"), *origin(name="mask.png").sources))}).remade == {
        "a": "mask.png has changed"
    }


def test_time_decides_where_not_all_bytes_are_hashed_and_stays_out_of_the_table(folder, tmp_path):
    new = BOTH | {"a": origin("sampled:1", time_ns=5)}
    plan(folder, new)
    store(folder, "a", new["a"])
    table = sidecar_path(folder, "a").read_bytes()
    assert plan(folder, new).pending == set()
    assert "another time" in plan(folder, BOTH | {"a": origin("sampled:1", time_ns=6)}).remade["a"]
    store(folder, "a", origin("sampled:1", time_ns=6))
    assert sidecar_path(folder, "a").read_bytes() == table
    (folder / "shards" / "a.times.json").unlink()  # a copy without it: nothing is known about the other bytes
    assert plan(folder, BOTH | {"a": origin("sampled:1", time_ns=6)}).pending == {"a"}


def test_shards_of_inputs_that_are_not_named_are_refused_kept_or_deleted(folder):
    before = contents(folder)
    with pytest.raises(
        InputError, match=r"holds what is not among the inputs of this run: b\. .*choose another --out.*--keep.*--force"
    ):
        plan(folder, {"a": origin()})
    assert contents(folder) == before
    assert plan(folder, {"a": origin()}, named=["b"]).pending == set()  # known, but not to be used today
    work = plan(folder, {"a": origin()}, keep=True, force=True)
    assert (work.kept, contents(folder)) == (["b"], before)
    assert plan(folder, {"a": origin()}, force=True).kept == []
    assert sorted(path.name for path in (folder / "shards").iterdir()) == ["a.parquet", "a.tar"]


def test_what_is_to_be_kept_is_not_replaced_either(folder):
    before = contents(folder)
    with pytest.raises(InputError, match=r"holds a already.*a\.svs has changed.*--keep replaces nothing"):
        plan(folder, {"a": origin("sha256:2")}, keep=True)
    assert contents(folder) == before


def test_shards_of_an_earlier_version_and_damaged_ones_are_made_anew(folder):
    write_record(folder, "a", Record(7), [row("a")], DatasetKind.TILES)
    sidecar_path(folder, "b").write_bytes(b"no table")
    work = plan(folder, BOTH)
    assert work.pending == {"a", "b"}
    assert "earlier version" in work.remade["a"]
    assert "damaged" in work.remade["b"]


def test_record_says_when_a_shard_is_outdated_for_another_reason(folder):
    with DatasetFolder(folder, describe(), Record) as opened:
        work = opened.plan(BOTH, outdated=lambda record: f"has {record.number}")
    assert work.remade == {"a": "has 7", "b": "has 7"}


def test_leftovers_of_killed_runs_are_deleted_and_nothing_else(folder):
    (folder / "thumbnails").mkdir()
    for name in (".slides.csv.part", "shards/.c.tar.part", "thumbnails/.c.jpg.part"):
        (folder / name).write_bytes(b"half")
    for name in ("shards/c.tar", "shards/d.parquet", "shards/e.times.json"):
        (folder / name).write_bytes(b"alone")
    (folder / "shards" / "notes.txt").write_text("mine")
    before = contents(folder)
    assert plan(folder, BOTH).pending == set()
    gone = set(before) - set(contents(folder))
    assert gone == {
        name for name in before if ".part" in name or name[7:] in ("c.tar", "d.parquet", "e.times.json")
    } | {"manifest.parquet"}


def test_a_shard_that_is_seen_late_is_waited_for_and_one_that_never_comes_is_named(folder, monkeypatch):
    monkeypatch.setattr(storage_folder, "_SEEN_WITHIN_S", 0.3)
    with DatasetFolder(folder, describe(), Record) as opened:
        seen = iter([["a"], ["a"], ["a", "b"]])
        with monkeypatch.context() as late:
            late.setattr(opened, "finished", lambda: next(seen))
            late.setattr(storage_folder, "_SEEN_WITHIN_S", 30)
            opened.await_finished(["b"])
        with pytest.raises(InputError, match=r"a worker has stored c, but .* the same folder on all machines"):
            opened.await_finished(["a", "c"])


def test_pictures_go_with_their_shard(tmp_path):
    with DatasetFolder(tmp_path / "out", describe(), Record, pictures="thumbnails") as opened:
        store(opened.path, "a", origin())
        (opened.path / "thumbnails").mkdir()
        (opened.path / "thumbnails" / "a.jpg").write_bytes(b"picture")
        opened.discard("a")
    assert sorted(contents(tmp_path / "out")) == ["dataset.json"]


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (describe(mpp=0.6), r"mpp = 0\.5, this run has 0\.6: use the same options, or choose another --out"),
        (describe(**{FULL_HASH: True}), "full_hash = False, this run has True"),
        (DatasetInfo(made_by={"program": "b"}), "was made by a program: choose another --out"),
    ],
)
def test_folder_of_other_options_or_another_program_is_refused_untouched(folder, info, message):
    before = contents(folder)
    with pytest.raises(InputError, match=message), DatasetFolder(folder, info, Record):
        pass
    assert contents(folder) == before
    with sole_user(folder):  # the lock was given back
        pass


def test_option_that_nothing_depends_on_may_change(folder):
    with DatasetFolder(folder, describe(mpp=0.6), Record, changeable=lambda opened: ["mpp"]):
        assert read_info(folder).options == {"mpp": 0.6}


def test_folder_that_is_no_dataset_is_refused_and_one_run_has_it_at_a_time(tmp_path):
    (tmp_path / "letter.txt").write_text("do not touch")
    with (
        pytest.raises(InputError, match=r"not empty \(it holds letter.txt\)"),
        DatasetFolder(tmp_path, describe(), Record),
    ):
        pass
    assert contents(tmp_path) == {"letter.txt": b"do not touch"}
    with (
        DatasetFolder(tmp_path / "out", describe(), Record),
        pytest.raises(InputError, match="another run is writing"),
        DatasetFolder(tmp_path / "out", describe(), Record),
    ):
        pass


def test_tables_that_say_the_same_are_not_touched_and_the_manifest_comes_last(folder, monkeypatch):
    rows, slides = manifest_table([row("a"), row("b")]), pd.DataFrame({"slide_id": ["a"]})
    for path in folder.rglob("*"):
        os.utime(path, ns=(1, 1))
    with DatasetFolder(folder, describe(), Record) as opened:
        opened.write_tables(rows, [], {"slides.csv": slides, "absent.csv": None})
        assert {path.stat().st_mtime_ns for path in folder.rglob("*")} == {1}
        order = []
        replace = Path.replace
        monkeypatch.setattr(Path, "replace", lambda path, to: order.append(to.name) or replace(path, to))
        opened.write_tables(rows.slice(0, 1), [("x", "why")], {"slides.csv": None})
    assert order == ["failures.csv", "manifest.parquet"]
    assert not (folder / "slides.csv").exists()
    assert read_manifest(folder)["sample_id"].tolist() == ["a"]


def test_failures_of_any_text_are_stored_and_read_back(folder):
    strange = os.fsdecode(b"\xfc.svs")
    with DatasetFolder(folder, describe(), Record) as opened:
        assert opened.read_failures() == []
        rows = [(strange, f"row 3: {strange} is there"), ("=1+1", "a\nb; =c")]
        opened.write_tables(manifest_table([row("a")]), rows, {})
        assert opened.read_failures() == [("\\xfc.svs", "row 3: \\xfc.svs is there"), rows[1]]
        (folder / "failures.csv").write_text("input\na\n")
        with pytest.raises(InputError, match=r"failures.csv lacks the columns \['reason'\].*Delete it"):
            opened.read_failures()
        (folder / "failures.csv").unlink()
        assert opened.read_failures() == []


def in_other_process(code: str, folder: Path) -> subprocess.Popen[str]:
    """Run lines of Python that begin by holding a folder, and wait until they print."""
    lines = "import sys, os, time\nfrom pathlib import Path\nfrom kdml_med.storage.locks import keep_out_others\n"
    process = subprocess.Popen(
        [sys.executable, "-c", lines + code, str(folder)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


HOLD = "hold = keep_out_others(Path(sys.argv[1]))\n"


def test_one_process_keeps_others_out_until_it_is_killed_even_if_a_child_of_it_lives_on(tmp_path: Path) -> None:
    # The child prints: once it runs lines of its own, it has given the folder up.
    fork = "if os.fork() == 0:\n    print('held', flush=True)\n    time.sleep(60)\n    os._exit(0)\ntime.sleep(60)\n"
    process = in_other_process(HOLD + fork, tmp_path / "run")
    try:
        with pytest.raises(InputError, match=r"another run is writing to .*run: wait .* or choose another --run_dir"):
            keep_out_others(tmp_path / "run", option="--run_dir")
        process.kill()
        process.wait()
        assert keep_out_others(tmp_path / "run") is not None
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_one_process_may_ask_again_and_lets_others_in_when_it_forgets(tmp_path: Path) -> None:
    hold = keep_out_others(tmp_path / "run")
    (tmp_path / "link").symlink_to("run")
    assert keep_out_others(tmp_path / "link") is hold
    with pytest.raises(InputError, match="another run"), sole_user(tmp_path / "run"):
        pass
    del hold
    with sole_user(tmp_path / "run"):
        pass
    assert list((tmp_path / "run").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot use .*file as output folder"):
        keep_out_others(tmp_path / "file")


def test_a_file_system_without_locks_gets_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(handle: int, what: int) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")  # of NFS, for a folder

    monkeypatch.setattr(fcntl, "flock", refuse)
    with sole_user(tmp_path / "out"):
        assert "two runs must not share it" in caplog.text
