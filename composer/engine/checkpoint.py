"""State on disk: one safetensors file with a JSON header, put in place by one rename. The one before it is kept until the next."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from composer import atomic
from composer.errors import ComposerError

CURRENT, PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"


@dataclass
class Saved:
    """Tensors by name and plain facts beside them."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)


def save(path: Path, saved: Saved, *, previous: Path | None = None) -> None:
    """Write a file atomically; what was there goes to `previous` once the new one is whole. Errors: ComposerError (disk full, not writable)."""
    tensors = {k: v.detach().to("cpu").contiguous().clone() for k, v in saved.tensors.items()}
    header = {"composer": json.dumps(saved.facts, sort_keys=True)}

    def write(beside: Path) -> None:
        save_file(tensors, beside, metadata=header)
        if previous is not None and path.exists():
            atomic.sync_file(beside)
            os.replace(path, previous)

    atomic.replace_with(path, write)


def load(path: Path) -> Saved:
    """Read a file. Errors: ComposerError where it is truncated or not ours."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("composer", "null"))
            names = list(file.keys())
            return Saved({k: file.get_tensor(k) for k in names}, header or {})
    except FileNotFoundError:
        raise ComposerError(f"there is no checkpoint {path}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise ComposerError(f"the checkpoint {path} cannot be read", why=f"it is truncated or damaged: {error}",
                            fix="delete it to go on from the one before it, or run with --fresh") from None


def facts(path: Path) -> dict[str, Any]:
    """The plain facts of a file, without its tensors; {} where there is none or it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {}).get("composer", "null")) or {}
    except (SafetensorError, OSError, ValueError):
        return {}


def keep(folder: Path, saved: Saved) -> None:
    """Make `saved` the folder's current checkpoint; the last one stays as its predecessor. A write that fails changes neither."""
    save(folder / CURRENT, saved, previous=folder / PREVIOUS)


def tidy(folder: Path) -> None:
    """Remove what a killed process left half written. Only for who holds the folder's lock."""
    for path in folder.glob(".tmp-*"):
        path.unlink(missing_ok=True)


def forget(folder: Path, best: str) -> None:
    """Remove best models that neither `best` nor a checkpoint on disk names: a resumed run may still go back to those."""
    named = {best} | {((facts(folder / name).get("progress") or {}).get("best") or {}).get("file") for name in (CURRENT, PREVIOUS)}
    for path in folder.glob("best-*.safetensors"):
        if path.name not in named:
            path.unlink(missing_ok=True)


def newest(folder: Path) -> tuple[Saved | None, str]:
    """The newest readable checkpoint of a folder, and a remark where a damaged one was passed over."""
    remark = ""
    for name in (CURRENT, PREVIOUS):
        if not (folder / name).exists():
            continue
        try:
            return load(folder / name), remark
        except ComposerError as error:
            remark = f"{error.what} ({error.why}); going on from the checkpoint before it"
    if remark:
        raise ComposerError(f"no checkpoint in {folder} can be read", why="all of them are truncated or damaged", fix="run with --fresh to train this part anew")
    return None, ""


def flatten(state: Any, prefix: str) -> tuple[dict[str, Tensor], Any]:
    """A nested state (an optimiser's) as named tensors and the plain rest, which holds the tensors' names in their place."""
    tensors: dict[str, Tensor] = {}

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            tensors[path] = value
            return {"@": path}
        if isinstance(value, dict):
            return {"d": [[k, walk(v, f"{path}/{k}")] for k, v in value.items()]}
        if isinstance(value, (list, tuple)):
            return {"l": [walk(v, f"{path}/{n}") for n, v in enumerate(value)]}
        return value

    return tensors, walk(state, prefix)


def unflatten(rest: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(rest, dict) and "@" in rest:
        return tensors[rest["@"]]
    if isinstance(rest, dict) and "d" in rest:
        return {k: unflatten(v, tensors) for k, v in rest["d"]}
    if isinstance(rest, dict) and "l" in rest:
        return [unflatten(v, tensors) for v in rest["l"]]
    return rest


def weights_digest(weights: dict[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes."""
    import hashlib

    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().to("cpu").contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
