"""What MLflow accepts: names, values and sizes, made to fit before they are written to the journal."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

KEY, PARAM, TAG = 250, 6000, 5000                             # characters of a name, a parameter's value, a tag's value (older servers too)
BATCH = {"metrics": 1000, "params": 100, "tags": 100}         # entries of one request
PARENT, PARENT_KEY, PARENT_AT = "mlflow.parentRunId", "composer.parent", "composer.parent_folder"     # tags of a grid's run: see track_grid
EXPERIMENT = "composer.experiment"                            # tag: the experiment to stand in, in place of the recipe's own
STATUS = ("RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED")


def clean(name: str) -> str:
    """The name with what MLflow refuses replaced by `_`: letters, digits, `_ - . space : /` stay, as does a path's one spelling.

    A name beyond 250 characters ends in a digest of the whole.
    """
    name = re.sub(r"[^A-Za-z0-9_\-. :/]", "_", str(name))
    name = "/".join("_" if part in (".", "..") else part for part in name.split("/") if part) or "_"
    return name if len(name) <= KEY else f"{name[:KEY - 9]}-{_digest(name)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def clean_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping under clean names; names that would fall together carry a digest of what they were."""
    names = [clean(name) for name in values]
    return {clean(f"{new}-{_digest(str(old))}") if names.count(new) > 1 else new: value for new, (old, value) in zip(names, values.items(), strict=True)}


def finite(values: Mapping[str, Any]) -> tuple[dict[str, float], list[str]]:
    """Metrics as floats under clean names, and the names of those that are not finite: MLflow stores infinity as 1.8e308."""
    numbers = {name: float(value) for name, value in clean_keys(values).items()}
    bad = [name for name, value in numbers.items() if not math.isfinite(value)]
    return {name: value for name, value in numbers.items() if name not in bad}, bad


def flat(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested tables as dotted names with strings as values."""
    found: dict[str, str] = {}
    for name, value in params.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else {f"{prefix}{name}": str(value)}
    return found


def short(value: str, limit: int) -> str:
    """The value, or its beginning and a digest of the whole: cut the same way each time, as a resumed run must log what it logged."""
    return value if len(value) <= limit else f"{value[:limit - 40]} ... ({len(value)} characters, {_digest(value)})"


def texts(values: Mapping[str, Any], limit: int) -> dict[str, str]:
    """Parameters or tags as MLflow takes them. The empty value is legal in neither of all its stores, so it becomes a dash."""
    return {name: short(value, limit) or "-" for name, value in clean_keys(flat(values)).items()}


def chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    held = list(items)
    yield from (held[at:at + size] for at in range(0, len(held), size))


def bare(uri: str) -> str:
    """The address without user and password: what may stand on the disk and in a sentence."""
    return re.sub(r"(?<=://)[^/@]*@", "", uri)
