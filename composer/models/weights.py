"""Weights from a file, composer's own or a stranger's: found, renamed where names are known to differ, and refused where they do not fit."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from composer.errors import ComposerError
from composer.shapes import Tensor

UNDER = ("state_dict", "model_state_dict", "net", "model")      # where trainers put the state dict
PREFIXES = ("module.", "_orig_mod.")                             # left by DataParallel and torch.compile
UNUSED = ("sub_block1.",)                                        # a copy of block 1 in TRADES' WideResNet that is never called
HEADS = ("fc.", "linear.", "classifier.")                        # what others call the last layer
SHOWN = 5


@dataclass(frozen=True)
class LoadReport:
    """What was done to make a file fit."""

    file: Path
    format: str                             # "safetensors" or "torch"
    under: str = ""                         # key of the file that held the weights; "": the top level
    stripped: tuple[str, ...] = ()          # prefixes taken off
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()           # tensors of the file left out
    tensors: int = 0

    def text(self) -> str:
        said = [f"{self.tensors} tensors from {self.file} ({self.format})"]
        said += [f"found under '{self.under}'"] if self.under else []
        said += [f"took off the prefix '{prefix}'" for prefix in self.stripped]
        said += [f"'{old}' is '{new}' here" for old, new in self.renamed.items()]
        said += [f"left out {len(self.dropped)} unused: {', '.join(self.dropped[:SHOWN])}"] if self.dropped else []
        return "; ".join(said)


def project(model: nn.Module) -> None:
    """Let every module with a method `project()` bring its weights back to where they must lie, in place (a head's rows on the unit sphere)."""
    with torch.no_grad():
        for module in model.modules():
            if callable(getattr(module, "project", None)):
                module.project()


def load_weights(model: nn.Module, path: Path | str) -> LoadReport:
    """Copy the weights of a safetensors or torch file into the model, in place, and project them. Never runs code from the file.

    Raises ComposerError if the file cannot be read safely, or if a name is missing or left over, a shape differs, or a number is not finite;
    the model is untouched then.
    """
    file = Path(path).expanduser()
    held, kind = read_file(file)
    state, under = find_state(held, file)
    state, stripped = strip(state)
    wanted = model.state_dict()
    dropped = tuple(k for k in state if k not in wanted and any(part in f"{k}" for part in UNUSED))
    state, renamed = rename_head({k: v for k, v in state.items() if k not in dropped}, wanted)
    check_fit(state, wanted, file)
    with torch.no_grad():
        for name, tensor in wanted.items():
            if name in state:
                tensor.copy_(state[name])
    project(model)
    return LoadReport(file, kind, under, stripped, renamed, dropped, len(state))


def read_file(file: Path) -> tuple[Any, str]:
    if not file.is_file():
        raise ComposerError(f"weights {file}", why="there is no such file")
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file), "safetensors"
        except (SafetensorError, OSError) as error:
            raise ComposerError(f"weights {file}", why=f"not a whole safetensors file ({file.stat().st_size:,} bytes): {error}") from None
    try:
        return torch.load(file, map_location="cpu", weights_only=True), "torch"
    except Exception as error:  # noqa: BLE001 (torch.load raises nearly anything for a damaged or foreign file)
        raise ComposerError(f"weights {file}", why=f"not a file of plain tensors ({file.stat().st_size:,} bytes): {_told(error)}",
                            fix="save the state dict alone with safetensors, in a program you trust the file with") from None


def _told(error: Exception) -> str:
    """Why torch would not read it, in one line: pickled classes by their name."""
    if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it holds pickled code ({found[1]}), which is not run"
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def find_state(held: Any, file: Path) -> tuple[dict[str, Tensor], str]:
    """The dictionary of tensors at the top level or under a usual key."""
    for under in ("", *UNDER):
        inside = held if not under else held.get(under) if isinstance(held, dict) else None
        if isinstance(inside, dict) and inside and all(isinstance(v, torch.Tensor) for v in inside.values()):
            return dict(inside), under
    there = ", ".join(map(str, list(held)[:SHOWN])) if isinstance(held, dict) else type(held).__name__
    raise ComposerError(f"weights {file}", why=f"no dictionary of tensors at the top level or under {', '.join(UNDER)}; it holds {there}",
                        fix="save model.state_dict(), alone or under one of these keys")


def strip(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Take off the prefixes that all names carry, as often as they do."""
    taken: list[str] = []
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in state)), None):
        state = {k[len(prefix):]: v for k, v in state.items()}
        taken.append(prefix)
    return state, tuple(taken)


def rename_head(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The last layer under another of its usual names becomes `head`, where the model has one and the file has none of that name."""
    if any(k.startswith("head.") for k in state) or not any(k.startswith("head.") for k in wanted):
        return state, {}
    other = next((h for h in HEADS if any(k.startswith(h) and k not in wanted for k in state)), None)
    if other is None:
        return state, {}
    names = {k: "head." + k[len(other):] for k in state if k.startswith(other)}
    return {names.get(k, k): v for k, v in state.items()}, names


def check_fit(state: dict[str, Tensor], wanted: dict[str, Tensor], file: Path) -> None:
    """`num_batches_tracked` may be missing: files older than it exist, and nothing but a cumulative average reads it."""
    absent = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    over = [k for k in state if k not in wanted]
    shapes = [f"{k}: file {list(state[k].shape)}, model {list(v.shape)}" for k, v in wanted.items() if k in state and state[k].shape != v.shape]
    found = [f"{title} ({len(names)}): {', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''}"
             for title, names in (("missing in the file", absent), ("unknown to the model", over), ("of another shape", shapes)) if names]
    if found:
        raise ComposerError(f"the weights {file} do not fit the model", why="\n".join(found),
                            fix="check [model]: its name, options, head, and the number of classes")
    odd = [k for k, v in state.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if odd:
        raise ComposerError(f"the weights {file} are not all finite", why=f"NaN or infinity in {', '.join(odd[:SHOWN])}")
