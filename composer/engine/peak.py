"""Peak memory of a run, for its record: of the CUDA allocator while it trains; elsewhere of the whole process, since it began."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import torch


def peak_kind(device: torch.device) -> str:
    """What `peak_bytes` counts here, in words."""
    return "CUDA allocator, training" if device.type == "cuda" else "resident set of the process"


def peak_bytes(device: torch.device) -> int:
    """Bytes: the CUDA allocator's high-water mark since `reset_peak`, or the process's since it began; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status() or _usage()


def reset_peak(device: torch.device) -> None:
    """Begin anew, where that is possible."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def trim() -> None:
    """What was freed goes back to the system, where the C library would keep it (glibc): a process that trains many runs would grow with each."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except (OSError, AttributeError):                   # another C library
            pass


def _status(file: Path = Path("/proc/self/status")) -> int:
    """Linux; unlike getrusage's figure this one does not hold the peak of the program that started ours."""
    try:
        line = next(line for line in file.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    except (OSError, StopIteration, ValueError, IndexError):
        return 0


def _usage() -> int:
    try:
        import resource
    except ImportError:                                     # Windows
        return 0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else 1024 * used
