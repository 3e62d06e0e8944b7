"""Memory that was freed goes back to the system."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from composer.engine import peak

GROWS = """
import ctypes
from composer.engine.peak import trim

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
blocks = [libc.malloc(60_000) for _ in range(4000)]          # 230 MiB, each below the size that glibc maps by itself
for block in blocks:
    ctypes.memset(block, 1, 60_000)
held = resident()
for block in blocks[:-1]:                                     # the last one keeps the heap from shrinking by itself
    libc.free(block)
kept = resident()
trim()
print(held, kept, resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc_trim")
def test_freed_memory_goes_back():
    done = subprocess.run([sys.executable, "-c", GROWS], check=True, capture_output=True, text=True, timeout=120)
    held, kept, after = map(float, done.stdout.split())
    assert kept > held - 50, "the C library kept nothing: this test shows nothing"
    assert after < kept - 150


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    peak.trim()


def test_every_task_of_a_grid_gives_back(monkeypatch):
    from composer.ablate import work

    told = []
    monkeypatch.setattr(peak, "trim", lambda: told.append(1))
    with pytest.raises(KeyError):
        work.work({})
    assert told == [1]
