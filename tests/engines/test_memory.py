"""Pages that the system has to clear again, in processes of their own."""

import ctypes
import subprocess
import sys

import pytest

from kdml_med.engines import memory

# A step's worth of large arrays, freed and asked for again; pages cleared after the first time.
STEPS = """
import resource, runpy, sys

if sys.argv[2] == "kept":
    assert runpy.run_path(sys.argv[1])["keep_freed_memory"]()
cleared = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [b"x" * size for size in (50_000_000, 3_000_000, 20_000_000)]
    del arrays
    cleared.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(cleared[1:]))
"""


def pages_cleared(how: str) -> int:
    words = [sys.executable, "-c", STEPS, memory.__file__, how]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not memory.keep_freed_memory(), reason="the C library cannot be told what to keep")
def test_memory_that_was_freed_is_there_for_the_next_step() -> None:
    assert pages_cleared("given back") > 3 * 50_000_000 / 4096 / 2
    assert pages_cleared("kept") < 100


def test_another_c_library_does_as_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not memory.keep_freed_memory()
