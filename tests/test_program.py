"""How every program ends: exit codes, and one line instead of a traceback."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from kdml_med.errors import INTERRUPTED, ExitCode, InputError
from kdml_med.program import checked, hold_interrupts, unhindered_imports, usable_cores


def ending(command: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(typer.Exit) as caught:
        checked(command)()
    return caught.value.exit_code, capsys.readouterr().err


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("row 3: wrong."), 2, "error: row 3: wrong.\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: No space left on device. Free some space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a/b"), 2, "error: a/b: Disk quota exceeded. Free some space"),
        (PermissionError(errno.EACCES, "Permission denied", b"a/b"), 2, "error: a/b: Permission denied. Name a folder"),
        (OSError(errno.EROFS, "Read-only file system", Path("x")), 2, "error: x: Read-only file system. Name a folder"),
        (FileNotFoundError(errno.ENOENT, "No such file", "gone"), 2, "error: gone: No such file. Was it moved"),
        (KeyboardInterrupt(), 130, f"{INTERRUPTED}\n"),
    ],
)
def test_what_was_foreseen_ends_in_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, said = ending(raising(error), capsys)
    assert (found, said.count("\n")) == (code, 1)
    assert said.startswith(line)


def test_the_collector_is_as_before_after_imports() -> None:
    assert gc.isenabled()
    with unhindered_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyboardInterrupt), unhindered_imports():
        raise KeyboardInterrupt
    assert gc.isenabled()
    gc.disable()
    try:
        with unhindered_imports():
            pass
        assert not gc.isenabled(), "who runs a command from a program of one's own decides"
    finally:
        gc.enable()


@pytest.mark.parametrize("error", [KeyError("a"), OSError("of a library"), BrokenPipeError(errno.EPIPE, "pipe")])
def test_anything_else_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        checked(raising(error))()


def test_a_command_says_its_own_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(lambda: ExitCode.SOME_FAILED, capsys)[0] == 3
    assert ending(lambda: None, capsys)[0] == 0


def test_held_interrupts_count_when_the_block_is_over() -> None:
    done = []

    def work() -> None:
        with hold_interrupts():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("in the block")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["in the block"]
    with hold_interrupts():
        done.append("again")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_held_interrupts_are_not_let_in_by_another_thread() -> None:
    ready, end = threading.Event(), threading.Event()
    other = threading.Thread(target=lambda: (ready.set(), end.wait()))  # does not block the signal
    other.start()
    ready.wait()
    done = []
    told, tells = os.pipe()  # Python writes to it in the thread that takes a signal
    os.set_blocking(tells, False)
    signal.set_wakeup_fd(tells)

    def work() -> None:
        with hold_interrupts():
            signal.pthread_kill(other.ident or 0, signal.SIGINT)
            assert os.read(told, 1) == bytes([signal.SIGINT])
            done.append("in the block")

    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        signal.set_wakeup_fd(-1)
        os.close(told)
        os.close(tells)
        end.set()
        other.join()
    assert done[-1] == "in the block"


def test_processes_started_in_the_block_never_see_an_interrupt() -> None:
    with hold_interrupts():
        child = subprocess.Popen([sys.executable, "-c", "input(); print('alive')"], stdin=-1, stdout=-1, text=True)
    child.send_signal(signal.SIGINT)
    assert child.communicate("\n", timeout=30)[0] == "alive\n"


def test_held_interrupts_work_outside_of_the_main_thread() -> None:
    masks = []

    def work() -> None:
        with hold_interrupts():
            masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert signal.SIGINT in masks[0]
    assert signal.SIGINT not in masks[1]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system gives no process its own cores")
def test_a_process_uses_the_cores_that_it_was_given() -> None:
    given = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(given)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, given)
    assert usable_cores() == len(given)


# Hands on an open file, as processes that read samples do, and meets somebody who leaves without taking it.
LOST = """
import os, socket, sys, threading, time
from multiprocessing import resource_sharer
from kdml_med.program import mute_lost_receivers

if sys.argv[1] == "mute":
    mute_lost_receivers()
told = threading.Event()
hook = sys.excepthook
sys.excepthook = lambda *error: (hook(*error), told.set())
shared = resource_sharer.DupFd(os.dup(0))
other = socket.socket(socket.AF_UNIX)
other.connect(shared._id[0])
other.close()
assert told.wait(60)
sys.excepthook(ValueError, ValueError("of its own"), None)
os._exit(0)  # the thread would wait for more
"""


@pytest.mark.parametrize(("how", "lost"), [("mute", False), ("as it is", True)])
def test_a_process_says_nothing_of_one_that_left_before_it_took_its_samples(how: str, lost: bool) -> None:
    done = subprocess.run([sys.executable, "-c", LOST, how], capture_output=True, text=True, check=True)
    assert ("resource_sharer" in done.stderr) == lost
    assert "ValueError: of its own" in done.stderr
