"""Pages that the system has to clear again, in processes of their own."""

import ctypes
import subprocess
import sys

import pytest
import torch

from kdml_med.networks import memory

# Steps' worth of large arrays, freed and asked for again: pages cleared after the first step, and what the process
# still holds at the end, MiB.
STEPS = """
import contextlib, resource, runpy, sys

kept = runpy.run_path(sys.argv[1])["freed_memory_kept"]
block, inner = {
    "given back": (contextlib.nullcontext, contextlib.nullcontext),
    "kept": (kept, contextlib.nullcontext),
    "kept in each step": (contextlib.nullcontext, kept),
    "kept twice": (kept, kept),
}[sys.argv[2]]
cleared = []
with block() as told:
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        with inner():
            arrays = [b"x" * size for size in (50_000_000, 3_000_000, 20_000_000)]
            del arrays
        cleared.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
with open("/proc/self/statm") as stream:
    held = int(stream.read().split()[1]) * resource.getpagesize() // 2**20
print(sum(cleared[1:]), held, told is False)
"""


def steps(how: str) -> tuple[int, int]:
    words = [sys.executable, "-c", STEPS, memory.__file__, how]
    cleared, held, refused = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    if refused == "True":
        pytest.skip("the C library cannot be told what to keep")
    return int(cleared), int(held)


def test_memory_that_was_freed_is_there_for_the_next_step_and_given_back_at_the_end() -> None:
    for how in ("kept", "kept twice"):
        cleared, held = steps(how)
        assert cleared < 100
        assert held < 60
    for how in ("given back", "kept in each step"):
        assert steps(how)[0] > 3 * 50_000_000 / 4096 / 2


def test_another_c_library_does_as_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    with memory.freed_memory_kept() as told:
        assert not told


def test_nothing_is_asked_of_the_library_for_networks_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("the C library was asked"))
    with memory.freed_memory_kept(torch.device("meta")) as told:
        assert not told
