"""What this installation has, what is missing, and what will not work for it. Imports torch only when asked."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NEEDED = {
    "torch": "nothing can be trained or evaluated", "torchvision": "torchvision models and downloads will not work",
    "numpy": "nothing can be trained or evaluated", "pydantic": "no recipe can be read", "typer": "the command line will not start",
    "rich": "no progress on a terminal", "safetensors": "no checkpoint can be written or read", "mlflow": "no tracking, no composer ui",
    "ray": "no sweep, and ablate one run after the other only", "optuna": "sweep can only walk grids", "pyautoattack": "the measure aa will not work",
    "scikit-learn": "the data set digits will not load", "scipy": "no intervals and tests in studies",
    "statsmodels": "no intervals and tests in studies", "matplotlib": "no plots in reports", "timm": "models of timm will not load (optional)",
}
OPTIONAL = ("timm",)
MOSAIC = ("mosaicml-", "mosaicml_composer-")


def foreign_composer() -> str | None:
    """A sentence if MosaicML's Composer shares this environment: it has the same import name and command. Milliseconds; imports nothing."""
    imported = getattr(sys.modules.get("composer"), "__file__", None)
    theirs = imported and Path(imported).resolve().parent != HERE
    mixed = (HERE / "trainer" / "trainer.py").is_file() or (HERE / "core" / "event.py").is_file()
    if not (theirs or mixed or _mosaic_installed()):
        return None
    what = f"`import composer` finds {imported}, which is not this package" if theirs else "MosaicML's Composer is installed here too"
    return (f"{what}; both are imported as `composer`, so they cannot share an environment: pip uninstall mosaicml mosaicml-composer, "
            "then install robust-composer again, or use a fresh environment.")


def _mosaic_installed() -> bool:
    for folder in dict.fromkeys(sys.path):
        try:
            names = os.listdir(folder or ".")
        except OSError:
            continue
        if any(name.startswith(MOSAIC) and name.endswith((".dist-info", ".egg-info")) for name in names):
            return True
    return False


def foreign_command() -> str | None:
    """A sentence if the shell's `composer` is some other program (PHP's package manager has that name too)."""
    found = shutil.which("composer")
    if not found:
        beside = Path(sys.executable).with_name("composer")
        where = f"they are in {beside.parent}" if beside.exists() else "install robust-composer again"
        return None if shutil.which("rcomposer") else f"the commands composer and rcomposer are not on the PATH: {where}."
    try:
        with open(found, "rb") as file:
            ours = b"from composer.cli import main" in file.read(4096)
    except OSError:
        return None
    return None if ours else f"the command `composer` is {found}, another program of that name; use `rcomposer`."


def packages() -> dict[str, dict[str, Any]]:
    """Name -> {"version", "problem"}: what is missing or outside of what we ask for, and what that costs."""
    asked = _requirements()
    found: dict[str, dict[str, Any]] = {}
    for name, cost in NEEDED.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = {"version": None, "problem": f"missing: {cost}"}
            continue
        wanted = asked.get(name)
        wrong = wanted is not None and not wanted.contains(version, prereleases=True)
        found[name] = {"version": version, "problem": f"this composer asks for {name}{wanted}" if wrong else ""}
    return found


def _requirements() -> dict[str, Any]:
    """Version ranges of our own distribution, where they can be read."""
    try:
        from packaging.requirements import Requirement

        read = [Requirement(line) for line in metadata.requires("robust-composer") or []]
    except (ImportError, metadata.PackageNotFoundError):
        return {}
    return {each.name.lower(): each.specifier for each in read}


def devices(ask_torch: bool) -> list[str]:
    """Accelerators by name and memory; without torch, whether NVIDIA's driver is there."""
    if not ask_torch:
        driver = Path("/proc/driver/nvidia/version").exists() or bool(shutil.which("nvidia-smi"))
        return ["an NVIDIA driver (not asked further)"] if driver else []
    try:
        import torch
    except (ImportError, OSError) as error:                   # OSError: a shared library of it is missing
        return [f"unknown: torch does not load ({error})"]
    found = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        found.append(f"cuda:{index} {facts.name}, {facts.total_memory / 2**30:.0f} GiB, compute capability {facts.major}.{facts.minor}")
    mps = getattr(torch.backends, "mps", None)
    return found + (["mps"] if mps and mps.is_available() else [])


