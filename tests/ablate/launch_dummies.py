"""Work functions for the launcher's tests: they count on disk what they do, and misbehave on request."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from composer import atomic
from composer.ablate.progress import tell
from composer.engine.lock import Lock
from composer.errors import Diverged, Stopped


def work(spec: dict[str, Any]) -> dict[str, Any]:
    """Epochs of `seconds` each, with a checkpoint behind each one; `trouble` says what goes wrong, and where."""
    folder = Path(spec["folder"]) / spec["name"]
    with Lock(folder):
        atomic.append_line(folder / "log.jsonl", {"began": time.time(), "pid": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS"),
                                                  "say": os.environ.get("COMPOSER_SAY"), "cuda": os.environ.get("CUDA_VISIBLE_DEVICES")})
        _misbehave(spec, folder)
        saved = folder / "epoch"
        done = int(saved.read_text()) if saved.exists() else 0
        while done < spec.get("epochs", 0):
            if Path(spec["stop_file"]).exists():
                raise Stopped(f"stopped after epoch {done}")
            time.sleep(spec.get("seconds", 0.0))
            done += 1
            atomic.write_text(saved, str(done))
            atomic.append_line(folder / "epochs.jsonl", done)
            tell(spec["progress_file"], done, spec.get("epochs", 0), "train")
        atomic.append_line(folder / "log.jsonl", {"ended": time.time()})
    return {"name": spec["name"], "epochs": done}


def _misbehave(spec: dict[str, Any], folder: Path) -> None:
    trouble = spec.get("trouble", "")
    times = len(list(folder.glob("trouble-*")))
    if trouble == "raise":
        raise ValueError("no such thing")
    if trouble == "diverge":
        raise Diverged("the loss is not finite")
    if trouble == "kill" and times < spec.get("times", 1):
        (folder / f"trouble-{times}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if trouble == "term" and times < spec.get("times", 1):
        (folder / f"trouble-{times}").touch()
        raise Stopped("stopped by SIGTERM")


def deaf(spec: dict[str, Any]) -> dict[str, Any]:
    """Looks at no stop file."""
    (Path(spec["folder"]) / f"{spec['name']}-{os.getpid()}").touch()
    time.sleep(60)
    return {}


def nothing(spec: dict[str, Any]) -> dict[str, Any]:
    return {}


def answers_failed(spec: dict[str, Any]) -> dict[str, Any]:
    return {"failed": {"why": "it says so", "diverged": False, "exit_code": 1}}


def answers_no_json(spec: dict[str, Any]) -> dict[str, Any]:
    return {"what": object()}


def prints(spec: dict[str, Any]) -> dict[str, Any]:
    os.write(1, b"from below\n")
    print("from Python")
    return {"name": spec["name"]}


def torch_threads(spec: dict[str, Any]) -> dict[str, Any]:
    import torch

    return {"threads": torch.get_num_threads(), "interop": os.environ.get("OMP_NUM_THREADS")}
