"""Freed memory is kept: the same large array again costs no new pages; where the C library cannot, nothing happens."""

import resource
import subprocess
import sys

import pytest

from util.hardware import malloc as allocator

COUNT = """
import resource, sys
from util.hardware.malloc import default_malloc, keep_freed_memory
assert keep_freed_memory() if sys.argv[1] == "keep" else default_malloc()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * 96_000_000
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's mallopt")
def test_freed_memory_is_kept():
    def faults(setting):
        result = subprocess.run([sys.executable, "-c", COUNT, setting], capture_output=True, text=True, check=True)
        return int(result.stdout)

    assert faults("keep") < 1000  # 96 MB are 23,400 pages of 4 KiB
    assert faults("usual") > 10_000 or resource.getpagesize() > 4096


def test_without_mallopt_nothing_happens(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not allocator.keep_freed_memory() and not allocator.default_malloc()