def threads(ask_torch: bool) -> dict[str, Any]:
    """CPUs of the machine, those this process may use, what limits the threads, and the load."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[str, Any] = {"cpus": os.cpu_count(), "usable": usable, "quota": _quota(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
                             "load": [round(each, 2) for each in os.getloadavg()] if hasattr(os, "getloadavg") else None}
    if ask_torch and "torch" in sys.modules:
        found["torch"] = sys.modules["torch"].get_num_threads()
    return found


def _quota() -> float | None:
    """CPUs that a container's limit grants, where one is set."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if limit == "max" else round(int(limit) / int(period), 2)
    except (OSError, ValueError):
        return None


def disk(path: Path) -> dict[str, Any]:
    """Whether a folder exists and can be written, and GiB free where it is or would be."""
    path = Path(os.path.abspath(path))
    above = next(each for each in (path, *path.parents) if each.exists())
    return {"path": str(path), "exists": path.exists(), "writable": os.access(above, os.W_OK),
            "free_gib": round(shutil.disk_usage(above).free / 2**30, 1)}


def doctor(out: Path | str = "runs", data_root: Path | str = "data", plugins: Iterable[Any] = (), torch: bool = False) -> dict[str, Any]:
    """Everything `composer doctor` says, as data.

    `plugins` are those loaded (`composer.plugins.loaded()`); `torch` also asks torch for devices and threads, which takes seconds.
    `problems` holds one sentence for each thing to mend; it is empty on a sound installation.
    """
    report: dict[str, Any] = {"python": f"{platform.python_version()} at {sys.executable}", "platform": platform.platform(), "packages": packages()}
    report |= {"devices": devices(torch), "threads": threads(torch), "out": disk(Path(out)), "data_root": disk(Path(data_root))}
    report["tracking"] = os.environ.get("MLFLOW_TRACKING_URI") and "MLFLOW_TRACKING_URI is set" or "SQLite in the store"
    report["stand_ins"] = [f"{each.path} stands in for {each.stands_for}" for each in plugins if getattr(each, "stands_for", None)]
    report["problems"] = _problems(report)
    return report


def _problems(report: dict[str, Any]) -> list[str]:
    found = [sentence for sentence in (foreign_composer(), foreign_command()) if sentence]
    found += [f"{name} {facts['version'] or ''}".strip() + f": {facts['problem']}" for name, facts in report["packages"].items()
              if facts["problem"] and name not in OPTIONAL]
    out = report["out"]
    if not out["writable"]:
        found.append(f"{out['path']} cannot be written: choose another folder with --out.")
    if out["free_gib"] < 2:
        found.append(f"only {out['free_gib']} GiB are free for {out['path']}: checkpoints and results may not fit.")
    cpu = report["threads"]
    if cpu["load"] and cpu["usable"] and cpu["load"][0] > 1.5 * cpu["usable"]:
        found.append(f"the machine is busy (load {cpu['load'][0]} on {cpu['usable']} CPUs): times measured now say little.")
    return found


def lines(report: dict[str, Any]) -> list[str]:
    """The report for reading: facts first, what to mend last."""
    cpu, rows = report["threads"], [("python", report["python"]), ("platform", report["platform"])]
    rows += [(name, facts["version"] or facts["problem"]) for name, facts in report["packages"].items()]
    limits = [f"{cpu['usable']} of {cpu['cpus']} CPUs", f"quota {cpu['quota']}" if cpu["quota"] else "",
              f"OMP_NUM_THREADS={cpu['OMP_NUM_THREADS']}" if cpu["OMP_NUM_THREADS"] else "", f"torch uses {cpu['torch']}" if "torch" in cpu else "",
              f"load {' '.join(str(each) for each in cpu['load'])}" if cpu["load"] else ""]
    rows += [("devices", "; ".join(report["devices"]) or "CPU only"), ("threads", ", ".join(filter(None, limits))), ("tracking", report["tracking"])]
    for name in ("out", "data_root"):
        facts = report[name]
        state = "" if facts["exists"] else ", not there yet"
        rows.append((name.replace("_", " "), f"{facts['path']}{state}, {facts['free_gib']} GiB free{'' if facts['writable'] else ', not writable'}"))
    rows += [("plugin", each) for each in report["stand_ins"]]
    said = [f"{name:13} {text}" for name, text in rows]
    problems = report["problems"]
    return said + ["", *([f"- {each}" for each in problems] or ["Nothing is missing."])]
