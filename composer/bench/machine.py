"""What a measurement was made on: processor, cores, load, versions. Every printed time carries it."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Hardware, versions and load, as they are now."""
    device = torch.device(device)
    found: dict[str, Any] = {"cpu": cpu_name(), "cores": cores(), "threads": torch.get_num_threads(), "load": load(),
                             "python": platform.python_version(), "torch": torch.__version__, "composer": own_version(),
                             "instructions": torch.backends.cpu.get_cpu_capability(), "system": f"{platform.system()} {platform.machine()}"}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / 2**30, 1), "cuda": torch.version.cuda,
                  "cudnn": torch.backends.cudnn.version()}
    return found


def cpu_name(info: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, as lscpu calls it."""
    try:
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> list[float]:
    """Load averages of 1, 5 and 15 minutes; empty where the system has none."""
    try:
        return [round(v, 2) for v in os.getloadavg()]
    except OSError:
        return []


def own_version() -> str:
    try:
        return metadata.version("robust-composer")
    except metadata.PackageNotFoundError:
        from composer import __version__

        return __version__
