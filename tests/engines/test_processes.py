"""What processes that train together do in each of them; that they do it together is tested with the bundles."""

import logging
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import distributed as dist

from kdml_med.engines import joint, processes
from kdml_med.errors import ExitCode, InputError


def test_one_process_shares_with_nobody():
    value = torch.ones(2)
    network = torch.nn.Linear(2, 2)
    assert (processes.rank(), processes.world_size(), processes.is_main()) == (0, 1, True)
    assert processes.gather("x") == ["x"]
    assert processes.from_main(value) is value
    assert processes.made_by_main(lambda: value) is value
    assert processes.mean(value) is value
    assert processes.total({"a": 0.1}) == {"a": 0.1}
    assert processes.share_network(network) is network
    terms = {"loss": value.sum()}
    assert joint.joint_terms(lambda *_: terms, {}, None, samples=2) is terms
    processes.share_buffers(network)
    processes.wait()
    with processes.main_first():
        pass
    error = ValueError("x")
    assert processes.end_together(error) is error


def test_a_file_that_only_the_main_process_sees_is_refused(monkeypatch, tmp_path):
    """On machines with a run folder each; a file system that is late is waited for."""
    path, clock = tmp_path / "last.pt", SimpleNamespace(monotonic=lambda: clock.now, now=0.0)

    def wait(_):
        clock.now += 20
        if clock.now > 40 and late:
            path.touch()

    clock.sleep, late = wait, False
    monkeypatch.setattr(processes, "time", clock)
    assert not processes.seen_by_all(path)
    monkeypatch.setattr(processes, "from_main", lambda _: True)
    with pytest.raises(
        InputError, match=r"process 0 of this training does not see .*last\.pt, .*: --run_dir has to be"
    ):
        processes.seen_by_all(path)
    clock.now, late = 0.0, True
    assert processes.seen_by_all(path)


def test_sums_take_names_that_some_processes_lack():
    assert processes.added([{"a": 1.0, "n": 2}, {}, {"a": 0.5, "b": 3.0, "n": 1}]) == {"a": 1.5, "b": 3.0, "n": 3}


@pytest.mark.parametrize(
    ("gpus", "local_rank", "device"), [(0, "1", "cpu"), (2, "1", "cuda:1"), (1, None, "cuda:0"), (2, "2", None)]
)
def test_each_process_has_the_gpu_of_its_number(monkeypatch, gpus, local_rank, device):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    refused = pytest.raises(InputError, match="process 2 of this machine has no GPU, there are 2: start with")
    with refused if device is None else nullcontext():
        assert processes.own_device() == device


def test_joining_needs_a_launcher(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InputError, match=r"is for several processes: start with torchrun .*, or leave it out"):
        processes.join("cpu")


LAUNCHER = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


class Group:
    """Processes that share a store, one after the other in this one."""

    def __init__(self, monkeypatch):
        self.monkeypatch, self.store = monkeypatch, dist.HashStore()
        for name, value in LAUNCHER.items():
            monkeypatch.setenv(name, value)
        self.waited = []
        monkeypatch.setattr(processes.time, "sleep", self.waited.append)

    def end(self, error):
        """What one more process says that ends by an error."""
        self.monkeypatch.setattr(processes, "_store", self.store)
        self.monkeypatch.setattr(processes, "_ends_first", None)
        return processes.end_together(error)

    def end_silently(self, error):
        with pytest.raises(SystemExit) as end:
            self.end(error)
        assert end.value.code == ExitCode.BAD_INPUT


LOST = RuntimeError("[../gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:30432")


def test_the_first_that_ends_says_why_and_the_others_nothing(monkeypatch):
    group = Group(monkeypatch)
    error = InputError("tile 'a' is cut short")
    assert group.end(error) is error
    assert processes.end_together(error) is error, "asked again on its way out, it is still the first"
    assert group.waited == []
    group.end_silently(LOST)
    assert group.waited == [5.0], "so that the launcher has seen the first one end"
    with pytest.raises(SystemExit):
        processes.end_together(SystemExit(2))
    assert group.waited == [5.0], "asked again on its way out"
    group.end_silently(InputError("tile 'a' is cut short"))


def test_what_another_process_says_does_not_stand_behind_the_bar_of_the_main_one(monkeypatch, capsys):
    group, error = Group(monkeypatch), InputError("tile 'a' is cut short")
    for rank, expected in ((0, ""), (1, "\n")):
        monkeypatch.setattr(processes, "_left_as", rank)
        group.store = dist.HashStore()
        group.end(error)
        assert processes.end_together(error) is error
        assert capsys.readouterr().err == expected


def test_who_only_loses_another_says_so_once(monkeypatch):
    group = Group(monkeypatch)
    said = group.end(LOST)
    assert isinstance(said, InputError)
    assert "another process of this training is gone" in str(said)
    group.end_silently(LOST)


def test_an_error_that_nobody_foresaw_keeps_its_traceback(monkeypatch):
    error = ZeroDivisionError("x")
    assert Group(monkeypatch).end(error) is error


@pytest.mark.parametrize("first", [True, False])
def test_an_error_leaves_no_group_behind_in_a_program_that_lives_on(monkeypatch, first):
    group = Group(monkeypatch)
    monkeypatch.setattr(processes, "_left_as", None)
    monkeypatch.setattr(processes, "_store", group.store)
    monkeypatch.setattr(processes, "_ends_first", first)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    logging.disable(logging.WARNING)
    try:
        with pytest.raises(InputError if first else SystemExit), processes.ending_together():
            raise InputError("tile 'a' is cut short")
        assert not dist.is_initialized()
        assert logging.root.manager.disable == logging.NOTSET
        assert processes.rank() == 0
    finally:
        logging.disable(logging.NOTSET)
        processes.leave()


@pytest.mark.parametrize(
    ("own", "command"), [("2", "torchrun --nproc_per_node=2"), ("1", "torchrun --nnodes=2 --nproc_per_node=1")]
)
def test_the_command_of_the_launcher_can_be_typed_again(monkeypatch, own, command):
    for name, value in LAUNCHER.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", own)
    assert processes.launcher() == command
